//! The numbers and addresses of RFC 1928.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::target::{Host, Target};

pub(super) const VERSION: u8 = 5;

/// Section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Method {
    None = 0,
    UserPassword = 2,
    NoneAcceptable = 0xff,
}

/// Section 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Connect,
    Associate,
}

impl Command {
    /// Of those that are offered: BIND (2) is not.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Command::Connect),
            3 => Some(Command::Associate),
            _ => None,
        }
    }
}

/// Section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reply {
    Succeeded = 0,
    GeneralFailure = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    ConnectionRefused = 5,
    CommandNotSupported = 7,
    AddressTypeNotSupported = 8,
}

// Section 5.
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// The longest address: its type, a name and its length, a port.
pub(super) const MAX_ADDRESS: usize = 2 + 255 + 2;

/// The bytes of an address that begins with `kind` and `next`, both and the port included. None: there is no such kind.
pub(super) fn address_len(kind: u8, next: u8) -> Option<usize> {
    let host = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => 1 + usize::from(next),
        _ => return None,
    };
    Some(1 + host + 2)
}

/// Reads an address from the start of `bytes`, and its length. None: there is none.
pub(in crate::proxy) fn read_address(bytes: &[u8]) -> Option<(Target, usize)> {
    let &[kind, next, ..] = bytes else { return None };
    let len = address_len(kind, next)?;
    let (host, port) = bytes.get(1..len)?.split_last_chunk()?;
    let host = match kind {
        IPV4 => Host::Address(Ipv4Addr::from(<[u8; 4]>::try_from(host).ok()?).into()),
        IPV6 => Host::Address(Ipv6Addr::from(<[u8; 16]>::try_from(host).ok()?).into()),
        _ => Host::name(std::str::from_utf8(host.get(1..)?).ok()?).ok()?,
    };
    Some((Target { host, port: u16::from_be_bytes(*port) }, len))
}

/// Appends an address.
pub(in crate::proxy) fn write_address(address: SocketAddr, to: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => {
            to.push(IPV4);
            to.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            to.push(IPV6);
            to.extend(ip.octets());
        }
    }
    to.extend(address.port().to_be_bytes());
}

/// What stands before the payload of a datagram (section 7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct DatagramHeader {
    /// Not 0: it is a fragment.
    pub(in crate::proxy) fragment: u8,
    pub(in crate::proxy) target: Target,
}

/// The longest header that [`write_header`] makes.
pub(super) const MAX_HEADER: usize = 3 + 1 + 16 + 2;

/// A datagram's header and payload. None: it has no header.
pub(in crate::proxy) fn read_datagram(bytes: &[u8]) -> Option<(DatagramHeader, &[u8])> {
    let (&[_, _, fragment], rest) = bytes.split_first_chunk()?;
    let (target, len) = read_address(rest)?;
    Some((DatagramHeader { fragment, target }, &rest[len..]))
}

/// The header of a datagram from `source`.
pub(super) fn write_header(source: SocketAddr, to: &mut Vec<u8>) {
    to.extend([0, 0, 0]);
    write_address(source, to);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were_written() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut bytes = Vec::new();
            write_address(address, &mut bytes);
            let len = bytes.len();
            assert_eq!(address_len(bytes[0], bytes[1]), Some(len));
            bytes.extend(b"what follows");
            assert_eq!(read_address(&bytes), Some((address.into(), len)));
            for short in 0..len {
                assert_eq!(read_address(&bytes[..short]), None, "{text} cut to {short}");
            }
        }
    }

    #[test]
    fn names_are_read_and_checked() {
        let name = |name: &[u8]| {
            let mut bytes = vec![NAME, name.len() as u8];
            bytes.extend(name);
            bytes.extend(443u16.to_be_bytes());
            read_address(&bytes).map(|(target, len)| (target.to_string(), len))
        };
        assert_eq!(name(b"example.org"), Some(("example.org:443".to_owned(), 15)));
        assert_eq!(name(b"192.0.2.1"), Some(("192.0.2.1:443".to_owned(), 13)));
        for bad in [&b""[..], b"a b", b"a\0", b"\xff", b"127.1", &[b'a'; 255]] {
            assert_eq!(name(bad), None, "{bad:?}");
        }
        assert_eq!(address_len(2, 0), None);
        assert_eq!(address_len(NAME, 255), Some(MAX_ADDRESS));
    }

    #[test]
    fn datagrams_have_a_header() {
        let source: SocketAddr = "[2001:db8::1]:53".parse().unwrap();
        let mut bytes = Vec::new();
        write_header(source, &mut bytes);
        assert_eq!(bytes.len(), MAX_HEADER);
        bytes.extend(b"payload");
        let header = DatagramHeader { fragment: 0, target: source.into() };
        assert_eq!(read_datagram(&bytes), Some((header.clone(), &b"payload"[..])));
        bytes[2] = 0x81;
        assert_eq!(read_datagram(&bytes), Some((DatagramHeader { fragment: 0x81, ..header }, &b"payload"[..])));
        assert_eq!(read_datagram(&bytes[..MAX_HEADER - 1]), None);
    }
}
