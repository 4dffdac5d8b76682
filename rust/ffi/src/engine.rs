//! Engines: creation, networks, test keys, counters, and packets in batches.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use icx_proto::counters::{COUNTER_NAMES, CounterSnapshot};
use icx_proto::engine::{
    Arrival, InstallError, LocalEndpoint, NetworkError, OuterTrafficClass, RxVerdict, SaPair, TxVerdict,
};
use icx_proto::wire::traffic_class::TrafficClass;
use icx_proto::{Engine, EngineConfig, Instant, MacAddr, Mode, NetworkConfig, SaKey, Spi, TxKeyHistory, Underlay, Vni};
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::error::{Failure, Outcome};
use crate::guard::Call;
use crate::handle;
use crate::json::{self, Hex64, Number, RouteOptions, Text};

/// What stands for the engine itself where a VNI is asked for.
const WHOLE_ENGINE: u32 = u32::MAX;

/// An output slot of this much more than the input always suffices: the largest outer header is 14 + 40 + 8 + 32
/// bytes, the tag 16, and the largest local reply 86 in all.
const OUTPUT_HEADROOM: usize = 128;

/// One packet of a batch.
///
/// Inbound: `offset` and `length` in the input; `phy_to_virt` over a UDP underlay also takes the outer source
/// in `addr` (IPv4 as `::ffff:a.b.c.d`) and the outer `traffic_class`. Afterwards: `offset` and `length` in the output, and the verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IcxPacket {
    /// Bytes from the start of the buffer.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
    /// 0: send or deliver. 1: a local reply, which goes back to the virtual side. 2: consumed, nothing to deliver.
    /// Below 0: dropped for the reason number −(1 + verdict), in the order of the drop counters.
    pub verdict: i32,
    /// The VNI, where the verdict is 0 or 2.
    pub vni: u32,
    /// Where to send to (IPv4 as `::ffff:a.b.c.d`); the outer source on input.
    pub addr: [u8; 16],
    /// Port of `addr`.
    pub port: u16,
    /// The hashed source port to send from; 0: the base port.
    pub source_port: u16,
    /// Of the outer header: the one to send with, or the one that it came with.
    pub traffic_class: u8,
    /// Zero.
    pub reserved: [u8; 11],
}

const _: () = assert!(size_of::<IcxPacket>() == 48 && align_of::<IcxPacket>() == 4);

const SEND: i32 = 0;
const HANDLED: i32 = 1;
const CONSUMED: i32 = 2;

pub(crate) struct EngineHandle {
    pub(crate) engine: Arc<Engine>,
    clock: EngineClock,
    underlay_is_udp: bool,
}

enum EngineClock {
    /// CLOCK_BOOTTIME, so that keys expire through a suspend.
    Boot,
    /// Nanoseconds, set by tests.
    Manual(AtomicU64),
}

impl EngineHandle {
    fn now(&self) -> Instant {
        match &self.clock {
            EngineClock::Boot => icx_io::clock::now(),
            EngineClock::Manual(nanos) => Instant::from_nanos(nanos.load(Ordering::Relaxed)),
        }
    }

    /// The engine for something that lives by the system's clock and speaks UDP.
    pub(crate) fn for_real_traffic(&self, what: &str) -> Outcome<Arc<Engine>> {
        if matches!(self.clock, EngineClock::Manual(_)) {
            return Err(Failure::new(
                Code::State,
                format!("Cannot use an engine with dangerManualClock for {what}: its keys would never expire"),
            ));
        }
        Ok(Arc::clone(&self.engine))
    }

    pub(crate) fn require_udp(&self, what: &str) -> Outcome<()> {
        if self.underlay_is_udp {
            return Ok(());
        }
        Err(Failure::new(
            Code::State,
            format!("Cannot use an engine with a raw underlay for {what}: create it with underlay 'udp'"),
        ))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EngineOptions {
    mode: ModeName,
    host_mac: Option<Text<MacAddr>>,
    gateway_mac: Option<Text<MacAddr>>,
    underlay: UnderlayOptions,
    #[serde(default = "yes")]
    peer_filter: bool,
    #[serde(default)]
    source_port_hashing: bool,
    #[serde(default)]
    copy_ecn: bool,
    #[serde(default)]
    copy_dscp: bool,
    /// 0: none are sent.
    #[serde(default)]
    keepalive_ms: u32,
    inner_mtu: Option<u32>,
    danger_flow_hash_key: Option<Text<Hex64>>,
    #[serde(default)]
    danger_manual_clock: bool,
    #[serde(default)]
    danger_isolated_key_history: bool,
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeName {
    L2,
    L3,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum UnderlayOptions {
    Udp,
    Raw(RawOptions),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawOptions {
    local: Vec<LocalOptions>,
    #[serde(default)]
    outer_udp_checksum: bool,
    #[serde(default = "yes")]
    dont_fragment: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalOptions {
    addr: Text<SocketAddr>,
    mac: Text<MacAddr>,
}

/// The process's memory of used transmit keys, shared by its engines.
fn process_key_history() -> Outcome<Arc<TxKeyHistory>> {
    static HISTORY: OnceLock<Arc<TxKeyHistory>> = OnceLock::new();
    if let Some(history) = HISTORY.get() {
        return Ok(Arc::clone(history));
    }
    let fresh = new_key_history()?;
    Ok(Arc::clone(HISTORY.get_or_init(|| fresh)))
}

fn new_key_history() -> Outcome<Arc<TxKeyHistory>> {
    let mut key = zeroize::Zeroizing::new([0; 32]);
    random(&mut *key)?;
    Ok(Arc::new(TxKeyHistory::new(&key)))
}

fn random(out: &mut [u8]) -> Outcome<()> {
    aws_lc_rs::rand::fill(out)
        .map_err(|_| Failure::new(Code::System, "Cannot create the engine: the system gives no random numbers"))
}

pub(crate) fn create(_: &Call, text: &[u8]) -> Outcome<u32> {
    let options: EngineOptions = json::parse(text)?;
    let mode = match (options.mode, options.host_mac, options.gateway_mac) {
        (ModeName::L3, None, None) => Mode::L3,
        (ModeName::L2, Some(host), Some(gateway)) => Mode::L2 { host_mac: host.0, gateway_mac: gateway.0 },
        (ModeName::L3, ..) => {
            return Err(Failure::invalid(
                "Cannot use 'hostMac' and 'gatewayMac' with mode 'l3': they belong to mode 'l2'",
            ));
        }
        (ModeName::L2, ..) => {
            return Err(Failure::invalid("Cannot use mode 'l2' alone: it takes both 'hostMac' and 'gatewayMac'"));
        }
    };
    let underlay = match options.underlay {
        UnderlayOptions::Udp => Underlay::Udp,
        UnderlayOptions::Raw(raw) => Underlay::Raw {
            local: raw.local.iter().map(|local| LocalEndpoint { addr: local.addr.0, mac: local.mac.0 }).collect(),
            outer_udp_checksum: raw.outer_udp_checksum,
            dont_fragment: raw.dont_fragment,
        },
    };
    let source_port_hashing = match (options.source_port_hashing, options.danger_flow_hash_key) {
        (false, None) => None,
        (false, Some(_)) => {
            return Err(Failure::invalid(
                "Cannot use 'dangerFlowHashKey' without 'sourcePortHashing': set that to true",
            ));
        }
        (true, Some(key)) => Some(key.0.0),
        (true, None) => {
            let mut key = [0; 8];
            random(&mut key)?;
            Some(u64::from_ne_bytes(key))
        }
    };
    let tx_key_history = if options.danger_isolated_key_history { new_key_history()? } else { process_key_history()? };
    let underlay_is_udp = matches!(underlay, Underlay::Udp);
    let engine = Engine::new(EngineConfig {
        mode,
        underlay,
        peer_filter: options.peer_filter,
        source_port_hashing,
        outer_traffic_class: OuterTrafficClass { ecn: options.copy_ecn, dscp: options.copy_dscp },
        keepalive: (options.keepalive_ms > 0).then(|| Duration::from_millis(options.keepalive_ms.into())),
        inner_mtu: inner_mtu_option(options.inner_mtu),
        tx_key_history,
    });
    let clock = if options.danger_manual_clock { EngineClock::Manual(AtomicU64::new(0)) } else { EngineClock::Boot };
    handle::open(EngineHandle { engine: Arc::new(engine), clock, underlay_is_udp })
}

fn inner_mtu_option(mtu: Option<u32>) -> Option<u32> {
    mtu.filter(|&mtu| mtu != 0)
}

pub(crate) fn set_clock(call: &Call, engine: u32, nanos: u64) -> Outcome<i32> {
    match &call.get::<EngineHandle>(engine)?.clock {
        EngineClock::Manual(clock) => {
            clock.store(nanos, Ordering::Relaxed);
            Ok(0)
        }
        EngineClock::Boot => Err(Failure::new(
            Code::State,
            "Cannot set the clock of an engine that runs by the system's: create it with dangerManualClock",
        )),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NetworkOptions {
    vni: Number<Vni>,
    peer: Text<SocketAddr>,
    peer_mac: Option<Text<MacAddr>>,
    routes: Vec<RouteOptions>,
    /// 0 and absent: no limit.
    rx_rate_limit_pps: Option<u32>,
}

fn network(text: &[u8]) -> Outcome<NetworkConfig> {
    let options: NetworkOptions = json::parse(text)?;
    Ok(NetworkConfig {
        vni: options.vni.0,
        peer: options.peer.0,
        // All zero: not known yet.
        peer_mac: options.peer_mac.map_or_else(MacAddr::default, |mac| mac.0),
        routes: options.routes.into_iter().map(Into::into).collect(),
        rx_rate_limit: options.rx_rate_limit_pps.filter(|&limit| limit != 0),
    })
}

pub(crate) fn add_network(call: &Call, engine: u32, text: &[u8]) -> Outcome<i32> {
    let engine = call.get::<EngineHandle>(engine)?;
    let network = network(text)?;
    let vni = network.vni;
    engine.engine.add_network(network).map_err(|error| network_failure("add", vni, &error))?;
    Ok(0)
}

pub(crate) fn update_network(call: &Call, engine: u32, text: &[u8]) -> Outcome<i32> {
    let engine = call.get::<EngineHandle>(engine)?;
    let network = network(text)?;
    let vni = network.vni;
    engine.engine.update_network(network).map_err(|error| network_failure("update", vni, &error))?;
    Ok(0)
}

pub(crate) fn remove_network(call: &Call, engine: u32, vni: u32) -> Outcome<i32> {
    let engine = call.get::<EngineHandle>(engine)?;
    let vni = json::vni(vni)?;
    engine.engine.remove_network(vni).map_err(|error| network_failure("remove", vni, &error))?;
    Ok(0)
}

fn network_failure(verb: &str, vni: Vni, error: &NetworkError) -> Failure {
    let code = match error {
        NetworkError::Exists(_) => Code::Exists,
        NetworkError::Unknown(_) => Code::NotFound,
        _ => Code::Invalid,
    };
    Failure::of(code, format_args!("{verb} network {vni}"), error)
}

pub(crate) fn set_inner_mtu(call: &Call, engine: u32, mtu: u32) -> Outcome<i32> {
    call.get::<EngineHandle>(engine)?.engine.set_inner_mtu(inner_mtu_option(Some(mtu)));
    Ok(0)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InstallOptions {
    vni: Number<Vni>,
    rx_spi: Number<Spi>,
    tx_spi: Number<Spi>,
    rx_key: Text<SaKey>,
    tx_key: Text<SaKey>,
    expires_at_ns: Text<u64>,
}

pub(crate) fn danger_install(call: &Call, engine: u32, text: &[u8]) -> Outcome<i32> {
    let engine = call.get::<EngineHandle>(engine)?;
    let options: InstallOptions = json::parse(text)?;
    let vni = options.vni.0;
    let sa = SaPair {
        rx_spi: options.rx_spi.0,
        tx_spi: options.tx_spi.0,
        rx_key: options.rx_key.0,
        tx_key: options.tx_key.0,
        expires_at: Instant::from_nanos(options.expires_at_ns.0),
    };
    engine.engine.install(engine.now(), vni, sa).map_err(|error| install_failure(vni, &error))?;
    Ok(0)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EpochOptions {
    vni: Number<Vni>,
    epoch: u32,
    rx_key: Text<SaKey>,
    tx_key: Text<SaKey>,
    expires_at_ns: Text<u64>,
}

pub(crate) fn danger_install_epoch(call: &Call, engine: u32, text: &[u8]) -> Outcome<i32> {
    let engine = call.get::<EngineHandle>(engine)?;
    let options: EpochOptions = json::parse(text)?;
    let vni = options.vni.0;
    let expires_at = Instant::from_nanos(options.expires_at_ns.0);
    engine
        .engine
        .danger_install_epoch(engine.now(), vni, options.epoch, options.rx_key.0, options.tx_key.0, expires_at)
        .map_err(|error| install_failure(vni, &error))?;
    Ok(0)
}

fn install_failure(vni: Vni, error: &InstallError) -> Failure {
    let code = match error {
        InstallError::UnknownVni(_) => Code::NotFound,
        InstallError::TxKeyReused(_) | InstallError::StaleEpoch { .. } => Code::Reused,
        InstallError::EqualKeys | InstallError::KeyLength(_) => Code::Key,
        _ => Code::Invalid,
    };
    Failure::of(code, format_args!("install a key for VNI {vni}"), error)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SkipOptions {
    vni: Number<Vni>,
    /// The last counter that counts as used.
    last: Text<u64>,
}

/// 1: moved. 0: there is no transmit key, or it is past that value.
pub(crate) fn skip_tx_counter(call: &Call, engine: u32, text: &[u8]) -> Outcome<i32> {
    let engine = call.get::<EngineHandle>(engine)?;
    let options: SkipOptions = json::parse(text)?;
    Ok(engine.engine.skip_tx_counter_to(options.vni.0, options.last.0).into())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SaStatusText {
    rx: Vec<RxSaText>,
    tx: Option<TxSaText>,
    pending_tx_spi: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RxSaText {
    spi: u32,
    expires_in_ms: u64,
    superseded: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TxSaText {
    spi: u32,
    expires_in_ms: u64,
    /// Decimal: it may be above 2^53.
    sealed: String,
}

pub(crate) fn sa_status(call: &Call, engine: u32, vni: u32) -> Outcome<String> {
    let engine = call.get::<EngineHandle>(engine)?;
    let vni = json::vni(vni)?;
    let now = engine.now();
    let expires_in_ms = |at: Instant| u64::try_from(at.saturating_since(now).as_millis()).unwrap_or(u64::MAX);
    let status = engine.engine.sa_status(now, vni).ok_or_else(|| no_network(vni))?;
    json::text(&SaStatusText {
        rx: status
            .rx
            .iter()
            .map(|sa| RxSaText {
                spi: sa.spi.get(),
                expires_in_ms: expires_in_ms(sa.expires_at),
                superseded: sa.superseded,
            })
            .collect(),
        tx: status.tx.map(|sa| TxSaText {
            spi: sa.spi.get(),
            expires_in_ms: expires_in_ms(sa.expires_at),
            sealed: sa.sealed.to_string(),
        }),
        pending_tx_spi: status.pending_tx.map(Spi::get),
    })
}

fn no_network(vni: Vni) -> Failure {
    Failure::new(Code::NotFound, format!("There is no network {vni} in this engine: add it first"))
}

/// The counters of a VNI, or of the engine for what belongs to none.
pub(crate) fn counters(call: &Call, engine: u32, vni: u32) -> Outcome<CounterSnapshot> {
    let engine = call.get::<EngineHandle>(engine)?;
    if vni == WHOLE_ENGINE {
        return Ok(engine.engine.counters());
    }
    let vni = json::vni(vni)?;
    engine.engine.network_counters(vni).ok_or_else(|| no_network(vni))
}

pub(crate) fn count_tx_errors(call: &Call, engine: u32, vni: u32, packets: u32) -> Outcome<i32> {
    call.get::<EngineHandle>(engine)?.engine.count_tx_errors(json::vni(vni)?, packets.into());
    Ok(0)
}

/// The inner MTU for a path MTU, in bytes.
pub(crate) fn inner_mtu(path_mtu: u32) -> Outcome<u32> {
    icx_proto::wire::mtu::inner_mtu(path_mtu).map_err(|error| Failure::of(Code::Invalid, "fit a packet", &error))
}

pub(crate) fn counter_names() -> Outcome<String> {
    json::text(&COUNTER_NAMES.as_slice())
}

/// Seals virtual-side frames. The number of packets that were processed; what does not fit is for another call.
pub(crate) fn virt_to_phy(
    call: &Call,
    engine: u32,
    input: &[u8],
    packets: &mut [IcxPacket],
    output: &mut [u8],
) -> Outcome<i32> {
    let engine = call.get::<EngineHandle>(engine)?;
    let now = engine.now();
    transform(input, packets, output, |_, frame, out| sent(engine.engine.virt_to_phy(now, frame, out)))
}

/// Opens frames or datagrams. The number of packets that were processed; what does not fit is for another call.
pub(crate) fn phy_to_virt(
    call: &Call,
    engine: u32,
    input: &[u8],
    packets: &mut [IcxPacket],
    output: &mut [u8],
) -> Outcome<i32> {
    let engine = call.get::<EngineHandle>(engine)?;
    let now = engine.now();
    transform(input, packets, output, |packet, frame, out| {
        let src = engine.underlay_is_udp.then(|| ip_of(packet.addr));
        let arrival = Arrival { src, ecn: TrafficClass::new(packet.traffic_class).ecn() };
        match engine.engine.phy_to_virt(now, arrival, frame, out) {
            RxVerdict::Deliver { range, vni } => result(SEND, range, Some(vni)),
            RxVerdict::Consumed { vni } => result(CONSUMED, 0..0, Some(vni)),
            RxVerdict::Drop(reason) => result(-1 - reason as i32, 0..0, None),
        }
    })
}

/// Carries out what is due (expiries, switches of keys) and produces the frames that are due of themselves.
pub(crate) fn to_phy(call: &Call, engine: u32, packets: &mut [IcxPacket], output: &mut [u8]) -> Outcome<i32> {
    let engine = call.get::<EngineHandle>(engine)?;
    if output.len() < OUTPUT_HEADROOM {
        return Err(Failure::new(
            Code::Buffer,
            format!("The output has {} bytes: give at least {OUTPUT_HEADROOM} for each packet", output.len()),
        ));
    }
    let now = engine.now();
    engine.engine.handle_timeout(now);
    let mut used = 0;
    let mut done = 0;
    while done < packets.len() && output.len() - used >= OUTPUT_HEADROOM {
        let Some(verdict) = engine.engine.to_phy(now, &mut output[used..]) else { break };
        packets[done] = placed(sent(verdict), &mut used);
        done += 1;
    }
    Ok(processed(done))
}

/// Runs a batch; `one` gives a result whose offset counts from the start of its own output slot.
fn transform(
    input: &[u8],
    packets: &mut [IcxPacket],
    output: &mut [u8],
    mut one: impl FnMut(&IcxPacket, &[u8], &mut [u8]) -> IcxPacket,
) -> Outcome<i32> {
    // Before the first packet uses a counter.
    check_ranges(input, packets)?;
    let mut used = 0;
    let mut done = 0;
    for packet in packets {
        let Some(frame) = frame(input, packet) else { break };
        // The first packet takes what there is, so that every call gets on: too little is then the engine's verdict.
        if done > 0 && output.len() - used < frame.len() + OUTPUT_HEADROOM {
            break;
        }
        *packet = placed(one(packet, frame, &mut output[used..]), &mut used);
        done += 1;
    }
    Ok(processed(done))
}

/// Whether every packet lies in the input.
pub(crate) fn check_ranges(input: &[u8], packets: &[IcxPacket]) -> Outcome<()> {
    for (index, packet) in packets.iter().enumerate() {
        if frame(input, packet).is_none() {
            return Err(Failure::invalid(format!(
                "Packet {index} is at {} with {} bytes, the input has {}",
                packet.offset,
                packet.length,
                input.len()
            )));
        }
    }
    Ok(())
}

pub(crate) fn frame<'a>(input: &'a [u8], packet: &IcxPacket) -> Option<&'a [u8]> {
    let start = packet.offset as usize;
    input.get(start..start.checked_add(packet.length as usize)?)
}

pub(crate) fn processed(count: usize) -> i32 {
    // A batch has at most i32::MAX packets: `abi` refuses more.
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The packet at its place in the whole output; the slot behind it starts where it ends.
fn placed(mut packet: IcxPacket, used: &mut usize) -> IcxPacket {
    if packet.length == 0 {
        return packet;
    }
    let end = *used + packet.offset as usize + packet.length as usize;
    // The output's length is a u32.
    packet.offset += *used as u32;
    *used = end;
    packet
}

fn sent(verdict: TxVerdict) -> IcxPacket {
    match verdict {
        TxVerdict::Send { range, vni, peer, source_port, traffic_class } => IcxPacket {
            addr: octets_of(peer.ip()),
            port: peer.port(),
            source_port: source_port.unwrap_or(0),
            traffic_class: traffic_class.get(),
            ..result(SEND, range, Some(vni))
        },
        TxVerdict::Reply { range } => result(HANDLED, range, None),
        TxVerdict::Drop(reason) => result(-1 - reason as i32, 0..0, None),
    }
}

fn result(verdict: i32, range: core::ops::Range<usize>, vni: Option<Vni>) -> IcxPacket {
    IcxPacket { verdict, vni: vni.map_or(0, Vni::get), ..placed_at(&range) }
}

pub(crate) fn octets_of(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// A packet that lies in `range` of a buffer, and nothing more.
pub(crate) fn placed_at(range: &core::ops::Range<usize>) -> IcxPacket {
    // Ranges lie in an output whose length is a u32.
    IcxPacket { offset: range.start as u32, length: range.len() as u32, ..IcxPacket::default() }
}

pub(crate) fn ip_of(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}
