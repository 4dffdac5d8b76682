//! Two engines in virtual time, with a network between them that delays, loses, reorders and duplicates, and rekeys in
//! the order of the protocol while packets are under way: none is lost to a rekey.

mod support;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::time::Duration;

use icx_proto::engine::{RxVerdict, SaPair, TxSwitch, TxVerdict};
use icx_proto::{Engine, Instant, Mode};
use proptest::prelude::*;
use support::*;

/// A small generator whose whole state is its seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[derive(Clone, Copy, Debug)]
struct Link {
    loss_percent: u64,
    duplicate_percent: u64,
    latency: Duration,
    /// Up to this much on top, for each packet by itself: later ones overtake.
    jitter: Duration,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A datagram arrives at the side that is not `from`.
    Datagram { from_a: bool, bytes: Vec<u8> },
    /// The initiator's offer of generation `n` arrives at the responder.
    Offer { n: u32 },
    /// The answer arrives at the initiator.
    Answer { n: u32 },
}

struct World {
    a: Engine,
    b: Engine,
    random: Random,
    link: Link,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    order: u64,
    /// Identities of the packets that the link let through at least once, and of those delivered.
    carried: HashSet<u64>,
    delivered: HashSet<u64>,
    duplicates: u64,
}

const EXPIRY: Instant = Instant::FAR_FUTURE;

impl World {
    fn new(seed: u64, link: Link) -> Self {
        let (a, b) = pair(Mode::L3, false);
        World {
            a,
            b,
            random: Random(seed),
            link,
            now: NOW,
            events: BinaryHeap::new(),
            order: 0,
            carried: HashSet::new(),
            delivered: HashSet::new(),
            duplicates: 0,
        }
    }

    fn engine(&self, a: bool) -> &Engine {
        if a { &self.a } else { &self.b }
    }

    fn schedule(&mut self, event: Event) {
        let jitter = self.random.below(self.link.jitter.as_nanos() as u64 + 1);
        let at = self.now.saturating_add(self.link.latency + Duration::from_nanos(jitter));
        self.order += 1;
        self.events.push(Reverse((at, self.order, event)));
    }

    fn send(&mut self, from_a: bool, identity: u64) {
        let mut packet = ipv4(&identity.to_be_bytes());
        if !from_a {
            let (src, dst) = ([10, 101, 0, 1], [10, 1, 0, 1]);
            packet[12..16].copy_from_slice(&src);
            packet[16..20].copy_from_slice(&dst);
        }
        let mut out = [0; 256];
        let verdict = self.engine(from_a).virt_to_phy(self.now, &packet, &mut out);
        let TxVerdict::Send { range, .. } = verdict else { panic!("not sealed: {verdict:?}") };
        if self.random.below(100) < self.link.loss_percent {
            return;
        }
        self.carried.insert(identity);
        let copies = 1 + u64::from(self.random.below(100) < self.link.duplicate_percent);
        self.duplicates += copies - 1;
        for _ in 0..copies {
            self.schedule(Event::Datagram { from_a, bytes: out[range.clone()].to_vec() });
        }
    }

    /// The initiator installs its receive key before it sends the offer.
    fn rekey(&mut self, n: u32) {
        let SaPair { rx_spi, rx_key, .. } = sa(Side::A, n, EXPIRY);
        self.a.install_rx(self.now, vni(1), rx_spi, rx_key, EXPIRY).unwrap();
        self.schedule(Event::Offer { n });
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Datagram { from_a, bytes } => {
                let side = if from_a { Side::A } else { Side::B };
                let mut out = [0; 256];
                let verdict = self.engine(!from_a).phy_to_virt(self.now, Some(ip(side)), &bytes, &mut out);
                match verdict {
                    RxVerdict::Deliver { range, .. } => {
                        let identity = u64::from_be_bytes(out[range][28..36].try_into().unwrap());
                        assert!(self.delivered.insert(identity), "packet {identity} was delivered twice");
                    }
                    RxVerdict::Drop(icx_proto::counters::RxDrop::Replayed) => {}
                    verdict => panic!("{verdict:?}"),
                }
            }
            // The responder installs its receive key before it answers, and sends with its new key when the first
            // packet opens under the new SPI, or after half a second.
            Event::Offer { n } => {
                let SaPair { rx_spi, tx_spi, rx_key, tx_key, .. } = sa(Side::B, n, EXPIRY);
                self.b.install_rx(self.now, vni(1), rx_spi, rx_key, EXPIRY).unwrap();
                let deadline = self.now.saturating_add(Duration::from_millis(500));
                let switch = TxSwitch::OnFirstOpen { rx_spi, deadline };
                self.b.install_tx(self.now, vni(1), tx_spi, tx_key, EXPIRY, switch).unwrap();
                self.schedule(Event::Answer { n });
            }
            Event::Answer { n } => {
                let SaPair { tx_spi, tx_key, .. } = sa(Side::A, n, EXPIRY);
                self.a.install_tx(self.now, vni(1), tx_spi, tx_key, EXPIRY, TxSwitch::Now).unwrap();
            }
        }
    }

    /// Handles timers and arrivals in order until `end`.
    fn run_until(&mut self, end: Instant) {
        loop {
            let arrival = self.events.peek().map(|Reverse((at, ..))| *at);
            let timers = [self.a.poll_timeout(), self.b.poll_timeout()];
            let next = timers.into_iter().flatten().chain(arrival).min().filter(|at| *at <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            self.a.handle_timeout(self.now);
            self.b.handle_timeout(self.now);
            if arrival == Some(next)
                && let Some(Reverse((_, _, event))) = self.events.pop()
            {
                self.handle(event);
            }
        }
        self.now = end;
    }
}

fn run(seed: u64, link: Link, talkative_initiator: bool) {
    println!("seed {seed}, {link:?}");
    let mut world = World::new(seed, link);
    let mut identity = 0;
    for n in 2..22 {
        world.rekey(n);
        // Packets every 5 ms for two seconds; an initiator that says little leaves the switch to the deadline.
        for step in 0..400 {
            world.send(false, identity);
            identity += 1;
            if talkative_initiator || step % 200 == 150 {
                world.send(true, identity);
                identity += 1;
            }
            let next = world.now.saturating_add(Duration::from_millis(5));
            world.run_until(next);
        }
    }
    // One packet each way that is sure to arrive: nobody gives up an old key before something opens under the new one.
    world.link.loss_percent = 0;
    for from_a in [true, false] {
        world.send(from_a, identity);
        identity += 1;
    }
    let settled = world.now.saturating_add(Duration::from_secs(5));
    world.run_until(settled);
    assert_eq!(world.delivered, world.carried, "packets were lost to a rekey");
    let (a, b) = (totals(&world.a), totals(&world.b));
    let sum = |name| a.get(name).unwrap() + b.get(name).unwrap();
    assert_eq!(sum("tx_packets"), identity);
    assert_eq!(sum("rx_packets"), world.carried.len() as u64);
    assert_eq!(sum("rx_replayed"), world.duplicates);
    let rx_drops: u64 = [&a, &b].iter().map(|counters| counters.values[2..14].iter().sum::<u64>()).sum();
    assert_eq!(rx_drops, world.duplicates, "a drop that is no duplicate");
    // Both ended on the last generation, and the keys before it are gone or on their way out.
    for (engine, spi_sent) in [(&world.a, 0x4000_0100 + 21), (&world.b, 0x100 + 21)] {
        let status = engine.sa_status(world.now, vni(1)).unwrap();
        assert_eq!((status.tx.unwrap().spi.get(), status.pending_tx), (spi_sent, None));
        assert!(status.rx.iter().rev().skip(1).all(|sa| sa.superseded));
        assert!(status.rx.len() <= 16);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_is_lost_to_rekeying(
        seed in any::<u64>(),
        loss_percent in 0_u64..30,
        duplicate_percent in 0_u64..30,
        latency_ms in 0_u64..300,
        jitter_ms in 0_u64..150,
        talkative_initiator in any::<bool>(),
    ) {
        let (latency, jitter) = (Duration::from_millis(latency_ms), Duration::from_millis(jitter_ms));
        run(seed, Link { loss_percent, duplicate_percent, latency, jitter }, talkative_initiator);
    }
}
