//! UDP datagrams out of a capture file (libpcap's classic format, as `tcpdump -w` writes it, of an Ethernet interface).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const MAGIC_MICROS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOS: u32 = 0xa1b2_3c4d;
const FILE_HEADER_LEN: usize = 24;
const RECORD_HEADER_LEN: usize = 16;
const LINK_ETHERNET: u32 = 1;

const ETHERNET_LEN: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const UDP_HEADER_LEN: usize = 8;

/// A datagram as it was seen on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub payload: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    #[error("this is no capture file in libpcap's classic format of this machine's byte order")]
    NotCapture,
    #[error("the capture is of link type {0}; only Ethernet (1) is understood")]
    LinkType(u32),
}

/// The whole UDP datagrams in a capture file; anything else in it is left out, and so is a last record that is cut short.
pub fn datagrams(file: &[u8]) -> Result<Vec<Datagram>, CaptureError> {
    let header: &[u8; FILE_HEADER_LEN] = file.first_chunk().ok_or(CaptureError::NotCapture)?;
    if ![Some(MAGIC_MICROS), Some(MAGIC_NANOS)].contains(&word(header, 0)) {
        return Err(CaptureError::NotCapture);
    }
    match word(header, 20) {
        Some(LINK_ETHERNET) => {}
        other => return Err(CaptureError::LinkType(other.unwrap_or(0))),
    }
    let mut datagrams = Vec::new();
    let mut rest = &file[FILE_HEADER_LEN..];
    while let Some(length) = word(rest, 8) {
        let end = RECORD_HEADER_LEN + length as usize;
        let Some(frame) = rest.get(RECORD_HEADER_LEN..end) else { break };
        datagrams.extend(parse_frame(frame));
        rest = &rest[end..];
    }
    Ok(datagrams)
}

/// A word of the file's own headers.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn parse_frame(frame: &[u8]) -> Option<Datagram> {
    let ethertype = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
    let packet = frame.get(ETHERNET_LEN..)?;
    let (source, destination, udp) = match ethertype {
        ETHERTYPE_IPV4 => {
            let header_len = usize::from(*packet.first()? & 0x0f) * 4;
            let total_len = usize::from(u16::from_be_bytes(*packet.get(2..)?.first_chunk()?));
            // Flags and offset: a fragment is no whole datagram.
            let fragment = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?) & 0x3fff;
            if *packet.get(9)? != UDP || fragment != 0 {
                return None;
            }
            let address = |at| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into());
            (address(12)?, address(16)?, packet.get(header_len..total_len)?)
        }
        ETHERTYPE_IPV6 => {
            let payload_len = usize::from(u16::from_be_bytes(*packet.get(4..)?.first_chunk()?));
            if *packet.get(6)? != UDP {
                return None;
            }
            let address = |at| Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into());
            (address(8)?, address(24)?, packet.get(40..)?.get(..payload_len)?)
        }
        _ => return None,
    };
    let socket = |ip: IpAddr, at| Some(SocketAddr::new(ip, u16::from_be_bytes(*udp.get(at..)?.first_chunk()?)));
    let (source, destination) = (socket(source, 0)?, socket(destination, 2)?);
    let length = usize::from(u16::from_be_bytes(*udp.get(4..)?.first_chunk()?));
    let payload = udp.get(UDP_HEADER_LEN..length)?.to_vec();
    Some(Datagram { source, destination, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(link_type: u32, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file: Vec<u8> = [MAGIC_MICROS, 0x0004_0002, 0, 0, 65_535, link_type].map(u32::to_ne_bytes).concat();
        for frame in frames {
            file.extend([0, 0, frame.len() as u32, frame.len() as u32].map(u32::to_ne_bytes).concat());
            file.extend(frame);
        }
        file
    }

    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut udp = [4000u16, 6081, 8 + payload.len() as u16, 0].map(u16::to_be_bytes).concat();
        udp.extend(payload);
        udp
    }

    fn ipv4_frame(payload: &[u8]) -> Vec<u8> {
        let udp = udp(payload);
        let mut frame = vec![0; 12];
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        frame.extend([0x45, 0, 0, 20 + udp.len() as u8, 0, 0, 0x40, 0, 64, UDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        frame.extend(udp);
        frame
    }

    fn ipv6_frame(payload: &[u8]) -> Vec<u8> {
        let udp = udp(payload);
        let mut frame = vec![0; 12];
        frame.extend(ETHERTYPE_IPV6.to_be_bytes());
        frame.extend([0x60, 0, 0, 0, 0, udp.len() as u8, UDP, 64]);
        frame.extend([[0xfd; 16], [0xfe; 16]].concat());
        frame.extend(udp);
        frame
    }

    #[test]
    fn datagrams_of_both_families_come_out_with_their_addresses() {
        let mut padded = ipv4_frame(b"four");
        padded.extend([0; 10]);
        let seen = datagrams(&file(LINK_ETHERNET, &[padded, ipv6_frame(b"six"), ipv4_frame(b"")])).unwrap();
        let parts: Vec<_> =
            seen.iter().map(|d| (d.source.to_string(), d.destination.to_string(), d.payload.as_slice())).collect();
        assert_eq!(parts[0], ("192.0.2.1:4000".to_owned(), "192.0.2.2:6081".to_owned(), &b"four"[..]));
        assert_eq!((parts[1].2, parts[2].2, parts.len()), (&b"six"[..], &b""[..], 3));
    }

    #[test]
    fn other_packets_and_records_cut_short_are_left_out() {
        let mut fragment = ipv4_frame(b"part");
        fragment[20] = 0x20;
        let mut tcp = ipv4_frame(b"tcp");
        tcp[23] = 6;
        let whole = file(LINK_ETHERNET, &[fragment, tcp, vec![0; 14], vec![1], ipv4_frame(b"last")]);
        assert_eq!(datagrams(&whole).unwrap().len(), 1);
        let all = whole.len();
        for length in 0..all {
            if let Ok(datagrams) = datagrams(&whole[..length]) {
                assert!(datagrams.is_empty(), "cut to {length} of {all}");
            }
        }
    }

    #[test]
    fn files_of_another_kind_are_refused() {
        assert_eq!(datagrams(b"PK"), Err(CaptureError::NotCapture));
        assert_eq!(datagrams(&[0; 24]), Err(CaptureError::NotCapture));
        assert_eq!(datagrams(&file(113, &[])), Err(CaptureError::LinkType(113)));
    }
}
