//! What the errors of QUIC mean, in sentences for people.

use std::net::SocketAddr;

use quinn::{ConnectionError, TransportErrorCode};

use crate::event::DialFailure;
use crate::public_key::PublicKey;
use crate::session::CloseCode;
use crate::tls::Shown;

/// RFC 9000 section 20.1: CONNECTION_REFUSED.
const CONNECTION_REFUSED: u64 = 0x02;
/// RFC 9000 section 20.1: APPLICATION_ERROR, which stands for the code of an application that closes during the handshake.
const APPLICATION_ERROR: u64 = 0x0c;
/// RFC 9001 section 4.8: a TLS alert travels in the low byte.
const CRYPTO_ERROR: core::ops::RangeInclusive<u64> = 0x100..=0x1ff;
/// RFC 8446 section 6.2.
const NO_APPLICATION_PROTOCOL: u64 = 120;
/// What peers send when a certificate is not to their liking: bad_certificate to unknown_ca, access_denied,
/// certificate_required.
const CERTIFICATE_ALERTS: [u64; 9] = [42, 43, 44, 45, 46, 47, 48, 49, 116];
/// Longest piece of a peer's own words that is repeated.
const MAX_QUOTE: usize = 80;

/// Why the dial of a node with the key `expected` came to nothing.
pub(crate) fn dial_failure(
    error: &ConnectionError,
    remote: SocketAddr,
    expected: &PublicKey,
    shown: Option<&Shown>,
) -> (DialFailure, String) {
    match shown {
        Some(Shown::Untrusted(key)) => {
            let (given, wanted) = (key.fingerprint(), expected.fingerprint());
            let text = format!(
                "the node at {remote} has the key with fingerprint {given}, not the configured {wanted}: check the address \
                 and the peer key"
            );
            return (DialFailure::Auth, text);
        }
        Some(Shown::NoUsableKey) => {
            return (DialFailure::Auth, format!("the node at {remote} shows a key that is not ECDSA P-256"));
        }
        Some(Shown::Trusted(_)) | None => {}
    }
    match error {
        ConnectionError::TimedOut => (DialFailure::Timeout, format!("{remote} does not answer")),
        ConnectionError::ConnectionClosed(close) => closed_by_stack(close.error_code, remote),
        ConnectionError::ApplicationClosed(close) => (
            DialFailure::Refused,
            format!("{remote} closed the connection with code {}{}", close.error_code, quote(&close.reason)),
        ),
        ConnectionError::VersionMismatch => (DialFailure::Protocol, format!("{remote} does not speak QUIC version 1")),
        ConnectionError::TransportError(e) => {
            (DialFailure::Protocol, format!("the handshake with {remote} failed: {e}"))
        }
        ConnectionError::Reset => (DialFailure::Refused, format!("{remote} reset the connection")),
        ConnectionError::LocallyClosed => (DialFailure::Cancelled, "this node gave the dial up".into()),
        ConnectionError::CidsExhausted => (DialFailure::Local, "this node has no connection IDs left".into()),
    }
}

fn closed_by_stack(code: TransportErrorCode, remote: SocketAddr) -> (DialFailure, String) {
    match (u64::from(code), alert(code)) {
        (_, Some(NO_APPLICATION_PROTOCOL)) => (
            DialFailure::Protocol,
            format!("{remote} does not speak icx-ctrl/1: is it the control port of an icx node?"),
        ),
        (_, Some(alert)) if CERTIFICATE_ALERTS.contains(&alert) => {
            (DialFailure::Auth, format!("{remote} {}", key_refused(alert)))
        }
        (_, Some(alert)) => {
            (DialFailure::Protocol, format!("{remote} ended the handshake with TLS alert {alert} (RFC 8446 section 6)"))
        }
        (CONNECTION_REFUSED, None) => {
            (DialFailure::Refused, format!("{remote} takes no more connections at the moment"))
        }
        (code, None) => (DialFailure::Protocol, format!("{remote} ended the handshake with QUIC error {code:#x}")),
    }
}

/// Why a session ended.
pub(crate) fn session_end(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => "nothing came from the peer for 30 s".into(),
        ConnectionError::Reset => "the peer does not know the session any more: it restarted".into(),
        ConnectionError::LocallyClosed => "this node closed the session".into(),
        ConnectionError::ApplicationClosed(close) if close.error_code.into_inner() == 0 => {
            format!("the peer closed the session{}", quote(&close.reason))
        }
        ConnectionError::ApplicationClosed(close) if CloseCode::Superseded.is(close) => {
            "the peer has a newer session with this node's key: does another process use the key, too?".into()
        }
        ConnectionError::ApplicationClosed(close) => {
            format!("the peer closed the session with code {}{}", close.error_code, quote(&close.reason))
        }
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
            Some(alert) if CERTIFICATE_ALERTS.contains(&alert) => format!("the peer {}", key_refused(alert)),
            Some(alert) => format!("the peer ended the session with TLS alert {alert} (RFC 8446 section 6)"),
            None => format!("the peer's QUIC stack ended the session with error {:#x}", u64::from(close.error_code)),
        },
        ConnectionError::TransportError(e) => format!("the peer broke the QUIC protocol: {e}"),
        ConnectionError::VersionMismatch => "the peer does not speak QUIC version 1".into(),
        ConnectionError::CidsExhausted => "there are no connection IDs left".into(),
    }
}

/// Why someone's handshake towards this node came to nothing.
pub(crate) fn rejection(error: &ConnectionError, shown: Option<&Shown>) -> String {
    match shown {
        Some(Shown::Untrusted(key)) => {
            format!("the key with fingerprint {} is not that of a peer which dials this node", key.fingerprint())
        }
        Some(Shown::NoUsableKey) => "the key it shows is not ECDSA P-256".into(),
        Some(Shown::Trusted(_)) | None => match error {
            ConnectionError::TransportError(e) => format!("the handshake failed: {e}"),
            other => session_end(other),
        },
    }
}

/// Whether the other side closed the connection of its own will, and not for something that it found wrong.
pub(crate) fn is_withdrawal(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ApplicationClosed(_) => true,
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code) == APPLICATION_ERROR,
        _ => false,
    }
}

fn alert(code: TransportErrorCode) -> Option<u64> {
    let code = u64::from(code);
    CRYPTO_ERROR.contains(&code).then_some(code & 0xff)
}

fn key_refused(alert: u64) -> String {
    format!("does not accept this node's key (TLS alert {alert}): register this node's public key there")
}

/// A peer's words, if it had any, fit to be printed.
fn quote(words: &[u8]) -> String {
    if words.is_empty() {
        return String::new();
    }
    let words = &words[..words.len().min(MAX_QUOTE)];
    format!(": \"{}\"", words.escape_ascii())
}
