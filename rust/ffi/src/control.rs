//! Control endpoints and their peers. Sessions install their keys straight into engines.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use icx_control::{
    AddPeerError, CommandError, ControlConfig, ControlEndpoint, ControlEvent, ControlEventKind, DialFailure, Patience,
    PeerConfig, PeerId, PeerPhase, PeerStatus, PublicKey, Role,
};
use icx_proto::{Spi, Vni};
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::engine::EngineHandle;
use crate::error::{self, Failure, Outcome};
use crate::events::{self, Kind};
use crate::guard::Call;
use crate::handle;
use crate::identity::IdentityHandle;
use crate::json::{self, Number, Text};

pub(crate) struct ControlHandle {
    endpoint: ControlEndpoint,
    local: SocketAddr,
    peers: Arc<Peers>,
}

impl ControlHandle {
    /// Says goodbye to every peer, waits for that to reach the wire, and joins the thread.
    pub(crate) fn stop(&self) {
        self.endpoint.close();
    }
}

/// Which handle speaks for which peer of one endpoint.
struct Peers {
    endpoint: u32,
    state: Mutex<PeersState>,
}

#[derive(Default)]
struct PeersState {
    handles: HashMap<PeerId, u32>,
    /// Calls that add a peer and do not know its id yet.
    adding: usize,
    /// Events of peers that are being added.
    early: Vec<(PeerId, ControlEventKind)>,
}

impl Peers {
    fn state(&self) -> MutexGuard<'_, PeersState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs on the endpoint's thread.
    fn deliver(&self, event: ControlEvent) {
        let Some(peer) = event.peer else {
            return publish(self.endpoint, event.kind);
        };
        let mut state = self.state();
        match state.handles.get(&peer) {
            // Under the lock, so that events keep their order.
            Some(&handle) => publish(handle, event.kind),
            None if state.adding > 0 => state.early.push((peer, event.kind)),
            // Withdrawn meanwhile.
            None => {}
        }
    }

    fn add(&self, handle: u32, add: impl FnOnce() -> Result<PeerId, AddPeerError>) -> Result<PeerId, AddPeerError> {
        self.state().adding += 1;
        // Not under the lock: the endpoint's thread may deliver an event while it adds the peer.
        let added = add();
        let mut state = self.state();
        state.adding -= 1;
        if let Ok(peer) = &added {
            state.handles.insert(*peer, handle);
        }
        let (mine, others) = std::mem::take(&mut state.early)
            .into_iter()
            .partition::<Vec<_>, _>(|(peer, _)| added.as_ref().is_ok_and(|added| added == peer));
        if state.adding > 0 {
            state.early = others;
        }
        for (_, kind) in mine {
            publish(handle, kind);
        }
        added
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionUp {
    remote: SocketAddr,
    session: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionLost {
    session: u32,
    reason: String,
    superseded: bool,
    reset: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DialFailed {
    reason: String,
    kind: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExchangeDone {
    session: u32,
    rx_spi: u32,
    tx_spi: u32,
    exchanges: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExchangeFailed {
    session: u32,
    reason: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerRejected {
    remote: SocketAddr,
    reason: String,
    count: u64,
}

fn publish(handle: u32, kind: ControlEventKind) {
    let (kind, code, payload) = match kind {
        ControlEventKind::SessionUp { remote, session } => {
            (Kind::SessionUp, Code::Ok, json::text(&SessionUp { remote: canonical(remote), session: session.get() }))
        }
        ControlEventKind::SessionLost { session, reason, superseded, reset } => (
            Kind::SessionLost,
            Code::Closed,
            json::text(&SessionLost { session: session.get(), reason, superseded, reset }),
        ),
        ControlEventKind::DialFailed { reason, kind } => {
            (Kind::DialFailed, dial_code(kind), json::text(&DialFailed { reason, kind: kind.as_str() }))
        }
        ControlEventKind::ExchangeDone { session, rx_spi, tx_spi, exchanges } => (
            Kind::ExchangeDone,
            Code::Ok,
            json::text(&ExchangeDone { session: session.get(), rx_spi: rx_spi.get(), tx_spi: tx_spi.get(), exchanges }),
        ),
        ControlEventKind::ExchangeFailed { session, reason } => {
            (Kind::ExchangeFailed, Code::Peer, json::text(&ExchangeFailed { session: session.get(), reason }))
        }
        ControlEventKind::PeerRejected { remote, reason, count } => {
            (Kind::PeerRejected, Code::Peer, json::text(&PeerRejected { remote: canonical(remote), reason, count }))
        }
        // A kind that this version of the interface has no number for.
        _ => return,
    };
    // Plain structures of texts and numbers always become JSON.
    events::push(kind, handle, code, payload.unwrap_or_default());
}

fn dial_code(failure: DialFailure) -> Code {
    match failure {
        DialFailure::Timeout => Code::TimedOut,
        DialFailure::Auth => Code::Key,
        DialFailure::Unreachable | DialFailure::Local => Code::System,
        DialFailure::Cancelled => Code::Closed,
        _ => Code::Peer,
    }
}

/// An IPv4 address that a dual-stack socket gave in IPv6 form, as IPv4.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ControlOptions {
    identity: u32,
    /// Absent: every address of both families.
    local_address: Option<Text<IpAddr>>,
    port: u16,
}

pub(crate) fn open(call: &Call, text: &[u8]) -> Outcome<u32> {
    let options: ControlOptions = json::parse(text)?;
    let identity = call.get::<IdentityHandle>(options.identity)?;
    let bind = SocketAddr::new(options.local_address.map_or(Ipv6Addr::UNSPECIFIED.into(), |addr| addr.0), options.port);
    let reservation = handle::reserve()?;
    let peers = Arc::new(Peers { endpoint: reservation.id(), state: Mutex::default() });
    let sink = {
        let peers = Arc::clone(&peers);
        Arc::new(move |event| peers.deliver(event))
    };
    let config = ControlConfig { identity: Arc::clone(&identity.identity), bind, clock: Arc::new(icx_io::clock::now) };
    let endpoint = ControlEndpoint::open(config, sink).map_err(|error| {
        Failure::of(error::code_of(&error, Code::System), format_args!("open control port {}", options.port), &error)
    })?;
    let local = canonical(endpoint.local_addr());
    Ok(reservation.open(Arc::new(ControlHandle { endpoint, local, peers })))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ControlInfo {
    local_address: IpAddr,
    port: u16,
}

pub(crate) fn info(call: &Call, control: u32) -> Outcome<String> {
    let local = call.get::<ControlHandle>(control)?.local;
    json::text(&ControlInfo { local_address: local.ip(), port: local.port() })
}

/// A pinned peer. It keeps the endpoint's object alive, not the endpoint open.
pub(crate) struct PeerHandle {
    control: Arc<ControlHandle>,
    peer: PeerId,
    fingerprint: String,
}

impl PeerHandle {
    /// Ends the peer's session and forgets its pin; its keys stay in the engine until they expire.
    pub(crate) fn withdraw(&self) {
        self.control.peers.state().handles.remove(&self.peer);
        // An endpoint that is closed has no peers to remove.
        let _ = self.control.endpoint.remove_peer(self.peer);
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerOptions {
    control: u32,
    engine: u32,
    vni: Number<Vni>,
    peer_key: Text<PublicKey>,
    lifetime_ms: u32,
}

pub(crate) fn add_peer(call: &Call, text: &[u8]) -> Outcome<u32> {
    let options: PeerOptions = json::parse(text)?;
    let control = call.get::<ControlHandle>(options.control)?;
    let engine = call.get::<EngineHandle>(options.engine)?.for_real_traffic("negotiated keys")?;
    let key = options.peer_key.0;
    let fingerprint = key.fingerprint();
    let reservation = handle::reserve()?;
    let config =
        PeerConfig { key, engine, vni: options.vni.0, key_lifetime: Duration::from_millis(options.lifetime_ms.into()) };
    let peer = control
        .peers
        .add(reservation.id(), || control.endpoint.add_peer(config))
        .map_err(|error| Failure::of(add_peer_code(&error), format_args!("add peer {fingerprint}"), &error))?;
    Ok(reservation.open(Arc::new(PeerHandle { control, peer, fingerprint })))
}

fn add_peer_code(error: &AddPeerError) -> Code {
    match error {
        AddPeerError::EqualKeys(_) => Code::Key,
        AddPeerError::KeyExists(_) | AddPeerError::VniInUse(_) => Code::Exists,
        AddPeerError::Closed => Code::Closed,
        _ => Code::Invalid,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerInfo<'a> {
    role: &'static str,
    fingerprint: &'a str,
}

pub(crate) fn peer_info(call: &Call, peer: u32) -> Outcome<String> {
    let peer = call.get::<PeerHandle>(peer)?;
    json::text(&PeerInfo { role: role_text(status(&peer)?.role), fingerprint: &peer.fingerprint })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerStatusText {
    role: &'static str,
    state: &'static str,
    remote: Option<SocketAddr>,
    sessions: u32,
    exchanges: u64,
    rx_spi: Option<u32>,
    tx_spi: Option<u32>,
    /// With fractions.
    rtt_ms: Option<f64>,
}

pub(crate) fn peer_status(call: &Call, peer: u32) -> Outcome<String> {
    let status = status(&*call.get::<PeerHandle>(peer)?)?;
    json::text(&PeerStatusText {
        role: role_text(status.role),
        state: match status.phase {
            PeerPhase::Idle => "idle",
            PeerPhase::Dialing => "dialing",
            PeerPhase::Connected => "connected",
        },
        remote: status.remote.map(canonical),
        sessions: status.sessions,
        exchanges: status.exchanges,
        rx_spi: status.rx_spi.map(Spi::get),
        tx_spi: status.tx_spi.map(Spi::get),
        rtt_ms: status.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
    })
}

fn status(peer: &PeerHandle) -> Outcome<PeerStatus> {
    peer.control.endpoint.status(peer.peer).ok_or_else(|| {
        Failure::new(Code::Closed, "The control endpoint of this peer is closed: close the peer as well")
    })
}

fn role_text(role: Role) -> &'static str {
    match role {
        Role::Initiator => "initiator",
        Role::Responder => "responder",
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DialOptions {
    addr: Text<SocketAddr>,
    answer_timeout_ms: u32,
    #[serde(default)]
    repeat_after_ms: u32,
}

pub(crate) fn dial(call: &Call, peer: u32, text: &[u8]) -> Outcome<i32> {
    let peer = call.get::<PeerHandle>(peer)?;
    let options: DialOptions = json::parse(text)?;
    let milliseconds = |count: u32| Duration::from_millis(count.into());
    let patience = Patience {
        answer: milliseconds(options.answer_timeout_ms),
        repeat: Some(options.repeat_after_ms).filter(|count| *count != 0).map(milliseconds),
    };
    command("dial the peer", peer.control.endpoint.dial(peer.peer, options.addr.0, patience))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExchangeOptions {
    timeout_ms: u32,
}

pub(crate) fn exchange(call: &Call, peer: u32, text: &[u8]) -> Outcome<i32> {
    let peer = call.get::<PeerHandle>(peer)?;
    let options: ExchangeOptions = json::parse(text)?;
    let timeout = Duration::from_millis(options.timeout_ms.into());
    command("exchange keys with the peer", peer.control.endpoint.exchange(peer.peer, timeout))
}

pub(crate) fn probe(call: &Call, peer: u32) -> Outcome<i32> {
    let peer = call.get::<PeerHandle>(peer)?;
    // Whether it was too early for another one does not matter to the caller.
    command("probe the peer", peer.control.endpoint.probe(peer.peer).map(|_| ()))
}

pub(crate) fn disconnect(call: &Call, peer: u32) -> Outcome<i32> {
    let peer = call.get::<PeerHandle>(peer)?;
    command("end the peer's session", peer.control.endpoint.disconnect(peer.peer))
}

fn command(what: &str, result: Result<(), CommandError>) -> Outcome<i32> {
    result.map(|()| 0).map_err(|error| {
        let code = match error {
            CommandError::Closed | CommandError::UnknownPeer(_) => Code::Closed,
            _ => Code::State,
        };
        Failure::of(code, what, &error)
    })
}
