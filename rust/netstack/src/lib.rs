//! The inner side of a tunnel without a device: a TCP/IP stack in this process.
//!
//! [`Stack`] is what programs in this process connect, listen and send datagrams through; [`StackDevice`] is what a pump of `icx-io` moves
//! packets through, in place of a TUN device. Segments, windows and retransmissions are smoltcp's. This crate finds the socket
//! that a packet is for, decides whose turn it is to send, and holds what waits.
//!
//! Sockets wake a [`Waker`](std::task::Waker), so any executor will do.

#![forbid(unsafe_code)]

mod core;
mod device;
mod dns;
mod echo;
mod error;
mod options;
pub mod proxy;
mod stack;
mod tcp;
mod udp;

pub use crate::core::StackCounters;
pub use device::StackDevice;
pub use dns::{Resolution, ResolveError};
pub use echo::{Echo, EchoReply};
pub use error::{BindError, ConnectError, StreamError};
pub use options::{Congestion, OptionsError, StackOptions};
pub use stack::{OpenError, Stack};
pub use tcp::{TcpListener, TcpStream};
pub use udp::{DatagramError, UdpSocket};
