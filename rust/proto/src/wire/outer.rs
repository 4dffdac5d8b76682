//! The outer Ethernet, IP and UDP headers of raw underlays.

use core::ops::Range;
use std::net::{IpAddr, SocketAddr};

use crate::id::MacAddr;
use crate::wire::checksum::{Sum, checksum};
use crate::wire::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::wire::inner::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};
use crate::wire::ipv6::UDP;
use crate::wire::traffic_class::TrafficClass;

pub const UDP_HEADER_LEN: usize = 8;

/// Time to live and hop limit of what we send.
pub const HOP_LIMIT: u8 = 64;

/// RFC 791: don't fragment, more fragments, and the offset.
const IPV4_DONT_FRAGMENT: u16 = 0x4000;
const IPV4_FRAGMENT_MASK: u16 = 0x3fff;

/// One end of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: SocketAddr,
    pub mac: MacAddr,
}

/// Bytes before the UDP payload: 42 over IPv4, 62 over IPv6.
pub const fn header_len(ipv6: bool) -> usize {
    ethernet::HEADER_LEN + if ipv6 { IPV6_HEADER_LEN } else { IPV4_HEADER_LEN } + UDP_HEADER_LEN
}

/// The longest UDP payload that the length fields can express: RFC 791 counts the IPv4 header in, RFC 8200 does not.
pub const fn max_udp_payload(ipv6: bool) -> usize {
    u16::MAX as usize - UDP_HEADER_LEN - if ipv6 { 0 } else { IPV4_HEADER_LEN }
}

/// Why the headers cannot be written. The frame is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    #[error("source and destination are of different address families")]
    FamilyMismatch,
    #[error("the frame has {given} bytes, its headers alone need {needed}")]
    BufferTooSmall { needed: usize, given: usize },
    #[error("a UDP payload of {0} bytes does not fit an IP packet")]
    PayloadTooLong(usize),
}

/// Writes the headers in front of a payload that is in place already: `frame` is the whole frame,
/// [`header_len`] bytes of room and the payload.
///
/// `udp_checksum` and `dont_fragment` are about IPv4; over IPv6 the checksum is always computed (RFC 8200 section 8.1)
/// and nobody fragments on the way.
pub fn emit(
    frame: &mut [u8],
    src: &Endpoint,
    dst: &Endpoint,
    traffic_class: TrafficClass,
    udp_checksum: bool,
    dont_fragment: bool,
) -> Result<(), EmitError> {
    let ipv6 = match (src.addr, dst.addr) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => false,
        (SocketAddr::V6(_), SocketAddr::V6(_)) => true,
        _ => return Err(EmitError::FamilyMismatch),
    };
    let (needed, given) = (header_len(ipv6), frame.len());
    let payload_len = given.checked_sub(needed).ok_or(EmitError::BufferTooSmall { needed, given })?;
    let too_long = EmitError::PayloadTooLong(payload_len);
    let udp_len = u16::try_from(UDP_HEADER_LEN + payload_len).map_err(|_| too_long)?;

    let Some((ethernet, packet)) = frame.split_first_chunk_mut() else {
        return Err(EmitError::BufferTooSmall { needed, given });
    };
    let header = ethernet::Header {
        destination: dst.mac,
        source: src.mac,
        ethertype: if ipv6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 },
    };
    let datagram = match (src.addr.ip(), dst.addr.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total_len = udp_len.checked_add(IPV4_HEADER_LEN as u16).ok_or(too_long)?;
            let Some((ip, datagram)) = packet.split_first_chunk_mut::<IPV4_HEADER_LEN>() else {
                return Err(EmitError::BufferTooSmall { needed, given });
            };
            let fragment = if dont_fragment { IPV4_DONT_FRAGMENT } else { 0 };
            *ip = [0; IPV4_HEADER_LEN];
            ip[0] = 0x45;
            ip[1] = traffic_class.get();
            ip[2..4].copy_from_slice(&total_len.to_be_bytes());
            ip[6..8].copy_from_slice(&fragment.to_be_bytes());
            ip[8] = HOP_LIMIT;
            ip[9] = UDP;
            ip[12..16].copy_from_slice(&src.octets());
            ip[16..20].copy_from_slice(&dst.octets());
            let sum = checksum(ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            datagram
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let Some((ip, datagram)) = packet.split_first_chunk_mut::<IPV6_HEADER_LEN>() else {
                return Err(EmitError::BufferTooSmall { needed, given });
            };
            ip[..4].copy_from_slice(&(6 << 28 | u32::from(traffic_class.get()) << 20).to_be_bytes());
            ip[4..6].copy_from_slice(&udp_len.to_be_bytes());
            ip[6] = UDP;
            ip[7] = HOP_LIMIT;
            ip[8..24].copy_from_slice(&src.octets());
            ip[24..40].copy_from_slice(&dst.octets());
            datagram
        }
        _ => return Err(EmitError::FamilyMismatch),
    };
    header.emit(ethernet);

    let Some((udp, _)) = datagram.split_first_chunk_mut::<UDP_HEADER_LEN>() else {
        return Err(EmitError::BufferTooSmall { needed, given });
    };
    udp[0..2].copy_from_slice(&src.addr.port().to_be_bytes());
    udp[2..4].copy_from_slice(&dst.addr.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    udp[6..8].copy_from_slice(&[0, 0]);
    if ipv6 || udp_checksum {
        let sum = Sum::new()
            .add_pseudo_header(src.addr.ip(), dst.addr.ip(), UDP, u32::from(udp_len))
            .add_bytes(datagram)
            .finish();
        // RFC 768: a computed zero is sent as all ones, zero means none.
        let sum = if sum == 0 { 0xffff } else { sum };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    Ok(())
}

/// A frame that carries UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OuterFrame {
    pub src: SocketAddr,
    pub src_mac: MacAddr,
    pub dst: SocketAddr,
    pub traffic_class: TrafficClass,
    /// The UDP payload within the frame.
    pub payload: Range<usize>,
}

/// Why a frame is not UDP as we accept it. All of it counts as malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OuterError {
    #[error("the frame is shorter than its headers")]
    Truncated,
    #[error("EtherType {0:#06x} is neither IPv4 nor IPv6")]
    EtherType(u16),
    #[error("the IP version contradicts the EtherType")]
    Version,
    #[error("the IP header length is impossible")]
    HeaderLength,
    #[error("the IP length runs past the frame")]
    IpLength,
    #[error("the IPv4 header checksum is wrong")]
    HeaderChecksum,
    #[error("the packet is a fragment")]
    Fragment,
    #[error("IP protocol {0} is not UDP")]
    Protocol(u8),
    #[error("the UDP length is not that of the IP payload")]
    UdpLength,
}

/// Reads the outer headers. Bytes behind the IP length are ignored (Ethernet pads), and the UDP checksum is not
/// looked at: the AEAD authenticates.
pub fn parse(frame: &[u8]) -> Result<OuterFrame, OuterError> {
    let (ethernet, packet) = ethernet::Header::parse(frame).ok_or(OuterError::Truncated)?;
    let (src, dst, ip_header_len, datagram) = match ethernet.ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(packet)?,
        ETHERTYPE_IPV6 => parse_ipv6(packet)?,
        other => return Err(OuterError::EtherType(other)),
    };
    let udp = datagram.first_chunk::<UDP_HEADER_LEN>().ok_or(OuterError::UdpLength)?;
    let [s0, s1, d0, d1, l0, l1, _, _] = *udp;
    // The UDP length is that of the IP payload, no more (RFC 768) and no less: what would lie between is nobody's.
    if usize::from(u16::from_be_bytes([l0, l1])) != datagram.len() {
        return Err(OuterError::UdpLength);
    }
    let start = ethernet::HEADER_LEN + ip_header_len + UDP_HEADER_LEN;
    Ok(OuterFrame {
        src: SocketAddr::new(src, u16::from_be_bytes([s0, s1])),
        src_mac: ethernet.source,
        dst: SocketAddr::new(dst, u16::from_be_bytes([d0, d1])),
        traffic_class: TrafficClass::of(packet),
        payload: start..start + datagram.len() - UDP_HEADER_LEN,
    })
}

type IpParts<'a> = (IpAddr, IpAddr, usize, &'a [u8]);

/// Addresses, header length and IP payload (RFC 791 section 3.1). Options are accepted and ignored.
fn parse_ipv4(packet: &[u8]) -> Result<IpParts<'_>, OuterError> {
    let header = packet.first_chunk::<IPV4_HEADER_LEN>().ok_or(OuterError::Truncated)?;
    let [version_ihl, _, l0, l1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    if version_ihl >> 4 != 4 {
        return Err(OuterError::Version);
    }
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([l0, l1]));
    if header_len < IPV4_HEADER_LEN || header_len > total_len {
        return Err(OuterError::HeaderLength);
    }
    let packet = packet.get(..total_len).ok_or(OuterError::IpLength)?;
    let (header, payload) = packet.split_at_checked(header_len).ok_or(OuterError::HeaderLength)?;
    if checksum(header) != 0 {
        return Err(OuterError::HeaderChecksum);
    }
    if u16::from_be_bytes([f0, f1]) & IPV4_FRAGMENT_MASK != 0 {
        return Err(OuterError::Fragment);
    }
    if protocol != UDP {
        return Err(OuterError::Protocol(protocol));
    }
    Ok((IpAddr::from([s0, s1, s2, s3]), IpAddr::from([d0, d1, d2, d3]), header_len, payload))
}

/// The same of IPv6 (RFC 8200 section 3). Extension headers, the fragment header among them, are not accepted.
fn parse_ipv6(packet: &[u8]) -> Result<IpParts<'_>, OuterError> {
    let (header, payload) = packet.split_first_chunk::<IPV6_HEADER_LEN>().ok_or(OuterError::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(OuterError::Version);
    }
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let payload = payload.get(..payload_len).ok_or(OuterError::IpLength)?;
    if header[6] != UDP {
        return Err(OuterError::Protocol(header[6]));
    }
    let (mut src, mut dst) = ([0; 16], [0; 16]);
    src.copy_from_slice(&header[8..24]);
    dst.copy_from_slice(&header[24..40]);
    Ok((IpAddr::from(src), IpAddr::from(dst), IPV6_HEADER_LEN, payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(addr: &str) -> Endpoint {
        Endpoint { addr: addr.parse().unwrap(), mac: MacAddr([2, 0, 0, 0, 0, 1]) }
    }

    const CLASS: TrafficClass = TrafficClass::new(0xba);

    fn frame(ipv6: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = [&vec![0xee; header_len(ipv6)], payload].concat();
        let (src, dst) = match ipv6 {
            false => (endpoint("192.0.2.1:6081"), endpoint("198.51.100.7:6082")),
            true => (endpoint("[2001:db8::1]:6081"), endpoint("[2001:db8::7]:6082")),
        };
        emit(&mut frame, &src, &dst, CLASS, true, true).unwrap();
        frame
    }

    /// Sets the IPv4 header checksum right.
    fn mend(frame: &mut [u8]) {
        let len = usize::from(frame[14] & 0x0f) * 4;
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..14 + len]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }

    #[test]
    fn dont_fragment_is_set_as_asked() {
        let mut frame = frame(false, &[1, 2, 3]);
        assert_eq!(frame[20..22], [0x40, 0]);
        emit(&mut frame, &endpoint("192.0.2.1:1"), &endpoint("192.0.2.2:2"), CLASS, false, false).unwrap();
        assert_eq!(frame[20..22], [0, 0]);
        assert_eq!(frame[40..42], [0, 0], "no checksum over IPv4 unless asked for");
        assert!(parse(&frame).is_ok());
    }

    #[test]
    fn the_traffic_class_lies_in_the_headers_as_given() {
        assert_eq!(frame(false, &[1])[14..16], [0x45, 0xba]);
        assert_eq!(frame(true, &[1])[14..18], [0x6b, 0xa0, 0, 0]);
    }

    #[test]
    fn ipv6_always_has_a_checksum() {
        let mut frame = frame(true, &[1, 2, 3]);
        let with = frame.clone();
        let (src, dst) = (endpoint("[2001:db8::1]:6081"), endpoint("[2001:db8::7]:6082"));
        emit(&mut frame, &src, &dst, CLASS, false, false).unwrap();
        assert_eq!(frame, with);
    }

    #[test]
    fn what_does_not_fit_is_refused_untouched() {
        let (v4, v6) = (endpoint("192.0.2.1:1"), endpoint("[2001:db8::1]:1"));
        for (end, ipv6) in [(v4, false), (v6, true)] {
            let needed = header_len(ipv6);
            let mut short = vec![0xee; needed - 1];
            let error = EmitError::BufferTooSmall { needed, given: needed - 1 };
            assert_eq!(emit(&mut short, &end, &end, CLASS, true, true), Err(error));
            assert!(short.iter().all(|byte| *byte == 0xee));
            let mut most = vec![0xee; needed + max_udp_payload(ipv6)];
            assert_eq!(emit(&mut most, &end, &end, CLASS, true, true), Ok(()));
            assert_eq!(parse(&most).unwrap().payload.len(), max_udp_payload(ipv6));
            let mut long = vec![0xee; needed + max_udp_payload(ipv6) + 1];
            let error = EmitError::PayloadTooLong(max_udp_payload(ipv6) + 1);
            assert_eq!(emit(&mut long, &end, &end, CLASS, true, true), Err(error));
            assert!(long.iter().all(|byte| *byte == 0xee));
        }
        assert_eq!(emit(&mut [0; 100], &v4, &v6, CLASS, true, true), Err(EmitError::FamilyMismatch));
        assert_eq!(emit(&mut [0; 100], &v6, &v4, CLASS, true, true), Err(EmitError::FamilyMismatch));
    }

    #[test]
    fn options_are_accepted_and_impossible_header_lengths_are_not() {
        let plain = frame(false, &[1, 2, 3]);
        let mut optioned = [&plain[..34], &[1, 1, 1, 0], &plain[34..]].concat();
        optioned[14] = 0x46;
        optioned[17] += 4;
        mend(&mut optioned);
        let parsed = parse(&optioned).unwrap();
        assert_eq!(optioned[parsed.payload], [1, 2, 3]);
        for ihl in 0..5 {
            optioned[14] = 0x40 | ihl;
            assert_eq!(parse(&optioned), Err(OuterError::HeaderLength));
        }
        optioned[14] = 0x4f;
        assert_eq!(parse(&optioned), Err(OuterError::HeaderLength));
    }

    #[test]
    fn the_header_checksum_decides_and_zero_is_a_checksum_like_any_other() {
        let mut frame = frame(false, &[1, 2, 3]);
        frame[24] ^= 1;
        assert_eq!(parse(&frame), Err(OuterError::HeaderChecksum));
        // Another identification makes the right checksum zero.
        frame[24..26].fill(0);
        let id = checksum(&frame[14..34]);
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        assert!(parse(&frame).is_ok());
    }

    #[test]
    fn fragments_are_refused() {
        for bits in [0x2000u16, 0x0001, 0x1fff] {
            let mut frame = frame(false, &[1, 2, 3]);
            frame[20..22].copy_from_slice(&bits.to_be_bytes());
            mend(&mut frame);
            assert_eq!(parse(&frame), Err(OuterError::Fragment));
        }
        let mut frame = frame(true, &[1, 2, 3]);
        frame[20] = 44;
        assert_eq!(parse(&frame), Err(OuterError::Protocol(44)));
    }

    #[test]
    fn lengths_are_checked_and_padding_is_ignored() {
        for ipv6 in [false, true] {
            let frame = frame(ipv6, &[1, 2, 3]);
            let parsed = parse(&frame).unwrap();
            let padded = [&frame[..], &[0; 20]].concat();
            assert_eq!(parse(&padded), Ok(parsed));
            assert_eq!(parse(&frame[..frame.len() - 1]), Err(OuterError::IpLength));
            for length in [0u16, 7, 8, 10, 12, 65535] {
                let mut frame = frame.clone();
                let at = header_len(ipv6) - 4;
                frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
                assert_eq!(parse(&frame), Err(OuterError::UdpLength), "{length}");
            }
        }
    }

    #[test]
    fn every_cut_frame_is_refused() {
        for ipv6 in [false, true] {
            let frame = frame(ipv6, &[1, 2, 3]);
            assert!((0..frame.len()).all(|len| parse(&frame[..len]).is_err()));
        }
    }

    fn addr() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
            any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_emitted_parses_back(
            (src, dst) in addr(),
            ports: (u16, u16),
            macs: ([u8; 6], [u8; 6]),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            udp_checksum: bool,
            dont_fragment: bool,
            class: u8,
        ) {
            let src = Endpoint { addr: SocketAddr::new(src, ports.0), mac: MacAddr(macs.0) };
            let dst = Endpoint { addr: SocketAddr::new(dst, ports.1), mac: MacAddr(macs.1) };
            let mut frame = [&vec![0xee; header_len(dst.addr.is_ipv6())], &payload[..]].concat();
            emit(&mut frame, &src, &dst, TrafficClass::new(class), udp_checksum, dont_fragment).unwrap();
            let parsed = parse(&frame).unwrap();
            prop_assert_eq!((parsed.src, parsed.src_mac, parsed.dst), (src.addr, src.mac, dst.addr));
            prop_assert_eq!(&frame[parsed.payload], &payload[..]);
            prop_assert_eq!(parsed.traffic_class.get(), class);
            prop_assert_eq!(&frame[..6], &dst.mac.0);
        }

        #[test]
        fn a_flipped_bit_does_not_panic_and_never_moves_an_ipv4_header(bit in 0..(42 + 16) * 8usize) {
            let good = frame(false, &[9; 16]);
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let parsed = parse(&bad);
            if (14 * 8..34 * 8).contains(&bit) {
                prop_assert!(parsed.is_err());
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(mut frame in proptest::collection::vec(any::<u8>(), 0..120), ipv6: bool) {
            if let Some(ethertype) = frame.get_mut(12..14) {
                ethertype.copy_from_slice(&(if ipv6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }).to_be_bytes());
            }
            if let Ok(parsed) = parse(&frame) {
                prop_assert!(parsed.payload.end <= frame.len());
            }
        }
    }
}
