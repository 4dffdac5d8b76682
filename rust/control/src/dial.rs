//! The initiator's side of a handshake.

use core::time::Duration;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::{Connection, Endpoint};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::event::DialFailure;
use crate::peer::{DialId, Peer};
use crate::reason;
use crate::session::{CloseCode, Secrets, Session};
use crate::shared::Shared;
use crate::tls::{self, SERVER_NAME};

/// How long a handshake that the peer has answered may make no progress.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);

/// One dial as it was asked for.
pub(crate) struct Dial {
    pub(crate) id: DialId,
    pub(crate) remote: SocketAddr,
    /// How long the peer may leave the handshake unanswered.
    pub(crate) answer_timeout: Duration,
    pub(crate) cancelled: oneshot::Receiver<()>,
}

type Failure = (DialFailure, String);

/// Dials, and if that succeeds serves the session until it ends.
pub(crate) async fn run(shared: Arc<Shared>, endpoint: Endpoint, peer: Arc<Peer>, dial: Dial) {
    let Dial { id, remote, answer_timeout, cancelled } = dial;
    let outcome = tokio::select! {
        outcome = handshake(&shared, &endpoint, &peer, remote, answer_timeout) => outcome,
        // Dropping the handshake closes its connection.
        _ = cancelled => return,
    };
    let (connection, secrets) = match outcome {
        Ok(outcome) => outcome,
        Err((kind, reason)) => {
            peer.dial_failed(id, kind, reason);
            return shared.deliver(&peer);
        }
    };
    let role = peer.role;
    let session =
        peer.dial_succeeded(id, connection.clone(), |id, connection| Session::new(id, connection, role, secrets));
    match session {
        Some(session) => {
            shared.deliver(&peer);
            shared.serve(peer, session).await;
        }
        None => connection.close(CloseCode::Done.code(), CloseCode::Done.text()),
    }
}

async fn handshake(
    shared: &Shared,
    endpoint: &Endpoint,
    peer: &Peer,
    remote: SocketAddr,
    answer_timeout: Duration,
) -> Result<(Connection, Secrets), Failure> {
    check_route(remote)?;
    let local = |reason: String| (DialFailure::Local, reason);
    let (config, verifier) = shared.client_config(&peer.config.key).map_err(|e| local(e.to_string()))?;
    let mut connecting = endpoint
        .connect_with(config, remote, SERVER_NAME)
        .map_err(|e| local(format!("cannot dial {remote} from this control socket: {e}")))?;

    let explain = |e: &_| reason::dial_failure(e, remote, &peer.config.key, verifier.shown());
    timeout(answer_timeout, connecting.handshake_data())
        .await
        .map_err(|_| {
            let seconds = answer_timeout.as_secs_f32();
            let text = format!(
                "no answer from {remote} within {seconds:.1} s: is the peer running there, and UDP open on the way?"
            );
            (DialFailure::Timeout, text)
        })?
        .map_err(|e| explain(&e))?;
    // The server's flight is progress; after it only its acceptance of the whole is missing.
    let connection = timeout(PROGRESS_TIMEOUT, connecting)
        .await
        .map_err(|_| {
            let seconds = PROGRESS_TIMEOUT.as_secs();
            (DialFailure::Timeout, format!("the handshake with {remote} stopped half-way for {seconds} s"))
        })?
        .map_err(|e| explain(&e))?;

    let bad = |reason: String| {
        connection.close(CloseCode::BadHandshake.code(), CloseCode::BadHandshake.text());
        (DialFailure::Protocol, reason)
    };
    tls::inspect(&connection, &verifier).map_err(|e| bad(e.to_string()))?;
    let secrets = Secrets::export(&connection, peer.role).map_err(|e| bad(e.to_string()))?;
    Ok((connection, secrets))
}

/// QUIC keeps sending into the void where the system has no route, so that is asked first. Connecting a UDP socket sends
/// nothing. Without a descriptor to spare the question stays open.
fn check_route(remote: SocketAddr) -> Result<(), Failure> {
    let any = match remote {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let Ok(socket) = UdpSocket::bind(any) else { return Ok(()) };
    socket.connect(remote).map_err(|e| (DialFailure::Unreachable, format!("the system has no way to {remote}: {e}")))
}
