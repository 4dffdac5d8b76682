//! The interface under the tunnel: claimed, and set for AF_XDP while it is.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::offload::{Ethtool, OffloadError};
use crate::claim::{Claim, ClaimError};
use crate::link::{self, Link, LinkError};
use crate::netlink::{Netlink, NetlinkError};

/// What merges frames before a program in generic mode sees them: no merged frame fits where one is expected.
const MERGING: [&str; 5] = ["rx-gro", "rx-lro", "rx-udp-gro-forwarding", "rx-gro-list", "rx-gro-hw"];

/// What busy polling needs of an interface (Documentation/networking/napi.rst, "IRQ mitigation"): interrupts stay off
/// for so many polls that found nothing, and for so many nanoseconds at most.
const BUSY_POLL: [(&str, &str); 2] = [("napi_defer_hard_irqs", "2"), ("gro_flush_timeout", "200000")];

/// Threads of the kernel's own handle what the interface receives (Documentation/networking/napi.rst, "Threaded NAPI").
const NAPI_THREADS: [(&str, &str); 1] = [("threaded", "1")];

/// Whose packets come from another process's transmit call rather than from an interrupt, and are handled within that call.
const HANDLED_BY_SENDERS: &str = "veth";

/// The interface by index and hardware address, in the notes. Another namespace may have had the inode that this one has, and an
/// interface with the same name and index.
const LINK_NOTE: &str = "link";

/// What is to be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NicConfig<'a> {
    pub(crate) name: &'a str,
    /// Set the interface for busy polling too.
    pub(crate) busy_poll: bool,
    /// Where whoever sends to the interface would handle what it receives, let threads do it.
    pub(crate) napi_threads: bool,
}

/// An interface that is claimed and set for AF_XDP as long as this value. Where the process is killed, the next one
/// that claims it puts its settings back first.
#[derive(Debug)]
pub(crate) struct Nic {
    link: Link,
    queues: u32,
    driver: Option<String>,
    settings: Vec<String>,
    changes: Changes,
    netlink: Netlink,
    ethtool: Ethtool,
    /// Ends after the settings are back.
    claim: Claim,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NicError {
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Another instance that lives has the interface.
    #[error(transparent)]
    Busy(ClaimError),
    #[error(transparent)]
    Claim(ClaimError),
    #[error(transparent)]
    Offload(#[from] OffloadError),
    #[error("cannot look at the queues of interface {interface}: {source}")]
    Queues { interface: String, source: NetlinkError },
}

impl NicError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NicError::Link(LinkError::Lookup { source, .. }) | NicError::Queues { source, .. } => source.errno(),
            NicError::Link(_) => None,
            NicError::Busy(error) | NicError::Claim(error) => error.errno(),
            NicError::Offload(error) => error.errno(),
        }
    }
}

impl Nic {
    /// Claims an interface of the calling thread's network namespace and switches off what merges received frames. What
    /// a killed instance had changed is put back first. A setting that cannot be changed is no error: [`Nic::settings`]
    /// tells.
    ///
    /// Needs CAP_NET_ADMIN. Programs on the interface should be detached before this value is dropped.
    pub(crate) fn claim(config: NicConfig<'_>) -> Result<Self, NicError> {
        let link = link::by_name(config.name)?;
        let claim = Claim::take(&link.name).map_err(|error| match error {
            ClaimError::Busy { .. } => NicError::Busy(error),
            _ => NicError::Claim(error),
        })?;
        let failed = |source| NicError::Queues { interface: link.name.clone(), source };
        let mut netlink = Netlink::open().map_err(failed)?;
        let ethtool = Ethtool::open()?;
        let queues = match ethtool.channels(&link.name)? {
            Some(channels) => (channels.rx + channels.combined).max(1),
            None => allocated_queues(&mut netlink, link.index).map_err(failed)?,
        };
        let driver = ethtool.driver(&link.name);
        let changes = Changes::default();
        let mut nic = Nic { link, queues, driver, settings: Vec::new(), changes, netlink, ethtool, claim };
        nic.put_back_notes()?;
        nic.change(config)?;
        Ok(nic)
    }

    /// As it was when it was claimed.
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// How many queues frames are received on.
    pub(crate) fn queues(&self) -> u32 {
        self.queues
    }

    pub(crate) fn driver(&self) -> Option<&str> {
        self.driver.as_deref()
    }

    /// What was changed, and what could not be, a line each.
    pub(crate) fn settings(&self) -> &[String] {
        &self.settings
    }

    /// Puts back what an instance noted that was killed, if it is the same interface.
    fn put_back_notes(&mut self) -> Result<(), NicError> {
        let notes = self.claim.notes().map_err(NicError::Claim)?;
        self.changes = Changes::from_notes(&notes, &self.link);
        if self.changes.is_empty() {
            return Ok(());
        }
        self.put_back();
        self.settings.push("first, what an icx that was killed had changed was put back".to_owned());
        Ok(())
    }

    fn change(&mut self, config: NicConfig<'_>) -> Result<(), NicError> {
        let name = &self.link.name;
        let on = || -> Result<Vec<_>, OffloadError> {
            let features = self.ethtool.features(name)?.into_iter();
            Ok(features.filter(|feature| feature.on && MERGING.contains(&feature.name.as_str())).collect())
        };
        let features = on()?.into_iter().filter(|feature| feature.changeable).map(|feature| feature.name);
        let mut changes = Changes { features: features.collect(), values: Vec::new() };
        let napi_threads = config.napi_threads && self.driver() == Some(HANDLED_BY_SENDERS);
        let busy_poll = BUSY_POLL.into_iter().filter(|_| config.busy_poll);
        for (attribute, new) in busy_poll.chain(NAPI_THREADS.into_iter().filter(|_| napi_threads)) {
            match Value::open(&self.link, attribute, new) {
                Ok(value) if value.old == new => {}
                Ok(value) => changes.values.push(value),
                Err(error) => self.settings.push(format!("{attribute} stays as it is: {error}")),
            }
        }
        self.claim.note(&changes.notes(&self.link)).map_err(NicError::Claim)?;
        self.changes = changes;

        if let Err(error) = self.ethtool.switch(name, &self.changes.features, false) {
            self.settings.push(error.to_string());
        }
        let remaining: Vec<_> = on()?.into_iter().map(|feature| feature.name).collect();
        let switched = self.changes.features.iter().filter(|feature| !remaining.contains(feature));
        self.settings.extend(switched.map(|feature| format!("{feature}: on -> off")));
        self.settings.extend(remaining.iter().map(|feature| format!("{feature} stays on: frames may arrive merged")));
        let values = std::mem::take(&mut self.changes.values);
        for value in &values {
            let Value { attribute, old, new, .. } = value;
            let result = self.set(value, new);
            self.settings.push(match result {
                Ok(()) => format!("{attribute}: {old} -> {new}"),
                Err(error) => format!("{attribute} stays at {old}: {error}"),
            });
        }
        self.changes.values = values;
        Ok(())
    }

    /// Puts everything back, as far as it goes: the interface may be gone. What somebody else has set meanwhile stays.
    fn put_back(&mut self) {
        let changes = std::mem::take(&mut self.changes);
        for value in changes.values {
            if value.current().is_ok_and(|current| current == value.new) {
                let _ = self.set(&value, &value.old);
            }
        }
        if let Some(name) = self.present_name() {
            let _ = self.ethtool.switch(&name, &changes.features, true);
        }
    }

    /// The interface may have another name by now, or be gone.
    fn present_name(&mut self) -> Option<String> {
        link::by_index(&mut self.netlink, self.link.index).ok().flatten().map(|link| link.name)
    }

    fn set(&mut self, value: &Value, text: &str) -> io::Result<()> {
        let result = value.set(text);
        if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EOPNOTSUPP)) {
            // There is nothing yet to have threads (`modify_napi_threaded` in net/core/net-sysfs.c): a veth has its NAPI instances only
            // while it merges (`veth_set_features` in drivers/net/veth.c) or has a program. The setting stays with the interface.
            let Some(name) = self.present_name() else { return result };
            self.ethtool.switch(&name, &["rx-gro"], true).map_err(io::Error::other)?;
            let again = value.set(text);
            self.ethtool.switch(&name, &["rx-gro"], false).map_err(io::Error::other)?;
            return again;
        }
        result
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.put_back();
    }
}

/// What is to be put back.
#[derive(Debug, Default)]
struct Changes {
    /// Features that were on.
    features: Vec<String>,
    values: Vec<Value>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.features.is_empty() && self.values.is_empty()
    }

    /// `key=value` lines: which interface it is, and what was there before. Nothing, where nothing is to be put back.
    fn notes(&self, link: &Link) -> String {
        if self.is_empty() {
            return String::new();
        }
        let features = self.features.iter().map(|feature| format!("{feature}=on\n"));
        let values = self.values.iter().map(|value| format!("{}={}\n", value.attribute, value.old));
        [format!("{LINK_NOTE}={}\n", identity(link))].into_iter().chain(features).chain(values).collect()
    }

    /// Of what is noted, that which can be put back on this interface.
    fn from_notes(notes: &str, link: &Link) -> Self {
        let notes: Vec<_> = notes.lines().filter_map(|line| line.split_once('=')).collect();
        // Another interface of that name has settings of its own.
        if !notes.contains(&(LINK_NOTE, identity(link).as_str())) {
            return Changes::default();
        }
        let was_on = |feature: &&str| notes.contains(&(*feature, "on"));
        let features = MERGING.iter().filter(|feature| was_on(feature)).map(|&feature| feature.to_owned());
        let values = BUSY_POLL.into_iter().chain(NAPI_THREADS).filter_map(|(attribute, new)| {
            let (_, old) = notes.iter().find(|(key, _)| *key == attribute)?;
            Some(Value { old: (*old).to_owned(), ..Value::open(link, attribute, new).ok()? })
        });
        Changes { features: features.collect(), values: values.collect() }
    }
}

fn identity(link: &Link) -> String {
    let mac = link.mac.map_or_else(|| "-".to_owned(), |mac| mac.to_string());
    format!("{} {mac}", link.index)
}

/// A setting in sysfs.
#[derive(Debug)]
struct Value {
    attribute: &'static str,
    /// Stays that interface's, whatever becomes of its name.
    file: File,
    old: String,
    new: &'static str,
}

impl Value {
    /// Opens an attribute of an interface, which sysfs must show (Documentation/ABI/testing/sysfs-class-net).
    fn open(link: &Link, attribute: &'static str, new: &'static str) -> io::Result<Self> {
        let directory = Path::new("/sys/class/net").join(&link.name);
        // sysfs shows the network namespace in which it was mounted, and there may be a namesake in that.
        let is = |attribute: &str, wanted: String| {
            fs::read_to_string(directory.join(attribute)).is_ok_and(|text| text.trim() == wanted)
        };
        let is_mac = link.mac.is_none_or(|mac| is("address", mac.to_string()));
        if !is("ifindex", link.index.to_string()) || !is_mac {
            return Err(io::Error::other("the sysfs mounted at /sys is not that of this network namespace"));
        }
        let file = OpenOptions::new().read(true).write(true).open(directory.join(attribute))?;
        let mut value = Value { attribute, file, old: String::new(), new };
        value.old = value.current()?;
        Ok(value)
    }

    fn current(&self) -> io::Result<String> {
        let mut text = [0; 32];
        let length = self.file.read_at(&mut text, 0)?;
        Ok(String::from_utf8_lossy(&text[..length]).trim().to_owned())
    }

    fn set(&self, text: &str) -> io::Result<()> {
        self.file.write_at(text.as_bytes(), 0).map(drop)
    }
}

/// The receive queues that an interface was made with, which are all in use where its driver has no channels to set.
fn allocated_queues(netlink: &mut Netlink, index: u32) -> Result<u32, NetlinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    let attributes = link::get(netlink, request)?.map(|message| message.attributes).unwrap_or_default();
    let queues = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::NumRxQueues(queues) => Some(*queues),
        _ => None,
    });
    Ok(queues.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::offload::Ethtool;
    use super::super::veth::{VethConfig, VethPair};
    use super::{BUSY_POLL, Changes, Link, LinkError, MERGING, Nic, NicConfig, NicError};
    use crate::claim::ClaimError;
    use crate::link;
    use crate::netlink::Netlink;
    use crate::sys;
    use crate::test_support::{NetNs, delete, never_drop, rename};

    /// A namespace with its own sysfs and an interface `eth0` with two queues, on which `body` runs; everything that
    /// merges frames is on, as far as it goes on a veth.
    fn with_interface(body: impl FnOnce() + Send) {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            sys::mount_sysfs().unwrap();
            let mac = icx_proto::MacAddr([2, 0, 0, 0, 0, 1]);
            let config = VethConfig { name: "eth0".to_owned(), mtu: 1500, mac, addresses: Vec::new(), queues: 2 };
            let _pair = VethPair::open(config).unwrap();
            rename("eth0", "phy0");
            Ethtool::open().unwrap().switch("phy0", &MERGING, true).unwrap();
            body();
        });
    }

    fn is_merging(name: &str) -> Vec<String> {
        let features = Ethtool::open().unwrap().features(name).unwrap().into_iter();
        let on = features.filter(|feature| feature.on && MERGING.contains(&feature.name.as_str()));
        on.map(|feature| feature.name).collect()
    }

    fn path(name: &str, attribute: &str) -> String {
        format!("/sys/class/net/{name}/{attribute}")
    }

    fn value(name: &str, attribute: &str) -> String {
        fs::read_to_string(path(name, attribute)).unwrap().trim().to_owned()
    }

    fn values(name: &str) -> [String; 2] {
        BUSY_POLL.map(|(attribute, _)| value(name, attribute))
    }

    fn claim(busy_poll: bool) -> Result<Nic, NicError> {
        Nic::claim(NicConfig { name: "phy0", busy_poll, napi_threads: false })
    }

    const SWITCHABLE: [&str; 3] = ["rx-gro", "rx-gro-list", "rx-udp-gro-forwarding"];

    fn sorted(mut names: Vec<String>) -> Vec<String> {
        names.sort();
        names
    }

    #[test]
    fn a_claimed_interface_is_set_and_put_back() {
        with_interface(|| {
            assert_eq!(sorted(is_merging("phy0")), SWITCHABLE);
            fs::write(path("phy0", "gro_flush_timeout"), "1000").unwrap();
            let nic = claim(true).unwrap();
            assert_eq!((nic.link(), nic.queues(), nic.driver()), (&link::by_name("phy0").unwrap(), 2, Some("veth")));
            assert_eq!(is_merging("phy0"), [""; 0]);
            assert_eq!(values("phy0"), ["2", "200000"]);
            let mut settings = nic.settings().to_vec();
            settings.sort();
            assert_eq!(
                settings,
                [
                    "gro_flush_timeout: 1000 -> 200000",
                    "napi_defer_hard_irqs: 0 -> 2",
                    "rx-gro-list: on -> off",
                    "rx-gro: on -> off",
                    "rx-udp-gro-forwarding: on -> off"
                ]
            );
            drop(nic);
            assert_eq!(sorted(is_merging("phy0")), SWITCHABLE);
            assert_eq!(values("phy0"), ["0", "1000"]);

            // Without busy polling, and with nothing on.
            Ethtool::open().unwrap().switch("phy0", &MERGING, false).unwrap();
            let nic = claim(false).unwrap();
            assert_eq!((nic.settings().len(), values("phy0")), (0, ["0".to_owned(), "1000".to_owned()]));
            drop(nic);
            assert_eq!(is_merging("phy0"), [""; 0]);
        });
    }

    #[test]
    fn threads_take_what_senders_would_handle_and_go_with_the_claim() {
        with_interface(|| {
            let claim = || Nic::claim(NicConfig { name: "phy0", busy_poll: false, napi_threads: true }).unwrap();
            let nic = claim();
            assert_eq!(value("phy0", "threaded"), "1");
            assert!(nic.settings().contains(&"threaded: 0 -> 1".to_owned()), "{:?}", nic.settings());
            drop(nic);
            assert_eq!(value("phy0", "threaded"), "0");

            // A killed instance's are put back, too.
            let nic = claim();
            nic.claim.abandon();
            never_drop(nic);
            drop(Nic::claim(NicConfig { name: "phy0", busy_poll: false, napi_threads: false }).unwrap());
            assert_eq!(value("phy0", "threaded"), "0");
        });
    }

    #[test]
    fn what_somebody_else_sets_meanwhile_stays_and_a_new_name_does_not_matter() {
        with_interface(|| {
            let nic = claim(true).unwrap();
            rename("phy0", "phy1");
            fs::write(path("phy1", "gro_flush_timeout"), "7000").unwrap();
            // Nor does it matter where it is dropped.
            std::thread::spawn(|| drop(nic)).join().unwrap();
            assert_eq!(sorted(is_merging("phy1")), SWITCHABLE);
            assert_eq!(values("phy1"), ["0", "7000"]);
        });
    }

    #[test]
    fn a_living_owner_is_left_alone_and_a_killed_ones_settings_are_put_back_first() {
        with_interface(|| {
            let owner = claim(true).unwrap();
            let error = claim(true).unwrap_err();
            assert!(matches!(&error, NicError::Busy(ClaimError::Busy { .. })), "{error:?}");
            assert!(error.to_string().contains("phy0"), "{error}");
            assert_eq!((is_merging("phy0").len(), values("phy0")), (0, ["2".to_owned(), "200000".to_owned()]));
            owner.claim.abandon();
            never_drop(owner);

            let nic = claim(false).unwrap();
            assert!(nic.settings()[0].contains("put back"), "{:?}", nic.settings());
            assert_eq!((is_merging("phy0").len(), values("phy0")), (0, ["0".to_owned(), "0".to_owned()]));
            nic.claim.abandon();
            never_drop(nic);
            drop(claim(true).unwrap());
            assert_eq!(sorted(is_merging("phy0")), SWITCHABLE);
            assert_eq!(values("phy0"), ["0", "0"]);
            assert_eq!(claim(false).unwrap().settings().len(), 3, "nothing is left to be put back");
        });
    }

    #[test]
    fn notes_of_another_interface_of_that_name_are_not_followed() {
        with_interface(|| {
            let owner = claim(true).unwrap();
            let (link, notes) = (owner.link().clone(), owner.changes.notes(owner.link()));
            assert!(!Changes::from_notes(&notes, &link).is_empty());
            assert_eq!(Changes::default().notes(&link), "", "a file of which nobody needs anything");
            let other = Link { mac: Some(icx_proto::MacAddr([2, 0, 0, 0, 0, 3])), ..link };
            assert!(Changes::from_notes(&notes, &other).is_empty(), "only the hardware address differs");
            owner.claim.abandon();
            never_drop(owner);
            delete("phy0").unwrap();
            let mac = icx_proto::MacAddr([2, 0, 0, 0, 0, 2]);
            let config = VethConfig { name: "next0".to_owned(), mtu: 1500, mac, addresses: Vec::new(), queues: 1 };
            let _pair = VethPair::open(config).unwrap();
            rename("next0", "phy0");
            assert_eq!(claim(false).unwrap().settings(), [""; 0]);
            assert_eq!(is_merging("phy0"), [""; 0]);
        });
    }

    #[test]
    fn settings_of_a_namesake_in_another_namespace_are_not_touched() {
        with_interface(|| {
            let index = link::by_name("phy0").unwrap().index;
            let Some(other) = NetNs::new() else { return };
            // The mounts are inherited from the thread that starts this one; the network namespace is another.
            other.run(|| {
                let mac = icx_proto::MacAddr([2, 0, 0, 0, 0, 9]);
                let config = VethConfig { name: "eth0".to_owned(), mtu: 1500, mac, addresses: Vec::new(), queues: 1 };
                let _pair = VethPair::open(config).unwrap();
                rename("eth0", "phy0");
                let link = link::by_name("phy0").unwrap();
                // Only the hardware address tells the two apart.
                assert_eq!(link.index, index);
                let nic = claim(true).unwrap();
                assert_eq!(nic.link(), &link);
                assert_eq!(nic.settings().len(), 2, "{:?}", nic.settings());
                assert!(nic.settings().iter().all(|line| line.contains("stays")), "{:?}", nic.settings());
                assert_eq!(values("phy0"), ["0", "0"]);
            });
        });
    }

    #[test]
    fn an_interface_without_channels_has_the_queues_that_it_was_made_with() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            sys::mount_sysfs().unwrap();
            let nic = Nic::claim(NicConfig { name: "lo", busy_poll: false, napi_threads: true }).unwrap();
            assert_eq!((nic.queues(), nic.driver()), (1, None));
            assert_eq!(value("lo", "threaded"), "0", "only where senders handle what is received");
            let index = nic.link().index;
            assert_eq!(super::allocated_queues(&mut Netlink::open().unwrap(), index).unwrap(), 1);
            let missing =
                Nic::claim(NicConfig { name: "no-such-link0", busy_poll: false, napi_threads: false }).unwrap_err();
            assert!(matches!(missing, NicError::Link(LinkError::NotFound(_))), "{missing:?}");
        });
    }
}
