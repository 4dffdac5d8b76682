//! The control endpoint: one UDP socket, one thread, any number of peers in both roles.

use core::fmt;
use core::time::Duration;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use quinn::{Endpoint, ServerConfig, ValidationTokenConfig};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::mpsc;

use crate::certificate::{self, CertificateError};
use crate::dial::{self, Dial, Patience};
use crate::event::{ControlEvent, PeerId};
use crate::identity::{Identity, IdentityError};
use crate::listen;
use crate::load;
use crate::peer::{CommandError, Peer, PeerConfig, PeerStatus};
use crate::registry::{AddPeerError, Registry};
use crate::role::Role;
use crate::session::{CloseCode, Session, canonical};
use crate::shared::Shared;
use crate::tls::{TlsError, TlsFactory};
use crate::transport;

/// Tells the engine's time.
pub type Clock = Arc<dyn Fn() -> icx_proto::Instant + Send + Sync>;

/// Takes events, on the endpoint's thread. Must not block; may call the endpoint.
pub type EventSink = Arc<dyn Fn(ControlEvent) + Send + Sync>;

/// How long closing waits for the peers to be told.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// What a client sends before its connection is accepted is kept up to this, per connection and in all.
const INCOMING_BUFFER: u64 = 16 * 1024;
const INCOMING_BUFFER_TOTAL: u64 = 1024 * 1024;
/// The system knows no such kind of address: Linux on x86-64 and aarch64.
const EAFNOSUPPORT: i32 = 97;

pub struct ControlConfig {
    pub identity: Arc<Identity>,
    /// Where to bind. The unspecified IPv6 address takes IPv4, too.
    pub bind: SocketAddr,
    pub clock: Clock,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error("cannot {operation} the control socket on UDP {addr}: {source}{}", socket_advice(source))]
    Socket { operation: &'static str, addr: SocketAddr, source: io::Error },
    #[error("cannot wait for the control plane's packets: {0}")]
    Runtime(#[source] io::Error),
    #[error(
        "cannot start the control plane's thread: {0}: raise the limit on threads (`ulimit -u`, or `pids.max` of the control \
         group)"
    )]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot derive the keys of the control socket from the identity: {0}")]
    Identity(#[from] IdentityError),
}

/// Runs sessions with its peers. Every method may be called from any thread, also from the event sink.
pub struct ControlEndpoint {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    local_addr: SocketAddr,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the runtime thread is asked to do. The state of the peer concerned has moved already.
enum Command {
    Dial(Arc<Peer>, Dial),
    Exchange(Arc<Peer>, Arc<Session>, Duration),
    /// The peer has events that were made on another thread.
    Deliver(Arc<Peer>),
    Close,
}

impl ControlEndpoint {
    /// Binds the socket and starts the thread.
    pub fn open(config: ControlConfig, sink: EventSink) -> Result<Self, OpenError> {
        let ControlConfig { identity, bind, clock } = config;
        let own_key = identity.public_key().clone();
        let endpoint_config = transport::endpoint_config(&identity)?;
        let certificate = certificate::self_signed(&identity, SystemTime::now())?;
        let tls = TlsFactory::new(identity, certificate);
        let server = server_config(&tls)?;
        let socket = bind_socket(bind)?;
        let local_addr = socket.local_addr().map_err(|source| OpenError::Socket {
            operation: "read the address of",
            addr: bind,
            source,
        })?;

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(OpenError::Runtime)?;
        let endpoint = {
            let _context = runtime.enter();
            Endpoint::new(endpoint_config, Some(server.clone()), socket, Arc::new(quinn::TokioRuntime))
                .map_err(|source| OpenError::Socket { operation: "use", addr: local_addr, source })?
        };

        let client_transport = transport::transport_config(Role::Initiator);
        let shared = Arc::new(Shared::new(own_key, clock, sink, tls, server, client_transport));
        let (commands, receiver) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("icx-control".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || runtime.block_on(run(shared, endpoint, receiver))
            })
            .map_err(OpenError::Thread)?;
        Ok(ControlEndpoint { shared, commands, local_addr: canonical(local_addr), thread: Mutex::new(Some(thread)) })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Registers a peer. If it is the one that dials, its sessions and exchanges are accepted from now on.
    pub fn add_peer(&self, config: PeerConfig) -> Result<PeerId, AddPeerError> {
        if self.shared.is_closing() {
            return Err(AddPeerError::Closed);
        }
        self.shared.registry.add(&self.shared.own_key, config)
    }

    /// Forgets a peer: its session is closed, and no event about it is queued any more. Its installed keys stay.
    pub fn remove_peer(&self, id: PeerId) -> Result<(), CommandError> {
        let peer = self.shared.registry.remove(id).ok_or(CommandError::UnknownPeer(id))?;
        peer.retire();
        Ok(())
    }

    /// Starts a handshake, as the initiator. It fails when the peer has not answered within `patience`, or when an answered
    /// one makes no progress for 10 s.
    pub fn dial(&self, id: PeerId, remote: SocketAddr, patience: impl Into<Patience>) -> Result<(), CommandError> {
        let peer = self.peer(id)?;
        let (dial, cancelled) = peer.begin_dial()?;
        let (remote, patience) = (canonical(remote), patience.into());
        self.send(Command::Dial(peer, Dial { id: dial, remote, patience, cancelled }))
    }

    /// Starts an exchange on the session, as the initiator. After one that fails, disconnect and dial anew.
    pub fn exchange(&self, id: PeerId, timeout: Duration) -> Result<(), CommandError> {
        let peer = self.peer(id)?;
        let session = peer.begin_exchange()?;
        self.send(Command::Exchange(peer, session, timeout))
    }

    /// Finds out whether the peer still knows the session: if it does not, `SessionLost` follows. Says whether a probe was
    /// sent: not without a session, and at most one in 500 ms.
    pub fn probe(&self, id: PeerId) -> Result<bool, CommandError> {
        Ok(self.peer(id)?.probe(Instant::now()))
    }

    /// Ends the session or the dial that is under way, with the events that belong to it. The next dial may follow at once.
    pub fn disconnect(&self, id: PeerId) -> Result<(), CommandError> {
        let peer = self.peer(id)?;
        peer.disconnect();
        self.send(Command::Deliver(peer))
    }

    pub fn status(&self, id: PeerId) -> Option<PeerStatus> {
        self.shared.registry.get(id).map(|peer| peer.status())
    }

    /// Closes every session with code 0, waits until the peers are told (at most about a second), and joins the thread. No
    /// event is delivered afterwards. Called from the event sink it does not wait. Closing again does nothing.
    pub fn close(&self) {
        self.shared.silence();
        for peer in self.shared.registry.drain() {
            peer.retire();
        }
        let _ = self.commands.send(Command::Close);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic there has been reported by the panic hook; here nothing is left to do about it.
            let _ = thread.join();
        }
    }

    fn peer(&self, id: PeerId) -> Result<Arc<Peer>, CommandError> {
        if self.shared.is_closing() {
            return Err(CommandError::Closed);
        }
        self.shared.registry.get(id).ok_or(CommandError::UnknownPeer(id))
    }

    fn send(&self, command: Command) -> Result<(), CommandError> {
        self.commands.send(command).map_err(|_| CommandError::Closed)
    }
}

impl Drop for ControlEndpoint {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for ControlEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlEndpoint").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// The runtime thread: takes connections and commands until it is told to close.
async fn run(shared: Arc<Shared>, endpoint: Endpoint, mut commands: mpsc::UnboundedReceiver<Command>) {
    loop {
        let command = tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    listen::receive(&shared, incoming);
                    continue;
                }
                None => break,
            },
            command = commands.recv() => command,
        };
        match command {
            Some(Command::Dial(peer, dial)) => {
                tokio::spawn(dial::run(Arc::clone(&shared), endpoint.clone(), peer, dial));
            }
            Some(Command::Exchange(peer, session, timeout)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { shared.initiate(&peer, &session, timeout).await });
            }
            Some(Command::Deliver(peer)) => shared.deliver(&peer),
            Some(Command::Close) | None => break,
        }
    }
    endpoint.close(CloseCode::Done.code(), CloseCode::Done.text());
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
}

/// What every incoming connection starts from. Connections bring their own TLS; this one's trusts nobody.
fn server_config(tls: &TlsFactory) -> Result<ServerConfig, TlsError> {
    let (nobody, _) = tls.server(Arc::new(Registry::default()))?;
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    let mut config = ServerConfig::with_crypto(Arc::new(nobody));
    config
        .transport_config(transport::transport_config(Role::Responder))
        .validation_token_config(tokens)
        .max_incoming(load::REFUSE_FROM)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    Ok(config)
}

fn socket_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; choose another --control-port, or stop the process that holds it (`ss -lunp`)",
        io::ErrorKind::AddrNotAvailable => "; choose an address that `ip addr` shows as --local-address",
        io::ErrorKind::PermissionDenied => "; choose --control-port 1024 or higher, or give CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// Binds without sharing the port. Where the system has no IPv6, the unspecified address falls back to IPv4's.
fn bind_socket(addr: SocketAddr) -> Result<UdpSocket, OpenError> {
    bind_or_fall_back(addr, try_bind)
}

fn bind_or_fall_back<S>(addr: SocketAddr, bind: impl Fn(SocketAddr) -> Result<S, BindFailure>) -> Result<S, OpenError> {
    match bind(addr) {
        Err((operation, error)) if addr.ip() == Ipv6Addr::UNSPECIFIED && lacks_ipv6(operation, &error) => {
            let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port()));
            bind(addr).map_err(|(operation, source)| OpenError::Socket { operation, addr, source })
        }
        outcome => outcome.map_err(|(operation, source)| OpenError::Socket { operation, addr, source }),
    }
}

/// What failed, and how.
type BindFailure = (&'static str, io::Error);

fn try_bind(addr: SocketAddr) -> Result<UdpSocket, BindFailure> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP)).map_err(|e| ("make", e))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified()).map_err(|e| ("configure", e))?;
    }
    socket.bind(&SockAddr::from(addr)).map_err(|e| ("bind", e))?;
    Ok(socket.into())
}

/// Without IPv6 there are no such sockets, or there is no such address.
fn lacks_ipv6(operation: &str, error: &io::Error) -> bool {
    match operation {
        "make" => error.raw_os_error() == Some(EAFNOSUPPORT),
        _ => error.kind() == io::ErrorKind::AddrNotAvailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: &str = "[::]:6082";

    #[test]
    fn where_there_is_no_ipv6_the_unspecified_address_is_that_of_ipv4() {
        let no_ipv6: [fn() -> BindFailure; 2] = [
            || ("make", io::Error::from_raw_os_error(EAFNOSUPPORT)),
            || ("bind", io::ErrorKind::AddrNotAvailable.into()),
        ];
        for failure in no_ipv6 {
            let bind = |addr: SocketAddr| if addr.is_ipv6() { Err(failure()) } else { Ok(addr) };
            let bound = bind_or_fall_back(ANY.parse().unwrap(), bind).unwrap();
            assert_eq!(bound, "0.0.0.0:6082".parse().unwrap());
            let specific = bind_or_fall_back("[2001:db8::1]:6082".parse().unwrap(), bind);
            assert!(matches!(specific, Err(OpenError::Socket { addr, .. }) if addr.is_ipv6()), "{specific:?}");
        }
    }

    #[test]
    fn another_failure_is_told_and_not_worked_around() {
        let failures: [fn() -> BindFailure; 2] = [
            || ("bind", io::ErrorKind::AddrInUse.into()),
            // EMFILE: a socket for IPv4 may be had a moment later.
            || ("make", io::Error::from_raw_os_error(24)),
        ];
        for failure in failures {
            let bind = |addr: SocketAddr| if addr.is_ipv6() { Err(failure()) } else { Ok(addr) };
            let outcome = bind_or_fall_back(ANY.parse().unwrap(), bind);
            assert!(matches!(outcome, Err(OpenError::Socket { addr, .. }) if addr.is_ipv6()), "{outcome:?}");
        }
    }
}
