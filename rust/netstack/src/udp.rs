//! Datagrams.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Poll, Waker};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp::{self, PacketBuffer, PacketMetadata, RecvError, SendError, UdpMetadata};

use crate::error::BindError;
use crate::stack::{Shared, Stack};

/// Why a datagram is not sent, or none can come any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    #[error("{0} cannot be sent to: a unicast address of a family that the stack has and a port other than 0 can")]
    BadRemote(SocketAddr),
    #[error("a datagram to {to} has at most {most} bytes of payload, not {given}")]
    TooLong { to: SocketAddr, given: usize, most: usize },
    #[error("the stack has been closed")]
    StackClosed,
}

impl From<DatagramError> for std::io::Error {
    fn from(error: DatagramError) -> Self {
        use std::io::ErrorKind;
        let kind = match error {
            DatagramError::BadRemote(_) | DatagramError::TooLong { .. } => ErrorKind::InvalidInput,
            DatagramError::StackClosed => ErrorKind::ConnectionAborted,
        };
        std::io::Error::new(kind, error)
    }
}

/// A UDP socket on all addresses of a stack.
#[derive(Debug)]
pub struct UdpSocket {
    shared: Arc<Shared>,
    handle: SocketHandle,
    port: u16,
}

impl UdpSocket {
    const BUFFER_BYTES: usize = 256 << 10;
    const BUFFER_DATAGRAMS: usize = 256;

    pub(crate) fn bind(shared: Arc<Shared>, port: u16) -> Result<Self, BindError> {
        let buffer =
            || PacketBuffer::new(vec![PacketMetadata::EMPTY; Self::BUFFER_DATAGRAMS], vec![0; Self::BUFFER_BYTES]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        let mut core = shared.lock();
        let port = core.udp_port(port)?;
        socket.bind(port).map_err(|_| BindError::InUse(port))?;
        let handle = core.add_datagrams(socket);
        drop(core);
        Ok(UdpSocket { shared, handle, port })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Takes a datagram to be sent. Pending: there is no room, and `waker` hears when there is.
    pub fn poll_send_to(&self, bytes: &[u8], to: SocketAddr, waker: &Waker) -> Poll<Result<(), DatagramError>> {
        let mut core = self.shared.lock();
        if core.is_closed() {
            return Poll::Ready(Err(DatagramError::StackClosed));
        }
        let Some(source) = core.datagram_source(to.ip()) else { return Poll::Ready(Err(DatagramError::BadRemote(to))) };
        let most = most_payload(to.ip(), core.mtu());
        if bytes.len() > most {
            return Poll::Ready(Err(DatagramError::TooLong { to, given: bytes.len(), most }));
        }
        let mut meta = UdpMetadata::from((to.ip(), to.port()));
        meta.local_address = Some(source.into());
        let socket = core.udp(self.handle);
        match socket.send_slice(bytes, meta) {
            Ok(()) => {
                core.stir_datagrams(Stack::now());
                self.shared.wake(core);
                Poll::Ready(Ok(()))
            }
            Err(SendError::Unaddressable) => Poll::Ready(Err(DatagramError::BadRemote(to))),
            Err(_) => {
                socket.register_send_waker(waker);
                Poll::Pending
            }
        }
    }

    /// Reads a datagram: its length, of which what `buffer` holds was copied, and its sender. Pending: none has come, and `waker` hears when one
    /// has.
    pub fn poll_recv_from(&self, buffer: &mut [u8], waker: &Waker) -> Poll<Result<(usize, SocketAddr), DatagramError>> {
        let mut core = self.shared.lock();
        if core.is_closed() {
            return Poll::Ready(Err(DatagramError::StackClosed));
        }
        let socket = core.udp(self.handle);
        match socket.recv() {
            Ok((bytes, meta)) => {
                let copied = bytes.len().min(buffer.len());
                buffer[..copied].copy_from_slice(&bytes[..copied]);
                let from = SocketAddr::new(meta.endpoint.addr.into(), meta.endpoint.port);
                Poll::Ready(Ok((bytes.len(), from)))
            }
            Err(RecvError::Exhausted | RecvError::Truncated) => {
                socket.register_recv_waker(waker);
                Poll::Pending
            }
        }
    }

    /// Sends a datagram when there is room.
    pub async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> Result<(), DatagramError> {
        poll_fn(|context| self.poll_send_to(bytes, to, context.waker())).await
    }

    /// Waits for a datagram.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), DatagramError> {
        poll_fn(|context| self.poll_recv_from(buffer, context.waker())).await
    }
}

/// IPv4 datagrams are fragmented where they are longer than a packet; IPv6 ones are not.
fn most_payload(to: IpAddr, mtu: u32) -> usize {
    match to {
        IpAddr::V4(_) => 65_535 - 28,
        IpAddr::V6(_) => (mtu as usize).saturating_sub(48),
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.shared.lock().remove_datagrams(self.handle);
    }
}
