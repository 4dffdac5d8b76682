//! Forwards in both directions, one behind the other: from a port of this host through the tunnel to a server on this host.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;

use icx_netstack::proxy::{Protocol, ProxyError, ProxyOptions, Service, Target};

use crate::clients::{
    assert_echoes, assert_reset, connect, datagram_echo, datagrams, echo, fill, limited, receive_pattern, reset,
    reverse, send_pattern, server,
};
use crate::nodes::{LIVENESS, Served, loopback, target};
use crate::tunnel::{FAR_V4, FAR_V6, Pair};

fn forward(protocol: Protocol, remote: &str, port: u16) -> Service {
    let remote = Target { port, ..target(&format!("{remote}:1")) };
    Service::Forward { protocol, listen: loopback(), remote, danger_open: false }
}

/// A way from a port of this host to `target`, through the tunnel.
struct Way {
    near: Served,
    far: Served,
    _pair: Pair,
}

impl Way {
    fn to(protocol: Protocol, target: SocketAddr) -> Self {
        let pair = Pair::new();
        let far = Served::new(&pair.far, vec![reverse(protocol, target)]);
        let near = Served::new(&pair.near, vec![forward(protocol, FAR_V4, far.port(0))]);
        Way { near, far, _pair: pair }
    }

    fn connect(&self) -> TcpStream {
        connect(self.near.host(0))
    }
}

/// A server whose connections the test serves itself.
fn accepting() -> (SocketAddr, impl Fn() -> TcpStream) {
    let (sender, receiver) = mpsc::channel();
    let address = server(move |stream| sender.send(stream).unwrap());
    (address, move || receiver.recv_timeout(LIVENESS).unwrap())
}

#[test]
fn connections_and_datagrams_pass_over_both_families() {
    let pair = Pair::new();
    let services = vec![reverse(Protocol::Tcp, server(echo)), reverse(Protocol::Udp, datagram_echo())];
    let far = Served::new(&pair.far, services);
    for host in [FAR_V4, &format!("[{FAR_V6}]")] {
        let services = vec![forward(Protocol::Tcp, host, far.port(0)), forward(Protocol::Udp, host, far.port(1))];
        let near = Served::new(&pair.near, services);
        assert_echoes(&mut connect(near.host(0)), b"over TCP");
        let (socket, mut buffer) = (datagrams(), [0; 2000]);
        socket.connect(near.host(1)).unwrap();
        for text in [&b"over UDP"[..], b"", &[7; 1300]] {
            socket.send(text).unwrap();
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], text, "{host}");
        }
        near.expect("datagrams_to_tunnel", 3);
        near.expect("datagrams_from_tunnel", 3);
        near.expect("bytes_to_tunnel", 8);
        near.expect("bytes_from_tunnel", 8);
        near.expect("associations", 1);
        near.expect("clients", 0);
        near.expect("clients_total", 1);
    }
}

#[test]
fn large_transfers_arrive_whole_in_both_directions_at_once() {
    const LEN: usize = 64 << 20;
    let (sums, sent_back) = mpsc::channel();
    let way = Way::to(
        Protocol::Tcp,
        server(move |mut stream| {
            let mut writer = stream.try_clone().unwrap();
            let sending = thread::spawn(move || {
                let sum = send_pattern(&mut writer, LEN);
                writer.shutdown(Shutdown::Write).unwrap();
                sum
            });
            let received = receive_pattern(&mut stream);
            sums.send((received, sending.join().unwrap())).unwrap();
        }),
    );
    let mut stream = way.connect();
    let mut writer = stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        let sum = send_pattern(&mut writer, LEN);
        writer.shutdown(Shutdown::Write).unwrap();
        sum
    });
    let received_here = receive_pattern(&mut stream);
    let (received_there, sum_of_there) = sent_back.recv_timeout(LIVENESS).unwrap();
    assert_eq!(received_there, (LEN, sending.join().unwrap()));
    assert_eq!(received_here, (LEN, sum_of_there));
    way.near.expect("clients", 0);
    way.far.expect("clients", 0);
    let counters = way.near.proxies.counters();
    assert_eq!([counters.bytes_to_tunnel, counters.bytes_from_tunnel, counters.resets], [LEN as u64, LEN as u64, 0]);
}

#[test]
fn either_side_may_end_its_half_first() {
    let (address, accept) = accepting();
    let way = Way::to(Protocol::Tcp, address);
    for client_first in [true, false] {
        let client = way.connect();
        let (mut first, mut second) = if client_first { (client, accept()) } else { (accept(), client) };
        first.write_all(b"before").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        second.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before");
        // The other half is as it was.
        second.write_all(b"after").unwrap();
        let mut answer = [0; 5];
        first.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"after");
        second.shutdown(Shutdown::Write).unwrap();
        assert_eq!(first.read(&mut answer).unwrap(), 0);
    }
    way.near.expect("clients", 0);
    assert_eq!(way.near.proxies.counters().resets, 0);
}

#[test]
fn a_reset_of_either_side_becomes_one_of_the_other() {
    let (address, accept) = accepting();
    let way = Way::to(Protocol::Tcp, address);
    for client_first in [true, false] {
        let mut client = way.connect();
        client.write_all(b"x").unwrap();
        let mut server = accept();
        server.read_exact(&mut [0]).unwrap();
        if client_first {
            reset(client);
            assert_reset(&mut server);
        } else {
            reset(server);
            assert_reset(&mut client);
        }
    }
    way.near.expect("clients", 0);
    way.far.expect("clients", 0);
    way.near.expect("resets", 2);
}

#[test]
fn a_reset_is_passed_on_while_the_way_is_full() {
    let (address, accept) = accepting();
    let way = Way::to(Protocol::Tcp, address);
    for client_first in [true, false] {
        let client = way.connect();
        let server = accept();
        let (mut sender, mut reader) = if client_first { (client, server) } else { (server, client) };
        fill(&mut sender);
        reset(sender);
        assert_reset(&mut reader);
    }
    way.near.expect("clients", 0);
    way.far.expect("clients", 0);
}

#[test]
fn a_reader_that_does_not_read_stalls_only_itself() {
    let (address, accept) = accepting();
    let way = Way::to(Protocol::Tcp, address);
    let mut stalled = way.connect();
    let unread = accept();
    fill(&mut stalled);
    let mut other = way.connect();
    let other_server = accept();
    thread::spawn(move || echo(other_server));
    assert_echoes(&mut other, b"passes by");
    drop(unread);
}

#[test]
fn many_connections_pass_at_once() {
    const CONNECTIONS: usize = 200;
    let way = Way::to(Protocol::Tcp, server(echo));
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| way.connect()).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&[number as u8; 1000]).unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate().rev() {
        let mut back = [0; 1000];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, [number as u8; 1000]);
    }
    way.near.expect("clients", CONNECTIONS as u64);
    drop(streams);
    way.near.expect("clients", 0);
    way.far.expect("clients", 0);
}

#[test]
fn a_target_that_refuses_resets_the_client() {
    let nobody = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let way = Way::to(Protocol::Tcp, nobody);
    assert_reset(&mut way.connect());
    way.far.expect("connect_failures", 1);
    let pair = Pair::new();
    let near = Served::new(&pair.near, vec![forward(Protocol::Tcp, FAR_V4, 9)]);
    assert_reset(&mut connect(near.host(0)));
    near.expect("connect_failures", 1);
}

#[test]
fn a_reverse_forward_finds_its_target_by_name() {
    let pair = Pair::new();
    let port = server(echo).port();
    let services = vec![Service::Reverse {
        protocol: Protocol::Tcp,
        listen_port: 80,
        target: target(&format!("localhost:{port}")),
    }];
    let far = Served::new(&pair.far, services);
    assert_eq!(far.port(0), 80);
    let near = Served::new(&pair.near, vec![forward(Protocol::Tcp, FAR_V4, 80)]);
    assert_echoes(&mut connect(near.host(0)), b"found");
}

#[test]
fn flows_of_datagrams_are_limited_and_the_longest_silent_one_goes() {
    let pair = Pair::new();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Udp, datagram_echo())]);
    let mut options = ProxyOptions::new(vec![forward(Protocol::Udp, FAR_V4, far.port(0))]);
    options.max_associations = 3;
    let near = Served::start(&pair.near, options).unwrap();
    let sockets: Vec<UdpSocket> = (0..5).map(|_| datagrams()).collect();
    let exchange = |socket: &UdpSocket| {
        socket.send_to(b"hello", near.host(0)).unwrap();
        assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 5);
    };
    sockets.iter().for_each(exchange);
    near.expect("associations", 3);
    near.expect("associations_evicted", 2);
    // It comes back as a new one.
    exchange(&sockets[0]);
    near.expect("associations_total", 6);
    near.expect("associations", 3);
}

#[test]
fn silent_flows_end() {
    let pair = Pair::new();
    let far = Served::new(&pair.far, vec![reverse(Protocol::Udp, datagram_echo())]);
    let mut options = ProxyOptions::new(vec![forward(Protocol::Udp, FAR_V4, far.port(0))]);
    options.association_timeout = std::time::Duration::from_millis(50);
    let near = Served::start(&pair.near, options).unwrap();
    datagrams().send_to(b"hello", near.host(0)).unwrap();
    near.expect("associations_total", 1);
    near.expect("associations", 0);
    near.expect("associations_evicted", 0);
}

#[test]
fn datagrams_nobody_hears_cost_nothing_and_their_flow_goes_on() {
    let target = UdpSocket::bind(loopback()).unwrap();
    let address = target.local_addr().unwrap();
    drop(target);
    let way = Way::to(Protocol::Udp, address);
    let socket = datagrams();
    socket.connect(way.near.host(0)).unwrap();
    for sent in 1..=3 {
        socket.send(b"anybody?").unwrap();
        way.far.expect("datagrams_from_tunnel", sent);
    }
    let target = UdpSocket::bind(address).unwrap();
    target.set_read_timeout(Some(LIVENESS)).unwrap();
    socket.send(b"now").unwrap();
    let mut buffer = [0; 16];
    let (len, from) = target.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"now");
    target.send_to(b"yes", from).unwrap();
    let len = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"yes");
    way.far.expect("associations_total", 1);
}

#[test]
fn all_services_listen_or_none() {
    let pair = Pair::new();
    let taken = TcpListener::bind(loopback()).unwrap();
    let free = {
        let listener = TcpListener::bind(loopback()).unwrap();
        listener.local_addr().unwrap()
    };
    let forward =
        |listen| Service::Forward { protocol: Protocol::Tcp, listen, remote: target("10.9.0.2:1"), danger_open: false };
    let reverse =
        |listen_port| Service::Reverse { protocol: Protocol::Tcp, listen_port, target: target("127.0.0.1:1") };
    let services = vec![forward(free), reverse(80), forward(taken.local_addr().unwrap())];
    let error = Served::start(&pair.near, ProxyOptions::new(services)).err().unwrap();
    assert!(matches!(error, ProxyError::Listen { listen, .. } if listen == taken.local_addr().unwrap()), "{error:?}");
    assert!(error.errno().is_some());
    // What was bound before is free again.
    let _near = Served::new(&pair.near, vec![forward(free), reverse(80)]);
    let error = Served::start(&pair.near, ProxyOptions::new(vec![reverse(80)])).err().unwrap();
    assert!(matches!(error, ProxyError::ListenInTunnel { .. }), "{error:?}");
}

#[test]
fn a_stop_cuts_everything_and_is_told_once() {
    let way = Way::to(Protocol::Tcp, server(echo));
    let mut client = way.connect();
    assert_echoes(&mut client, b"there");
    way.near.proxies.stop();
    way.near.proxies.stop();
    assert!(matches!(way.near.ended.recv_timeout(LIVENESS), Ok(Ok(()))));
    way.near.proxies.join();
    way.near.proxies.join();
    assert!(way.near.ended.try_recv().is_err());
    assert_eq!(client.read(&mut [0; 16]).unwrap_or(0), 0);
    assert!(TcpStream::connect(way.near.host(0)).is_err());
    assert_eq!(way.near.proxies.counters().clients, 0);
    assert_eq!(way.near.proxies.counters().clients_total, 1);
}

#[test]
fn proxies_end_when_their_stack_is_closed() {
    let pair = Pair::new();
    let reverse = Served::new(&pair.near, vec![reverse(Protocol::Tcp, loopback())]);
    let forward = Served::new(&pair.near, vec![forward(Protocol::Tcp, FAR_V4, 1)]);
    pair.near.close();
    assert!(matches!(reverse.ended.recv_timeout(LIVENESS), Ok(Err(ProxyError::StackClosed))));
    // This one finds out when it needs the stack.
    drop(limited(connect(forward.host(0))));
    assert!(matches!(forward.ended.recv_timeout(LIVENESS), Ok(Err(ProxyError::StackClosed))));
}
