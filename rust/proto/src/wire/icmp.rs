//! "Too big" messages towards the sender of an inner packet, so that path MTU discovery works through the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::checksum::{Sum, checksum};
use crate::wire::inner::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, Inner};
use crate::wire::ipv6::{self, ICMPV6};

/// RFC 1812 section 4.3.2.3: an ICMPv4 error has at most 576 bytes.
const MAX_V4_LEN: usize = 576;
/// RFC 4443 section 3.2: an ICMPv6 error has at most the minimum IPv6 MTU.
const MAX_V6_LEN: usize = 1280;
/// Room for any message.
pub const MAX_LEN: usize = MAX_V6_LEN;

const ICMP_HEADER_LEN: usize = 8;
const ICMPV4: u8 = 1;
const DESTINATION_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;
const REDIRECT: u8 = 137;
const HOP_LIMIT: u8 = 64;
const IPV4_DONT_FRAGMENT: u16 = 0x4000;
const IPV4_OFFSET_MASK: u16 = 0x1fff;

/// Writes the ICMP message that tells the sender of `packet`, an inner IP packet, to keep to `mtu` bytes, and returns
/// its length. `None` when no such message may be sent, or `out` (best [`MAX_LEN`] bytes) has no room for it.
///
/// It comes from `source`, when that is of the packet's family, else from the packet's own destination: a tunnel
/// device need not have an address, and every host has a route to whom it was talking to.
///
/// For IPv4 it is "fragmentation needed" (RFC 1191 section 4), and only where the packet has DF set; for IPv6 "packet too
/// big" (RFC 4443 section 3.2). Callers limit how many they send (RFC 4443 section 2.4 f).
pub fn too_big(packet: &[u8], mtu: u32, source: Option<IpAddr>, out: &mut [u8]) -> Option<usize> {
    match (Inner::parse(packet).ok()?, source) {
        (Inner::V4 { src, dst }, source) => {
            let source = if let Some(IpAddr::V4(source)) = source { source } else { Ipv4Addr::from_bits(dst) };
            too_big_v4(packet, Ipv4Addr::from_bits(src), Ipv4Addr::from_bits(dst), source, mtu, out)
        }
        (Inner::V6 { src, dst }, source) => {
            let source = if let Some(IpAddr::V6(source)) = source { source } else { Ipv6Addr::from_bits(dst) };
            too_big_v6(packet, Ipv6Addr::from_bits(src), Ipv6Addr::from_bits(dst), source, mtu, out)
        }
    }
}

fn too_big_v4(
    packet: &[u8],
    src: Ipv4Addr,
    dst: Ipv4Addr,
    source: Ipv4Addr,
    mtu: u32,
    out: &mut [u8],
) -> Option<usize> {
    let header = packet.first_chunk::<IPV4_HEADER_LEN>()?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let body = packet.get(usize::from(header[0] & 0x0f).max(5) * 4..)?;
    let about_error = header[9] == ICMPV4 && body.first().is_none_or(|kind| is_icmpv4_error(*kind));
    // RFC 1812 section 4.3.2.7: none about ICMP errors, packets to or from more or less than one host, later fragments.
    if fragment & IPV4_DONT_FRAGMENT == 0
        || fragment & IPV4_OFFSET_MASK != 0
        || about_error
        || !is_one_host_v4(src)
        || !is_one_host_v4(dst)
    {
        return None;
    }
    let quoted = packet.len().min(MAX_V4_LEN - IPV4_HEADER_LEN - ICMP_HEADER_LEN);
    let len = IPV4_HEADER_LEN + ICMP_HEADER_LEN + quoted;
    let (ip, message) = out.get_mut(..len)?.split_first_chunk_mut::<IPV4_HEADER_LEN>()?;
    let (icmp, quote) = message.split_first_chunk_mut::<ICMP_HEADER_LEN>()?;
    *ip = [0; IPV4_HEADER_LEN];
    ip[0] = 0x45;
    // RFC 1812 section 4.3.2.5: precedence 6, internetwork control.
    ip[1] = 0xc0;
    ip[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    ip[8] = HOP_LIMIT;
    ip[9] = ICMPV4;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&src.octets());
    let sum = checksum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    // RFC 1191 section 4: the next-hop MTU in the low half of the second word.
    let [m0, m1] = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
    *icmp = [DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0, m0, m1];
    quote.copy_from_slice(packet.get(..quoted)?);
    let sum = checksum(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(len)
}

fn too_big_v6(
    packet: &[u8],
    src: Ipv6Addr,
    dst: Ipv6Addr,
    source: Ipv6Addr,
    mtu: u32,
    out: &mut [u8],
) -> Option<usize> {
    let (header, payload) = packet.split_first_chunk::<IPV6_HEADER_LEN>()?;
    let upper = ipv6::walk(header[6], payload);
    let about_error = upper.protocol == ICMPV6 && upper.payload.first().is_none_or(|kind| is_icmpv6_error(*kind));
    // RFC 4443 section 2.4 (e): none about ICMP errors and redirects, nor to what is not one host. The exception for
    // "too big" about multicast is not used: without `source`, it would come from a multicast address.
    if upper.later_fragment || about_error || !is_one_host_v6(src) || !is_one_host_v6(dst) {
        return None;
    }
    let quoted = packet.len().min(MAX_V6_LEN - IPV6_HEADER_LEN - ICMP_HEADER_LEN);
    let message_len = ICMP_HEADER_LEN + quoted;
    let len = IPV6_HEADER_LEN + message_len;
    let (ip, message) = out.get_mut(..len)?.split_first_chunk_mut::<IPV6_HEADER_LEN>()?;
    ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    ip[4..6].copy_from_slice(&(message_len as u16).to_be_bytes());
    ip[6] = ICMPV6;
    ip[7] = HOP_LIMIT;
    ip[8..24].copy_from_slice(&source.octets());
    ip[24..40].copy_from_slice(&src.octets());
    let (icmp, quote) = message.split_first_chunk_mut::<ICMP_HEADER_LEN>()?;
    *icmp = [PACKET_TOO_BIG, 0, 0, 0, 0, 0, 0, 0];
    icmp[4..8].copy_from_slice(&mtu.to_be_bytes());
    quote.copy_from_slice(packet.get(..quoted)?);
    let sum = Sum::new()
        .add_pseudo_header(IpAddr::V6(source), IpAddr::V6(src), ICMPV6, message_len as u32)
        .add_bytes(message)
        .finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(len)
}

/// RFC 1122 section 3.2.2: unreachable, source quench, redirect, time exceeded, parameter problem.
const fn is_icmpv4_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// RFC 4443 section 2.1: errors have the high bit clear.
const fn is_icmpv6_error(kind: u8) -> bool {
    kind < 128 || kind == REDIRECT
}

fn is_one_host_v4(addr: Ipv4Addr) -> bool {
    // 240.0.0.0/4 includes the limited broadcast address.
    !(addr.octets()[0] == 0 || addr.is_loopback() || addr.is_multicast() || addr.octets()[0] >= 240)
}

fn is_one_host_v6(addr: Ipv6Addr) -> bool {
    !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ipv4(src: &str, dst: &str, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend_from_slice(&src.parse::<Ipv4Addr>().unwrap().octets());
        packet.extend_from_slice(&dst.parse::<Ipv4Addr>().unwrap().octets());
        packet.extend_from_slice(payload);
        packet
    }

    fn ipv6(src: &str, dst: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend_from_slice(&src.parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(&dst.parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(payload);
        packet
    }

    fn answer(packet: &[u8], source: Option<IpAddr>) -> Option<Vec<u8>> {
        let mut out = [0xee; MAX_LEN];
        too_big(packet, 1392, source, &mut out).map(|len| out[..len].to_vec())
    }

    const DF: u16 = IPV4_DONT_FRAGMENT;

    #[test]
    fn fragmentation_needed_names_the_mtu_and_quotes_the_packet() {
        let packet = ipv4("10.0.0.1", "10.0.0.2", 6, DF, &[7; 1400]);
        let message = answer(&packet, None).unwrap();
        assert_eq!(message.len(), MAX_V4_LEN);
        assert_eq!(message[2..4], 576u16.to_be_bytes());
        assert_eq!(checksum(&message[..20]), 0);
        assert_eq!(checksum(&message[20..]), 0);
        assert_eq!(message[9], ICMPV4);
        assert_eq!(message[12..20], [10, 0, 0, 2, 10, 0, 0, 1]);
        assert_eq!(message[20..22], [3, 4]);
        assert_eq!(message[24..28], [0, 0, 0x05, 0x70]);
        assert_eq!(message[28..], packet[..548]);
    }

    #[test]
    fn packet_too_big_names_the_mtu_and_quotes_the_packet() {
        let packet = ipv6("fd00::1", "fd00::2", 17, &[7; 1400]);
        let message = answer(&packet, None).unwrap();
        assert_eq!(message.len(), MAX_V6_LEN);
        let (source, destination) = ("fd00::2".parse().unwrap(), "fd00::1".parse().unwrap());
        let sum = Sum::new().add_pseudo_header(source, destination, ICMPV6, 1240).add_bytes(&message[40..]).finish();
        assert_eq!(sum, 0);
        assert_eq!(message[4..8], [0x04, 0xd8, ICMPV6, 64]);
        assert_eq!(message[40..42], [2, 0]);
        assert_eq!(message[44..48], 1392u32.to_be_bytes());
        assert_eq!(message[48..], packet[..1232]);
    }

    #[test]
    fn a_source_of_the_packets_family_is_used() {
        let packet = ipv4("10.0.0.1", "10.0.0.2", 6, DF, &[7; 1400]);
        let message = answer(&packet, Some("10.9.9.9".parse().unwrap())).unwrap();
        assert_eq!(message[12..16], [10, 9, 9, 9]);
        assert_eq!(answer(&packet, Some("fd00::9".parse().unwrap())), answer(&packet, None));
    }

    #[test]
    fn silence_where_the_rules_want_it() {
        let v4 = |src, dst, protocol, fragment| answer(&ipv4(src, dst, protocol, fragment, &[3; 100]), None);
        assert!(v4("10.0.0.1", "10.0.0.2", 6, DF).is_some());
        assert!(v4("10.0.0.1", "10.0.0.2", 6, DF | 0x2000).is_some(), "first fragment");
        assert_eq!(v4("10.0.0.1", "10.0.0.2", 6, 0), None, "may be fragmented");
        assert_eq!(v4("10.0.0.1", "10.0.0.2", 6, DF | 1), None, "later fragment");
        assert_eq!(v4("10.0.0.1", "10.0.0.2", 1, DF), None, "destination unreachable");
        for several in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1"] {
            assert_eq!(v4(several, "10.0.0.2", 6, DF), None);
            assert_eq!(v4("10.0.0.1", several, 6, DF), None);
        }
        let v6 = |src, dst, protocol, payload: &[u8]| answer(&ipv6(src, dst, protocol, payload), None);
        assert!(v6("fd00::1", "fd00::2", 58, &[128; 100]).is_some(), "echo request");
        assert_eq!(v6("fd00::1", "fd00::2", 58, &[1; 100]), None, "destination unreachable");
        assert_eq!(v6("fd00::1", "fd00::2", 58, &[137; 100]), None, "redirect");
        assert_eq!(v6("fd00::1", "fd00::2", 0, &[58, 0, 0, 0, 0, 0, 0, 0, 1, 0]), None, "an error behind a header");
        assert_eq!(v6("fd00::1", "fd00::2", 44, &[17, 0, 0, 8, 0, 0, 0, 9, 1, 2]), None, "later fragment");
        for several in ["::", "::1", "ff02::1"] {
            assert_eq!(v6(several, "fd00::2", 17, &[0; 100]), None);
            assert_eq!(v6("fd00::1", several, 17, &[0; 100]), None);
        }
    }

    #[test]
    fn without_room_nothing_is_written() {
        let packet = ipv4("10.0.0.1", "10.0.0.2", 6, DF, &[7; 100]);
        let mut out = [0xee; 147];
        assert_eq!(too_big(&packet, 1392, None, &mut out), None);
        assert_eq!(out, [0xee; 147]);
        assert_eq!(too_big(&packet, 1392, None, &mut [0; 148]), Some(148));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(
            mut packet in proptest::collection::vec(any::<u8>(), 0..1500),
            mtu: u32,
            ipv6: bool,
            room in 0..MAX_LEN,
        ) {
            if let Some(first) = packet.first_mut() {
                *first = (if ipv6 { 0x60 } else { 0x40 }) | *first & 0x0f;
            }
            let mut out = [0; MAX_LEN];
            if let Some(len) = too_big(&packet, mtu, None, &mut out[..room]) {
                prop_assert!(len <= room);
                prop_assert!(crate::wire::inner::Inner::parse(&out[..len]).is_ok());
            }
        }
    }
}
