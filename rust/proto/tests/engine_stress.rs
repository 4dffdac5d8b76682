//! Many threads on one pair of engines while keys, routes and networks change under them.

mod support;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant as Clock};

use icx_proto::engine::{BatchPacket, OpenSink, RunBuffer, RunLimits, RxVerdict, SaPair, TxSwitch, TxVerdict};
use icx_proto::{Instant, Mode, NetworkConfig, Vni};
use support::*;

const THREADS: usize = 8;
const TIME: Duration = Duration::from_secs(2);
const PACKETS_PER_ROUND: u64 = 8;
/// How many rounds the quickest thread may be ahead of the slowest: a packet that waits to be opened stays within the
/// replay window of 8128.
const MAX_LEAD: u64 = 8128 / (THREADS as u64 * PACKETS_PER_ROUND) / 2;

#[derive(Default)]
struct Collect {
    room: Vec<u8>,
    delivered: u64,
}

impl OpenSink for Collect {
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.room.resize(len, 0);
        Some(&mut self.room)
    }

    fn deliver(&mut self, _vni: Vni, _len: usize) {
        self.delivered += 1;
    }
}

#[test]
fn no_nonce_repeats_and_every_packet_opens_once_while_everything_changes() {
    let (a, b) = pair(Mode::L3, false);
    let stop = AtomicBool::new(false);
    let (sealed, opened) = (AtomicU64::new(0), AtomicU64::new(0));
    // A rekey waits until every thread has finished a round since the one before: the set of receive keys is bounded,
    // and a thread that sleeps between sealing and opening must still find its key.
    let rounds: [AtomicU64; THREADS] = Default::default();
    let all_nonces = Mutex::new(Vec::new());
    let rekeys = std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (a, b, stop, sealed, opened, all_nonces) = (&a, &b, &stop, &sealed, &opened, &all_nonces);
            let (rounds, round) = (&rounds, &rounds[thread]);
            scope.spawn(move || {
                let packet = ipv4(&[thread as u8; 64]);
                let mut inputs: [_; 7] = std::array::from_fn(|_| BatchPacket::Whole(&packet));
                let (mut out, mut plain) = (vec![0; 4096], vec![0; 4096]);
                let mut batch = RunBuffer::new(4096, 8, RunLimits { datagrams: 64, bytes: 65_000 });
                let mut nonces: Vec<[u8; 12]> = Vec::new();
                let mut sink = Collect::default();
                let src = Some(ip(Side::A));
                let mut delivered = 0;
                while !stop.load(Ordering::Relaxed) {
                    let slowest = rounds.iter().map(|round| round.load(Ordering::Relaxed)).min().unwrap();
                    if round.load(Ordering::Relaxed) > slowest + MAX_LEAD {
                        std::thread::yield_now();
                        continue;
                    }
                    // One packet, and a replay of it that another thread may well be racing with.
                    let TxVerdict::Send { range, .. } = a.virt_to_phy(NOW, &packet, &mut out) else {
                        panic!("a packet was not sealed")
                    };
                    nonces.push(out[range.start + 20..][..12].try_into().unwrap());
                    for _ in 0..2 {
                        if let RxVerdict::Deliver { .. } = b.phy_to_virt(NOW, src, &out[range.clone()], &mut plain) {
                            delivered += 1;
                        }
                    }
                    batch.clear();
                    let done = a.seal_batch(NOW, &mut inputs, &mut batch);
                    assert_eq!(done.packets, inputs.len());
                    for run in batch.runs() {
                        nonces.extend(run.datagrams().map(|d| <[u8; 12]>::try_from(&batch.bytes(d)[20..32]).unwrap()));
                        b.open_batch(NOW, src, batch.bytes(run.range.clone()), run.segment_size, &mut sink);
                    }
                    sealed.fetch_add(PACKETS_PER_ROUND, Ordering::Relaxed);
                    round.fetch_add(1, Ordering::Relaxed);
                }
                opened.fetch_add(delivered + sink.delivered, Ordering::Relaxed);
                all_nonces.lock().unwrap().extend(nonces);
            });
        }
        let changes = scope.spawn(|| {
            let end = Clock::now() + TIME;
            let progress = || rounds.each_ref().map(|round| round.load(Ordering::Relaxed));
            let (mut n, mut last_rekey) = (1, progress());
            while Clock::now() < end {
                if progress().iter().zip(last_rekey).all(|(now, then)| *now > then) {
                    n += 1;
                    // Make before break: the receiver's key first, then the sender's. No confirmation but the packets.
                    let SaPair { rx_spi, rx_key, expires_at, .. } = sa(Side::B, n, Instant::FAR_FUTURE);
                    b.install_rx(NOW, vni(1), rx_spi, rx_key, expires_at).unwrap();
                    let SaPair { tx_spi, tx_key, .. } = sa(Side::A, n, Instant::FAR_FUTURE);
                    a.install_tx(NOW, vni(1), tx_spi, tx_key, expires_at, TxSwitch::Now).unwrap();
                    last_rekey = progress();
                }
                for (engine, side) in [(&a, Side::A), (&b, Side::B)] {
                    let mut config = network(side, 1);
                    let extra = network(side, 7).routes[0];
                    config.routes.insert(0, extra);
                    engine.update_network(NetworkConfig { rx_rate_limit: Some(u32::MAX), ..config }).unwrap();
                    engine.update_network(network(side, 1)).unwrap();
                    engine.add_network(network(side, 5)).unwrap();
                    engine.install(NOW, vni(5), sa(side, n + 0x10_0000, Instant::FAR_FUTURE)).ok();
                    engine.handle_timeout(NOW);
                    engine.remove_network(vni(5)).unwrap();
                }
            }
            stop.store(true, Ordering::Relaxed);
            n
        });
        changes.join().unwrap()
    });

    let nonces = all_nonces.into_inner().unwrap();
    let distinct: HashSet<_> = nonces.iter().collect();
    // The keys of two SPIs differ, so a nonce, which begins with the SPI, must never come twice.
    assert_eq!(distinct.len(), nonces.len(), "a (key, nonce) pair was used twice");
    let sealed = sealed.load(Ordering::Relaxed);
    assert_eq!(nonces.len() as u64, sealed);
    assert_eq!(opened.load(Ordering::Relaxed), sealed, "every packet opens exactly once");
    let (sent, received) = (a.network_counters(vni(1)).unwrap(), b.network_counters(vni(1)).unwrap());
    let len = ipv4(&[0; 64]).len() as u64;
    assert_eq!((sent.get("tx_packets"), sent.get("tx_bytes")), (Some(sealed), Some(sealed * len)));
    assert_eq!((received.get("rx_packets"), received.get("rx_bytes")), (Some(sealed), Some(sealed * len)));
    // One packet in each round was given twice.
    assert_eq!(received.get("rx_replayed"), Some(sealed / PACKETS_PER_ROUND));
    let drops: u64 = received.values[2..14].iter().sum();
    assert_eq!(drops, sealed / PACKETS_PER_ROUND, "no other drop: {received:?}");
    assert!(rekeys > 2, "only {rekeys} keys in {TIME:?}");
    println!("{sealed} packets under {rekeys} keys");
}
