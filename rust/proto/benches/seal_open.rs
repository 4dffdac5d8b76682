//! Sealing and opening one packet, beside the bare AEAD on the same sizes in the same run. Both ways the packet lies in
//! one buffer and the result in another, as in the engine's cross-buffer calls.
//!
//! `engine` is one call per packet, `batch of 32` one call for 32 packets. Iterations of `open`, and of the batch of
//! `seal`, take 32 packets: compare by throughput.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use icx_proto::engine::{BatchPacket, OpenSink, RunBuffer, RunLimits, SaPair, TxVerdict};
use icx_proto::{
    AllowedRoute, Engine, EngineConfig, Instant, MacAddr, Mode, NetworkConfig, SaKey, Spi, TxKeyHistory, Underlay, Vni,
};

const SIZES: [usize; 4] = [64, 512, 1392, 8192];
const BATCH: usize = 32;
const HEADER: usize = 32;
const OVERHEAD: usize = HEADER + 16;
const NOW: Instant = Instant::from_nanos(1_000_000_000);

/// One end of a tunnel: SPIs, keys and routes of the other are swapped.
fn engine(initiator: bool) -> Engine {
    let engine = Engine::new(EngineConfig {
        mode: Mode::L3,
        underlay: Underlay::Udp,
        peer_filter: true,
        source_port_hashing: None,
        keepalive: None,
        inner_mtu: None,
        tx_key_history: Arc::new(TxKeyHistory::new(&[1; 32])),
    });
    let (here, there) = ("10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap());
    let (src, dst) = if initiator { (here, there) } else { (there, here) };
    let vni = Vni::new(1).unwrap();
    let peer = SocketAddr::from(([192, 0, 2, 1], 6081));
    let routes = vec![AllowedRoute { src, dst }];
    let network = NetworkConfig { vni, peer, peer_mac: MacAddr::default(), routes, rx_rate_limit: None };
    engine.add_network(network).unwrap();
    let spi = |mine: bool| Spi::new(if mine { 1 } else { 2 }).unwrap();
    let key = |mine: bool| SaKey::from_slice(&[if mine { 1 } else { 2 }; 16]).unwrap();
    let sa = SaPair {
        rx_spi: spi(initiator),
        tx_spi: spi(!initiator),
        rx_key: key(initiator),
        tx_key: key(!initiator),
        expires_at: Instant::FAR_FUTURE,
    };
    engine.install(NOW, vni, sa).unwrap();
    engine
}

fn packet(len: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; len];
    packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet
}

fn raw_key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[2; 16]).unwrap())
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    for len in SIZES {
        group.throughput(Throughput::Bytes(len as u64));
        let plain = packet(len);
        let mut out = vec![0; len + OVERHEAD];
        let key = raw_key();
        let mut counter = 0;
        group.bench_function(BenchmarkId::new("raw", len), |b| {
            b.iter(|| {
                counter += 1;
                let (header, body) = out.split_at_mut(HEADER);
                let (text, tag) = body.split_at_mut(len);
                let aad = Aad::from(&*header);
                key.seal_out_of_place_scatter(nonce(counter), aad, black_box(&plain), text, &[], tag).unwrap();
            });
        });
        let sender = engine(true);
        group.bench_function(BenchmarkId::new("engine", len), |b| {
            b.iter(|| sender.virt_to_phy(NOW, black_box(&plain), &mut out));
        });
        let mut inputs: Vec<_> = (0..BATCH).map(|_| BatchPacket::Whole(&plain)).collect();
        let limits = RunLimits { datagrams: BATCH, bytes: 65_000 };
        let mut batch_out = RunBuffer::new(BATCH * (len + OVERHEAD), BATCH, limits);
        group.throughput(Throughput::Bytes((len * BATCH) as u64));
        group.bench_function(BenchmarkId::new("batch of 32", len), |b| {
            b.iter(|| {
                batch_out.clear();
                sender.seal_batch(NOW, black_box(&mut inputs), &mut batch_out)
            });
        });
    }
    group.finish();
}

struct Scratch(Vec<u8>, usize);

impl OpenSink for Scratch {
    fn room(&mut self, _len: usize) -> Option<&mut [u8]> {
        Some(&mut self.0)
    }

    fn deliver(&mut self, _vni: Vni, len: usize) {
        self.1 += len;
    }
}

fn open(c: &mut Criterion) {
    let mut group = c.benchmark_group("open");
    let src = Some("192.0.2.1".parse().unwrap());
    for len in SIZES {
        group.throughput(Throughput::Bytes((len * BATCH) as u64));
        let plain = packet(len);
        // Every datagram opens once: each measured round opens a batch that was sealed just before.
        let (sender, receiver) = (engine(true), engine(false));
        let mut supply = Supply::new(&sender, &plain);
        let mut out = vec![0; len];
        let key = raw_key();
        group.bench_function(BenchmarkId::new("raw", len), |b| {
            b.iter_batched_ref(
                || supply.next(),
                |datagrams| {
                    for datagram in datagrams.chunks(len + OVERHEAD) {
                        let (header, body) = datagram.split_at(HEADER);
                        let (text, tag) = body.split_at(len);
                        let nonce = Nonce::try_assume_unique_for_key(&header[20..]).unwrap();
                        key.open_separate_gather(nonce, Aad::from(header), text, tag, &mut out).unwrap();
                    }
                },
                BatchSize::NumIterations(64),
            );
        });
        group.bench_function(BenchmarkId::new("engine", len), |b| {
            b.iter_batched_ref(
                || supply.next(),
                |datagrams| {
                    for datagram in datagrams.chunks(len + OVERHEAD) {
                        black_box(receiver.phy_to_virt(NOW, src, datagram, &mut out));
                    }
                },
                BatchSize::NumIterations(64),
            );
        });
        let mut sink = Scratch(vec![0; len], 0);
        group.bench_function(BenchmarkId::new("batch of 32", len), |b| {
            b.iter_batched_ref(
                || supply.next(),
                |datagrams| receiver.open_batch(NOW, src, datagrams, len + OVERHEAD, &mut sink),
                BatchSize::NumIterations(64),
            );
        });
        let opened = receiver.network_counters(Vni::new(1).unwrap()).unwrap();
        assert_eq!(opened.get("rx_replayed"), Some(0), "the run measured drops");
        assert_ne!(opened.get("rx_packets"), Some(0));
    }
    group.finish();
}

/// Freshly sealed datagrams, a batch back to back.
struct Supply<'a> {
    sender: &'a Engine,
    plain: &'a [u8],
}

impl<'a> Supply<'a> {
    fn new(sender: &'a Engine, plain: &'a [u8]) -> Self {
        Supply { sender, plain }
    }

    fn next(&mut self) -> Vec<u8> {
        let size = self.plain.len() + OVERHEAD;
        let mut batch = vec![0; BATCH * size];
        for out in batch.chunks_mut(size) {
            let verdict = self.sender.virt_to_phy(NOW, self.plain, out);
            assert!(matches!(verdict, TxVerdict::Send { .. }));
        }
        batch
    }
}

criterion_group!(benches, seal, open);
criterion_main!(benches);
