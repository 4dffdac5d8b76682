//! Pumps between real devices and sockets, each node in a network namespace of its own.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant as Time};

use icx_proto::counters::COUNTER_NAMES;
use icx_proto::engine::{Engine, EngineConfig, Mode, NetworkConfig, OuterTrafficClass, Underlay};
use icx_proto::engine::{PathMtu, PathMtuChange, PathMtuReason};
use icx_proto::wire::checksum::checksum;
use icx_proto::wire::geneve::{self, TunnelHeader};
use icx_proto::{AllowedRoute, Instant, IpPrefix, MacAddr, SaKey, TxKeyHistory, Vni};
use socket2::{Domain, Protocol, Socket, Type};

use super::worker::{Worker, work};
use super::{Control, Ends, Pump, PumpCounters, PumpError, PumpNotice, PumpOptions, Work};
use crate::device::DeviceError;
use crate::link::{self, LinkError};
use crate::test_support::{NetNs, delete, resources, set_up};
use crate::told::tests::{Complaint, Liar, SetOnDrop};
use crate::tun::{Tun, TunConfig, TunOffload};
use crate::udp::{Family, Udp, UdpConfig, UdpOffload};
use crate::{clock, sys};

/// For what must happen, but may be slow on a loaded machine.
const LIVENESS: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
struct Options {
    tun_mtu: u32,
    inner_mtu: Option<u32>,
    keepalive: Option<Duration>,
    hashing: bool,
    underlay: [&'static str; 2],
    tun: TunOffload,
    udp: UdpOffload,
    queues: u16,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tun_mtu: 1392,
            inner_mtu: None,
            keepalive: None,
            hashing: false,
            underlay: ["192.0.2.1", "192.0.2.2"],
            tun: TunOffload::ALL,
            udp: UdpOffload::default(),
            queues: 1,
        }
    }
}

/// One end of a tunnel: `number` is 0 or 1; its overlay addresses end in `number + 1`.
struct Node {
    namespace: NetNs,
    engine: Arc<Engine>,
    pump: Pump,
    ended: Receiver<Result<(), PumpError>>,
    notices: Receiver<PumpNotice>,
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
        outer_traffic_class: OuterTrafficClass::default(),
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

fn open_tun(number: usize, options: Options) -> Tun {
    let addresses = vec![(overlay_v4(number), 24), (overlay_v6(number), 64)];
    let (mtu, offload) = (options.tun_mtu, options.tun);
    let queues = NonZero::new(options.queues).unwrap();
    Tun::open(TunConfig { name: "icx0".to_owned(), mtu, addresses, queues, offload }).unwrap()
}

fn open_udp(options: Options) -> Udp {
    let (source_port_hashing, offload) = (options.hashing, options.udp);
    let sockets = NonZero::new(options.queues).unwrap();
    let family = Family::Dual;
    Udp::open(UdpConfig { local: None, port: 6081, family, source_port_hashing, sockets, offload }).unwrap()
}

fn ends(number: usize, options: Options) -> Ends {
    let engine = engine(number, options);
    Ends {
        engine,
        device: Box::new(open_tun(number, options)),
        udp: open_udp(options),
        options: PumpOptions::default(),
    }
}

struct Started {
    pump: Pump,
    ended: Receiver<Result<(), PumpError>>,
    notices: Receiver<PumpNotice>,
}

fn start(Ends { engine, device, udp, options }: Ends) -> Started {
    let (tell, ended) = mpsc::channel();
    let (note, notices) = mpsc::channel();
    let on_end = Box::new(move |result| tell.send(result).unwrap_or(()));
    let on_notice = Box::new(move |notice| note.send(notice).unwrap_or(()));
    Started { pump: Pump::start(engine, device, udp, options, on_notice, on_end).unwrap(), ended, notices }
}

/// Two nodes whose namespaces a veth pair connects, without keys. `None` without the right to make namespaces.
fn pair(options: Options) -> Option<[Node; 2]> {
    pair_with(options, |_| {})
}

/// The same, with the ends changed before they move packets.
fn pair_with(options: Options, change: impl Fn(&Ends) + Sync) -> Option<[Node; 2]> {
    let namespaces = [NetNs::new()?, NetNs::new()?];
    let [ours, theirs] = options.underlay.map(|address| address.parse::<IpAddr>().unwrap());
    let prefix = if ours.is_ipv4() { 24 } else { 64 };
    namespaces[0].connect(&namespaces[1], (ours, prefix), (theirs, prefix));
    let mut number = 0;
    Some(namespaces.map(|namespace| {
        let (engine, Started { pump, ended, notices }) = namespace.run(|| {
            let ends = ends(number, options);
            change(&ends);
            (Arc::clone(&ends.engine), start(ends))
        });
        number += 1;
        Node { namespace, engine, pump, ended, notices }
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
        thread::sleep(Duration::from_millis(5));
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

/// Sends `length` bytes over TCP through the tunnel, from node 0 to node 1 or the other way, and checks every one.
fn transfer(nodes: &[Node; 2], from: usize, overlay: fn(usize) -> IpAddr, length: usize) {
    let text: Vec<u8> =
        (0..length as u64 / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let to = 1 - from;
    let listener = nodes[to].namespace.run(|| TcpListener::bind((overlay(to), 0)).unwrap());
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let received = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LIVENESS)).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let mut stream = nodes[from].namespace.run(|| TcpStream::connect_timeout(&address, LIVENESS)).unwrap();
        stream.set_write_timeout(Some(LIVENESS)).unwrap();
        stream.write_all(&text).unwrap();
        drop(stream);
        assert!(received.join().unwrap() == text, "what was sent came, and nothing else");
    });
}

/// Stops both nodes and checks that nothing went uncounted.
fn stop_and_add_up(nodes: &[Node; 2]) -> [PumpCounters; 2] {
    nodes.iter().for_each(Node::stop);
    let moved = [0, 1].map(|number| nodes[number].pump.counters());
    for (node, near) in nodes.iter().zip(&moved) {
        let (engine, network) = (node.engine.counters(), node.engine.network_counters(vni()).unwrap());
        let sum = |direction: &str, but: &[&str]| -> u64 {
            let names = COUNTER_NAMES.iter().filter(|name| name.starts_with(direction) && !but.contains(name));
            names.map(|name| engine.get(name).unwrap() + network.get(name).unwrap()).sum()
        };
        // A datagram that could not be sent has been sealed before.
        assert_eq!(near.device_read_packets, sum("tx_", &["tx_bytes", "tx_errors"]), "{near:?}");
        assert_eq!(node.counter("tx_packets"), near.underlay_sent + near.underlay_send_errors, "{near:?}");
        assert_eq!(near.underlay_received, sum("rx_", &["rx_bytes"]) + near.underlay_truncated, "{near:?}");
        assert_eq!(node.counter("rx_packets"), near.device_write_packets + near.device_write_errors, "{near:?}");
    }
    moved
}

#[test]
fn with_and_without_each_offload_everything_arrives_and_every_packet_is_counted() {
    const BYTES: usize = 8 << 20;
    let off = |tun, udp| Options { tun, udp, ..Options::default() };
    let (tun, udp) = (TunOffload::ALL, UdpOffload::default());
    let rows = [
        off(tun, udp),
        off(TunOffload { tso: false, ..tun }, udp),
        off(TunOffload { uso: false, ..tun }, udp),
        off(TunOffload { gro: false, ..tun }, udp),
        off(tun, UdpOffload { segment: false, ..udp }),
        off(tun, UdpOffload { merge: false, ..udp }),
        off(TunOffload::NONE, UdpOffload { segment: false, merge: false }),
        Options { queues: 4, hashing: true, ..Options::default() },
    ];
    for options in rows {
        let Some(nodes) = connected_pair(options) else { return };
        echo(&nodes, overlay_v4, &[7; 1000]);
        transfer(&nodes, 0, overlay_v4, BYTES);
        transfer(&nodes, 1, overlay_v6, BYTES);
        for [near, far] in {
            let [one, other] = stop_and_add_up(&nodes);
            [[one, other], [other, one]]
        } {
            let Options { tun, udp, .. } = options;
            let in_pieces = |on: bool, pieces: u64, packets: u64| {
                assert!(pieces <= packets, "{options:?} {near:?}");
                // TCP fills what it hands over; a third is far from what is seen.
                let whole = packets - pieces > (BYTES / 1392 / 3) as u64;
                assert_eq!(whole, on, "{pieces} pieces, {packets} packets: {options:?} {near:?}");
            };
            in_pieces(tun.tso, near.device_reads, near.device_read_packets);
            in_pieces(udp.segment, near.underlay_sends, near.underlay_sent);
            // The wire of this test does not cut what is sent uncut; it does not merge either.
            in_pieces(udp.merge && udp.segment, near.underlay_receives, near.underlay_received);
            in_pieces(tun.gro, near.device_writes, near.device_write_packets + near.device_write_errors);
            assert!(far.underlay_sent >= near.underlay_received, "{near:?} {far:?}");
        }
        assert_eq!(nodes.each_ref().map(|node| node.notices.try_recv().ok()), [None, None]);
    }
}

#[test]
fn eight_workers_keep_every_flow_in_order_and_use_no_counter_twice() {
    const FLOWS: u16 = 24;
    const DATAGRAMS: u32 = 4000;
    let Some(nodes) = connected_pair(Options { queues: 8, hashing: true, ..Options::default() }) else { return };
    echo(&nodes, overlay_v4, b"before");
    let bound = |number: usize, port| {
        nodes[number].namespace.run(|| {
            let socket = UdpSocket::bind((overlay_v4(number), port)).unwrap();
            socket.connect((overlay_v4(1 - number), port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            socket
        })
    };
    let flows: Vec<[UdpSocket; 2]> = (7000..7000 + FLOWS).map(|port| [bound(0, port), bound(1, port)]).collect();
    // From the first answer on, a flow stays on its queue.
    for [near, far] in &flows {
        eventually("both directions have begun", || {
            near.send(&[]).is_ok() && far.recv(&mut [0]).is_ok() && far.send(&[]).is_ok() && near.recv(&mut [0]).is_ok()
        });
    }
    let sent_and_received = |socket: &UdpSocket| {
        thread::scope(|scope| {
            let received = scope.spawn(|| {
                let (mut count, mut last) = (0, 0);
                let mut number = [0; 4];
                while let Ok(length) = socket.recv(&mut number) {
                    // Others are left from the beginning.
                    if length == 4 {
                        let next = u32::from_ne_bytes(number);
                        assert!(next > last, "{next} came after {last}");
                        (count, last) = (count + 1, next);
                    }
                }
                count
            });
            for number in 1..=DATAGRAMS {
                socket.send(&number.to_ne_bytes()).unwrap();
                if number % 32 == 0 {
                    // No faster than the devices take it, more or less.
                    thread::sleep(Duration::from_millis(1));
                }
            }
            received.join().unwrap()
        })
    };
    let received: u32 = thread::scope(|scope| {
        let ends: Vec<_> = flows.iter().flatten().map(|socket| scope.spawn(|| sent_and_received(socket))).collect();
        ends.into_iter().map(|end| end.join().unwrap()).sum()
    });
    // A device may drop what it has no room for; most of it comes.
    // A device may drop what it has no room for; a good part comes.
    assert!(received > u32::from(FLOWS) * DATAGRAMS / 10, "{received}");
    stop_and_add_up(&nodes);
    for node in &nodes {
        let worked = node.pump.control.counters.iter().filter(|worker| {
            let mut counters = PumpCounters::default();
            worker.add_to(&mut counters);
            counters.device_read_packets > 0 && counters.underlay_received > 0
        });
        assert!(worked.count() >= 4, "flows are spread: {:?}", node.pump.control.counters);
        assert_eq!(node.pump.counters().device_write_errors, 0);
        let network = node.engine.network_counters(vni()).unwrap();
        // Where there are more workers than processors some datagrams come too late for the replay window, and are counted there.
        assert_eq!((network.get("rx_auth_failed"), network.get("rx_malformed")), (Some(0), Some(0)));
        let sealed = node.engine.sa_status(clock::now(), vni()).unwrap().tx.unwrap().sealed;
        assert_eq!(Some(sealed), network.get("tx_packets"), "each counter value was used once");
    }
}

#[test]
fn where_the_kernel_refuses_to_cut_everything_arrives_and_the_pump_tells_once() {
    let refuse = |ends: &Ends| {
        // The kernel cuts nothing for a socket without checksums (`udp_send_skb` in net/ipv4/udp.c).
        sys::set_option(ends.udp.base(0), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    };
    let Some(nodes) = pair_with(Options::default(), refuse) else { return };
    (0..2).for_each(|number| install(&nodes[number].engine, number));
    transfer(&nodes, 0, overlay_v4, 8 << 20);
    transfer(&nodes, 1, overlay_v4, 8 << 20);
    for (counters, node) in stop_and_add_up(&nodes).iter().zip(&nodes) {
        assert_eq!((counters.underlay_sends, counters.underlay_send_errors), (counters.underlay_sent, 0));
        let notice = node.notices.try_recv().unwrap();
        let PumpNotice::SegmentationRefused { local, errno, .. } = notice else { panic!("{notice:?}") };
        assert_eq!((local.port(), errno), (6081, Some(libc::EINVAL)));
        assert!(node.notices.try_recv().is_err(), "told once");
    }
}

#[test]
fn a_stop_ends_an_idle_pump_at_once_and_takes_the_device_away() {
    let Some(namespace) = NetNs::new() else { return };
    namespace.run(|| {
        let Started { pump, ended, .. } = start(ends(0, Options::default()));
        assert!(matches!(ended.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout)));
        let asked = Time::now();
        pump.stop();
        pump.stop();
        pump.join();
        assert!(asked.elapsed() < Duration::from_secs(1), "took {:?}", asked.elapsed());
        assert!(matches!(ended.recv(), Ok(Ok(()))));
        assert!(ended.recv().is_err(), "told once");
        assert!(matches!(link::by_name("icx0"), Err(LinkError::NotFound(_))), "before the pump itself is dropped");
        open_udp(Options::default());
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
        let ends = ends(0, Options { keepalive: Some(Duration::from_secs(3600)), ..Options::default() });
        install(&ends.engine, 0);
        let control = Control::new(1, Box::new(|_| {})).unwrap();
        delete("icx0").unwrap();

        // The keepalive is sealed before the device is found gone.
        assert!(matches!(work(&ends, &control, 0), Err(PumpError::DeviceRemoved { call: "read", .. })));
        let mut moved = PumpCounters::default();
        control.counters[0].add_to(&mut moved);
        let counters = ends.engine.network_counters(vni()).unwrap();
        assert_eq!(counters.get("tx_packets"), Some(1));
        assert_eq!(moved.underlay_sent + moved.underlay_send_errors, 1);
        assert_eq!(counters.get("tx_errors"), Some(moved.underlay_send_errors));

        let worker = Worker::new(&ends, &control, 0);
        let written = worker.write(&[0x45; 30], 3);
        assert!(matches!(written, Err(PumpError::DeviceRemoved { call: "write", .. })), "{written:?}");
        control.counters[0].add_to(&mut moved);
        assert_eq!((moved.device_write_packets, moved.device_write_errors), (0, 3));
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

/// What a datagram of node 0 starts with.
fn tunnel_header(counter: u64) -> [u8; geneve::HEADER_LEN] {
    let mut header = [0; geneve::HEADER_LEN];
    let fields = TunnelHeader { protocol: 0x0800, vni: vni(), spi: 1, counter };
    geneve::emit(&fields, &mut header);
    header
}

#[test]
fn a_path_that_narrows_is_learned_from_who_has_seen_a_packet_and_from_nobody_else() {
    for underlay in [["192.0.2.1", "192.0.2.2"], ["fd00:aa::1", "fd00:aa::2"]] {
        let Some(nodes) = connected_pair(Options { underlay, inner_mtu: Some(1392), ..Options::default() }) else {
            return;
        };
        echo(&nodes, overlay_v4, b"before");
        let [own, peer] = underlay.map(|address| SocketAddr::new(address.parse().unwrap(), 6081));
        let liar = nodes[0].namespace.run(|| Liar::new(own.ip()));
        let counters = || nodes[0].pump.counters();
        let stranger = SocketAddr::new(if own.is_ipv4() { "192.0.2.9" } else { "fd00:aa::9" }.parse().unwrap(), 6081);
        let mut other_spi = tunnel_header(1);
        (other_spi[15], other_spi[23]) = (9, 9);
        for (to, quote) in [(peer, other_spi), (peer, tunnel_header(1 << 40)), (stranger, tunnel_header(1))] {
            let before = counters().path_mtu_ignored;
            liar.complain(own, to, Complaint::TooBig(1300), &quote);
            eventually("it is counted", || counters().path_mtu_ignored == before + 1);
        }
        liar.complain(own, peer, Complaint::PortUnreachable, &tunnel_header(1));
        eventually("it is counted", || counters().underlay_lost_reports == 1);
        assert_eq!((nodes[0].engine.path_mtu(vni()), counters().path_mtu_updates), (None, 0));
        assert!(nodes[0].notices.try_recv().is_err());

        liar.complain(own, peer, Complaint::TooBig(1400), &tunnel_header(1));
        let notice = nodes[0].notices.recv_timeout(LIVENESS).unwrap();
        let learned = Some(PathMtu { path_mtu: 1400, inner_mtu: 1296 });
        let expected = PathMtuChange { vni: vni(), learned, reason: PathMtuReason::Router };
        assert_eq!(notice, PumpNotice::PathMtu(expected));
        assert_eq!(counters().path_mtu_updates, 1);

        let device_mtu = || nodes[0].namespace.run(|| link::by_name("icx0").unwrap().mtu);
        let Node { namespace, pump, .. } = &nodes[0];
        let set = |mtu| namespace.run(|| pump.set_device_mtu(mtu));
        set(1296).unwrap();
        assert_eq!(device_mtu(), 1296);
        let error = set(1279).unwrap_err();
        assert!(matches!(error, DeviceError::BadMtu { given: 1279, least: 1280 }), "{error:?}");
        set(1392).unwrap();
        assert_eq!(device_mtu(), 1392);

        let near = nodes[0].namespace.run(|| UdpSocket::bind((overlay_v4(0), 0)).unwrap());
        sys::set_option(near.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO).unwrap();
        eventually("the sender is told", || {
            near.send_to(&[0; 1392 - 28], (overlay_v4(1), 9))
                .is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE))
        });
        near.send_to(&[0; 1296 - 28], (overlay_v4(1), 9)).expect("what fits passes");
        echo(&nodes, overlay_v6, b"after");
        // The peer's address changes: the path is another one.
        let mut moved = nodes[0].engine.networks().remove(0);
        moved.peer = stranger;
        nodes[0].engine.update_network(moved).unwrap();
        let notice = nodes[0].notices.recv_timeout(LIVENESS).unwrap();
        let expected = PathMtuChange { vni: vni(), learned: None, reason: PathMtuReason::PeerChanged };
        assert_eq!(notice, PumpNotice::PathMtu(expected));
        for node in &nodes {
            node.stop();
        }
        assert!(set(1392).is_ok(), "there is no device any more, and nothing to do");
    }
}

#[test]
fn traffic_passes_while_forged_messages_come_in() {
    let Some(nodes) = connected_pair(Options { hashing: true, ..Options::default() }) else { return };
    let [own, peer] = Options::default().underlay.map(|address| SocketAddr::new(address.parse().unwrap(), 6081));
    let done = AtomicBool::new(false);
    let liar = nodes[0].namespace.run(|| Liar::new(own.ip()));
    thread::scope(|scope| {
        let ends = SetOnDrop(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                liar.complain(own, peer, Complaint::PortUnreachable, &tunnel_header(1));
                liar.complain(own, peer, Complaint::TooBig(600), &tunnel_header(1 << 40));
            }
        });
        for round in 0..50_u8 {
            echo(&nodes, overlay_v4, &[round; 100]);
        }
        drop(ends);
    });
    for node in &nodes {
        node.stop();
        let counters = node.pump.counters();
        assert_eq!((counters.underlay_send_errors, counters.path_mtu_updates), (0, 0));
    }
    assert_eq!(nodes[0].engine.path_mtu(vni()), None);
    let counters = nodes[0].pump.counters();
    assert!(counters.path_mtu_ignored > 0 && counters.underlay_lost_reports > 0, "{counters:?}");
}

fn panicking(_ends: &Ends, _control: &Control, _number: usize) -> Result<(), PumpError> {
    panic!("on purpose");
}

#[test]
fn a_panic_in_a_worker_ends_the_pump_with_an_error() {
    let Some(namespace) = NetNs::new() else { return };
    namespace.run(|| {
        let (tell, ended) = mpsc::channel();
        let ends = ends(0, Options { queues: 2, ..Options::default() });
        let works = [work as Work, panicking];
        let on_end = Box::new(move |result| tell.send(result).unwrap());
        let pump = Pump::start_workers(&works, ends, Box::new(|_| {}), on_end).unwrap();
        let error = ended.recv_timeout(LIVENESS).unwrap().unwrap_err();
        assert!(
            matches!(&error, PumpError::Panicked { worker, message } if worker == "icx-pump-1" && message == "on purpose"),
            "{error:?}"
        );
        assert!(ended.recv().is_err(), "told once, after the other worker has ended too");
        pump.join();
    });
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
            let Started { pump, ended, .. } =
                start(ends(0, Options { hashing: true, queues: 2, ..Options::default() }));
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
