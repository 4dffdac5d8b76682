//! The responder's side of handshakes. Whatever one connection does, the next is received.

use core::time::Duration;
use std::sync::Arc;

use quinn::{Connecting, Connection, ConnectionError, Incoming};
use tokio::time::timeout;

use crate::load::Decision;
use crate::peer::Peer;
use crate::reason;
use crate::role::Role;
use crate::session::{CloseCode, Secrets, Session, canonical};
use crate::shared::Shared;
use crate::tls::{self, Verifier};

/// How long a handshake may make no progress. It has two steps: the client's hello, and its certificate and signature.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an incoming handshake led to no session.
#[derive(Debug, thiserror::Error)]
enum Rejected {
    #[error("{0}")]
    Handshake(String),
    #[error("the handshake made no progress for {} s", STEP_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Flaw(#[from] tls::HandshakeFlaw),
    #[error("the peer was removed while its handshake was under way")]
    Removed,
    #[error("the peer starts sessions too fast: a newer one takes the turn of this one")]
    Overtaken,
    #[error("the peer closed the connection as soon as it was made")]
    Gone,
    /// A client that dials more than once at a time goes on with the handshake that is answered first.
    #[error("the peer gave up the handshake before it showed its key")]
    Withdrawn,
    #[error(transparent)]
    Secrets(#[from] crate::session::SecretsError),
}

/// Takes one connection attempt: decides at once, and handshakes in the background.
pub(crate) fn receive(shared: &Arc<Shared>, incoming: Incoming) {
    let remote = canonical(incoming.remote_address());
    // Counted from here on: the handshake's task may start only after many more have come in.
    let place = match shared.load.decide(remote.ip(), incoming.remote_address_validated()) {
        Decision::Accept(place) => place,
        Decision::Retry => {
            // Only an address that is validated already cannot be asked to retry.
            let _ = incoming.retry();
            return;
        }
        Decision::Refuse(overload) => {
            incoming.refuse();
            return shared.reject(remote, overload.to_string());
        }
    };
    let (config, verifier) = match shared.server_config() {
        Ok(config) => config,
        Err(error) => {
            incoming.refuse();
            return shared.reject(remote, error.to_string());
        }
    };
    match incoming.accept_with(config) {
        Ok(connecting) => {
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                let outcome = handshake(&shared, connecting, &verifier).await;
                drop(place);
                match outcome {
                    Ok((peer, session)) => {
                        shared.deliver(&peer);
                        shared.serve(peer, session).await;
                    }
                    // Nobody was turned away.
                    Err(Rejected::Withdrawn) => {}
                    Err(rejected) if !shared.is_closing() => shared.reject(remote, rejected.to_string()),
                    Err(_) => {}
                }
            });
        }
        Err(error) if reason::is_withdrawal(&error) => {}
        Err(error) => shared.reject(remote, reason::rejection(&error, verifier.shown())),
    }
}

async fn handshake(
    shared: &Shared,
    mut connecting: Connecting,
    verifier: &Verifier,
) -> Result<(Arc<Peer>, Arc<Session>), Rejected> {
    let explain = |e: ConnectionError| {
        if verifier.shown().is_none() && reason::is_withdrawal(&e) {
            return Rejected::Withdrawn;
        }
        Rejected::Handshake(reason::rejection(&e, verifier.shown()))
    };
    timeout(STEP_TIMEOUT, connecting.handshake_data()).await.map_err(|_| Rejected::Timeout)?.map_err(explain)?;
    // On this side the handshake is finished only when the client is authenticated.
    let connection = timeout(STEP_TIMEOUT, connecting).await.map_err(|_| Rejected::Timeout)?.map_err(explain)?;
    admit(shared, &connection, verifier).await.inspect_err(|rejected| {
        let code = match rejected {
            Rejected::Overtaken => CloseCode::Superseded,
            _ => CloseCode::BadHandshake,
        };
        connection.close(code.code(), code.text());
    })
}

async fn admit(
    shared: &Shared,
    connection: &Connection,
    verifier: &Verifier,
) -> Result<(Arc<Peer>, Arc<Session>), Rejected> {
    let key = tls::inspect(connection, verifier)?;
    let peer = shared.registry.dialing_peer(&key).ok_or(Rejected::Removed)?;
    if !peer.session_turn().await {
        let registered = shared.registry.dialing_peer(&key).is_some();
        return Err(if registered { Rejected::Overtaken } else { Rejected::Removed });
    }
    if connection.close_reason().is_some() {
        return Err(Rejected::Gone);
    }
    let secrets = Secrets::export(connection, Role::Responder)?;
    let session = peer
        .accepted(connection.clone(), |id, connection| Session::new(id, connection, Role::Responder, secrets))
        .ok_or(Rejected::Removed)?;
    Ok((peer, session))
}
