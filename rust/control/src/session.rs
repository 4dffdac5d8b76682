//! An authenticated connection and the keys that come out of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::error::Unspecified;
use icx_proto::Spi;
use quinn::{ApplicationClose, Connection, VarInt};
use tokio::sync::oneshot;

use crate::event::SessionId;
use crate::kdf::{KdfError, MasterKeys, RootSecret};
use crate::role::Role;
use crate::spi::{AnnouncedSpis, SpiAllocator};
use crate::transport::RECEIVE_WINDOW;

/// QUIC application error codes with which this node closes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseCode {
    /// Nothing is wrong.
    Done = 0,
    ExchangeFailed = 1,
    Superseded = 2,
    /// The handshake finished but is not acceptable.
    BadHandshake = 3,
}

impl CloseCode {
    pub(crate) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    pub(crate) fn text(self) -> &'static [u8] {
        match self {
            CloseCode::Done => b"",
            CloseCode::ExchangeFailed => b"exchange failed",
            CloseCode::Superseded => b"superseded",
            CloseCode::BadHandshake => b"handshake not acceptable",
        }
    }

    /// Whether the other side closed with this very code and text. Other implementations have codes of their own.
    pub(crate) fn is(self, close: &ApplicationClose) -> bool {
        close.error_code == self.code() && close.reason == self.text()
    }
}

/// The secrets of a session cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretsError {
    #[error(transparent)]
    Kdf(#[from] KdfError),
    #[error("the system gave no random numbers")]
    Random(#[from] Unspecified),
}

/// What a handshake leaves behind besides the connection.
pub(crate) struct Secrets {
    masters: MasterKeys,
    spis: SpiAllocator,
}

impl Secrets {
    pub(crate) fn export(connection: &Connection, role: Role) -> Result<Self, SecretsError> {
        let masters = MasterKeys::derive(RootSecret::export(connection)?)?;
        Ok(Secrets { masters, spis: SpiAllocator::random(role)? })
    }
}

pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) connection: Connection,
    pub(crate) role: Role,
    pub(crate) masters: MasterKeys,
    ledger: Mutex<Ledger>,
}

/// What the exchanges of a session have used up.
pub(crate) struct Ledger {
    pub(crate) spis: SpiAllocator,
    pub(crate) announced: AnnouncedSpis,
    /// The receive SPI of the last finished exchange.
    pub(crate) last_rx: Option<Spi>,
    /// Answered streams whose end is still awaited, oldest first; dropping one gives its stream up.
    pub(crate) draining: VecDeque<oneshot::Sender<()>>,
}

impl Session {
    pub(crate) fn new(id: SessionId, connection: Connection, role: Role, secrets: Secrets) -> Self {
        let Secrets { masters, spis } = secrets;
        let ledger = Ledger { spis, announced: AnnouncedSpis::default(), last_rx: None, draining: VecDeque::new() };
        Session { id, connection, role, masters, ledger: Mutex::new(ledger) }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn close(&self, code: CloseCode) {
        self.connection.close(code.code(), code.text());
    }

    /// Makes the peer acknowledge something now, or its QUIC stack answer with a stateless reset. quinn has no ping; a
    /// window that shrinks by one byte and grows again sends a MAX_DATA frame (RFC 9000 section 19.9), which the peer has
    /// to acknowledge and which is sent again until it does. The limit it announces is one byte higher each time.
    pub(crate) fn probe(&self) {
        self.connection.set_receive_window(VarInt::from_u32(RECEIVE_WINDOW - 1));
        self.connection.set_receive_window(VarInt::from_u32(RECEIVE_WINDOW));
    }
}

/// An address as people write it: not IPv4-mapped, as a dual-stack socket shows it.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
