//! The veth pair that is the inner side of the tunnel: the host uses one end, the forwarder the other.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use icx_proto::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};

use super::offload::{Ethtool, OffloadError};
use crate::claim::{Claim, ClaimError};
use crate::device::{self, DeviceError};
use crate::leftovers::{self, LeftoverError, MAKING, Namesake};
use crate::link::{self, is_valid_name};
use crate::netlink::{Netlink, NetlinkError};

/// What the end for AF_XDP is called, after the name of the pair.
const INNER_SUFFIX: &str = "-xdp";

/// The longest name of a pair: its other end must be an interface name too (IFNAMSIZ with its NUL).
const MOST_NAME_BYTES: usize = libc::IFNAMSIZ - 1 - INNER_SUFFIX.len();

/// What the kernel takes (`rtnl_create_link` in net/core/rtnetlink.c).
const QUEUE_RANGE: std::ops::RangeInclusive<u32> = 1..=4096;

/// How many packets a queueing discipline holds that an administrator gives to an end: the usual number of Ethernet
/// devices. Of itself a veth has none.
const TX_QUEUE_PACKETS: u32 = 1000;

/// What a pair shall look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VethConfig {
    /// Of the host's end: 1 to 11 bytes, without '/', ':', '%' and white space.
    pub(crate) name: String,
    /// In bytes of inner packet, of both ends: 68 to 65535, at least 1280 where there is an IPv6 address. A native XDP
    /// program on the other end limits it to what fits in a page.
    pub(crate) mtu: u32,
    /// Of the host's end.
    pub(crate) mac: MacAddr,
    /// Of the host's end, with the prefix lengths of their networks. May be empty.
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    /// Of both ends, in both directions: 1 to 4096.
    pub(crate) queues: u32,
}

/// A pair that exists as long as this value. Where the process is killed, the next one that opens it makes it anew.
#[derive(Debug)]
pub(crate) struct VethPair {
    name: String,
    inner_name: String,
    index: u32,
    inner_index: u32,
    /// In the network namespace of the pair, whichever that of the calling thread is.
    netlink: Mutex<Netlink>,
    /// Ends after the pair.
    claim: Claim,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VethError {
    #[error(
        "{0:?} is no name of a veth pair: it has 1 to {MOST_NAME_BYTES} bytes, as the other end is called <name>{INNER_SUFFIX}, and neither '/', ':', '%' nor white space"
    )]
    BadName(String),
    #[error("a veth pair cannot have {0} queues: 1 to 4096, one for each queue of the underlay's interface")]
    BadQueues(u32),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(
        "the veth pair {name} is held by another icx: stop that one first, or choose another --tun-device ({source})"
    )]
    Busy { name: String, source: ClaimError },
    #[error(
        "interface {0} exists already, and icx did not make it: choose another --tun-device, or remove it with `ip link del {0}`"
    )]
    Occupied(String),
    #[error("this kernel has no veth devices: load the module (`modprobe veth`), or use a TUN device (`--device tun`)")]
    NoDriver,
    #[error(transparent)]
    Claim(ClaimError),
    #[error(transparent)]
    Leftover(#[from] LeftoverError),
    #[error(transparent)]
    Offload(#[from] OffloadError),
}

impl VethError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            VethError::Device(error) => error.errno(),
            VethError::Busy { .. } => Some(libc::EBUSY),
            VethError::Occupied(_) => Some(libc::EEXIST),
            VethError::NoDriver => Some(libc::EOPNOTSUPP),
            VethError::Claim(error) => error.errno(),
            VethError::Leftover(error) => error.errno(),
            VethError::Offload(error) => error.errno(),
            VethError::BadName(_) | VethError::BadQueues(_) => None,
        }
    }
}

impl VethPair {
    /// Makes a pair in the calling thread's network namespace and sets both ends up. What a killed instance left under
    /// its name, or with one of its addresses, is removed first. On error nothing remains.
    ///
    /// Needs CAP_NET_ADMIN. Neither end has a link-local IPv6 address unless one is given, and duplicate address
    /// detection is off, as nobody else is on the link: nothing comes out of the pair that the host's programs do not
    /// send, other than multicast listener reports for the given IPv6 addresses, from the unspecified address, which no
    /// route takes (RFC 3810 section 5.2.13). Every frame is complete: all checksum, segmentation, merging and VLAN
    /// offloads are off.
    pub(crate) fn open(config: VethConfig) -> Result<Self, VethError> {
        if !is_valid_name(&config.name) || config.name.len() > MOST_NAME_BYTES {
            return Err(VethError::BadName(config.name));
        }
        if !QUEUE_RANGE.contains(&config.queues) {
            return Err(VethError::BadQueues(config.queues));
        }
        device::check_addresses(&config.addresses)?;
        device::check_mtu(config.mtu, device::least_mtu(&config.addresses))?;

        let inner_name = format!("{}{INNER_SUFFIX}", config.name);
        let mut claim = Claim::take(&config.name).map_err(|source| match source {
            ClaimError::Busy { .. } => VethError::Busy { name: config.name.clone(), source },
            _ => VethError::Claim(source),
        })?;
        let failed = |action: &str, source| DeviceError::configure(&config.name, action, source);
        let mut netlink = Netlink::open().map_err(|source| failed("look for a namesake", source))?;
        for name in [&config.name, &inner_name] {
            match leftovers::remove_namesake(&mut netlink, name, &mut claim)? {
                Namesake::Gone => {}
                Namesake::Living(source) => return Err(VethError::Busy { name: name.clone(), source }),
                Namesake::Foreign => return Err(VethError::Occupied(name.clone())),
            }
        }
        leftovers::remove_holders(&mut netlink, &config.name, &config.addresses)?;

        claim.note(MAKING).map_err(VethError::Claim)?;
        netlink.request(new_pair(&config, &inner_name), NLM_F_CREATE | NLM_F_EXCL).map_err(|source| {
            match source.errno() {
                Some(libc::EEXIST) => VethError::Occupied(config.name.clone()),
                Some(libc::EOPNOTSUPP) => VethError::NoDriver,
                _ => failed(&format!("make the pair with MTU {} and MAC address {}", config.mtu, config.mac), source)
                    .into(),
            }
        })?;
        let VethConfig { name, mtu, addresses, .. } = config;
        let mut pair = VethPair { name, inner_name, index: 0, inner_index: 0, netlink: Mutex::new(netlink), claim };
        pair.configure(mtu, &addresses)?;
        Ok(pair)
    }

    /// Of the host's end.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Of the end for AF_XDP.
    pub(crate) fn inner_name(&self) -> &str {
        &self.inner_name
    }

    /// The interface index of the host's end.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The interface index of the end for AF_XDP.
    pub(crate) fn inner_index(&self) -> u32 {
        self.inner_index
    }

    /// Marks the new pair, gives it what it has not had from the start, and sets it up.
    fn configure(&mut self, mtu: u32, addresses: &[(IpAddr, u8)]) -> Result<(), VethError> {
        let netlink = self.netlink.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (name, index) in [(&self.name, &mut self.index), (&self.inner_name, &mut self.inner_index)] {
            let failed = |action: &str, source| DeviceError::configure(name, action, source);
            let found = link::find(netlink, name).map_err(|source| failed("look up the index", source))?;
            *index = found
                .map(|link| link.index)
                .ok_or_else(|| failed("look up the index", NetlinkError::Malformed("no such link".to_owned())))?;
            link::set(netlink, *index, vec![leftovers::mark(&self.claim)])
                .map_err(|source| failed("set the alias", source))?;
        }
        self.claim.note("").map_err(VethError::Claim)?;

        let ethtool = Ethtool::open()?;
        for (name, index) in [(&self.name, self.index), (&self.inner_name, self.inner_index)] {
            device::switch_off_link_local(netlink, name, index)?;
            ethtool.switch_all_off(name)?;
        }
        device::add_addresses(netlink, &self.name, self.index, addresses)?;
        for (name, index) in [(&self.inner_name, self.inner_index), (&self.name, self.index)] {
            device::set_up(netlink, name, index, mtu)?;
        }
        Ok(())
    }
}

impl Drop for VethPair {
    fn drop(&mut self) {
        let netlink = self.netlink.get_mut().unwrap_or_else(PoisonError::into_inner);
        // With one end the other goes. The host's may have been moved to another namespace, and both may be gone
        // already.
        let _ = link::delete(netlink, self.inner_index);
    }
}

fn new_pair(config: &VethConfig, inner_name: &str) -> RouteNetlinkMessage {
    let end = |name: &str| {
        let mut end = LinkMessage::default();
        // As many queues are in use as are asked for (`veth_init_queues` in drivers/net/veth.c).
        end.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(config.mtu),
            LinkAttribute::TxQueueLen(TX_QUEUE_PACKETS),
            LinkAttribute::NumTxQueues(config.queues),
            LinkAttribute::NumRxQueues(config.queues),
        ];
        end
    };
    let mut host = end(&config.name);
    host.attributes.extend([
        LinkAttribute::Address(config.mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(inner_name)))),
        ]),
    ]);
    RouteNetlinkMessage::NewLink(host)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{IpAddr, UdpSocket};
    use std::time::Duration;

    use icx_proto::MacAddr;
    use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};
    use socket2::{Domain, Protocol, Socket, Type};

    use super::super::offload::Ethtool;
    use super::{DeviceError, MAKING, VethConfig, VethError, VethPair, new_pair};
    use crate::claim::{Claim, ClaimError};
    use crate::netlink::Netlink;
    use crate::sys::Channels;
    use crate::test_support::{NetNs, delete, never_drop};
    use crate::{leftovers, link};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn config(name: &str, mtu: u32, addresses: &[(&str, u8)]) -> VethConfig {
        let addresses = addresses.iter().map(|(address, prefix)| (address.parse().unwrap(), *prefix)).collect();
        VethConfig { name: name.to_owned(), mtu, mac: MAC, addresses, queues: 2 }
    }

    fn exists(name: &str) -> bool {
        link::find(&mut Netlink::open().unwrap(), name).unwrap().is_some()
    }

    fn attributes(name: &str) -> Vec<LinkAttribute> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link::get(&mut Netlink::open().unwrap(), request).unwrap().unwrap().attributes
    }

    /// What the death of the process leaves.
    fn abandon(pair: VethPair) {
        pair.claim.abandon();
        never_drop(pair);
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_made() {
        let refused = |config| VethPair::open(config).unwrap_err();
        for name in ["", "twelve-bytes", "a b", "a/b", "icx%d"] {
            let error = refused(config(name, 1400, &[]));
            assert!(matches!(error, VethError::BadName(_)), "{name:?}: {error:?}");
            assert!(error.to_string().contains("1 to 11 bytes"), "{error}");
        }
        for queues in [0, 4097] {
            let error = refused(VethConfig { queues, ..config("icx9", 1400, &[]) });
            assert!(matches!(error, VethError::BadQueues(_)), "{error:?}");
        }
        for (mtu, addresses, least) in [(67, &[][..], 68), (65_536, &[], 68), (1279, &[("fd00::1", 64)], 1280)] {
            let error = refused(config("icx9", mtu, addresses));
            assert!(
                matches!(error, VethError::Device(DeviceError::BadMtu { given, least: l }) if given == mtu && l == least),
                "{error:?}"
            );
        }
        let error = refused(config("icx9", 1400, &[("10.9.0.1", 33)]));
        assert!(matches!(error, VethError::Device(DeviceError::BadAddress { .. })), "{error:?}");
    }

    #[test]
    fn a_pair_has_what_was_asked_for_and_goes_with_its_value() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let addresses = [("10.9.0.1", 24), ("fd00:9::1", 64)];
            let pair = VethPair::open(config("elevenbytes", 1400, &addresses)).unwrap();
            assert_eq!((pair.name(), pair.inner_name()), ("elevenbytes", "elevenbytes-xdp"));
            let ethtool = Ethtool::open().unwrap();
            for (name, index) in [(pair.name(), pair.index()), (pair.inner_name(), pair.inner_index())] {
                let link = link::by_name(name).unwrap();
                assert_eq!((link.index, link.mtu, link.up, link.carrier), (index, 1400, true, true), "{name}");
                let attributes = attributes(name);
                for wanted in [leftovers::mark(&pair.claim), LinkAttribute::TxQueueLen(1000)] {
                    assert!(attributes.contains(&wanted), "{name}: {wanted:?}");
                }
                assert_eq!(ethtool.channels(name).unwrap(), Some(Channels { rx: 2, tx: 2, combined: 0 }), "{name}");

                let features = ethtool.features(name).unwrap();
                for off in [
                    "rx-checksum",
                    "rx-gro",
                    "rx-gro-list",
                    "rx-lro",
                    "rx-udp-gro-forwarding",
                    "rx-vlan-hw-parse",
                    "tx-checksum-ip-generic",
                    "tx-checksum-sctp",
                    "tx-generic-segmentation",
                    "tx-scatter-gather",
                    "tx-scatter-gather-fraglist",
                    "tx-tcp-ecn-segmentation",
                    "tx-tcp-mangleid-segmentation",
                    "tx-tcp-segmentation",
                    "tx-tcp6-segmentation",
                    "tx-udp-segmentation",
                    "tx-vlan-hw-insert",
                ] {
                    let feature = features.iter().find(|feature| feature.name == off);
                    assert!(feature.is_some_and(|feature| !feature.on), "{name}: {feature:?}, {off}");
                }
            }
            assert_eq!(link::by_name("elevenbytes").unwrap().mac, Some(MAC));
            for (address, _) in addresses {
                let ip: IpAddr = address.parse().unwrap();
                UdpSocket::bind((ip, 0)).unwrap_or_else(|error| panic!("{address}: {error}"));
            }
            let mut ipv6 = String::new();
            std::fs::File::open("/proc/thread-self/net/if_inet6").unwrap().read_to_string(&mut ipv6).unwrap();
            assert!(!ipv6.contains("fe80"), "{ipv6}");
            drop(pair);
            assert!(!exists("elevenbytes") && !exists("elevenbytes-xdp"));
            Claim::take("elevenbytes").expect("the claim ends with it");
        });
    }

    #[test]
    fn a_new_pair_says_nothing_but_which_groups_its_ipv6_addresses_are_in() {
        for (addresses, says) in [(&[("10.9.0.1", 24)][..], false), (&[("10.9.0.1", 24), ("fd00:9::1", 64)], true)] {
            let Some(namespace) = NetNs::new() else { return };
            namespace.run(|| {
                // Every protocol, on every interface.
                let protocol = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
                let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
                // Router solicitations and multicast reports come within the first second.
                socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
                let _pair = VethPair::open(config("icx0", 1400, addresses)).unwrap();
                let mut frame = [0; 256];
                let mut heard = false;
                while let Ok(length) = (&socket).read(&mut frame) {
                    let frame = &frame[..length];
                    heard = true;
                    // IPv6 from :: to ff02::16, hop-by-hop options, ICMPv6 type 143 (RFC 3810 section 5.2).
                    let report = [&[0; 16][..], &[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16]].concat();
                    assert!(length >= 63 && frame[22..54] == report && frame[62] == 143, "{frame:02x?}");
                }
                assert_eq!(heard, says);
                // Anything else would have been heard.
                UdpSocket::bind("10.9.0.1:0").unwrap().send_to(b"x", "10.9.0.2:9").unwrap();
                let length = (&socket).read(&mut frame).expect("an ARP request");
                assert_eq!(&frame[..length][12..14], [0x08, 0x06]);
            });
        }
    }

    #[test]
    fn a_pair_of_a_living_instance_is_left_alone() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let pair = VethPair::open(config("icx0", 1400, &[])).unwrap();
            let error = VethPair::open(config("icx0", 1400, &[])).unwrap_err();
            assert!(matches!(&error, VethError::Busy { source: ClaimError::Busy { .. }, .. }), "{error:?}");
            assert!(error.to_string().contains("icx0"), "{error}");
            assert_eq!(link::by_name("icx0").unwrap().index, pair.index());
            VethPair::open(config("icx1", 1400, &[])).expect("another name is free");
        });
    }

    #[test]
    fn what_a_killed_instance_left_is_replaced() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let killed = VethPair::open(config("icx0", 1400, &[("10.9.0.1", 24)])).unwrap();
            let indices = [killed.index(), killed.inner_index()];
            abandon(killed);
            assert!(exists("icx0"));
            let pair = VethPair::open(config("icx0", 1300, &[("10.9.0.1", 24)])).unwrap();
            assert!(!indices.contains(&pair.index()) && !indices.contains(&pair.inner_index()));
            assert_eq!(link::by_name("icx0").unwrap().mtu, 1300);
            abandon(pair);
            drop(VethPair::open(config("icx1", 1400, &[("10.9.0.1", 24)])).unwrap());
            assert!(!exists("icx0") && !exists("icx0-xdp"), "it had the address");

            // One that was killed before it could mark what it had made.
            let make = || {
                let request = new_pair(&config("icx0", 1400, &[]), "icx0-xdp");
                Netlink::open().unwrap().request(request, NLM_F_CREATE | NLM_F_EXCL).unwrap();
            };
            let mut claim = Claim::take("icx0").unwrap();
            claim.note(MAKING).unwrap();
            make();
            claim.abandon();
            never_drop(claim);
            VethPair::open(config("icx0", 1400, &[])).expect("what was being made is replaced");
            make();
            let error = VethPair::open(config("icx0", 1400, &[])).unwrap_err();
            assert!(matches!(&error, VethError::Occupied(name) if name == "icx0"), "{error:?}");
        });
    }

    #[test]
    fn what_others_made_is_refused_and_failure_leaves_nothing() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let request = new_pair(&config("other", 1400, &[]), "icx0-xdp");
            Netlink::open().unwrap().request(request, NLM_F_CREATE | NLM_F_EXCL).unwrap();
            let error = VethPair::open(config("icx0", 1400, &[])).unwrap_err();
            assert!(matches!(&error, VethError::Occupied(name) if name == "icx0-xdp"), "{error:?}");
            assert!(error.to_string().contains("ip link del icx0-xdp"), "{error}");
            assert!(exists("icx0-xdp") && !exists("icx0"));
            delete("icx0-xdp").unwrap();
            let error = VethPair::open(config("lo", 1400, &[])).unwrap_err();
            assert!(matches!(&error, VethError::Occupied(name) if name == "lo"), "{error:?}");

            // The kernel refuses the second of two equal addresses, after the pair was made.
            let error = VethPair::open(config("icx0", 1400, &[("10.9.0.1", 24), ("10.9.0.1", 24)])).unwrap_err();
            assert_eq!(error.errno(), Some(libc::EEXIST), "{error:?}");
            assert!(error.to_string().contains("10.9.0.1/24"), "{error}");
            assert!(!exists("icx0") && !exists("icx0-xdp"));
            let multicast = VethConfig { mac: MacAddr([1; 6]), ..config("icx0", 1400, &[]) };
            let error = VethPair::open(multicast).unwrap_err();
            assert!(error.to_string().contains("01:01:01:01:01:01"), "{error}");
            assert!(!exists("icx0") && !exists("icx0-xdp"));
        });
    }

    #[test]
    fn a_host_end_that_was_moved_away_goes_with_the_pair() {
        let Some((here, there)) = NetNs::new().zip(NetNs::new()) else { return };
        here.run(|| {
            let pair = VethPair::open(config("icx0", 1400, &[])).unwrap();
            there.take_in(pair.index());
            assert!(there.run(|| exists("icx0")) && !exists("icx0"));
            drop(pair);
            assert!(!exists("icx0-xdp") && !there.run(|| exists("icx0")));
        });
    }
}
