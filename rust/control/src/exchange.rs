//! One SA exchange: offer and answer on a bidirectional stream, keys into the engine.

use core::time::Duration;

use icx_proto::engine::{InstallError, TxSwitch};
use icx_proto::{SaKey, Spi};
use quinn::{ConnectionError, ReadExactError, RecvStream, SendStream, VarInt};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::Clock;
use crate::codec::{DecodeError, FRAME_HEADER_LEN, FrameTooLarge, Message, SaOffer, frame_len};
use crate::kdf::KdfError;
use crate::peer::Peer;
use crate::reason;
use crate::sa::{self, PairError};
use crate::session::Session;
use crate::spi::{AnnounceError, MasterIndex, SpisExhausted};
use crate::suite::Suite;
use crate::transport::MAX_STREAMS;

/// How long a responder gives a stream, from when it was opened, and an initiator the rest of one that was answered.
pub(crate) const STREAM_TIMEOUT: Duration = Duration::from_secs(10);
/// A responder seals with the new key at the latest this long after it answered.
const TX_SWITCH_DELAY: Duration = Duration::from_millis(500);
/// Bytes that are read and thrown away behind a frame before the stream is given up.
const MAX_TRAILER: usize = 64 * 1024;
/// Streams of a session whose end is awaited at a time. One less than may be open, so that with a peer which never ends its
/// streams the next can still be opened. Such a peer has to do what QUIC asks of it when a stream gives way (RFC 9000
/// section 3.5); one that does not do that either is out of streams after four exchanges, and has to connect anew.
const MAX_DRAINING: usize = MAX_STREAMS as usize - 1;

/// Point-to-point exchanges know one suite.
const SUITE: Suite = Suite::Aes128Gcm;

/// The two SPIs of a finished exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exchanged {
    pub(crate) rx_spi: Spi,
    pub(crate) tx_spi: Spi,
}

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("the peer did not complete the exchange within {:.1} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("{}", reason::session_end(.0))]
    Session(ConnectionError),
    #[error("the peer ended the stream before its message was complete")]
    EndedEarly,
    #[error("the peer abandoned the stream (QUIC code {0})")]
    Abandoned(VarInt),
    #[error("the peer sent a malformed frame: {0}")]
    Frame(#[from] FrameTooLarge),
    #[error("the peer sent something else than an SA offer: {0}")]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Kdf(#[from] KdfError),
    #[error("the peer repeats itself: {0}")]
    Announce(#[from] AnnounceError),
    #[error(transparent)]
    Spis(#[from] SpisExhausted),
    #[error("the engine did not take the keys: {0}")]
    Install(#[from] InstallError),
    #[error("the stream was closed on this side")]
    Closed,
    #[error("the session ended or was superseded before the exchange was done")]
    NotCurrent,
}

impl From<ReadExactError> for ExchangeError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => ExchangeError::EndedEarly,
            ReadExactError::ReadError(quinn::ReadError::Reset(code)) => ExchangeError::Abandoned(code),
            ReadExactError::ReadError(quinn::ReadError::ConnectionLost(e)) => ExchangeError::Session(e),
            ReadExactError::ReadError(_) => ExchangeError::Closed,
        }
    }
}

impl From<quinn::WriteError> for ExchangeError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => ExchangeError::Abandoned(code),
            quinn::WriteError::ConnectionLost(e) => ExchangeError::Session(e),
            _ => ExchangeError::Closed,
        }
    }
}

impl From<quinn::ClosedStream> for ExchangeError {
    fn from(_: quinn::ClosedStream) -> Self {
        ExchangeError::Closed
    }
}

/// A session together with where its keys go.
pub(crate) struct Exchange<'a> {
    pub(crate) session: &'a Session,
    pub(crate) peer: &'a Peer,
    pub(crate) clock: &'a Clock,
}

impl Exchange<'_> {
    /// Offers, awaits the answer, installs. The receive key is in place before the peer can use it. The stream that comes
    /// back is still to be read to its end with [`drain_answered`], so that it is over for both sides.
    pub(crate) async fn initiate(&self, timeout: Duration) -> Result<(Exchanged, RecvStream), ExchangeError> {
        let deadline = Instant::now() + timeout;
        timeout_at(deadline, self.offer()).await.map_err(|_| ExchangeError::Timeout(timeout))?
    }

    async fn offer(&self) -> Result<(Exchanged, RecvStream), ExchangeError> {
        let session = self.session;
        let (mut send, mut recv) = session.connection.open_bi().await.map_err(ExchangeError::Session)?;
        // From the offer on the peer may seal for this key whether or not its answer arrives. So the key stays even if the
        // exchange fails; the next one that succeeds supersedes it, and the engine bounds how many there are.
        let rx_spi = self.while_current(|| {
            let rx_spi = session.ledger().spis.allocate(MasterIndex::Zero)?;
            self.install_rx(rx_spi, session.masters.sa_key(rx_spi, SUITE)?)?;
            Ok(rx_spi)
        })?;
        // One write and the end at once make one STREAM frame: there are peers that retire a stream only if its end came
        // together with the last byte that they read.
        send.write_all(&SaOffer { suite: SUITE.number(), rx_spi: rx_spi.get() }.encode_framed()).await?;
        send.finish()?;

        let answer = read_offer(&mut recv).await?;
        let exchanged = self.while_current(|| {
            let keys = sa::pair(&session.masters, session.role, SUITE, rx_spi, answer.suite, answer.rx_spi)?;
            session.ledger().announced.announce(keys.tx_spi)?;
            self.install_tx(keys.tx_spi, keys.tx_key, TxSwitch::Now)?;
            self.confirm_rx(rx_spi);
            session.ledger().last_rx = Some(rx_spi);
            Ok(Exchanged { rx_spi, tx_spi: keys.tx_spi })
        })?;
        Ok((exchanged, recv))
    }

    /// Keys change on the current session only.
    fn while_current<T>(&self, action: impl FnOnce() -> Result<T, ExchangeError>) -> Result<T, ExchangeError> {
        self.peer.while_current(self.session.id, action).unwrap_or(Err(ExchangeError::NotCurrent))
    }

    /// Answers the offer on a stream that the peer opened, as soon as it is complete. The stream that comes back is still
    /// to be read to its end with [`drain_answered`].
    pub(crate) async fn respond(
        &self,
        mut send: SendStream,
        mut recv: RecvStream,
        deadline: Instant,
    ) -> Result<(Exchanged, RecvStream), ExchangeError> {
        let answer = async {
            let offer = read_offer(&mut recv).await?;
            self.peer.exchange_turn().await;
            let exchanged = self.while_current(|| self.accept_offer(offer))?;
            let answer = SaOffer { suite: SUITE.number(), rx_spi: exchanged.rx_spi.get() };
            send.write_all(&answer.encode_framed()).await?;
            send.finish()?;
            Ok::<_, ExchangeError>(exchanged)
        };
        match timeout_at(deadline, answer).await {
            Ok(exchanged) => Ok((exchanged?, recv)),
            Err(_) => Err(ExchangeError::Timeout(STREAM_TIMEOUT)),
        }
    }

    /// Installs both keys before the peer learns of the answer. The transmit key waits for the peer to show that it has
    /// its receive key, except in a session's first exchange, where the peer may have no other.
    fn accept_offer(&self, offer: SaOffer) -> Result<Exchanged, ExchangeError> {
        let session = self.session;
        let mut ledger = session.ledger();
        let rx_spi = ledger.spis.allocate(MasterIndex::Zero)?;
        let keys = sa::pair(&session.masters, session.role, SUITE, rx_spi, offer.suite, offer.rx_spi)?;
        ledger.announced.announce(keys.tx_spi)?;

        let switch = match ledger.last_rx {
            // With its next offer the peer says that the last exchange was finished on its side.
            Some(previous) => {
                self.confirm_rx(previous);
                TxSwitch::OnFirstOpen { rx_spi, deadline: (self.clock)().saturating_add(TX_SWITCH_DELAY) }
            }
            None => TxSwitch::Now,
        };
        self.install_rx(rx_spi, keys.rx_key)?;
        self.install_tx(keys.tx_spi, keys.tx_key, switch)?;
        ledger.last_rx = Some(rx_spi);
        Ok(Exchanged { rx_spi, tx_spi: keys.tx_spi })
    }

    fn install_rx(&self, spi: Spi, key: SaKey) -> Result<(), InstallError> {
        let now = (self.clock)();
        self.peer.config.engine.install_rx(
            now,
            self.peer.config.vni,
            spi,
            key,
            now.saturating_add(self.peer.config.key_lifetime),
        )
    }

    fn install_tx(&self, spi: Spi, key: SaKey, switch: TxSwitch) -> Result<(), InstallError> {
        let now = (self.clock)();
        let expires_at = now.saturating_add(self.peer.config.key_lifetime);
        self.peer.config.engine.install_tx(now, self.peer.config.vni, spi, key, expires_at, switch)
    }

    fn confirm_rx(&self, spi: Spi) {
        self.peer.config.engine.confirm_rx((self.clock)(), self.peer.config.vni, spi);
    }
}

/// Reads one frame, in however many pieces it comes, and takes it for an offer.
async fn read_offer(recv: &mut RecvStream) -> Result<SaOffer, ExchangeError> {
    let mut header = [0; FRAME_HEADER_LEN];
    recv.read_exact(&mut header).await?;
    let mut payload = vec![0; frame_len(header)?];
    recv.read_exact(&mut payload).await?;
    Ok(SaOffer::decode(&payload)?)
}

/// Reads an answered stream to its end: until `deadline`, or until so many more were answered that this one has to give
/// way.
pub(crate) async fn drain_answered(session: &Session, recv: RecvStream, deadline: Instant) {
    let (keep, gives_way) = oneshot::channel();
    {
        let draining = &mut session.ledger().draining;
        draining.retain(|other| !other.is_closed());
        while draining.len() >= MAX_DRAINING {
            draining.pop_front();
        }
        draining.push_back(keep);
    }
    tokio::select! {
        () = drain(recv, deadline) => {}
        _ = gives_way => {}
    }
}

/// Reads and forgets what comes until the stream ends. Dropped before that, quinn asks the peer to stop (RFC 9000
/// section 19.5).
async fn drain(mut recv: RecvStream, deadline: Instant) {
    let read_to_end = async {
        let mut scratch = [0; 256];
        let mut trailer = 0;
        while trailer <= MAX_TRAILER {
            match recv.read(&mut scratch).await {
                Ok(Some(len)) => trailer += len,
                Ok(None) | Err(_) => break,
            }
        }
    };
    let _ = timeout_at(deadline, read_to_end).await;
}
