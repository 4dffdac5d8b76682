//! Wire formats and the engine of the ICX protocol: no I/O, no clock, no unsafe code.
//!
//! Time comes in as [`Instant`], randomness as plain numbers, buffers belong to the caller.
//! What happens to a packet is a verdict that names its counter; nothing here logs or blocks.
#![forbid(unsafe_code)]

pub mod counters;
pub mod engine;
pub mod id;
pub mod key;
pub mod offload;
pub mod rate_limit;
pub mod replay;
pub mod routes;
mod sync;
pub mod time;
pub mod wire;

pub use engine::{Engine, EngineConfig, Mode, NetworkConfig, Underlay};
pub use id::{MacAddr, Spi, Vni};
pub use key::{SaKey, TxKeyHistory};
pub use routes::{AllowedRoute, IpPrefix};
pub use time::Instant;
