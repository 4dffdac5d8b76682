//! Address resolution on the virtual side of an L2 tunnel: every address is at the gateway.
//!
//! ARP (RFC 826) and neighbour solicitations (RFC 4861 section 7.1.1) are answered here and never tunnelled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::counters::TxDrop;
use crate::id::MacAddr;
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::wire::inner::IPV6_HEADER_LEN;
use crate::wire::ipv6::{self, ICMPV6};

/// Ethernet and an ARP packet for Ethernet and IPv4.
pub const ARP_REPLY_LEN: usize = ethernet::HEADER_LEN + ARP_LEN;
/// Ethernet, IPv6, and a neighbour advertisement with one option.
pub const ADVERTISEMENT_LEN: usize = ethernet::HEADER_LEN + IPV6_HEADER_LEN + SOLICITATION_LEN + LINK_LAYER_OPTION_LEN;
/// Room for either reply.
pub const MAX_REPLY_LEN: usize = ADVERTISEMENT_LEN;

const ARP_LEN: usize = 28;
/// Hardware type Ethernet, protocol type IPv4, their address lengths.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// Type, code, checksum, reserved or flags, target. The same in an advertisement.
const SOLICITATION_LEN: usize = 24;
const OPTION_TARGET_LINK_LAYER: u8 = 2;
const LINK_LAYER_OPTION_LEN: usize = 8;
/// RFC 4861 section 4.4: router 0, solicited 1, override 1.
const ADVERTISEMENT_FLAGS: u32 = 0x6000_0000;
/// RFC 4861 section 7.1.1: proof that no router forwarded the message.
const NEIGHBOR_HOP_LIMIT: u8 = 255;

/// What to do with a frame from the virtual side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbor {
    /// An IP packet behind an Ethernet header, to be tunnelled.
    NotForUs,
    /// The reply is in `out[..len]`.
    Reply(usize),
    Drop(TxDrop),
}

/// Sorts a frame from the virtual side, and answers what asks for a neighbour into `out`, which has
/// [`MAX_REPLY_LEN`] bytes; with less room the request is dropped as [`TxDrop::TooBig`].
///
/// ARP that asks nothing, probes and announcements among it, goes as [`TxDrop::NotIp`]; a solicitation without an
/// answer as [`TxDrop::Malformed`].
#[inline]
pub fn handle(frame: &[u8], gateway_mac: MacAddr, out: &mut [u8]) -> Neighbor {
    let Some((header, payload)) = ethernet::Header::parse(frame) else {
        return Neighbor::Drop(TxDrop::Malformed);
    };
    let version = payload.first().map(|first| first >> 4);
    match (header.ethertype, version) {
        (ETHERTYPE_IPV4, Some(4)) => Neighbor::NotForUs,
        (ETHERTYPE_IPV6, Some(6)) => match find_solicitation(payload) {
            None => Neighbor::NotForUs,
            Some(message) => reply_to_solicitation(&header, payload, message, gateway_mac, out),
        },
        (ETHERTYPE_IPV4 | ETHERTYPE_IPV6, _) => Neighbor::Drop(TxDrop::Malformed),
        (ETHERTYPE_ARP, _) => reply_to_arp(payload, gateway_mac, out),
        _ => Neighbor::Drop(TxDrop::NotIp),
    }
}

fn reply_to_arp(packet: &[u8], gateway_mac: MacAddr, out: &mut [u8]) -> Neighbor {
    let Some(packet) = packet.first_chunk::<ARP_LEN>() else {
        return Neighbor::Drop(TxDrop::Malformed);
    };
    let (kind, rest) = packet.split_at(ARP_ETHERNET_IPV4.len());
    let (operation, rest) = rest.split_at(2);
    let (sender_mac, rest) = rest.split_at(6);
    let (sender, rest) = rest.split_at(4);
    let target = &rest[6..];
    let asks = kind == ARP_ETHERNET_IPV4 && operation == ARP_REQUEST.to_be_bytes();
    // RFC 5227 section 1.1: a probe comes from 0.0.0.0, an announcement asks for its own sender. Whoever answered
    // would tell the host that its address is taken.
    if !asks || sender == Ipv4Addr::UNSPECIFIED.octets() || sender == target {
        return Neighbor::Drop(TxDrop::NotIp);
    }
    let Some(out) = out.first_chunk_mut::<ARP_REPLY_LEN>() else {
        return Neighbor::Drop(TxDrop::TooBig);
    };
    let gateway = &gateway_mac.0;
    let parts: [&[u8]; 9] = [
        sender_mac,
        gateway,
        &ETHERTYPE_ARP.to_be_bytes(),
        &ARP_ETHERNET_IPV4,
        &ARP_REPLY.to_be_bytes(),
        gateway,
        target,
        sender_mac,
        sender,
    ];
    let mut at = 0;
    for part in parts {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    Neighbor::Reply(ARP_REPLY_LEN)
}

/// A neighbour solicitation behind any extension headers.
struct Solicitation<'a> {
    /// From the ICMPv6 type to the end of the frame.
    message: &'a [u8],
    /// Nothing but the fixed header lies in front.
    direct: bool,
}

/// Looks in all of the frame, so that lengths that lie do not hide a solicitation.
#[inline]
fn find_solicitation(packet: &[u8]) -> Option<Solicitation<'_>> {
    let (header, payload) = packet.split_first_chunk::<IPV6_HEADER_LEN>()?;
    let first = header[6];
    if matches!(first, ipv6::TCP | ipv6::UDP) {
        return None;
    }
    let upper = ipv6::walk(first, payload);
    let is_solicitation =
        upper.protocol == ICMPV6 && !upper.later_fragment && upper.payload.first() == Some(&NEIGHBOR_SOLICITATION);
    is_solicitation.then_some(Solicitation { message: upper.payload, direct: first == ICMPV6 })
}

fn reply_to_solicitation(
    ethernet: &ethernet::Header,
    packet: &[u8],
    solicitation: Solicitation<'_>,
    gateway_mac: MacAddr,
    out: &mut [u8],
) -> Neighbor {
    let Some((source, target)) = check_solicitation(packet, &solicitation) else {
        return Neighbor::Drop(TxDrop::Malformed);
    };
    let Some(out) = out.first_chunk_mut::<ADVERTISEMENT_LEN>() else {
        return Neighbor::Drop(TxDrop::TooBig);
    };
    let Some((header, packet)) = out.split_first_chunk_mut() else {
        return Neighbor::Drop(TxDrop::TooBig);
    };
    ethernet::Header { destination: ethernet.source, source: gateway_mac, ethertype: ETHERTYPE_IPV6 }.emit(header);
    let (ip, message) = packet.split_at_mut(IPV6_HEADER_LEN);
    let message_len = (SOLICITATION_LEN + LINK_LAYER_OPTION_LEN) as u16;
    ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    ip[4..6].copy_from_slice(&message_len.to_be_bytes());
    ip[6] = ICMPV6;
    ip[7] = NEIGHBOR_HOP_LIMIT;
    ip[8..24].copy_from_slice(&target.octets());
    ip[24..40].copy_from_slice(&source.octets());
    message[..4].copy_from_slice(&[NEIGHBOR_ADVERTISEMENT, 0, 0, 0]);
    message[4..8].copy_from_slice(&ADVERTISEMENT_FLAGS.to_be_bytes());
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[OPTION_TARGET_LINK_LAYER, (LINK_LAYER_OPTION_LEN / 8) as u8]);
    message[26..].copy_from_slice(&gateway_mac.0);
    let sum = Sum::new()
        .add_pseudo_header(IpAddr::V6(target), IpAddr::V6(source), ICMPV6, u32::from(message_len))
        .add_bytes(message)
        .finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Neighbor::Reply(ADVERTISEMENT_LEN)
}

/// Source and target of a solicitation that deserves an answer: RFC 4861 section 7.1.1, and neither for duplicate
/// address detection nor for a multicast target.
fn check_solicitation(packet: &[u8], solicitation: &Solicitation<'_>) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let header = packet.first_chunk::<IPV6_HEADER_LEN>()?;
    // RFC 6980: no fragment header; and what else lies in front is not for us to judge.
    if !solicitation.direct || header[7] != NEIGHBOR_HOP_LIMIT {
        return None;
    }
    let len = u16::from_be_bytes([header[4], header[5]]);
    let message = solicitation.message.get(..usize::from(len))?;
    let (fixed, options) = message.split_first_chunk::<SOLICITATION_LEN>()?;
    let source = Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24]).ok()?);
    let destination = Ipv6Addr::from(<[u8; 16]>::try_from(&header[24..40]).ok()?);
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[8..24]).ok()?);
    let sum = Sum::new()
        .add_pseudo_header(IpAddr::V6(source), IpAddr::V6(destination), ICMPV6, u32::from(len))
        .add_bytes(message)
        .finish();
    let valid = fixed[1] == 0
        && sum == 0
        && options_are_whole(options)
        && !target.is_multicast()
        && !source.is_unspecified()
        && !source.is_multicast();
    valid.then_some((source, target))
}

/// RFC 4861 section 4.6: options have a length in units of 8 bytes, never zero.
fn options_are_whole(mut options: &[u8]) -> bool {
    while let [_, units, ..] = options {
        match options.get(usize::from(*units) * 8..) {
            Some(rest) if *units != 0 => options = rest,
            _ => return false,
        }
    }
    options.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0xaa, 2]);
    const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0xaa, 1]);
    const HOST_IP: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x10);
    const TARGET: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x20);

    fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend_from_slice(&HOST.0);
        frame.extend_from_slice(&ethertype.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    fn arp(operation: u16, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let packet: [&[u8]; 6] = [&ARP_ETHERNET_IPV4, &operation.to_be_bytes(), &HOST.0, &sender, &[0; 6], &target];
        ethernet(ETHERTYPE_ARP, &packet.concat())
    }

    /// A solicitation for `target` from `source` with a right checksum, and `options`.
    fn solicitation(source: Ipv6Addr, target: Ipv6Addr, code: u8, options: &[u8]) -> Vec<u8> {
        let mut message = vec![NEIGHBOR_SOLICITATION, code, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&target.octets());
        message.extend_from_slice(options);
        icmpv6(source, &message)
    }

    /// An ICMPv6 message to the target with hop limit 255 and a right checksum.
    fn icmpv6(source: Ipv6Addr, message: &[u8]) -> Vec<u8> {
        let mut message = message.to_vec();
        let sum = Sum::new()
            .add_pseudo_header(IpAddr::V6(source), IpAddr::V6(TARGET), ICMPV6, message.len() as u32)
            .add_bytes(&message)
            .finish();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255];
        packet.extend_from_slice(&source.octets());
        packet.extend_from_slice(&TARGET.octets());
        packet.extend_from_slice(&message);
        ethernet(ETHERTYPE_IPV6, &packet)
    }

    fn verdict(frame: &[u8]) -> Neighbor {
        handle(frame, GATEWAY, &mut [0; MAX_REPLY_LEN])
    }

    const MALFORMED: Neighbor = Neighbor::Drop(TxDrop::Malformed);
    const NOT_IP: Neighbor = Neighbor::Drop(TxDrop::NotIp);

    #[test]
    fn requests_are_answered_and_nothing_else_of_arp() {
        assert_eq!(verdict(&arp(ARP_REQUEST, [10, 0, 0, 1], [10, 0, 0, 2])), Neighbor::Reply(ARP_REPLY_LEN));
        assert_eq!(verdict(&arp(ARP_REPLY, [10, 0, 0, 1], [10, 0, 0, 2])), NOT_IP);
        assert_eq!(verdict(&arp(ARP_REQUEST, [0; 4], [10, 0, 0, 1])), NOT_IP, "probe");
        assert_eq!(verdict(&arp(ARP_REQUEST, [10, 0, 0, 1], [10, 0, 0, 1])), NOT_IP, "announcement");
        let request = arp(ARP_REQUEST, [10, 0, 0, 1], [10, 0, 0, 2]);
        assert_eq!(verdict(&request[..41]), MALFORMED);
    }

    #[test]
    fn an_advertisement_has_a_right_checksum() {
        let mut out = [0xee; MAX_REPLY_LEN];
        let request = solicitation(HOST_IP, TARGET, 0, &[]);
        assert_eq!(handle(&request, GATEWAY, &mut out), Neighbor::Reply(ADVERTISEMENT_LEN));
        let sum = Sum::new()
            .add_pseudo_header(IpAddr::V6(TARGET), IpAddr::V6(HOST_IP), ICMPV6, 32)
            .add_bytes(&out[54..])
            .finish();
        assert_eq!(sum, 0);
        assert_eq!(out[21], 255);
        assert_eq!(out[58..62], [0x60, 0, 0, 0]);
    }

    #[test]
    fn a_solicitation_that_is_not_answered_is_not_tunnelled_either() {
        assert_eq!(verdict(&solicitation(HOST_IP, TARGET, 0, &[1, 1, 0, 0, 0, 0, 0, 0])), Neighbor::Reply(86));
        for (what, frame) in [
            ("code", solicitation(HOST_IP, TARGET, 1, &[])),
            ("duplicate address detection", solicitation(Ipv6Addr::UNSPECIFIED, TARGET, 0, &[])),
            ("multicast source", solicitation("ff02::1".parse().unwrap(), TARGET, 0, &[])),
            ("multicast target", solicitation(HOST_IP, "ff02::1".parse().unwrap(), 0, &[])),
            ("empty option", solicitation(HOST_IP, TARGET, 0, &[1, 0, 0, 0, 0, 0, 0, 0])),
            ("option past the end", solicitation(HOST_IP, TARGET, 0, &[1, 2, 0, 0, 0, 0, 0, 0])),
            ("half an option", solicitation(HOST_IP, TARGET, 0, &[1])),
            ("no target", icmpv6(HOST_IP, &[NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0])),
        ] {
            assert_eq!(verdict(&frame), MALFORMED, "{what}");
        }
        let good = solicitation(HOST_IP, TARGET, 0, &[]);
        for (what, at) in [("hop limit", 21), ("checksum", 57), ("source", 37)] {
            let mut frame = good.clone();
            frame[at] ^= 1;
            assert_eq!(verdict(&frame), MALFORMED, "{what}");
        }
        assert!((55..good.len()).all(|len| verdict(&good[..len]) == MALFORMED));
    }

    #[test]
    fn headers_in_front_do_not_smuggle_a_solicitation_out() {
        let message = solicitation(HOST_IP, TARGET, 0, &[]).split_off(54);
        for (kind, header) in [
            (ipv6::HOP_BY_HOP, [ICMPV6, 0, 1, 4, 0, 0, 0, 0]),
            (ipv6::DESTINATION_OPTIONS, [ICMPV6, 0, 1, 4, 0, 0, 0, 0]),
            (ipv6::FRAGMENT, [ICMPV6, 0, 0, 0, 0, 0, 0, 9]),
            (ipv6::FRAGMENT, [ICMPV6, 0, 0, 1, 0, 0, 0, 9]),
        ] {
            let mut frame = solicitation(HOST_IP, TARGET, 0, &[]);
            frame.truncate(54);
            frame[20] = kind;
            frame[19] += 8;
            frame.extend_from_slice(&header);
            frame.extend_from_slice(&message);
            assert_eq!(verdict(&frame), MALFORMED, "behind header {kind}");
        }
        // A payload length that says "nothing here" hides nothing.
        let mut frame = solicitation(HOST_IP, TARGET, 0, &[]);
        frame[18..20].fill(0);
        assert_eq!(verdict(&frame), MALFORMED);
    }

    #[test]
    fn ip_packets_go_through_and_other_frames_do_not() {
        assert_eq!(verdict(&ethernet(ETHERTYPE_IPV4, &[0x45; 20])), Neighbor::NotForUs);
        assert_eq!(verdict(&icmpv6(HOST_IP, &[128, 0, 0, 0])), Neighbor::NotForUs);
        assert_eq!(verdict(&ethernet(ETHERTYPE_IPV4, &[0x60; 40])), MALFORMED);
        assert_eq!(verdict(&ethernet(ETHERTYPE_IPV6, &[0x45; 40])), MALFORMED);
        assert_eq!(verdict(&ethernet(ETHERTYPE_IPV4, &[])), MALFORMED);
        assert_eq!(verdict(&ethernet(0x8100, &[0x45; 40])), NOT_IP);
        assert!((0..14).all(|len| verdict(&[0x45; 14][..len]) == MALFORMED));
    }

    #[test]
    fn without_room_nothing_is_written() {
        for request in [arp(ARP_REQUEST, [10, 0, 0, 1], [10, 0, 0, 2]), solicitation(HOST_IP, TARGET, 0, &[])] {
            let mut out = [0xee; ARP_REPLY_LEN - 1];
            assert_eq!(handle(&request, GATEWAY, &mut out), Neighbor::Drop(TxDrop::TooBig));
            assert_eq!(out, [0xee; ARP_REPLY_LEN - 1]);
        }
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_gets_a_solicitation_tunnelled(bit in 22 * 8..78 * 8usize) {
            let mut frame = solicitation(HOST_IP, TARGET, 0, &[]);
            frame[bit / 8] ^= 1 << (bit % 8);
            // All that the checksum covers; with another type it is another message.
            let expected = if bit / 8 == 54 { Neighbor::NotForUs } else { MALFORMED };
            prop_assert_eq!(verdict(&frame), expected);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(
            kind in prop_oneof![Just(ETHERTYPE_ARP), Just(ETHERTYPE_IPV4), Just(ETHERTYPE_IPV6)],
            payload in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            let _ = verdict(&ethernet(kind, &payload));
            let _ = verdict(&payload);
        }
    }
}
