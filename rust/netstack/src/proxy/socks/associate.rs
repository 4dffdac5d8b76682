//! Datagrams of SOCKS clients (RFC 1928 section 7).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use super::super::counters::count;
use super::super::datagrams::MAX_DATAGRAM;
use super::super::serve::{Client, PAUSE, part};
use super::super::shared::Shared;
use super::super::target::Target;
use super::wire::{self, Reply};
use super::{NOWHERE, reply};
use crate::error::BindError;
use crate::udp::{DatagramError, UdpSocket as TunnelSocket};

/// An association's two sockets, and its client.
struct Sockets<'a> {
    shared: &'a Shared,
    host: UdpSocket,
    tunnel: TunnelSocket,
    /// Who may send.
    client: IpAddr,
    /// From where; 0: it has not sent yet.
    port: AtomicU16,
}

/// Relays datagrams until the client's connection ends, it has been silent for long, or newer ones need the place. `port`: where
/// the client sends from, 0 if it does not say.
pub(super) async fn serve(shared: &Arc<Shared>, client: Client, port: u16) {
    let Client { mut stream, address, .. } = client;
    let Some((host, tunnel)) = open(shared, &stream).await else {
        count(&shared.tally.connect_failures, 1);
        if reply(&mut stream, Reply::GeneralFailure, NOWHERE).await.is_ok() {
            part(&stream).await;
        }
        return;
    };
    let Ok(bound) = host.local_addr() else { return };
    let association = shared.associations.admit();
    if reply(&mut stream, Reply::Succeeded, bound).await.is_err() {
        return;
    }
    let (client, port) = (address.ip().to_canonical(), AtomicU16::new(port));
    let sockets = Sockets { shared, host, tunnel, client, port };
    let used = || association.touch();
    tokio::select! {
        () = ended(&stream) => {}
        () = association.over(shared.association_timeout) => {}
        () = sockets.outward(used) => {}
        () = sockets.inward(used) => {}
    }
}

/// The client sends to the address that it has connected to.
async fn open(shared: &Shared, stream: &TcpStream) -> Option<(UdpSocket, TunnelSocket)> {
    let local = stream.local_addr().ok()?.ip().to_canonical();
    let tunnel = shared.stack.bind_datagram(0).inspect_err(|error| {
        if *error == BindError::Closed {
            shared.stack_closed.notify_one();
        }
    });
    Some((UdpSocket::bind((local, 0)).await.ok()?, tunnel.ok()?))
}

/// Waits for the end of the client's connection. What it sends means nothing.
async fn ended(stream: &TcpStream) {
    let mut buffer = [0; 512];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut buffer) {
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

impl Sockets<'_> {
    /// From the client into the tunnel.
    async fn outward(&self, used: impl Fn()) {
        let tally = &self.shared.tally;
        let mut buffer = vec![0; MAX_DATAGRAM];
        let mut names = Names::default();
        loop {
            let (len, from) = match self.host.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(_) => {
                    count(&tally.accept_errors, 1);
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let datagram = wire::read_datagram(&buffer[..len]).filter(|_| self.is_client(from));
            let Some((header, payload)) = datagram else {
                count(&tally.datagrams_dropped, 1);
                continue;
            };
            used();
            if header.fragment != 0 {
                count(&tally.fragments_dropped, 1);
                continue;
            }
            let sent = match names.address(self.shared, header.target).await {
                Some(to) => self.tunnel.send_to(payload, to).await,
                None => {
                    count(&tally.datagrams_dropped, 1);
                    continue;
                }
            };
            match sent {
                Ok(()) => count(&tally.datagrams_to_tunnel, 1),
                Err(DatagramError::StackClosed) => return self.shared.stack_closed.notify_one(),
                Err(_) => count(&tally.datagrams_dropped, 1),
            }
        }
    }

    /// Whether a datagram is from the client: the first one tells its port.
    fn is_client(&self, from: SocketAddr) -> bool {
        if from.ip().to_canonical() != self.client {
            return false;
        }
        let known = self.port.compare_exchange(0, from.port(), Ordering::Relaxed, Ordering::Relaxed);
        known.is_ok_and(|_| from.port() != 0) || known == Err(from.port())
    }

    /// From the tunnel to the client.
    async fn inward(&self, used: impl Fn()) {
        let tally = &self.shared.tally;
        let mut buffer = vec![0; wire::MAX_HEADER + MAX_DATAGRAM];
        let mut header = Vec::with_capacity(wire::MAX_HEADER);
        loop {
            let received = self.tunnel.recv_from(&mut buffer[wire::MAX_HEADER..]).await;
            let Ok((len, from)) = received else { return self.shared.stack_closed.notify_one() };
            header.clear();
            wire::write_header(from, &mut header);
            let start = wire::MAX_HEADER - header.len();
            buffer[start..wire::MAX_HEADER].copy_from_slice(&header);
            let to = SocketAddr::new(self.client, self.port.load(Ordering::Relaxed));
            let sent = match to.port() {
                0 => false,
                _ => self.host.send_to(&buffer[start..wire::MAX_HEADER + len], to).await.is_ok(),
            };
            if sent {
                used();
                count(&tally.datagrams_from_tunnel, 1);
            } else {
                count(&tally.datagrams_dropped, 1);
            }
        }
    }
}

/// The addresses of names that an association has sent to, for a while.
#[derive(Default)]
struct Names(VecDeque<(Target, Option<SocketAddr>, Instant)>);

impl Names {
    const MOST: usize = 16;
    const LIFETIME: Duration = Duration::from_secs(60);
    /// Of a name without an address.
    const RETRY: Duration = Duration::from_secs(5);

    async fn address(&mut self, shared: &Shared, target: Target) -> Option<SocketAddr> {
        let now = Instant::now();
        self.0.retain(|(.., until)| *until > now);
        if let Some((_, address, _)) = self.0.iter().find(|(known, ..)| *known == target) {
            return *address;
        }
        let address = shared.addresses(&target).await.ok().and_then(|found| found.first().copied());
        if address.is_none() {
            count(&shared.tally.names_failed, 1);
        }
        if self.0.len() == Self::MOST {
            self.0.pop_front();
        }
        let lifetime = if address.is_some() { Self::LIFETIME } else { Self::RETRY };
        self.0.push_back((target, address, Instant::now() + lifetime));
        address
    }
}
