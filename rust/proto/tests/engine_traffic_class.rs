//! What the outer header takes over from the inner one, and what the inner one from the outer: RFC 6040, and the DSCP outward.

mod support;

use icx_proto::counters::RxDrop;
use icx_proto::engine::{
    Arrival, BatchPacket, OpenSink, OuterTrafficClass, RunBuffer, RunLimits, RxVerdict, TxVerdict,
};
use icx_proto::offload::{CoalesceOptions, Coalescer, VnetHeader, outgoing};
use icx_proto::wire::checksum::{Sum, checksum};
use icx_proto::wire::outer;
use icx_proto::wire::traffic_class::{Ecn, TrafficClass};
use icx_proto::{Engine, EngineConfig, Instant, Mode, Underlay, Vni};

use support::{L2, NOW, Side, config, frame, ip, ipv4, ipv6, moved, network, pair, raw, sa, seal, totals, vni};

const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];
const LIMITS: RunLimits = RunLimits { datagrams: 64, bytes: 65_000 };

/// A packet of VNI 1 from A to B with a right IPv4 header checksum.
fn packet(v6: bool, class: u8) -> Vec<u8> {
    if v6 {
        let mut packet = ipv6(b"body");
        packet[..2].copy_from_slice(&[0x60 | class >> 4, class << 4 | 0x0c]);
        packet
    } else {
        let mut packet = ipv4(b"body");
        packet[1] = class;
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }
}

/// Engine A with VNI 1 and its first keys.
fn sender(mode: Mode, raw_underlay: bool, outer_traffic_class: OuterTrafficClass) -> Engine {
    let underlay = if raw_underlay { raw(Side::A) } else { Underlay::Udp };
    let engine = Engine::new(EngineConfig { outer_traffic_class, ..config(mode, underlay) });
    engine.add_network(network(Side::A, 1)).unwrap();
    engine.install(NOW, vni(1), sa(Side::A, 1, Instant::FAR_FUTURE)).unwrap();
    engine
}

#[test]
fn the_outer_header_takes_over_what_it_is_told_to() {
    let rows = [
        ("nothing by default", OuterTrafficClass::default(), 0x00),
        ("the ECN field", OuterTrafficClass { ecn: true, dscp: false }, 0x03),
        ("the DSCP", OuterTrafficClass { ecn: false, dscp: true }, 0xfc),
        ("both", OuterTrafficClass { ecn: true, dscp: true }, 0xff),
    ];
    for (name, option, mask) in rows {
        assert_eq!(option.mask(), mask, "{name}");
        for (mode, raw_underlay) in [(Mode::L3, false), (Mode::L3, true), (L2, false), (L2, true)] {
            let engine = sender(mode, raw_underlay, option);
            for (v6, class) in (0..=255).flat_map(|class| [(false, class), (true, class)]) {
                let frame = frame(mode, &packet(v6, class));
                let mut out = vec![0; 256];
                let mut in_place = [&[0; 128][..], &frame, &[0; 32]].concat();
                let place = 128..128 + frame.len();
                let copied = engine.virt_to_phy(NOW, &frame, &mut out);
                let placed = engine.virt_to_phy_in_place(NOW, &mut in_place, place);
                for (verdict, buffer) in [(copied, &out), (placed, &in_place)] {
                    let TxVerdict::Send { range, traffic_class, .. } = verdict else { panic!("{name}: {verdict:?}") };
                    assert_eq!(traffic_class.get(), class & mask, "{name}: {class:#04x}");
                    if raw_underlay {
                        assert_eq!(buffer[range.start + 15], class & mask, "{name}: the TOS byte of the outer header");
                        assert_eq!(outer::parse(&buffer[range]).unwrap().traffic_class, traffic_class);
                    }
                }
            }
        }
    }
}

#[test]
fn keepalives_have_no_class() {
    let outer_traffic_class = OuterTrafficClass { ecn: true, dscp: true };
    let keepalive = Some(core::time::Duration::from_secs(1));
    let engine = Engine::new(EngineConfig { keepalive, outer_traffic_class, ..config(Mode::L3, Underlay::Udp) });
    engine.add_network(network(Side::A, 1)).unwrap();
    engine.install(NOW, vni(1), sa(Side::A, 1, Instant::FAR_FUTURE)).unwrap();
    let verdict = engine.to_phy(NOW, &mut [0; 128]);
    assert!(matches!(verdict, Some(TxVerdict::Send { traffic_class: TrafficClass::ZERO, .. })), "{verdict:?}");
}

#[test]
fn a_run_has_one_class() {
    let classes = [0x02, 0x02, 0x03, 0x02, 0xba, 0xb8, 0xb8];
    let packets: Vec<_> = classes.iter().map(|class| packet(false, *class)).collect();
    let rows = [
        (
            "with both",
            OuterTrafficClass { ecn: true, dscp: true },
            vec![(0x02, 2), (0x03, 1), (0x02, 1), (0xba, 1), (0xb8, 2)],
        ),
        ("with the ECN field", OuterTrafficClass { ecn: true, dscp: false }, vec![(2, 2), (3, 1), (2, 2), (0, 2)]),
        ("with nothing", OuterTrafficClass::default(), vec![(0, 7)]),
    ];
    for (name, option, expected) in rows {
        let engine = sender(Mode::L3, false, option);
        let mut out = RunBuffer::new(1 << 16, 16, LIMITS);
        let mut batch: Vec<_> = packets.iter().map(|packet| BatchPacket::Whole(packet)).collect();
        assert_eq!(engine.seal_batch(NOW, &mut batch, &mut out).packets, packets.len());
        let runs: Vec<_> = out.runs().iter().map(|run| (run.to.traffic_class.get(), run.count)).collect();
        assert_eq!(runs, expected, "{name}");
    }
}

/// A TCP packet as a device hands it over, to be cut into segments of 1000 bytes.
fn offloaded(class: u8, sequence: u8) -> (VnetHeader, Vec<u8>) {
    let mut packet = vec![0; 40 + 2500];
    packet[..12].copy_from_slice(&[0x45, class, 0, 0, 0, 9, 0x40, 0, 64, 6, 0, 0]);
    packet[2..4].copy_from_slice(&2540_u16.to_be_bytes());
    packet[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 101, 0, 1]);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..34].copy_from_slice(&[0x30, 0x39, 0, 80, 0, 0, sequence, 0, 0, 0, 2, 0, 0x50, 0x10]);
    let (src, dst) = ("10.1.0.1".parse().unwrap(), "10.101.0.1".parse().unwrap());
    let pseudo = !Sum::new().add_pseudo_header(src, dst, 6, 2520).finish();
    packet[36..38].copy_from_slice(&pseudo.to_be_bytes());
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: 40,
        gso_size: 1000,
        csum_start: 20,
        csum_offset: 16,
    };
    (header, packet)
}

#[test]
fn segments_have_the_class_of_their_head() {
    let engine = sender(Mode::L3, false, OuterTrafficClass { ecn: true, dscp: true });
    let mut packets = [offloaded(0x02, 1), offloaded(0x03, 2)];
    let mut batch: Vec<_> = packets.iter_mut().map(|(header, packet)| outgoing(header, packet)).collect();
    let mut out = RunBuffer::new(1 << 16, 16, LIMITS);
    assert_eq!(engine.seal_batch(NOW, &mut batch, &mut out).packets, 2);
    let runs: Vec<_> = out.runs().iter().map(|run| (run.to.traffic_class.get(), run.count)).collect();
    assert_eq!(runs, [(2, 3), (3, 3)]);
}

/// RFC 6040 section 4.2, figure 4: rows by the inner field, columns by the outer one, both in the order of [`ALL`];
/// `None` is a drop.
const FIGURE_4: [[Option<Ecn>; 4]; 4] = [
    [Some(Ecn::NotEct), Some(Ecn::NotEct), Some(Ecn::NotEct), None],
    [Some(Ecn::Ect0), Some(Ecn::Ect0), Some(Ecn::Ect1), Some(Ecn::Ce)],
    [Some(Ecn::Ect1), Some(Ecn::Ect1), Some(Ecn::Ect1), Some(Ecn::Ce)],
    [Some(Ecn::Ce), Some(Ecn::Ce), Some(Ecn::Ce), Some(Ecn::Ce)],
];

/// What was delivered, of one packet.
struct One(Vec<u8>, Option<usize>);

impl OpenSink for One {
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        Some(&mut self.0[..len])
    }

    fn deliver(&mut self, _vni: Vni, len: usize) {
        self.1 = Some(len);
    }
}

/// Opens with one of the three calls.
fn open(engine: &Engine, way: usize, arrival: Arrival, sealed: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = sealed.to_vec();
    let verdict = match way {
        0 => engine.phy_to_virt(NOW, arrival, sealed, &mut buffer),
        1 => engine.phy_to_virt_in_place(NOW, arrival, &mut buffer, 0..sealed.len()),
        _ => {
            let mut sink = One(buffer, None);
            assert_eq!(engine.open_batch(NOW, arrival, sealed, sealed.len(), &mut sink), sealed.len());
            return sink.1.map(|len| sink.0[..len].to_vec());
        }
    };
    match verdict {
        RxVerdict::Deliver { range, .. } => Some(buffer[range].to_vec()),
        _ => None,
    }
}

#[test]
fn every_cell_of_figure_4_in_every_call_over_every_underlay() {
    for case in 0..12 {
        let (mode, raw_underlay, way) = ([Mode::L3, L2][case % 2], case / 2 % 2 == 1, case / 4);
        let (a, b) = pair(mode, raw_underlay);
        for (inner, row) in ALL.into_iter().zip(FIGURE_4) {
            for (outer, expected) in ALL.into_iter().zip(row) {
                for v6 in [false, true] {
                    let context = format!("{inner:?} in {outer:?}, IPv6: {v6}, raw: {raw_underlay}, way {way}");
                    let mut sealed = seal(&a, NOW, &frame(mode, &packet(v6, 0xb8 | inner as u8)));
                    let arrival = if raw_underlay {
                        mark(&mut sealed, 0x48 | outer as u8);
                        // What the caller says does not count.
                        Arrival { src: None, ecn: Ecn::Ce }
                    } else {
                        Arrival { src: Some(ip(Side::A)), ecn: outer }
                    };
                    let before = totals(&b);
                    let opened = open(&b, way, arrival, &sealed);
                    let changes = moved(&before, &totals(&b));
                    let delivered = expected.map(|ecn| frame_back(mode, &packet(v6, 0xb8 | ecn as u8)));
                    assert_eq!(opened, delivered, "{context}");
                    match expected {
                        Some(_) => assert_eq!(changes[0], ("rx_packets", 1), "{context}"),
                        None => assert_eq!(changes, [(RxDrop::BadEcn.counter_name(), 1)], "{context}"),
                    }
                    // It was authentic: the replay window has moved.
                    let before = totals(&b);
                    assert_eq!(open(&b, way, arrival, &sealed), None, "{context}");
                    assert_eq!(moved(&before, &totals(&b)), [("rx_replayed", 1)], "{context}");
                }
            }
        }
    }
}

/// As [`frame`], from the gateway to the host.
fn frame_back(mode: Mode, packet: &[u8]) -> Vec<u8> {
    let mut frame = frame(mode, packet);
    if let Mode::L2 { .. } = mode {
        let (to, from) = frame[..12].split_at_mut(6);
        to.swap_with_slice(from);
    }
    frame
}

/// Writes the TOS byte of an outer IPv4 header and its checksum.
fn mark(frame: &mut [u8], class: u8) {
    frame[15] = class;
    frame[24..26].fill(0);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn out_of_band_messages_and_bad_packets_do_not_go_by_the_mark() {
    let keepalive = Some(core::time::Duration::from_secs(1));
    let a = Engine::new(EngineConfig { keepalive, ..config(Mode::L3, Underlay::Udp) });
    a.add_network(network(Side::A, 1)).unwrap();
    a.install(NOW, vni(1), sa(Side::A, 1, Instant::FAR_FUTURE)).unwrap();
    let (_, b) = pair(Mode::L3, false);
    let marked = Arrival { src: Some(ip(Side::A)), ecn: Ecn::Ce };
    let mut out = [0; 128];
    let Some(TxVerdict::Send { range, .. }) = a.to_phy(NOW, &mut out) else { panic!() };
    let verdict = b.phy_to_virt(NOW, marked, &out[range], &mut [0; 128]);
    assert_eq!(verdict, RxVerdict::Consumed { vni: vni(1) });

    // The addresses are looked at first.
    let sealed = seal(&a, NOW, &packet(false, 0));
    b.update_network(icx_proto::NetworkConfig { routes: Vec::new(), ..network(Side::B, 1) }).unwrap();
    assert_eq!(b.phy_to_virt(NOW, marked, &sealed, &mut [0; 256]), RxVerdict::Drop(RxDrop::InvalidSrc));

    // An address alone is that of one that came Not-ECT.
    let (a, b) = pair(Mode::L3, false);
    let verdict = b.phy_to_virt(NOW, Some(ip(Side::A)), &seal(&a, NOW, &packet(false, 0)), &mut [0; 256]);
    assert!(matches!(verdict, RxVerdict::Deliver { .. }), "{verdict:?}");
}

/// A mark is put on before packets are merged, so that it is neither hidden in a merged packet nor spread over one.
#[test]
fn what_is_marked_is_not_merged_with_what_is_not() {
    let (a, _) = pair(Mode::L3, false);
    let (header, mut packet) = offloaded(Ecn::Ect0 as u8, 1);
    let mut out = RunBuffer::new(1 << 16, 16, LIMITS);
    assert_eq!(a.seal_batch(NOW, &mut [outgoing(&header, &mut packet)], &mut out).packets, 1);
    let [run] = out.runs() else { panic!("{} runs", out.runs().len()) };
    let rows = [
        ("none", [Ecn::Ect0; 3], vec![(3, Ecn::Ect0)]),
        ("the first", [Ecn::Ce, Ecn::NotEct, Ecn::Ect0], vec![(1, Ecn::Ce), (2, Ecn::Ect0)]),
        ("the last", [Ecn::NotEct, Ecn::Ect0, Ecn::Ce], vec![(2, Ecn::Ect0), (1, Ecn::Ce)]),
        ("all", [Ecn::Ce; 3], vec![(3, Ecn::Ce)]),
    ];
    for (name, marks, expected) in rows {
        let (_, b) = pair(Mode::L3, false);
        let mut merged = Coalescer::new(CoalesceOptions { tcp: true, udp: true, vnet: true, bytes: 1 << 17 });
        for (place, ecn) in run.datagrams().zip(marks) {
            let arrival = Arrival { src: Some(ip(Side::A)), ecn };
            let len = place.len();
            assert_eq!(b.open_batch(NOW, arrival, out.bytes(place), len, &mut merged), len);
        }
        let got: Vec<_> =
            merged.packets().map(|packet| (packet.segments, TrafficClass::of(packet.packet()).ecn())).collect();
        assert_eq!(got, expected, "{name}");
    }
}
