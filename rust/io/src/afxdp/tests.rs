//! Forwarders between real interfaces, each node in a network namespace of its own.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant as Time};

use icx_proto::engine::{
    Engine, EngineConfig, LocalEndpoint, Mode, NetworkConfig, OuterTrafficClass, RxVerdict, TxVerdict, Underlay,
};
use icx_proto::{AllowedRoute, Instant, IpPrefix, MacAddr, SaKey, TxKeyHistory, Vni};

use super::*;
use crate::pump::Latency;
use crate::test_support::{NetNs, delete, set_up};
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
