//! The flow hash behind the outer source port: a hint for ECMP and receive-side scaling.

use crate::wire::inner::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};
use crate::wire::ipv6::{self, TCP, UDP};

const FNV_OFFSET: u64 = 14695981039346656037;
const FNV_PRIME: u64 = 1099511628211;

const PORT_BASE: u16 = 49152;
const PORT_COUNT: u16 = 16384;

/// The low 16 bits of FNV-1a 64 over the inner addresses in ascending order, then the ports of TCP and UDP in
/// ascending order, else the protocol number. Both directions of a flow have the same hash. 0 for what is no whole
/// IP packet.
///
/// Pieces of a fragmented datagram, and packets too short for ports, hash on addresses and protocol, which all
/// fragments share.
pub fn flow_hash(key: u64, packet: &[u8]) -> u16 {
    match packet.first().map(|first| first >> 4) {
        Some(4) => hash_ipv4(key, packet).unwrap_or(0),
        Some(6) => hash_ipv6(key, packet).unwrap_or(0),
        _ => 0,
    }
}

/// The outer source port: 49152 and up, from the dynamic range (RFC 6335 section 6).
pub const fn source_port(hash: u16) -> u16 {
    PORT_BASE + hash % PORT_COUNT
}

fn hash_ipv4(key: u64, packet: &[u8]) -> Option<u16> {
    let header = packet.first_chunk::<IPV4_HEADER_LEN>()?;
    let [ihl, _, l0, l1, _, _, f0, f1, _, protocol, _, _, src @ .., d0, d1, d2, d3] = *header;
    let header_len = usize::from(ihl & 0x0f) * 4;
    if header_len < IPV4_HEADER_LEN {
        return None;
    }
    let payload = packet.get(header_len..usize::from(u16::from_be_bytes([l0, l1])))?;
    // RFC 791: more-fragments bit or an offset.
    let whole = u16::from_be_bytes([f0, f1]) & 0x3fff == 0;
    Some(hash(key, src, [d0, d1, d2, d3], protocol, if whole { payload } else { &[] }))
}

fn hash_ipv6(key: u64, packet: &[u8]) -> Option<u16> {
    let (header, payload) = packet.split_first_chunk::<IPV6_HEADER_LEN>()?;
    let payload = payload.get(..usize::from(u16::from_be_bytes([header[4], header[5]])))?;
    let upper = ipv6::walk(header[6], payload);
    let (protocol, payload) = match upper.fragment_of {
        Some(protocol) => (protocol, &[][..]),
        None => (upper.protocol, upper.payload),
    };
    Some(hash::<16>(key, header[8..24].try_into().ok()?, header[24..40].try_into().ok()?, protocol, payload))
}

/// Addresses and ports are put in order each for itself.
fn hash<const N: usize>(key: u64, src: [u8; N], dst: [u8; N], protocol: u8, payload: &[u8]) -> u16 {
    let (low, high) = if src <= dst { (src, dst) } else { (dst, src) };
    let state = fnv(fnv(FNV_OFFSET ^ key, &low), &high);
    let state = match payload.first_chunk::<4>() {
        Some(&[s0, s1, d0, d1]) if matches!(protocol, TCP | UDP) => {
            let (a, b) = ([s0, s1], [d0, d1]);
            let (low, high) = if a <= b { (a, b) } else { (b, a) };
            fnv(fnv(state, &low), &high)
        }
        _ => fnv(state, &[protocol]),
    };
    state as u16
}

#[inline]
fn fnv(state: u64, data: &[u8]) -> u64 {
    data.iter().fold(state, |state, byte| (state ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ipv6::{FRAGMENT, HOP_BY_HOP};
    use proptest::prelude::*;

    fn ipv4(src: [u8; 4], dst: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend_from_slice(&src);
        packet.extend_from_slice(&dst);
        packet.extend_from_slice(payload);
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet
    }

    fn ipv6(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, protocol, 64];
        packet.extend_from_slice(&[1; 16]);
        packet.extend_from_slice(&[2; 16]);
        packet.extend_from_slice(payload);
        packet
    }

    const PORTS: [u8; 8] = [0x12, 0x34, 0x56, 0x78, 0, 8, 0, 0];

    #[test]
    fn all_pieces_of_an_ipv4_datagram_hash_alike() {
        let piece =
            |fragment, payload: &[u8]| flow_hash(7, &ipv4([10, 0, 0, 1], [10, 0, 0, 2], UDP, fragment, payload));
        let first = piece(0x2000, &PORTS);
        assert_eq!(piece(0x2001, &[0xff; 8]), first);
        assert_eq!(piece(0x0002, &[9]), first);
        assert_ne!(piece(0, &PORTS), first);
        // Neither the don't-fragment bit nor the reserved one makes a fragment.
        assert_eq!(piece(0x4000, &PORTS), piece(0, &PORTS));
        assert_eq!(piece(0x8000, &PORTS), piece(0, &PORTS));
    }

    #[test]
    fn all_pieces_of_an_ipv6_datagram_hash_alike() {
        let piece = |offset: u16, payload: &[u8]| {
            let [o0, o1] = offset.to_be_bytes();
            flow_hash(7, &ipv6(FRAGMENT, &[&[UDP, 0, o0, o1, 0, 0, 0, 9], payload].concat()))
        };
        let first = piece(1, &PORTS);
        assert_eq!(piece(8 | 1, &[0xff; 8]), first);
        assert_eq!(piece(16, &[]), first);
        assert_eq!(first, flow_hash(7, &ipv6(UDP, &[])));
        assert_eq!(piece(0, &PORTS), flow_hash(7, &ipv6(UDP, &PORTS)));
    }

    #[test]
    fn extension_headers_do_not_hide_the_ports() {
        let behind = ipv6(HOP_BY_HOP, &[&[TCP, 0, 0, 0, 0, 0, 0, 0], &PORTS[..]].concat());
        assert_eq!(flow_hash(7, &behind), flow_hash(7, &ipv6(TCP, &PORTS)));
    }

    #[test]
    fn too_short_for_ports_hashes_like_no_ports() {
        let hash = |payload: &[u8]| flow_hash(7, &ipv4([10, 0, 0, 1], [10, 0, 0, 2], UDP, 0, payload));
        assert!((0..4).all(|len| hash(&PORTS[..len]) == hash(&[])));
        assert_ne!(hash(&PORTS[..4]), hash(&[]));
    }

    #[test]
    fn an_impossible_header_length_is_no_packet() {
        let mut packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], UDP, 0, &PORTS);
        for ihl in 0..5 {
            packet[0] = 0x40 | ihl;
            assert_eq!(flow_hash(7, &packet), 0);
        }
        packet[0] = 0x4f;
        assert_eq!(flow_hash(7, &packet), 0);
    }

    proptest! {
        #[test]
        fn both_directions_hash_alike(key: u64, src: [u8; 4], dst: [u8; 4], a: [u8; 2], b: [u8; 2]) {
            let there = ipv4(src, dst, TCP, 0, &[a, b].concat());
            let back = ipv4(dst, src, TCP, 0, &[b, a].concat());
            prop_assert_eq!(flow_hash(key, &there), flow_hash(key, &back));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(key: u64, packet in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(source_port(flow_hash(key, &packet)) >= PORT_BASE);
        }

        #[test]
        fn bytes_behind_the_packet_do_not_count(tail in proptest::collection::vec(any::<u8>(), 0..20)) {
            let packet = ipv6(UDP, &PORTS[..2]);
            prop_assert_eq!(flow_hash(7, &[&packet[..], &tail].concat()), flow_hash(7, &packet));
        }
    }
}
