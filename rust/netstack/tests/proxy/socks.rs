//! SOCKS5 clients.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};

use icx_netstack::Stack;
use icx_netstack::proxy::{Credentials, NameResolution, Protocol, ProxyNotice, ProxyOptions, Service};

use crate::clients::{
    Socks, assert_echoes, connect, datagram_echo, datagrams, echo, read, read_address, read_rest, reverse, server,
    socks_address,
};
use crate::nodes::{LIVENESS, Served, loopback};
use crate::tunnel::{FAR_V4, FAR_V6, Pair};

fn socks(credentials: Option<Credentials>) -> Service {
    Service::Socks5 { listen: loopback(), credentials, danger_open: false }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => thread::park(),
        }
    }
}

/// A name server on a stack: `v4.test` and `v6.test` have an address of one family each, and nothing else has one.
fn name_server(stack: &Stack) {
    let socket = stack.bind_datagram(53).unwrap();
    thread::spawn(move || {
        block_on(async {
            let mut query = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut query).await {
                socket.send_to(&answer(&query[..len]), from).await.unwrap();
            }
        });
    });
}

/// RFC 1035 section 4.
fn answer(query: &[u8]) -> Vec<u8> {
    let question = &query[12..];
    let name_len = question.iter().position(|&byte| byte == 0).unwrap() + 1;
    let (name, kind) = (&question[..name_len], u16::from_be_bytes([question[name_len], question[name_len + 1]]));
    let address = match (name, kind) {
        (b"\x02v4\x04test\0", 1) => Some(FAR_V4.parse::<IpAddr>().unwrap()),
        (b"\x02v6\x04test\0", 28) => Some(FAR_V6.parse().unwrap()),
        _ => None,
    };
    let code = if address.is_some() { 0 } else { 3 };
    let mut reply = [&query[..2], &[0x81, 0x80 | code, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]].concat();
    reply.extend(&question[..name_len + 4]);
    if let Some(address) = address {
        let octets = match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        reply.extend([0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 60, 0, octets.len() as u8]);
        reply.extend(octets);
    }
    reply
}

fn named_pair() -> Pair {
    let pair = Pair::with(|mut options| {
        options.name_servers = vec![FAR_V4.parse().unwrap()];
        options
    });
    name_server(&pair.far);
    pair
}

fn in_tunnel(services: Vec<Service>) -> ProxyOptions {
    let mut options = ProxyOptions::new(services);
    options.name_resolution = NameResolution::Tunnel;
    options
}

#[test]
fn addresses_and_names_are_connected_to() {
    let pair = named_pair();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Tcp, server(echo))]);
    let near = Served::start(&pair.near, in_tunnel(vec![socks(None)])).unwrap();
    let client = Socks { served: &near, user: None };
    for host in [FAR_V4, FAR_V6, "v4.test", "v6.test", "v4.test."] {
        let (mut stream, code, bound) = client.request(1, &socks_address(host, far.port(0)));
        assert_eq!(code, 0, "{host}");
        let own: &[&str] = &["10.9.0.1", "fd00::1"];
        assert!(own.iter().any(|own| bound.ip() == own.parse::<IpAddr>().unwrap()), "{bound}");
        assert_ne!(bound.port(), 0);
        assert_echoes(&mut stream, host.as_bytes());
    }
    // An address that is written as a name.
    let name = [&[3, FAR_V4.len() as u8], FAR_V4.as_bytes(), &far.port(0).to_be_bytes()].concat();
    assert_echoes(&mut client.connect(&name), b"literal");
    near.expect("clients_total", 6);
    near.expect("clients", 0);
}

#[test]
fn this_host_resolves_names_unless_told_otherwise() {
    let pair = Pair::new();
    let near = Served::new(&pair.near, vec![socks(None)]);
    let client = Socks { served: &near, user: None };
    // It has an address, which is not in the tunnel; the other has none.
    let (_, code, _) = client.request(1, &socks_address("host.invalid", 1));
    assert_eq!(code, 4);
    near.expect("names_failed", 1);
}

#[test]
fn each_failure_has_its_reply() {
    let pair = named_pair();
    let near = Served::start(&pair.near, in_tunnel(vec![socks(None)])).unwrap();
    let client = Socks { served: &near, user: None };
    for (name, command, address, expected) in [
        ("nobody listens", 1, socks_address(FAR_V4, 9), 5),
        ("nobody listens on IPv6", 1, socks_address(FAR_V6, 9), 5),
        ("the own address", 1, socks_address("10.9.0.1", 9), 2),
        ("no port", 1, socks_address(FAR_V4, 0), 1),
        ("no unicast address", 1, socks_address("224.0.0.1", 9), 1),
        ("no such name", 1, socks_address("none.test", 9), 4),
        ("no name", 1, socks_address("a b", 9), 1),
        ("BIND", 2, socks_address(FAR_V4, 9), 7),
        ("a command that is not defined", 9, socks_address(FAR_V4, 9), 7),
        ("a kind of address that is not defined", 1, vec![2, 0, 0, 0, 0, 0, 0], 8),
    ] {
        let (mut stream, code, bound) = client.request(command, &address);
        assert_eq!(code, expected, "{name}");
        assert_eq!(bound, SocketAddr::from(([0; 4], 0)), "{name}");
        assert_eq!(read_rest(&mut stream), b"", "{name}");
    }
    let counters = near.proxies.counters();
    assert_eq!([counters.connect_failures, counters.names_failed], [5, 1]);
    assert_eq!([counters.refused_unsupported, counters.refused_malformed], [3, 1]);

    let v4_only = Pair::with(|mut options| {
        options.addresses.truncate(1);
        options.max_connections = 1;
        options
    });
    let near = Served::new(&v4_only.near, vec![socks(None)]);
    let client = Socks { served: &near, user: None };
    assert_eq!(client.request(1, &socks_address(FAR_V6, 9)).1, 3);
    let far = Served::new(&v4_only.far, vec![reverse(Protocol::Tcp, server(echo))]);
    let _taken = client.connect(&socks_address(FAR_V4, far.port(0)));
    assert_eq!(client.request(1, &socks_address(FAR_V4, far.port(0))).1, 1);
}

#[test]
fn only_known_users_are_served() {
    let pair = Pair::new();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Tcp, server(echo))]);
    let near = Served::new(&pair.near, vec![socks(Some(Credentials::parse("ann:secret\nbob:other").unwrap()))]);
    let long = "x".repeat(255);
    for user in [("ann", "secret"), ("bob", "other")] {
        let client = Socks { served: &near, user: Some(user) };
        assert_echoes(&mut client.connect(&socks_address(FAR_V4, far.port(0))), b"let in");
    }
    let refused = [("ann", "other"), ("ann", ""), ("", ""), ("carl", "secret"), (&*long, &*long)];
    for (user, password) in refused {
        let mut stream = connect(near.host(0));
        stream.write_all(&[5, 2, 0, 2]).unwrap();
        assert_eq!(read::<2>(&mut stream), [5, 2]);
        let message = [&[1, user.len() as u8], user.as_bytes(), &[password.len() as u8], password.as_bytes()].concat();
        stream.write_all(&message).unwrap();
        assert_eq!(read::<2>(&mut stream), [1, 1], "{user}");
        assert_eq!(read_rest(&mut stream), b"");
    }
    let mut stream = connect(near.host(0));
    stream.write_all(&[5, 2, 0, 1]).unwrap();
    assert_eq!(read::<2>(&mut stream), [5, 0xff]);
    near.expect("auth_failures", refused.len() as u64 + 1);
    near.expect("refused_malformed", 0);
    let notice = near.notices.recv_timeout(LIVENESS).unwrap();
    assert!(
        matches!(notice, ProxyNotice::AuthenticationFailed { service, .. } if service == near.host(0)),
        "{notice:?}"
    );
    // They came faster than they are told.
    assert!(near.notices.try_iter().count() < refused.len());
}

/// A client's association.
struct Association {
    control: std::net::TcpStream,
    socket: UdpSocket,
}

impl Association {
    fn new(served: &Served) -> Self {
        let client = Socks { served, user: None };
        let (control, code, bound) = client.request(3, &socks_address("0.0.0.0", 0));
        assert_eq!(code, 0);
        assert!(bound.ip().is_loopback());
        let socket = datagrams();
        socket.connect(bound).unwrap();
        Association { control, socket }
    }

    fn send(&self, fragment: u8, address: &[u8], text: &[u8]) {
        self.socket.send(&[&[0, 0, fragment], address, text].concat()).unwrap();
    }

    fn receive(&self) -> (SocketAddr, Vec<u8>) {
        let mut buffer = vec![0; 65_535];
        let len = self.socket.recv(&mut buffer).unwrap();
        let mut rest = &buffer[..len];
        assert_eq!(read::<3>(&mut rest), [0, 0, 0]);
        (read_address(&mut rest), rest.to_vec())
    }
}

#[test]
fn datagrams_are_exchanged_with_anybody_in_the_tunnel() {
    let pair = named_pair();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Udp, datagram_echo())]);
    let near = Served::start(&pair.near, in_tunnel(vec![socks(None)])).unwrap();
    let client = Association::new(&near);
    let port = far.port(0);
    for (host, from) in [(FAR_V4, FAR_V4), (FAR_V6, FAR_V6), ("v4.test", FAR_V4), ("v6.test", FAR_V6)] {
        for text in [&b""[..], b"hello", &[9; 1200]] {
            client.send(0, &socks_address(host, port), text);
            assert_eq!(client.receive(), (SocketAddr::new(from.parse().unwrap(), port), text.to_vec()), "{host}");
        }
    }
    // Larger than a packet of the tunnel.
    client.send(0, &socks_address(FAR_V4, port), &[3; 20_000]);
    assert_eq!(client.receive().1, [3; 20_000]);
    near.expect("datagrams_to_tunnel", 13);
    near.expect("datagrams_from_tunnel", 13);
    near.expect("datagrams_dropped", 0);
}

#[test]
fn what_is_no_datagram_of_the_client_is_dropped_and_counted() {
    let pair = named_pair();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Udp, datagram_echo())]);
    let near = Served::start(&pair.near, in_tunnel(vec![socks(None)])).unwrap();
    let client = Association::new(&near);
    let to = socks_address(FAR_V4, far.port(0));
    client.send(1, &to, b"a fragment");
    near.expect("fragments_dropped", 1);
    let bound = client.socket.peer_addr().unwrap();
    datagrams().send_to(&[&[0, 0, 0], &to[..], b"a stranger's"].concat(), bound).unwrap();
    for (dropped, bytes) in [
        (2, &b""[..]),
        (3, b"\0\0\0"),
        (4, b"\0\0\0\x02\0\0\0\0\0\0"),
        (5, &[&[0, 0, 0], &to[..3]].concat()),
        (6, &[&[0, 0, 0], &socks_address("none.test", 9)[..]].concat()),
        (7, &[&[0, 0, 0], &socks_address(FAR_V4, 0)[..]].concat()),
        (8, &[&[0, 0, 0], &socks_address(FAR_V6, 9)[..], &[0; 20_000]].concat()),
    ] {
        client.socket.send(bytes).unwrap();
        near.expect("datagrams_dropped", dropped);
    }
    client.send(0, &to, b"goes on");
    assert_eq!(client.receive().1, b"goes on");
    near.expect("datagrams_to_tunnel", 1);
}

#[test]
fn an_association_ends_with_its_connection_or_when_newer_ones_need_its_place() {
    let pair = Pair::new();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Udp, datagram_echo())]);
    let mut options = ProxyOptions::new(vec![socks(None)]);
    options.max_associations = 2;
    let near = Served::start(&pair.near, options).unwrap();
    let to = socks_address(FAR_V4, far.port(0));
    let mut associations: Vec<Association> = (0..3)
        .map(|_| {
            let association = Association::new(&near);
            association.send(0, &to, b"hello");
            association.receive();
            association
        })
        .collect();
    near.expect("associations_evicted", 1);
    near.expect("associations", 2);
    assert_eq!(associations[0].control.read(&mut [0]).unwrap_or(0), 0);
    drop(associations);
    near.expect("associations", 0);
    near.expect("clients", 0);
    assert_eq!(near.proxies.counters().associations_evicted, 1);
}
