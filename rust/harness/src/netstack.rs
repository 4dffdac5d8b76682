//! The stack in the process, and what its proxies read: what came from a peer or a client that keeps to no rule.

use std::net::{IpAddr, SocketAddr};

use icx_io::PacketDevice;
use icx_netstack::proxy::{Credentials, Host, parsers};
use icx_netstack::{Stack, StackOptions};
use icx_proto::wire::checksum::{Sum, checksum};
use icx_proto::wire::inner::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, Inner};

const OWN: [&str; 2] = ["10.9.0.1", "fd00::1"];
const MTU: u32 = 1500;

/// A request to a proxy over HTTP. Where its head ends does not hang on the pieces that it comes in, and where it goes can be written
/// down and read again.
pub fn http_connect(bytes: &[u8]) {
    let whole = parsers::http_connect(bytes);
    let end = whole.as_ref().map(|(len, _)| *len);
    for first in [1, bytes.len() / 2, bytes.len().saturating_sub(1)] {
        assert_eq!(parsers::http_head_of_pieces(bytes, first.min(bytes.len())), end);
    }
    match whole {
        Some((len, Ok(target))) => {
            assert!(bytes[..len].ends_with(b"\n"));
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        Some((_, Err(response))) => {
            // Nothing of the request can end the head of the answer early.
            let (head, body) = response.split_once("\r\n\r\n").expect("an empty line");
            assert!(head.starts_with("HTTP/1.1 4"));
            assert!(head.contains(&format!("Content-Length: {}", body.len())));
        }
        None => {}
    }
}

/// Addresses and datagrams of SOCKS.
pub fn socks_address(bytes: &[u8]) {
    if let Some((target, len)) = parsers::socks_address(bytes) {
        match &target.host {
            // A name may be an address in words.
            Host::Address(address) if bytes[0] != 3 => {
                assert_eq!(parsers::write_socks_address(SocketAddr::new(*address, target.port)), bytes[..len]);
            }
            Host::Address(_) => {}
            Host::Name(name) => assert_eq!(Host::name(name).as_ref(), Ok(&target.host)),
        }
    }
    if let Some((fragment, target, payload)) = parsers::socks_datagram(bytes) {
        assert_eq!(fragment, bytes[2]);
        assert_eq!(parsers::socks_address(&bytes[3..]), Some((target, bytes.len() - 3 - payload.len())));
    }
}

/// A file of users of a proxy.
pub fn proxy_users(text: &[u8]) {
    let Ok(text) = core::str::from_utf8(text) else { return };
    match Credentials::parse(text) {
        // Nothing of it is shown but how many there are.
        Ok(users) => {
            let shown = format!("{users:?}");
            let count = shown.strip_prefix("Credentials(").and_then(|rest| rest.strip_suffix(" users)"));
            assert!(count.is_some_and(|count| count.bytes().all(|byte| byte.is_ascii_digit())), "{shown}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Packets for a stack that listens: lengths of two bytes, and as many bytes. Each is tried as it is, and with right lengths and checksums.
pub fn stack_packets(mut bytes: &[u8]) {
    let addresses = vec![(own(0), 24), (own(1), 64)];
    let options = StackOptions {
        receive_buffer: 4096,
        send_buffer: 4096,
        max_connections: 16,
        ..StackOptions::new(addresses, MTU)
    };
    let (stack, device) = Stack::open(options).expect("good options");
    let _listener = stack.listen(80).expect("a free port");
    let _datagrams = stack.bind_datagram(53).expect("a free port");
    let mut out = vec![0; 70_000];
    let mut answers = |device: &dyn PacketDevice| {
        for _ in 0..64 {
            let Some(len) = device.next_packet(0, &mut out).expect("no device is lost") else { break };
            check_answer(&out[..len]);
        }
    };
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let (packet, rest) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        bytes = rest;
        device.deliver_packet(0, packet).expect("no device is lost");
        answers(&device);
        if let Some(mended) = mended(packet) {
            device.deliver_packet(0, &mended).expect("no device is lost");
            answers(&device);
        }
    }
}

fn own(at: usize) -> IpAddr {
    OWN[at].parse().expect("an address")
}

/// The packet with right lengths and checksums, to the stack.
fn mended(packet: &[u8]) -> Option<Vec<u8>> {
    let mut packet = packet.to_vec();
    let total = u16::try_from(packet.len()).ok()?;
    let (to, from, protocol) = match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_HEADER_LEN => {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            packet[10..12].fill(0);
            let IpAddr::V4(address) = own(0) else { return None };
            packet[16..20].copy_from_slice(&address.octets());
            let sum = checksum(&packet[..IPV4_HEADER_LEN]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            (own(0), IPV4_HEADER_LEN, packet[9])
        }
        6 if packet.len() >= IPV6_HEADER_LEN => {
            packet[4..6].copy_from_slice(&(total - IPV6_HEADER_LEN as u16).to_be_bytes());
            let IpAddr::V6(address) = own(1) else { return None };
            packet[24..40].copy_from_slice(&address.octets());
            (own(1), IPV6_HEADER_LEN, packet[6])
        }
        _ => return None,
    };
    let source = Inner::parse(&packet).ok()?.src();
    let at = from
        + match protocol {
            6 => 16,
            17 => 6,
            1 | 58 => 2,
            _ => return Some(packet),
        };
    packet.get_mut(at..at + 2)?.fill(0);
    let body = &packet[from..];
    let pseudo = match protocol {
        1 => Sum::new(),
        _ => Sum::new().add_pseudo_header(source, to, protocol, body.len() as u32),
    };
    let sum = pseudo.add_bytes(body).finish();
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Some(packet)
}

/// What the stack sends is a packet of its own that is no larger than it may be.
fn check_answer(packet: &[u8]) {
    assert!(packet.len() <= MTU as usize, "{} bytes", packet.len());
    let inner = Inner::parse(packet).expect("a packet");
    assert!([own(0), own(1)].contains(&inner.src()), "{}", inner.src());
    if packet[0] >> 4 == 4 {
        assert_eq!(checksum(&packet[..IPV4_HEADER_LEN]), 0);
    }
}
