//! Veth pairs that were made for a tunnel: how they are marked, and how one that a killed instance left is removed.
//!
//! Both ends of a pair have an alias that names the claim on it. It is a leftover if it can be claimed: nobody uses it any
//! more.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use crate::claim::{self, Claim, ClaimError};
use crate::device::DeviceError;
use crate::link;
use crate::netlink::{Netlink, NetlinkError};

/// What the alias of both ends begins with. The key of the pair's claim follows.
const MARK: &str = "icx afxdp ";

/// What stands in the claim between making a pair and marking it.
pub(crate) const MAKING: &str = "making\n";

/// The alias of both ends of the pair with this claim.
#[cfg(any(feature = "afxdp", test))]
pub(crate) fn mark(claim: &Claim) -> LinkAttribute {
    LinkAttribute::IfAlias(format!("{MARK}{}", claim.key()))
}

/// Why leftovers are not told from other interfaces, or not removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeftoverError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
}

impl LeftoverError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            LeftoverError::Device(error) => error.errno(),
            LeftoverError::Claim(error) => error.errno(),
        }
    }
}

/// Who has a name that is wanted for a device.
#[derive(Debug)]
pub(crate) enum Namesake {
    /// Nobody, or nobody any more.
    Gone,
    /// Another instance, which lives.
    #[cfg_attr(not(feature = "afxdp"), expect(dead_code, reason = "only a veth pair's error says who it is"))]
    Living(ClaimError),
    /// An interface that was not made here.
    Foreign,
}

/// Removes the interface `name`, which is claimed, if it is an end of a pair that a killed instance left; the other end
/// goes with it.
pub(crate) fn remove_namesake(netlink: &mut Netlink, name: &str, claim: &mut Claim) -> Result<Namesake, LeftoverError> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let found = link::get(netlink, request).map_err(|source| look_failed(name, source))?;
    let Some(found) = found else { return Ok(Namesake::Gone) };
    let mut others = None;
    match Pair::of_end(&found)? {
        Pair::Unmarked if claim.notes()? == MAKING => {}
        Pair::Marked { key, .. } if key == claim.key() => {}
        Pair::Marked { interface, .. } => match Claim::take(interface) {
            Ok(claim) => others = Some(claim),
            Err(error @ ClaimError::Busy { .. }) => return Ok(Namesake::Living(error)),
            Err(error) => return Err(error.into()),
        },
        Pair::Unmarked | Pair::None => return Ok(Namesake::Foreign),
    }
    remove(netlink, &found, others.as_mut().unwrap_or(claim))?;
    Ok(Namesake::Gone)
}

/// Removes the pairs of killed instances that have one of the addresses of the device `name` to be: what is sent to these, or to
/// their networks, would go there.
pub(crate) fn remove_holders(
    netlink: &mut Netlink,
    name: &str,
    addresses: &[(IpAddr, u8)],
) -> Result<(), LeftoverError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let failed = |source| look_failed(name, source);
    let answers = netlink.request(request, NLM_F_DUMP).map_err(failed)?;
    let is_wanted = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(held) | AddressAttribute::Local(held) => {
            addresses.iter().any(|(address, _)| address == held)
        }
        _ => false,
    };
    let holders: BTreeSet<u32> = answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Some(message),
            _ => None,
        })
        .filter(|message| message.attributes.iter().any(is_wanted))
        .map(|message| message.header.index)
        .collect();
    for index in holders {
        let mut request = LinkMessage::default();
        request.header.index = index;
        let Some(found) = link::get(netlink, request).map_err(failed)? else { continue };
        let Pair::Marked { interface, .. } = Pair::of_end(&found)? else { continue };
        match Claim::take(interface) {
            Ok(mut claim) => remove(netlink, &found, &mut claim)?,
            // Two devices with one address are as their users want them, or will find out.
            Err(ClaimError::Busy { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What an interface is an end of.
enum Pair<'a> {
    /// No veth pair, or one that was marked elsewhere.
    None,
    /// A veth pair without an alias.
    Unmarked,
    /// A pair that was made in this network namespace.
    Marked { key: &'a str, interface: &'a str },
}

impl<'a> Pair<'a> {
    fn of_end(link: &'a LinkMessage) -> Result<Self, ClaimError> {
        let is_veth = link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
            _ => false,
        });
        if !is_veth {
            return Ok(Pair::None);
        }
        let alias = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
            _ => None,
        });
        let Some(alias) = alias else { return Ok(Pair::Unmarked) };
        let Some(key) = alias.strip_prefix(MARK) else { return Ok(Pair::None) };
        // An end that was moved here is claimed where it comes from.
        Ok(claim::interface_of(key)?.map_or(Pair::None, |interface| Pair::Marked { key, interface }))
    }
}

/// Removes the pair that this is an end of, and what its claim notes of it.
fn remove(netlink: &mut Netlink, end: &LinkMessage, claim: &mut Claim) -> Result<(), LeftoverError> {
    link::delete(netlink, end.header.index).map_err(|source| {
        let name = end.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        });
        DeviceError::configure(name.unwrap_or_default(), "remove what a killed icx left", source)
    })?;
    claim.note("")?;
    Ok(())
}

fn look_failed(name: &str, source: NetlinkError) -> DeviceError {
    DeviceError::configure(name, "look for leftovers in the way", source)
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
    use netlink_packet_route::link::{InfoData, InfoVeth};

    use super::*;
    use crate::device;
    use crate::test_support::{NetNs, never_drop, rename};
    use crate::tun::{Tun, TunConfig, TunError, TunOffload};

    const ADDRESSES: [&str; 2] = ["10.9.0.1", "fd00:9::1"];

    fn exists(name: &str) -> bool {
        link::find(&mut Netlink::open().unwrap(), name).unwrap().is_some()
    }

    /// Makes the pair `name` and `<name>-xdp`, the first with `addresses`, both ends with `alias`.
    fn make_pair(name: &str, addresses: &[&str], alias: Option<LinkAttribute>) {
        let inner = format!("{name}-xdp");
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(inner.clone()));
        let mut host = LinkMessage::default();
        host.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        let mut netlink = Netlink::open().unwrap();
        netlink.request(RouteNetlinkMessage::NewLink(host), NLM_F_CREATE | NLM_F_EXCL).unwrap();
        for end in [name, &inner] {
            let index = link::by_name(end).unwrap().index;
            link::set(&mut netlink, index, alias.iter().cloned().collect()).unwrap();
        }
        let index = link::by_name(name).unwrap().index;
        let addresses: Vec<_> = addresses.iter().map(|address| (address.parse().unwrap(), 24)).collect();
        device::add_addresses(&mut netlink, name, index, &addresses).unwrap();
    }

    /// A pair whose owner lives as long as the claim is not abandoned.
    fn claimed_pair(name: &str, addresses: &[&str]) -> Claim {
        let claim = Claim::take(name).unwrap();
        make_pair(name, addresses, Some(mark(&claim)));
        claim
    }

    /// What the death of its process leaves.
    fn abandoned_pair(name: &str, addresses: &[&str]) {
        let claim = claimed_pair(name, addresses);
        claim.abandon();
        never_drop(claim);
    }

    fn open(name: &str, addresses: &[&str]) -> Result<Tun, TunError> {
        let addresses = addresses.iter().map(|address| (address.parse().unwrap(), 24)).collect();
        let (mtu, queues) = (1392, NonZero::<u16>::MIN);
        Tun::open(TunConfig { name: name.to_owned(), mtu, addresses, queues, offload: TunOffload::NONE })
    }

    fn assert_busy(name: &str) {
        let error = open(name, &[]).unwrap_err();
        assert!(matches!(&error, TunError::Busy(busy) if busy == name), "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }

    #[test]
    fn a_tun_device_takes_the_name_of_what_a_killed_instance_left() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            for wanted in ["icx0", "icx0-xdp"] {
                abandoned_pair("icx0", &ADDRESSES);
                let tun = open(wanted, &ADDRESSES).unwrap();
                assert_eq!(link::by_name(wanted).unwrap().index, tun.index());
                drop(tun);
                assert!(!exists("icx0") && !exists("icx0-xdp"), "{wanted}");
                assert_eq!(Claim::take("icx0").unwrap().notes().unwrap(), "");
            }

            // One that was killed before it could mark what it had made.
            let mut claim = Claim::take("icx0").unwrap();
            claim.note(MAKING).unwrap();
            make_pair("icx0", &[], None);
            claim.abandon();
            never_drop(claim);
            drop(open("icx0", &[]).unwrap());
            assert_eq!(Claim::take("icx0").unwrap().notes().unwrap(), "");
            make_pair("icx0", &[], None);
            assert_busy("icx0");
        });
    }

    #[test]
    fn a_pair_that_is_held_or_not_from_here_keeps_its_name() {
        let Some((here, there)) = NetNs::new().zip(NetNs::new()) else { return };
        here.run(|| {
            let claim = claimed_pair("icx0", &ADDRESSES);
            assert_busy("icx0");
            assert_busy("icx0-xdp");
            // An end that was moved elsewhere is still claimed here, and one of another name by the old one.
            there.take_in(link::by_name("icx0").unwrap().index);
            there.run(|| assert_busy("icx0"));
            rename("icx0-xdp", "other");
            assert_busy("other");
            assert!(exists("other") && there.run(|| exists("icx0")));
            claim.abandon();
            there.run(|| assert_busy("icx0"));
            drop(open("other", &[]).unwrap());
            assert!(!exists("other") && !there.run(|| exists("icx0")));

            for alias in [None, Some("icx"), Some("icx afxdp "), Some("icx afxdp 1-icx0")] {
                make_pair("icx0", &ADDRESSES, alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
                assert_busy("icx0");
                drop(open("icx1", &ADDRESSES).expect("nor is it in anybody's way"));
                assert!(exists("icx0"), "{alias:?}");
                link::delete(&mut Netlink::open().unwrap(), link::by_name("icx0").unwrap().index).unwrap();
            }
        });
    }

    #[test]
    fn leftovers_that_have_one_of_the_addresses_go_whatever_they_are_called() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let living = claimed_pair("living", &ADDRESSES);
            abandoned_pair("other", &["10.9.0.9", "fd00:9::9"]);
            for address in ADDRESSES {
                abandoned_pair("killed", &[address]);
                rename("killed", "renamed");
                let _tun = open("icx0", &["10.77.0.1", address]).unwrap();
                assert!(!exists("renamed") && !exists("killed-xdp"), "{address}");
                assert_eq!(Claim::take("killed").unwrap().notes().unwrap(), "");
            }
            assert!(exists("living") && exists("other"));
            drop(living);
        });
    }
}
