//! Known-answer vectors that go through the whole engine. Every case runs twice: from buffer to buffer, and in place.
//!
//! A `quirk` records an answer that looked doubtful. The tables here say, by case name, which way this engine goes and
//! why; a quirk that no table names must still end in exactly one verdict and one counter.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use common::{bytes, endpoint, is_crash, is_quirk, load, mac, name, number, text};
use icx_proto::counters::{CounterSnapshot, RxDrop, TxDrop};
use icx_proto::engine::{LocalEndpoint, OuterTrafficClass, RxVerdict, SaPair, TxVerdict};
use icx_proto::{
    AllowedRoute, Engine, EngineConfig, Instant, MacAddr, Mode, NetworkConfig, SaKey, Spi, TxKeyHistory, Underlay, Vni,
};
use serde_json::Value;

/// The recorder's buffers; large enough for every frame of the vectors.
const BUFFER: usize = 16 * 1024;
const HEADROOM: usize = 128;

/// What a vector's handler object describes.
#[derive(Clone)]
struct Handler {
    config: EngineConfig,
    networks: Vec<(NetworkConfig, Vec<Sa>)>,
    now: Instant,
}

#[derive(Clone)]
struct Sa {
    rx_spi: u32,
    tx_spi: u32,
    rx_key: Vec<u8>,
    tx_key: Vec<u8>,
    expires_at: Instant,
}

fn instant(value: &Value, key: &str) -> Instant {
    Instant::from_nanos(number(value, key))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn flag(value: &Value, key: &str) -> bool {
    value[key].as_bool().unwrap_or(false)
}

fn history() -> Arc<TxKeyHistory> {
    Arc::new(TxKeyHistory::new(&[7; 32]))
}

impl Handler {
    fn parse(value: &Value) -> Handler {
        let mode = match text(value, "mode") {
            "l2" => Mode::L2 { host_mac: mac(value, "virt_mac"), gateway_mac: mac(value, "src_mac") },
            "l3" => Mode::L3,
            other => panic!("unknown mode {other}"),
        };
        let local = list(value, "local").iter().map(endpoint).map(|(addr, mac)| LocalEndpoint { addr, mac }).collect();
        let limit = value["rx_rate_limit_pps"].as_u64().unwrap_or(0);
        let config = EngineConfig {
            mode,
            underlay: Underlay::Raw {
                local,
                outer_udp_checksum: flag(value, "outer_udp_checksum"),
                // The vectors were recorded without it.
                dont_fragment: false,
            },
            peer_filter: flag(value, "outer_src_validation"),
            source_port_hashing: flag(value, "source_port_hashing").then(|| common::hex_u64(value, "flow_hash_key")),
            outer_traffic_class: OuterTrafficClass::default(),
            keepalive: value["keepalive_ms"].as_u64().filter(|ms| *ms != 0).map(Duration::from_millis),
            inner_mtu: None,
            tx_key_history: history(),
        };
        let networks = list(value, "networks").iter().map(|network| {
            let (peer, peer_mac) = endpoint(&network["remote"]);
            let routes = list(network, "routes").iter().map(|route| AllowedRoute {
                src: text(route, "src").parse().unwrap(),
                dst: text(route, "dst").parse().unwrap(),
            });
            let sas = list(network, "sas").iter().map(|sa| Sa {
                rx_spi: number(sa, "rx_spi") as u32,
                tx_spi: number(sa, "tx_spi") as u32,
                rx_key: bytes(sa, "rx_key"),
                tx_key: bytes(sa, "tx_key"),
                expires_at: instant(sa, "expires_ns"),
            });
            let config = NetworkConfig {
                vni: Vni::new(number(network, "vni") as u32).unwrap(),
                peer,
                peer_mac,
                routes: routes.collect(),
                rx_rate_limit: u32::try_from(limit).ok().filter(|limit| *limit != 0),
            };
            (config, sas.collect())
        });
        Handler { config, networks: networks.collect(), now: instant(value, "now_ns") }
    }

    /// The other end of the tunnel that runs from `local` on.
    fn peer(&self, local: SocketAddr, local_mac: MacAddr) -> Handler {
        let mut peer = self.clone();
        let (first, _) = &self.networks[0];
        let endpoints = vec![LocalEndpoint { addr: first.peer, mac: first.peer_mac }];
        peer.config.underlay = Underlay::Raw { local: endpoints, outer_udp_checksum: false, dont_fragment: false };
        peer.config.tx_key_history = history();
        for (config, sas) in &mut peer.networks {
            (config.peer, config.peer_mac) = (local, local_mac);
            for route in &mut config.routes {
                (route.src, route.dst) = (route.dst, route.src);
            }
            for sa in sas {
                (sa.rx_spi, sa.tx_spi) = (sa.tx_spi, sa.rx_spi);
                std::mem::swap(&mut sa.rx_key, &mut sa.tx_key);
            }
        }
        peer
    }

    fn engine(&self) -> Engine {
        let engine = Engine::new(EngineConfig { tx_key_history: history(), ..self.config.clone() });
        for (config, sas) in &self.networks {
            engine.add_network(config.clone()).unwrap();
            for sa in sas {
                let pair = SaPair {
                    rx_spi: Spi::new(sa.rx_spi).unwrap(),
                    tx_spi: Spi::new(sa.tx_spi).unwrap(),
                    rx_key: SaKey::from_slice(&sa.rx_key).unwrap(),
                    tx_key: SaKey::from_slice(&sa.tx_key).unwrap(),
                    expires_at: sa.expires_at,
                };
                engine.install(self.now, config.vni, pair).unwrap();
            }
        }
        engine
    }

    fn vni(&self) -> Vni {
        self.networks[0].0.vni
    }
}

/// How a frame goes through the engine.
#[derive(Clone, Copy, Debug)]
enum Way {
    Copy,
    InPlace,
}

const WAYS: [Way; 2] = [Way::Copy, Way::InPlace];

impl Way {
    fn seal(self, engine: &Engine, now: Instant, frame: &[u8]) -> (TxVerdict, Vec<u8>) {
        let mut buf = vec![0xa5; BUFFER];
        let verdict = match self {
            Way::Copy => engine.virt_to_phy(now, frame, &mut buf),
            Way::InPlace => {
                let place = HEADROOM..HEADROOM + frame.len();
                buf[place.clone()].copy_from_slice(frame);
                engine.virt_to_phy_in_place(now, &mut buf, place)
            }
        };
        let written = match &verdict {
            TxVerdict::Send { range, .. } | TxVerdict::Reply { range } => buf[range.clone()].to_vec(),
            TxVerdict::Drop(_) => Vec::new(),
        };
        (verdict, written)
    }

    fn open(self, engine: &Engine, now: Instant, frame: &[u8]) -> (RxVerdict, Vec<u8>) {
        let mut buf = vec![0xa5; BUFFER];
        let verdict = match self {
            Way::Copy => engine.phy_to_virt(now, None, frame, &mut buf),
            Way::InPlace => {
                let place = HEADROOM..HEADROOM + frame.len();
                buf[place.clone()].copy_from_slice(frame);
                engine.phy_to_virt_in_place(now, None, &mut buf, place)
            }
        };
        let written = match &verdict {
            RxVerdict::Deliver { range, .. } => buf[range.clone()].to_vec(),
            _ => Vec::new(),
        };
        (verdict, written)
    }
}

/// All counters of an engine but the times, summed over its networks.
fn totals(engine: &Engine) -> CounterSnapshot {
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

/// The names and increments between two totals.
fn moved(before: &CounterSnapshot, after: &CounterSnapshot) -> Vec<(&'static str, u64)> {
    let names = icx_proto::counters::COUNTER_NAMES;
    let changes = names.iter().zip(before.values.iter().zip(after.values));
    changes.filter(|(_, (before, after))| **before != *after).map(|(name, (b, a))| (*name, a - b)).collect()
}

// ---- aead_packets.json ----

/// Quirks of outbound packets. `Ok`: the recorded frame stands. `Err`: refused, and no counter value is used up.
const SEND_QUIRKS: &[(&str, Result<(), TxDrop>, &str)] = &[
    ("inner total length lies", Ok(()), "bytes behind the inner length travel along, so that length is not checked"),
    (
        "hashing on, inner header invalid: source port 49152",
        Ok(()),
        "a packet that cannot be hashed has hash 0, hence the first port",
    ),
    (
        "version nibble 5 with a ::/0 route present: counted and uses up a counter",
        Err(TxDrop::Malformed),
        "other IP versions are malformed whatever the routes, and a refused packet burns no counter value",
    ),
    (
        "no local address of the remote's family: uses up a counter",
        Err(TxDrop::NoLocal),
        "a refused packet burns no counter value",
    ),
    ("l2 ethertype says IPv6, packet is IPv4: sent as IPv4", Ok(()), "the version nibble decides"),
];

fn sent_at(case: &Value, handler: &Handler) -> Instant {
    if case["at_ns"].is_null() { handler.now } else { instant(case, "at_ns") }
}

fn expected_refusal(case: &Value) -> TxDrop {
    let eth = bytes(case, "eth");
    match text(case, "reason") {
        "counter_limit" => TxDrop::Exhausted,
        "tx_expired" => TxDrop::ExpiredKey,
        "no_route" => TxDrop::NoRoute,
        "no_local" => TxDrop::NoLocal,
        "no_key" => TxDrop::NoKey,
        "truncated_inner" | "runt" => TxDrop::Malformed,
        // Ethernet says what is no IP at all; behind that, a wrong version is a malformed packet.
        "not_ip" if eth.len() == 14 && !matches!(eth[12..], [0x08, 0x00] | [0x86, 0xdd]) => TxDrop::NotIp,
        "not_ip" => TxDrop::Malformed,
        other => panic!("{}: unknown reason {other}", name(case)),
    }
}

#[test]
fn aead_packets() {
    let Some(cases) = load("aead_packets.json") else { return };
    for case in cases.iter().filter(|case| !is_crash(case)) {
        let handler = Handler::parse(&case["handler"]);
        match text(case, "kind") {
            "data" => sends_data(case, &handler),
            "keepalive" => sends_keepalive(case, &handler),
            "refused" => refuses(case, &handler),
            other => panic!("{}: unknown kind {other}", name(case)),
        }
    }
}

fn sends_data(case: &Value, handler: &Handler) {
    if is_quirk(case) && !SEND_QUIRKS.iter().any(|(quirk, ours, _)| *quirk == name(case) && ours.is_ok()) {
        println!("note: '{}' is a quirk without a rule of ours, skipped", name(case));
        return;
    }
    let (inner, expected) = (bytes(case, "inner"), bytes(case, "frame"));
    let frame = [bytes(case, "eth"), inner.clone()].concat();
    for way in WAYS {
        let engine = handler.engine();
        let counter = number(case, "counter");
        if counter > 1 {
            assert!(engine.skip_tx_counter_to(handler.vni(), counter - 1), "{}", name(case));
        }
        let now = sent_at(case, handler);
        let (verdict, written) = way.seal(&engine, now, &frame);
        let TxVerdict::Send { vni, peer, source_port, .. } = verdict else {
            panic!("{} ({way:?}): {verdict:?}", name(case))
        };
        assert_eq!(hex::encode(&written), hex::encode(&expected), "{} ({way:?})", name(case));
        assert_eq!((vni, peer), (handler.vni(), handler.networks[0].0.peer), "{}", name(case));
        assert_eq!(source_port.is_some(), handler.config.source_port_hashing.is_some(), "{}", name(case));
        assert_eq!(
            moved(&CounterSnapshot::default(), &totals(&engine)),
            [("tx_packets", 1), ("tx_bytes", inner.len() as u64)],
            "{}",
            name(case)
        );
        opens_at_the_peer(case, handler, way, &written, Some(&inner));
    }
}

fn sends_keepalive(case: &Value, handler: &Handler) {
    let engine = handler.engine();
    let counter = number(case, "counter");
    let mut buf = vec![0xa5; BUFFER];
    let mut now = handler.now;
    assert_eq!(engine.next_keepalive(), Some(Instant::from_nanos(0)), "{}: due at once", name(case));
    for sent in 1..=counter {
        let verdict = engine.to_phy(now, &mut buf);
        let Some(TxVerdict::Send { range, vni, source_port: None, .. }) = verdict else {
            panic!("{}: {verdict:?}", name(case))
        };
        assert_eq!(vni, handler.vni());
        assert_eq!(engine.to_phy(now, &mut buf.clone()), None, "{}: one per interval", name(case));
        if sent == counter {
            let written = buf[range].to_vec();
            assert_eq!(hex::encode(&written), text(case, "frame"), "{}", name(case));
            assert_eq!(moved(&CounterSnapshot::default(), &totals(&engine)), [("tx_packets", counter)]);
            opens_at_the_peer(case, handler, Way::Copy, &written, None);
            opens_at_the_peer(case, handler, Way::InPlace, &written, None);
        }
        now = engine.next_keepalive().unwrap();
    }
}

fn refuses(case: &Value, handler: &Handler) {
    let mut expected = expected_refusal(case);
    if is_quirk(case) {
        let rule = SEND_QUIRKS.iter().find(|(quirk, ..)| *quirk == name(case));
        let Some((_, Err(ours), _)) = rule else {
            println!("note: '{}' is a quirk without a rule of ours, skipped", name(case));
            return;
        };
        expected = *ours;
    }
    let frame = [bytes(case, "eth"), bytes(case, "inner")].concat();
    let before = number(case, "tx_counter_before");
    for way in WAYS {
        let engine = handler.engine();
        if before > 0 {
            assert!(engine.skip_tx_counter_to(handler.vni(), before));
        }
        let now = sent_at(case, handler);
        let (verdict, _) = way.seal(&engine, now, &frame);
        assert_eq!(verdict, TxVerdict::Drop(expected), "{} ({way:?})", name(case));
        let changes = moved(&CounterSnapshot::default(), &totals(&engine));
        assert_eq!(changes, [(expected.counter_name(), 1)], "{} ({way:?})", name(case));
        let sealed = engine.sa_status(handler.now, handler.vni()).unwrap().tx.unwrap().sealed;
        assert_eq!(sealed, before, "{} ({way:?}): a refused packet burns no counter value", name(case));
    }
}

/// A frame of ours is a frame for the peer. `inner`: what it must deliver; `None` for a keepalive.
fn opens_at_the_peer(case: &Value, handler: &Handler, way: Way, frame: &[u8], inner: Option<&[u8]>) {
    let Underlay::Raw { local, .. } = &handler.config.underlay else { unreachable!() };
    let peer_handler = handler.peer(local[0].addr, local[0].mac);
    let peer = peer_handler.engine();
    let (verdict, written) = way.open(&peer, handler.now, frame);
    match (inner, verdict) {
        (Some(inner), RxVerdict::Deliver { vni, .. }) => {
            let front = if handler.config.mode == Mode::L3 { 0 } else { 14 };
            assert_eq!(vni, handler.vni());
            assert_eq!(hex::encode(&written[front..]), hex::encode(inner), "{} at the peer ({way:?})", name(case));
        }
        (None, RxVerdict::Consumed { vni }) => assert_eq!(vni, handler.vni()),
        (_, verdict) => panic!("{} at the peer ({way:?}): {verdict:?}", name(case)),
    }
}

// ---- rx_drops.json ----

/// Quirks of inbound frames: the verdicts of ours, step by step where they differ from the record. `None`: as recorded.
const RECEIVE_QUIRKS: &[(&str, Option<&[RxDrop]>, &str)] = &[
    (
        "control: counter 0 is accepted once",
        Some(&[RxDrop::Replayed, RxDrop::Replayed]),
        "senders start at 1: counter 0 is never accepted",
    ),
    ("control: any UDP destination port is accepted", Some(&[RxDrop::Malformed]), "our own port is checked"),
    ("control: any outer destination address is accepted", None, "the AEAD says for whom the frame is"),
    ("control: outer checksum present and wrong is ignored", None, "the AEAD authenticates more than the checksum"),
    (
        "control: outer IPv4 header checksum wrong is ignored",
        Some(&[RxDrop::Malformed]),
        "the outer IPv4 header checksum must be valid where we see raw frames",
    ),
    ("control: bytes after the IPv6 payload length are ignored", None, "on every path alike, in place as well"),
    ("control: bytes after the IPv4 total length are ignored", None, "on every path alike, in place as well"),
    ("control: outer over IPv6, zero UDP checksum", None, "a zero outer UDP checksum never makes a receiver drop"),
    (
        "control: outer IPv4 header with options",
        Some(&[RxDrop::Malformed]),
        "its header checksum is wrong; with a valid one it would be accepted",
    ),
    ("control: outer IPv4 more-fragments bit is ignored", Some(&[RxDrop::Malformed]), "fragments are dropped"),
    ("control: geneve version 1 is accepted when authentic", Some(&[RxDrop::Malformed]), "RFC 8926: version must be 0"),
    (
        "control: protocol type does not match the inner packet",
        Some(&[RxDrop::BadInner]),
        "the version must agree with the protocol type",
    ),
    (
        "control: protocol type IPv6, inner IPv4, L2 receiver",
        Some(&[RxDrop::BadInner]),
        "the version must agree with the protocol type",
    ),
    ("control: inner total length lies", None, "bytes behind the inner length travel along, so it is not compared"),
    ("control: inner header length of 4 bytes", None, "only the fixed header is ours to read; the rest is the host's"),
    (
        "UDP length shorter than the IP payload",
        Some(&[RxDrop::Malformed]),
        "the UDP length must be that of the IP payload: refused before the AEAD",
    ),
    (
        "third option after the standard two: header length is misjudged",
        Some(&[RxDrop::Malformed]),
        "more than two options are refused before the AEAD",
    ),
    ("unknown critical third option", Some(&[RxDrop::Malformed]), "an unknown critical option is refused"),
    (
        "control: source and destination may match different route pairs",
        Some(&[RxDrop::InvalidDst]),
        "source and destination must match one and the same allowed route",
    ),
    ("forged frames use up the budget", None, "the limit bounds what reaches the AEAD, forged frames included"),
];

/// The exact limit lets one frame a second through, so of the recorded steps only the first is delivered.
const EXACT_RATE_LIMIT: (&str, &[Option<RxDrop>]) = (
    "rate limit 1/s still admits one frame each 100 ms",
    &[None, Some(RxDrop::RateLimited), Some(RxDrop::RateLimited), Some(RxDrop::RateLimited)],
);

fn recorded_drop(case: &Value, step: &Value) -> RxDrop {
    let counters = step["counters"].as_object().and_then(|by_vni| by_vni.values().next());
    let counter = counters.and_then(Value::as_object).and_then(|counters| counters.keys().next());
    let reason = text(case, "reason");
    match (counter.map(String::as_str), reason) {
        (Some("rx_drops_no_key"), _) => RxDrop::NoKey,
        (Some("rx_drops_expired_key"), _) => RxDrop::ExpiredKey,
        (Some("rx_drops_spi_mismatch"), _) => RxDrop::SpiMismatch,
        (Some("rx_rate_limit_drops"), _) => RxDrop::RateLimited,
        (Some("rx_decrypt_errors"), _) => RxDrop::AuthFailed,
        (Some("rx_replay_drops"), _) => RxDrop::Replayed,
        (Some("rx_drops_bad_peer"), _) => RxDrop::BadPeer,
        (Some("rx_invalid_src"), "truncated_inner" | "not_ip") => RxDrop::BadInner,
        (Some("rx_invalid_src"), _) => RxDrop::InvalidSrc,
        (Some("rx_invalid_dst"), _) => RxDrop::InvalidDst,
        (None, "unknown_vni") => RxDrop::UnknownVni,
        (None, "truncated" | "not_udp" | "no_tx_counter") => RxDrop::Malformed,
        (counter, reason) => panic!("{}: unknown drop {counter:?}, {reason}", name(case)),
    }
}

#[test]
fn rx_drops() {
    let Some(cases) = load("rx_drops.json") else { return };
    for case in cases.iter().filter(|case| !is_crash(case)) {
        let handler = Handler::parse(&case["handler"]);
        let rule = RECEIVE_QUIRKS.iter().find(|(quirk, ..)| *quirk == name(case)).map(|(_, ours, _)| *ours);
        let exact_limit = name(case) == EXACT_RATE_LIMIT.0;
        let unknown = is_quirk(case) && rule.is_none() && !exact_limit;
        if unknown {
            println!("note: '{}' is a quirk without a rule of ours: only its counters are checked", name(case));
        }
        for way in WAYS {
            let engine = handler.engine();
            for (at, step) in list(case, "steps").iter().enumerate() {
                let context = format!("{}, step {at} ({way:?})", name(case));
                let now = if step["now_ns"].is_null() { handler.now } else { instant(step, "now_ns") };
                let before = totals(&engine);
                let (verdict, written) = way.open(&engine, now, &bytes(step, "frame"));
                let changes = moved(&before, &totals(&engine));
                match &verdict {
                    RxVerdict::Drop(reason) => assert_eq!(changes, [(reason.counter_name(), 1)], "{context}"),
                    _ => assert_eq!(changes[0], ("rx_packets", 1), "{context}"),
                }
                if unknown {
                    continue;
                }
                let ours = if exact_limit {
                    EXACT_RATE_LIMIT.1.get(at).copied().flatten()
                } else if let Some(Some(ours)) = rule {
                    ours.get(at).copied()
                } else {
                    (text(step, "result") == "drop").then(|| recorded_drop(case, step))
                };
                match (ours, text(step, "result")) {
                    (Some(reason), _) => assert_eq!(verdict, RxVerdict::Drop(reason), "{context}"),
                    (None, "consumed") => assert_eq!(verdict, RxVerdict::Consumed { vni: handler.vni() }, "{context}"),
                    (None, _) => {
                        assert!(matches!(verdict, RxVerdict::Deliver { .. }), "{context}: {verdict:?}");
                        let front = if handler.config.mode == Mode::L3 { 0 } else { 14 };
                        let delivered = (written.len() - front) as u64;
                        assert_eq!(changes, [("rx_packets", 1), ("rx_bytes", delivered)], "{context}");
                        if !step["output"].is_null() {
                            assert_eq!(hex::encode(&written), text(step, "output"), "{context}");
                        }
                    }
                }
            }
        }
    }
}

// ---- arp_nd.json ----

enum Local {
    /// The recorded answer or frame stands.
    Recorded,
    Drop(TxDrop),
    /// The reply recorded for the same request elsewhere.
    Replies,
}

const NEIGHBOR_QUIRKS: &[(&str, Local, &str)] = &[
    ("ARP request for an address outside every route", Local::Recorded, "the gateway answers for any address"),
    (
        "ARP request for the sender's own address (gratuitous)",
        Local::Drop(TxDrop::NotIp),
        "an announcement: an answer would be a conflict",
    ),
    ("ARP probe (sender 0.0.0.0)", Local::Drop(TxDrop::NotIp), "duplicate address detection must work"),
    ("solicitation for an address outside every route", Local::Recorded, "the gateway answers for any address"),
    ("duplicate address detection (source ::)", Local::Drop(TxDrop::Malformed), "RFC 4861: must not be answered"),
    ("solicitation for the sender's own address", Local::Recorded, "no duplicate address detection: the source is set"),
    ("solicitation for a multicast target", Local::Drop(TxDrop::Malformed), "RFC 4861 wants it discarded"),
    ("solicitation with a wrong ICMPv6 checksum", Local::Drop(TxDrop::Malformed), "the checksum is checked"),
    ("solicitation with a zero-length option", Local::Drop(TxDrop::Malformed), "RFC 4861 wants it discarded"),
    ("solicitation whose source link-layer option names another MAC", Local::Recorded, "to the Ethernet source"),
    (
        "hop limit 64, unicast destination inside the routes",
        Local::Drop(TxDrop::Malformed),
        "a solicitation is never tunnelled",
    ),
    ("code 1, unicast destination inside the routes", Local::Drop(TxDrop::Malformed), "never tunnelled"),
    ("solicitation of 23 bytes", Local::Drop(TxDrop::Malformed), "never tunnelled"),
    ("frame cut, payload length says more", Local::Drop(TxDrop::Malformed), "never tunnelled"),
    ("solicitation behind a hop-by-hop header", Local::Drop(TxDrop::Malformed), "never tunnelled"),
    ("single buffer, ARP request at offset 0", Local::Replies, "a reply needs no headroom"),
    ("single buffer, neighbour solicitation at offset 0", Local::Replies, "a reply needs no headroom"),
    ("single buffer, ARP request at offset 93", Local::Replies, "a reply needs no headroom"),
    ("single buffer, neighbour solicitation at offset 93", Local::Replies, "a reply needs no headroom"),
];

#[test]
fn arp_and_neighbor_discovery() {
    let Some(cases) = load("arp_nd.json") else { return };
    let handler = cases.iter().find(|case| case["handler"].is_object()).expect("a case with the handler");
    let handler = Handler::parse(&handler["handler"]);
    for case in cases.iter().filter(|case| !is_crash(case) && text(case, "result") != "setup") {
        let request = bytes(case, "request");
        let rule = NEIGHBOR_QUIRKS.iter().find(|(quirk, ..)| *quirk == name(case)).map(|(_, ours, _)| ours);
        if is_quirk(case) && rule.is_none() {
            println!("note: '{}' is a quirk without a rule of ours, skipped", name(case));
            continue;
        }
        let ways: &[Way] = if case["request_offset"].is_null() { &WAYS } else { &[Way::InPlace] };
        for way in ways {
            let context = format!("{} ({way:?})", name(case));
            let engine = handler.engine();
            let (verdict, written) = match case["request_offset"].as_u64() {
                None => way.seal(&engine, handler.now, &request),
                Some(offset) => {
                    let (mut buf, offset) = (vec![0xa5; 2048], offset as usize);
                    buf[offset..offset + request.len()].copy_from_slice(&request);
                    match engine.virt_to_phy_in_place(handler.now, &mut buf, offset..offset + request.len()) {
                        TxVerdict::Reply { range } => (TxVerdict::Reply { range: range.clone() }, buf[range].to_vec()),
                        verdict => (verdict, Vec::new()),
                    }
                }
            };
            let expected = match (rule, text(case, "result")) {
                (Some(Local::Replies), _) => {
                    let same = |other: &&Value| other["request"] == case["request"] && !other["reply"].is_null();
                    Some(text(cases.iter().find(same).expect("the reply to the same request"), "reply"))
                }
                (Some(Local::Drop(reason)), _) => {
                    assert_eq!(verdict, TxVerdict::Drop(*reason), "{context}");
                    None
                }
                (_, "dropped") => {
                    assert!(
                        matches!(verdict, TxVerdict::Drop(TxDrop::NotIp | TxDrop::Malformed)),
                        "{context}: {verdict:?}"
                    );
                    None
                }
                (_, "reply") => Some(text(case, "reply")),
                (_, "tunnelled") => {
                    assert!(matches!(verdict, TxVerdict::Send { .. }), "{context}: {verdict:?}");
                    assert_eq!(hex::encode(&written), text(case, "frame"), "{context}");
                    None
                }
                (_, other) => panic!("{context}: unknown result {other}"),
            };
            let changes = moved(&CounterSnapshot::default(), &totals(&engine));
            if let Some(expected) = expected {
                assert!(matches!(verdict, TxVerdict::Reply { .. }), "{context}: {verdict:?}");
                assert_eq!(hex::encode(&written), expected, "{context}");
                assert_eq!(changes, [], "{context}");
            } else if let TxVerdict::Drop(reason) = verdict {
                assert_eq!(changes, [(reason.counter_name(), 1)], "{context}");
            }
        }
    }
}

// ---- mtu.json ----

#[test]
fn encapsulation_fits_exactly_or_burns_no_counter_value() {
    let Some(cases) = load("mtu.json") else { return };
    let mut seen = 0;
    for case in cases.iter().filter(|case| !is_crash(case) && text(case, "op").starts_with("encap_")) {
        seen += 1;
        let l2 = text(case, "mode") == "l2";
        let (local, peer): (IpAddr, IpAddr) = match number(case, "outer") {
            4 => ("192.0.2.1".parse().unwrap(), "198.51.100.7".parse().unwrap()),
            6 => ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()),
            other => panic!("outer {other}"),
        };
        let inner_len = number(case, "inner_len") as usize;
        let handler = Handler {
            config: EngineConfig {
                mode: if l2 {
                    Mode::L2 { host_mac: MacAddr([2, 0, 0, 0, 0, 1]), gateway_mac: MacAddr([2, 0, 0, 0, 0, 2]) }
                } else {
                    Mode::L3
                },
                underlay: Underlay::Raw {
                    local: vec![LocalEndpoint { addr: SocketAddr::new(local, 6081), mac: MacAddr([2; 6]) }],
                    outer_udp_checksum: false,
                    dont_fragment: true,
                },
                peer_filter: true,
                source_port_hashing: None,
                outer_traffic_class: OuterTrafficClass::default(),
                keepalive: None,
                inner_mtu: None,
                tx_key_history: history(),
            },
            networks: vec![(
                NetworkConfig {
                    vni: Vni::new(1).unwrap(),
                    peer: SocketAddr::new(peer, 6081),
                    peer_mac: MacAddr([4; 6]),
                    routes: vec![AllowedRoute { src: "0.0.0.0/0".parse().unwrap(), dst: "0.0.0.0/0".parse().unwrap() }],
                    rx_rate_limit: None,
                },
                vec![Sa {
                    rx_spi: 1,
                    tx_spi: 2,
                    rx_key: vec![1; 16],
                    tx_key: vec![2; 16],
                    expires_at: Instant::FAR_FUTURE,
                }],
            )],
            now: Instant::from_nanos(1),
        };
        let engine = handler.engine();
        let mut frame = if l2 { vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0] } else { Vec::new() };
        let inner_at = frame.len();
        frame.resize(inner_at + inner_len, 0);
        frame[inner_at] = 0x45;
        let (verdict, buffer) = match text(case, "op") {
            "encap_fit" => {
                let mut out = vec![0; number(case, "frame_buffer") as usize];
                (engine.virt_to_phy(handler.now, &frame, &mut out), out)
            }
            "encap_in_place_fit" => {
                let mut buf = vec![0; number(case, "buffer") as usize];
                let at = number(case, "virt_offset") as usize;
                // A record of a frame that does not lie in its buffer describes nothing.
                buf[at..at + frame.len()].copy_from_slice(&frame);
                (engine.virt_to_phy_in_place(handler.now, &mut buf, at..at + frame.len()), buf)
            }
            other => panic!("{}: unknown op {other}", name(case)),
        };
        let sealed = engine.sa_status(handler.now, handler.vni()).unwrap().tx.unwrap().sealed;
        let changes = moved(&CounterSnapshot::default(), &totals(&engine));
        if flag(case, "ok") {
            let TxVerdict::Send { range, .. } = verdict else { panic!("{}: {verdict:?}", name(case)) };
            assert_eq!(range.len() as u64, number(case, "frame_len"), "{}", name(case));
            if let Some(offset) = case["frame_offset"].as_u64() {
                assert_eq!(range.start as u64, offset, "{}", name(case));
            }
            assert!(range.end <= buffer.len());
            assert_eq!((sealed, changes.len()), (1, 2), "{}", name(case));
        } else {
            // The record burns a counter value here; ours takes one only for what is certain to be sealed.
            assert_eq!(verdict, TxVerdict::Drop(TxDrop::TooBig), "{}", name(case));
            assert_eq!((sealed, changes), (0, vec![("tx_too_big", 1)]), "{}", name(case));
        }
    }
    println!("{seen} cases");
}
