//! What the stack looks at in packets itself: whom they are for, and the checksums that smoltcp leaves alone.

use std::net::{IpAddr, SocketAddr};

use icx_proto::offload::VnetHeader;
use icx_proto::wire::checksum::Sum;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

/// Where the checksum and the acknowledgement number are in a TCP header (RFC 9293 section 3.1).
const TCP_CHECKSUM: usize = 16;
const TCP_ACKNOWLEDGEMENT: usize = 8;

const IPV6_HEADER_BYTES: usize = 40;

/// Both ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// What a packet is, as far as it decides about its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    Tcp(Segment),
    /// Everything else that is IP.
    Other,
    /// No IP packet, a fragment of TCP, or TCP with headers or a checksum that are wrong.
    Bad,
}

/// A TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) flow: Flow,
    /// SYN without ACK: the first of a connection.
    pub(crate) opens: bool,
    pub(crate) resets: bool,
    /// If it does nothing else.
    pub(crate) acknowledges: Option<Acknowledgement>,
}

/// What a segment says has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledgement {
    pub(crate) number: u32,
    /// How far behind `number` lies the end of the last bytes that have arrived out of order (RFC 2018); 0: none have.
    pub(crate) beyond: u32,
}

/// Reads a packet. `verified`: its transport checksum is known to be right.
pub(crate) fn read(packet: &[u8], verified: bool) -> Arrived {
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let Ok(ip) = Ipv4Packet::new_checked(packet) else { return Arrived::Bad };
            if ip.next_header() != IpProtocol::Tcp {
                return Arrived::Other;
            }
            if ip.more_frags() || ip.frag_offset() != 0 {
                return Arrived::Bad;
            }
            segment(ip.src_addr().into(), ip.dst_addr().into(), ip.payload(), verified)
        }
        Some(6) => {
            let Ok(ip) = Ipv6Packet::new_checked(packet) else { return Arrived::Bad };
            match ip.next_header() {
                IpProtocol::Tcp => segment(ip.src_addr().into(), ip.dst_addr().into(), ip.payload(), verified),
                _ => Arrived::Other,
            }
        }
        _ => Arrived::Bad,
    }
}

fn segment(src: IpAddr, dst: IpAddr, bytes: &[u8], verified: bool) -> Arrived {
    let Ok(tcp) = TcpPacket::new_checked(bytes) else { return Arrived::Bad };
    let sum = || Sum::new().add_pseudo_header(src, dst, IpProtocol::Tcp.into(), bytes.len() as u32).add_bytes(bytes);
    if !verified && sum().finish() != 0 {
        return Arrived::Bad;
    }
    let (local, remote) = (SocketAddr::new(dst, tcp.dst_port()), SocketAddr::new(src, tcp.src_port()));
    Arrived::Tcp(Segment {
        flow: Flow { local, remote },
        opens: tcp.syn() && !tcp.ack() && !tcp.rst(),
        resets: tcp.rst(),
        acknowledges: acknowledgement(&tcp),
    })
}

fn acknowledgement(tcp: &TcpPacket<&[u8]>) -> Option<Acknowledgement> {
    if !tcp.ack() || tcp.syn() || tcp.fin() || tcp.rst() || !tcp.payload().is_empty() {
        return None;
    }
    let number = tcp.ack_number().0 as u32;
    let ranges = tcp.selective_ack_ranges().unwrap_or_default();
    let beyond = |(_, end): (u32, u32)| u32::try_from(end.wrapping_sub(number) as i32).ok();
    let beyond = ranges.into_iter().flatten().filter_map(beyond).max().unwrap_or(0);
    Some(Acknowledgement { number, beyond })
}

/// Has a TCP packet acknowledge up to `number`. Its checksum is wrong then.
pub(crate) fn acknowledge(packet: &mut [u8], number: u32) {
    let Some((_, ip_len)) = ip_header(packet) else { return };
    let field = packet.get_mut(ip_len + TCP_ACKNOWLEDGEMENT..).and_then(|rest| rest.first_chunk_mut());
    if let Some(field) = field {
        *field = number.to_be_bytes();
    }
}

/// Whether a packet is IPv6, and how long its header is.
fn ip_header(packet: &[u8]) -> Option<(bool, usize)> {
    let &first = packet.first()?;
    Some(if first >> 4 == 6 { (true, IPV6_HEADER_BYTES) } else { (false, usize::from(first & 0x0f) * 4) })
}

/// Completes the checksum of a packet that smoltcp made, if it is TCP; with `cut`, the payload bytes of each segment, only as far as
/// cutting wants it. Returns the header that goes before it.
pub(crate) fn complete(packet: &mut [u8], cut: Option<u16>) -> VnetHeader {
    let Some((v6, ip_len)) = ip_header(packet) else { return VnetHeader::default() };
    let protocol = packet.get(if v6 { 6 } else { 9 });
    if protocol != Some(&IpProtocol::Tcp.into()) {
        return VnetHeader::default();
    }
    let (Some((src, dst)), Some(len)) = (addresses(packet, v6), packet.len().checked_sub(ip_len)) else {
        return VnetHeader::default();
    };
    let pseudo = Sum::new().add_pseudo_header(src, dst, IpProtocol::Tcp.into(), len as u32);
    let mut set = |checksum: u16| {
        let field = packet.get_mut(ip_len + TCP_CHECKSUM..).and_then(|rest| rest.first_chunk_mut::<2>());
        if let Some(field) = field {
            *field = checksum.to_be_bytes();
        }
    };
    let Some(size) = cut else {
        set(0);
        let checksum = pseudo.add_bytes(&packet[ip_len..]).finish();
        packet[ip_len + TCP_CHECKSUM..][..2].copy_from_slice(&checksum.to_be_bytes());
        return VnetHeader::default();
    };
    // Whoever cuts adds the data to the sum of the pseudo-header, which is left in its place.
    set(!pseudo.finish());
    let tcp_len = packet.get(ip_len + 12).map_or(0, |offset| u16::from(offset >> 4) * 4);
    VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: if v6 { VnetHeader::GSO_TCPV6 } else { VnetHeader::GSO_TCPV4 },
        hdr_len: ip_len as u16 + tcp_len,
        gso_size: size,
        csum_start: ip_len as u16,
        csum_offset: TCP_CHECKSUM as u16,
    }
}

/// Source and destination of a packet. `None`: it is no IP.
pub(crate) fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => addresses(packet, false),
        6 => addresses(packet, true),
        _ => None,
    }
}

/// Whether a packet can be from such an address, and an answer be sent to it (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5).
pub(crate) fn is_host(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(address) => address.octets()[0] == 0 || address.is_broadcast(),
        IpAddr::V6(_) => false,
    };
    !(special || address.is_unspecified() || address.is_multicast() || address.is_loopback())
}

fn addresses(packet: &[u8], v6: bool) -> Option<(IpAddr, IpAddr)> {
    if v6 {
        let (src, dst) = packet.get(8..40)?.split_first_chunk::<16>()?;
        Some((IpAddr::from(*src), IpAddr::from(*dst.first_chunk::<16>()?)))
    } else {
        let (src, dst) = packet.get(12..20)?.split_first_chunk::<4>()?;
        Some((IpAddr::from(*src), IpAddr::from(*dst.first_chunk::<4>()?)))
    }
}
