//! How the kernel would reach an address.

use std::net::IpAddr;

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::link;
use crate::netlink::{Netlink, NetlinkError};

/// The way to one destination, from the calling thread's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub interface: String,
    pub index: u32,
    /// The address that the kernel would send from, or the one that was asked for.
    pub source: IpAddr,
    /// The next hop; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The largest IP packet in bytes: the route's own MTU where one is configured, else the link's. Never what ICMP told the
    /// kernel of this destination, which anybody can forge.
    pub mtu: u32,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    #[error("source {from} and destination {to} are of different families: give both as IPv4 or both as IPv6")]
    FamilyMismatch { to: IpAddr, from: IpAddr },
    #[error("there is no route to {to}{}: {source}; check the address and `ip route get {to}`", from_text(.from))]
    NoRoute { to: IpAddr, from: Option<IpAddr>, source: NetlinkError },
    #[error("cannot look up the route to {to}: {source}")]
    Lookup { to: IpAddr, source: NetlinkError },
    #[error("the kernel's route to {to} does not say by which {what} it goes")]
    Incomplete { to: IpAddr, what: &'static str },
}

fn from_text(from: &Option<IpAddr>) -> String {
    from.map_or_else(String::new, |from| format!(" from {from} (which must be an address of this machine)"))
}

/// Asks the kernel for the route to `dst`, from `src` when given. Needs no capability.
pub fn lookup(dst: IpAddr, src: Option<IpAddr>) -> Result<Route, RouteError> {
    let failed = |source| RouteError::Lookup { to: dst, source };
    let mut netlink = Netlink::open().map_err(failed)?;

    let answer = ask(&mut netlink, dst, src, RouteFlags::empty())?;
    let index = answer.index.ok_or(RouteError::Incomplete { to: dst, what: "interface" })?;
    let source = src.or(answer.source).ok_or(RouteError::Incomplete { to: dst, what: "source address" })?;
    let link = link::by_index(&mut netlink, index)
        .map_err(failed)?
        .ok_or(RouteError::Incomplete { to: dst, what: "interface" })?;
    // An MTU in the answer may be learned: the table has those that are configured.
    let configured = match answer.mtu {
        Some(_) => ask(&mut netlink, dst, src, RouteFlags::FibMatch)?.mtu,
        None => None,
    };
    Ok(Route { interface: link.name, index, source, gateway: answer.gateway, mtu: configured.unwrap_or(link.mtu) })
}

/// One question: for the way that a packet would go, or with `FibMatch` for the entry of the table that it would go by
/// (`inet_rtm_getroute` in net/ipv4/route.c).
pub(crate) fn ask(
    netlink: &mut Netlink,
    dst: IpAddr,
    src: Option<IpAddr>,
    flags: RouteFlags,
) -> Result<Answer, RouteError> {
    if let Some(from) = src
        && from.is_ipv4() != dst.is_ipv4()
    {
        return Err(RouteError::FamilyMismatch { to: dst, from });
    }
    let mut request = RouteMessage::default();
    request.header.address_family = family(dst);
    request.header.destination_prefix_length = host_prefix(dst);
    request.header.flags = flags;
    request.attributes.push(RouteAttribute::Destination(dst.into()));
    if let Some(src) = src {
        request.header.source_prefix_length = host_prefix(src);
        request.attributes.push(RouteAttribute::Source(src.into()));
    }
    let answers = netlink.request(RouteNetlinkMessage::GetRoute(request), 0).map_err(|source| match source {
        NetlinkError::Refused(_) => RouteError::NoRoute { to: dst, from: src, source },
        _ => RouteError::Lookup { to: dst, source },
    })?;
    let message = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(message) => Some(message),
        _ => None,
    });
    message.map(Answer::from).ok_or(RouteError::Incomplete { to: dst, what: "route" })
}

#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) index: Option<u32>,
    source: Option<IpAddr>,
    pub(crate) gateway: Option<IpAddr>,
    mtu: Option<u32>,
}

impl From<RouteMessage> for Answer {
    fn from(message: RouteMessage) -> Self {
        let mut answer = Answer::default();
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => answer.index = Some(index),
                RouteAttribute::PrefSource(address) => answer.source = ip(address),
                RouteAttribute::Gateway(address) => answer.gateway = ip(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => answer.gateway = Some(address.into()),
                RouteAttribute::Via(RouteVia::Inet6(address)) => answer.gateway = Some(address.into()),
                RouteAttribute::Metrics(metrics) => {
                    answer.mtu = metrics.into_iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) if mtu > 0 => Some(mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        answer
    }
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(v4.into()),
        RouteAddress::Inet6(v6) => Some(v6.into()),
        _ => None,
    }
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};

    use super::{Route, RouteError, RouteFlags, ask, lookup};
    use crate::netlink::Netlink;
    use crate::test_support::{NetNs, add_route};
    use crate::told::tests::{Complaint, Liar};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn loopback_goes_by_lo() {
        let route = lookup(ip("127.0.0.1"), None).unwrap();
        assert_eq!((route.interface.as_str(), route.source, route.gateway), ("lo", ip("127.0.0.1"), None));
        assert_eq!(lookup(ip("127.0.0.1"), Some(ip("127.0.0.9"))).unwrap().source, ip("127.0.0.9"));
    }

    #[test]
    fn families_must_agree_and_sources_must_be_ours() {
        assert!(matches!(lookup(ip("127.0.0.1"), Some(ip("::1"))), Err(RouteError::FamilyMismatch { .. })));
        let error = lookup(ip("127.0.0.1"), Some(ip("192.0.2.77"))).unwrap_err();
        assert!(matches!(error, RouteError::NoRoute { .. }), "{error:?}");
        assert!(error.to_string().contains("192.0.2.77"), "{error}");
    }

    #[test]
    fn interface_source_gateway_and_mtu_are_those_of_the_route() {
        for (ours, theirs, prefix, network, network_prefix, host) in [
            ("192.0.2.1", "192.0.2.2", 24, "198.51.100.0", 24, "198.51.100.9"),
            ("fd00:aa::1", "fd00:aa::2", 64, "fd00:bb::", 64, "fd00:bb::9"),
        ] {
            let Some((near, far)) = NetNs::new().zip(NetNs::new()) else { return };
            near.connect(&far, (ip(ours), prefix), (ip(theirs), prefix));
            near.run(|| {
                let error = lookup(ip(host), None).unwrap_err();
                assert!(matches!(&error, RouteError::NoRoute { .. }), "{error:?}");
                assert!(error.to_string().contains(&format!("no route to {host}")), "{error}");

                let index = crate::link::by_name("under").unwrap().index;
                let expected =
                    |gateway, mtu| Route { interface: "under".to_owned(), index, source: ip(ours), gateway, mtu };
                assert_eq!(lookup(ip(theirs), None).unwrap(), expected(None, 1500));
                add_route(ip(network), network_prefix, ip(theirs), Some(1400));
                assert_eq!(lookup(ip(host), None).unwrap(), expected(Some(ip(theirs)), 1400));
                assert_eq!(lookup(ip(host), Some(ip(ours))).unwrap(), expected(Some(ip(theirs)), 1400));
            });
        }
    }

    #[test]
    fn what_the_kernel_learned_from_icmp_is_left_alone() {
        for (ours, theirs, prefix, network, network_prefix, host) in [
            ("192.0.2.1", "192.0.2.2", 24, "198.51.100.0", 24, "198.51.100.9"),
            ("fd00:aa::1", "fd00:aa::2", 64, "fd00:bb::", 64, "fd00:bb::9"),
        ] {
            let Some((near, far)) = NetNs::new().zip(NetNs::new()) else { return };
            near.connect(&far, (ip(ours), prefix), (ip(theirs), prefix));
            let socket = near.run(|| {
                add_route(ip(network), network_prefix, ip(theirs), Some(1450));
                UdpSocket::bind((ip(ours), 0)).unwrap()
            });
            let from = socket.local_addr().unwrap();
            far.run(|| Liar::new(ip(ours)).complain(from, (ip(host), 9).into(), Complaint::TooBig(1400), &[0; 32]));
            let learned = || ask(&mut Netlink::open().unwrap(), ip(host), None, RouteFlags::empty()).unwrap().mtu;
            near.run(|| {
                let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
                while learned() != Some(1400) {
                    assert!(std::time::Instant::now() < patience, "the kernel has learned nothing: {:?}", learned());
                    std::thread::yield_now();
                }
                assert_eq!(lookup(ip(host), None).unwrap().mtu, 1450);
            });
        }
    }
}
