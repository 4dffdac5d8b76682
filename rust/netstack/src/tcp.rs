//! Connections and listeners.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Poll, Waker};

use smoltcp::socket::tcp::{RecvError, State};

use crate::core::Id;
use crate::error::StreamError;
use crate::stack::{Shared, Stack};

/// A TCP connection. Dropping it closes it: what was written is still delivered, unless something that was received has not been read.
#[derive(Debug)]
pub struct TcpStream {
    shared: Arc<Shared>,
    id: Id,
    local: SocketAddr,
    remote: SocketAddr,
}

impl TcpStream {
    pub(crate) fn new(shared: Arc<Shared>, id: Id, local: SocketAddr, remote: SocketAddr) -> Self {
        TcpStream { shared, id, local, remote }
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub fn remote_addr(&self) -> SocketAddr {
        self.remote
    }

    /// Whether the connection is there. Pending: the peer has not answered yet, and `waker` hears of it.
    pub fn poll_connected(&self, waker: &Waker) -> Poll<Result<(), StreamError>> {
        let mut core = self.shared.lock();
        let established = core.is_established(self.id);
        let Some((socket, failure)) = core.socket(self.id) else { return Poll::Ready(Err(StreamError::StackClosed)) };
        match failure {
            Some(error) => Poll::Ready(Err(error)),
            None if established => Poll::Ready(Ok(())),
            None => {
                socket.register_send_waker(waker);
                Poll::Pending
            }
        }
    }

    /// Waits until the connection is there.
    pub async fn connected(&self) -> Result<(), StreamError> {
        poll_fn(|context| self.poll_connected(context.waker())).await
    }

    /// Reads what has come, 0 bytes when the peer has ended. Pending: nothing has come, and `waker` hears when it has.
    pub fn poll_recv(&self, buffer: &mut [u8], waker: &Waker) -> Poll<Result<usize, StreamError>> {
        let mut core = self.shared.lock();
        let Some((socket, failure)) = core.socket(self.id) else { return Poll::Ready(Err(StreamError::StackClosed)) };
        let outcome = match socket.recv_slice(buffer) {
            Ok(0) if buffer.is_empty() => return Poll::Ready(Ok(0)),
            Ok(0) => {
                socket.register_recv_waker(waker);
                return Poll::Pending;
            }
            Ok(received) => Ok(received),
            Err(RecvError::Finished) => Ok(0),
            Err(RecvError::InvalidState) => match (failure, socket.state()) {
                (Some(error), _) => Err(error),
                (None, State::SynSent | State::SynReceived) => {
                    socket.register_recv_waker(waker);
                    return Poll::Pending;
                }
                // It has ended well.
                (None, _) => Ok(0),
            },
        };
        if outcome.is_ok_and(|received| received > 0) {
            // There is more room now, of which the peer may have to hear.
            core.stir(self.id);
            self.shared.wake(core);
        }
        Poll::Ready(outcome)
    }

    /// Takes bytes to be sent, as many as there is room for. Pending: there is none, and `waker` hears when there is.
    pub fn poll_send(&self, bytes: &[u8], waker: &Waker) -> Poll<Result<usize, StreamError>> {
        let mut core = self.shared.lock();
        let Some((socket, failure)) = core.socket(self.id) else { return Poll::Ready(Err(StreamError::StackClosed)) };
        match socket.send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => {
                socket.register_send_waker(waker);
                Poll::Pending
            }
            Ok(taken) => {
                core.stir(self.id);
                self.shared.wake(core);
                Poll::Ready(Ok(taken))
            }
            Err(_) => match (failure, socket.state()) {
                (Some(error), _) => Poll::Ready(Err(error)),
                (None, State::SynSent | State::SynReceived) => {
                    socket.register_send_waker(waker);
                    Poll::Pending
                }
                (None, _) => Poll::Ready(Err(StreamError::SendClosed)),
            },
        }
    }

    /// Waits for bytes and reads them, 0 when the peer has ended.
    pub async fn recv(&self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        poll_fn(|context| self.poll_recv(buffer, context.waker())).await
    }

    /// Waits for room and takes bytes to be sent, as many as there is room for.
    pub async fn send(&self, bytes: &[u8]) -> Result<usize, StreamError> {
        poll_fn(|context| self.poll_send(bytes, context.waker())).await
    }

    /// Ends the sending side behind what was written. Reading goes on.
    pub fn close_send(&self) -> Result<(), StreamError> {
        let mut core = self.shared.lock();
        let Some((socket, failure)) = core.socket(self.id) else { return Err(StreamError::StackClosed) };
        if let Some(error) = failure {
            return Err(error);
        }
        socket.close();
        core.stir(self.id);
        self.shared.wake(core);
        Ok(())
    }

    /// Ends the connection at once, and tells the peer so.
    pub fn abort(&self) {
        let mut core = self.shared.lock();
        core.abort(self.id);
        self.shared.wake(core);
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        core.release(Stack::now(), self.id);
        self.shared.wake(core);
    }
}

/// Hears connections on a port. Dropping it resets those that were not accepted.
#[derive(Debug)]
pub struct TcpListener {
    shared: Arc<Shared>,
    port: u16,
}

impl TcpListener {
    pub(crate) fn new(shared: Arc<Shared>, port: u16) -> Self {
        TcpListener { shared, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next connection. Pending: none has come, and `waker` hears when one has.
    pub fn poll_accept(&self, waker: &Waker) -> Poll<Result<TcpStream, StreamError>> {
        match self.shared.lock().accept(self.port, waker) {
            Ok(Some((id, flow))) => {
                Poll::Ready(Ok(TcpStream::new(Arc::clone(&self.shared), id, flow.local, flow.remote)))
            }
            Ok(None) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> Result<TcpStream, StreamError> {
        poll_fn(|context| self.poll_accept(context.waker())).await
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        core.stop_listening(self.port);
        self.shared.wake(core);
    }
}
