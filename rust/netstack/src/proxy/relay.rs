//! Bytes between a connection of this host and one of the tunnel, both ways at once.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::AtomicU64;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net;

use super::counters::{Tally, count};
use crate::tcp::TcpStream;

/// What one direction of a client has under way between the two connections' own buffers.
const BUFFER_BYTES: usize = 64 << 10;

/// What one direction moves before others have their turn.
const TURN_BYTES: usize = 4 * BUFFER_BYTES;

/// A connection, on whichever side.
trait End {
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    async fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Ends the sending side.
    fn end(&self) -> io::Result<()>;
}

impl End for net::TcpStream {
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.readable().await?;
            match self.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
        }
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.writable().await?;
            match self.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
        }
    }

    fn end(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }
}

impl End for TcpStream {
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.recv(buffer).await?)
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.send(bytes).await?)
    }

    fn end(&self) -> io::Result<()> {
        Ok(self.close_send()?)
    }
}

/// How a direction came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The end of what there was to read has been passed on.
    Ended,
    /// What was read cannot be written any more. What comes from there may yet be.
    Broken,
}

/// Relays until both directions have ended, one by one. `early` has been read from the client already. A reset of one side becomes one
/// of the other.
pub(super) async fn relay(host: net::TcpStream, tunnel: TcpStream, early: &[u8], tally: &Tally) {
    let outward = async {
        match write_all(&tunnel, early, &tally.bytes_to_tunnel).await {
            Ok(()) => copy(&host, &tunnel, &tally.bytes_to_tunnel).await,
            Err(_) => Ok(Ending::Broken),
        }
    };
    let inward = copy(&tunnel, &host, &tally.bytes_from_tunnel);
    let outcome = tokio::select! {
        endings = async { tokio::try_join!(outward, inward) } => endings,
        // Also while nothing is read from the client because what it sent finds no room.
        _ = host.ready(Interest::ERROR) => Err(io::ErrorKind::ConnectionReset.into()),
    };
    if !matches!(outcome, Ok((Ending::Ended, Ending::Ended))) {
        count(&tally.resets, 1);
        reset(&host);
        tunnel.abort();
    }
}

/// Has the connection reset when it is dropped.
pub(super) fn reset(host: &net::TcpStream) {
    // Without it the connection ends in order, which is the worse news only for the client.
    let _ = host.set_zero_linger();
}

/// Moves what `from` sends until its end. An error: `from` has failed.
async fn copy(from: &impl End, to: &impl End, tally: &AtomicU64) -> io::Result<Ending> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut moved = 0;
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(to.end().map_or(Ending::Broken, |()| Ending::Ended));
        }
        if write_all(to, &buffer[..len], tally).await.is_err() {
            return Ok(Ending::Broken);
        }
        moved += len;
        if moved >= TURN_BYTES {
            moved = 0;
            tokio::task::yield_now().await;
        }
    }
}

async fn write_all(to: &impl End, mut bytes: &[u8], tally: &AtomicU64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = to.write(bytes).await?;
        count(tally, written as u64);
        bytes = &bytes[written..];
    }
    Ok(())
}
