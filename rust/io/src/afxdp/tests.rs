//! Forwarders between real interfaces, each node in a network namespace of its own.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant as Time};

use icx_proto::engine::{
    Engine, EngineConfig, LocalEndpoint, Mode, NetworkConfig, OuterTrafficClass, RxVerdict, TxVerdict, Underlay,
};
use icx_proto::{AllowedRoute, Instant, IpPrefix, MacAddr, SaKey, TxKeyHistory, Vni};

use super::*;
use crate::pump::Latency;
use crate::test_support::{NetNs, delete, resources, set_up};
use crate::tun::{Tun, TunConfig, TunOffload};
use crate::{clock, link};

/// For what must happen, but may be slow on a loaded machine.
const LIVENESS: Duration = Duration::from_secs(20);

const HOST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

#[derive(Clone, Copy, Debug)]
struct Options {
    veth: bool,
    attach: AttachMode,
    underlay: [&'static str; 2],
    queues: u32,
    keepalive: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            veth: true,
            attach: AttachMode::Auto,
            underlay: ["192.0.2.1", "192.0.2.2"],
            queues: 1,
            keepalive: None,
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
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

/// One end of a tunnel: `number` is 0 or 1; its overlay addresses end in `number + 1`.
struct Node {
    namespace: NetNs,
    engine: Arc<Engine>,
    forwarder: Forwarder,
    ended: Receiver<Result<(), ForwarderError>>,
    notices: Receiver<ForwarderNotice>,
}

fn engine(number: usize, options: Options) -> Arc<Engine> {
    let [ours, theirs] = [number, 1 - number].map(|at| SocketAddr::new(ip(options.underlay[at]), 6081));
    let mac = link::by_name("under").unwrap().mac.unwrap();
    let engine = Engine::new(EngineConfig {
        mode: match options.veth {
            true => Mode::L2 { host_mac: HOST_MAC, gateway_mac: GATEWAY_MAC },
            false => Mode::L3,
        },
        underlay: Underlay::Raw {
            local: vec![LocalEndpoint { addr: ours, mac }],
            outer_udp_checksum: false,
            dont_fragment: true,
        },
        peer_filter: true,
        source_port_hashing: None,
        outer_traffic_class: OuterTrafficClass::default(),
        keepalive: options.keepalive,
        inner_mtu: Some(1380),
        tx_key_history: Arc::new(TxKeyHistory::new(&[number as u8; 32])),
    });
    let [v4, v6] = ["0.0.0.0", "::"].map(|any| IpPrefix::new(ip(any), 0).unwrap());
    let routes = vec![AllowedRoute { src: v4, dst: v4 }, AllowedRoute { src: v6, dst: v6 }];
    let network = NetworkConfig { vni: vni(), peer: theirs, peer_mac: MacAddr::default(), routes, rx_rate_limit: None };
    engine.add_network(network).unwrap();
    Arc::new(engine)
}

fn install(engine: &Engine, number: usize) {
    let key = |number: usize| SaKey::from_slice(&[number as u8 + 1; 16]).unwrap();
    let (rx, tx) = (key(number), key(1 - number));
    engine.danger_install_epoch(clock::now(), vni(), 1, rx, tx, Instant::FAR_FUTURE).unwrap();
}

fn config(number: usize, options: Options) -> ForwarderConfig {
    let addresses = vec![(overlay_v4(number), 24), (overlay_v6(number), 64)];
    let (name, mtu) = ("icx0".to_owned(), 1380);
    ForwarderConfig {
        interface: "under".to_owned(),
        device: match options.veth {
            true => DeviceConfig::Veth(VethDevice { name, mtu, addresses }),
            false => {
                let queues = NonZero::new(options.queues as u16).unwrap();
                let offload = TunOffload::ALL;
                DeviceConfig::Tun(Tun::open(TunConfig { name, mtu, addresses, queues, offload }).unwrap())
            }
        },
        bound: vec![SocketAddr::new(ip(options.underlay[number]), 6081)],
        attach: options.attach,
        zero_copy: ZeroCopy::Auto,
        queues: None,
        cpu_pin: options.queues > 1,
        busy_poll: None,
        latency: Latency::default(),
        clamp_mss: false,
        idle_wake: Duration::from_millis(250),
        capture: None,
    }
}

struct Started {
    forwarder: Forwarder,
    ended: Receiver<Result<(), ForwarderError>>,
    notices: Receiver<ForwarderNotice>,
}

fn start(forwarder: Forwarder) -> Started {
    let (tell, ended) = mpsc::channel();
    let (note, notices) = mpsc::channel();
    let on_notice = Box::new(move |notice| note.send(notice).unwrap_or(()));
    let on_end = Box::new(move |result| tell.send(result).unwrap_or(()));
    forwarder.start(on_notice, on_end).unwrap();
    Started { forwarder, ended, notices }
}

/// Two namespaces with a wire between them.
fn wired(options: Options) -> Option<[NetNs; 2]> {
    let namespaces = [NetNs::new()?, NetNs::new()?];
    let prefix = if ip(options.underlay[0]).is_ipv4() { 24 } else { 64 };
    let [ours, theirs] = options.underlay.map(|address| (ip(address), prefix));
    namespaces[0].connect_queues(&namespaces[1], ours, theirs, options.queues);
    Some(namespaces)
}

fn pair(options: Options) -> Option<[Node; 2]> {
    let namespaces = wired(options)?;
    let mut number = 0;
    Some(namespaces.map(|namespace| {
        let this = number;
        number += 1;
        let (engine, started) = namespace.run(|| {
            let engine = engine(this, options);
            install(&engine, this);
            let forwarder = Forwarder::open(Arc::clone(&engine), config(this, options)).unwrap();
            (engine, start(forwarder))
        });
        let Started { forwarder, ended, notices } = started;
        Node { namespace, engine, forwarder, ended, notices }
    }))
}

impl Node {
    fn stop(&self) {
        self.forwarder.stop();
        self.ended.recv_timeout(LIVENESS).expect("an end was due").unwrap();
    }
}

/// Sends a datagram there and back until it arrives.
fn echo(nodes: &[Node; 2], overlay: fn(usize) -> IpAddr, payload: &[u8]) {
    let far = nodes[1].namespace.run(|| UdpSocket::bind((overlay(1), 0)).unwrap());
    let near = nodes[0].namespace.run(|| UdpSocket::bind((overlay(0), 0)).unwrap());
    let target = far.local_addr().unwrap();
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    }
    let mut buffer = [0; 2048];
    let end = Time::now() + LIVENESS;
    while Time::now() < end {
        near.send_to(payload, target).unwrap();
        let Ok((length, from)) = far.recv_from(&mut buffer) else { continue };
        assert_eq!(&buffer[..length], payload);
        far.send_to(payload, from).unwrap();
        let Ok((length, _)) = near.recv_from(&mut buffer) else { continue };
        assert_eq!(&buffer[..length], payload);
        return;
    }
    for node in nodes {
        eprintln!("{:?} {:?}", node.forwarder.state(), node.forwarder.counters());
    }
    panic!("no echo within {LIVENESS:?}");
}

/// Moves `bytes` over TCP from the first node to the second, and compares them.
fn transfer(nodes: &[Node; 2], bytes: usize) {
    let listener = nodes[1].namespace.run(|| TcpListener::bind((overlay_v4(1), 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let byte = |at: usize| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8;
    let sender = nodes[0].namespace.run(|| TcpStream::connect(target).unwrap());
    let sending = thread::spawn(move || {
        let mut sender = sender;
        let data: Vec<u8> = (0..bytes).map(byte).collect();
        sender.write_all(&data).unwrap();
    });
    let (mut receiver, _) = listener.accept().unwrap();
    let mut received = Vec::with_capacity(bytes);
    receiver.read_to_end(&mut received).unwrap();
    sending.join().unwrap();
    assert_eq!(received.len(), bytes);
    assert!(received.iter().enumerate().all(|(at, value)| *value == byte(at)), "some byte is wrong");
}

#[test]
fn packets_pass_over_every_device_attach_mode_underlay_and_number_of_queues() {
    let v6 = ["fd00:aa::1", "fd00:aa::2"];
    for (veth, attach, underlay, queues) in [
        (true, AttachMode::Native, None, 1),
        (true, AttachMode::Generic, None, 2),
        (true, AttachMode::Auto, Some(v6), 1),
        (false, AttachMode::Native, None, 2),
        (false, AttachMode::Generic, Some(v6), 1),
    ] {
        let defaults = Options::default();
        let underlay = underlay.unwrap_or(defaults.underlay);
        let options = Options { veth, attach, underlay, queues, ..defaults };
        let Some(nodes) = pair(options) else { return };
        let info = nodes[0].forwarder.info();
        assert_eq!(info.queues, queues);
        if attach != AttachMode::Auto {
            assert_eq!(info.attached == AttachedMode::Native, attach == AttachMode::Native);
        }
        for size in [0, 1, 18, 500, 1332] {
            echo(&nodes, overlay_v4, &vec![size as u8; size]);
        }
        echo(&nodes, overlay_v6, b"over IPv6");
        transfer(&nodes, 20 << 20);
        for node in &nodes {
            node.stop();
            let (moved, own) = node.forwarder.counters();
            let counters = node.engine.network_counters(vni()).unwrap();
            assert_eq!(
                counters.get("tx_packets"),
                Some(moved.underlay_sent + moved.underlay_send_errors),
                "{options:?}"
            );
            // What came behind the stop is still on the ring.
            let missing = own.filter_redirected - moved.underlay_received - own.rx_ring_full - own.rx_fill_empty;
            assert!(missing < 64, "{moved:?} {own:?}");
            assert_eq!((own.transform_panics, own.invalid_descriptors, own.rx_oversize), (0, 0, 0), "{own:?}");
            node.namespace.run(|| assert!(link::by_name("icx0").is_err(), "the device is gone"));
        }
    }
}

/// Asks until the answer is yes.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Time::now() + LIVENESS;
    while !is_so() {
        assert!(Time::now() < end, "not within {LIVENESS:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Sends `count` datagrams with their numbers from the first node's host to the second's, as fast as it goes; gives how many arrived.
fn flood(nodes: &[Node; 2], count: u32) -> u32 {
    let far = nodes[1].namespace.run(|| UdpSocket::bind((overlay_v4(1), 0)).unwrap());
    far.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let near = nodes[0].namespace.run(|| UdpSocket::bind((overlay_v4(0), 0)).unwrap());
    let target = far.local_addr().unwrap();
    let sending = thread::spawn(move || {
        for number in 0..count {
            // A full queue of the host's own is none of ours.
            let _ = near.send_to(&number.to_be_bytes(), target);
        }
    });
    let mut arrived = 0;
    let mut buffer = [0; 64];
    while far.recv_from(&mut buffer).is_ok() {
        arrived += 1;
    }
    sending.join().unwrap();
    arrived
}

#[test]
fn no_frame_is_lost_over_a_million_packets_with_rings_forced_full() {
    let Some(nodes) = pair(Options::default()) else { return };
    echo(&nodes, overlay_v4, b"warm");
    let mut rounds = 0;
    // Small packets come faster than two processors seal and open them, so that rings and queues run full all the time.
    while nodes[0].forwarder.counters().0.underlay_sent + nodes[1].forwarder.counters().0.underlay_sent < 1_000_000 {
        assert!(flood(&nodes, 100_000) > 0);
        rounds += 1;
        assert!(rounds < 60, "too slow: {:?}", nodes[0].forwarder.counters());
    }
    // A leak of one frame in a thousand would have used all of them up by now; all rings are as full as at the start.
    echo(&nodes, overlay_v4, b"still");
    transfer(&nodes, 10 << 20);
    for node in &nodes {
        node.stop();
        let (moved, own) = node.forwarder.counters();
        assert_eq!((own.invalid_descriptors, own.transform_panics), (0, 0), "{own:?}");
        assert_eq!(own.tx_abandoned, 0, "{own:?}");
        let counters = node.engine.network_counters(vni()).unwrap();
        assert_eq!(counters.get("tx_packets"), Some(moved.underlay_sent + moved.underlay_send_errors));
        assert_eq!(counters.get("rx_packets"), Some(moved.device_write_packets));
    }
}

#[test]
fn frames_are_all_accounted_for_whatever_the_kernel_does_with_them() {
    use super::umem::{BATCH, Pool, Port, RING, frames_for};
    use crate::sys::{Umem, Xsk, XskConfig};

    let Some([near, _far]) = wired(Options::default()) else { return };
    near.run(|| {
        let frames = frames_for(1);
        let (umem, free) = Umem::new(frames, 2048, RING).unwrap();
        let mut pool = Pool { umem, free };
        let config = XskConfig { interface: "under", queue: 0, ring: RING, zero_copy: Some(false) };
        let mut port = Port::new(Xsk::bind(&pool.umem, config).unwrap());
        let total = frames.get() as usize;
        let mut sent = 0;
        for round in 0..40_000_usize {
            port.refill(&mut pool, false);
            // More than the kernel transmits in one call, so that the ring fills up; with the link down it refuses them all.
            if round % 1000 == 500 {
                set_up("under", round % 2000 != 500).unwrap();
            }
            while port.has_room() && port.waiting.len() < 2 * BATCH {
                let mut frame = pool.free.pop().expect("the pool never runs dry");
                pool.umem.room(&mut frame)[..60].fill(0xff);
                pool.umem.set_len(&mut frame, 60);
                port.waiting.push(frame);
            }
            sent += port.transmit(&mut pool).frames;
            assert_eq!(pool.free.len() + port.waiting.len() + pool.umem.lent(), total, "round {round}");
        }
        assert!(sent >= 1_000_000, "{sent} frames");
        set_up("under", true).unwrap();
        eventually("everything has been transmitted", || {
            port.transmit(&mut pool);
            !port.is_stuck() && pool.umem.lent() == RING as usize
        });
        assert_eq!(pool.free.len(), total - RING as usize, "all but what waits to receive");
    });
}

/// Panics at packets that say so.
struct Touchy(Arc<Engine>);

const TOUCHY: &[u8] = b"do not touch";

impl Transform for Touchy {
    fn encapsulate(&self, now: Instant, buffer: &mut [u8], frame: Range<usize>) -> TxVerdict {
        assert!(!buffer[frame.clone()].ends_with(TOUCHY), "on purpose");
        self.0.virt_to_phy_in_place(now, buffer, frame)
    }

    fn decapsulate(&self, now: Instant, frame: &[u8], out: &mut [u8]) -> RxVerdict {
        let verdict = self.0.phy_to_virt(now, None, frame, out);
        let is_touched =
            matches!(&verdict, RxVerdict::Deliver { range, .. } if out[range.clone()].ends_with(b"nor this"));
        assert!(!is_touched, "on purpose");
        verdict
    }
}

#[test]
fn a_panic_in_the_transform_costs_one_frame_and_a_counter() {
    let options = Options::default();
    let Some(namespaces) = wired(options) else { return };
    let mut number = 0;
    let nodes = namespaces.map(|namespace| {
        let this = number;
        number += 1;
        let (engine, started) = namespace.run(|| {
            let engine = engine(this, options);
            install(&engine, this);
            let transform = Arc::new(Touchy(Arc::clone(&engine)));
            let forwarder = Forwarder::open_with(Arc::clone(&engine), transform, config(this, options)).unwrap();
            (engine, start(forwarder))
        });
        let Started { forwarder, ended, notices } = started;
        Node { namespace, engine, forwarder, ended, notices }
    });
    echo(&nodes, overlay_v4, b"before");
    let near = nodes[0].namespace.run(|| UdpSocket::bind((overlay_v4(0), 0)).unwrap());
    for (payload, counted) in [(TOUCHY, 0), (b"nor this", 1)] {
        for _ in 0..100 {
            near.send_to(payload, (overlay_v4(1), 9)).unwrap();
        }
        eventually("panics are counted", || nodes[counted].forwarder.counters().1.transform_panics == 100);
    }
    echo(&nodes, overlay_v4, b"after");
    for node in &nodes {
        node.stop();
    }
}

/// The next notice about the link.
fn link_notice(node: &Node) -> LinkStatus {
    loop {
        match node.notices.recv_timeout(LIVENESS).expect("a notice was due") {
            ForwarderNotice::Link { status, .. } => return status,
            _ => continue,
        }
    }
}

#[test]
fn an_interface_that_goes_down_away_and_comes_back_is_a_state_and_then_traffic_again() {
    let options = Options::default();
    let Some(nodes) = pair(options) else { return };
    echo(&nodes, overlay_v4, b"before");
    let near = &nodes[0];
    near.namespace.run(|| set_up("under", false).unwrap());
    assert_eq!(link_notice(near), LinkStatus::Down);
    assert_eq!(near.forwarder.state().link, LinkStatus::Down);
    near.namespace.run(|| set_up("under", true).unwrap());
    assert_eq!(link_notice(near), LinkStatus::Up);
    echo(&nodes, overlay_v4, b"up again");

    near.namespace.run(|| crate::test_support::rename("under", "over"));
    eventually("the new name is seen", || near.forwarder.state().interface == "over");
    echo(&nodes, overlay_v4, b"renamed");
    near.namespace.run(|| crate::test_support::rename("over", "under"));
    eventually("the old name is seen", || near.forwarder.state().interface == "under");

    // The pair goes on both sides, and comes back with the addresses that the engines have.
    let macs = [0, 1].map(|at: usize| nodes[at].forwarder.info().mac);
    near.namespace.run(|| delete("under").unwrap());
    for node in &nodes {
        while link_notice(node) != LinkStatus::Removed {}
        assert_eq!(node.forwarder.state().link, LinkStatus::Removed);
        node.namespace.run(|| assert!(link::by_name("icx0").is_ok(), "the device stays"));
    }
    let [ours, theirs] = options.underlay.map(|address| (ip(address), 24));
    near.namespace.connect_with(&nodes[1].namespace, ours, theirs, 1, Some(macs));
    for node in &nodes {
        assert_eq!(link_notice(node), LinkStatus::Up);
        assert_eq!(node.forwarder.state().link, LinkStatus::Up);
    }
    echo(&nodes, overlay_v4, b"back");
    nodes.iter().for_each(Node::stop);
}

#[test]
fn an_interface_that_comes_back_with_another_hardware_address_ends_it_with_an_error() {
    let options = Options::default();
    let Some(nodes) = pair(options) else { return };
    nodes[0].namespace.run(|| delete("under").unwrap());
    let [ours, theirs] = options.underlay.map(|address| (ip(address), 24));
    nodes[0].namespace.connect_with(&nodes[1].namespace, ours, theirs, 1, None);
    let error = nodes[0].ended.recv_timeout(LIVENESS).unwrap().unwrap_err();
    assert!(matches!(&error, ForwarderError::MacChanged { interface, .. } if interface == "under"), "{error:?}");
    nodes[0].namespace.run(|| assert!(link::by_name("icx0").is_err(), "everything is given back"));
}

#[test]
fn a_veth_pair_that_is_removed_ends_it_with_an_error_that_names_it() {
    let Some(nodes) = pair(Options::default()) else { return };
    echo(&nodes, overlay_v4, b"before");
    nodes[0].namespace.run(|| delete("icx0").unwrap());
    let error = nodes[0].ended.recv_timeout(LIVENESS).unwrap().unwrap_err();
    assert!(matches!(&error, ForwarderError::DeviceRemoved(name) if name == "icx0"), "{error:?}");
    nodes[1].stop();
}

#[test]
fn what_does_not_go_together_is_refused_before_anything_is_made() {
    let Some([near, _far]) = wired(Options::default()) else { return };
    near.run(|| {
        let l2 = Options::default();
        let l3 = Options { veth: false, ..l2 };
        let refused = |engine_options, config: ForwarderConfig| {
            let error = Forwarder::open(engine(0, engine_options), config).unwrap_err();
            assert!(link::by_name("icx0").is_err(), "nothing is left: {error}");
            error
        };
        let error = refused(l3, config(0, l2));
        assert!(matches!(&error, ForwarderError::Mode { device: "veth", mode: "L2", .. }), "{error:?}");
        let error = refused(l2, config(0, l3));
        assert!(matches!(&error, ForwarderError::Mode { device: "TUN", mode: "L3", .. }), "{error:?}");
        let error = refused(l2, ForwarderConfig { queues: Some(3), ..config(0, l2) });
        assert!(matches!(&error, ForwarderError::Queues { given: 3, there: 1, .. }), "{error:?}");
        let error = refused(l2, ForwarderConfig { bound: Vec::new(), ..config(0, l2) });
        assert!(matches!(&error, ForwarderError::Bound { given: 0, most: 16 }), "{error:?}");
        let error = refused(l2, ForwarderConfig { interface: "lost".to_owned(), ..config(0, l2) });
        assert!(error.to_string().contains("\"lost\""), "{error}");
        let error = refused(l3, ForwarderConfig { zero_copy: ZeroCopy::Require, ..config(0, l3) });
        assert!(matches!(&error, ForwarderError::NoZeroCopy { .. }), "{error:?}");
        let name = "a-long-name0".to_owned();
        let device = DeviceConfig::Veth(VethDevice { name: name.clone(), mtu: 1380, addresses: Vec::new() });
        let error = refused(l2, ForwarderConfig { device, ..config(0, l2) });
        assert!(error.to_string().contains(&name), "{error}");

        let first = Forwarder::open(engine(0, l2), config(0, l2)).unwrap();
        let error = Forwarder::open(engine(0, l2), config(0, l2)).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EBUSY), "{error}");
        assert!(error.to_string().contains("another icx"), "{error}");
        drop(first);
        Forwarder::open(engine(0, l2), config(0, l2)).expect("everything was given back");
    });
}

#[test]
fn starts_and_stops_leave_nothing_behind() {
    // In a process of its own: other tests open and close things meanwhile.
    const ALONE: &str = "ICX_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "afxdp::tests::starts_and_stops_leave_nothing_behind";
        let mut test = std::process::Command::new(std::env::current_exe().unwrap());
        assert!(test.args([name, "--exact"]).env(ALONE, "1").status().unwrap().success());
        return;
    }
    let Some([near, _far]) = wired(Options::default()) else { return };
    near.run(|| {
        let cycle = |veth: bool, starts: bool| {
            let options = Options { veth, ..Options::default() };
            let forwarder = Forwarder::open(engine(0, options), config(0, options)).unwrap();
            if starts {
                let Started { forwarder, ended, .. } = start(forwarder);
                drop(forwarder);
                ended.recv_timeout(LIVENESS).unwrap().unwrap();
            }
        };
        cycle(true, true);
        let before = resources();
        for round in 0..12 {
            cycle(round % 2 == 0, round % 3 != 0);
        }
        assert_eq!(resources(), before);
    });
}

/// The Geneve header, ciphertext, ports, TTL and DF of a frame are the engine's own, whichever side it was sealed for.
#[test]
fn frames_on_the_wire_are_the_engines_own_to_the_byte() {
    for veth in [true, false] {
        let options = Options { veth, ..Options::default() };
        let Some([near, far]) = wired(options) else { return };
        let (wire, peer) = far.run(|| {
            let all = socket2::Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
            let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, Some(all)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let peer = engine(1, Options { veth: false, ..options });
            install(&peer, 1);
            (socket, peer)
        });
        let (engine, reference, started) = near.run(|| {
            let (ours, reference) = (engine(0, options), engine(0, Options { veth: false, ..options }));
            install(&ours, 0);
            install(&reference, 0);
            let forwarder = Forwarder::open(Arc::clone(&ours), config(0, options)).unwrap();
            (ours, reference, start(forwarder))
        });
        let far_mac = far.run(|| link::by_name("under").unwrap().mac.unwrap());
        reference.set_next_hop(ip(options.underlay[1]), far_mac);
        eventually("the next hop is known", || {
            matches!(&started.forwarder.state().next_hops[..], [NextHopState { mac: Ok(_), .. }])
        });
        near.run(|| {
            let socket = UdpSocket::bind((overlay_v4(0), 5005)).unwrap();
            for size in [0_usize, 1, 100, 1352] {
                socket.send_to(&vec![size as u8; size], (overlay_v4(1), 5005)).unwrap();
            }
        });
        let mut expected = 0;
        let mut frame = [0; 2048];
        while expected < 4 {
            let len = (&wire).read(&mut frame).expect("a frame is due");
            let frame = &frame[..len];
            // What is not for the data port is not ours.
            if frame.get(12..14) != Some(&[8, 0]) || frame.get(36..38) != Some(&6081_u16.to_be_bytes()[..]) {
                continue;
            }
            let mut inner = [0; 2048];
            let RxVerdict::Deliver { range, .. } = peer.phy_to_virt(clock::now(), None, frame, &mut inner) else {
                panic!("it does not open")
            };
            let mut sealed = [0; 2048];
            // The counter is the packet's number on both sides.
            let TxVerdict::Send { range, .. } = reference.virt_to_phy(clock::now(), &inner[range], &mut sealed) else {
                panic!("the reference does not seal")
            };
            assert_eq!(frame, &sealed[range], "veth {veth}, frame {expected}");
            expected += 1;
        }
        started.forwarder.stop();
        drop(engine);
    }
}
