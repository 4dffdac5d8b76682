//! Pumps between real devices and sockets, each node in a network namespace of its own.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant as Time};

use icx_proto::engine::{Engine, EngineConfig, Mode, NetworkConfig, Underlay};
use icx_proto::wire::checksum::checksum;
use icx_proto::{AllowedRoute, Instant, IpPrefix, MacAddr, SaKey, TxKeyHistory, Vni};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Ends, Pump, PumpCounters, PumpError, PumpOptions, inbound, outbound};
use crate::link::{self, LinkError};
use crate::test_support::{NetNs, delete, set_up};
use crate::tun::{Tun, TunConfig};
use crate::udp::{Family, Udp, UdpConfig};
use crate::{clock, sys};

/// For what must happen, but may be slow on a loaded machine.
const LIVENESS: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
struct Options {
    tun_mtu: u32,
    inner_mtu: Option<u32>,
    keepalive: Option<Duration>,
    hashing: bool,
    underlay: [&'static str; 2],
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tun_mtu: 1392,
            inner_mtu: None,
            keepalive: None,
            hashing: false,
            underlay: ["192.0.2.1", "192.0.2.2"],
        }
    }
}

/// One end of a tunnel: `number` is 0 or 1; its overlay addresses end in `number + 1`.
struct Node {
    namespace: NetNs,
    engine: Arc<Engine>,
    pump: Pump,
    ended: Receiver<Result<(), PumpError>>,
}

fn vni() -> Vni {
    Vni::new(7).unwrap()
}

fn overlay_v4(number: usize) -> IpAddr {
    [10, 9, 0, number as u8 + 1].into()
}

fn overlay_v6(number: usize) -> IpAddr {
    [0xfd00, 9, 0, 0, 0, 0, 0, number as u16 + 1].into()
}

fn engine(number: usize, options: Options) -> Arc<Engine> {
    let engine = Engine::new(EngineConfig {
        mode: Mode::L3,
        underlay: Underlay::Udp,
        peer_filter: true,
        source_port_hashing: options.hashing.then_some(42),
        keepalive: options.keepalive,
        inner_mtu: options.inner_mtu,
        tx_key_history: Arc::new(TxKeyHistory::new(&[number as u8; 32])),
    });
    let everything = |address: [u8; 4]| IpPrefix::new(address.into(), 0).unwrap();
    let v6: IpAddr = "::".parse().unwrap();
    let all_v6 = IpPrefix::new(v6, 0).unwrap();
    let routes = vec![
        AllowedRoute { src: everything([0; 4]), dst: everything([0; 4]) },
        AllowedRoute { src: all_v6, dst: all_v6 },
    ];
    let peer = SocketAddr::new(options.underlay[1 - number].parse().unwrap(), 6081);
    let network = NetworkConfig { vni: vni(), peer, peer_mac: MacAddr::default(), routes, rx_rate_limit: None };
    engine.add_network(network).unwrap();
    Arc::new(engine)
}

fn install(engine: &Engine, number: usize) {
    let key = |number: usize| SaKey::from_slice(&[number as u8 + 1; 16]).unwrap();
    let (rx, tx) = (key(number), key(1 - number));
    engine.danger_install_epoch(clock::now(), vni(), 1, rx, tx, Instant::FAR_FUTURE).unwrap();
}

fn open_tun(number: usize, mtu: u32) -> Tun {
    let addresses = vec![(overlay_v4(number), 24), (overlay_v6(number), 64)];
    Tun::open(TunConfig { name: "icx0".to_owned(), mtu, addresses }).unwrap()
}

fn open_udp(source_port_hashing: bool) -> Udp {
    Udp::open(UdpConfig { local: None, port: 6081, family: Family::Dual, source_port_hashing }).unwrap()
}

fn start(engine: Arc<Engine>, tun: Tun, udp: Udp) -> (Pump, Receiver<Result<(), PumpError>>) {
    let (tell, ended) = mpsc::channel();
    let on_end = Box::new(move |result| tell.send(result).unwrap_or(()));
    (Pump::start(engine, tun, udp, PumpOptions::default(), on_end).unwrap(), ended)
}

/// Two nodes whose namespaces a veth pair connects, without keys. `None` without the right to make namespaces.
fn pair(options: Options) -> Option<[Node; 2]> {
    let namespaces = [NetNs::new()?, NetNs::new()?];
    let [ours, theirs] = options.underlay.map(|address| address.parse::<IpAddr>().unwrap());
    let prefix = if ours.is_ipv4() { 24 } else { 64 };
    namespaces[0].connect(&namespaces[1], (ours, prefix), (theirs, prefix));
    let mut number = 0;
    Some(namespaces.map(|namespace| {
        let engine = engine(number, options);
        let (pump, ended) =
            namespace.run(|| start(Arc::clone(&engine), open_tun(number, options.tun_mtu), open_udp(options.hashing)));
        number += 1;
        Node { namespace, engine, pump, ended }
    }))
}

fn connected_pair(options: Options) -> Option<[Node; 2]> {
    let nodes = pair(options)?;
    for (number, node) in nodes.iter().enumerate() {
        install(&node.engine, number);
    }
    Some(nodes)
}

impl Node {
    fn counter(&self, name: &str) -> u64 {
        self.engine.network_counters(vni()).unwrap().get(name).unwrap()
    }

    fn stop(&self) {
        self.pump.stop();
        self.ended.recv_timeout(LIVENESS).expect("the pump ends").expect("a stop is a clean end");
        self.pump.join();
        assert!(matches!(self.ended.try_recv(), Err(mpsc::TryRecvError::Disconnected)), "told once");
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Time::now();
    while !holds() {
        assert!(start.elapsed() < LIVENESS, "not within {LIVENESS:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends `payload` from node 0 to node 1 and back, through the tunnel, until the answer comes.
fn echo(nodes: &[Node; 2], overlay: fn(usize) -> IpAddr, payload: &[u8]) {
    let bound = |number: usize| {
        nodes[number].namespace.run(|| {
            let socket = UdpSocket::bind((overlay(number), 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            socket
        })
    };
    let (near, far) = (bound(0), bound(1));
    let mut buffer = vec![0; 65_536];
    let mut pass = |from: &UdpSocket, to: &UdpSocket| {
        from.send_to(payload, to.local_addr().unwrap()).unwrap();
        match to.recv_from(&mut buffer) {
            Ok((length, source)) => {
                assert_eq!((&buffer[..length], source), (payload, from.local_addr().unwrap()));
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    };
    eventually("an echo through the tunnel", || pass(&near, &far) && pass(&far, &near));
}

/// Pings node 1 from node 0; the kernel of node 1 answers.
fn ping(nodes: &[Node; 2], sequence: u8) {
    nodes[0].namespace.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
        socket.set_read_timeout(Some(LIVENESS)).unwrap();
        let mut request = [8, 0, 0, 0, 0x1c, 0x58, 0, sequence, 1, 2, 3, 4];
        let sum = checksum(&request);
        request[2..4].copy_from_slice(&sum.to_be_bytes());
        socket.send_to(&request, &SocketAddr::new(overlay_v4(1), 0).into()).unwrap();
        let mut packet = [0; 1500];
        loop {
            let length = (&socket).read(&mut packet).expect("an echo reply");
            let packet = &packet[..length];
            // An echo reply with our identifier and sequence number, behind 20 bytes of IPv4 header.
            if packet.get(20..22) == Some(&[0, 0]) && packet.get(24..) == Some(&request[4..]) {
                assert_eq!(packet[12..16], [10, 9, 0, 2]);
                return;
            }
        }
    });
}

#[test]
fn packets_pass_both_ways_and_every_one_is_counted() {
    for (underlay, hashing) in
        [(["192.0.2.1", "192.0.2.2"], false), (["fd00:aa::1", "fd00:aa::2"], false), (["192.0.2.1", "192.0.2.2"], true)]
    {
        let Some(nodes) = connected_pair(Options { underlay, hashing, ..Options::default() }) else { return };
        let mut sequence = 0;
        eventually("the underlay's addresses are usable", || {
            nodes[0].namespace.run(|| UdpSocket::bind((underlay[0], 0)).is_ok())
        });
        ping(&nodes, sequence);
        for length in [0, 1, 700, 1392 - 28] {
            sequence += 1;
            ping(&nodes, sequence);
            echo(&nodes, overlay_v4, &vec![sequence; length]);
        }
        for length in [0, 1, 1392 - 48] {
            echo(&nodes, overlay_v6, &vec![sequence; length]);
        }
        for node in &nodes {
            node.stop();
        }
        let [ours, theirs] = [0, 1].map(|number| nodes[number].pump.counters());
        for (number, near, far) in [(0, ours, theirs), (1, theirs, ours)] {
            let node = &nodes[number];
            assert!(near.device_read_packets >= 12, "{near:?}");
            assert_eq!(node.counter("tx_packets"), near.device_read_packets, "all that was read had a route and a key");
            assert_eq!(near.underlay_sent, near.device_read_packets);
            assert_eq!(near.device_write_packets, node.counter("rx_packets"));
            assert_eq!(near.underlay_received, near.device_write_packets);
            assert_eq!(near.underlay_received, far.underlay_sent, "nothing is lost on an idle link");
            let none = [near.device_write_errors, near.underlay_send_errors, near.port_fallbacks];
            assert_eq!((none, near.underlay_truncated), ([0; 3], 0));
        }
    }
}

#[test]
fn a_stop_ends_an_idle_pump_at_once_and_takes_the_device_away() {
    let Some(namespace) = NetNs::new() else { return };
    namespace.run(|| {
        let (pump, ended) = start(engine(0, Options::default()), open_tun(0, 1392), open_udp(false));
        assert!(matches!(ended.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout)));
        let asked = Time::now();
        pump.stop();
        pump.stop();
        pump.join();
        assert!(asked.elapsed() < Duration::from_secs(1), "took {:?}", asked.elapsed());
        assert!(matches!(ended.recv(), Ok(Ok(()))));
        assert!(ended.recv().is_err(), "told once");
        assert!(matches!(link::by_name("icx0"), Err(LinkError::NotFound(_))), "before the pump itself is dropped");
        open_udp(false);
        pump.stop();
        pump.join();
    });
}

#[test]
fn a_removed_device_ends_the_pump_with_an_error_that_names_it() {
    let Some(nodes) = connected_pair(Options::default()) else { return };
    echo(&nodes, overlay_v4, b"before");
    nodes[0].namespace.run(|| delete("icx0").unwrap());
    let error = nodes[0].ended.recv_timeout(LIVENESS).unwrap().unwrap_err();
    assert!(matches!(&error, PumpError::DeviceRemoved { device, .. } if device == "icx0"), "{error:?}");
    assert_eq!(error.errno(), Some(libc::EBADFD));
    assert!(["read", "write"].contains(&error.operation()), "{error:?}");
    assert!(error.to_string().contains("device icx0 was removed"), "{error}");
    nodes[0].pump.join();
    assert!(nodes[0].ended.recv().is_err(), "told once");
    nodes[1].stop();
}

#[test]
fn counters_add_up_when_the_device_is_removed() {
    let Some(namespace) = NetNs::new() else { return };
    namespace.run(|| {
        let engine = engine(0, Options { keepalive: Some(Duration::from_secs(3600)), ..Options::default() });
        install(&engine, 0);
        let control = super::Control {
            stop: false.into(),
            stop_event: sys::event_fd().unwrap().into(),
            outbound: Default::default(),
            inbound: Default::default(),
        };
        let ends = Ends { engine, tun: open_tun(0, 1392), udp: open_udp(false), options: PumpOptions::default() };
        delete("icx0").unwrap();

        // The keepalive is sealed before the device is found gone.
        assert!(matches!(outbound(&ends, &control), Err(PumpError::DeviceRemoved { call: "read", .. })));
        let mut moved = PumpCounters::default();
        control.outbound.add_to(&mut moved);
        let counters = ends.engine.network_counters(vni()).unwrap();
        assert_eq!(counters.get("tx_packets"), Some(1));
        assert_eq!(moved.underlay_sent + moved.underlay_send_errors, 1);
        assert_eq!(counters.get("tx_errors"), Some(moved.underlay_send_errors));

        assert!(matches!(
            ends.deliver(&[0x45; 20], &control.inbound),
            Err(PumpError::DeviceRemoved { call: "write", .. })
        ));
        control.inbound.add_to(&mut moved);
        assert_eq!((moved.device_write_packets, moved.device_write_errors), (0, 1));
    });
}

#[test]
fn a_device_that_was_set_down_carries_on_when_it_is_up_again() {
    let Some(nodes) = connected_pair(Options::default()) else { return };
    echo(&nodes, overlay_v4, b"before");
    nodes[1].namespace.run(|| set_up("icx0", false).unwrap());
    let near = nodes[0].namespace.run(|| UdpSocket::bind((overlay_v4(0), 0)).unwrap());
    eventually("refused packets are counted", || {
        near.send_to(b"down", (overlay_v4(1), 9)).unwrap();
        nodes[1].pump.counters().device_write_errors > 0
    });
    nodes[1].namespace.run(|| set_up("icx0", true).unwrap());
    echo(&nodes, overlay_v4, b"after");
    for node in &nodes {
        node.stop();
    }
}

#[test]
fn what_the_underlay_refuses_is_counted_and_forgotten() {
    let Some(nodes) = connected_pair(Options::default()) else { return };
    echo(&nodes, overlay_v4, b"before");
    // Without its link, the peer's address has no route any more.
    nodes[0].namespace.run(|| set_up("under", false).unwrap());
    let near = nodes[0].namespace.run(|| UdpSocket::bind((overlay_v4(0), 0)).unwrap());
    eventually("refused datagrams are counted", || {
        near.send_to(b"lost", (overlay_v4(1), 9)).unwrap();
        nodes[0].pump.counters().underlay_send_errors > 0
    });
    nodes[0].namespace.run(|| set_up("under", true).unwrap());
    echo(&nodes, overlay_v4, b"after");
    nodes[0].stop();
    assert_eq!(nodes[0].counter("tx_errors"), nodes[0].pump.counters().underlay_send_errors);
    nodes[1].stop();
}

#[test]
fn keepalives_begin_when_keys_come_and_go_on_by_themselves() {
    let keepalive = Some(Duration::from_millis(100));
    let Some(nodes) = pair(Options { keepalive, ..Options::default() }) else { return };
    for (number, node) in nodes.iter().enumerate() {
        assert_eq!(node.pump.counters(), PumpCounters::default(), "nothing moves before there are keys");
        install(&node.engine, number);
    }
    eventually("three keepalives each", || nodes.iter().all(|node| node.counter("rx_packets") >= 3));
    for node in &nodes {
        node.stop();
        let counters = node.pump.counters();
        assert_eq!((counters.device_read_packets, counters.device_write_packets), (0, 0), "they are nobody's packets");
    }
}

#[test]
fn senders_learn_the_inner_mtu() {
    let options = Options { tun_mtu: 1500, inner_mtu: Some(1300), ..Options::default() };
    let Some(nodes) = connected_pair(options) else { return };
    for (overlay, level, option, headers) in [
        (overlay_v4 as fn(usize) -> IpAddr, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 28),
        (overlay_v6, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 48),
    ] {
        let near = nodes[0].namespace.run(|| UdpSocket::bind((overlay(0), 0)).unwrap());
        // Both families number their "do not fragment, and tell me" alike.
        sys::set_option(near.as_fd(), level, option, libc::IP_PMTUDISC_DO).unwrap();
        let there = (overlay(1), 9);
        let mut sent = 0;
        eventually("the kernel refuses a packet beyond the inner MTU", || {
            match near.send_to(&vec![0; 1301 - headers], there) {
                Err(error) => error.raw_os_error() == Some(libc::EMSGSIZE),
                Ok(_) => {
                    sent += 1;
                    false
                }
            }
        });
        assert!(sent > 0, "the first one reached the device");
        near.send_to(&vec![0; 1300 - headers], there).expect("exactly the inner MTU passes");
    }
    assert!(nodes[0].counter("tx_too_big") >= 2);
    for node in &nodes {
        node.stop();
    }
}

fn panicking(_ends: &Ends, _control: &super::Control) -> Result<(), PumpError> {
    panic!("on purpose");
}

#[test]
fn a_panic_in_a_worker_ends_the_pump_with_an_error() {
    let Some(namespace) = NetNs::new() else { return };
    namespace.run(|| {
        let (tell, ended) = mpsc::channel();
        let ends = Ends {
            engine: engine(0, Options::default()),
            tun: open_tun(0, 1392),
            udp: open_udp(false),
            options: PumpOptions::default(),
        };
        let workers: [(&'static str, super::Worker); 2] = [("icx-test", panicking), ("icx-in-0", inbound)];
        let pump = Pump::start_workers(workers, ends, Box::new(move |result| tell.send(result).unwrap())).unwrap();
        let error = ended.recv_timeout(LIVENESS).unwrap().unwrap_err();
        assert!(
            matches!(&error, PumpError::Panicked { worker: "icx-test", message } if message == "on purpose"),
            "{error:?}"
        );
        assert!(ended.recv().is_err(), "told once, after the other worker has ended too");
        pump.join();
    });
}

/// How many descriptors and threads this process has.
fn resources() -> (usize, usize) {
    let entries = |path| std::fs::read_dir(path).unwrap().count();
    (entries("/proc/self/fd"), entries("/proc/self/task"))
}

#[test]
fn fifty_starts_and_stops_leave_nothing_behind() {
    // In a process of its own: other tests open and close things meanwhile.
    const ALONE: &str = "ICX_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "pump::tests::fifty_starts_and_stops_leave_nothing_behind";
        let child = Command::new(std::env::current_exe().unwrap()).args([name, "--exact"]).env(ALONE, "1").status();
        assert!(child.unwrap().success());
        return;
    }
    let Some(namespace) = NetNs::new() else { return };
    namespace.run(|| {
        let cycle = || {
            let (pump, ended) = start(engine(0, Options::default()), open_tun(0, 1392), open_udp(true));
            drop(pump);
            ended.recv().unwrap().unwrap();
        };
        cycle();
        let before = resources();
        for _ in 0..50 {
            cycle();
        }
        assert_eq!(resources(), before);
    });
}
