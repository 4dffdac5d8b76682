//! One TCP connection between two stacks, each behind an engine and a pump of its own, over UDP on loopback: `cargo bench -p icx-netstack`.
//!
//! It says how much the stacks, the engines and the sockets carry; there are neither proxies nor programs beside them.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant as Time};

use icx_io::{Family, Pump, PumpOptions, Udp, UdpConfig, UdpOffload, clock};
use icx_netstack::{Stack, StackOptions, TcpStream};
use icx_proto::engine::{Engine, EngineConfig, Mode, NetworkConfig, OuterTrafficClass, Underlay};
use icx_proto::{AllowedRoute, Instant, IpPrefix, MacAddr, SaKey, TxKeyHistory, Vni};

const SECONDS: u64 = 4;

struct Node {
    stack: Stack,
    _pump: Pump,
}

fn main() {
    let v6 = std::env::args().any(|argument| argument == "v6");
    let sockets = [open_udp(), open_udp()];
    let ports = sockets.each_ref().map(|udp| udp.local_addr().port());
    let mut number = 0;
    let nodes = sockets.map(|udp| {
        let node = start(number, udp, ports[1 - number]);
        number += 1;
        node
    });
    let listener = nodes[1].stack.listen(80).unwrap();
    let remote: IpAddr = if v6 { "fd00::2" } else { "10.9.0.2" }.parse().unwrap();
    let near = nodes[0].stack.connect(SocketAddr::new(remote, 80)).unwrap();
    wait(|waker| near.poll_connected(waker)).unwrap();
    let far = wait(|waker| listener.poll_accept(waker)).unwrap();
    let before = processor_time();
    let sender = thread::spawn(move || send(&near));
    let (received, took) = receive(&far);
    let processor = processor_time() - before;
    sender.join().unwrap();
    let gigabits = received as f64 * 8e-9;
    println!(
        "{} {:.2} Gbit/s, {:.2} s of processor for each Gbit",
        if v6 { "IPv6" } else { "IPv4" },
        gigabits / took.as_secs_f64(),
        processor.as_secs_f64() / gigabits
    );
}

fn send(stream: &TcpStream) {
    let bytes = vec![0x5a; 256 << 10];
    let end = Time::now() + Duration::from_secs(SECONDS);
    while Time::now() < end {
        wait(|waker| stream.poll_send(&bytes, waker)).unwrap();
    }
    stream.close_send().unwrap();
}

fn receive(stream: &TcpStream) -> (u64, Duration) {
    let mut bytes = vec![0; 256 << 10];
    let start = Time::now();
    let mut received = 0;
    loop {
        match wait(|waker| stream.poll_recv(&mut bytes, waker)).unwrap() {
            0 => return (received, start.elapsed()),
            more => received += more as u64,
        }
    }
}

fn open_udp() -> Udp {
    let local = Some("127.0.0.1".parse().unwrap());
    let (family, sockets, offload) = (Family::Ipv4, NonZero::<u16>::MIN, UdpOffload::default());
    Udp::open(UdpConfig { local, port: 0, family, source_port_hashing: false, sockets, offload }).unwrap()
}

fn start(number: usize, udp: Udp, peer_port: u16) -> Node {
    let vni = Vni::new(7).unwrap();
    let engine = Engine::new(EngineConfig {
        mode: Mode::L3,
        underlay: Underlay::Udp,
        peer_filter: true,
        source_port_hashing: None,
        outer_traffic_class: OuterTrafficClass::default(),
        keepalive: None,
        inner_mtu: None,
        tx_key_history: Arc::new(TxKeyHistory::new(&[number as u8; 32])),
    });
    let all = |text: &str| IpPrefix::new(text.parse().unwrap(), 0).unwrap();
    let routes = ["0.0.0.0", "::"].map(|any| AllowedRoute { src: all(any), dst: all(any) }).to_vec();
    let peer = SocketAddr::new("127.0.0.1".parse().unwrap(), peer_port);
    engine.add_network(NetworkConfig { vni, peer, peer_mac: MacAddr::default(), routes, rx_rate_limit: None }).unwrap();
    let key = |number: usize| SaKey::from_slice(&[number as u8 + 1; 16]).unwrap();
    let (rx, tx) = (key(number), key(1 - number));
    engine.danger_install_epoch(clock::now(), vni, 1, rx, tx, Instant::FAR_FUTURE).unwrap();

    let last = number + 1;
    let addresses =
        vec![(format!("10.9.0.{last}").parse().unwrap(), 24), (format!("fd00::{last}").parse().unwrap(), 64)];
    let (stack, device) = Stack::open(StackOptions::new(addresses, 1400)).unwrap();
    let (on_notice, on_end) = (Box::new(|_| {}), Box::new(|_| {}));
    let pump = Pump::start(Arc::new(engine), Box::new(device), udp, PumpOptions::default(), on_notice, on_end).unwrap();
    Node { stack, _pump: pump }
}

/// Polls until it is ready, asleep between.
fn wait<T>(mut poll: impl FnMut(&Waker) -> Poll<T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let context = Context::from_waker(&waker);
    loop {
        match poll(context.waker()) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// User and system time of this process so far (`/proc/self/stat`).
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, in ticks of 10 ms.
    Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
}
