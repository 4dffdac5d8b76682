//! A forwarder over AF_XDP that encapsulates without sealing: what icx's own costs is measured against it. Everything it carries can
//! be read and forged on the way, so it is for benchmarks between namespaces only.
//!
//! Options: `--interface NAME --name DEVICE --address ADDRESS/PREFIX --mtu BYTES`, `--local IP:PORT --peer IP:PORT --peer-mac MAC`,
//! `--attach auto|native|generic`. It prints a line of JSON when packets move, and runs until its standard input ends.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use icx_io::afxdp::{AttachMode, DeviceConfig, Forwarder, ForwarderConfig, Transform, VethDevice, ZeroCopy};
use icx_io::{Latency, link};
use icx_proto::counters::{RxDrop, TxDrop};
use icx_proto::engine::{LocalEndpoint, OuterTrafficClass, RxVerdict, TxVerdict};
use icx_proto::wire::traffic_class::TrafficClass;
use icx_proto::wire::{ethernet, geneve, outer};
use icx_proto::{Engine, EngineConfig, Instant, MacAddr, Mode, TxKeyHistory, Underlay, Vni};
use icx_testkit::args::Args;
use serde_json::json;

const HOST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const GATEWAY_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

/// Writes and takes off the headers of the protocol; packets stay as they are.
struct PassThrough {
    /// Answers to ARP and neighbour solicitations.
    engine: Arc<Engine>,
    vni: Vni,
    local: outer::Endpoint,
    peer: outer::Endpoint,
    counter: AtomicU64,
}

impl Transform for PassThrough {
    fn encapsulate(&self, now: Instant, buffer: &mut [u8], frame: Range<usize>) -> TxVerdict {
        let Some((header, packet)) = buffer.get(frame.clone()).and_then(ethernet::Header::parse) else {
            return TxVerdict::Drop(TxDrop::Malformed);
        };
        let is_ip = match packet {
            // All of ICMPv6 may be a solicitation.
            [first, ..] if first >> 4 == 6 => packet.get(6) != Some(&58),
            [first, ..] => first >> 4 == 4 && header.ethertype == ethernet::ETHERTYPE_IPV4,
            [] => false,
        };
        if !is_ip {
            return self.engine.virt_to_phy_in_place(now, buffer, frame);
        }
        let inner = frame.start + ethernet::HEADER_LEN..frame.end;
        let headers = outer::header_len(self.peer.addr.is_ipv6());
        let Some(start) = inner.start.checked_sub(headers + geneve::HEADER_LEN) else {
            return TxVerdict::Drop(TxDrop::TooBig);
        };
        let range = start..inner.end + geneve::TAG_LEN;
        let Some(out) = buffer.get_mut(range.clone()) else { return TxVerdict::Drop(TxDrop::TooBig) };
        let Some(head) = out.get_mut(headers..).and_then(|bytes| bytes.first_chunk_mut()) else {
            return TxVerdict::Drop(TxDrop::TooBig);
        };
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        geneve::emit(&geneve::TunnelHeader { protocol: header.ethertype, vni: self.vni, spi: 1, counter }, head);
        let traffic_class = TrafficClass::default();
        if outer::emit(out, &self.local, &self.peer, traffic_class, false, true).is_err() {
            return TxVerdict::Drop(TxDrop::Errors);
        }
        TxVerdict::Send { range, vni: self.vni, peer: self.peer.addr, source_port: None, traffic_class }
    }

    fn decapsulate(&self, _now: Instant, frame: &[u8], out: &mut [u8]) -> RxVerdict {
        let Ok(outer) = outer::parse(frame) else { return RxVerdict::Drop(RxDrop::Malformed) };
        let datagram = &frame[outer.payload];
        let Ok(header) = geneve::parse(datagram) else { return RxVerdict::Drop(RxDrop::Malformed) };
        let packet = datagram.get(header.payload_offset..datagram.len().saturating_sub(geneve::TAG_LEN)).unwrap_or(&[]);
        let len = ethernet::HEADER_LEN + packet.len();
        let Some((link, body)) = out.get_mut(..len).and_then(|out| out.split_first_chunk_mut()) else {
            return RxVerdict::Drop(RxDrop::Malformed);
        };
        ethernet::Header { destination: HOST_MAC, source: GATEWAY_MAC, ethertype: header.protocol }.emit(link);
        body.copy_from_slice(packet);
        RxVerdict::Deliver { range: 0..len, vni: self.vni }
    }
}

/// An address with its prefix length.
struct Prefixed(IpAddr, u8);

impl FromStr for Prefixed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, len) = text.split_once('/').ok_or("it has no prefix length")?;
        let address = address.parse().map_err(|error| format!("{error}"))?;
        Ok(Prefixed(address, len.parse().map_err(|error| format!("{error}"))?))
    }
}

/// A hardware address, as `02:00:00:00:00:01`.
struct Mac(MacAddr);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
        let bytes = bytes.map_err(|error| error.to_string())?;
        Ok(Mac(MacAddr(bytes.try_into().map_err(|_| "it has not six bytes".to_owned())?)))
    }
}

fn attach(text: &str) -> Result<AttachMode, String> {
    match text {
        "auto" => Ok(AttachMode::Auto),
        "native" => Ok(AttachMode::Native),
        "generic" => Ok(AttachMode::Generic),
        other => Err(format!("--attach cannot be {other:?}: it is auto, native or generic")),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let known = &["interface", "name", "address", "mtu", "local", "peer", "peer-mac", "attach"];
    let args = Args::parse(std::env::args().skip(1), known)?;
    let interface: String = args.required("interface")?;
    let local: SocketAddr = args.required("local")?;
    let Mac(peer_mac) = args.required("peer-mac")?;
    let Prefixed(address, prefix_len) = args.required("address")?;
    let mac = link::by_name(&interface)?.mac.ok_or("the interface has no hardware address")?;
    let engine = Arc::new(Engine::new(EngineConfig {
        mode: Mode::L2 { host_mac: HOST_MAC, gateway_mac: GATEWAY_MAC },
        underlay: Underlay::Raw {
            local: vec![LocalEndpoint { addr: local, mac }],
            outer_udp_checksum: false,
            dont_fragment: true,
        },
        peer_filter: true,
        source_port_hashing: None,
        keepalive: None,
        outer_traffic_class: OuterTrafficClass::default(),
        inner_mtu: None,
        tx_key_history: Arc::new(TxKeyHistory::new(&[0; 32])),
    }));
    let transform = PassThrough {
        engine: Arc::clone(&engine),
        vni: Vni::new(1)?,
        local: outer::Endpoint { addr: local, mac },
        peer: outer::Endpoint { addr: args.required("peer")?, mac: peer_mac },
        counter: AtomicU64::new(1),
    };
    let config = ForwarderConfig {
        interface,
        device: DeviceConfig::Veth(VethDevice {
            name: args.required("name")?,
            mtu: args.required("mtu")?,
            addresses: vec![(address, prefix_len)],
        }),
        bound: vec![local],
        attach: attach(args.text("attach").unwrap_or("auto"))?,
        zero_copy: ZeroCopy::Off,
        queues: None,
        cpu_pin: false,
        busy_poll: None,
        latency: Latency::default(),
        clamp_mss: false,
        idle_wake: Duration::from_millis(250),
        capture: None,
    };
    let forwarder = Forwarder::open_with(engine, Arc::new(transform), config)?;
    forwarder.start(Box::new(|_| {}), Box::new(|_| {}))?;
    println!("{}", json!({ "event": "ready" }));
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    forwarder.stop();
    let (counters, own) = forwarder.counters();
    println!(
        "{}",
        json!({
            "event": "stopped",
            "underlaySent": counters.underlay_sent,
            "underlayReceived": counters.underlay_received,
            "txRefused": own.tx_refused,
        })
    );
    Ok(())
}
