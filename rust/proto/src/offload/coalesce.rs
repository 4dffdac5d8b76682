//! Merging: consecutive packets of one flow become one large packet, from which cutting gives the same packets again.

use super::VnetHeader;
use super::headers::{
    ACK, ECE, Headers, IPV4_CHECKSUM, IPV4_DF, IPV4_FRAGMENT, IPV4_ID, IPV4_LENGTH, IPV6_LENGTH, MAX_HEADERS, PSH,
    TCP_FLAGS, TCP_SEQUENCE, TCP_URGENT, Transport, UDP_LENGTH, read_u16, read_u32, write,
};
use crate::engine::OpenSink;
use crate::id::Vni;
use crate::wire::checksum::Sum;
use crate::wire::inner::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};

/// The largest packet that grows, by the length field of IPv4.
const MAX_PACKET_LEN: usize = 65_535;

/// How many datagrams the kernel takes in one packet: `UDP_MAX_SEGMENTS` of Linux before 6.9, 128 since. More are refused.
const MAX_UDP_SEGMENTS: u32 = 64;

/// Packets that wait for the device at most.
const MAX_PACKETS: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoalesceOptions {
    /// The device takes merged TCP packets.
    pub tcp: bool,
    /// The device takes merged UDP packets.
    pub udp: bool,
    /// The device expects a vnet header before each packet. Without it nothing is merged.
    pub vnet: bool,
    /// Room for packets.
    pub bytes: usize,
}

/// Takes what the engine opens, in order, and merges where that hides nothing.
///
/// A packet is opened straight behind the payload of the one before, its headers over the end of that payload, which is
/// put back: what continues the packet before is in its place then. Anything else moves on by a few bytes. The order of
/// packets stays as it came.
///
/// Packets merge when they are neighbours, of one network and one flow, with the same TOS, TTL, flags and options, in
/// sequence, all of one size but the last, with correct checksums. TCP: ACK, with or without ECE, and PSH on the last.
#[derive(Debug)]
pub struct Coalescer {
    buffer: Box<[u8]>,
    tcp: bool,
    udp: bool,
    /// Bytes of vnet header before each packet.
    front: usize,
    packets: Vec<Place>,
    /// The last of `packets`, if it may grow.
    growing: Option<Growing>,
    /// Where the room starts that was given out last.
    room: Option<usize>,
    /// What the room covers of the growing packet.
    covered: [u8; MAX_HEADERS],
}

/// A packet in the buffer.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// From the vnet header on.
    start: usize,
    end: usize,
    vni: Vni,
    segments: u32,
    /// Of a packet that has grown: its headers, and the payload bytes of its segments.
    grown: Option<(Headers, usize)>,
}

/// What the next packet has to be like.
#[derive(Clone, Copy, Debug)]
struct Growing {
    headers: Headers,
    /// Payload bytes of each segment but the last.
    size: usize,
    flags: u8,
    sequence: u32,
    id: Option<u16>,
    /// The first segment's checksum has been found right.
    verified: bool,
}

/// A packet that may be part of a merged one, as far as it can be said of it alone.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    headers: Headers,
    payload: usize,
    flags: u8,
    sequence: u32,
    /// The IPv4 ID, which means nothing in a packet with DF (RFC 6864 section 4.1).
    id: Option<u16>,
}

/// A packet to be handed to the device.
#[derive(Clone, Copy, Debug)]
pub struct Coalesced<'a> {
    bytes: &'a [u8],
    front: usize,
    pub vni: Vni,
    /// How many packets it is made of.
    pub segments: u32,
}

impl<'a> Coalesced<'a> {
    /// What the device is to be given: the vnet header, if it expects one, and the packet.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The packet alone.
    pub fn packet(&self) -> &'a [u8] {
        &self.bytes[self.front..]
    }
}

impl Coalescer {
    pub fn new(options: CoalesceOptions) -> Self {
        let CoalesceOptions { tcp, udp, vnet, bytes } = options;
        Coalescer {
            buffer: vec![0; bytes].into(),
            tcp: tcp && vnet,
            udp: udp && vnet,
            front: if vnet { VnetHeader::LEN } else { 0 },
            packets: Vec::with_capacity(MAX_PACKETS),
            growing: None,
            room: None,
            covered: [0; MAX_HEADERS],
        }
    }

    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.growing = None;
        self.room = None;
    }

    /// Lets `change` see each packet that has stayed by itself, before all are handed out.
    pub fn change_single(&mut self, mut change: impl FnMut(Vni, &mut [u8])) {
        self.uncover();
        self.growing = None;
        for place in self.packets.iter().filter(|place| place.grown.is_none()) {
            change(place.vni, &mut self.buffer[place.start + self.front..place.end]);
        }
    }

    /// Completes the headers of what has grown, and returns all packets in their order.
    pub fn packets(&mut self) -> impl Iterator<Item = Coalesced<'_>> {
        self.uncover();
        self.growing = None;
        let front = self.front;
        for place in &self.packets {
            if let Some((headers, size)) = place.grown {
                let (vnet, packet) = self.buffer[place.start..place.end].split_at_mut(front);
                vnet.copy_from_slice(&complete(&headers, size, packet).emit());
            }
        }
        let buffer = &*self.buffer;
        self.packets.iter().map(move |&Place { start, end, vni, segments, .. }| Coalesced {
            bytes: &buffer[start..end],
            front,
            vni,
            segments,
        })
    }

    fn end(&self) -> usize {
        self.packets.last().map_or(0, |place| place.end)
    }

    /// Puts back what the room covers, where nothing was delivered into it.
    fn uncover(&mut self) {
        if let (Some(start), Some(growing)) = (self.room.take(), self.growing) {
            let len = growing.headers.len;
            self.buffer[start..start + len].copy_from_slice(&self.covered[..len]);
        }
    }

    /// Whether the packet of `candidate`, whose headers are `head` and whose payload lies behind the growing packet,
    /// continues that; if so it has become part of it.
    fn grow(&mut self, vni: Vni, candidate: Candidate, head: &[u8]) -> bool {
        let (Some(mut growing), Some(place)) = (self.growing, self.packets.last_mut()) else { return false };
        let start = place.start + self.front;
        let Candidate { headers, payload, flags, sequence, id } = candidate;
        let merged = place.end + payload - start;
        let continues = vni == place.vni
            && headers == growing.headers
            && (flags & !PSH, sequence, id) == (growing.flags, growing.sequence, growing.id)
            && payload <= growing.size
            && merged <= MAX_PACKET_LEN
            && (headers.transport == Transport::Tcp || place.segments < MAX_UDP_SEGMENTS)
            && differ_only_where_segments_do(&headers, &self.buffer[start..], head);
        if !continues {
            return false;
        }
        let body = &self.buffer[place.end..place.end + payload];
        let transport = head.get(headers.ip_len..).unwrap_or(&[]);
        let sum = headers.pseudo_sum(head).add_u32((transport.len() + payload) as u32);
        let correct = sum.add_bytes(transport).add_bytes(body).finish() == 0;
        if !growing.verified {
            growing.verified = headers.has_valid_checksum(&self.buffer[start..place.end]);
        }
        if !correct || !growing.verified {
            return false;
        }
        place.end += payload;
        place.segments += 1;
        place.grown = Some((headers, growing.size));
        if flags & PSH != 0 {
            self.buffer[start + headers.ip_len + TCP_FLAGS] |= PSH;
        }
        growing.step(payload);
        let last = payload < growing.size || flags & PSH != 0;
        self.growing = (!last).then_some(growing);
        true
    }
}

impl Growing {
    /// What follows a packet, if anything may.
    fn after(candidate: Candidate) -> Option<Growing> {
        let Candidate { headers, payload, flags, sequence, id } = candidate;
        let mut growing = Growing { headers, size: payload, flags, sequence, id, verified: false };
        growing.step(payload);
        (flags & PSH == 0).then_some(growing)
    }

    fn step(&mut self, payload: usize) {
        if self.headers.transport == Transport::Tcp {
            self.sequence = self.sequence.wrapping_add(payload as u32);
        }
        self.id = self.id.map(|id| id.wrapping_add(1));
    }
}

impl OpenSink for Coalescer {
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.uncover();
        let end = self.end();
        // Wherever the packet comes to lie in the end.
        let fits = end + self.front + len <= self.buffer.len() && self.packets.len() < MAX_PACKETS;
        let start = match self.growing.filter(|_| fits) {
            Some(growing) => {
                let covered = growing.headers.len;
                let start = end - covered;
                self.covered[..covered].copy_from_slice(&self.buffer[start..end]);
                start
            }
            None => end + self.front,
        };
        self.room = fits.then_some(start);
        if fits { self.buffer.get_mut(start..start + len) } else { None }
    }

    fn deliver(&mut self, vni: Vni, len: usize) {
        let Some(start) = self.room else { return };
        let end = self.end();
        let candidate = Candidate::parse(&self.buffer[start..start + len], self.tcp, self.udp);
        let fresh = end + self.front;
        if start < end {
            // What is the growing packet's must be put back before the two can be compared.
            let covered = (end - start).min(len);
            let mut head = [0; MAX_HEADERS];
            let head = &mut head[..covered];
            head.copy_from_slice(&self.buffer[start..start + covered]);
            self.uncover();
            if candidate.is_some_and(|candidate| covered == candidate.headers.len && self.grow(vni, candidate, head)) {
                return;
            }
            self.buffer.copy_within(end..end + (len - covered), fresh + covered);
            self.buffer[fresh..fresh + covered].copy_from_slice(head);
        }
        self.room = None;
        self.buffer[end..fresh].fill(0);
        self.packets.push(Place { start: end, end: fresh + len, vni, segments: 1, grown: None });
        self.growing = candidate.and_then(Growing::after);
    }
}

impl Candidate {
    /// `None`: the packet stays as it is.
    fn parse(packet: &[u8], tcp: bool, udp: bool) -> Option<Candidate> {
        let headers = Headers::parse(packet)?;
        let id = if headers.v6 {
            let whole = packet.len() == IPV6_HEADER_LEN + usize::from(read_u16(packet, IPV6_LENGTH)?);
            if headers.ip_len != IPV6_HEADER_LEN || !whole {
                return None;
            }
            None
        } else {
            let whole = packet.len() == usize::from(read_u16(packet, IPV4_LENGTH)?);
            let (header, _) = packet.split_first_chunk::<IPV4_HEADER_LEN>()?;
            if headers.ip_len != IPV4_HEADER_LEN || !whole || Sum::new().add_bytes(header).finish() != 0 {
                return None;
            }
            let df = read_u16(packet, IPV4_FRAGMENT)? & IPV4_DF != 0;
            (!df).then_some(read_u16(packet, IPV4_ID)?)
        };
        let transport = packet.get(headers.ip_len..)?;
        let payload = packet.len() - headers.len;
        let (allowed, flags, sequence) = match headers.transport {
            Transport::Tcp => {
                let flags = *transport.get(TCP_FLAGS)?;
                let plain = flags & !(PSH | ECE) == ACK && read_u16(transport, TCP_URGENT)? == 0;
                (tcp && plain, flags, read_u32(transport, TCP_SEQUENCE)?)
            }
            Transport::Udp => {
                let whole = usize::from(read_u16(transport, UDP_LENGTH)?) == transport.len();
                let checksum = read_u16(packet, headers.checksum_at())?;
                (udp && whole && checksum != 0, 0, 0)
            }
        };
        (allowed && payload > 0).then_some(Candidate { headers, payload, flags, sequence, id })
    }
}

/// Whether two packets' headers are the same but for lengths, checksums, IPv4 IDs, TCP sequence numbers and flags.
fn differ_only_where_segments_do(headers: &Headers, a: &[u8], b: &[u8]) -> bool {
    let same = |from: usize, to: usize| a.get(from..to).is_some_and(|field| Some(field) == b.get(from..to));
    let at = headers.ip_len;
    let ip = if headers.v6 {
        same(0, IPV6_LENGTH) && same(IPV6_LENGTH + 2, IPV6_HEADER_LEN)
    } else {
        same(0, IPV4_LENGTH) && same(IPV4_FRAGMENT, IPV4_CHECKSUM) && same(IPV4_CHECKSUM + 2, IPV4_HEADER_LEN)
    };
    let transport = match headers.transport {
        // Ports; acknowledgement and data offset; window; urgent pointer and options.
        Transport::Tcp => {
            same(at, at + TCP_SEQUENCE)
                && same(at + TCP_SEQUENCE + 4, at + TCP_FLAGS)
                && same(at + TCP_FLAGS + 1, at + Transport::Tcp.checksum_at())
                && same(at + TCP_URGENT, headers.len)
        }
        Transport::Udp => same(at, at + UDP_LENGTH),
    };
    ip && transport
}

/// Makes the headers of a packet that has grown say so, and returns how it is to be cut again.
fn complete(headers: &Headers, size: usize, packet: &mut [u8]) -> VnetHeader {
    let len = packet.len();
    if headers.v6 {
        write(packet, IPV6_LENGTH, &((len - IPV6_HEADER_LEN) as u16).to_be_bytes());
    } else {
        write(packet, IPV4_LENGTH, &(len as u16).to_be_bytes());
        write(packet, IPV4_CHECKSUM, &[0; 2]);
        let checksum = Sum::new().add_bytes(&packet[..IPV4_HEADER_LEN]).finish();
        write(packet, IPV4_CHECKSUM, &checksum.to_be_bytes());
    }
    let transport_len = len - headers.ip_len;
    let gso_type = match (headers.transport, headers.v6) {
        (Transport::Tcp, false) => VnetHeader::GSO_TCPV4,
        (Transport::Tcp, true) => VnetHeader::GSO_TCPV6,
        (Transport::Udp, _) => {
            write(packet, headers.ip_len + UDP_LENGTH, &(transport_len as u16).to_be_bytes());
            VnetHeader::GSO_UDP_L4
        }
    };
    // Whoever completes the checksum adds the data to the sum of the pseudo-header, which is left in its place.
    let sum = !headers.pseudo_sum(packet).add_u32(transport_len as u32).finish();
    write(packet, headers.checksum_at(), &sum.to_be_bytes());
    VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type,
        hdr_len: headers.len as u16,
        gso_size: size as u16,
        csum_start: headers.ip_len as u16,
        csum_offset: headers.transport.checksum_at() as u16,
    }
}
