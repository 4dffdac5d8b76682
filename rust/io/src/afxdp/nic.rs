//! The network interface: whose it is, and its settings, which are given back in the end.

use std::fs;
use std::io;

use crate::link::{self, Link};
use crate::netlink::Netlink;
use crate::{LinkError, sys};

use super::claim::{Claim, ClaimError};

/// What merges received packets before XDP programs in the kernel's stack see them.
const AGGREGATION: [&str; 5] = ["rx-gro", "rx-gro-hw", "rx-lro", "rx-gro-list", "rx-udp-gro-forwarding"];

/// Settings in /sys/class/net/INTERFACE for preferred busy polling: interrupts stay off while workers drive the queue
/// (Documentation/networking/napi.rst).
const BUSY_POLL: [(&str, &str); 2] = [("napi_defer_hard_irqs", "2"), ("gro_flush_timeout", "200000")];

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NicError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error("cannot {action} of {interface}: {source}")]
    System { interface: String, action: String, source: io::Error },
}

impl NicError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NicError::Claim(error) => error.errno(),
            NicError::System { source, .. } => source.raw_os_error(),
            NicError::Link(_) => None,
        }
    }
}

/// What is claimed.
#[derive(Clone, Copy, Debug)]
pub(super) struct NicConfig<'a> {
    pub(super) name: &'a str,
    pub(super) busy_poll: bool,
}

/// A claimed interface. Dropping it sets back what was changed.
#[derive(Debug)]
pub(super) struct Nic {
    link: Link,
    queues: u32,
    driver: Option<String>,
    changed: Vec<Setting>,
    settings: Vec<String>,
    /// Goes last.
    _claim: Claim,
}

/// A setting with the value that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Setting {
    Feature { name: String, was_on: bool },
    File { name: String, was: String },
}

impl Setting {
    fn to_line(&self) -> String {
        match self {
            Setting::Feature { name, was_on } => format!("feature {name} {}\n", if *was_on { "on" } else { "off" }),
            Setting::File { name, was } => format!("file {name} {was}\n"),
        }
    }

    /// Nothing but what [`Setting::to_line`] makes is anything.
    fn of_line(line: &str) -> Option<Setting> {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["feature", name, value] if AGGREGATION.contains(&name) => {
                Some(Setting::Feature { name: name.to_owned(), was_on: value == "on" })
            }
            ["file", name, was] if BUSY_POLL.iter().any(|(known, _)| *known == name) => {
                Some(Setting::File { name: name.to_owned(), was: was.to_owned() })
            }
            _ => None,
        }
    }

    fn restore(&self, interface: &str) -> io::Result<()> {
        match self {
            Setting::Feature { name, was_on } => sys::set_features(interface, &[(name, *was_on)]),
            Setting::File { name, was } => fs::write(path(interface, name), was),
        }
    }
}

fn path(interface: &str, name: &str) -> String {
    format!("/sys/class/net/{interface}/{name}")
}

impl Nic {
    /// Claims an interface, sets right what a killed owner left, and switches off what merges packets.
    pub(super) fn claim(config: NicConfig<'_>) -> Result<Nic, NicError> {
        let link = link::by_name(config.name)?;
        let interface = link.name.clone();
        let failed = |action: String| {
            let interface = interface.clone();
            move |source| NicError::System { interface, action, source }
        };
        let (mut claim, left) = Claim::take(&interface)?;
        for setting in left.lines().filter_map(Setting::of_line) {
            // The driver may have become another one since.
            let _ = setting.restore(&interface);
        }

        let features = sys::features(&interface).unwrap_or_default();
        let mut changed = Vec::new();
        let mut settings = Vec::new();
        for feature in features.iter().filter(|feature| feature.is_on && AGGREGATION.contains(&&*feature.name)) {
            let name = feature.name.clone();
            if feature.is_free {
                settings.push(format!("{name} off"));
                changed.push(Setting::Feature { name, was_on: true });
            } else {
                settings.push(format!("{name} stays on, which the driver does not let be changed"));
            }
        }
        if config.busy_poll {
            for (name, value) in BUSY_POLL {
                let was = fs::read_to_string(path(&interface, name)).map_err(failed(format!("read {name}")))?;
                settings.push(format!("{name} {value}"));
                changed.push(Setting::File { name: name.to_owned(), was: was.trim().to_owned() });
            }
        }
        claim.note(&changed.iter().map(Setting::to_line).collect::<String>())?;
        let queues = sys::receive_queues(&interface).ok().filter(|queues| *queues > 0).unwrap_or(1);
        let driver = sys::driver_name(&interface).ok().filter(|driver| !driver.is_empty());
        // From here on what is changed is set back, whatever fails.
        let nic = Nic { link, queues, driver, changed, settings, _claim: claim };
        let off = nic.changed.iter().filter_map(|setting| match setting {
            Setting::Feature { name, .. } => Some((name.as_str(), false)),
            Setting::File { .. } => None,
        });
        let off: Vec<_> = off.collect();
        if !off.is_empty() {
            sys::set_features(&interface, &off).map_err(failed("switch the merging of received packets".to_owned()))?;
        }
        if config.busy_poll {
            for (name, value) in BUSY_POLL {
                fs::write(path(&interface, name), value).map_err(failed(format!("set {name}")))?;
            }
        }
        Ok(nic)
    }

    /// The interface as it was when it was claimed.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Queues that it receives on.
    pub(super) fn queues(&self) -> u32 {
        self.queues
    }

    pub(super) fn driver(&self) -> Option<&str> {
        self.driver.as_deref()
    }

    /// What was changed, and what should have been, in words.
    pub(super) fn settings(&self) -> &[String] {
        &self.settings
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        // By its index: it may have another name, or another interface may have this one.
        let name = Netlink::open().and_then(|mut netlink| link::by_index(&mut netlink, self.link.index));
        if let Ok(Some(link)) = name {
            for setting in &self.changed {
                // There is nobody to tell, and nothing else to try.
                let _ = setting.restore(&link.name);
            }
        }
    }
}
