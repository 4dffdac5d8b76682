//! Cutting: one large packet becomes several of its flow, as TSO and USO define it.

use super::VnetHeader;
use super::headers::{
    CWR, FIN, Headers, IPV4_CHECKSUM, IPV4_ID, IPV4_LENGTH, IPV6_LENGTH, MAX_HEADERS, PSH, TCP_FLAGS, TCP_SEQUENCE,
    Transport, UDP_LENGTH, read_u16, read_u32, write,
};
use crate::wire::checksum::Sum;
use crate::wire::inner::IPV6_HEADER_LEN;

/// By the length fields of IPv4 and IPv6.
const MAX_PACKET_LEN: usize = 65_535;

/// A packet to be cut, and how far that has come.
///
/// Each segment is made in place: its headers are written over the end of the payload before it, which is why segments
/// are made in order, each once, and why nothing is copied.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a mut [u8],
    headers: Headers,
    /// The headers of every segment, with the fields zero that differ between them; the length fields say that there is
    /// no payload.
    template: [u8; MAX_HEADERS],
    /// Sums of the template: the IPv4 header, and the transport header with its pseudo-header.
    ip_sum: Sum,
    transport_sum: Sum,
    /// Of the first segment.
    id: u16,
    sequence: u32,
    flags: u8,
    /// Payload bytes of each segment but the last.
    size: usize,
    count: usize,
    /// Segments that have been planned for sealing.
    planned: usize,
}

impl<'a> Segments<'a> {
    /// `None` when the packet is not what the header says.
    pub(super) fn new(header: &VnetHeader, packet: &'a mut [u8]) -> Option<Self> {
        let headers = Headers::parse(packet)?;
        let expected = match (headers.transport, headers.v6) {
            (Transport::Tcp, false) => VnetHeader::GSO_TCPV4,
            (Transport::Tcp, true) => VnetHeader::GSO_TCPV6,
            (Transport::Udp, _) => VnetHeader::GSO_UDP_L4,
        };
        let kind = match headers.transport {
            Transport::Tcp => header.gso_type & !VnetHeader::GSO_ECN,
            Transport::Udp => header.gso_type,
        };
        let size = usize::from(header.gso_size);
        let needs_checksum = header.flags & VnetHeader::NEEDS_CSUM != 0
            && usize::from(header.csum_start) == headers.ip_len
            && usize::from(header.csum_offset) == headers.transport.checksum_at();
        // The largest segment must have a length that its header can say.
        let longest = headers.len + size.min(packet.len() - headers.len);
        if kind != expected || size == 0 || !needs_checksum || longest > MAX_PACKET_LEN {
            return None;
        }

        let mut template = [0; MAX_HEADERS];
        let head = template.get_mut(..headers.len)?;
        head.copy_from_slice(packet.get(..headers.len)?);
        let transport_len = headers.len - headers.ip_len;
        let (mut id, mut sequence, mut flags) = (0, 0, 0);
        if headers.v6 {
            let payload = headers.len - IPV6_HEADER_LEN;
            write(head, IPV6_LENGTH, &(payload as u16).to_be_bytes());
        } else {
            id = read_u16(head, IPV4_ID)?;
            write(head, IPV4_ID, &[0; 2]);
            write(head, IPV4_CHECKSUM, &[0; 2]);
            write(head, IPV4_LENGTH, &(headers.len as u16).to_be_bytes());
        }
        let (ip, transport) = head.split_at_mut(headers.ip_len);
        match headers.transport {
            Transport::Tcp => {
                sequence = read_u32(transport, TCP_SEQUENCE)?;
                flags = *transport.get(TCP_FLAGS)?;
                write(transport, TCP_SEQUENCE, &[0; 4]);
                write(transport, TCP_FLAGS, &[0]);
            }
            Transport::Udp => write(transport, UDP_LENGTH, &(transport_len as u16).to_be_bytes()),
        }
        write(transport, headers.transport.checksum_at(), &[0; 2]);
        let ip_sum = Sum::new().add_bytes(ip);
        let transport_sum = Sum::new().add_bytes(transport).add_u32(transport_len as u32);
        let transport_sum = transport_sum.add_sum(headers.pseudo_sum(&template));

        let payload = packet.len() - headers.len;
        let count = payload.div_ceil(size).max(1);
        let planned = 0;
        Some(Segments { packet, headers, template, ip_sum, transport_sum, id, sequence, flags, size, count, planned })
    }

    /// The headers of a segment as if it had no payload: what decides about its way.
    #[inline]
    pub(crate) fn head(&self) -> &[u8] {
        &self.template[..self.headers.len]
    }

    /// How many segments are yet to be planned.
    pub(crate) fn left(&self) -> usize {
        self.count - self.planned
    }

    /// Plans the next segment: its number and its length. `None`: all are planned.
    #[inline]
    pub(crate) fn peek(&self) -> Option<(usize, usize)> {
        (self.planned < self.count).then(|| (self.planned, self.headers.len + self.payload(self.planned).len()))
    }

    /// What [`Segments::peek`] said is planned.
    #[inline]
    pub(crate) fn advance(&mut self) {
        self.planned += 1;
    }

    /// Makes segment `index` and returns it. Each is made once, in ascending order.
    #[inline]
    pub(crate) fn cut(&mut self, index: usize) -> &[u8] {
        let payload = self.payload(index);
        let start = payload.start - self.headers.len;
        let segment = &mut self.packet[start..payload.end];
        let (head, body) = segment.split_at_mut(self.headers.len);
        head.copy_from_slice(&self.template[..self.headers.len]);
        let added = body.len() as u16;
        let (ip, transport) = head.split_at_mut(self.headers.ip_len);
        if self.headers.v6 {
            let length = (self.headers.len - IPV6_HEADER_LEN) as u16 + added;
            write(ip, IPV6_LENGTH, &length.to_be_bytes());
        } else {
            let (length, id) = (self.headers.len as u16 + added, self.id.wrapping_add(index as u16));
            // The sum of the template has a part of the length in it.
            let checksum = self.ip_sum.add_u16(added).add_u16(id).finish();
            write(ip, IPV4_LENGTH, &length.to_be_bytes());
            write(ip, IPV4_ID, &id.to_be_bytes());
            write(ip, IPV4_CHECKSUM, &checksum.to_be_bytes());
        }
        let sum = self.transport_sum.add_u32(u32::from(added)).add_bytes(body);
        let sum = match self.headers.transport {
            Transport::Tcp => {
                let sequence = self.sequence.wrapping_add((index * self.size) as u32);
                let mut flags = self.flags;
                if index > 0 {
                    flags &= !CWR;
                }
                if index + 1 < self.count {
                    flags &= !(FIN | PSH);
                }
                write(transport, TCP_SEQUENCE, &sequence.to_be_bytes());
                write(transport, TCP_FLAGS, &[flags]);
                // The flags are the low byte of their 16-bit word.
                sum.add_u32(sequence).add_u16(u16::from(flags))
            }
            Transport::Udp => {
                let length = (self.headers.len - self.headers.ip_len) as u16 + added;
                write(transport, UDP_LENGTH, &length.to_be_bytes());
                sum.add_u16(added)
            }
        };
        let checksum = match (sum.finish(), self.headers.transport) {
            // RFC 768: zero would say that there is none.
            (0, Transport::Udp) => 0xffff,
            (checksum, _) => checksum,
        };
        write(transport, self.headers.transport.checksum_at(), &checksum.to_be_bytes());
        segment
    }

    /// The place of a segment's payload in the packet.
    #[inline]
    fn payload(&self, index: usize) -> core::ops::Range<usize> {
        let start = self.headers.len + index * self.size;
        start..(start + self.size).min(self.packet.len())
    }
}
