//! Where frames to a peer go: routes and neighbours over netlink, and word of when any of that changes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use icx_proto::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::NetlinkError;
use crate::netlink::Netlink;
use crate::route;

/// Multicast groups of linux/rtnetlink.h.
const GROUP_LINK: u32 = 1;
const GROUP_NEIGHBOUR: u32 = 3;
const GROUP_IPV4_ADDRESS: u32 = 5;
const GROUP_IPV4_ROUTE: u32 = 7;
const GROUP_IPV6_ADDRESS: u32 = 9;
const GROUP_IPV6_ROUTE: u32 = 11;

/// Where frames to a peer go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NextHop {
    Resolved(MacAddr),
    /// Why it is not known, in words.
    Unresolved(String),
}

/// Finds next hops by one interface.
pub(super) struct NextHops {
    index: u32,
    netlink: Netlink,
}

impl NextHops {
    pub(super) fn open(index: u32) -> Result<Self, NetlinkError> {
        Ok(NextHops { index, netlink: Netlink::open()? })
    }

    /// The hardware address to which frames for `peer` go. Where the kernel does not know it, it is asked to find out: a later call
    /// will tell. Where it is no longer sure of it, it is asked to make sure: frames from a UMEM never pass where it would notice
    /// that they are answered.
    pub(super) fn resolve(&mut self, peer: IpAddr, source: Option<IpAddr>) -> NextHop {
        let route = match route::lookup(peer, source) {
            Ok(route) if route.index == self.index => route,
            Ok(route) => {
                return NextHop::Unresolved(format!("the way to {peer} leads through interface {}", route.interface));
            }
            Err(error) => return NextHop::Unresolved(error.to_string()),
        };
        let hop = route.gateway.unwrap_or(peer);
        let found = match self.neighbour(hop) {
            Ok(found) => found,
            Err(error) => return NextHop::Unresolved(format!("cannot look up {hop} on the link: {error}")),
        };
        match found {
            Some((mac, state)) => {
                let is_sure =
                    matches!(state, NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp);
                if !is_sure {
                    self.use_neighbour(hop);
                }
                NextHop::Resolved(mac)
            }
            None => {
                self.use_neighbour(hop);
                NextHop::Unresolved(format!("nobody on {} has answered for {hop} yet", route.interface))
            }
        }
    }

    /// What the kernel knows of an address on the link, if that can be used.
    fn neighbour(&mut self, address: IpAddr) -> Result<Option<(MacAddr, NeighbourState)>, NetlinkError> {
        let answers = match self.netlink.request(RouteNetlinkMessage::GetNeighbour(self.message(address)), 0) {
            Err(NetlinkError::Refused(_)) => return Ok(None),
            answers => answers?,
        };
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => usable(message),
            _ => None,
        }))
    }

    /// Makes the kernel resolve an address, as a packet to it would (`neigh_add` in net/core/neighbour.c).
    fn use_neighbour(&mut self, address: IpAddr) {
        let mut message = self.message(address);
        message.header.flags = NeighbourFlags::Use;
        // What comes of it shows in the table.
        let _ = self.netlink.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE);
    }

    fn message(&self, address: IpAddr) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = self.index;
        let address = match address {
            IpAddr::V4(address) => {
                message.header.family = AddressFamily::Inet;
                NeighbourAddress::Inet(address)
            }
            IpAddr::V6(address) => {
                message.header.family = AddressFamily::Inet6;
                NeighbourAddress::Inet6(address)
            }
        };
        message.attributes.push(NeighbourAttribute::Destination(address));
        message
    }
}

fn usable(message: NeighbourMessage) -> Option<(MacAddr, NeighbourState)> {
    let state = message.header.state;
    if matches!(state, NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None) {
        return None;
    }
    message.attributes.into_iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => Some((MacAddr(bytes.try_into().ok()?), state)),
        _ => None,
    })
}

/// What has changed since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) link: bool,
    /// Routes, addresses or neighbours.
    pub(super) next_hops: bool,
    /// Some word of it was lost: anything may have.
    pub(super) lost: bool,
}

/// Hears of changes in the network namespace in which it was opened.
pub(super) struct LinkMonitor {
    socket: Socket,
}

impl LinkMonitor {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let failed = |call| move |source| NetlinkError::Socket { call, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("socket"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        for group in
            [GROUP_LINK, GROUP_NEIGHBOUR, GROUP_IPV4_ADDRESS, GROUP_IPV4_ROUTE, GROUP_IPV6_ADDRESS, GROUP_IPV6_ROUTE]
        {
            socket.add_membership(group).map_err(failed("setsockopt"))?;
        }
        socket.set_non_blocking(true).map_err(failed("fcntl"))?;
        Ok(LinkMonitor { socket })
    }

    /// Readable when something has changed.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes all word of changes that there is.
    pub(super) fn drain(&self) -> Changes {
        let mut changes = Changes::default();
        loop {
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => take(&bytes, &mut changes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changes,
                // ENOBUFS: more than fits the socket's buffer.
                Err(_) => {
                    changes.lost = true;
                    return changes;
                }
            }
        }
    }
}

fn take(mut bytes: &[u8], changes: &mut Changes) {
    while !bytes.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
            changes.lost = true;
            return;
        };
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        bytes = &bytes[length.max(1).next_multiple_of(4).min(bytes.len())..];
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_)) => {
                changes.link = true;
            }
            _ => changes.next_hops = true,
        }
    }
}

/// An interface at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkState {
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) mac: Option<MacAddr>,
    /// Set up by its administrator.
    pub(super) up: bool,
    pub(super) carrier: bool,
}

/// The interface with an index; `None` when there is none.
pub(super) fn link_state(index: u32) -> Result<Option<LinkState>, NetlinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    ask(request)
}

/// The interface of a name; `None` when there is none.
pub(super) fn link_by_name(name: &str) -> Result<Option<LinkState>, NetlinkError> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_owned()));
    ask(request)
}

fn ask(request: LinkMessage) -> Result<Option<LinkState>, NetlinkError> {
    let answers = match Netlink::open()?.request(RouteNetlinkMessage::GetLink(request), 0) {
        Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::ENXIO)) => return Ok(None),
        answers => answers?,
    };
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => {
            let flags = message.header.flags;
            let link = crate::link::parse(message);
            let carrier = flags.contains(LinkFlags::LowerUp);
            Some(LinkState { name: link.name, mtu: link.mtu, mac: link.mac, up: link.up, carrier })
        }
        _ => None,
    }))
}
