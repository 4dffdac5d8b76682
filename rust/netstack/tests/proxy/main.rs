//! Proxies between real sockets of this host and stacks that are joined by a tunnel over loopback. No rights are needed.

mod clients;
mod forwards;
mod hostile;
mod http;
mod nodes;
mod socks;
#[path = "../tunnel/mod.rs"]
mod tunnel;
