//! A packet that a device left whole is cut, sealed, opened and merged: what comes out is what went in, and the engine
//! counted every packet on the way.

mod support;

use icx_proto::engine::{BatchPacket, PathMtuVerdict, RunBuffer, RunLimits, Stop};
use icx_proto::offload::{CoalesceOptions, Coalescer, VnetHeader, outgoing};
use icx_proto::wire::checksum::{Sum, checksum};
use icx_proto::{Engine, Mode};
use proptest::prelude::*;

use support::{GENEVE, L2, NOW, Side, TAG, ip, moved, pair, totals, vni};

const TCP: u8 = 6;
const HEADERS: usize = 40;
const LIMITS: RunLimits = RunLimits { datagrams: 64, bytes: 65_000 };

/// A TCP packet of network 1 from A to B with ACK and PSH, as a device hands it over.
fn offloaded(payload: usize, size: usize) -> (VnetHeader, Vec<u8>) {
    let mut packet = vec![0; HEADERS + payload];
    packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, TCP, 0, 0]);
    packet[2..4].copy_from_slice(&((HEADERS + payload) as u16).to_be_bytes());
    packet[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 101, 0, 1]);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..34].copy_from_slice(&[0x30, 0x39, 0, 80, 0, 0, 1, 0, 0, 0, 2, 0, 0x50, 0x18]);
    let (src, dst) = ("10.1.0.1".parse().unwrap(), "10.101.0.1".parse().unwrap());
    let pseudo = !Sum::new().add_pseudo_header(src, dst, TCP, 20 + payload as u32).finish();
    packet[36..38].copy_from_slice(&pseudo.to_be_bytes());
    for (at, byte) in packet[HEADERS..].iter_mut().enumerate() {
        *byte = (at / 3) as u8;
    }
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: HEADERS as u16,
        gso_size: size as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    (header, packet)
}

/// Seals a whole batch, and opens all of it into `coalescer`; the runs are checked on the way.
fn through(a: &Engine, b: &Engine, packets: &mut [BatchPacket<'_>], out: &mut RunBuffer, coalescer: &mut Coalescer) {
    let mut rest = packets;
    while !rest.is_empty() {
        let done = a.seal_batch(NOW, rest, out);
        assert!(done.stopped.is_none());
        assert!(!out.is_empty() || done.packets > 0, "no way on");
        for run in out.runs() {
            assert!(run.count <= LIMITS.datagrams && run.range.len() <= LIMITS.bytes);
            let sealed = out.bytes(run.range.clone());
            assert_eq!(b.open_batch(NOW, Some(ip(Side::A)), sealed, run.segment_size, coalescer), sealed.len());
        }
        out.clear();
        rest = &mut rest[done.packets..];
    }
}

fn coalescer() -> Coalescer {
    Coalescer::new(CoalesceOptions { tcp: true, udp: true, vnet: true, bytes: 1 << 20 })
}

proptest! {
    #[test]
    fn what_was_cut_is_whole_again(
        payloads in proptest::collection::vec(1_usize..20_000, 1..6),
        size in 100_usize..1400,
        room in 1500_usize..80_000,
        runs in 1_usize..80,
    ) {
        let (a, b) = pair(Mode::L3, false);
        let mut packets: Vec<_> = payloads.iter().map(|&payload| offloaded(payload, size)).collect();
        let sent = packets.clone();
        let mut batch: Vec<_> = packets.iter_mut().map(|(header, packet)| outgoing(header, packet)).collect();
        let (mut out, mut merged) = (RunBuffer::new(room, runs, LIMITS), coalescer());
        through(&a, &b, &mut batch, &mut out, &mut merged);
        let received: Vec<_> = merged.packets().map(|packet| packet.packet().to_vec()).collect();
        prop_assert_eq!(received.len(), sent.len());
        for ((header, sent), received) in sent.into_iter().zip(received) {
            if sent.len() > HEADERS + size {
                prop_assert_eq!(received, sent);
            } else {
                // One segment: its checksum is complete.
                let mut whole = sent;
                let one = VnetHeader { gso_type: VnetHeader::GSO_NONE, ..header };
                prop_assert!(matches!(outgoing(&one, &mut whole), BatchPacket::Whole(_)));
                prop_assert_eq!(received, whole);
            }
        }
        let segments: usize = payloads.iter().map(|payload| payload.div_ceil(size)).sum();
        let bytes: usize = payloads.iter().map(|payload| payload + payload.div_ceil(size) * HEADERS).sum();
        for (engine, packets_name, bytes_name) in [(&a, "tx_packets", "tx_bytes"), (&b, "rx_packets", "rx_bytes")] {
            let totals = totals(engine);
            prop_assert_eq!(totals.get(packets_name), Some(segments as u64));
            prop_assert_eq!(totals.get(bytes_name), Some(bytes as u64));
        }
    }
}

#[test]
fn one_packet_leaves_as_one_run() {
    let (a, _) = pair(Mode::L3, false);
    let (header, mut packet) = offloaded(45 * 1300 + 7, 1300);
    let mut out = RunBuffer::new(1 << 17, 8, LIMITS);
    let done = a.seal_batch(NOW, &mut [outgoing(&header, &mut packet)], &mut out);
    assert!(done.packets == 1 && done.stopped.is_none());
    let [run] = out.runs() else { panic!("{} runs", out.runs().len()) };
    assert_eq!((run.count, run.segment_size), (46, GENEVE + HEADERS + 1300 + TAG));
    assert_eq!(run.to.vni, vni(1));
}

#[test]
fn what_is_dropped_counts_as_the_packets_it_would_become() {
    let (a, _) = pair(Mode::L3, false);
    let mut out = RunBuffer::new(1 << 17, 8, LIMITS);
    let mut drops = |engine: &Engine, change: &dyn Fn(&mut Vec<u8>)| {
        let before = totals(engine);
        let (header, mut packet) = offloaded(10_000, 1000);
        change(&mut packet);
        let done = engine.seal_batch(NOW, &mut [outgoing(&header, &mut packet)], &mut out);
        assert!(done.packets == 1 && out.is_empty());
        (matches!(done.stopped, Some(Stop::TooBig { .. })), moved(&before, &totals(engine)))
    };
    assert_eq!(drops(&a, &|packet| packet[16] = 172), (false, vec![("tx_no_route", 10)]));
    assert_eq!(drops(&a, &|packet| packet[0] = 0x55), (false, vec![("tx_malformed", 1)]));
    a.set_inner_mtu(Some(1039));
    assert_eq!(drops(&a, &|_| ()), (true, vec![("tx_too_big", 10)]));
    a.set_inner_mtu(None);
    assert_eq!(a.path_mtu_reported(NOW, ip(Side::B), 1135, None), PathMtuVerdict::Believed);
    assert_eq!(drops(&a, &|_| ()), (true, vec![("tx_too_big", 10)]), "1040 bytes, of which the path leaves 1024");
    let (bridged, _) = pair(L2, false);
    assert_eq!(drops(&bridged, &|_| ()), (false, vec![("tx_malformed", 10)]));
}

#[test]
fn other_packets_pass_between_the_segments() {
    let (a, b) = pair(Mode::L3, false);
    let (header, mut first) = offloaded(130_usize * 100, 100);
    let mut second = first.clone();
    let small = support::ipv4(b"between");
    let mut batch = [outgoing(&header, &mut first), BatchPacket::Whole(&small), outgoing(&header, &mut second)];
    let mut merged = coalescer();
    through(&a, &b, &mut batch, &mut RunBuffer::new(9000, 16, LIMITS), &mut merged);
    let segments: Vec<_> = merged.packets().map(|packet| packet.segments).collect();
    assert_eq!(segments, [130, 1, 130]);
}
