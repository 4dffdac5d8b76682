//! Where frames to a peer go on the link, and what tells that it may be elsewhere now.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use icx_proto::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteFlags;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::link;
pub(crate) use crate::link::Link as LinkState;
use crate::netlink::{Netlink, NetlinkError};
use crate::route;

/// The way to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NextHop {
    /// The hardware address of the peer or of the router to it.
    Resolved(MacAddr),
    /// Frames cannot be sent to it now; why, for people.
    Unresolved(String),
}

/// Finds next hops on one interface, in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct NextHops {
    netlink: Netlink,
    index: u32,
}

impl NextHops {
    /// For the interface with this index.
    pub(crate) fn open(index: u32) -> Result<Self, NetlinkError> {
        Ok(NextHops { netlink: Netlink::open()?, index })
    }

    /// Looks the way to `peer` up in the kernel's routes and neighbours, from `source` where given. Where the neighbour
    /// is unknown, did not answer, or has not been heard of for a while, it makes the kernel ask for it, which a
    /// [`LinkMonitor`] notices; what was known before holds meanwhile. The kernel sees none of the frames that are
    /// sent, and would not ask by itself.
    ///
    /// Making the kernel ask needs CAP_NET_ADMIN.
    pub(crate) fn resolve(&mut self, peer: IpAddr, source: Option<IpAddr>) -> NextHop {
        self.look_up(peer.to_canonical(), source.map(|source| source.to_canonical()))
            .map_or_else(NextHop::Unresolved, NextHop::Resolved)
    }

    fn look_up(&mut self, peer: IpAddr, source: Option<IpAddr>) -> Result<MacAddr, String> {
        let source = source.filter(|source| !source.is_unspecified());
        let route =
            route::ask(&mut self.netlink, peer, source, RouteFlags::empty()).map_err(|error| error.to_string())?;
        if route.index != Some(self.index) {
            let (by, wanted) = (route.index.map(|index| self.name_of(index)), self.name_of(self.index));
            let by = by.unwrap_or_else(|| "no interface".to_owned());
            return Err(format!("the route to {peer} goes by {by}, not by {wanted}: see `ip route get {peer}`"));
        }
        let hop = route.gateway.unwrap_or(peer);
        let failed = |error: NetlinkError| format!("cannot look up the neighbour {hop}: {error}");
        let mut found = self.neighbour(hop).map_err(failed)?;
        if matches!(found.state, NeighbourState::None | NeighbourState::Failed | NeighbourState::Stale) {
            let asked = self.make_kernel_ask(hop);
            match (asked, found.mac) {
                (Ok(()), _) => found = self.neighbour(hop).map_err(failed)?,
                (Err(_), Some(_)) => {}
                (Err(error), None) => {
                    return Err(format!("cannot make the kernel look for the neighbour {hop}: {error}"));
                }
            }
        }
        found.mac.ok_or_else(|| {
            let protocol = if hop.is_ipv4() { "ARP" } else { "neighbour discovery" };
            let did = if found.state == NeighbourState::Failed { "does not answer" } else { "has not answered yet" };
            format!("{hop} {did} to {protocol} on {}", self.name_of(self.index))
        })
    }

    /// What the kernel knows of a neighbour.
    fn neighbour(&mut self, address: IpAddr) -> Result<Neighbour, NetlinkError> {
        let request = RouteNetlinkMessage::GetNeighbour(self.neighbour_message(address));
        let answers = match self.netlink.request(request, 0) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Vec::new(),
            answers => answers?,
        };
        let message = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => Some(message),
            _ => None,
        });
        Ok(message.map(Neighbour::from).unwrap_or_default())
    }

    /// As `ip neigh replace ADDRESS dev INTERFACE use`: as if a packet were to be sent to it (`neigh_add` in
    /// net/core/neighbour.c).
    fn make_kernel_ask(&mut self, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = self.neighbour_message(address);
        message.header.flags = NeighbourFlags::Use;
        self.netlink.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    fn neighbour_message(&self, address: IpAddr) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = route::family(address);
        message.header.ifindex = self.index;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        message
    }

    fn name_of(&mut self, index: u32) -> String {
        match link::by_index(&mut self.netlink, index) {
            Ok(Some(link)) => link.name,
            _ => format!("interface {index}"),
        }
    }
}

/// An entry of the kernel's table of neighbours; none is the same as one without state.
#[derive(Default)]
struct Neighbour {
    state: NeighbourState,
    /// Only where it may be used.
    mac: Option<MacAddr>,
}

impl From<NeighbourMessage> for Neighbour {
    fn from(message: NeighbourMessage) -> Self {
        let state = message.header.state;
        // NUD_VALID of include/net/neighbour.h.
        let is_valid = matches!(
            state,
            NeighbourState::Permanent
                | NeighbourState::Noarp
                | NeighbourState::Reachable
                | NeighbourState::Probe
                | NeighbourState::Stale
                | NeighbourState::Delay
        );
        let mac = message.attributes.into_iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) if is_valid => bytes.try_into().ok().map(MacAddr),
            _ => None,
        });
        Neighbour { state, mac }
    }
}

/// The interface with an index, `None` where there is none, or none any more.
pub(crate) fn link_state(index: u32) -> Result<Option<LinkState>, NetlinkError> {
    link::by_index(&mut Netlink::open()?, index)
}

/// The interface with a name, `None` where there is none.
pub(crate) fn link_by_name(name: &str) -> Result<Option<LinkState>, NetlinkError> {
    link::find(&mut Netlink::open()?, name)
}

/// What the kernel tells of changes to interfaces, neighbours, routes and addresses, in the network namespace in which
/// it was opened.
#[derive(Debug)]
pub(crate) struct LinkMonitor {
    /// Nonblocking.
    socket: Socket,
}

/// What has changed since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Interfaces: there, named, addressed or up otherwise than before, or one with carrier.
    pub(crate) link: bool,
    /// Ways to peers: routes, addresses, neighbours, and what links take with them.
    pub(crate) next_hops: bool,
    /// Messages were lost, so that anything may have changed.
    pub(crate) lost: bool,
}

const GROUPS: [libc::c_uint; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
];

/// Enough for what the kernel puts in one datagram (NLMSG_GOODSIZE, at most a page or 8 KiB).
const DATAGRAM_BYTES: usize = 8192;

/// How many datagrams one look takes at most: where they come faster than they are read, the caller has its turn too.
const MOST_DATAGRAMS: usize = 4096;

impl LinkMonitor {
    /// Needs no capability.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let failed = |call| move |source| NetlinkError::Socket { call, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("socket"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        for group in GROUPS {
            socket.add_membership(group).map_err(failed("setsockopt(NETLINK_ADD_MEMBERSHIP)"))?;
        }
        socket.set_non_blocking(true).map_err(failed("fcntl(O_NONBLOCK)"))?;
        Ok(LinkMonitor { socket })
    }

    /// Readable while there is something to [`LinkMonitor::drain`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes what the kernel has told, without waiting.
    pub(crate) fn drain(&mut self) -> Changes {
        let mut changes = Changes::default();
        let mut datagram = [0; DATAGRAM_BYTES];
        for _ in 0..MOST_DATAGRAMS {
            match self.socket.recv_from(&mut &mut datagram[..], 0) {
                // Any process may send to this socket; the kernel is port 0.
                Ok((length, from)) if from.port_number() == 0 => {
                    changes.read(&datagram[..length.min(DATAGRAM_BYTES)]);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // netlink(7): ENOBUFS, the socket's buffer was full.
                Err(_) => changes = Changes { link: true, next_hops: true, lost: true },
            }
        }
        changes
    }
}

impl Changes {
    /// Takes the types of the messages in a datagram.
    fn read(&mut self, mut datagram: &[u8]) {
        // RFC 3549 section 2.3.2: length with the header, type, flags, sequence and port; aligned to 4 bytes.
        while let Some((&[a, b, c, d, e, f], _)) = datagram.split_first_chunk() {
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            match u16::from_ne_bytes([e, f]) {
                // With a link the kernel may take routes away, of which it says nothing more.
                libc::RTM_NEWLINK | libc::RTM_DELLINK => (self.link, self.next_hops) = (true, true),
                libc::RTM_NEWNEIGH
                | libc::RTM_DELNEIGH
                | libc::RTM_NEWROUTE
                | libc::RTM_DELROUTE
                | libc::RTM_NEWADDR
                | libc::RTM_DELADDR => self.next_hops = true,
                _ => {}
            }
            datagram = datagram.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};
    use std::time::{Duration, Instant};

    use icx_proto::MacAddr;
    use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::LinkAttribute;
    use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};

    use super::{Changes, LinkMonitor, NextHop, NextHops, link_by_name, link_state};
    use crate::device;
    use crate::link;
    use crate::netlink::Netlink;
    use crate::route;
    use crate::sys::{self, Interest};
    use crate::test_support::{NetNs, add_route, delete, rename, set_up};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const FAMILIES: [[&str; 5]; 2] = [
        ["192.0.2.1", "192.0.2.2", "192.0.2.99", "198.51.100.0/24", "198.51.100.9"],
        ["fd00:aa::1", "fd00:aa::2", "fd00:aa::99", "fd00:bb::/64", "fd00:bb::9"],
    ];

    fn prefix(address: IpAddr) -> u8 {
        if address.is_ipv4() { 24 } else { 64 }
    }

    /// Two namespaces, connected by `under`, with the first two addresses.
    fn connected(ours: &str, theirs: &str) -> Option<(NetNs, NetNs)> {
        let (near, far) = NetNs::new().zip(NetNs::new())?;
        near.connect(&far, (ip(ours), prefix(ip(ours))), (ip(theirs), prefix(ip(theirs))));
        Some((near, far))
    }

    fn under() -> link::Link {
        link::by_name("under").unwrap()
    }

    fn set_mac(mac: MacAddr) {
        let address = LinkAttribute::Address(mac.0.to_vec());
        link::set(&mut Netlink::open().unwrap(), under().index, vec![address]).unwrap();
    }

    /// Waits until `done` is true, looking at it whenever the monitor has told something.
    fn wait_until(monitor: &mut LinkMonitor, what: &str, mut done: impl FnMut(Changes) -> bool) {
        let patience = Instant::now() + Duration::from_secs(20);
        loop {
            let changes = monitor.drain();
            if done(changes) {
                return;
            }
            let left = patience.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} does not come: {changes:?}");
            sys::poll(&mut [Interest::readable(monitor.fd())], Some(left)).unwrap();
        }
    }

    fn resolve_in_time(hops: &mut NextHops, monitor: &mut LinkMonitor, peer: &str, wanted: MacAddr) {
        wait_until(monitor, &format!("{wanted} for {peer}"), |_| {
            hops.resolve(ip(peer), None) == NextHop::Resolved(wanted)
        });
    }

    fn reason(next_hop: NextHop) -> String {
        match next_hop {
            NextHop::Unresolved(reason) => reason,
            NextHop::Resolved(mac) => panic!("resolved: {mac}"),
        }
    }

    #[test]
    fn peers_on_the_link_and_behind_a_router_are_found() {
        for [ours, theirs, _, network, host] in FAMILIES {
            let Some((near, far)) = connected(ours, theirs) else { return };
            let far_mac = far.run(|| under().mac.unwrap());
            near.run(|| {
                let mut monitor = LinkMonitor::open().unwrap();
                let mut hops = NextHops::open(under().index).unwrap();
                resolve_in_time(&mut hops, &mut monitor, theirs, far_mac);

                assert!(reason(hops.resolve(ip(host), None)).contains(&format!("no route to {host}")));
                let (network, length) = network.split_once('/').unwrap();
                add_route(ip(network), length.parse().unwrap(), ip(theirs), None);
                resolve_in_time(&mut hops, &mut monitor, host, far_mac);
                assert_eq!(hops.resolve(ip(host), Some(ip(ours))), NextHop::Resolved(far_mac));
                if ip(host).is_ipv4() {
                    let told = reason(hops.resolve(ip(host), Some(ip(host))));
                    assert!(told.contains("must be an address of this machine"), "{told}");
                }
            });
        }
    }

    #[test]
    fn a_mapped_peer_is_the_ipv4_one_and_a_wildcard_is_no_source() {
        let Some((near, far)) = connected("192.0.2.1", "192.0.2.2") else { return };
        let far_mac = far.run(|| under().mac.unwrap());
        near.run(|| {
            let mut hops = NextHops::open(under().index).unwrap();
            resolve_in_time(&mut hops, &mut LinkMonitor::open().unwrap(), "::ffff:192.0.2.2", far_mac);
            assert_eq!(hops.resolve(ip("192.0.2.2"), Some(ip("0.0.0.0"))), NextHop::Resolved(far_mac));
            assert!(reason(hops.resolve(ip("192.0.2.2"), Some(ip("::1")))).contains("different families"));
        });
    }

    #[test]
    fn a_silent_neighbour_and_another_interface_are_told() {
        for [ours, theirs, silent, _, _] in FAMILIES {
            let Some((near, _far)) = connected(ours, theirs) else { return };
            near.run(|| {
                let mut monitor = LinkMonitor::open().unwrap();
                let mut hops = NextHops::open(under().index).unwrap();
                assert!(reason(hops.resolve(ip(silent), None)).contains("has not answered yet"));
                // The kernel gives up after three tries, a second each.
                let neighbour = |hops: &mut NextHops| hops.neighbour(ip(silent)).unwrap().state;
                wait_until(&mut monitor, "failure", |_| neighbour(&mut hops) == NeighbourState::Failed);
                // It tries again for whoever asks.
                let told = reason(hops.resolve(ip(silent), None));
                assert!(told.contains("on under") && told.contains(silent), "{told}");
                assert_eq!(neighbour(&mut hops), NeighbourState::Incomplete);

                let told = reason(hops.resolve(ip(ours), None));
                assert!(told.contains("goes by lo, not by under"), "{told}");
                let told = reason(NextHops::open(1).unwrap().resolve(ip(theirs), None));
                assert!(told.contains("goes by under, not by lo"), "{told}");
            });
        }
    }

    #[test]
    fn what_was_known_is_used_while_the_kernel_asks_again() {
        let Some((near, _far)) = connected("192.0.2.1", "192.0.2.2") else { return };
        near.run(|| {
            let mut hops = NextHops::open(under().index).unwrap();
            let enter = |state, mac: MacAddr| {
                let mut message = NeighbourMessage::default();
                message.header.family = route::family(ip("192.0.2.2"));
                message.header.ifindex = under().index;
                message.header.state = state;
                message.attributes = vec![
                    NeighbourAttribute::Destination(ip("192.0.2.2").into()),
                    NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
                ];
                let request = RouteNetlinkMessage::NewNeighbour(message);
                Netlink::open().unwrap().request(request, NLM_F_CREATE | NLM_F_REPLACE).unwrap();
            };
            let (old, other) = (MacAddr([2, 0, 0, 0, 0, 7]), MacAddr([2, 0, 0, 0, 0, 8]));
            enter(NeighbourState::Stale, old);
            assert_eq!(hops.resolve(ip("192.0.2.2"), None), NextHop::Resolved(old));
            let state = hops.neighbour(ip("192.0.2.2")).unwrap().state;
            assert!(matches!(state, NeighbourState::Delay | NeighbourState::Probe), "{state:?}");

            // One that an administrator entered is not asked for, nor does asking change it.
            enter(NeighbourState::Permanent, other);
            assert_eq!(hops.resolve(ip("192.0.2.2"), None), NextHop::Resolved(other));
            assert_eq!(hops.neighbour(ip("192.0.2.2")).unwrap().state, NeighbourState::Permanent);
        });
    }

    #[test]
    fn another_hardware_address_of_the_peer_is_noticed() {
        for [ours, theirs, ..] in FAMILIES {
            let Some((near, far)) = connected(ours, theirs) else { return };
            let (before, after) = (far.run(|| under().mac.unwrap()), MacAddr([2, 0, 0, 0, 0, 9]));
            near.run(|| {
                let mut monitor = LinkMonitor::open().unwrap();
                let mut hops = NextHops::open(under().index).unwrap();
                resolve_in_time(&mut hops, &mut monitor, theirs, before);
                far.run(|| {
                    set_mac(after);
                    // It says so when it asks for us.
                    UdpSocket::bind((ip(theirs), 0)).unwrap().send_to(b"x", (ip(ours), 9)).unwrap();
                });
                let mut told = false;
                wait_until(&mut monitor, "the new address", |changes| {
                    told |= changes.next_hops;
                    hops.resolve(ip(theirs), None) == NextHop::Resolved(after)
                });
                assert!(told);
            });
        }
    }

    #[test]
    fn changes_of_the_link_are_told_and_its_state_looked_up() {
        let Some((near, far)) = connected("192.0.2.1", "192.0.2.2") else { return };
        near.run(|| {
            let index = under().index;
            let state = || link_state(index).unwrap().unwrap();
            let mut monitor = LinkMonitor::open().unwrap();
            let mut hops = NextHops::open(index).unwrap();
            assert_eq!(monitor.drain(), Changes::default());
            assert_eq!((state().up, state().carrier, state().mtu), (true, true, 1500));

            let all = Changes { link: true, next_hops: true, lost: false };
            far.run(|| set_up("under", false).unwrap());
            wait_until(&mut monitor, "no carrier", |changes| changes == all);
            assert_eq!((state().up, state().carrier), (true, false));
            set_up("under", false).unwrap();
            wait_until(&mut monitor, "down", |changes| changes == all);
            assert_eq!((state().up, state().carrier), (false, false));
            assert!(reason(hops.resolve(ip("192.0.2.2"), None)).contains("no route"));
            far.run(|| set_up("under", true).unwrap());
            set_up("under", true).unwrap();
            wait_until(&mut monitor, "up", |_| state().up && state().carrier);
            let far_mac = far.run(|| under().mac.unwrap());
            resolve_in_time(&mut hops, &mut monitor, "192.0.2.2", far_mac);

            monitor.drain();
            rename("under", "over");
            wait_until(&mut monitor, "another name", |changes| changes == all);
            assert_eq!(state().name, "over");
            assert_eq!(link_by_name("under").unwrap(), None);
            assert_eq!(link_by_name("over").unwrap(), Some(state()));
            monitor.drain();
            delete("over").unwrap();
            wait_until(&mut monitor, "removal", |changes| changes == all);
            assert_eq!((link_state(index).unwrap(), link_by_name("over").unwrap()), (None, None));
            assert!(reason(hops.resolve(ip("192.0.2.2"), None)).contains("no route"));
        });
    }

    #[test]
    fn addresses_and_routes_change_next_hops_and_no_link() {
        let Some((near, _far)) = connected("192.0.2.1", "192.0.2.2") else { return };
        near.run(|| {
            let mut monitor = LinkMonitor::open().unwrap();
            let ways = Changes { link: false, next_hops: true, lost: false };
            let address = device::address_request(under().index, ip("203.0.113.1"), 24);
            Netlink::open().unwrap().request(address, NLM_F_CREATE).unwrap();
            assert_eq!(monitor.drain(), ways);
            add_route(ip("198.51.100.0"), 24, ip("192.0.2.2"), None);
            assert_eq!(monitor.drain(), ways);
            assert_eq!(monitor.drain(), Changes::default());
        });
    }

    #[test]
    fn lost_messages_are_told_once() {
        let Some((near, _far)) = connected("192.0.2.1", "192.0.2.2") else { return };
        near.run(|| {
            let mut monitor = LinkMonitor::open().unwrap();
            monitor.socket.set_rx_buf_sz(4096).unwrap();
            for number in 0..40 {
                let address = device::address_request(under().index, IpAddr::from([203, 0, 113, number + 1]), 32);
                Netlink::open().unwrap().request(address, NLM_F_CREATE).unwrap();
            }
            assert_eq!(monitor.drain(), Changes { link: true, next_hops: true, lost: true });
            assert_eq!(monitor.drain(), Changes::default());
        });
    }
}
