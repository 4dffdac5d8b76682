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
/// The message tells of [RFC 1191](https://www.rfc-editor.org/rfc/rfc1191) "fragmentation needed" for IPv4, only where
/// the packet has DF set, and RFC 4443 "packet too big" for IPv6. Callers limit how many they send (RFC 4443
/// section 2.4 f).
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
    // RFC 4443 section 2.4 (e): none about ICMP errors and redirects, nor to what is not one host. It would permit
    // "too big" about multicast; we do not, for a million receivers' sake.
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
