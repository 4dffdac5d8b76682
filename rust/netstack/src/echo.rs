//! Echo requests (RFC 792, RFC 4443 section 4), as `ping` sends them. Those of others the stack answers by itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Poll, Waker};

use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp::{self, Endpoint, PacketBuffer, PacketMetadata};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, Ipv6Address};

use crate::error::BindError;
use crate::stack::{Shared, Stack};
use crate::udp::DatagramError;

/// An answer to an echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoReply {
    pub from: IpAddr,
    pub sequence: u16,
    /// Bytes of payload.
    pub len: usize,
}

/// Sends echo requests of one identifier and hears their replies.
#[derive(Debug)]
pub struct Echo {
    shared: Arc<Shared>,
    handle: SocketHandle,
    ident: u16,
}

impl Echo {
    /// The longest payload.
    pub const MAX_PAYLOAD: usize = 1200;

    const REQUESTS: usize = 32;

    pub(crate) fn open(shared: Arc<Shared>) -> Result<Self, BindError> {
        let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; Self::REQUESTS], vec![0; 64 << 10]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        let mut core = shared.lock();
        if core.is_closed() {
            return Err(BindError::Closed);
        }
        let ident = core.echo_ident();
        socket.bind(Endpoint::Ident(ident)).map_err(|_| BindError::PortsExhausted)?;
        let handle = core.add_datagrams(socket);
        drop(core);
        Ok(Echo { shared, handle, ident })
    }

    /// Sends a request; false when there is no room for it.
    pub fn send(&self, to: IpAddr, sequence: u16, payload: &[u8]) -> Result<bool, DatagramError> {
        let bad = DatagramError::BadRemote((to, 0).into());
        let mut core = self.shared.lock();
        if core.is_closed() {
            return Err(DatagramError::StackClosed);
        }
        let source = core.datagram_source(to).ok_or(bad)?;
        if payload.len() > Self::MAX_PAYLOAD {
            let (given, most) = (payload.len(), Self::MAX_PAYLOAD);
            return Err(DatagramError::TooLong { to: (to, 0).into(), given, most });
        }
        let checksums = ChecksumCapabilities::default();
        let mut bytes = [0; Self::MAX_PAYLOAD + 8];
        let len = match (source, to) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                let request = Icmpv4Repr::EchoRequest { ident: self.ident, seq_no: sequence, data: payload };
                let len = request.buffer_len();
                request.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[..len]), &checksums);
                len
            }
            (IpAddr::V6(source), IpAddr::V6(to)) => {
                let request = Icmpv6Repr::EchoRequest { ident: self.ident, seq_no: sequence, data: payload };
                let len = request.buffer_len();
                request.emit(&source, &to, &mut Icmpv6Packet::new_unchecked(&mut bytes[..len]), &checksums);
                len
            }
            _ => return Err(bad),
        };
        match core.icmp(self.handle).send_slice(&bytes[..len], to.into()) {
            Ok(()) => {
                core.stir_datagrams(Stack::now());
                self.shared.wake(core);
                Ok(true)
            }
            Err(icmp::SendError::Unaddressable) => Err(bad),
            Err(_) => Ok(false),
        }
    }

    /// The next reply. Pending: none has come, and `waker` hears when one has.
    pub fn poll_reply(&self, waker: &Waker) -> Poll<Result<EchoReply, DatagramError>> {
        let mut core = self.shared.lock();
        if core.is_closed() {
            return Poll::Ready(Err(DatagramError::StackClosed));
        }
        let socket = core.icmp(self.handle);
        let checksums = ChecksumCapabilities::ignored();
        while let Ok((bytes, from)) = socket.recv() {
            let from = IpAddr::from(from);
            // smoltcp has found the checksum right; of messages about a request there is nothing to say.
            let reply = if from.is_ipv4() {
                let packet = Icmpv4Packet::new_checked(bytes).ok();
                packet.and_then(|packet| match Icmpv4Repr::parse(&packet, &checksums) {
                    Ok(Icmpv4Repr::EchoReply { seq_no, data, .. }) => Some((seq_no, data.len())),
                    _ => None,
                })
            } else {
                let packet = Icmpv6Packet::new_checked(bytes).ok();
                let any = Ipv6Address::UNSPECIFIED;
                packet.and_then(|packet| match Icmpv6Repr::parse(&any, &any, &packet, &checksums) {
                    Ok(Icmpv6Repr::EchoReply { seq_no, data, .. }) => Some((seq_no, data.len())),
                    _ => None,
                })
            };
            if let Some((sequence, len)) = reply {
                return Poll::Ready(Ok(EchoReply { from, sequence, len }));
            }
        }
        socket.register_recv_waker(waker);
        Poll::Pending
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.shared.lock().remove_datagrams(self.handle);
    }
}
