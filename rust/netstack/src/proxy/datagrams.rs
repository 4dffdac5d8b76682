//! UDP forwards, in both directions: what comes from one address goes out by a socket of its own, by which answers come back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use socket2::SockRef;
use tokio::net;

use super::associations::{Association, Associations};
use super::counters::{Tally, count};
use super::listen::Address;
use super::serve::accept_failed;
use super::shared::Shared;
use super::target::Target;
use crate::udp::UdpSocket;

/// No datagram is longer.
pub(super) const MAX_DATAGRAM: usize = 65_535;

/// A datagram socket, on whichever side.
trait Socket: Send + Sync + 'static {
    fn recv_from(&self, buffer: &mut [u8]) -> impl Future<Output = io::Result<(usize, SocketAddr)>> + Send;

    /// Does not wait: without room the datagram is lost.
    fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()>;
}

impl Socket for net::UdpSocket {
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.recv_from(buffer).await
    }

    fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        // Not tokio's way, which refuses as long as it has not heard that there is room.
        SockRef::from(self).send_to(bytes, &to.into()).map(drop)
    }
}

impl Socket for UdpSocket {
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        Ok(self.recv_from(buffer).await?)
    }

    fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        match self.poll_send_to(bytes, to, Waker::noop()) {
            Poll::Ready(sent) => Ok(sent?),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// What differs between the directions.
trait Direction: Send + Sync + 'static {
    /// Where datagrams come from, and where they go.
    type Near: Socket;
    type Far: Socket;

    /// Opens what the datagrams of one sender leave from, and finds where they go. None: that is not possible now.
    fn open(&self, shared: &Shared) -> impl Future<Output = Option<(Self::Far, SocketAddr)>> + Send;

    fn count_out(tally: &Tally);
    fn count_back(tally: &Tally);
}

/// From this host into the tunnel, to the target.
struct Forward(Target);

/// From the tunnel to the target, as this host reaches it.
struct Reverse(Target);

impl Direction for Forward {
    type Near = net::UdpSocket;
    type Far = UdpSocket;

    async fn open(&self, shared: &Shared) -> Option<(UdpSocket, SocketAddr)> {
        let found = shared.addresses(&self.0).await;
        let to = found.inspect_err(|_| count(&shared.tally.names_failed, 1)).ok()?.first().copied()?;
        Some((shared.stack.bind_datagram(0).ok()?, to))
    }

    fn count_out(tally: &Tally) {
        count(&tally.datagrams_to_tunnel, 1);
    }

    fn count_back(tally: &Tally) {
        count(&tally.datagrams_from_tunnel, 1);
    }
}

impl Direction for Reverse {
    type Near = UdpSocket;
    type Far = net::UdpSocket;

    async fn open(&self, shared: &Shared) -> Option<(net::UdpSocket, SocketAddr)> {
        let to = shared.host_addresses(&self.0).await.first().copied()?;
        let local = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = net::UdpSocket::bind(SocketAddr::new(local, 0)).await.ok()?;
        // So the kernel lets nobody else answer.
        socket.connect(to).await.ok()?;
        Some((socket, to))
    }

    fn count_out(tally: &Tally) {
        count(&tally.datagrams_from_tunnel, 1);
    }

    fn count_back(tally: &Tally) {
        count(&tally.datagrams_to_tunnel, 1);
    }
}

/// Datagrams of one sender.
struct Flow<F> {
    association: Association,
    /// The socket to send from, and where to; once it is open.
    far: OnceLock<(F, SocketAddr)>,
}

/// All flows of a forward.
struct Forwarder<D: Direction> {
    shared: Arc<Shared>,
    direction: D,
    near: D::Near,
    associations: Associations,
    flows: Mutex<HashMap<SocketAddr, Arc<Flow<D::Far>>>>,
}

/// Forwards what comes to `near` until the stack is closed.
pub(super) async fn forward(shared: Arc<Shared>, near: net::UdpSocket, service: Address, remote: Target) {
    Forwarder::run(shared, near, service, Forward(remote)).await;
}

/// Forwards what comes to a port of the stack until that is closed.
pub(super) async fn reverse(shared: Arc<Shared>, near: UdpSocket, service: Address, target: Target) {
    Forwarder::run(shared, near, service, Reverse(target)).await;
}

impl<D: Direction> Forwarder<D> {
    async fn run(shared: Arc<Shared>, near: D::Near, service: Address, direction: D) {
        let associations = Associations::new(shared.max_associations, &shared.tally);
        let forwarder = Arc::new(Forwarder { shared, direction, near, associations, flows: Mutex::default() });
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            match forwarder.near.recv_from(&mut buffer).await {
                Ok((len, from)) => forwarder.take(&buffer[..len], from),
                Err(error) if is_stack_closed(&error) => return,
                Err(error) => accept_failed(&forwarder.shared, service, &error).await,
            }
        }
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Flow<D::Far>>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, bytes: &[u8], from: SocketAddr) {
        let mut flows = self.flows();
        match flows.entry(from) {
            Entry::Occupied(flow) => self.send(flow.get(), bytes),
            Entry::Vacant(place) => {
                let flow = Arc::new(Flow { association: self.associations.admit(), far: OnceLock::new() });
                place.insert(Arc::clone(&flow));
                let (this, first) = (Arc::clone(self), bytes.to_vec());
                tokio::spawn(async move {
                    tokio::select! {
                        () = this.serve(&flow, first, from) => {}
                        () = flow.association.over(this.shared.association_timeout) => {}
                    }
                    this.forget(from, &flow);
                });
            }
        }
    }

    fn send(&self, flow: &Flow<D::Far>, bytes: &[u8]) {
        flow.association.touch();
        let tally = &self.shared.tally;
        match flow.far.get().map(|(far, to)| far.send_to(bytes, *to)) {
            Some(Ok(())) => D::count_out(tally),
            // Not yet open: the first datagram waits for that, others do not.
            Some(Err(_)) | None => count(&tally.datagrams_dropped, 1),
        }
    }

    /// Opens a flow's socket, sends its first datagram, and returns the answers.
    async fn serve(&self, flow: &Flow<D::Far>, first: Vec<u8>, from: SocketAddr) {
        let tally = &self.shared.tally;
        let Some(far) = self.direction.open(&self.shared).await else {
            return count(&tally.datagrams_dropped, 1);
        };
        let (far, to) = flow.far.get_or_init(|| far);
        self.send(flow, &first);
        drop(first);
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            match far.recv_from(&mut buffer).await {
                Ok((len, sender)) if (sender.ip(), sender.port()) == (to.ip(), to.port()) => {
                    flow.association.touch();
                    match self.near.send_to(&buffer[..len], from) {
                        Ok(()) => D::count_back(tally),
                        Err(_) => count(&tally.datagrams_dropped, 1),
                    }
                }
                Ok(_) => count(&tally.datagrams_dropped, 1),
                // Nobody listens where the datagrams go, for now (ICMP port unreachable).
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => return,
            }
        }
    }

    fn forget(&self, from: SocketAddr, flow: &Arc<Flow<D::Far>>) {
        let mut flows = self.flows();
        if flows.get(&from).is_some_and(|known| Arc::ptr_eq(known, flow)) {
            flows.remove(&from);
        }
    }
}

fn is_stack_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionAborted
}
