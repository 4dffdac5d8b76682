//! Cutting against a plain reading of what a segment is, and merging against cutting.

use proptest::prelude::*;

use super::headers::{ACK, CWR, ECE, FIN, PSH};
use super::{CoalesceOptions, Coalescer, VnetHeader, outgoing};
use crate::engine::{BatchPacket, OpenSink};
use crate::id::Vni;
use crate::wire::checksum::Sum;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A packet of one flow, as a sender would describe it.
#[derive(Clone, Debug)]
struct Packet {
    v6: bool,
    protocol: u8,
    tos: u8,
    ttl: u8,
    dont_fragment: bool,
    id: u16,
    port: u16,
    sequence: u32,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Packet {
    fn tcp(payload: Vec<u8>) -> Packet {
        Packet {
            v6: false,
            protocol: TCP,
            tos: 0,
            ttl: 64,
            dont_fragment: true,
            id: 7,
            port: 5201,
            sequence: 1000,
            flags: ACK,
            options: Vec::new(),
            payload,
        }
    }

    fn udp(payload: Vec<u8>) -> Packet {
        Packet { protocol: UDP, flags: 0, sequence: 0, ..Packet::tcp(payload) }
    }

    fn ip_len(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn header_len(&self) -> usize {
        self.ip_len() + if self.protocol == TCP { 20 + self.options.len() } else { 8 }
    }

    /// The packet with every field written where its RFC has it, and every checksum summed word by word.
    fn bytes(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend_from_slice(&40_000_u16.to_be_bytes());
        transport.extend_from_slice(&self.port.to_be_bytes());
        if self.protocol == TCP {
            transport.extend_from_slice(&self.sequence.to_be_bytes());
            transport.extend_from_slice(&0x0102_0304_u32.to_be_bytes());
            transport.extend_from_slice(&[(5 + self.options.len() as u8 / 4) << 4, self.flags, 1, 2, 0, 0, 0, 0]);
            transport.extend_from_slice(&self.options);
        } else {
            transport.extend_from_slice(&((8 + self.payload.len()) as u16).to_be_bytes());
            transport.extend_from_slice(&[0, 0]);
        }
        transport.extend_from_slice(&self.payload);
        let (src, dst): (&[u8], &[u8]) = if self.v6 { (&[1; 16], &[2; 16]) } else { (&[10, 0, 0, 1], &[10, 0, 0, 2]) };
        let length = (transport.len() as u32).to_be_bytes();
        let pseudo = [src, dst, &length, &[0, 0, 0, self.protocol]].concat();
        let checksum = match (ones_complement(&[&pseudo[..], &transport].concat()), self.protocol) {
            (0, UDP) => 0xffff,
            (checksum, _) => checksum,
        };
        let at = if self.protocol == TCP { 16 } else { 6 };
        transport[at..at + 2].copy_from_slice(&checksum.to_be_bytes());

        let mut packet = Vec::new();
        if self.v6 {
            packet.extend_from_slice(&[0x60 | self.tos >> 4, self.tos << 4, 0, 9]);
            packet.extend_from_slice(&(transport.len() as u16).to_be_bytes());
            packet.extend_from_slice(&[self.protocol, self.ttl]);
        } else {
            packet.extend_from_slice(&[0x45, self.tos]);
            packet.extend_from_slice(&((20 + transport.len()) as u16).to_be_bytes());
            packet.extend_from_slice(&self.id.to_be_bytes());
            packet.extend_from_slice(&[if self.dont_fragment { 0x40 } else { 0 }, 0, self.ttl, self.protocol, 0, 0]);
        }
        packet.extend_from_slice(src);
        packet.extend_from_slice(dst);
        if !self.v6 {
            let checksum = ones_complement(&packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet.extend_from_slice(&transport);
        packet
    }

    /// As a device with offloads hands it over: whole, with the sum of the pseudo-header for a checksum.
    fn offloaded(&self, size: usize) -> (VnetHeader, Vec<u8>) {
        let mut packet = self.bytes();
        let (ip_len, csum_offset) = (self.ip_len(), if self.protocol == TCP { 16 } else { 6 });
        let sum = self.pseudo_sum((packet.len() - ip_len) as u32);
        packet[ip_len + csum_offset..][..2].copy_from_slice(&sum.to_be_bytes());
        let gso_type = match (self.protocol, self.v6) {
            (TCP, false) => VnetHeader::GSO_TCPV4,
            (TCP, true) => VnetHeader::GSO_TCPV6,
            _ => VnetHeader::GSO_UDP_L4,
        };
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: self.header_len() as u16,
            gso_size: size as u16,
            csum_start: ip_len as u16,
            csum_offset: csum_offset as u16,
        };
        (header, packet)
    }

    fn pseudo_sum(&self, len: u32) -> u16 {
        let (src, dst) = if self.v6 {
            (std::net::IpAddr::from([1_u8; 16]), std::net::IpAddr::from([2_u8; 16]))
        } else {
            (std::net::IpAddr::from([10, 0, 0, 1]), std::net::IpAddr::from([10, 0, 0, 2]))
        };
        !Sum::new().add_pseudo_header(src, dst, self.protocol, len).finish()
    }

    /// What cutting has to give: each segment as a packet of its own.
    fn segments(&self, size: usize) -> Vec<Packet> {
        let count = self.payload.len().div_ceil(size).max(1);
        (0..count)
            .map(|index| {
                let mut segment = self.clone();
                let start = index * size;
                segment.payload = self.payload[start..(start + size).min(self.payload.len())].to_vec();
                segment.id = self.id.wrapping_add(index as u16);
                if self.protocol == TCP {
                    segment.sequence = self.sequence.wrapping_add(start as u32);
                    if index > 0 {
                        segment.flags &= !CWR;
                    }
                    if index + 1 < count {
                        segment.flags &= !(FIN | PSH);
                    }
                }
                segment
            })
            .collect()
    }
}

/// RFC 1071 section 4.1, word by word.
fn ones_complement(data: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in data.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

/// Cuts a packet of a device into its segments.
fn cut(header: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    match outgoing(header, &mut packet) {
        BatchPacket::Whole(packet) => vec![packet.to_vec()],
        BatchPacket::Segmented(mut segments) => {
            let mut all = Vec::new();
            while let Some((index, len)) = segments.peek() {
                segments.advance();
                let segment = segments.cut(index).to_vec();
                assert_eq!(segment.len(), len, "as planned");
                all.push(segment);
            }
            all
        }
        BatchPacket::Malformed => panic!("refused: {header:?}"),
    }
}

fn options(tcp: bool, udp: bool, vnet: bool) -> CoalesceOptions {
    CoalesceOptions { tcp, udp, vnet, bytes: 1 << 18 }
}

/// Puts packets through a coalescer, and returns what the device is given: header, packet and number of segments.
fn merge(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>, u32)> {
    for packet in packets {
        give(coalescer, 1, packet);
    }
    taken(coalescer)
}

fn give(coalescer: &mut Coalescer, network: u32, packet: &[u8]) {
    // The engine asks for more room than it uses where an option lies in the tunnel header.
    coalescer.room(packet.len() + 8).unwrap()[..packet.len()].copy_from_slice(packet);
    coalescer.deliver(vni(network), packet.len());
}

fn taken(coalescer: &mut Coalescer) -> Vec<(VnetHeader, Vec<u8>, u32)> {
    coalescer
        .packets()
        .map(|packet| {
            let (header, bytes) = packet.bytes().split_first_chunk().unwrap();
            assert_eq!(bytes, packet.packet());
            (VnetHeader::parse(header), bytes.to_vec(), packet.segments)
        })
        .collect()
}

fn packets(range: std::ops::Range<usize>) -> impl Strategy<Value = Packet> {
    let ip = (any::<bool>(), any::<u8>(), 1..255_u8, any::<bool>(), any::<u16>());
    let flags = prop_oneof![4 => Just(ACK), 2 => Just(ACK | PSH), 1 => Just(ACK | ECE), 1 => any::<u8>()];
    let tcp = (any::<bool>(), any::<u32>(), flags, 0..11_usize, any::<u8>());
    (ip, tcp, range, any::<u16>()).prop_map(|((v6, tos, ttl, dont_fragment, id), tcp, len, port)| {
        let (is_tcp, sequence, flags, options, fill) = tcp;
        let payload = (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(fill)).collect();
        let packet = if is_tcp { Packet::tcp(payload) } else { Packet::udp(payload) };
        let options = if is_tcp { vec![1; options * 4] } else { Vec::new() };
        let (sequence, flags) = if is_tcp { (sequence, flags) } else { (0, 0) };
        Packet { v6, tos, ttl, dont_fragment, id, port, sequence, flags, options, ..packet }
    })
}

proptest! {
    #[test]
    fn segments_are_what_a_sender_without_offload_would_have_sent(packet in packets(0..9000), size in 1..3000_usize) {
        // The fewest segments that still show every case.
        let size = size.max(packet.payload.len() / 200 + 1);
        let (header, bytes) = packet.offloaded(size);
        let expected: Vec<_> = packet.segments(size).iter().map(Packet::bytes).collect();
        prop_assert_eq!(cut(&header, &bytes), expected);
    }

    #[test]
    fn a_checksum_is_completed(packet in packets(0..2000)) {
        let (header, bytes) = packet.offloaded(1);
        let header = VnetHeader { gso_type: VnetHeader::GSO_NONE, gso_size: 0, ..header };
        let mut expected = packet.bytes();
        // Zero and all ones are one number to TCP; what completes it writes the latter.
        let at = packet.ip_len() + usize::from(header.csum_offset);
        if expected[at..at + 2] == [0, 0] {
            expected[at..at + 2].fill(0xff);
        }
        prop_assert_eq!(cut(&header, &bytes), vec![expected]);
    }

    #[test]
    fn what_a_device_says_never_panics(header: [u8; 10], packet in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut packet = packet;
        if let BatchPacket::Segmented(mut segments) = outgoing(&VnetHeader::parse(&header), &mut packet) {
            while let Some((index, len)) = segments.peek() {
                segments.advance();
                prop_assert_eq!(segments.cut(index).len(), len);
            }
        }
    }

    #[test]
    fn merged_and_cut_again_is_the_same(
        streams in proptest::collection::vec((packets(1..6000), 200..1500_usize, any::<u16>()), 1..8),
        change in proptest::option::of((any::<usize>(), any::<usize>(), 1..=255_u8)),
    ) {
        let mut sent: Vec<_> = streams.iter().flat_map(|(packet, size, keep)| {
            // Not all of every stream arrives.
            let segments = packet.segments(*size).into_iter().enumerate();
            let arrived = segments.filter(move |(index, _)| keep >> (index % 16) & 1 == 0 || *keep > 20_000);
            arrived.map(|(_, segment)| segment.bytes())
        }).collect();
        if let Some((packet, at, bits)) = change && !sent.is_empty() {
            let packet = packet % sent.len();
            let at = at % sent[packet].len();
            sent[packet][at] ^= bits;
        }
        let mut coalescer = Coalescer::new(options(true, true, true));
        let merged = merge(&mut coalescer, &sent);
        prop_assert_eq!(merged.iter().map(|(.., segments)| *segments as usize).sum::<usize>(), sent.len());
        let again: Vec<_> = merged.iter().flat_map(|(header, packet, segments)| {
            let cut = cut(header, packet);
            assert_eq!(cut.len(), *segments as usize);
            cut
        }).collect();
        prop_assert_eq!(without_idle_ids(again), without_idle_ids(sent));
    }
}

/// RFC 6864: the ID of an IPv4 packet with DF means nothing. Clears it, and takes it out of the checksum.
fn without_idle_ids(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for packet in &mut packets {
        if packet.len() >= 20 && packet[0] == 0x45 && packet[6] & 0x40 != 0 && ones_complement(&packet[..20]) == 0 {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
            let checksum = ones_complement(&packet[..20]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
    }
    packets
}

#[test]
fn a_stream_becomes_one_packet() {
    for (v6, protocol) in [(false, TCP), (true, TCP), (false, UDP), (true, UDP)] {
        let flags = if protocol == TCP { ACK | PSH } else { 0 };
        let whole = Packet { v6, protocol, flags, ..Packet::tcp((0..=255).cycle().take(40_000).collect()) };
        let segments: Vec<_> = whole.segments(1300).iter().map(Packet::bytes).collect();
        let (header, bytes) = Packet { sequence: if protocol == TCP { 1000 } else { 0 }, ..whole }.offloaded(1300);
        let mut coalescer = Coalescer::new(options(true, true, true));
        assert_eq!(merge(&mut coalescer, &segments), [(header, bytes, 31)], "IPv6 {v6}, protocol {protocol}");
        // Another time, after it was cleared.
        coalescer.clear();
        assert_eq!(merge(&mut coalescer, &segments).len(), 1);
    }
}

#[test]
fn what_is_off_is_not_merged() {
    let of = |packet: Packet| packet.segments(100).iter().map(Packet::bytes).collect::<Vec<_>>();
    let (tcp, udp) = (of(Packet::tcp(vec![1; 300])), of(Packet::udp(vec![1; 300])));
    let count =
        |tcp_on, udp_on, packets: &[Vec<u8>]| merge(&mut Coalescer::new(options(tcp_on, udp_on, true)), packets).len();
    assert_eq!((count(true, false, &tcp), count(false, true, &tcp)), (1, 3));
    assert_eq!((count(false, true, &udp), count(true, false, &udp)), (1, 3));

    let mut bare = Coalescer::new(options(true, true, false));
    tcp.iter().for_each(|packet| give(&mut bare, 1, packet));
    let taken: Vec<_> = bare.packets().map(|packet| packet.bytes().to_vec()).collect();
    assert_eq!(taken, tcp, "no headers, and nothing merged");
}

/// Two packets that would merge, the second changed: they stay as they are.
fn stay_apart(what: &str, first: &Packet, second: &[u8]) {
    let sent = [first.bytes(), second.to_vec()];
    let merged = merge(&mut Coalescer::new(options(true, true, true)), &sent);
    assert_eq!(merged.len(), 2, "{what}");
    for ((header, packet, segments), sent) in merged.iter().zip(&sent) {
        assert_eq!((*header, packet, *segments), (VnetHeader::default(), sent, 1), "{what}");
    }
}

#[test]
fn what_differs_stays_apart() {
    for v6 in [false, true] {
        let first = Packet { v6, options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], ..Packet::tcp(vec![5; 600]) };
        let next = Packet { sequence: 1600, id: 8, ..first.clone() };
        let sent = [first.bytes(), next.bytes()];
        assert_eq!(merge(&mut Coalescer::new(options(true, true, true)), &sent).len(), 1);

        let mut other_time = next.clone();
        other_time.options[7] = 9;
        let cases = [
            ("a gap", Packet { sequence: 1601, ..next.clone() }),
            ("a repetition", first.clone()),
            ("another port", Packet { port: 80, ..next.clone() }),
            ("another TTL", Packet { ttl: 63, ..next.clone() }),
            ("another TOS", Packet { tos: 4, ..next.clone() }),
            ("congestion experienced", Packet { tos: 3, ..next.clone() }),
            ("an echo of congestion", Packet { flags: ACK | ECE, ..next.clone() }),
            ("window reduced", Packet { flags: ACK | CWR, ..next.clone() }),
            ("the end", Packet { flags: ACK | FIN, ..next.clone() }),
            ("other options", other_time),
            ("fewer options", Packet { options: Vec::new(), ..next.clone() }),
            ("nothing in it", Packet { payload: Vec::new(), ..next.clone() }),
            ("larger", Packet { payload: vec![5; 601], ..next.clone() }),
        ];
        for (what, second) in cases {
            stay_apart(what, &first, &second.bytes());
        }
        for (what, at) in [("the window", 34), ("the acknowledgement", 28), ("urgent", 38)] {
            let mut second = next.bytes();
            second[at + next.ip_len() - 20] ^= 1;
            // The checksum is right for the changed packet: moved by as much.
            let check = next.ip_len() + 16;
            second[check..check + 2].fill(0);
            let sum =
                [&next.pseudo_sum((second.len() - next.ip_len()) as u32).to_be_bytes()[..], &second[next.ip_len()..]];
            let checksum = ones_complement(&sum.concat());
            second[check..check + 2].copy_from_slice(&checksum.to_be_bytes());
            stay_apart(what, &first, &second);
        }
        let mut bad = next.bytes();
        *bad.last_mut().unwrap() ^= 1;
        stay_apart("a wrong checksum", &first, &bad);
        stay_apart("bytes behind the packet", &first, &[next.bytes(), vec![0]].concat());

        let first_pushed = Packet { flags: ACK | PSH, ..first.clone() };
        stay_apart("after a push", &first_pushed, &next.bytes());
    }
    let first = Packet { dont_fragment: false, ..Packet::tcp(vec![5; 600]) };
    let next = Packet { sequence: 1600, id: 8, ..first.clone() };
    stay_apart("an ID that does not follow", &first, &Packet { id: 9, ..next.clone() }.bytes());
    stay_apart("DF", &first, &Packet { dont_fragment: true, ..next.clone() }.bytes());
    let mut bad = next.bytes();
    bad[10] ^= 1;
    stay_apart("a wrong header checksum", &first, &bad);
    let udp = Packet::udp(vec![5; 600]);
    let mut without = udp.bytes();
    without[26..28].fill(0);
    stay_apart("no UDP checksum", &udp, &without);
    assert_eq!(merge(&mut Coalescer::new(options(true, true, true)), &[without.clone(), without]).len(), 2);
}

#[test]
fn a_wrong_checksum_of_the_first_is_not_hidden() {
    let first = Packet::tcp(vec![5; 600]);
    let mut bad = first.bytes();
    bad[100] ^= 1;
    let rest: Vec<_> =
        (1..4).map(|n| Packet { sequence: 1000 + 600 * n, id: 7 + n as u16, ..first.clone() }.bytes()).collect();
    let sent = [vec![bad.clone()], rest].concat();
    let merged = merge(&mut Coalescer::new(options(true, true, true)), &sent);
    let counts: Vec<_> = merged.iter().map(|(.., segments)| *segments).collect();
    assert_eq!(counts, [1, 3]);
    assert_eq!(merged[0].1, bad);
}

#[test]
fn networks_do_not_merge() {
    let first = Packet::tcp(vec![5; 600]);
    let next = Packet { sequence: 1600, id: 8, ..first.clone() };
    let mut coalescer = Coalescer::new(options(true, true, true));
    give(&mut coalescer, 1, &first.bytes());
    give(&mut coalescer, 2, &next.bytes());
    let networks: Vec<_> = coalescer.packets().map(|packet| packet.vni).collect();
    assert_eq!(networks, [vni(1), vni(2)]);
}

#[test]
fn what_is_not_delivered_leaves_no_trace() {
    let whole = Packet::tcp((0..=255).cycle().take(3000).collect());
    let segments: Vec<_> = whole.segments(1000).iter().map(Packet::bytes).collect();
    let mut coalescer = Coalescer::new(options(true, true, true));
    for segment in &segments {
        // A forged packet, which was opened in vain, and overwrote what it could reach.
        coalescer.room(1500).unwrap().fill(0xee);
        give(&mut coalescer, 1, segment);
    }
    coalescer.room(1500).unwrap().fill(0xee);
    let (header, bytes) = whole.offloaded(1000);
    assert_eq!(taken(&mut coalescer), [(header, bytes, 3)]);
}

#[test]
fn a_packet_between_two_of_a_flow_keeps_its_place() {
    let whole = Packet::tcp(vec![9; 4000]);
    let mut sent: Vec<_> = whole.segments(1000).iter().map(Packet::bytes).collect();
    let short = Packet { payload: Vec::new(), port: 22, ..whole.clone() }.bytes();
    sent.insert(2, short.clone());
    let merged = merge(&mut Coalescer::new(options(true, true, true)), &sent);
    let counts: Vec<_> = merged.iter().map(|(.., segments)| *segments).collect();
    assert_eq!(counts, [2, 1, 2]);
    assert_eq!(merged[1].1, short);
}

#[test]
fn the_buffer_fills_up_and_goes_on_after_a_clear() {
    let packet = Packet { payload: Vec::new(), ..Packet::tcp(Vec::new()) }.bytes();
    let mut coalescer = Coalescer::new(CoalesceOptions { tcp: true, udp: true, vnet: true, bytes: 120 });
    for _ in 0..2 {
        give(&mut coalescer, 1, &packet);
        give(&mut coalescer, 1, &packet);
        assert!(coalescer.room(packet.len()).is_none());
        assert_eq!(taken(&mut coalescer).len(), 2);
        coalescer.clear();
        assert!(coalescer.is_empty());
    }
}

#[test]
fn nothing_grows_beyond_what_a_length_field_can_say() {
    let whole = Packet::tcp(vec![9; 65_000]);
    let next = Packet { sequence: 1000 + 65_000, id: 7 + 50, ..Packet::tcp(vec![9; 1300]) };
    let sent: Vec<_> = whole.segments(1300).iter().chain([&next]).map(Packet::bytes).collect();
    let merged = merge(&mut Coalescer::new(options(true, true, true)), &sent);
    let counts: Vec<_> = merged.iter().map(|(.., segments)| *segments).collect();
    assert_eq!(counts, [50, 1]);
}

#[test]
fn datagrams_merge_as_many_as_the_kernel_takes() {
    let packet = Packet::udp(vec![7; 150 * 4]);
    let segments: Vec<_> = packet.segments(4).iter().map(Packet::bytes).collect();
    let merged = merge(&mut Coalescer::new(options(true, true, true)), &segments);
    assert_eq!(merged.iter().map(|(_, _, segments)| *segments).collect::<Vec<_>>(), [64, 64, 22]);
}

#[test]
fn a_contradiction_is_malformed() {
    let whole = Packet::tcp(vec![1; 3000]);
    let (header, packet) = whole.offloaded(1000);
    let refused =
        |header: VnetHeader, packet: &[u8]| matches!(outgoing(&header, &mut packet.to_vec()), BatchPacket::Malformed);
    assert!(!refused(header, &packet));
    assert!(!refused(VnetHeader { gso_type: VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN, ..header }, &packet));
    assert!(refused(VnetHeader { gso_type: VnetHeader::GSO_TCPV6, ..header }, &packet));
    assert!(refused(VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, ..header }, &packet));
    assert!(refused(VnetHeader { gso_type: 3, ..header }, &packet), "fragmentation offload was never asked for");
    assert!(refused(VnetHeader { gso_size: 0, ..header }, &packet));
    assert!(refused(VnetHeader { flags: 0, ..header }, &packet));
    assert!(refused(VnetHeader { csum_start: 24, ..header }, &packet));
    assert!(refused(VnetHeader { csum_offset: 6, ..header }, &packet));
    assert!(refused(header, &packet[..39]));
    let mut fragment = packet.clone();
    fragment[6] |= 0x20;
    assert!(refused(header, &fragment));
    let whole = VnetHeader { gso_type: VnetHeader::GSO_NONE, ..header };
    assert!(refused(VnetHeader { csum_start: 2999, csum_offset: 100, ..whole }, &packet));
    assert!(refused(VnetHeader { csum_start: u16::MAX, ..whole }, &packet));
    assert!(refused(VnetHeader { csum_start: 0, csum_offset: 0, ..whole }, &packet), "in the IP header");
    assert!(refused(whole, &[0x50; 60]), "no IP packet");
}

#[test]
fn the_header_is_that_of_virtio() {
    let header = VnetHeader { flags: 1, gso_type: 5, hdr_len: 48, gso_size: 1300, csum_start: 40, csum_offset: 6 };
    let words = [48_u16, 1300, 40, 6].map(u16::to_ne_bytes).concat();
    assert_eq!(header.emit().to_vec(), [&[1, 5][..], &words].concat());
    assert_eq!(VnetHeader::parse(&header.emit()), header);
}
