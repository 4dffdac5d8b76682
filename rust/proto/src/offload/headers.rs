//! Where the headers of a TCP or UDP packet are, and the fields in them that cutting and merging change.

use std::net::IpAddr;

use crate::wire::checksum::Sum;
use crate::wire::inner::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, Inner};
use crate::wire::ipv6::{self, TCP, UDP};

/// IPv4 with all its options, or IPv6 with some extension headers, and TCP with all its options.
pub(super) const MAX_HEADERS: usize = 192;

pub(super) const TCP_HEADER_LEN: usize = 20;
pub(super) const UDP_HEADER_LEN: usize = 8;

pub(super) const IPV4_LENGTH: usize = 2;
pub(super) const IPV4_ID: usize = 4;
pub(super) const IPV4_FRAGMENT: usize = 6;
pub(super) const IPV4_CHECKSUM: usize = 10;
pub(super) const IPV6_LENGTH: usize = 4;

/// RFC 791: don't fragment; more fragments and the offset.
pub(super) const IPV4_DF: u16 = 0x4000;
pub(super) const IPV4_PIECE: u16 = 0x3fff;

/// Offsets in the TCP header (RFC 9293 section 3.1).
pub(super) const TCP_SEQUENCE: usize = 4;
pub(super) const TCP_OFFSET: usize = 12;
pub(super) const TCP_FLAGS: usize = 13;
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const TCP_URGENT: usize = 18;

/// Offsets in the UDP header (RFC 768).
pub(super) const UDP_LENGTH: usize = 4;
pub(super) const UDP_CHECKSUM: usize = 6;

pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const ECE: u8 = 0x40;
pub(super) const CWR: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub(super) const fn protocol(self) -> u8 {
        match self {
            Transport::Tcp => TCP,
            Transport::Udp => UDP,
        }
    }

    /// Where the checksum is in the header.
    pub(super) const fn checksum_at(self) -> usize {
        match self {
            Transport::Tcp => TCP_CHECKSUM,
            Transport::Udp => UDP_CHECKSUM,
        }
    }
}

/// The places of the headers of a whole TCP or UDP packet, which is not a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Headers {
    pub(super) v6: bool,
    pub(super) transport: Transport,
    /// Bytes of the IP header, extension headers included.
    pub(super) ip_len: usize,
    /// Bytes of all headers.
    pub(super) len: usize,
}

impl Headers {
    /// Reads the headers of `packet`, whose length fields are not looked at: a packet that is to be cut may be longer
    /// than they can say.
    #[inline]
    pub(super) fn parse(packet: &[u8]) -> Option<Headers> {
        let (v6, protocol, ip_len) = match Inner::parse(packet).ok()? {
            Inner::V4 { .. } => {
                let ip_len = usize::from(packet[0] & 0x0f) * 4;
                if ip_len < IPV4_HEADER_LEN || read_u16(packet, IPV4_FRAGMENT)? & IPV4_PIECE != 0 {
                    return None;
                }
                (false, packet[9], ip_len)
            }
            Inner::V6 { .. } => {
                let upper = ipv6::walk(packet[6], &packet[IPV6_HEADER_LEN..]);
                if upper.fragment_of.is_some() {
                    return None;
                }
                (true, upper.protocol, packet.len() - upper.payload.len())
            }
        };
        let header = packet.get(ip_len..)?;
        let (transport, own_len) = match protocol {
            TCP => {
                let len = usize::from(header.get(TCP_OFFSET)? >> 4) * 4;
                (Transport::Tcp, Some(len).filter(|&len| len >= TCP_HEADER_LEN)?)
            }
            UDP => (Transport::Udp, UDP_HEADER_LEN),
            _ => return None,
        };
        let len = ip_len + own_len;
        (len <= packet.len() && len <= MAX_HEADERS).then_some(Headers { v6, transport, ip_len, len })
    }

    /// Where the transport checksum is in the packet.
    pub(super) const fn checksum_at(&self) -> usize {
        self.ip_len + self.transport.checksum_at()
    }

    /// The sum of the pseudo-header but for the length.
    #[inline]
    pub(super) fn pseudo_sum(&self, packet: &[u8]) -> Sum {
        let (src, dst) = match Inner::parse(packet) {
            Ok(inner) => (inner.src(), inner.dst()),
            Err(_) => (IpAddr::from([0; 4]), IpAddr::from([0; 4])),
        };
        Sum::new().add_pseudo_header(src, dst, self.transport.protocol(), 0)
    }

    /// Whether the transport checksum of a whole packet is there and right.
    #[inline]
    pub(super) fn has_valid_checksum(&self, packet: &[u8]) -> bool {
        let Some(body) = packet.get(self.ip_len..) else { return false };
        let absent = self.transport == Transport::Udp && read_u16(packet, self.checksum_at()) == Some(0);
        !absent && self.pseudo_sum(packet).add_u32(body.len() as u32).add_bytes(body).finish() == 0
    }
}

#[inline]
pub(super) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_be_bytes(*field))
}

#[inline]
pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_be_bytes(*field))
}

/// Writes a field that is known to lie within `bytes`; elsewhere it does nothing.
#[inline]
pub(super) fn write(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
}
