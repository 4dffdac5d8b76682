//! Sealing and opening one packet, beside the bare AEAD on the same sizes in the same run. Both ways the packet lies in
//! one buffer and the result in another, as in the engine's cross-buffer calls.
//!
//! `engine` is one call per packet, `batch of 32` one call for 32 packets. Iterations of `open`, and of the batch of
//! `seal`, take 32 packets: compare by throughput. `offload` is a TCP packet that a device left whole: cut and sealed in
//! one pass, opened and merged in one pass, beside the bare AEAD over the same segments.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use icx_proto::counters::COUNTER_NAMES;
use icx_proto::engine::{BatchPacket, OpenSink, OuterTrafficClass, RunBuffer, RunLimits, SaPair, TxVerdict};
use icx_proto::offload::{CoalesceOptions, Coalescer, VnetHeader, outgoing};
use icx_proto::wire::checksum;
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
        outer_traffic_class: OuterTrafficClass::default(),
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
        let drops = COUNTER_NAMES
            .iter()
            .zip(opened.values)
            .filter(|(name, _)| name.starts_with("rx_") && !["rx_packets", "rx_bytes"].contains(*name));
        assert_eq!(drops.map(|(_, count)| count).sum::<u64>(), 0, "the run measured drops");
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

/// TCP payload of each segment, and how many make a large packet.
const SEGMENT: usize = 1340;
const SEGMENTS: usize = 45;
const TCP_HEADERS: usize = 52;
const SEALED: usize = TCP_HEADERS + SEGMENT + OVERHEAD;

/// IPv4 and TCP with timestamps, 45 segments of payload.
fn large() -> (VnetHeader, Vec<u8>) {
    let mut packet = packet(TCP_HEADERS + SEGMENTS * SEGMENT);
    packet[6..10].copy_from_slice(&[0x40, 0, 64, 6]);
    packet[20..52].fill(0);
    packet[32..36].copy_from_slice(&[0x80, 0x10, 1, 0]);
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: TCP_HEADERS as u16,
        gso_size: SEGMENT as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    (header, packet)
}

/// As a pump does it.
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "a processor feature, looked for first"))]
fn use_wide_checksums() {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        checksum::set_long_sum(|data| unsafe { checksum::sum_words_avx2(data) });
    }
}

fn offload(c: &mut Criterion) {
    use_wide_checksums();
    let mut group = c.benchmark_group("offload");
    group.throughput(Throughput::Bytes((SEGMENT * SEGMENTS) as u64));
    let (header, packet) = large();
    let limits = RunLimits { datagrams: SEGMENTS, bytes: 65_535 };
    let (sender, receiver) = (engine(true), engine(false));
    let key = raw_key();
    let mut counter = 0;
    let mut sealed = vec![0; SEALED];
    group.bench_function("bare seals", |b| {
        b.iter(|| {
            for plain in black_box(&packet).as_chunks::<{ TCP_HEADERS + SEGMENT }>().0 {
                counter += 1;
                let (header, body) = sealed.split_at_mut(HEADER);
                let (text, tag) = body.split_at_mut(plain.len());
                key.seal_out_of_place_scatter(nonce(counter), Aad::from(&*header), plain, text, &[], tag).unwrap();
            }
        });
    });
    let mut out = RunBuffer::new(SEGMENTS * SEALED, 1, limits);
    let mut large = packet.clone();
    group.bench_function("cut and seal", |b| {
        b.iter(|| {
            // Cutting leaves other headers at the front where a segment is shorter than they are: not here.
            large[..TCP_HEADERS].copy_from_slice(&packet[..TCP_HEADERS]);
            out.clear();
            sender.seal_batch(NOW, &mut [outgoing(&header, black_box(&mut large))], &mut out)
        });
    });
    let mut supply = || {
        large[..TCP_HEADERS].copy_from_slice(&packet[..TCP_HEADERS]);
        out.clear();
        sender.seal_batch(NOW, &mut [outgoing(&header, &mut large)], &mut out);
        assert_eq!(out.runs().iter().map(|run| run.count).collect::<Vec<_>>(), [SEGMENTS]);
        out.bytes(out.runs()[0].range.clone()).to_vec()
    };
    let src = Some("192.0.2.1".parse().unwrap());
    let mut plain = vec![0; TCP_HEADERS + SEGMENT];
    group.bench_function("bare opens", |b| {
        b.iter_batched_ref(
            &mut supply,
            |datagrams| {
                for datagram in datagrams.chunks(SEALED) {
                    let (header, body) = datagram.split_at(HEADER);
                    let (text, tag) = body.split_at(TCP_HEADERS + SEGMENT);
                    let nonce = Nonce::try_assume_unique_for_key(&header[20..]).unwrap();
                    key.open_separate_gather(nonce, Aad::from(header), text, tag, &mut plain).unwrap();
                }
            },
            BatchSize::NumIterations(64),
        );
    });
    let mut merged = Coalescer::new(CoalesceOptions { tcp: true, udp: true, vnet: true, bytes: 1 << 17 });
    group.bench_function("open and merge", |b| {
        b.iter_batched_ref(
            &mut supply,
            |datagrams| {
                merged.clear();
                receiver.open_batch(NOW, src, datagrams, SEALED, &mut merged);
                assert_eq!(merged.packets().count(), 1);
            },
            BatchSize::NumIterations(64),
        );
    });
    group.finish();
}

criterion_group!(benches, seal, open, offload);
criterion_main!(benches);
