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
    let payload = packet.get(usize::from(ihl & 0x0f) * 4..usize::from(u16::from_be_bytes([l0, l1])))?;
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
