//! The initiator's side of a handshake.

use core::future::{Future, poll_fn};
use core::task::Poll;
use core::time::Duration;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::{Connecting, Connection, ConnectionError, Endpoint};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::event::DialFailure;
use crate::peer::{DialId, Peer};
use crate::reason;
use crate::session::{CloseCode, Secrets, Session};
use crate::shared::Shared;
use crate::tls::{self, SERVER_NAME, Verifier};

/// How long a handshake that the peer has answered may make no progress.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);

/// However short a time somebody asks for.
const LEAST_REPEAT: Duration = Duration::from_millis(100);

/// How long, and how eagerly, a dial waits for the peer's first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long the peer may leave the dial unanswered.
    pub answer: Duration,
    /// Begin another handshake beside those under way each time that so much has passed; the first that is answered goes on.
    /// QUIC repeats the packets of one handshake in doubling steps, so that a peer which is back after a while would be found
    /// late; and a fresh dial in the place of a patient one would never find a peer whose answers take long.
    pub repeat: Option<Duration>,
}

impl From<Duration> for Patience {
    /// So long with one handshake.
    fn from(answer: Duration) -> Self {
        Patience { answer, repeat: None }
    }
}

/// One dial as it was asked for.
pub(crate) struct Dial {
    pub(crate) id: DialId,
    pub(crate) remote: SocketAddr,
    pub(crate) patience: Patience,
    pub(crate) cancelled: oneshot::Receiver<()>,
}

type Failure = (DialFailure, String);

/// Dials, and if that succeeds serves the session until it ends.
pub(crate) async fn run(shared: Arc<Shared>, endpoint: Endpoint, peer: Arc<Peer>, dial: Dial) {
    let Dial { id, remote, patience, cancelled } = dial;
    let outcome = tokio::select! {
        outcome = handshake(&shared, &endpoint, &peer, remote, patience) => outcome,
        // Dropping the handshakes closes their connections.
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
    patience: Patience,
) -> Result<(Connection, Secrets), Failure> {
    check_route(remote)?;
    let local = |reason: String| (DialFailure::Local, reason);
    let begin = || {
        let (config, verifier) = shared.client_config(&peer.config.key).map_err(|e| local(e.to_string()))?;
        let connecting = endpoint
            .connect_with(config, remote, SERVER_NAME)
            .map_err(|e| local(format!("cannot dial {remote} from this control socket: {e}")))?;
        Ok(answered(connecting, verifier))
    };
    let (connecting, verifier, answer) =
        timeout(patience.answer, first_answered(begin, patience.repeat)).await.map_err(|_| {
            let seconds = patience.answer.as_secs_f32();
            let text = format!(
                "no answer from {remote} within {seconds:.1} s: is the peer running there, and UDP open on the way?"
            );
            (DialFailure::Timeout, text)
        })??;
    let explain = |e: &_| reason::dial_failure(e, remote, &peer.config.key, verifier.shown());
    answer.map_err(|e| explain(&e))?;
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

/// A handshake that the peer has answered, or that failed, and what was seen of the peer's key.
type Answered = (Connecting, Arc<Verifier>, Result<(), ConnectionError>);

async fn answered(mut connecting: Connecting, verifier: Arc<Verifier>) -> Answered {
    let answer = connecting.handshake_data().await.map(drop);
    (connecting, verifier, answer)
}

/// The first of the handshakes that `begin` starts, one at once and one more each time `repeat` has passed, to get an answer
/// or to fail. The others are closed.
async fn first_answered<F: Future>(
    begin: impl Fn() -> Result<F, Failure>,
    repeat: Option<Duration>,
) -> Result<F::Output, Failure> {
    let mut under_way = Vec::new();
    loop {
        under_way.push(Box::pin(begin()?));
        let first = poll_fn(|context| {
            let ready = under_way.iter_mut().find_map(|handshake| match handshake.as_mut().poll(context) {
                Poll::Ready(answered) => Some(answered),
                Poll::Pending => None,
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        });
        match repeat {
            None => return Ok(first.await),
            Some(repeat) => {
                if let Ok(answered) = timeout(repeat.max(LEAST_REPEAT), first).await {
                    return Ok(answered);
                }
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use super::*;

    /// The number of the handshake that gave the answer, and how many were begun. Handshake `n` takes `takes(n)`.
    fn first(repeat: Option<Duration>, takes: impl Fn(usize) -> Option<Duration>) -> (usize, usize) {
        let begun = Cell::new(0);
        let begin = || {
            let number = begun.replace(begun.get() + 1);
            let time = takes(number);
            Ok(async move {
                match time {
                    Some(time) => tokio::time::sleep(time).await,
                    None => pending().await,
                }
                number
            })
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let number = runtime.block_on(first_answered(begin, repeat)).unwrap();
        (number, begun.get())
    }

    #[test]
    fn a_handshake_whose_answer_takes_long_is_not_given_up_for_those_begun_after_it() {
        let repeat = LEAST_REPEAT;
        let (number, begun) = first(Some(repeat), |number| (number == 0).then_some(repeat * 5 / 2));
        assert_eq!(number, 0);
        assert!(begun > 1, "{begun} were begun");
    }

    #[test]
    fn of_handshakes_whose_packets_were_lost_a_later_one_is_answered() {
        let answer = |number| (number == 2).then_some(Duration::from_millis(1));
        assert_eq!(first(Some(Duration::ZERO), answer).0, 2);
    }

    #[test]
    fn without_a_repeat_there_is_one_handshake() {
        assert_eq!(first(None, |_| Some(LEAST_REPEAT * 2)), (0, 1));
    }

    #[test]
    fn what_cannot_be_begun_ends_the_dial() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let begun = Cell::new(false);
        let begin =
            || if begun.replace(true) { Err((DialFailure::Local, "no room".into())) } else { Ok(pending::<()>()) };
        let failure = runtime.block_on(first_answered(begin, Some(LEAST_REPEAT))).unwrap_err();
        assert_eq!(failure, (DialFailure::Local, "no room".into()));
        assert!(runtime.block_on(first_answered(|| Ok(ready(())), None)).is_ok());
    }
}
