//! One registered peer: what may be asked of it now, and the events its transitions produce.
//!
//! Any thread moves the state, under its lock. Events queue up in the order of the transitions and are delivered from
//! the runtime thread, never under the lock, so that whoever receives one may call the endpoint again.

use core::time::Duration;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use icx_proto::{Engine, Spi, Vni};
use quinn::Connection;
use tokio::sync::oneshot;

use crate::event::{ControlEventKind, DialFailure, PeerId, SessionId};
use crate::pace::Pace;
use crate::public_key::PublicKey;
use crate::role::Role;
use crate::session::{CloseCode, Session, canonical};

/// A probe goes out at most this often.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// How many sessions a peer may bring up at once, and how often after that. Honest peers are far slower; what bounds the
/// events, and the work of others, are two processes with one key that drive each other out.
const SESSION_BURST: u32 = 32;
const SESSION_INTERVAL: Duration = Duration::from_millis(100);
/// The same for the exchanges of a peer, all sessions taken together.
const EXCHANGE_BURST: u32 = 1024;
const EXCHANGE_INTERVAL: Duration = Duration::from_millis(10);

/// A peer, and where its keys go.
#[derive(Clone)]
pub struct PeerConfig {
    pub key: PublicKey,
    /// Receives the keys of the exchanges, for `vni`.
    pub engine: Arc<Engine>,
    pub vni: Vni,
    /// How long a key works after the exchange that made it.
    pub key_lifetime: Duration,
}

/// What a peer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerPhase {
    Idle,
    Dialing,
    Connected,
}

/// A peer as it stands, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// This node's role towards the peer.
    pub role: Role,
    pub phase: PeerPhase,
    /// Where the session goes, if there is one.
    pub remote: Option<SocketAddr>,
    /// How many sessions have come up so far.
    pub sessions: u32,
    /// How many exchanges have finished so far, in all sessions.
    pub exchanges: u64,
    /// The SPIs of the last exchange.
    pub rx_spi: Option<Spi>,
    pub tx_spi: Option<Spi>,
    /// The round-trip time of the session, if there is one.
    pub rtt: Option<Duration>,
}

/// A call that the state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    #[error("there is no peer {0}")]
    UnknownPeer(PeerId),
    #[error("this node is the responder towards the peer: the other one dials and starts the exchanges")]
    Responder,
    #[error("a dial is under way: wait for its event, or disconnect")]
    Dialing,
    #[error("a session is up: disconnect before dialling again")]
    SessionUp,
    #[error("there is no session: dial first")]
    NoSession,
    #[error("an exchange is under way: wait for its event")]
    Exchanging,
    #[error("the control endpoint is closed")]
    Closed,
}

/// Tells dials of one peer apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DialId(u64);

pub(crate) struct Peer {
    pub(crate) id: PeerId,
    /// This node's role towards the peer.
    pub(crate) role: Role,
    pub(crate) config: PeerConfig,
    state: Mutex<State>,
}

/// What ended a session that did not end here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    Superseded,
    Reset,
    Other,
}

struct State {
    phase: Phase,
    dials: u64,
    sessions: u32,
    exchanges: u64,
    last_pair: Option<(Spi, Spi)>,
    events: VecDeque<ControlEventKind>,
    session_pace: Pace,
    exchange_pace: Pace,
    /// Dropped to turn away the handshake that waits for its turn.
    waiting: Option<oneshot::Sender<()>>,
    /// The peer is no longer registered: no session comes up, and nothing is told.
    retired: bool,
}

#[derive(Default)]
enum Phase {
    #[default]
    Idle,
    Dialing {
        dial: DialId,
        /// Dropped to give the dial up.
        _cancel: oneshot::Sender<()>,
    },
    Connected {
        session: Arc<Session>,
        exchanging: bool,
        last_probe: Option<Instant>,
    },
}

impl Default for State {
    fn default() -> Self {
        State {
            phase: Phase::Idle,
            dials: 0,
            sessions: 0,
            exchanges: 0,
            last_pair: None,
            events: VecDeque::new(),
            session_pace: Pace::new(SESSION_BURST, SESSION_INTERVAL),
            exchange_pace: Pace::new(EXCHANGE_BURST, EXCHANGE_INTERVAL),
            waiting: None,
            retired: false,
        }
    }
}

impl State {
    fn event(&mut self, event: ControlEventKind) {
        if !self.retired {
            self.events.push_back(event);
        }
    }

    /// Makes `connection` the session in place of whatever there was.
    fn bring_up(
        &mut self,
        connection: Connection,
        make: impl FnOnce(SessionId, Connection) -> Session,
    ) -> Arc<Session> {
        self.sessions += 1;
        let remote = canonical(connection.remote_address());
        let session = Arc::new(make(SessionId(self.sessions), connection));
        self.phase = Phase::Connected { session: Arc::clone(&session), exchanging: false, last_probe: None };
        self.event(ControlEventKind::SessionUp { remote, session: session.id });
        session
    }

    /// Ends the session `id`, if it is the current one.
    fn bring_down(&mut self, id: SessionId, reason: &str, end: SessionEnd) -> Option<Arc<Session>> {
        let exchanging = match &self.phase {
            Phase::Connected { session, exchanging, .. } if session.id == id => *exchanging,
            _ => return None,
        };
        let Phase::Connected { session, .. } = core::mem::take(&mut self.phase) else { return None };
        if exchanging {
            self.event(ControlEventKind::ExchangeFailed { session: id, reason: reason.into() });
        }
        let (superseded, reset) = (end == SessionEnd::Superseded, end == SessionEnd::Reset);
        self.event(ControlEventKind::SessionLost { session: id, reason: reason.into(), superseded, reset });
        Some(session)
    }
}

impl Peer {
    pub(crate) fn new(id: PeerId, role: Role, config: PeerConfig) -> Self {
        Peer { id, role, config, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next event to deliver.
    pub(crate) fn next_event(&self) -> Option<ControlEventKind> {
        self.lock().events.pop_front()
    }

    pub(crate) fn status(&self) -> PeerStatus {
        let state = self.lock();
        let (phase, session) = match &state.phase {
            Phase::Idle => (PeerPhase::Idle, None),
            Phase::Dialing { .. } => (PeerPhase::Dialing, None),
            Phase::Connected { session, .. } => (PeerPhase::Connected, Some(session)),
        };
        PeerStatus {
            role: self.role,
            phase,
            remote: session.map(|s| canonical(s.connection.remote_address())),
            sessions: state.sessions,
            exchanges: state.exchanges,
            rx_spi: state.last_pair.map(|(rx, _)| rx),
            tx_spi: state.last_pair.map(|(_, tx)| tx),
            rtt: session.map(|s| s.connection.rtt()),
        }
    }

    // ---- dialling ----

    /// Starts a dial. The receiver resolves when it is given up.
    pub(crate) fn begin_dial(&self) -> Result<(DialId, oneshot::Receiver<()>), CommandError> {
        if self.role != Role::Initiator {
            return Err(CommandError::Responder);
        }
        let mut state = self.lock();
        match state.phase {
            _ if state.retired => return Err(CommandError::UnknownPeer(self.id)),
            Phase::Idle => {}
            Phase::Dialing { .. } => return Err(CommandError::Dialing),
            Phase::Connected { .. } => return Err(CommandError::SessionUp),
        }
        state.dials += 1;
        let dial = DialId(state.dials);
        let (cancel, cancelled) = oneshot::channel();
        state.phase = Phase::Dialing { dial, _cancel: cancel };
        Ok((dial, cancelled))
    }

    pub(crate) fn dial_failed(&self, dial: DialId, kind: DialFailure, reason: String) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Dialing { dial: current, .. } if current == dial) {
            state.phase = Phase::Idle;
            state.event(ControlEventKind::DialFailed { reason, kind });
        }
    }

    /// The session of a dial that was not given up meanwhile.
    pub(crate) fn dial_succeeded(
        &self,
        dial: DialId,
        connection: Connection,
        make: impl FnOnce(SessionId, Connection) -> Session,
    ) -> Option<Arc<Session>> {
        let mut state = self.lock();
        match state.phase {
            Phase::Dialing { dial: current, .. } if current == dial => Some(state.bring_up(connection, make)),
            _ => None,
        }
    }

    // ---- sessions ----

    /// Waits until the peer's next session may come up; of several that wait only the newest does. `false`: it is no longer
    /// the newest, or the peer was removed.
    pub(crate) async fn session_turn(&self) -> bool {
        let (waiting, mut turned_away) = oneshot::channel();
        {
            let mut state = self.lock();
            if state.retired {
                return false;
            }
            state.waiting = Some(waiting);
        }
        loop {
            let Err(at) = self.lock().session_pace.step(Instant::now()) else { return true };
            tokio::select! {
                biased;
                _ = &mut turned_away => return false,
                () = tokio::time::sleep_until(at.into()) => {}
            }
        }
    }

    /// A peer's handshake finished: its session takes the place of an older one. `None` when the peer was removed.
    pub(crate) fn accepted(
        &self,
        connection: Connection,
        make: impl FnOnce(SessionId, Connection) -> Session,
    ) -> Option<Arc<Session>> {
        let mut state = self.lock();
        if state.retired {
            return None;
        }
        if let Phase::Connected { session, .. } = &state.phase {
            let id = session.id;
            if let Some(old) = state.bring_down(id, "the peer started a newer session", SessionEnd::Superseded) {
                old.close(CloseCode::Superseded);
            }
        }
        Some(state.bring_up(connection, make))
    }

    /// The session ended by itself or by the peer. No effect on one that is not current.
    pub(crate) fn session_ended(&self, id: SessionId, reason: &str, end: SessionEnd) {
        self.lock().bring_down(id, reason, end);
    }

    /// Ends the session or the dial that is under way.
    pub(crate) fn disconnect(&self) {
        let mut state = self.lock();
        match &state.phase {
            Phase::Idle => {}
            Phase::Dialing { .. } => {
                state.phase = Phase::Idle;
                let reason = "this node gave the dial up".into();
                state.event(ControlEventKind::DialFailed { reason, kind: DialFailure::Cancelled });
            }
            Phase::Connected { session, .. } => {
                let id = session.id;
                if let Some(session) = state.bring_down(id, "this node closed the session", SessionEnd::Other) {
                    session.close(CloseCode::Done);
                }
            }
        }
    }

    /// Ends everything, for good and without events.
    pub(crate) fn retire(&self) {
        let mut state = self.lock();
        state.retired = true;
        state.events.clear();
        state.waiting = None;
        drop(state);
        self.disconnect();
    }

    /// Sends a probe on the session if there is one and the last probe is old enough. Says whether one went out.
    pub(crate) fn probe(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let Phase::Connected { session, last_probe, .. } = &mut state.phase else { return false };
        if last_probe.is_some_and(|last| now.saturating_duration_since(last) < PROBE_INTERVAL) {
            return false;
        }
        *last_probe = Some(now);
        session.probe();
        true
    }

    // ---- exchanges ----

    /// Starts an exchange on the current session.
    pub(crate) fn begin_exchange(&self) -> Result<Arc<Session>, CommandError> {
        if self.role != Role::Initiator {
            return Err(CommandError::Responder);
        }
        match &mut self.lock().phase {
            Phase::Connected { exchanging: true, .. } => Err(CommandError::Exchanging),
            Phase::Connected { session, exchanging, .. } => {
                *exchanging = true;
                Ok(Arc::clone(session))
            }
            Phase::Idle | Phase::Dialing { .. } => Err(CommandError::NoSession),
        }
    }

    /// Waits until the peer's next exchange may be answered.
    pub(crate) async fn exchange_turn(&self) {
        loop {
            let Err(at) = self.lock().exchange_pace.step(Instant::now()) else { return };
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// Does `action` if `id` is the current session, which cannot change meanwhile. What is left to read of a session may
    /// be read after its end: nothing of it may come between the keys of the one that followed.
    pub(crate) fn while_current<T>(&self, id: SessionId, action: impl FnOnce() -> T) -> Option<T> {
        let state = self.lock();
        match &state.phase {
            Phase::Connected { session, .. } if session.id == id => Some(action()),
            _ => None,
        }
    }

    /// Both keys of an exchange are installed.
    pub(crate) fn exchange_done(&self, id: SessionId, rx_spi: Spi, tx_spi: Spi) {
        let mut state = self.lock();
        let Phase::Connected { session, exchanging, .. } = &mut state.phase else { return };
        if session.id == id {
            *exchanging = false;
            state.exchanges += 1;
            state.last_pair = Some((rx_spi, tx_spi));
            let exchanges = state.exchanges;
            state.event(ControlEventKind::ExchangeDone { session: id, rx_spi, tx_spi, exchanges });
        }
    }

    /// An exchange came to nothing; the session is still there.
    pub(crate) fn exchange_failed(&self, id: SessionId, reason: String) {
        let mut state = self.lock();
        let Phase::Connected { session, exchanging, .. } = &mut state.phase else { return };
        if session.id == id {
            *exchanging = false;
            state.event(ControlEventKind::ExchangeFailed { session: id, reason });
        }
    }
}
