//! What an endpoint tells its owner.

use core::fmt;
use std::net::SocketAddr;

use icx_proto::Spi;

/// A peer registered with an endpoint; never given out twice by one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub(crate) u32);

impl PeerId {
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The sessions of one peer, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub(crate) u32);

impl SessionId {
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something happened. `peer` is `None` where nobody registered is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlEvent {
    pub peer: Option<PeerId>,
    pub kind: ControlEventKind,
}

/// The events of one peer come in this order: each dial ends in one `SessionUp` or `DialFailed`; each session that came
/// up ends in one `SessionLost`; each exchange that was asked for ends, before its session does, in one `ExchangeDone` or
/// `ExchangeFailed`. A responder reports the exchanges that it answered. Reasons are sentences for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlEventKind {
    /// A handshake finished. The first exchange confirms it.
    SessionUp {
        remote: SocketAddr,
        session: SessionId,
    },
    /// A session ended. `superseded`: on a responder, by a newer one of the same peer; on an initiator, the peer says so of
    /// one with this node's key, which another process must have then. `reset`: the peer no longer knows it, i.e. restarted.
    SessionLost {
        session: SessionId,
        reason: String,
        superseded: bool,
        reset: bool,
    },
    DialFailed {
        reason: String,
        kind: DialFailure,
    },
    /// Both keys are installed. `exchanges` counts those of all sessions of this peer.
    ExchangeDone {
        session: SessionId,
        rx_spi: Spi,
        tx_spi: Spi,
        exchanges: u64,
    },
    ExchangeFailed {
        session: SessionId,
        reason: String,
    },
    /// Someone's handshake did not complete. The first comes at once, later ones at intervals; `count` is how many there
    /// were since the last.
    PeerRejected {
        remote: SocketAddr,
        reason: String,
        count: u64,
    },
}

/// What kind of failure ended a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DialFailure {
    /// Nothing came back, or the handshake stopped half-way.
    Timeout,
    /// The system has no way to the address.
    Unreachable,
    /// The other side answered that it takes no connection.
    Refused,
    /// One side does not accept the other's key.
    Auth,
    /// The other side does not speak this protocol.
    Protocol,
    /// This node could not even try.
    Local,
    /// This node gave the dial up.
    Cancelled,
}

impl DialFailure {
    pub const fn as_str(self) -> &'static str {
        match self {
            DialFailure::Timeout => "timeout",
            DialFailure::Unreachable => "unreachable",
            DialFailure::Refused => "refused",
            DialFailure::Auth => "auth",
            DialFailure::Protocol => "protocol",
            DialFailure::Local => "local",
            DialFailure::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
