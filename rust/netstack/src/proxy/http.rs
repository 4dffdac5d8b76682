//! CONNECT of HTTP/1.1 (RFC 9110 section 9.3.6).

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use httparse::{Header, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::counters::count;
use super::credentials::Credentials;
use super::dial::DialError;
use super::relay::relay;
use super::serve::{Client, part};
use super::shared::Shared;
use super::target::{Target, TargetError};
use crate::error::{ConnectError, StreamError};

/// The longest head of a request.
const MAX_HEAD: usize = 16 << 10;
const MAX_FIELDS: usize = 64;

/// For a client that there is no room for.
pub(super) const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

const CONNECTED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    BadRequest,
    MethodNotAllowed,
    ProxyAuthenticationRequired,
    FieldsTooLarge,
    BadGateway,
    Unavailable,
    GatewayTimeout,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::BadRequest => "400 Bad Request",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::ProxyAuthenticationRequired => "407 Proxy Authentication Required",
            Status::FieldsTooLarge => "431 Request Header Fields Too Large",
            Status::BadGateway => "502 Bad Gateway",
            Status::Unavailable => "503 Service Unavailable",
            Status::GatewayTimeout => "504 Gateway Timeout",
        }
    }

    /// The field that the status asks for (RFC 9110 sections 15.5.6 and 15.5.8).
    fn field(self) -> &'static str {
        match self {
            Status::MethodNotAllowed => "Allow: CONNECT\r\n",
            Status::ProxyAuthenticationRequired => "Proxy-Authenticate: Basic realm=\"icx\", charset=\"UTF-8\"\r\n",
            _ => "",
        }
    }
}

/// Why a request is refused, and in which words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: Status,
    reason: String,
}

impl Refusal {
    fn new(status: Status, reason: impl Into<String>) -> Self {
        Refusal { status, reason: reason.into() }
    }

    pub(super) fn response(&self) -> String {
        let Refusal { status, reason } = self;
        let (line, field, length) = (status.line(), status.field(), reason.len() + 1);
        format!(
            "HTTP/1.1 {line}\r\n{field}Connection: close\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{reason}\n"
        )
    }
}

impl From<TargetError> for Refusal {
    fn from(error: TargetError) -> Self {
        Refusal::new(Status::BadRequest, error.to_string())
    }
}

impl From<&DialError> for Refusal {
    fn from(error: &DialError) -> Self {
        let status = match error {
            DialError::ResolveTimedOut(_) | DialError::Stream(StreamError::TimedOut) => Status::GatewayTimeout,
            DialError::Connect(ConnectError::PortsExhausted(_) | ConnectError::TooMany(_) | ConnectError::Closed)
            | DialError::Stream(StreamError::StackClosed) => Status::Unavailable,
            DialError::Connect(_) | DialError::Stream(_) | DialError::Unresolved(_) | DialError::ClientGone => {
                Status::BadGateway
            }
        };
        Refusal::new(status, error.to_string())
    }
}

pub(super) async fn serve(shared: &Arc<Shared>, credentials: Option<&Credentials>, client: Client) {
    let Client { mut stream, address, service } = client;
    let tally = &shared.tally;
    let mut buffer = Vec::new();
    let head = match timeout(shared.handshake_timeout, read_head(&mut stream, &mut buffer)).await {
        Ok(Some(head)) => head,
        Ok(None) => return count(&tally.refused_malformed, 1),
        Err(_) => return count(&tally.refused_slow, 1),
    };
    let request = head.and_then(|len| Ok((check(&buffer[..len], credentials)?, len)));
    let (target, len) = match request {
        Ok(request) => request,
        Err(refusal) => {
            match refusal.status {
                Status::ProxyAuthenticationRequired => shared.authentication_failed(service, address),
                Status::MethodNotAllowed => count(&tally.refused_unsupported, 1),
                _ => count(&tally.refused_malformed, 1),
            }
            return refuse(stream, &refusal).await;
        }
    };
    match shared.dial(&stream, &target).await {
        Ok(tunnel) => {
            if stream.write_all(CONNECTED).await.is_ok() {
                relay(stream, tunnel, &buffer[len..], tally).await;
            }
        }
        Err(error) => refuse(stream, &Refusal::from(&error)).await,
    }
}

async fn refuse(mut stream: TcpStream, refusal: &Refusal) {
    // Whoever has left hears nothing.
    if stream.write_all(refusal.response().as_bytes()).await.is_ok() {
        part(&stream).await;
    }
}

/// Reads until the end of a head, and says how long that is. None: the client has left before.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Result<usize, Refusal>> {
    let mut searched = 0;
    loop {
        if let Some(len) = end_of_head(buffer, searched) {
            return Some(Ok(len));
        }
        searched = buffer.len();
        if searched >= MAX_HEAD {
            let reason = format!("the head of a request has at most {MAX_HEAD} bytes");
            return Some(Err(Refusal::new(Status::FieldsTooLarge, reason)));
        }
        let room = (MAX_HEAD - searched) as u64;
        if stream.take(room).read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// Where the empty line is that ends a head, of which the first `searched` bytes have been looked through. A line may end without
/// CR (RFC 9112 section 2.2).
pub(super) fn end_of_head(buffer: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(3);
    let ends = |at: usize| buffer[at..].starts_with(b"\n\n") || buffer[at..].starts_with(b"\n\r\n");
    let at = (from..buffer.len()).find(|&at| ends(at))?;
    Some(at + if buffer[at + 1] == b'\n' { 2 } else { 3 })
}

/// Where a request with this head wants to go.
pub(super) fn check(head: &[u8], credentials: Option<&Credentials>) -> Result<Target, Refusal> {
    let malformed = |reason: &str| Refusal::new(Status::BadRequest, reason);
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(malformed("the head of the request is empty")),
        Err(httparse::Error::TooManyHeaders) => {
            let reason = format!("a request has at most {MAX_FIELDS} fields");
            return Err(Refusal::new(Status::FieldsTooLarge, reason));
        }
        Err(error) => return Err(malformed(&format!("the request is malformed: {error}"))),
    }
    let fields = &*request.headers;
    if let Some(credentials) = credentials
        && !is_admitted(fields, credentials)
    {
        let reason = "a user and password that this proxy knows are needed";
        return Err(Refusal::new(Status::ProxyAuthenticationRequired, reason));
    }
    if request.method != Some("CONNECT") {
        return Err(Refusal::new(Status::MethodNotAllowed, "this proxy knows CONNECT only"));
    }
    // RFC 9112 section 3.2.
    if request.version == Some(1) && all(fields, "Host").count() != 1 {
        return Err(malformed("a request has one Host field"));
    }
    // RFC 9110 section 9.3.6: CONNECT has no content. What follows the head is for the target.
    if all(fields, "Transfer-Encoding").next().is_some() || all(fields, "Content-Length").any(|length| length != b"0") {
        return Err(malformed("a CONNECT request has no content"));
    }
    Ok(request.path.unwrap_or_default().parse()?)
}

fn all<'a>(fields: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// RFC 7617 section 2.
fn is_admitted(fields: &[Header<'_>], credentials: &Credentials) -> bool {
    let mut given = all(fields, "Proxy-Authorization");
    let (Some(value), None) = (given.next(), given.next()) else { return false };
    let Some((scheme, encoded)) = value.iter().position(|&byte| byte == b' ').map(|at| value.split_at(at)) else {
        return false;
    };
    if !scheme.eq_ignore_ascii_case(b"Basic") {
        return false;
    }
    let Ok(decoded) = BASE64_STANDARD.decode(encoded.trim_ascii()) else { return false };
    let Some(colon) = decoded.iter().position(|&byte| byte == b':') else { return false };
    credentials.admit(&decoded[..colon], &decoded[colon + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "Host: x\r\n";

    fn status(head: &str, credentials: Option<&Credentials>) -> Result<String, Status> {
        check(head.as_bytes(), credentials).map(|target| target.to_string()).map_err(|refusal| refusal.status)
    }

    #[test]
    fn requests_are_connect_to_a_host_and_port() {
        let many: String = (0..=MAX_FIELDS).map(|number| format!("a{number}: b\r\n")).collect();
        for (line, fields, expected) in [
            ("CONNECT example.org:443 HTTP/1.1", HOST, Ok("example.org:443")),
            ("CONNECT [2001:db8::1]:443 HTTP/1.1", HOST, Ok("[2001:db8::1]:443")),
            ("CONNECT 192.0.2.1:80 HTTP/1.0", "", Ok("192.0.2.1:80")),
            ("CONNECT a:1 HTTP/1.1", "hOST: x\r\nContent-Length: 0\r\n", Ok("a:1")),
            ("CONNECT a:1 HTTP/1.1", "", Err(Status::BadRequest)),
            ("CONNECT a:1 HTTP/1.1", "Host: x\r\nHost: x\r\n", Err(Status::BadRequest)),
            ("CONNECT a:1 HTTP/1.1", "Host: x\r\nContent-Length: 3\r\n", Err(Status::BadRequest)),
            ("CONNECT a:1 HTTP/1.1", "Host: x\r\nTransfer-Encoding: chunked\r\n", Err(Status::BadRequest)),
            ("CONNECT a:1 HTTP/1.1", "Host : x\r\n", Err(Status::BadRequest)),
            ("CONNECT a:1 HTTP/1.1", "Host\r\n", Err(Status::BadRequest)),
            ("CONNECT a:1 HTTP/1.1", &many, Err(Status::FieldsTooLarge)),
            ("CONNECT a HTTP/1.1", HOST, Err(Status::BadRequest)),
            ("CONNECT a:0 HTTP/1.1", HOST, Err(Status::BadRequest)),
            ("CONNECT http://a:1/ HTTP/1.1", HOST, Err(Status::BadRequest)),
            ("CONNECT u@a:1 HTTP/1.1", HOST, Err(Status::BadRequest)),
            ("CONNECT a:1 HTTP/2.0", HOST, Err(Status::BadRequest)),
            ("CONNECT a:1", HOST, Err(Status::BadRequest)),
            ("connect a:1 HTTP/1.1", HOST, Err(Status::MethodNotAllowed)),
            ("GET http://a/ HTTP/1.1", HOST, Err(Status::MethodNotAllowed)),
            ("", "", Err(Status::BadRequest)),
            ("\0", "", Err(Status::BadRequest)),
        ] {
            let head = format!("{line}\r\n{fields}\r\n");
            assert_eq!(status(&head, None), expected.map(str::to_owned), "{head:?}");
        }
    }

    #[test]
    fn users_are_admitted_by_basic_authentication() {
        let credentials = Credentials::parse("ann:se:cret").unwrap();
        let denied = Err(Status::ProxyAuthenticationRequired);
        let good = BASE64_STANDARD.encode("ann:se:cret");
        let field = |value: &str| format!("Proxy-Authorization: {value}\r\n");
        for (fields, expected) in [
            (field(&format!("Basic {good}")), Ok("a:1".to_owned())),
            (field(&format!("bASIC  {good}")), Ok("a:1".to_owned())),
            (String::new(), denied.clone()),
            (field("Basic"), denied.clone()),
            (field("Basic ="), denied.clone()),
            (field(&format!("Bearer {good}")), denied.clone()),
            (field(&format!("Basic {}", BASE64_STANDARD.encode("ann:secret"))), denied.clone()),
            (field(&format!("Basic {}", BASE64_STANDARD.encode("annse"))), denied.clone()),
            (field(&format!("Basic {good}")).repeat(2), denied.clone()),
            (format!("Authorization: Basic {good}\r\n"), denied.clone()),
        ] {
            let head = format!("CONNECT a:1 HTTP/1.1\r\n{HOST}{fields}\r\n");
            assert_eq!(status(&head, Some(&credentials)), expected, "{head:?}");
        }
        // Whoever is not known is told nothing else.
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n", Some(&credentials)), denied);
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        for (bytes, expected) in [
            ("a\r\nb\r\n\r\nrest", Some(8)),
            ("a\nb\n\nrest", Some(5)),
            ("a\r\nb\n\r\nrest", Some(7)),
            ("\r\n\r\n", Some(4)),
            ("a\r\nb\r\n\r", None),
            ("", None),
        ] {
            let bytes = bytes.as_bytes();
            assert_eq!(end_of_head(bytes, 0), expected, "{bytes:?}");
            // However it comes in pieces.
            for cut in 0..expected.unwrap_or(0) {
                assert_eq!(end_of_head(&bytes[..cut], 0), None);
                assert_eq!(end_of_head(bytes, cut), expected, "{bytes:?} after {cut}");
            }
        }
    }

    #[test]
    fn a_refusal_says_what_was_wrong_and_what_is_allowed() {
        for (status, field) in [
            (Status::MethodNotAllowed, "\r\nAllow: CONNECT\r\n"),
            (Status::ProxyAuthenticationRequired, "\r\nProxy-Authenticate: Basic realm="),
            (Status::BadGateway, "\r\nConnection: close\r\n"),
        ] {
            let response = Refusal::new(status, "why").response();
            assert!(response.contains(field) && response.ends_with("Content-Length: 4\r\n\r\nwhy\n"), "{response}");
        }
    }
}
