//! What the tasks of an endpoint share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, ServerConfig, TransportConfig};

use crate::event::ControlEvent;
use crate::exchange::{Exchange, STREAM_TIMEOUT, drain_answered};
use crate::load::Load;
use crate::peer::{Peer, SessionEnd};
use crate::public_key::PublicKey;
use crate::reason;
use crate::registry::Registry;
use crate::rejections::{Rejections, Report};
use crate::session::{CloseCode, Session};
use crate::tls::{Pinned, TlsError, TlsFactory, Verifier};
use crate::{Clock, EventSink};

pub(crate) struct Shared {
    pub(crate) own_key: PublicKey,
    pub(crate) clock: Clock,
    pub(crate) registry: Arc<Registry>,
    sink: EventSink,
    tls: TlsFactory,
    /// Every incoming connection's configuration but for TLS; holds the key of Retry tokens.
    server: ServerConfig,
    client_transport: Arc<TransportConfig>,
    rejections: Rejections,
    pub(crate) load: Arc<Load>,
    /// Set once the owner has asked for the end: nothing is told any more.
    closing: AtomicBool,
}

impl Shared {
    pub(crate) fn new(
        own_key: PublicKey,
        clock: Clock,
        sink: EventSink,
        tls: TlsFactory,
        server: ServerConfig,
        client_transport: Arc<TransportConfig>,
    ) -> Self {
        Shared {
            own_key,
            clock,
            registry: Arc::default(),
            sink,
            tls,
            server,
            client_transport,
            rejections: Rejections::default(),
            load: Arc::default(),
            closing: AtomicBool::new(false),
        }
    }

    /// For one connection to `peer`.
    pub(crate) fn client_config(&self, peer: &PublicKey) -> Result<(quinn::ClientConfig, Arc<Verifier>), TlsError> {
        let (tls, verifier): (QuicClientConfig, _) = self.tls.client(Arc::new(Pinned(peer.clone())))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::clone(&self.client_transport));
        config.token_store(Arc::new(quinn::NoneTokenStore));
        Ok((config, verifier))
    }

    /// For one incoming connection.
    pub(crate) fn server_config(&self) -> Result<(Arc<ServerConfig>, Arc<Verifier>), TlsError> {
        let (tls, verifier) = self.tls.server(Arc::clone(&self.registry) as _)?;
        let mut config = self.server.clone();
        config.crypto = Arc::new(tls);
        Ok((Arc::new(config), verifier))
    }

    // ---- events; only the runtime thread calls these ----

    /// Delivers what the peer's transitions have produced.
    pub(crate) fn deliver(&self, peer: &Peer) {
        while let Some(kind) = peer.next_event() {
            self.tell(ControlEvent { peer: Some(peer.id), kind });
        }
    }

    /// Tells that a stranger was turned away, now or when the last such report is old enough.
    pub(crate) fn reject(self: &Arc<Self>, remote: SocketAddr, reason: String) {
        match self.rejections.record(Instant::now(), remote, reason) {
            Report::Now(kind) => self.tell(ControlEvent { peer: None, kind }),
            Report::Pending => {}
            Report::At(at) => {
                let shared = Arc::clone(self);
                tokio::spawn(async move {
                    tokio::time::sleep_until(at.into()).await;
                    if let Some(kind) = shared.rejections.flush(Instant::now()) {
                        shared.tell(ControlEvent { peer: None, kind });
                    }
                });
            }
        }
    }

    fn tell(&self, event: ControlEvent) {
        if !self.closing.load(Ordering::Acquire) {
            (self.sink)(event);
        }
    }

    /// No event is delivered after this, except one that is being delivered.
    pub(crate) fn silence(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    // ---- sessions ----

    /// Watches a session until it ends, answering the streams that the peer opens.
    pub(crate) async fn serve(self: Arc<Self>, peer: Arc<Peer>, session: Arc<Session>) {
        let error = loop {
            match session.connection.accept_bi().await {
                Ok((send, recv)) => {
                    let (shared, peer, session) = (Arc::clone(&self), Arc::clone(&peer), Arc::clone(&session));
                    tokio::spawn(async move { shared.respond(&peer, &session, send, recv).await });
                }
                Err(error) => break error,
            }
        };
        let end = match &error {
            ConnectionError::Reset => SessionEnd::Reset,
            ConnectionError::ApplicationClosed(close) if CloseCode::Superseded.is(close) => SessionEnd::Superseded,
            _ => SessionEnd::Other,
        };
        peer.session_ended(session.id, &reason::session_end(&error), end);
        self.deliver(&peer);
    }

    /// Answers one exchange. When it fails, the session ends: both sides start anew with a handshake.
    async fn respond(&self, peer: &Peer, session: &Session, send: quinn::SendStream, recv: quinn::RecvStream) {
        let deadline = tokio::time::Instant::now() + STREAM_TIMEOUT;
        let exchange = Exchange { session, peer, clock: &self.clock };
        match exchange.respond(send, recv, deadline).await {
            Ok((exchanged, recv)) => {
                peer.exchange_done(session.id, exchanged.rx_spi, exchanged.tx_spi);
                self.deliver(peer);
                drain_answered(session, recv, deadline).await;
            }
            Err(error) => {
                session.close(CloseCode::ExchangeFailed);
                peer.exchange_failed(session.id, error.to_string());
                peer.session_ended(session.id, &format!("an exchange failed: {error}"), SessionEnd::Other);
                self.deliver(peer);
            }
        }
    }

    /// Runs the exchange that `begin_exchange` allowed. When it fails, the session is left to the owner.
    pub(crate) async fn initiate(&self, peer: &Peer, session: &Session, timeout: core::time::Duration) {
        let exchange = Exchange { session, peer, clock: &self.clock };
        match exchange.initiate(timeout).await {
            Ok((exchanged, recv)) => {
                peer.exchange_done(session.id, exchanged.rx_spi, exchanged.tx_spi);
                self.deliver(peer);
                drain_answered(session, recv, tokio::time::Instant::now() + STREAM_TIMEOUT).await;
            }
            Err(error) => {
                peer.exchange_failed(session.id, error.to_string());
                self.deliver(peer);
            }
        }
    }
}
