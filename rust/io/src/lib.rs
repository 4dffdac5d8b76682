//! What moves packets in and out of the engine: TUN devices, UDP sockets and the worker threads between them,
//! with the look-ups (routes, links, names) that setting them up takes.
//!
//! System calls that no safe crate offers are in the private module `sys`, one small safe function each; the rest of
//! the crate has no unsafe code.

#[cfg(feature = "afxdp")]
pub mod afxdp;
mod claim;
pub mod clock;
mod counters;
mod device;
pub mod ends;
mod icmp;
mod leftovers;
pub mod link;
mod netlink;
mod packet_device;
pub mod process;
pub mod pump;
pub mod readiness;
pub mod resolve;
pub mod route;
#[expect(unsafe_code, reason = "system calls; each operation says why it is sound")]
mod sys;
mod told;
pub mod tun;
pub mod udp;
mod wakeup;
mod workers;

#[cfg(test)]
mod test_support;

pub use claim::ClaimError;
pub use device::{DeviceError, check_device};
pub use ends::{Datagram, DatagramBatches, ReceivedDatagram, SendOutcome};
pub use leftovers::LeftoverError;
pub use link::{Link, LinkError};
pub use netlink::NetlinkError;
pub use packet_device::{PacketDevice, PieceFormat};
pub use pump::{Latency, Pump, PumpCounters, PumpError, PumpNotice, PumpOptions};
pub use readiness::{Direction, Readiness};
pub use resolve::ResolveError;
pub use route::{Route, RouteError};
pub use tun::{Tun, TunConfig, TunError, TunOffload};
pub use udp::{Family, Udp, UdpConfig, UdpError, UdpOffload};
pub use wakeup::Wakeup;
