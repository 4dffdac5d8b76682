//! How a stack behaves.

use std::net::IpAddr;
use std::num::NonZero;
use std::time::Duration;

use icx_io::DeviceError;

/// What limits how much a connection has under way, besides the receiver's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// RFC 9438.
    Cubic,
    /// RFC 5681.
    Reno,
    /// Nothing: for a path that nobody else uses.
    None,
}

/// What a stack shall be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackOptions {
    /// Its addresses with the prefix lengths of their networks: 1 to 8.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Threads of a pump that may open packets for it. It sends on the first.
    pub queues: NonZero<u16>,
    /// The largest packet, in bytes: 68 to 65535, at least 1280 where there is an IPv6 address.
    pub mtu: u32,
    /// Bytes that a connection receives before they are read: 4 KiB to 64 MiB.
    pub receive_buffer: usize,
    /// Bytes that a connection takes before they are acknowledged: 4 KiB to 64 MiB.
    pub send_buffer: usize,
    pub congestion: Congestion,
    /// Connections at the same time, those that are yet to be accepted or end by themselves included.
    pub max_connections: usize,
    /// How long a peer may take to answer the first packet of a connection.
    pub connect_timeout: Duration,
    /// How long a connection with something to acknowledge hears nothing before it is given up (RFC 5482).
    pub user_timeout: Duration,
    /// How long a connection is silent before its peer is asked whether it is still there (RFC 9293 section 3.8.4).
    pub keep_alive: Option<Duration>,
    /// Name servers on the inner side, at most 4.
    pub name_servers: Vec<IpAddr>,
}

/// Why a stack cannot be as it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    #[error("a stack has 1 to {most} addresses, not {given}", most = StackOptions::MAX_ADDRESSES)]
    Addresses { given: usize },
    #[error("{what} has {least} to {most} bytes, not {given}")]
    Buffer { what: &'static str, given: usize, least: usize, most: usize },
    #[error("a stack has 1 to {most} connections, not {given}", most = StackOptions::MAX_CONNECTIONS)]
    Connections { given: usize },
    #[error("a stack asks at most {most} name servers, not {given}", most = StackOptions::MAX_NAME_SERVERS)]
    NameServers { given: usize },
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl StackOptions {
    pub const MAX_ADDRESSES: usize = smoltcp::config::IFACE_MAX_ADDR_COUNT;
    pub const MAX_NAME_SERVERS: usize = smoltcp::config::DNS_MAX_SERVER_COUNT;
    pub const MAX_CONNECTIONS: usize = 65_536;
    pub const BUFFER_RANGE: std::ops::RangeInclusive<usize> = 4096..=64 << 20;

    /// One queue, buffers of 512 KiB, CUBIC, 4096 connections, 15 s to connect, 2 minutes without acknowledgement, asked after 30 s of silence.
    pub fn new(addresses: Vec<(IpAddr, u8)>, mtu: u32) -> Self {
        StackOptions {
            addresses,
            queues: NonZero::<u16>::MIN,
            mtu,
            receive_buffer: 512 << 10,
            send_buffer: 512 << 10,
            congestion: Congestion::Cubic,
            max_connections: 4096,
            connect_timeout: Duration::from_secs(15),
            user_timeout: Duration::from_secs(120),
            keep_alive: Some(Duration::from_secs(30)),
            name_servers: Vec::new(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        let StackOptions { addresses, mtu, receive_buffer, send_buffer, max_connections, name_servers, .. } = self;
        if !(1..=Self::MAX_ADDRESSES).contains(&addresses.len()) {
            return Err(OptionsError::Addresses { given: addresses.len() });
        }
        icx_io::check_device(addresses, *mtu)?;
        for (what, given) in [("a receive buffer", *receive_buffer), ("a send buffer", *send_buffer)] {
            if !Self::BUFFER_RANGE.contains(&given) {
                let (least, most) = Self::BUFFER_RANGE.into_inner();
                return Err(OptionsError::Buffer { what, given, least, most });
            }
        }
        if !(1..=Self::MAX_CONNECTIONS).contains(max_connections) {
            return Err(OptionsError::Connections { given: *max_connections });
        }
        if name_servers.len() > Self::MAX_NAME_SERVERS {
            return Err(OptionsError::NameServers { given: name_servers.len() });
        }
        Ok(())
    }
}
