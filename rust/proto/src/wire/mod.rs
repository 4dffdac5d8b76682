//! Wire formats, one module per protocol.
//!
//! Parsers take `&[u8]` of any length and content, return a `Result`, and neither panic, allocate nor read past
//! a length they have checked. Emitters check the buffer before they write the first byte.

pub mod address;
pub mod checksum;
pub mod ethernet;
pub mod flow_hash;
pub mod geneve;
pub mod icmp;
pub mod inner;
pub mod ipv6;
pub mod mss;
pub mod mtu;
pub mod neighbor;
pub mod outer;
pub mod traffic_class;
