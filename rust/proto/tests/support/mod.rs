//! Engines and packets for the tests of the engine.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses its own part")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use icx_proto::counters::{COUNTER_NAMES, CounterSnapshot};
use icx_proto::engine::{LocalEndpoint, OuterTrafficClass, SaPair, TxVerdict};
use icx_proto::{
    AllowedRoute, Engine, EngineConfig, Instant, MacAddr, Mode, NetworkConfig, SaKey, Spi, TxKeyHistory, Underlay, Vni,
};

pub const NOW: Instant = Instant::from_nanos(1_000_000_000_000);
pub const GENEVE: usize = 32;
pub const TAG: usize = 16;

/// The host and gateway addresses of every L2 engine here.
pub const L2: Mode = Mode::L2 { host_mac: MacAddr([2, 0, 0, 0, 0, 1]), gateway_mac: MacAddr([2, 0, 0, 0, 0, 2]) };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

pub fn ip(side: Side) -> IpAddr {
    match side {
        Side::A => IpAddr::from([192, 0, 2, 1]),
        Side::B => IpAddr::from([198, 51, 100, 7]),
    }
}

pub fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

pub fn spi(number: u32) -> Spi {
    Spi::new(number).unwrap()
}

pub fn key(byte: u8) -> SaKey {
    SaKey::from_slice(&[byte; 16]).unwrap()
}

pub fn history() -> Arc<TxKeyHistory> {
    Arc::new(TxKeyHistory::new(&[42; 32]))
}

pub fn config(mode: Mode, underlay: Underlay) -> EngineConfig {
    EngineConfig {
        mode,
        underlay,
        peer_filter: true,
        source_port_hashing: None,
        outer_traffic_class: OuterTrafficClass::default(),
        keepalive: None,
        inner_mtu: None,
        tx_key_history: history(),
    }
}

pub fn raw(side: Side) -> Underlay {
    Underlay::Raw {
        local: vec![LocalEndpoint { addr: SocketAddr::new(ip(side), 6081), mac: MacAddr([2; 6]) }],
        outer_udp_checksum: true,
        dont_fragment: true,
    }
}

/// The network of `side` with this VNI: everything inside 10.VNI.0.0/16 is at A, everything inside 10.VNI+100 at B.
pub fn network(side: Side, number: u32) -> NetworkConfig {
    let at_a = format!("10.{number}.0.0/16").parse().unwrap();
    let at_b = format!("10.{}.0.0/16", number + 100).parse().unwrap();
    let (at_a6, at_b6) =
        (format!("fd00:{number}::/32").parse().unwrap(), format!("fd01:{number}::/32").parse().unwrap());
    let (src, dst, src6, dst6, peer) = match side {
        Side::A => (at_a, at_b, at_a6, at_b6, Side::B),
        Side::B => (at_b, at_a, at_b6, at_a6, Side::A),
    };
    NetworkConfig {
        vni: vni(number),
        peer: SocketAddr::new(ip(peer), 6081),
        peer_mac: MacAddr([4; 6]),
        routes: vec![AllowedRoute { src, dst }, AllowedRoute { src: src6, dst: dst6 }],
        rx_rate_limit: None,
    }
}

/// The keys of generation `n` as `side` sees them: SPIs and key bytes differ in every generation and direction.
pub fn sa(side: Side, n: u32, expires_at: Instant) -> SaPair {
    let (to_a, to_b) = (0x100 + n, 0x4000_0100 + n);
    let bytes = |direction: u8| {
        let mut bytes = [direction; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        SaKey::from_slice(&bytes).unwrap()
    };
    match side {
        Side::A => SaPair { rx_spi: spi(to_a), tx_spi: spi(to_b), rx_key: bytes(1), tx_key: bytes(2), expires_at },
        Side::B => SaPair { rx_spi: spi(to_b), tx_spi: spi(to_a), rx_key: bytes(2), tx_key: bytes(1), expires_at },
    }
}

/// Two engines with VNI 1 and its first keys.
pub fn pair(mode: Mode, raw_underlay: bool) -> (Engine, Engine) {
    let make = |side| {
        let engine = Engine::new(config(mode, if raw_underlay { raw(side) } else { Underlay::Udp }));
        engine.add_network(network(side, 1)).unwrap();
        engine.install(NOW, vni(1), sa(side, 1, Instant::FAR_FUTURE)).unwrap();
        engine
    };
    (make(Side::A), make(Side::B))
}

/// A UDP packet of VNI 1 from A to B, with `body` at its end.
pub fn ipv4(body: &[u8]) -> Vec<u8> {
    ipv4_of(1, body)
}

pub fn ipv4_of(number: u8, body: &[u8]) -> Vec<u8> {
    let len = 28 + body.len() as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, number, 0, 1, 10, number + 100, 0, 1];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend_from_slice(&[0x30, 0x39, 0x00, 0x35]);
    packet.extend_from_slice(&(len - 20).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(body);
    packet
}

pub fn ipv6(body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 253, 64];
    packet[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
    for first in [0xfd00_u16, 0xfd01] {
        packet.extend_from_slice(&first.to_be_bytes());
        packet.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
    packet.extend_from_slice(body);
    packet
}

/// The same packet as a virtual-side frame of the mode.
pub fn frame(mode: Mode, packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    match mode {
        Mode::L3 => packet.to_vec(),
        Mode::L2 { host_mac, gateway_mac } => [&gateway_mac.0[..], &host_mac.0, &ethertype, packet].concat(),
    }
}

/// Seals one frame that must be sealed, and gives back the bytes that go out.
pub fn seal(engine: &Engine, now: Instant, frame: &[u8]) -> Vec<u8> {
    let mut out = vec![0; frame.len() + 256];
    match engine.virt_to_phy(now, frame, &mut out) {
        TxVerdict::Send { range, .. } => out[range].to_vec(),
        verdict => panic!("not sealed: {verdict:?}"),
    }
}

/// All counters of an engine but the times, summed over its networks.
pub fn totals(engine: &Engine) -> CounterSnapshot {
    let mut sum = engine.counters();
    for network in engine.networks() {
        let counters = engine.network_counters(network.vni).unwrap();
        for (sum, value) in sum.values.iter_mut().zip(counters.values) {
            *sum += value;
        }
    }
    sum.values[25..28].fill(0);
    sum
}

/// What has moved between two totals.
pub fn moved(before: &CounterSnapshot, after: &CounterSnapshot) -> Vec<(&'static str, u64)> {
    let changes = COUNTER_NAMES.iter().zip(before.values.iter().zip(after.values));
    changes.filter(|(_, (before, after))| **before != *after).map(|(name, (b, a))| (*name, a - b)).collect()
}
