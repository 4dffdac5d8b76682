//! What an engine and its networks are made from.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::id::{MacAddr, Vni};
use crate::key::TxKeyHistory;
use crate::routes::{AllowedRoute, RouteError};

/// What the virtual side carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Ethernet frames; ARP and neighbour solicitations are answered with `gateway_mac`.
    L2 { host_mac: MacAddr, gateway_mac: MacAddr },
    /// Bare IP packets.
    L3,
}

/// What the physical side carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// UDP payloads: the kernel's sockets write the outer headers.
    Udp,
    /// Whole Ethernet frames, outer headers included.
    Raw { local: Vec<LocalEndpoint>, outer_udp_checksum: bool, dont_fragment: bool },
}

/// One of our own underlay addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    pub addr: SocketAddr,
    pub mac: MacAddr,
}

/// What of an inner packet's traffic class the outer header takes over; the rest of it is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OuterTrafficClass {
    /// The ECN field: the normal mode of RFC 6040 section 4.1. Off, the compatibility mode: Not-ECT, which section 4.3
    /// demands unless the peer is known to take a congestion mark over.
    pub ecn: bool,
    /// The DSCP: outwards as in the uniform model of RFC 2983 section 3.1. That of a packet that is opened stays as it is.
    pub dscp: bool,
}

impl OuterTrafficClass {
    const ECN: u8 = 0b0000_0011;
    const DSCP: u8 = 0b1111_1100;

    /// The bits that are taken over.
    pub const fn mask(self) -> u8 {
        (if self.ecn { Self::ECN } else { 0 }) | (if self.dscp { Self::DSCP } else { 0 })
    }
}

#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub mode: Mode,
    pub underlay: Underlay,
    /// Drop authentic-looking frames whose outer source address is not the peer's. Default: on.
    pub peer_filter: bool,
    /// `Some(key)`: the source port follows the flow hash under this random key.
    pub source_port_hashing: Option<u64>,
    /// Send an authenticated keepalive this often; `None`: never.
    pub keepalive: Option<Duration>,
    /// What the outer header takes over from the inner one. Default: nothing.
    pub outer_traffic_class: OuterTrafficClass,
    /// The virtual device's MTU in bytes of inner packet; larger ones are [`TxDrop::TooBig`](crate::counters::TxDrop).
    pub inner_mtu: Option<u32>,
    /// The process's memory of used transmit keys.
    pub tx_key_history: Arc<TxKeyHistory>,
}

/// One VNI: its peer and what may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    pub vni: Vni,
    pub peer: SocketAddr,
    /// The next hop's hardware address; only raw underlays use it.
    pub peer_mac: MacAddr,
    pub routes: Vec<AllowedRoute>,
    /// Frames per second that may reach the AEAD; `None`: no limit.
    pub rx_rate_limit: Option<u32>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    #[error("VNI {0} exists already")]
    Exists(Vni),
    #[error("there is no VNI {0}")]
    Unknown(Vni),
    #[error(transparent)]
    Route(#[from] RouteError),
}
