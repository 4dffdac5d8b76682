//! Ethernet II framing (RFC 894, RFC 2464).

use crate::id::MacAddr;

/// Destination, source and EtherType.
pub const HEADER_LEN: usize = 14;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

mod field {
    use core::ops::Range;

    pub(super) const DESTINATION: Range<usize> = 0..6;
    pub(super) const SOURCE: Range<usize> = 6..12;
    pub(super) const ETHERTYPE: Range<usize> = 12..14;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub destination: MacAddr,
    pub source: MacAddr,
    pub ethertype: u16,
}

impl Header {
    /// The header and what follows it; `None` for a runt.
    pub fn parse(frame: &[u8]) -> Option<(Header, &[u8])> {
        let (header, payload) = frame.split_first_chunk::<HEADER_LEN>()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
        let header = Header {
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            ethertype: u16::from_be_bytes([t0, t1]),
        };
        Some((header, payload))
    }

    pub fn emit(&self, out: &mut [u8; HEADER_LEN]) {
        out[field::DESTINATION].copy_from_slice(&self.destination.0);
        out[field::SOURCE].copy_from_slice(&self.source.0);
        out[field::ETHERTYPE].copy_from_slice(&self.ethertype.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_parses_back() {
        let header = Header {
            destination: MacAddr([1, 2, 3, 4, 5, 6]),
            source: MacAddr([7, 8, 9, 10, 11, 12]),
            ethertype: ETHERTYPE_IPV6,
        };
        let mut frame = [0xee; HEADER_LEN + 1];
        header.emit(frame.first_chunk_mut().unwrap());
        assert_eq!(Header::parse(&frame), Some((header, &[0xee][..])));
    }

    #[test]
    fn a_runt_has_no_header() {
        assert_eq!(Header::parse(&[0; HEADER_LEN - 1]), None);
    }
}
