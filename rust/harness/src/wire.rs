//! Parsers of packets: each against a plain reading of the same bytes, and against its own emitter.

use std::net::IpAddr;

use icx_proto::wire::checksum::{Sum, checksum};
use icx_proto::wire::flow_hash::{flow_hash, source_port};
use icx_proto::wire::geneve::{self, Header, MAX_OPTIONS, OPTION_CLASS, OPTION_KEY_EPOCH, OPTION_TX_COUNTER};
use icx_proto::wire::inner::{Inner, InnerError};
use icx_proto::wire::ipv6::{self, ICMPV6};
use icx_proto::wire::mss::Syn;
use icx_proto::wire::neighbor::{self as nd, Neighbor};
use icx_proto::wire::outer::{self as outer_frame, Endpoint};
use icx_proto::wire::{ethernet, icmp};
use icx_proto::{IpPrefix, MacAddr};

const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A tunnel header as protocol section 1.1 describes it, read step by step.
struct Tunnel {
    protocol: u16,
    vni: u32,
    epoch: u32,
    nonce: Option<Vec<u8>>,
    len: usize,
}

fn read_tunnel(bytes: &[u8]) -> Option<Tunnel> {
    if bytes.len() < 8 || bytes[0] >= 0x40 {
        return None;
    }
    let len = 8 + usize::from(bytes[0]) * 4;
    let mut at = 8;
    let mut options: Vec<(u8, &[u8])> = Vec::new();
    let mut count = 0;
    if bytes.len() < len {
        return None;
    }
    while at < len {
        if len - at < 4 {
            return None;
        }
        let (class, kind, value_len) = (be16(bytes, at), bytes[at + 2], usize::from(bytes[at + 3] % 32) * 4);
        if at + 4 + value_len > len {
            return None;
        }
        let ours = class == OPTION_CLASS && (kind == OPTION_KEY_EPOCH || kind == OPTION_TX_COUNTER);
        if ours {
            options.push((kind, &bytes[at + 4..at + 4 + value_len]));
        } else if kind >= 0x80 {
            return None;
        }
        count += 1;
        at += 4 + value_len;
    }
    if count > MAX_OPTIONS {
        return None;
    }
    let first = |wanted| options.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
    Some(Tunnel {
        protocol: be16(bytes, 2),
        vni: be32(bytes, 4) >> 8,
        epoch: first(OPTION_KEY_EPOCH).filter(|value| !value.is_empty()).map_or(0, |value| be32(value, 0)),
        nonce: first(OPTION_TX_COUNTER).filter(|value| value.len() == 12).map(<[u8]>::to_vec),
        len,
    })
}

/// The header of a datagram, as a receiver needs it.
pub fn geneve(datagram: &[u8]) {
    match (geneve::parse(datagram), read_tunnel(datagram)) {
        (Ok(parsed), Some(expected)) => {
            assert_eq!(parsed.protocol, expected.protocol);
            assert_eq!(parsed.vni.get(), expected.vni);
            assert_eq!(parsed.key_epoch, expected.epoch);
            assert_eq!(parsed.nonce.map(|nonce| nonce.to_vec()), expected.nonce);
            assert_eq!(parsed.payload_offset, expected.len);
            // What follows the header never matters to it.
            assert_eq!(geneve::parse(&datagram[..expected.len]), Ok(parsed));
        }
        (Err(_), None) => {}
        (parsed, expected) => panic!("{parsed:?}, but a plain reading: {}", expected.is_some()),
    }
}

/// The header in general, there and back.
pub fn geneve_header(datagram: &[u8]) {
    let parsed = Header::parse(datagram);
    assert_eq!(parsed.is_ok(), geneve::parse(datagram).is_ok());
    let Ok((header, len)) = parsed else { return };
    // The same bytes but for the bits that are ignored.
    let mut expected = datagram[..len].to_vec();
    expected[1] &= 0xc0;
    expected[7] = 0;
    let mut at = 8;
    while at < len {
        expected[at + 3] &= 0x1f;
        at += 4 + usize::from(expected[at + 3]) * 4;
    }
    let mut out = vec![0xee; len];
    assert_eq!(header.emit(&mut out), Ok(len));
    assert_eq!(out, expected);
    assert_eq!(Header::parse(&out), Ok((header, len)));
    let mut short = vec![0xee; len - 1];
    assert!(header.emit(&mut short).is_err());
    assert!(short.iter().all(|byte| *byte == 0xee));
}

/// An outer frame: as it is, and with the checksum that fuzzing seldom gets right.
pub fn outer(frame: &[u8]) {
    check_outer(frame);
    let mut mended = frame.to_vec();
    if let Some(ihl) = mended.get(14).map(|first| usize::from(first & 0x0f) * 4)
        && ihl >= 20
        && mended.len() >= 14 + ihl
        && be16(&mended, 12) == ethernet::ETHERTYPE_IPV4
    {
        mended[24..26].fill(0);
        let sum = checksum(&mended[14..14 + ihl]);
        mended[24..26].copy_from_slice(&sum.to_be_bytes());
        check_outer(&mended);
    }
}

fn check_outer(frame: &[u8]) {
    let Ok(parsed) = outer_frame::parse(frame) else { return };
    let payload = &frame[parsed.payload.clone()];
    let ipv6 = parsed.src.is_ipv6();
    assert_eq!(parsed.dst.is_ipv6(), ipv6);
    let mut again = vec![0; outer_frame::header_len(ipv6)];
    again.extend_from_slice(payload);
    let src = Endpoint { addr: parsed.src, mac: parsed.src_mac };
    let dst = Endpoint { addr: parsed.dst, mac: MacAddr([frame[0], frame[1], frame[2], frame[3], frame[4], frame[5]]) };
    for udp_checksum in [false, true] {
        outer_frame::emit(&mut again, &src, &dst, parsed.traffic_class, udp_checksum, true)
            .expect("it came from a frame");
        let reparsed = outer_frame::parse(&again).expect("we wrote it");
        assert_eq!((reparsed.src, reparsed.src_mac, reparsed.dst), (parsed.src, parsed.src_mac, parsed.dst));
        assert_eq!((&again[reparsed.payload], reparsed.traffic_class), (payload, parsed.traffic_class));
        let datagram = &again[again.len() - payload.len() - 8..];
        if udp_checksum || ipv6 {
            assert_ne!(be16(datagram, 6), 0, "zero would mean no checksum");
            assert_eq!(upper_sum(parsed.src.ip(), parsed.dst.ip(), 17, datagram), 0);
        } else {
            assert_eq!(be16(datagram, 6), 0);
        }
    }
    let padded = [frame, &[0xee; 9]].concat();
    assert_eq!(outer_frame::parse(&padded).as_ref(), Ok(&parsed), "padding changes nothing");
    assert!(outer_frame::parse(&frame[..parsed.payload.end - 1]).is_err(), "a cut frame is refused");
}

fn upper_sum(src: IpAddr, dst: IpAddr, protocol: u8, message: &[u8]) -> u16 {
    Sum::new().add_pseudo_header(src, dst, protocol, message.len() as u32).add_bytes(message).finish()
}

fn ipv6_at(bytes: &[u8], at: usize) -> IpAddr {
    IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("16 bytes"))
}

/// A frame from the virtual side: as it is, and with a right ICMPv6 checksum.
pub fn neighbor(frame: &[u8]) {
    check_neighbor(frame);
    let mut mended = frame.to_vec();
    if mended.len() >= 58 && mended[20] == ICMPV6 {
        let end = mended.len().min(54 + usize::from(be16(&mended, 18)));
        if end >= 58 {
            mended[56..58].fill(0);
            let sum = upper_sum(ipv6_at(&mended, 22), ipv6_at(&mended, 38), ICMPV6, &mended[54..end]);
            mended[56..58].copy_from_slice(&sum.to_be_bytes());
            check_neighbor(&mended);
        }
    }
}

fn check_neighbor(frame: &[u8]) {
    let mut out = [0xee; nd::MAX_REPLY_LEN];
    let verdict = nd::handle(frame, GATEWAY, &mut out);
    match verdict {
        Neighbor::NotForUs => {
            let version = frame[14] >> 4;
            assert!(matches!((be16(frame, 12), version), (0x0800, 4) | (0x86dd, 6)));
            let solicits = version == 6 && frame.len() > 54 && frame[20] == ICMPV6 && frame[54] == 135;
            assert!(!solicits, "a solicitation is never tunnelled");
        }
        Neighbor::Reply(len) => {
            let reply = &out[..len];
            assert!(out[len..].iter().all(|byte| *byte == 0xee));
            assert_eq!(reply[6..12], GATEWAY.0);
            assert_eq!(reply[12..14], frame[12..14]);
            match len {
                nd::ARP_REPLY_LEN => {
                    assert_eq!(be16(reply, 20), 2);
                    assert_eq!(reply[..6], frame[22..28], "to the sender of the request");
                    assert_eq!((&reply[28..32], &reply[38..42]), (&frame[38..42], &frame[28..32]));
                }
                nd::ADVERTISEMENT_LEN => {
                    assert_eq!(reply[..6], frame[6..12], "to the sender of the solicitation");
                    assert_eq!((reply[20], reply[21], reply[54]), (ICMPV6, 255, 136));
                    assert_eq!(upper_sum(ipv6_at(reply, 22), ipv6_at(reply, 38), ICMPV6, &reply[54..]), 0);
                    assert_eq!((ipv6_at(reply, 38), ipv6_at(reply, 62)), (ipv6_at(frame, 22), ipv6_at(frame, 62)));
                }
                other => panic!("a reply of {other} bytes"),
            }
            // Without room for it nothing is written.
            let mut short = [0xee; nd::MAX_REPLY_LEN];
            assert!(matches!(nd::handle(frame, GATEWAY, &mut short[..len - 1]), Neighbor::Drop(_)));
            assert_eq!(short, [0xee; nd::MAX_REPLY_LEN]);
        }
        Neighbor::Drop(_) => assert_eq!(out, [0xee; nd::MAX_REPLY_LEN]),
    }
}

/// An inner packet: its addresses, its flow hash, its extension headers.
pub fn inner(packet: &[u8]) {
    let parsed = Inner::parse(packet);
    match (packet.first().map(|first| first >> 4), packet.len()) {
        (Some(4), 20..) => {
            let (src, dst) = (be32(packet, 12), be32(packet, 16));
            assert_eq!(parsed, Ok(Inner::V4 { src, dst }));
            assert_symmetric(packet, 12, 4, usize::from(packet[0] & 0x0f) * 4);
        }
        (Some(6), 40..) => {
            let inner = parsed.expect("a whole fixed header");
            assert_eq!((inner.src(), inner.dst()), (ipv6_at(packet, 8), ipv6_at(packet, 24)));
            assert_eq!(Inner::from_addrs(inner.src(), inner.dst()), Some(inner));
            assert_symmetric(packet, 8, 16, 40);
            let upper = ipv6::walk(packet[6], &packet[40..]);
            assert!(packet.ends_with(upper.payload), "the payload is the end of the packet");
            assert!(!upper.later_fragment || upper.fragment_of.is_some());
        }
        (Some(4 | 6) | None, _) => assert_eq!(parsed, Err(InnerError::Truncated)),
        (Some(version), _) => assert_eq!(parsed, Err(InnerError::Version(version))),
    }
    for key in [0, 0x1234_5678_9abc_def0] {
        assert!(source_port(flow_hash(key, packet)) >= 49152);
    }
}

/// Both directions of a flow hash alike, where the ports lie right behind the fixed header or are no ports at all.
fn assert_symmetric(packet: &[u8], at: usize, len: usize, payload: usize) {
    let mut back = packet.to_vec();
    back[at..at + 2 * len].rotate_left(len);
    let next = if len == 4 { packet[9] } else { packet[6] };
    match next {
        ipv6::TCP | ipv6::UDP if payload >= at + 2 * len && packet.len() >= payload + 4 => {
            back[payload..payload + 4].rotate_left(2);
        }
        ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::FRAGMENT | ipv6::AUTHENTICATION | ipv6::DESTINATION_OPTIONS
            if len == 16 =>
        {
            return;
        }
        _ => {}
    }
    // Options between the addresses and the ports are no part of the hash; ports that overlap the addresses are none.
    if payload >= at + 2 * len {
        assert_eq!(flow_hash(7, &back), flow_hash(7, packet));
    }
}

/// The segment size that a SYN announces: two bytes of MTU, then a packet.
pub fn mss_clamp(input: &[u8]) {
    let Some((mtu, packet)) = input.split_first_chunk() else { return };
    let mtu = u32::from(u16::from_be_bytes(*mtu));
    let Some(syn) = Syn::parse(packet) else { return };
    let at_tcp = match Inner::parse(packet) {
        Ok(Inner::V4 { .. }) => usize::from(packet[0] & 0x0f) * 4,
        _ => packet.len() - ipv6::walk(packet[6], &packet[40..]).payload.len(),
    };
    assert!(packet[at_tcp + 13] & 2 != 0, "it opens a connection");
    let mut clamped = packet.to_vec();
    let lowered = syn.clamp(&mut clamped, mtu);
    assert_eq!(lowered, clamped != packet);
    // Only options of the TCP header and its checksum change, and the sum over both stays what it was.
    let (checksum_at, options) = (at_tcp + 16, at_tcp + 20..at_tcp + usize::from(packet[at_tcp + 12] >> 4) * 4);
    for at in (0..packet.len()).filter(|at| !options.contains(at) && !(checksum_at..checksum_at + 2).contains(at)) {
        assert_eq!(clamped[at], packet[at]);
    }
    let sum = |packet: &[u8]| Sum::new().add_bytes(&packet[at_tcp..]).finish() % 0xffff;
    assert_eq!(sum(&clamped), sum(packet));
    let mut again = clamped.clone();
    assert!(!syn.clamp(&mut again, mtu) && again == clamped);
}

/// The "too big" message about a packet. The first two bytes are the MTU.
pub fn icmp_too_big(input: &[u8]) {
    let Some((mtu, packet)) = input.split_first_chunk() else { return };
    let mtu = u32::from(u16::from_be_bytes(*mtu));
    let sources = [
        None,
        Some(IpAddr::from([192, 0, 2, 1])),
        Some(IpAddr::from([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])),
    ];
    for source in sources {
        let mut out = [0xee; icmp::MAX_LEN + 1];
        let Some(len) = icmp::too_big(packet, mtu, source, &mut out) else {
            assert_eq!(out, [0xee; icmp::MAX_LEN + 1]);
            continue;
        };
        let message = &out[..len];
        assert!(out[len..].iter().all(|byte| *byte == 0xee));
        let asked = Inner::parse(packet).expect("only packets are answered");
        let answer = Inner::parse(message).expect("an answer is a packet");
        assert_eq!(answer.protocol_type(), asked.protocol_type());
        assert_eq!(answer.dst(), asked.src());
        assert_eq!(answer.src(), source.filter(|ip| ip.is_ipv4() == asked.src().is_ipv4()).unwrap_or(asked.dst()));
        let quote = match asked {
            Inner::V4 { .. } => {
                assert!(len <= 576 && usize::from(be16(message, 2)) == len);
                assert_eq!((checksum(&message[..20]), checksum(&message[20..])), (0, 0));
                assert_eq!((message[20], message[21], u32::from(be16(message, 26))), (3, 4, mtu));
                &message[28..]
            }
            Inner::V6 { .. } => {
                assert!(len <= 1280 && usize::from(be16(message, 4)) + 40 == len);
                assert_eq!(upper_sum(answer.src(), answer.dst(), ICMPV6, &message[40..]), 0);
                assert_eq!((message[40], message[41], be32(message, 44)), (2, 0, mtu));
                &message[48..]
            }
        };
        assert!(packet.starts_with(quote));
        // An answer is an error message: it gets no answer itself.
        assert_eq!(icmp::too_big(message, mtu, source, &mut [0; icmp::MAX_LEN]), None);
        let mut short = vec![0xee; len - 1];
        assert_eq!(icmp::too_big(packet, mtu, source, &mut short), None);
        assert!(short.iter().all(|byte| *byte == 0xee));
    }
}

/// The text of a prefix.
pub fn ip_prefix(text: &[u8]) {
    let Ok(text) = core::str::from_utf8(text) else { return };
    match text.parse::<IpPrefix>() {
        Ok(prefix) => {
            assert!(prefix.contains(prefix.addr()));
            assert_eq!(prefix.to_string().parse(), Ok(prefix));
            let addr = text.split('/').next().unwrap_or_default();
            assert_eq!(addr.parse(), Ok(prefix.addr()));
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            if let icx_proto::routes::PrefixError::HostBits { corrected, .. } = error {
                assert_eq!(corrected.to_string().parse(), Ok(corrected));
            }
        }
    }
}
