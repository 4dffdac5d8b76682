//! Sinks hear of every packet of a batch: those that went on, and why the others did not.

mod support;

use icx_proto::counters::{RxDrop, TxDrop};
use icx_proto::engine::{BatchPacket, Destination, OpenSink, RunBuffer, RunLimits, SealSink};
use icx_proto::offload::{VnetHeader, outgoing};
use icx_proto::{Mode, Vni};

use support::{L2, NOW, Side, frame, ip, ipv4, pair, seal};

const LIMITS: RunLimits = RunLimits { datagrams: 64, bytes: 65_000 };

/// What was heard of packets, and where the sealed ones go.
struct Hearing {
    out: RunBuffer,
    heard: Vec<(Vec<u8>, Option<TxDrop>)>,
}

impl Hearing {
    fn new() -> Self {
        Hearing { out: RunBuffer::new(1 << 17, 64, LIMITS), heard: Vec::new() }
    }
}

impl SealSink for Hearing {
    fn largest(&self) -> usize {
        self.out.largest()
    }

    fn reserve(&mut self, len: usize) -> bool {
        self.out.reserve(len)
    }

    fn front(&mut self, len: usize) -> &mut [u8] {
        self.out.front(len)
    }

    fn settle(&mut self, len: usize, to: Option<&Destination>) {
        self.out.settle(len, to);
    }

    fn hear(&mut self, packet: &[u8], dropped: Option<TxDrop>) {
        self.heard.push((packet.to_vec(), dropped));
    }
}

/// A UDP packet with `payload` bytes behind its headers, as a device leaves it to be cut into segments of 1000 bytes.
fn uncut(payload: usize) -> (VnetHeader, Vec<u8>) {
    let packet = ipv4(&vec![7; payload]);
    let (flags, gso_type) = (VnetHeader::NEEDS_CSUM, VnetHeader::GSO_UDP_L4);
    (VnetHeader { flags, gso_type, hdr_len: 28, gso_size: 1000, csum_start: 20, csum_offset: 6 }, packet)
}

#[test]
fn a_seal_sink_hears_of_packets_as_they_are_sealed_and_of_drops_with_the_reason() {
    for mode in [Mode::L3, L2] {
        let (a, _) = pair(mode, false);
        let (whole, mut lost) = (ipv4(b"whole"), ipv4(b"lost"));
        lost[16] = 172;
        let frames = [frame(mode, &whole), frame(mode, &lost)];
        let (header, mut packet) = uncut(2500);
        let mut batch = [
            BatchPacket::Whole(&frames[0]),
            outgoing(&header, &mut packet),
            BatchPacket::Malformed,
            BatchPacket::Whole(&frames[1]),
        ];
        let mut sink = Hearing::new();
        assert_eq!(a.seal_batch(NOW, &mut batch, &mut sink).packets, batch.len());
        let (sealed, dropped): (Vec<_>, Vec<_>) = sink.heard.into_iter().partition(|(_, dropped)| dropped.is_none());
        let sealed: Vec<_> = sealed.into_iter().map(|(packet, _)| packet).collect();
        assert_eq!(sealed[0], whole);
        let malformed = (Vec::new(), Some(TxDrop::Malformed));
        let no_route = (lost, Some(TxDrop::NoRoute));
        if mode == L2 {
            assert_eq!(sealed.len(), 1);
            assert_eq!(dropped, [malformed.clone(), malformed, no_route]);
            continue;
        }
        assert_eq!(dropped, [malformed, no_route]);
        let segments = &sealed[1..];
        let lengths: Vec<_> = segments.iter().map(|segment| u16::from_be_bytes([segment[2], segment[3]])).collect();
        assert_eq!(lengths, [1028, 1028, 528]);
        assert!(segments.iter().zip(lengths).all(|(segment, length)| segment.len() == usize::from(length)));
    }
}

#[test]
fn a_seal_sink_hears_once_of_what_is_dropped_before_it_is_cut() {
    let (a, _) = pair(Mode::L3, false);
    a.set_inner_mtu(Some(500));
    let (header, mut packet) = uncut(2500);
    let mut sink = Hearing::new();
    a.seal_batch(NOW, &mut [outgoing(&header, &mut packet)], &mut sink);
    let [(heard, Some(TxDrop::TooBig))] = &sink.heard[..] else { panic!("{:?}", sink.heard) };
    assert_eq!((heard.len(), &heard[12..20]), (28, &packet[12..20]));
}

#[derive(Default)]
struct Opened {
    room: Vec<u8>,
    delivered: usize,
    dropped: Vec<RxDrop>,
}

impl OpenSink for Opened {
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.room.resize(len, 0);
        Some(&mut self.room)
    }

    fn deliver(&mut self, _: Vni, _: usize) {
        self.delivered += 1;
    }

    fn dropped(&mut self, reason: RxDrop) {
        self.dropped.push(reason);
    }
}

#[test]
fn an_open_sink_hears_why_a_datagram_is_dropped() {
    let (a, b) = pair(Mode::L3, false);
    let genuine = seal(&a, NOW, &ipv4(b"genuine"));
    let mut forged = seal(&a, NOW, &ipv4(b"forged!"));
    *forged.last_mut().unwrap() ^= 1;
    let mut elsewhere = seal(&a, NOW, &ipv4(b"other 1"));
    elsewhere[4] = 0xff;
    let datagrams = [&genuine[..], &forged, &genuine, &elsewhere].concat();
    let mut sink = Opened::default();
    assert_eq!(b.open_batch(NOW, Some(ip(Side::A)), &datagrams, genuine.len(), &mut sink), datagrams.len());
    assert_eq!((sink.delivered, sink.dropped), (1, vec![RxDrop::AuthFailed, RxDrop::Replayed, RxDrop::UnknownVni]));
}
