//! Packets at the engine: what anybody may send, and what only a peer with the keys can.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use icx_proto::counters::{COUNTER_NAMES, CounterSnapshot, RxDrop};
use icx_proto::engine::{Arrival, LocalEndpoint, OpenSink, OuterTrafficClass, RxVerdict, SaPair, TxVerdict};
use icx_proto::replay::COUNTER_LIMIT;
use icx_proto::wire::checksum::checksum;
use icx_proto::wire::outer::{self, Endpoint};
use icx_proto::wire::traffic_class::{Ecn, TrafficClass};
use icx_proto::{
    AllowedRoute, Engine, EngineConfig, Instant, MacAddr, Mode, NetworkConfig, SaKey, Spi, TxKeyHistory, Underlay, Vni,
};

const NOW: Instant = Instant::from_nanos(1_000_000_000_000);
const VNI: u32 = 0x01_02_03;
const RX_SPI: u32 = 0x4000_0001;
const TX_SPI: u32 = 7;
const RX_KEY: [u8; 16] = [0x52; 16];
const TX_KEY: [u8; 16] = [0x54; 16];
const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const GATEWAY: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const LOCAL: Endpoint =
    Endpoint { addr: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 6081), mac: HOST };
const PEER: Endpoint =
    Endpoint { addr: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)), 6081), mac: GATEWAY };
const HEADROOM: usize = 128;

const L2: u8 = 1;
const RAW: u8 = 2;
const COPY_ECN: u8 = 4;
const COPY_DSCP: u8 = 8;

/// The outer ECN field of what is received.
fn outer_ecn(flags: u8) -> Ecn {
    Ecn::from_bits(flags >> 4)
}

/// An engine with one VNI: 10.0.0.0/8 and fd00::/8 are here, 172.16.0.0/12 and fe80::/10 are there.
fn engine(flags: u8) -> Engine {
    let l2 = flags & L2 != 0;
    let raw = flags & RAW != 0;
    let engine = Engine::new(EngineConfig {
        mode: if l2 { Mode::L2 { host_mac: HOST, gateway_mac: GATEWAY } } else { Mode::L3 },
        underlay: if raw {
            let local = vec![LocalEndpoint { addr: LOCAL.addr, mac: LOCAL.mac }];
            Underlay::Raw { local, outer_udp_checksum: true, dont_fragment: true }
        } else {
            Underlay::Udp
        },
        peer_filter: true,
        source_port_hashing: Some(9),
        outer_traffic_class: OuterTrafficClass { ecn: flags & COPY_ECN != 0, dscp: flags & COPY_DSCP != 0 },
        keepalive: None,
        inner_mtu: None,
        tx_key_history: Arc::new(TxKeyHistory::new(&[3; 32])),
    });
    let route =
        |src: &str, dst: &str| AllowedRoute { src: src.parse().expect("ours"), dst: dst.parse().expect("ours") };
    let vni = Vni::new(VNI).expect("in range");
    let network = NetworkConfig {
        vni,
        peer: PEER.addr,
        peer_mac: PEER.mac,
        routes: vec![route("10.0.0.0/8", "172.16.0.0/12"), route("fd00::/8", "fe80::/10")],
        rx_rate_limit: None,
    };
    engine.add_network(network).expect("the first");
    let spi = |number| Spi::new(number).expect("not zero");
    let key = |bytes: &[u8]| SaKey::from_slice(bytes).expect("16 bytes");
    let sa = SaPair {
        rx_spi: spi(RX_SPI),
        tx_spi: spi(TX_SPI),
        rx_key: key(&RX_KEY),
        tx_key: key(&TX_KEY),
        expires_at: Instant::FAR_FUTURE,
    };
    engine.install(NOW, vni, sa).expect("fresh keys");
    engine
}

/// All counters but the times, summed over engine and networks.
pub(crate) fn totals(engine: &Engine) -> CounterSnapshot {
    let mut sum = engine.counters();
    for network in engine.networks() {
        let counters = engine.network_counters(network.vni).expect("it is there");
        for (sum, value) in sum.values.iter_mut().zip(counters.values) {
            *sum += value;
        }
    }
    sum.values[25..28].fill(0);
    sum
}

/// Which counters moved since, and by how much.
pub(crate) fn moved(before: &CounterSnapshot, after: &CounterSnapshot) -> Vec<(&'static str, u64)> {
    let changes = COUNTER_NAMES.iter().zip(before.values.iter().zip(after.values));
    changes.filter(|(_, (before, after))| **before != *after).map(|(name, (b, a))| (*name, a - b)).collect()
}

/// Where both forms of a call put their result, and the verdict without the place.
fn content(verdict: &RxVerdict, buf: &[u8]) -> Result<Option<Vec<u8>>, RxDrop> {
    match verdict {
        RxVerdict::Deliver { range, .. } => Ok(Some(buf[range.clone()].to_vec())),
        RxVerdict::Consumed { .. } => Ok(None),
        RxVerdict::Drop(reason) => Err(*reason),
    }
}

struct Sink {
    room: Vec<u8>,
    frame: Option<Vec<u8>>,
}

impl OpenSink for Sink {
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.room = vec![0xee; len];
        Some(&mut self.room)
    }

    fn deliver(&mut self, _vni: Vni, len: usize) {
        self.frame = Some(self.room[..len].to_vec());
    }
}

type Opened = (Result<Option<Vec<u8>>, RxDrop>, Vec<(&'static str, u64)>);

/// Opens a frame in each of the three ways on engines of their own, which must agree; twice, for the replay.
fn open_everywhere(flags: u8, frame: &[u8]) -> [Opened; 2] {
    let arrival = Arrival { src: Some(PEER.addr.ip()), ecn: outer_ecn(flags) };
    let (copy, in_place, batch) = (engine(flags), engine(flags), engine(flags));
    [(); 2].map(|()| {
        let before = totals(&copy);
        let mut out = vec![0xee; frame.len()];
        let verdict = copy.phy_to_virt(NOW, arrival, frame, &mut out);
        let opened = content(&verdict, &out);
        let changes = moved(&before, &totals(&copy));

        let mut buf = vec![0xee; HEADROOM + frame.len() + 5];
        let place = HEADROOM..HEADROOM + frame.len();
        buf[place.clone()].copy_from_slice(frame);
        let verdict = in_place.phy_to_virt_in_place(NOW, arrival, &mut buf, place.clone());
        assert_eq!(content(&verdict, &buf), opened);
        assert!(buf[..place.start].iter().chain(&buf[place.end..]).all(|byte| *byte == 0xee), "outside the frame");
        assert_eq!(totals(&in_place), totals(&copy));

        let mut sink = Sink { room: Vec::new(), frame: None };
        if !frame.is_empty() {
            assert_eq!(batch.open_batch(NOW, arrival, frame, frame.len(), &mut sink), frame.len());
            assert_eq!(sink.frame, opened.clone().ok().flatten());
            assert_eq!(totals(&batch), totals(&copy));
        }
        (opened, changes)
    })
}

/// Any frame from either side: one verdict, one counter, in every form of the call. The first byte chooses the modes.
pub fn frame(input: &[u8]) {
    let Some((&flags, frame)) = input.split_first() else { return };
    for (opened, changes) in open_everywhere(flags, frame) {
        match opened {
            Ok(_) => assert_eq!(changes[0], ("rx_packets", 1)),
            Err(reason) => assert_eq!(changes, [(reason.counter_name(), 1)]),
        }
    }
    let (copy, in_place) = (engine(flags), engine(flags));
    let mut out = vec![0xee; frame.len() + HEADROOM];
    let verdict = copy.virt_to_phy(NOW, frame, &mut out);
    let mut buf = vec![0xee; HEADROOM + frame.len() + HEADROOM];
    let place = HEADROOM..HEADROOM + frame.len();
    buf[place.clone()].copy_from_slice(frame);
    let same = in_place.virt_to_phy_in_place(NOW, &mut buf, place);
    let changes = moved(&CounterSnapshot::default(), &totals(&copy));
    assert_eq!(totals(&in_place), totals(&copy));
    match (verdict, same) {
        (
            TxVerdict::Send { range, vni, peer, source_port, traffic_class },
            TxVerdict::Send { range: there, vni: v, peer: p, source_port: s, traffic_class: t },
        ) => {
            assert_eq!((vni, peer, source_port, traffic_class), (v, p, s, t));
            let inner = TrafficClass::of(frame.get(if flags & L2 != 0 { 14.. } else { 0.. }).unwrap_or(&[])).get();
            let copied =
                (if flags & COPY_ECN != 0 { 0x03 } else { 0 }) | (if flags & COPY_DSCP != 0 { 0xfc } else { 0 });
            assert_eq!(traffic_class.get(), inner & copied);
            assert_eq!(out[range], buf[there]);
            assert_eq!(changes[0], ("tx_packets", 1));
        }
        (TxVerdict::Reply { range }, TxVerdict::Reply { range: there }) => {
            assert_eq!(out[range], buf[there]);
            assert_eq!(changes, []);
        }
        (TxVerdict::Drop(reason), TxVerdict::Drop(other)) => {
            assert_eq!(reason, other);
            assert_eq!(changes, [(reason.counter_name(), 1)]);
        }
        (verdict, same) => panic!("{verdict:?}, but in place {same:?}"),
    }
}

/// A datagram under the right key with contents of the sender's choice: what a peer gone bad may send. Bytes: flags,
/// protocol type (2), counter (8), then the plaintext.
pub fn packet(input: &[u8]) {
    let Some((&[flags, p0, p1, ref counter @ ..], plain)) = input.split_first_chunk::<11>() else { return };
    let protocol = u16::from_be_bytes([p0, p1]);
    let frame = datagram(flags, [p0, p1], counter, plain);
    let counter = u64::from_be_bytes(*counter);
    let [(first, changes), (second, _)] = open_everywhere(flags, &frame);
    assert_eq!(first, expected(flags, protocol, counter, plain));
    match first {
        Ok(_) => {
            let bytes = Some(("rx_bytes", plain.len() as u64)).filter(|(_, len)| *len > 0);
            assert_eq!(changes, [("rx_packets", 1)].into_iter().chain(bytes).collect::<Vec<_>>());
        }
        Err(reason) => assert_eq!(changes, [(reason.counter_name(), 1)]),
    }
    assert_eq!(second, Err(RxDrop::Replayed));
}

fn datagram(flags: u8, protocol: [u8; 2], counter: &[u8; 8], plain: &[u8]) -> Vec<u8> {
    let spi = RX_SPI.to_be_bytes();
    let nonce: [u8; 12] = [&spi[..], counter].concat().try_into().expect("12 bytes");
    // A longer KeyEpoch, the other order, flags and reserved bits: all of it is accepted.
    let extra: &[u8] = if flags & 4 != 0 { &[0xee; 4] } else { &[] };
    let epoch = [&[0xff, 0, 0x81, (1 + extra.len() as u8 / 4) | (flags & 0xe0)][..], &spi, extra].concat();
    let tx_counter = [&[0xff, 0, 0x82, 3][..], &nonce].concat();
    let options = if flags & 8 != 0 { [tx_counter, epoch].concat() } else { [epoch, tx_counter].concat() };
    let [_, v0, v1, v2] = VNI.to_be_bytes();
    let words = options.len() as u8 / 4;
    let header = [&[words, (flags & 0xc0) ^ 0x40, protocol[0], protocol[1], v0, v1, v2, flags][..], &options].concat();
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &RX_KEY).expect("16 bytes"));
    let mut text = plain.to_vec();
    let aad = Aad::from(&header[..]);
    let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text).expect("it seals");
    let datagram = [&header, &text, tag.as_ref()].concat();
    if flags & RAW == 0 {
        return datagram;
    }
    let mut frame = [&vec![0; outer::header_len(false)], &datagram[..]].concat();
    let class = TrafficClass::new(outer_ecn(flags) as u8 | 0xb8);
    outer::emit(&mut frame, &PEER, &LOCAL, class, true, true).expect("fuzzed packets fit");
    frame
}

/// Steps 9 to 12 of the receive order.
fn expected(flags: u8, protocol: u16, counter: u64, plain: &[u8]) -> Result<Option<Vec<u8>>, RxDrop> {
    if counter == 0 || counter >= COUNTER_LIMIT {
        return Err(RxDrop::Replayed);
    }
    if protocol == 0 {
        return Ok(None);
    }
    let (there, here) = match (plain.first().map(|first| first >> 4), protocol, plain.len()) {
        (Some(4), 0x0800, 20..) => (plain[12] == 172 && plain[13] >> 4 == 1, plain[16] == 10),
        (Some(6), 0x86dd, 40..) => (plain[8] == 0xfe && plain[9] >> 6 == 2, plain[24] == 0xfd),
        _ => return Err(RxDrop::BadInner),
    };
    match (there, here) {
        (false, _) => Err(RxDrop::InvalidSrc),
        (true, false) => Err(RxDrop::InvalidDst),
        (true, true) => {
            let plain = decapsulated(plain, outer_ecn(flags)).ok_or(RxDrop::BadEcn)?;
            let link = [&HOST.0[..], &GATEWAY.0, &protocol.to_be_bytes()].concat();
            Ok(Some(if flags & L2 != 0 { [link, plain].concat() } else { plain }))
        }
    }
}

/// RFC 6040 section 4.2, figure 4.
fn decapsulated(plain: &[u8], outer: Ecn) -> Option<Vec<u8>> {
    let mut packet = plain.to_vec();
    let v4 = packet[0] >> 4 == 4;
    let shift = if v4 { 0 } else { 4 };
    let inner = Ecn::from_bits(packet[1] >> shift);
    let ecn = match outer {
        Ecn::Ce if inner == Ecn::NotEct => return None,
        Ecn::Ce => Ecn::Ce,
        Ecn::Ect1 if inner == Ecn::Ect0 => Ecn::Ect1,
        _ => inner,
    };
    let was_right = checksum(&packet[..20]) == 0;
    packet[1] = packet[1] & !(3 << shift) | (ecn as u8) << shift;
    if v4 && ecn != inner {
        let sum = |bytes: [u8; 2]| u32::from(u16::from_be_bytes(bytes));
        let complement = 0xffff - sum([plain[10], plain[11]]) + u32::from(ecn as u8) + 0xffff - u32::from(inner as u8);
        let folded = (complement & 0xffff) + (complement >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
        assert!(!was_right || checksum(&packet[..20]) == 0, "a right checksum stays right");
    }
    Some(packet)
}
