//! Clients that mean no good.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use icx_netstack::proxy::{Credentials, Protocol, ProxyError, ProxyOptions, Service};

use crate::clients::{Socks, assert_echoes, connect, echo, read_rest, reset, reverse, server, socks_address};
use crate::nodes::{Served, loopback};
use crate::tunnel::{FAR_V4, Pair};

fn services(listen: SocketAddr, credentials: Option<Credentials>) -> Vec<Service> {
    vec![
        Service::Socks5 { listen, credentials: credentials.clone(), danger_open: false },
        Service::HttpConnect { listen, credentials, danger_open: false },
    ]
}

/// What no client should send, to either proxy.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let user = |len: u8| [&[5, 1, 2, 1, len][..], &vec![b'u'; usize::from(len)], &[255], &[b'p'; 255]].concat();
    vec![
        ("nothing", Vec::new()),
        ("one byte", vec![5]),
        ("SOCKS4", b"\x04\x01\x00\x50\x0a\x09\x00\x02\0".to_vec()),
        ("no methods", vec![5, 0]),
        ("methods cut short", vec![5, 255, 0]),
        ("all methods but those that are offered", [vec![5, 253], (3..=255).collect()].concat()),
        ("a wrong version later", vec![5, 1, 0, 4, 1, 0, 1, 10, 9, 0, 2, 0, 80]),
        ("a request cut short", vec![5, 1, 0, 5, 1, 0, 1, 10, 9]),
        ("a name without end", vec![5, 1, 0, 5, 1, 0, 3, 255, b'a']),
        ("a name of zeros", [&[5, 1, 0, 5, 1, 0, 3, 255][..], &[0; 257]].concat()),
        ("no name", vec![5, 1, 0, 5, 1, 0, 3, 0, 0, 80]),
        ("a user that nobody asked for", user(255)),
        ("a wrong version of users", vec![5, 1, 2, 5, 1, 0]),
        ("endless zeros", vec![0; 1 << 20]),
        ("endless 255", vec![255; 1 << 20]),
        ("endless methods", [5, 255].repeat(1 << 18)),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("an endless line", vec![b'A'; 1 << 20]),
        ("endless empty lines", b"\r\n".repeat(1 << 18)),
        ("endless fields", b"CONNECT a:1 HTTP/1.1\r\n".iter().copied().chain(b"a: b\r\n".repeat(1 << 16)).collect()),
        ("a head without end", b"CONNECT 10.9.0.2:80 HTTP/1.1\r\nHost: a".to_vec()),
        ("bytes that are no text", b"CONNECT \xff\xfe:80 HTTP/1.1\r\n\r\n".to_vec()),
        ("a folded field", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n b\r\n\r\n".to_vec()),
        ("another target in the line", b"CONNECT a:1 b:2 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
    ]
}

#[test]
fn garbage_costs_its_sender_the_connection_and_nobody_else_anything() {
    let pair = Pair::new();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Tcp, server(echo))]);
    for credentials in [None, Some(Credentials::parse("ann:secret").unwrap())] {
        let is_guarded = credentials.is_some();
        let near = Served::new(&pair.near, services(loopback(), credentials));
        for service in 0..2 {
            for (name, bytes) in garbage() {
                let mut stream = connect(near.host(service));
                // It may be refused before all of it is sent.
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(Shutdown::Write);
                let answer = read_rest(&mut stream);
                let is_granted = answer.starts_with(b"HTTP/1.1 200") || answer.windows(3).any(|part| part == [5, 0, 0]);
                assert!(!is_granted, "{name}: {answer:?}");
            }
        }
        near.expect("clients", 0);
        let counters = near.proxies.counters();
        let refused = counters.refused_malformed + counters.refused_unsupported + counters.auth_failures;
        assert_eq!(refused + counters.names_failed, 2 * garbage().len() as u64, "{counters:?}");
        assert_eq!(counters.bytes_to_tunnel, 0);
        let client = Socks { served: &near, user: is_guarded.then_some(("ann", "secret")) };
        assert_echoes(&mut client.connect(&socks_address(FAR_V4, far.port(0))), b"still there");
    }
}

#[test]
fn whoever_says_nothing_or_too_slowly_is_dropped() {
    let pair = Pair::new();
    let mut options = ProxyOptions::new(services(loopback(), None));
    options.handshake_timeout = Duration::from_millis(300);
    let near = Served::start(&pair.near, options).unwrap();
    let mut refused = 0;
    for (service, start) in [(0, &b""[..]), (0, &[5]), (0, &[5, 1, 0]), (1, b""), (1, b"CONNECT a:1 HTTP/1.1\r\n")] {
        let mut silent = connect(near.host(service));
        silent.write_all(start).unwrap();
        read_rest(&mut silent);
        refused += 1;
        near.expect("refused_slow", refused);
    }
    // Bytes that come one by one do not prolong it.
    let slow = connect(near.host(1));
    let mut writer = slow.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        while writer.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    near.expect("refused_slow", refused + 1);
    drip.join().unwrap();
    near.expect("clients", 0);
}

#[test]
fn clients_that_leave_at_any_point_leave_nothing_behind() {
    let pair = Pair::new();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Tcp, server(echo))]);
    let near = Served::new(&pair.near, services(loopback(), None));
    let port = far.port(0);
    let socks = [&[5, 1, 0, 5, 1, 0][..], &socks_address(FAR_V4, port), b"data"].concat();
    let http = format!("CONNECT {FAR_V4}:{port} HTTP/1.1\r\nHost: a\r\n\r\ndata").into_bytes();
    let mut clients = 0;
    for (service, bytes) in [(0, socks), (1, http)] {
        for len in 0..=bytes.len() {
            for ends_well in [false, true] {
                let mut stream = connect(near.host(service));
                stream.write_all(&bytes[..len]).unwrap();
                if ends_well {
                    drop(stream)
                } else {
                    reset(stream)
                }
                clients += 1;
            }
        }
    }
    near.expect("clients_total", clients);
    near.expect("clients", 0);
    far.expect("clients", 0);
    for stack in [&pair.near, &pair.far] {
        let open = || stack.counters().connections;
        // Those that have ended in order may wait for late packets.
        crate::nodes::eventually("connections end", || open() <= 256);
    }
}

#[test]
fn a_client_that_leaves_while_it_is_connected_stops_that() {
    let pair = Pair::new();
    let near = Served::new(&pair.near, services(loopback(), None));
    let mut stream = connect(near.host(0));
    // Nobody answers there, for 15 s.
    stream.write_all(&[&[5, 1, 0, 5, 1, 0][..], &socks_address("10.9.0.99", 80)].concat()).unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    crate::nodes::eventually("it is connected", || pair.near.counters().connects == 1);
    reset(stream);
    near.expect("connect_failures", 1);
    near.expect("clients", 0);
    crate::nodes::eventually("the connection is gone", || pair.near.counters().connections == 0);
}

#[test]
fn more_clients_than_there_may_be_are_refused_until_others_leave() {
    let pair = Pair::new();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Tcp, server(echo))]);
    let mut options = ProxyOptions::new(services(loopback(), None));
    options.max_clients = 10;
    let near = Served::start(&pair.near, options).unwrap();
    let half_open: Vec<TcpStream> = (0..10).map(|_| connect(near.host(0))).collect();
    near.expect("clients", 10);
    for _ in 0..50 {
        let error = connect(near.host(0)).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    near.expect("refused_full", 50);
    drop(half_open);
    near.expect("clients", 0);
    let client = Socks { served: &near, user: None };
    assert_echoes(&mut client.connect(&socks_address(FAR_V4, far.port(0))), b"room again");
}

#[test]
fn nothing_listens_beyond_loopback_for_everybody() {
    let pair = Pair::new();
    let everywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
    for service in services(everywhere, None) {
        let error = Served::start(&pair.near, ProxyOptions::new(vec![service])).err().unwrap();
        assert!(matches!(error, ProxyError::Exposed { listen, .. } if listen == everywhere), "{error:?}");
    }
    let guarded = services(everywhere, Some(Credentials::parse("ann:secret").unwrap()));
    let near = Served::new(&pair.near, guarded);
    let client = SocketAddr::new([127, 0, 0, 1].into(), near.host(0).port());
    assert_eq!(connect(client).peer_addr().unwrap(), client);
}
