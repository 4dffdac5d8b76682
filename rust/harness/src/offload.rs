//! Cutting what a device left whole, and merging what was received, through a pair of engines.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use icx_proto::engine::{BatchPacket, OuterTrafficClass, RunBuffer, RunLimits, SaPair};
use icx_proto::offload::{CoalesceOptions, Coalescer, VnetHeader, outgoing};
use icx_proto::wire::checksum::checksum;
use icx_proto::{
    AllowedRoute, Engine, EngineConfig, Instant, MacAddr, Mode, NetworkConfig, SaKey, Spi, TxKeyHistory, Underlay, Vni,
};

const NOW: Instant = Instant::from_nanos(1_000_000_000_000);
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const LIMITS: RunLimits = RunLimits { datagrams: 64, bytes: 65_000 };

/// One end of a tunnel that takes every address.
fn engine(initiator: bool) -> Engine {
    let engine = Engine::new(EngineConfig {
        mode: Mode::L3,
        underlay: Underlay::Udp,
        peer_filter: true,
        source_port_hashing: Some(5),
        outer_traffic_class: OuterTrafficClass::default(),
        keepalive: None,
        inner_mtu: None,
        tx_key_history: Arc::new(TxKeyHistory::new(&[3; 32])),
    });
    let all = |prefix: &str| {
        let prefix = prefix.parse().expect("a prefix");
        AllowedRoute { src: prefix, dst: prefix }
    };
    let vni = Vni::new(1).expect("in range");
    let peer = SocketAddr::new(ADDRESS, 6081);
    let routes = vec![all("0.0.0.0/0"), all("::/0")];
    engine
        .add_network(NetworkConfig { vni, peer, peer_mac: MacAddr::default(), routes, rx_rate_limit: None })
        .expect("the first");
    let spi = |mine: bool| Spi::new(if mine { 1 } else { 2 }).expect("not zero");
    let key = |mine: bool| SaKey::from_slice(&[if mine { 1 } else { 2 }; 16]).expect("16 bytes");
    let sa = SaPair {
        rx_spi: spi(initiator),
        tx_spi: spi(!initiator),
        rx_key: key(initiator),
        tx_key: key(!initiator),
        expires_at: Instant::FAR_FUTURE,
    };
    engine.install(NOW, vni, sa).expect("fresh keys");
    engine
}

/// Seals packets, opens them, and returns what a device behind `coalescer` is given: header, packet, segments.
fn through(mut packets: Vec<BatchPacket<'_>>, merge: bool) -> Vec<(VnetHeader, Vec<u8>, u32)> {
    let (sender, receiver) = (engine(true), engine(false));
    let mut coalescer = Coalescer::new(CoalesceOptions { tcp: merge, udp: merge, vnet: true, bytes: 1 << 17 });
    let mut out = RunBuffer::new(70_000, 16, LIMITS);
    let (mut taken, mut rest) = (Vec::new(), &mut packets[..]);
    let mut take = |coalescer: &mut Coalescer| {
        for packet in coalescer.packets() {
            let (header, bytes) = packet.bytes().split_first_chunk().expect("a header before each packet");
            taken.push((VnetHeader::parse(header), bytes.to_vec(), packet.segments));
        }
        coalescer.clear();
    };
    while !rest.is_empty() {
        let done = sender.seal_batch(NOW, rest, &mut out);
        assert!(done.packets > 0 || !out.is_empty(), "no way on");
        for run in out.runs() {
            let mut sealed = out.bytes(run.range.clone());
            while !sealed.is_empty() {
                let opened = receiver.open_batch(NOW, Some(ADDRESS), sealed, run.segment_size, &mut coalescer);
                sealed = &sealed[opened..];
                if !sealed.is_empty() {
                    take(&mut coalescer);
                }
            }
        }
        out.clear();
        rest = &mut rest[done.packets..];
    }
    take(&mut coalescer);
    taken
}

fn bytes_of(taken: Vec<(VnetHeader, Vec<u8>, u32)>) -> Vec<Vec<u8>> {
    taken.into_iter().map(|(_, packet, _)| packet).collect()
}

/// Whether the engine takes it for an IP packet.
fn is_ip(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| match first >> 4 {
        4 => packet.len() >= 20,
        6 => packet.len() >= 40,
        _ => false,
    })
}

/// A vnet header and a packet, as a device may hand them over.
pub fn cut(data: &[u8]) {
    let Some((header, packet)) = data.split_first_chunk() else { return };
    let header = VnetHeader::parse(header);
    let mut buffer = packet.to_vec();
    let segmented = match outgoing(&header, &mut buffer) {
        BatchPacket::Malformed => return,
        BatchPacket::Segmented(_) => true,
        _ => false,
    };
    let mut buffer = packet.to_vec();
    let segments = bytes_of(through(vec![outgoing(&header, &mut buffer)], false));
    if !segmented {
        assert_eq!(segments.len(), usize::from(is_ip(packet)));
        assert!(segments.iter().all(|segment| segment.len() == packet.len()));
        return;
    }
    let total: usize = segments.iter().map(Vec::len).sum();
    let added = total - packet.len();
    let headers = added / (segments.len() - 1).max(1);
    assert_eq!(headers * (segments.len() - 1), added, "every segment has the same headers");
    if segments.len() > 1 {
        let payload: Vec<u8> = segments.iter().flat_map(|segment| segment[headers..].to_vec()).collect();
        assert!(payload == packet[headers..], "the payload is what it was");
        let (last, others) = segments.split_last().expect("more than one");
        assert!(others.iter().all(|segment| segment.len() == headers + usize::from(header.gso_size)));
        assert!(last.len() <= headers + usize::from(header.gso_size));
    }
}

/// Packets with their lengths before them (2 bytes): what merging makes of them gives the same packets when it is cut.
pub fn merge(mut data: &[u8]) {
    let mut packets = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk() {
        let (packet, rest) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
        packets.push(packet);
        data = rest;
    }
    let whole = || packets.iter().map(|packet| BatchPacket::Whole(packet)).collect();
    let sent = bytes_of(through(whole(), false));
    let merged = through(whole(), true);
    let count: usize = merged.iter().map(|(_, _, segments)| *segments as usize).sum();
    assert_eq!(count, sent.len());
    let mut again = Vec::new();
    for (header, mut packet, segments) in merged {
        let cut = bytes_of(through(vec![outgoing(&header, &mut packet)], false));
        assert_eq!(cut.len(), segments as usize);
        again.extend(cut);
    }
    assert!(without_idle_ids(again) == without_idle_ids(sent));
}

/// RFC 6864: the ID of an IPv4 packet with DF means nothing. Clears it, and takes it out of the checksum.
fn without_idle_ids(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for packet in &mut packets {
        if let Some(header) = packet.first_chunk_mut::<20>()
            && header[0] == 0x45
            && header[6] & 0x40 != 0
            && checksum(header) == 0
        {
            header[4..6].fill(0);
            header[10..12].fill(0);
            let sum = checksum(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
    packets
}
