//! Two stacks on one wire, in virtual time.

mod hostile;

use std::net::{IpAddr, SocketAddr};
use std::task::Waker;
use std::time::Duration;

use icx_proto::Instant;

use super::{Core, Id};
use crate::error::{ConnectError, StreamError};
use crate::options::StackOptions;

const A: &str = "10.9.0.1";
const B: &str = "10.9.0.2";

/// What becomes of the packets that pass, by their number.
type Fate = fn(usize) -> bool;

struct Pair {
    now: Instant,
    cores: [Core; 2],
    delay: Duration,
    /// What is under way: when it arrives, where, and what it is.
    wire: Vec<(Instant, usize, Vec<u8>)>,
    passed: usize,
    survives: Fate,
}

impl Pair {
    fn new() -> Self {
        Self::with(|options| options, |_| true)
    }

    fn with(change: impl Fn(StackOptions) -> StackOptions, survives: Fate) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let core = |own: [&str; 2]| {
            let [v4, v6] = own.map(|address| address.parse().unwrap());
            Core::new(change(StackOptions::new(vec![(v4, 24), (v6, 64)], 1400)), now)
        };
        let cores = [core([A, "fd00::1"]), core([B, "fd00::2"])];
        Pair { now, cores, delay: Duration::from_millis(1), wire: Vec::new(), passed: 0, survives }
    }

    /// Lets everything happen that is due, until nothing is before `end`.
    fn run_until(&mut self, end: Instant, mut at_each: impl FnMut(&mut [Core; 2])) {
        let mut buffer = vec![0; 70_000];
        loop {
            at_each(&mut self.cores);
            for side in 0..2 {
                while let Some(len) = self.cores[side].next(self.now, &mut buffer) {
                    self.passed += 1;
                    if (self.survives)(self.passed) {
                        let arrives = self.now.saturating_add(self.delay);
                        self.wire.push((arrives, 1 - side, buffer[..len].to_vec()));
                    }
                }
            }
            let due = self.cores.iter().filter_map(Core::due);
            let Some(next) = self.wire.iter().map(|(at, ..)| *at).chain(due).min().filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            self.now = next.max(self.now);
            let now = self.now;
            let arrived: Vec<_> = self.wire.extract_if(.., |(at, ..)| *at <= now).collect();
            for (_, side, packet) in arrived {
                self.cores[side].take(now, &packet, false);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        self.run_until(self.now.saturating_add(time), |_| {});
    }

    /// A connection from the first to the second.
    fn connected(&mut self, port: u16) -> (Id, Id) {
        let _ = self.cores[1].listen(port);
        let (near, _) = self.cores[0].connect(SocketAddr::new(B.parse().unwrap(), port)).unwrap();
        self.run(Duration::from_millis(10));
        assert!(self.cores[0].is_established(near));
        (near, self.accept(port).unwrap())
    }

    fn accept(&mut self, port: u16) -> Option<Id> {
        self.cores[1].accept(port, Waker::noop()).unwrap().map(|(id, _)| id)
    }

    fn send(&mut self, side: usize, id: Id, bytes: &[u8]) -> usize {
        let sent = self.cores[side].socket(id).unwrap().0.send_slice(bytes).unwrap();
        self.cores[side].stir(id);
        sent
    }

    fn receive(&mut self, side: usize, id: Id) -> Vec<u8> {
        receive(&mut self.cores[side], id)
    }
}

fn receive(core: &mut Core, id: Id) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let received = core.socket(id).unwrap().0.recv_slice(&mut bytes).unwrap_or(0);
    bytes.truncate(received);
    core.stir(id);
    bytes
}

fn failure(core: &mut Core, id: Id) -> Option<StreamError> {
    core.socket(id).unwrap().1
}

#[test]
fn a_connection_carries_both_ways_and_ends_on_both_sides() {
    for remote in [B, "fd00::2"] {
        let mut pair = Pair::new();
        pair.cores[1].listen(80).unwrap();
        let (near, flow) = pair.cores[0].connect(SocketAddr::new(remote.parse().unwrap(), 80)).unwrap();
        assert_eq!(flow.local.ip().is_ipv4(), remote == B);
        pair.run(Duration::from_millis(10));
        let far = pair.accept(80).unwrap();
        pair.send(0, near, b"question");
        pair.run(Duration::from_millis(10));
        assert_eq!(pair.receive(1, far), b"question");
        pair.send(1, far, b"answer");
        let now = pair.now;
        pair.cores[1].release(now, far);
        pair.run(Duration::from_millis(10));
        assert_eq!(pair.receive(0, near), b"answer");
        pair.cores[0].release(now, near);
        pair.run(Duration::from_secs(12));
        let left: Vec<_> = pair.cores.iter().map(|core| core.counters()).collect();
        assert_eq!(
            left.iter().map(|counters| (counters.connections, counters.failures)).collect::<Vec<_>>(),
            [(0, 0); 2]
        );
        assert!(pair.cores.iter().all(|core| core.due().is_none() && core.flows.is_empty()));
    }
}

#[test]
fn what_nobody_listens_on_is_refused_and_what_does_not_answer_times_out() {
    let mut pair = Pair::new();
    let (refused, _) = pair.cores[0].connect(SocketAddr::new(B.parse().unwrap(), 80)).unwrap();
    let (silent, _) = pair.cores[0].connect("10.9.0.77:80".parse().unwrap()).unwrap();
    pair.run(Duration::from_millis(10));
    assert_eq!(failure(&mut pair.cores[0], refused), Some(StreamError::Refused));
    pair.run(Duration::from_secs(14));
    assert_eq!(failure(&mut pair.cores[0], silent), None);
    pair.run(Duration::from_secs(2));
    assert_eq!(failure(&mut pair.cores[0], silent), Some(StreamError::TimedOut));
    let now = pair.now;
    for id in [refused, silent] {
        pair.cores[0].release(now, id);
    }
    assert_eq!(pair.cores[0].counters().connections, 0);
    assert_eq!(pair.cores[0].counters().failures, 2);
}

#[test]
fn a_peer_that_is_gone_is_found_out() {
    let mut pair = Pair::new();
    let (near, _) = pair.connected(80);
    pair.survives = |_| false;
    pair.run(Duration::from_secs(119));
    assert_eq!(failure(&mut pair.cores[0], near), None);
    pair.run(Duration::from_secs(35));
    assert_eq!(failure(&mut pair.cores[0], near), Some(StreamError::TimedOut));
}

#[test]
fn data_for_who_has_closed_resets_the_connection() {
    let mut pair = Pair::new();
    let (near, far) = pair.connected(80);
    let now = pair.now;
    pair.cores[1].release(now, far);
    pair.run(Duration::from_millis(10));
    pair.send(0, near, b"too late");
    pair.run(Duration::from_millis(10));
    assert_eq!(failure(&mut pair.cores[0], near), Some(StreamError::Reset));
    assert_eq!(pair.cores[1].counters().connections, 0);
}

#[test]
fn what_was_received_and_not_read_resets_the_connection() {
    let mut pair = Pair::new();
    let (near, far) = pair.connected(80);
    pair.send(0, near, b"unread");
    pair.run(Duration::from_millis(10));
    let now = pair.now;
    pair.cores[1].release(now, far);
    pair.run(Duration::from_millis(10));
    assert_eq!(failure(&mut pair.cores[0], near), Some(StreamError::Reset));
}

#[test]
fn everything_arrives_over_a_path_that_loses() {
    // Every 17th packet is lost.
    let mut pair = Pair::with(|options| options, |number| number % 17 != 0);
    let (near, far) = pair.connected(80);
    let bytes: Vec<u8> = (0..2 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut sent, mut arrived) = (0, Vec::new());
    let end = pair.now.saturating_add(Duration::from_secs(600));
    pair.run_until(end, |cores| {
        if sent < bytes.len() {
            sent += cores[0].socket(near).unwrap().0.send_slice(&bytes[sent..]).unwrap();
            cores[0].stir(near);
        }
        arrived.extend(receive(&mut cores[1], far));
    });
    assert_eq!(arrived.len(), bytes.len());
    assert!(arrived == bytes);
}

#[test]
fn few_acknowledgements_do_for_a_window_that_grows_and_for_a_loss() {
    const BYTES: usize = 1 << 20;
    // Segments that are sent at once arrive at once, and are acknowledged at once. The shortest timeout is a second (RFC 6298 section 2.4).
    for (survives, most_ms) in
        [((|_| true) as Fate, 700), (|number| number != 300, 900), (|number| !(300..310).contains(&number), 2000)]
    {
        let mut pair = Pair::with(|options| options, survives);
        pair.delay = Duration::from_millis(20);
        pair.passed = 10;
        pair.cores[1].listen(80).unwrap();
        let (near, _) = pair.cores[0].connect(SocketAddr::new(B.parse().unwrap(), 80)).unwrap();
        pair.run(Duration::from_millis(100));
        let far = pair.accept(80).unwrap();
        let (mut unsent, mut arrived, mut took_ms) = (vec![7; BYTES], 0, 0);
        while arrived < BYTES {
            let next = pair.now.saturating_add(Duration::from_millis(1));
            pair.run_until(next, |cores| {
                let sent = cores[0].socket(near).unwrap().0.send_slice(&unsent).unwrap();
                cores[0].stir(near);
                unsent.truncate(unsent.len() - sent);
                arrived += receive(&mut cores[1], far).len();
            });
            took_ms += 1;
        }
        assert!(took_ms <= most_ms, "{took_ms} ms");
    }
}

#[test]
fn a_reader_that_does_not_read_holds_up_only_its_own_connection() {
    let mut pair = Pair::new();
    let (stuck, _) = pair.connected(80);
    let (moving, far) = pair.connected(80);
    let bytes = vec![7; 64 << 10];
    let (mut sent, mut arrived) = (0, 0);
    let end = pair.now.saturating_add(Duration::from_secs(5));
    pair.run_until(end, |cores| {
        for id in [stuck, moving] {
            // Nothing once it has been aborted.
            let taken = cores[0].socket(id).map_or(0, |(socket, _)| socket.send_slice(&bytes).unwrap_or(0));
            cores[0].stir(id);
            sent += if id == moving { taken } else { 0 };
        }
        arrived += receive(&mut cores[1], far).len();
        if arrived > 8 << 20 {
            cores[0].abort(moving);
        }
    });
    assert!(arrived > 8 << 20, "{arrived} of {sent}");
}

#[test]
fn connections_share_the_way_out() {
    let mut pair = Pair::with(|options| StackOptions { max_connections: 64, ..options }, |_| true);
    let pairs: Vec<_> = (0..20).map(|_| pair.connected(80)).collect();
    let mut arrived = [0; 20];
    let mut buffer = vec![0; 70_000];
    for (near, _) in &pairs {
        pair.send(0, *near, &[1; 300_000]);
    }
    // As many packets as would be the first connection's alone, if it went first.
    for _ in 0..200 {
        pair.now = pair.now.saturating_add(Duration::from_micros(100));
        let now = pair.now;
        let len = pair.cores[0].next(now, &mut buffer).unwrap();
        pair.cores[1].take(now, &buffer[..len], false);
        while let Some(len) = pair.cores[1].next(now, &mut buffer) {
            pair.cores[0].take(now, &buffer[..len], false);
        }
    }
    for (at, (_, far)) in pairs.iter().enumerate() {
        arrived[at] = pair.receive(1, *far).len();
    }
    let (least, most) = (arrived.iter().min().unwrap(), arrived.iter().max().unwrap());
    assert!(*least > 0 && most - least <= 3 * 1400, "{arrived:?}");
}

#[test]
fn ten_thousand_connections_in_sequence_leave_nothing() {
    let mut pair = Pair::with(|options| StackOptions { receive_buffer: 4096, send_buffer: 4096, ..options }, |_| true);
    pair.delay = Duration::from_micros(10);
    pair.cores[1].listen(80).unwrap();
    for number in 0..10_000u32 {
        let (near, _) = pair.cores[0].connect(SocketAddr::new(B.parse().unwrap(), 80)).unwrap();
        pair.run(Duration::from_micros(50));
        let far = pair.accept(80).unwrap();
        pair.send(0, near, &number.to_be_bytes());
        pair.run(Duration::from_micros(50));
        assert_eq!(pair.receive(1, far), number.to_be_bytes());
        let now = pair.now;
        pair.cores[0].release(now, near);
        pair.run(Duration::from_micros(50));
        pair.cores[1].release(now, far);
        pair.run(Duration::from_micros(50));
        assert!(pair.cores.iter().all(|core| core.connections.len() <= super::MAX_TIME_WAIT + 1));
    }
    pair.run(Duration::from_secs(20));
    for core in &pair.cores {
        assert_eq!((core.connections.len(), core.flows.len(), core.counters().failures), (0, 0, 0));
        assert!(core.ready.is_empty() && core.timers.len() < 64, "{}", core.timers.len());
    }
}

#[test]
fn handshakes_that_nobody_finishes_are_bounded_and_forgotten() {
    let mut pair = Pair::new();
    pair.cores[1].listen(80).unwrap();
    for _ in 0..super::BACKLOG + 50 {
        pair.cores[0].connect(SocketAddr::new(B.parse().unwrap(), 80)).unwrap();
    }
    // The answers are lost.
    let now = pair.now;
    let mut buffer = vec![0; 70_000];
    while let Some(len) = pair.cores[0].next(now, &mut buffer) {
        pair.cores[1].take(now, &buffer[..len], false);
    }
    let counters = pair.cores[1].counters();
    assert_eq!((counters.connections, counters.refused), (super::BACKLOG as u64, 50));
    pair.cores[0].close();
    pair.run(Duration::from_secs(20));
    assert_eq!(pair.cores[1].counters().connections, 0);
    assert_eq!(pair.cores[1].listeners[&80].half_open, 0);
}

#[test]
fn what_cannot_be_connected_to_is_said() {
    let mut pair = Pair::with(|options| StackOptions { max_connections: 2, ..options }, |_| true);
    let to = |text: &str| text.parse::<SocketAddr>().unwrap();
    let core = &mut pair.cores[0];
    for bad in ["10.9.0.2:0", "0.0.0.0:80", "224.0.0.1:80", "255.255.255.255:80", "[ff02::1]:80", "[::]:80"] {
        assert_eq!(core.connect(to(bad)), Err(ConnectError::BadRemote(to(bad))));
    }
    assert_eq!(core.connect(to("10.9.0.1:80")), Err(ConnectError::OwnAddress(to("10.9.0.1:80"))));
    core.connect(to("10.9.0.2:80")).unwrap();
    core.connect(to("192.0.2.1:80")).unwrap();
    assert_eq!(core.connect(to("10.9.0.2:80")), Err(ConnectError::TooMany(2)));
    core.close();
    assert_eq!(core.connect(to("10.9.0.2:80")), Err(ConnectError::Closed));

    let v4: IpAddr = A.parse().unwrap();
    let mut core = Core::new(StackOptions::new(vec![(v4, 24)], 1400), pair.now);
    let remote: IpAddr = "fd00::2".parse().unwrap();
    assert_eq!(core.connect(SocketAddr::new(remote, 80)), Err(ConnectError::NoAddress { remote }));
}

#[test]
fn bad_packets_cost_a_counter() {
    let mut pair = Pair::new();
    let (near, far) = pair.connected(80);
    pair.send(0, near, b"whole");
    let now = pair.now;
    let mut buffer = vec![0; 70_000];
    let len = pair.cores[0].next(now, &mut buffer).unwrap();
    for at in 20..len {
        buffer[at] ^= 0x10;
        pair.cores[1].take(now, &buffer[..len], false);
        buffer[at] ^= 0x10;
    }
    for cut in 0..len {
        pair.cores[1].take(now, &buffer[..cut], false);
    }
    assert_eq!(pair.cores[1].counters().bad_packets as usize, len - 20 + len);
    assert_eq!(pair.receive(1, far), b"");
    pair.cores[1].take(now, &buffer[..len], false);
    assert_eq!(pair.receive(1, far), b"whole");
}

#[test]
fn a_connection_that_its_peer_closes_at_once_is_still_accepted() {
    let mut pair = Pair::new();
    pair.cores[1].listen(80).unwrap();
    let (near, _) = pair.cores[0].connect(SocketAddr::new(B.parse().unwrap(), 80)).unwrap();
    let (mut closed, now) = (false, pair.now);
    pair.run_until(now.saturating_add(Duration::from_millis(20)), |cores| {
        if !closed && cores[0].is_established(near) {
            closed = true;
            cores[0].release(now, near);
        }
    });
    assert!(closed);
    let far = pair.accept(80).expect("it is there, although its peer has closed");
    assert_eq!(failure(&mut pair.cores[1], far), None);
    let now = pair.now;
    pair.cores[1].release(now, far);
    pair.run(Duration::from_secs(12));
    assert!(pair.cores.iter().all(|core| core.counters().failures == 0 && core.counters().connections == 0));
}
