//! The forwarder over AF_XDP: packets go between a network interface, the engine and a virtual interface in shared memory, past
//! the kernel's network stack on the outer side.
//!
//! ```text
//!   host stack ─ veth pair ─ XDP program ─┐                       ┌─ XDP filter ─ network interface
//!                                         ├─ worker: UMEM, rings ─┤
//!   host stack ─ TUN device ──────────────┘      and engine       └─ AF_XDP socket of the same queue
//! ```
//!
//! - `forwarder`: what is opened, started and closed, and what watches over it while it runs.
//! - `worker`: one thread for each queue; `umem`: frames and rings as it uses them.
//! - `program`: the two XDP programs. `nic`, `veth`, `next_hop`: the interfaces and the way to the peers. `capture`: pcapng.

mod capture;
mod config;
mod forwarder;
mod next_hop;
mod nic;
mod offload;
mod program;
mod support;
mod transform;
mod umem;
mod veth;
mod worker;

pub use config::{
    BusyPoll, DeviceConfig, DeviceInfo, ForwarderConfig, ForwarderError, ForwarderInfo, ForwarderNotice,
    ForwarderState, LinkStatus, NextHopState, VethDevice, ZeroCopy,
};
pub use forwarder::Forwarder;
pub use nic::NicError;
pub use offload::OffloadError;
pub use program::{AttachError, AttachMode, AttachedMode, FilterCounters};
pub use support::{Lack, LackKind, XdpSupport, probe};
pub use transform::Transform;
pub use veth::VethError;
pub use worker::ForwarderCounters;

#[cfg(test)]
mod tests;
