//! Properties of the transform: it comes back, both ways of doing it agree, and whatever is damaged costs one counter.

mod support;

use icx_proto::engine::{BatchPacket, OpenSink, RunBuffer, RunLimits, RxVerdict, SealedRun, Stop, TxVerdict};
use icx_proto::{Engine, Mode, Vni};
use proptest::prelude::*;
use support::*;

const HEADROOM: usize = 128;

fn modes() -> impl Strategy<Value = (Mode, bool)> {
    (prop_oneof![Just(Mode::L3), Just(L2)], any::<bool>())
}

fn packets() -> impl Strategy<Value = Vec<u8>> {
    let body = proptest::collection::vec(any::<u8>(), 0..1500);
    (any::<bool>(), body).prop_map(|(v6, body)| if v6 { ipv6(&body) } else { ipv4(&body) })
}

/// What the peer's host gets for a frame of ours.
fn as_delivered(mode: Mode, packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    match mode {
        Mode::L3 => packet.to_vec(),
        Mode::L2 { host_mac, gateway_mac } => [&host_mac.0[..], &gateway_mac.0, &ethertype, packet].concat(),
    }
}

fn open_in_place(engine: &Engine, datagram: &[u8]) -> (RxVerdict, Vec<u8>) {
    let mut buf = vec![0; HEADROOM + datagram.len() + 7];
    let place = HEADROOM..HEADROOM + datagram.len();
    buf[place.clone()].copy_from_slice(datagram);
    let verdict = engine.phy_to_virt_in_place(NOW, Some(ip(Side::A)), &mut buf, place);
    if let RxVerdict::Deliver { range, .. } = &verdict {
        assert!(range.start >= HEADROOM, "the result lies before the frame");
        let bytes = buf[range.clone()].to_vec();
        return (verdict, bytes);
    }
    (verdict, Vec::new())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sealed_opens_again_and_both_ways_agree((mode, raw_underlay) in modes(), packet in packets()) {
        let (a, b) = pair(mode, raw_underlay);
        let (twin, _) = pair(mode, raw_underlay);
        let frame = frame(mode, &packet);
        let copied = seal(&a, NOW, &frame);
        let mut buf = vec![0xee; HEADROOM + frame.len() + HEADROOM];
        buf[HEADROOM..][..frame.len()].copy_from_slice(&frame);
        let verdict = twin.virt_to_phy_in_place(NOW, &mut buf, HEADROOM..HEADROOM + frame.len());
        let TxVerdict::Send { range, .. } = verdict else { panic!("{verdict:?}") };
        prop_assert_eq!(&buf[range], &copied[..]);

        let mut out = vec![0; copied.len()];
        let verdict = b.phy_to_virt(NOW, Some(ip(Side::A)), &copied, &mut out);
        let RxVerdict::Deliver { range, .. } = verdict else { panic!("{verdict:?}") };
        prop_assert_eq!(&out[range], &as_delivered(mode, &packet)[..]);
        let next = seal(&a, NOW, &frame);
        let (verdict, bytes) = open_in_place(&b, &next);
        prop_assert!(matches!(verdict, RxVerdict::Deliver { .. }), "{:?}", verdict);
        prop_assert_eq!(bytes, as_delivered(mode, &packet));
        let bytes = packet.len() as u64;
        prop_assert_eq!(moved(&Default::default(), &totals(&a)), [("tx_packets", 2), ("tx_bytes", 2 * bytes)]);
        prop_assert_eq!(moved(&Default::default(), &totals(&b)), [("rx_packets", 2), ("rx_bytes", 2 * bytes)]);
    }

    #[test]
    fn a_flipped_bit_is_one_counted_drop_and_nothing_else(
        packet in packets(),
        bit in any::<prop::sample::Index>(),
        in_place in any::<bool>(),
    ) {
        let (a, b) = pair(Mode::L3, false);
        let datagram = seal(&a, NOW, &packet);
        let bit = bit.index(datagram.len() * 8);
        let mut damaged = datagram.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let status = b.sa_status(NOW, vni(1));
        let verdict = if in_place {
            open_in_place(&b, &damaged).0
        } else {
            b.phy_to_virt(NOW, Some(ip(Side::A)), &damaged, &mut vec![0; 4096])
        };
        let RxVerdict::Drop(reason) = verdict else { panic!("bit {bit}: {verdict:?}") };
        prop_assert_eq!(moved(&Default::default(), &totals(&b)), [(reason.counter_name(), 1)]);
        prop_assert_eq!(b.sa_status(NOW, vni(1)), status);
        // The replay window has not moved: the genuine one still opens.
        let verdict = b.phy_to_virt(NOW, Some(ip(Side::A)), &datagram, &mut vec![0; 4096]);
        prop_assert!(matches!(verdict, RxVerdict::Deliver { .. }), "{:?}", verdict);
    }

    #[test]
    fn any_bytes_from_either_side_end_in_one_verdict_and_at_most_one_drop(
        (mode, raw_underlay) in modes(),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        room in 0_usize..300,
        keep in 0_usize..200,
    ) {
        let (a, b) = pair(mode, raw_underlay);
        // Both pure noise and the front of something genuine followed by noise.
        let genuine = seal(&a, NOW, &frame(mode, &ipv4(b"genuine")));
        let mut mixed = genuine[..keep.min(genuine.len())].to_vec();
        mixed.extend_from_slice(&bytes);
        for input in [&bytes, &mixed] {
            for engine in [&a, &b] {
                let mut out = vec![0; room];
                let before = totals(engine);
                let verdict = engine.virt_to_phy(NOW, input, &mut out);
                check_tx(&verdict, &moved(&before, &totals(engine)));
                let before = totals(engine);
                let mut buf = vec![0; room + input.len()];
                let start = room / 2;
                buf[start..][..input.len()].copy_from_slice(input);
                let verdict = engine.virt_to_phy_in_place(NOW, &mut buf, start..start + input.len());
                check_tx(&verdict, &moved(&before, &totals(engine)));
                let before = totals(engine);
                let verdict = engine.phy_to_virt(NOW, Some(ip(Side::A)), input, &mut out);
                check_rx(&verdict, &moved(&before, &totals(engine)));
                let before = totals(engine);
                let (verdict, _) = open_in_place(engine, input);
                check_rx(&verdict, &moved(&before, &totals(engine)));
            }
        }
    }

    #[test]
    fn a_batch_is_its_packets_one_by_one(
        sizes in proptest::collection::vec((0_usize..4, 0_usize..200), 0..150),
        room in 0_usize..30_000,
        datagrams in 1_usize..70,
        bytes in 100_usize..20_000,
        runs in 1_usize..100,
    ) {
        let engines = || {
            let (a, b) = pair(Mode::L3, false);
            for (engine, side) in [(&a, Side::A), (&b, Side::B)] {
                engine.add_network(network(side, 2)).unwrap();
                engine.install(NOW, vni(2), sa(side, 2, icx_proto::Instant::FAR_FUTURE)).unwrap();
            }
            (a, b)
        };
        let (batch, receiver) = engines();
        let (single, _) = engines();
        // Two VNIs, packets without a route, and no packets at all.
        let packets: Vec<Vec<u8>> = sizes.iter().map(|&(kind, len)| match kind {
            0 => Vec::new(),
            1 => ipv4_of(3, &vec![1; len]),
            number => ipv4_of(number as u8 - 1, &vec![2; len / 8 * 8]),
        }).collect();
        let mut inputs: Vec<_> = packets.iter().map(|packet| BatchPacket::Whole(packet)).collect();
        let limits = RunLimits { datagrams, bytes };
        let mut expected = Vec::new();
        for packet in &packets {
            let mut out = vec![0; room];
            if let TxVerdict::Send { range, vni, .. } = single.virt_to_phy(NOW, packet, &mut out) {
                expected.push((vni, out[range].to_vec()));
            }
        }
        let mut sent = Vec::new();
        let mut sink = Collect::default();
        let mut rest = &mut inputs[..];
        let mut out = RunBuffer::new(room, runs, limits);
        while !rest.is_empty() {
            out.clear();
            let done = batch.seal_batch(NOW, rest, &mut out);
            prop_assert!(done.packets > 0, "an empty buffer takes or drops at least one packet");
            let is_answered = matches!(done.stopped, None | Some(Stop::TooBig { .. }));
            prop_assert!(is_answered);
            check_runs(out.runs(), limits, out.len());
            for run in out.runs() {
                sent.extend(run.datagrams().map(|range| (run.to.vni, out.bytes(range).to_vec())));
                let run_bytes = out.bytes(run.range.clone());
                prop_assert_eq!(
                    receiver.open_batch(NOW, Some(ip(Side::A)), run_bytes, run.segment_size, &mut sink),
                    run_bytes.len()
                );
            }
            rest = &mut rest[done.packets..];
        }
        prop_assert_eq!(&sent, &expected);
        prop_assert_eq!(totals(&batch), totals(&single));
        let opened: Vec<_> = sink.frames.iter().map(|(_, frame)| frame.len() + GENEVE + TAG).collect();
        prop_assert_eq!(opened, expected.iter().map(|(_, datagram)| datagram.len()).collect::<Vec<_>>());
        let received = totals(&receiver);
        prop_assert_eq!(received.get("rx_packets"), totals(&single).get("tx_packets"));
        prop_assert_eq!(received.get("rx_bytes"), totals(&single).get("tx_bytes"));
    }
}

fn check_tx(verdict: &TxVerdict, changes: &[(&str, u64)]) {
    match verdict {
        TxVerdict::Send { .. } => assert_eq!(changes[0], ("tx_packets", 1)),
        TxVerdict::Reply { .. } => assert_eq!(changes, []),
        TxVerdict::Drop(reason) => assert_eq!(changes, [(reason.counter_name(), 1)]),
    }
}

fn check_rx(verdict: &RxVerdict, changes: &[(&str, u64)]) {
    match verdict {
        RxVerdict::Deliver { .. } | RxVerdict::Consumed { .. } => assert_eq!(changes[0], ("rx_packets", 1)),
        RxVerdict::Drop(reason) => assert_eq!(changes, [(reason.counter_name(), 1)]),
    }
}

fn check_runs(runs: &[SealedRun], limits: RunLimits, bytes: usize) {
    let mut at = 0;
    for run in runs {
        assert!(run.range.start >= at && run.range.end <= bytes);
        at = run.range.end;
        assert!(run.count <= limits.datagrams);
        assert!(run.count == 1 || run.range.len() <= limits.bytes);
        let lens: Vec<_> = run.datagrams().map(|range| range.len()).collect();
        assert_eq!(lens.len(), run.count);
        let (last, others) = lens.split_last().unwrap();
        assert!(others.iter().all(|len| *len == run.segment_size) && *last <= run.segment_size);
    }
}

#[derive(Default)]
struct Collect {
    room: Vec<u8>,
    frames: Vec<(Vni, Vec<u8>)>,
}

impl OpenSink for Collect {
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.room.resize(len, 0);
        Some(&mut self.room)
    }

    fn deliver(&mut self, vni: Vni, len: usize) {
        self.frames.push((vni, self.room[..len].to_vec()));
    }
}

/// Takes one frame and has no room for a second.
struct One(Option<Vec<u8>>);

impl OpenSink for One {
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.0.is_some() {
            return None;
        }
        self.0.replace(vec![0; len]).is_none().then_some(self.0.as_mut()?.as_mut_slice())
    }

    fn deliver(&mut self, _vni: Vni, _len: usize) {}
}

#[test]
fn a_full_sink_ends_the_batch_and_nothing_is_lost() {
    let (a, b) = pair(Mode::L3, false);
    let packet = ipv4(b"one of three");
    let mut datagrams: Vec<u8> = (0..3).flat_map(|_| seal(&a, NOW, &packet)).collect();
    let stride = datagrams.len() / 3;
    for left in [2, 1, 0] {
        let done = b.open_batch(NOW, Some(ip(Side::A)), &datagrams, stride, &mut One(None));
        assert_eq!(done, stride);
        datagrams.drain(..done);
        assert_eq!(datagrams.len(), left * stride);
    }
    assert_eq!(moved(&Default::default(), &totals(&b))[0], ("rx_packets", 3));
}

#[test]
fn a_local_reply_ends_a_batch_and_goes_back_to_the_virtual_side() {
    let (a, _) = pair(L2, false);
    let mut arp = vec![0xff; 6];
    arp.extend_from_slice(&[2, 0, 0, 0, 0, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 1, 0, 1]);
    arp.extend_from_slice(&[0, 0, 0, 0, 0, 0, 10, 101, 0, 1]);
    let packet = frame(L2, &ipv4(b"x"));
    let mut inputs = [&packet, &arp, &packet].map(|frame| BatchPacket::Whole(frame));
    let mut out = RunBuffer::new(4096, 8, RunLimits { datagrams: 64, bytes: 65_000 });
    let done = a.seal_batch(NOW, &mut inputs, &mut out);
    let Some(Stop::Reply(reply)) = done.stopped else { panic!("no reply: {done:?}") };
    assert_eq!((done.packets, reply.as_bytes().len(), out.runs().len()), (2, 42, 1));
    assert_eq!(reply.as_bytes()[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], "from the gateway to the host");
    let done = a.seal_batch(NOW, &mut inputs[2..], &mut out);
    assert!(done.packets == 1 && done.stopped.is_none());
    assert_eq!(out.runs()[0].count, 2);
}

#[test]
fn ranges_outside_the_buffer_are_refused() {
    let (a, _) = pair(Mode::L3, false);
    let mut buf = [0; 100];
    #[expect(clippy::reversed_empty_ranges, reason = "that is the misuse")]
    for range in [90..101, 101..102, 50..40] {
        assert!(matches!(a.virt_to_phy_in_place(NOW, &mut buf, range.clone()), TxVerdict::Drop(_)));
        assert!(matches!(a.phy_to_virt_in_place(NOW, None, &mut buf, range), RxVerdict::Drop(_)));
    }
}
