//! Packets from a peer that keeps to no rule: nothing panics, everything stays bounded, and what goes out is well-formed.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use icx_proto::Instant;
use icx_proto::wire::checksum::{Sum, checksum};
use smoltcp::socket::udp;

use super::super::wire::{self, Arrived};
use super::super::{BACKLOG, Core, Id};
use crate::options::StackOptions;

const OWN: [&str; 2] = ["10.9.0.1", "fd00::1"];
const CASES: u64 = 300;
const STEPS: usize = 200;

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// The addresses that have a meaning of their own, and some that have not.
fn address(random: &mut Random, v6: bool) -> IpAddr {
    if v6 {
        let some = ["::", "::1", "fd00::1", "fd00::2", "fe80::1", "ff02::1", "ff02::1:ff00:1", "2001:db8::7"];
        random.one(&some).parse::<Ipv6Addr>().unwrap().into()
    } else {
        let some = [
            "0.0.0.0",
            "0.1.2.3",
            "10.9.0.0",
            "10.9.0.1",
            "10.9.0.2",
            "10.9.0.255",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.7",
        ];
        random.one(&some).parse::<Ipv4Addr>().unwrap().into()
    }
}

/// A packet with headers that make sense more often than not, and checksums that are right.
fn packet(random: &mut Random, ports: &[u16], sequences: &[u32]) -> Vec<u8> {
    let v6 = random.below(3) == 0;
    let (src, dst) = (address(random, v6), address(random, v6));
    let protocol = random.one(&[6u8, 6, 6, 6, 17, 17, if v6 { 58 } else { 1 }, 0, 2, 43, 44, 60]);
    let payload_len = random.one(&[0usize, 0, 1, 7, 100, 1300]);
    let payload = random.bytes(payload_len);
    let mut body = match protocol {
        6 => {
            let options = 4 * random.one(&[0usize, 0, 0, 1, 2, 10]);
            let mut tcp = vec![0; 20];
            tcp[..2].copy_from_slice(&random.one(ports).to_be_bytes());
            tcp[2..4].copy_from_slice(&random.one(ports).to_be_bytes());
            let near = random.one(sequences).wrapping_add(random.one(&[0, 0, 1, 100, u32::MAX, 1 << 31]));
            tcp[4..8].copy_from_slice(&near.to_be_bytes());
            let near = random.one(sequences).wrapping_add(random.one(&[0, 0, 1, 100, u32::MAX, 1 << 31]));
            tcp[8..12].copy_from_slice(&near.to_be_bytes());
            tcp[12] = ((5 + options / 4) << 4) as u8;
            tcp[13] = random.one(&[2, 2, 16, 16, 18, 24, 17, 4, 20, 0, 63, 255]);
            tcp[14..16].copy_from_slice(&(random.next() as u16).to_be_bytes());
            tcp.extend(random.bytes(options));
            tcp
        }
        17 => {
            let mut udp = vec![0; 8];
            udp[..2].copy_from_slice(&random.one(ports).to_be_bytes());
            udp[2..4].copy_from_slice(&random.one(ports).to_be_bytes());
            let len = random.one(&[8 + payload.len(), 8 + payload.len(), 0, 7, 65_535]) as u16;
            udp[4..6].copy_from_slice(&len.to_be_bytes());
            udp
        }
        1 | 58 => {
            let mut icmp =
                vec![random.one(&[8u8, 0, 3, 11, 12, 128, 129, 1, 2, 133, 134, 135, 136, 143]), random.below(4) as u8];
            icmp.extend([0; 6]);
            icmp
        }
        _ => random.bytes(8),
    };
    body.extend(payload);
    let at = match protocol {
        6 => Some(16),
        17 => Some(6),
        1 | 58 => Some(2),
        _ => None,
    };
    if let Some(at) = at {
        let sum = if protocol == 1 {
            Sum::new()
        } else {
            Sum::new().add_pseudo_header(src, dst, protocol, body.len() as u32)
        };
        let sum = sum.add_bytes(&body).finish();
        body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let mut packet = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            packet.extend([0x45, 0]);
            packet.extend(((20 + body.len()) as u16).to_be_bytes());
            packet.extend((random.below(4) as u16).to_be_bytes());
            // Fragments, too.
            packet.extend(random.one(&[0x4000u16, 0x4000, 0, 0x2000, 1, 0x2001, 0x1fff]).to_be_bytes());
            packet.extend([random.one(&[64, 1, 0]), protocol, 0, 0]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((body.len() as u16).to_be_bytes());
            packet.extend([protocol, random.one(&[64, 255, 0])]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
        }
        _ => {}
    }
    packet.extend(body);
    match random.below(12) {
        0 => packet.truncate(random.below(packet.len() + 1)),
        1 => {
            let at = random.below(packet.len());
            packet[at] ^= 1 << random.below(8);
        }
        2 => packet = random.bytes(payload_len),
        _ => {}
    }
    packet
}

/// What came out is a packet from one of the own addresses, of the length that it says, with a right checksum.
fn check(packet: &[u8], mtu: usize, ports: &mut [u16], sequences: &mut [u32]) {
    assert!(packet.len() <= mtu, "{} bytes", packet.len());
    let (source, len) = match packet[0] >> 4 {
        4 => (
            IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).unwrap()),
            u16::from_be_bytes([packet[2], packet[3]]).into(),
        ),
        _ => (
            IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).unwrap()),
            40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        ),
    };
    assert_eq!(len, packet.len());
    let own = OWN.map(|own| own.parse::<IpAddr>().unwrap());
    assert!(own.contains(&source), "{source}");
    match wire::read(packet, false) {
        Arrived::Tcp(segment) => {
            // So that what comes next may be an answer.
            let at = if packet[0] >> 4 == 4 { 20 } else { 40 };
            sequences[1] = u32::from_be_bytes(packet[at + 4..at + 8].try_into().unwrap());
            sequences[2] = u32::from_be_bytes(packet[at + 8..at + 12].try_into().unwrap());
            ports[0] = segment.flow.remote.port();
        }
        Arrived::Other => {}
        Arrived::Bad => panic!("a packet that nobody takes: {packet:?}"),
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let mut now = Instant::from_nanos(1_000_000_000);
    let mtu = random.one(&[1280u32, 1392, 9000]);
    let addresses = vec![(OWN[0].parse().unwrap(), 24), (OWN[1].parse().unwrap(), 64)];
    let small = StackOptions {
        receive_buffer: 4096,
        send_buffer: 4096,
        max_connections: 64,
        ..StackOptions::new(addresses, mtu)
    };
    let mut core = Core::new(small, now);
    core.listen(80).unwrap();
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(53).unwrap();
    core.add_datagrams(socket);
    let (mut held, mut out): (Vec<Id>, Vec<u8>) = (Vec::new(), vec![0; 70_000]);
    let (mut ports, mut sequences) = (vec![9, 80, 53, 0, 49_152], vec![0, 1, 2, random.next() as u32]);
    for _ in 0..STEPS {
        match random.below(12) {
            0 => {
                let remote = SocketAddr::new("10.9.0.2".parse().unwrap(), random.one(&ports));
                if let Ok((id, flow)) = core.connect(remote) {
                    ports[4] = flow.local.port();
                    held.push(id);
                }
            }
            1 => held.extend(core.accept(80, std::task::Waker::noop()).unwrap().map(|(id, _)| id)),
            2 if !held.is_empty() => {
                let id = random.one(&held);
                if let Some((socket, _)) = core.socket(id) {
                    let _ = socket.send_slice(&[7; 5000]);
                    let _ = socket.recv_slice(&mut [0; 5000]);
                }
                core.stir(id);
            }
            3 if !held.is_empty() => {
                let id = held.swap_remove(random.below(held.len()));
                match random.below(3) {
                    0 => core.abort(id),
                    1 => core.socket(id).into_iter().for_each(|(socket, _)| socket.close()),
                    _ => {}
                }
                core.release(now, id);
            }
            4 => now = now.saturating_add(Duration::from_millis(1 << random.below(16))),
            _ => {
                let packet = packet(&mut random, &ports, &sequences);
                core.take(now, &packet, false);
            }
        }
        for _ in 0..random.below(8) {
            let Some(len) = core.next(now, &mut out) else { break };
            check(&out[..len], mtu as usize, &mut ports, &mut sequences);
        }
        assert!(core.connections.len() <= 64 && core.flows.len() <= core.connections.len());
        assert!(core.listeners[&80].half_open + core.listeners[&80].queue.len() <= BACKLOG);
    }
    held.into_iter().for_each(|id| core.release(now, id));
    core.stop_listening(80);
    // Whatever state they are in, they end.
    for _ in 0..2000 {
        while core.next(now, &mut out).is_some() {}
        now = now.saturating_add(Duration::from_millis(250));
    }
    assert_eq!((core.connections.len(), core.flows.len(), core.ready.len()), (0, 0, 0), "{:?}", core.counters());
}

#[test]
fn no_packet_breaks_the_stack() {
    let given = std::env::var("ICX_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let first = given.unwrap_or_else(|| RandomState::new().hash_one(0));
    for case in 0..if given.is_some() { 1 } else { CASES } {
        let seed = first.wrapping_add(case);
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("ICX_TEST_SEED={seed} repeats it");
            std::panic::resume_unwind(panic);
        }
    }
}
