//! The forwarder over AF_XDP.

#[cfg_attr(not(test), expect(dead_code, reason = "the forwarder attaches the programs"))]
mod program;
mod support;

pub use program::{AttachError, AttachMode, AttachedMode, FilterCounters};
pub use support::{XdpSupport, probe};
