//! The packet path allocates nothing.

mod counting;
mod support;

use counting::allocations;
use icx_proto::engine::{BatchPacket, OpenSink, RunBuffer, RunLimits, RxVerdict, TxVerdict};
use icx_proto::{Mode, Vni};
use support::*;

struct OneRoom {
    room: [u8; 2048],
    delivered: usize,
}

impl OpenSink for OneRoom {
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.room.get_mut(..len)
    }

    fn deliver(&mut self, _vni: Vni, _len: usize) {
        self.delivered += 1;
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn no_packet_allocates_once_the_path_is_warm() {
    for mode in [Mode::L3, L2] {
        for raw_underlay in [false, true] {
            let (a, b) = pair(mode, raw_underlay);
            let packet = frame(mode, &ipv4(&[7; 500]));
            let (mut sealed, mut opened) = (vec![0; 2048], vec![0; 2048]);
            let src = Some(ip(Side::A));
            let mut round = || {
                let TxVerdict::Send { range, .. } = a.virt_to_phy(NOW, &packet, &mut sealed) else { panic!() };
                let verdict = b.phy_to_virt(NOW, src, &sealed[range.clone()], &mut opened);
                assert!(matches!(verdict, RxVerdict::Deliver { .. }));
                // A replay, a forgery and a stray: drops are as cheap.
                let verdict = b.phy_to_virt_in_place(NOW, src, &mut sealed, range.clone());
                assert!(matches!(verdict, RxVerdict::Drop(_)));
                assert!(matches!(b.phy_to_virt(NOW, src, &sealed[range], &mut opened), RxVerdict::Drop(_)));
                assert!(matches!(a.virt_to_phy(NOW, &packet[..10], &mut sealed), TxVerdict::Drop(_)));

                sealed[200..200 + packet.len()].copy_from_slice(&packet);
                let verdict = a.virt_to_phy_in_place(NOW, &mut sealed, 200..200 + packet.len());
                let TxVerdict::Send { range, .. } = verdict else { panic!() };
                let verdict = b.phy_to_virt_in_place(NOW, src, &mut sealed, range);
                assert!(matches!(verdict, RxVerdict::Deliver { .. }));
            };
            // The first packet of a thread registers it with the shared pointer.
            round();
            let count = allocations(|| (0..100).for_each(|_| round()));
            assert_eq!(count, 0, "{mode:?}, raw underlay {raw_underlay}");
        }
    }
}

#[test]
fn no_batch_allocates_once_the_path_is_warm() {
    let (a, b) = pair(Mode::L3, false);
    let packet = ipv4(&[7; 500]);
    let mut inputs: Vec<_> = (0..40).map(|_| BatchPacket::Whole(&packet)).collect();
    let mut out = RunBuffer::new(40 * 600, 40, RunLimits { datagrams: 16, bytes: 65_000 });
    let mut sink = OneRoom { room: [0; 2048], delivered: 0 };
    let mut round = || {
        out.clear();
        let done = a.seal_batch(NOW, &mut inputs, &mut out);
        assert_eq!((done.packets, out.runs().len()), (40, 3));
        for run in out.runs() {
            b.open_batch(NOW, Some(ip(Side::A)), out.bytes(run.range.clone()), run.segment_size, &mut sink);
        }
    };
    round();
    assert_eq!(allocations(|| (0..100).for_each(|_| round())), 0);
    assert_eq!(sink.delivered, 101 * 40);
}
