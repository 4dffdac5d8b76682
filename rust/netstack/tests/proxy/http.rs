//! Clients of the HTTP proxy.

use std::io::{Read, Write};
use std::net::TcpStream;

use icx_netstack::proxy::{Credentials, Protocol, ProxyOptions, Service};

use crate::clients::{assert_echoes, connect, echo, read_rest, reverse, server};
use crate::nodes::{Served, loopback};
use crate::tunnel::{FAR_V4, FAR_V6, Pair};

const CONNECTED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

fn http(credentials: Option<Credentials>) -> Service {
    Service::HttpConnect { listen: loopback(), credentials, danger_open: false }
}

fn request(served: &Served, target: &str, fields: &str) -> TcpStream {
    let mut stream = connect(served.host(0));
    write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{fields}\r\n").unwrap();
    stream
}

/// Reads the answer to a request that is granted.
fn granted(mut stream: TcpStream) -> TcpStream {
    let mut answer = vec![0; CONNECTED.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, CONNECTED, "{}", String::from_utf8_lossy(&answer));
    stream
}

/// Reads the whole answer to one that is not: its status, and its fields.
fn refused(mut stream: TcpStream) -> (u16, String) {
    let answer = String::from_utf8(read_rest(&mut stream)).unwrap();
    let status =
        answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or_else(|| panic!("{answer:?}"));
    (status.parse().unwrap(), answer)
}

#[test]
fn connect_reaches_hosts_in_the_tunnel() {
    let pair = Pair::new();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Tcp, server(echo))]);
    let near = Served::new(&pair.near, vec![http(None)]);
    for host in [FAR_V4.to_owned(), format!("[{FAR_V6}]")] {
        let mut stream = granted(request(&near, &format!("{host}:{}", far.port(0)), ""));
        assert_echoes(&mut stream, host.as_bytes());
    }
    near.expect("clients", 0);
}

#[test]
fn what_follows_the_head_at_once_is_for_the_target() {
    let pair = Pair::new();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Tcp, server(echo))]);
    let near = Served::new(&pair.near, vec![http(None)]);
    let target = format!("{FAR_V4}:{}", far.port(0));
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    let early = vec![0x5a; 10_000];
    let mut stream = connect(near.host(0));
    stream.write_all(&[head.as_bytes(), &early].concat()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_rest(&mut granted(stream)), early);
    // A head that comes byte by byte.
    let mut stream = connect(near.host(0));
    for byte in head.bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    assert_echoes(&mut granted(stream), b"slowly");
}

#[test]
fn each_failure_has_its_status() {
    let pair = Pair::with(|mut options| {
        options.max_connections = 1;
        options.connect_timeout = std::time::Duration::from_millis(300);
        options
    });
    let far = Served::new(&pair.far, vec![reverse(Protocol::Tcp, server(echo))]);
    let near = Served::new(&pair.near, vec![http(None)]);
    let status = |target: &str, fields: &str| refused(request(&near, target, fields)).0;
    assert_eq!(status(&format!("{FAR_V4}:9"), ""), 502);
    assert_eq!(status("host.invalid:80", ""), 502);
    assert_eq!(status("10.9.0.1:80", ""), 502);
    // Nobody has that address, and so nobody answers.
    assert_eq!(status("10.9.0.99:80", ""), 504);
    assert_eq!(status(&format!("{FAR_V4}:0"), ""), 400);
    assert_eq!(status(&format!("{FAR_V4}:80"), &format!("X: {}\r\n", "x".repeat(17_000))), 431);
    let taken = granted(request(&near, &format!("{FAR_V4}:{}", far.port(0)), ""));
    assert_eq!(status(&format!("{FAR_V4}:{}", far.port(0)), ""), 503);
    drop(taken);
    let mut stream = connect(near.host(0));
    stream.write_all(b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n").unwrap();
    let (status, answer) = refused(stream);
    assert_eq!(status, 405);
    assert!(answer.contains("\r\nAllow: CONNECT\r\n"), "{answer}");
    let counters = near.proxies.counters();
    assert_eq!([counters.refused_malformed, counters.refused_unsupported], [2, 1]);
}

#[test]
fn only_known_users_are_served() {
    let pair = Pair::new();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Tcp, server(echo))]);
    let near = Served::new(&pair.near, vec![http(Some(Credentials::parse("ann:secret").unwrap()))]);
    let target = format!("{FAR_V4}:{}", far.port(0));
    let mut stream = granted(request(&near, &target, "Proxy-Authorization: Basic YW5uOnNlY3JldA==\r\n"));
    assert_echoes(&mut stream, b"let in");
    for fields in ["", "Proxy-Authorization: Basic YW5uOm90aGVy\r\n"] {
        let (status, answer) = refused(request(&near, &target, fields));
        assert_eq!(status, 407);
        assert!(answer.contains("\r\nProxy-Authenticate: Basic realm="), "{answer}");
    }
    near.expect("auth_failures", 2);
}

#[test]
fn more_clients_than_there_may_be_are_told_so() {
    let pair = Pair::new();
    let mut options = ProxyOptions::new(vec![http(None)]);
    options.max_clients = 2;
    let near = Served::start(&pair.near, options).unwrap();
    let first = [connect(near.host(0)), connect(near.host(0))];
    near.expect("clients", 2);
    assert_eq!(refused(connect(near.host(0))).0, 503);
    near.expect("refused_full", 1);
    drop(first);
    near.expect("clients", 0);
    assert_eq!(refused(request(&near, "10.9.0.2:9", "")).0, 502);
}
