//! The view of an inner IP packet that routing needs.

use std::net::IpAddr;

use crate::wire::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

pub const IPV4_HEADER_LEN: usize = 20;
pub const IPV6_HEADER_LEN: usize = 40;

/// The addresses of an inner packet, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    V4 { src: u32, dst: u32 },
    V6 { src: u128, dst: u128 },
}

/// Not an IP packet with a whole fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InnerError {
    #[error("the packet is shorter than its fixed IP header")]
    Truncated,
    #[error("IP version {0} is neither 4 nor 6")]
    Version(u8),
}

impl Inner {
    /// Reads the fixed header. Lengths within it are the business of whoever receives the packet: bytes behind
    /// the IP length travel along.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Inner, InnerError> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => {
                let header = packet.first_chunk::<IPV4_HEADER_LEN>().ok_or(InnerError::Truncated)?;
                let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
                Ok(Inner::V4 { src: u32::from_be_bytes([s0, s1, s2, s3]), dst: u32::from_be_bytes([d0, d1, d2, d3]) })
            }
            Some(6) => {
                let header = packet.first_chunk::<IPV6_HEADER_LEN>().ok_or(InnerError::Truncated)?;
                let (mut src, mut dst) = ([0; 16], [0; 16]);
                src.copy_from_slice(&header[8..24]);
                dst.copy_from_slice(&header[24..40]);
                Ok(Inner::V6 { src: u128::from_be_bytes(src), dst: u128::from_be_bytes(dst) })
            }
            Some(version) => Err(InnerError::Version(version)),
            None => Err(InnerError::Truncated),
        }
    }

    /// The EtherType and Geneve protocol type of such a packet.
    #[inline]
    pub const fn protocol_type(&self) -> u16 {
        match self {
            Inner::V4 { .. } => ETHERTYPE_IPV4,
            Inner::V6 { .. } => ETHERTYPE_IPV6,
        }
    }

    /// The pair of addresses, or `None` across families.
    pub const fn from_addrs(src: IpAddr, dst: IpAddr) -> Option<Inner> {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Some(Inner::V4 { src: src.to_bits(), dst: dst.to_bits() }),
            (IpAddr::V6(src), IpAddr::V6(dst)) => Some(Inner::V6 { src: src.to_bits(), dst: dst.to_bits() }),
            _ => None,
        }
    }

    pub fn src(&self) -> IpAddr {
        match *self {
            Inner::V4 { src, .. } => IpAddr::from(src.to_be_bytes()),
            Inner::V6 { src, .. } => IpAddr::from(src.to_be_bytes()),
        }
    }

    pub fn dst(&self) -> IpAddr {
        match *self {
            Inner::V4 { dst, .. } => IpAddr::from(dst.to_be_bytes()),
            Inner::V6 { dst, .. } => IpAddr::from(dst.to_be_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cut_fixed_header_is_refused() {
        let mut packet = [0u8; 40];
        packet[0] = 0x45;
        assert!(Inner::parse(&packet[..20]).is_ok());
        assert_eq!(Inner::parse(&packet[..19]), Err(InnerError::Truncated));
        packet[0] = 0x60;
        assert!(Inner::parse(&packet).is_ok());
        assert_eq!(Inner::parse(&packet[..39]), Err(InnerError::Truncated));
        assert_eq!(Inner::parse(&[]), Err(InnerError::Truncated));
    }

    #[test]
    fn other_versions_are_refused() {
        assert_eq!(Inner::parse(&[0x50; 60]), Err(InnerError::Version(5)));
        assert_eq!(Inner::parse(&[0; 60]), Err(InnerError::Version(0)));
    }

    proptest! {
        #[test]
        fn addresses_come_out_as_they_lie_in_the_packet(src: [u8; 16], dst: [u8; 16]) {
            let mut packet = [0u8; 40];
            packet[0] = 0x60;
            packet[8..24].copy_from_slice(&src);
            packet[24..].copy_from_slice(&dst);
            let inner = Inner::parse(&packet).unwrap();
            prop_assert_eq!((inner.src(), inner.dst()), (IpAddr::from(src), IpAddr::from(dst)));
            prop_assert_eq!(Inner::from_addrs(inner.src(), inner.dst()), Some(inner));
            prop_assert_eq!(inner.protocol_type(), ETHERTYPE_IPV6);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(packet in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Inner::parse(&packet);
        }
    }
}
