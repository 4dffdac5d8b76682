//! Devices, sockets, the pumps between them, and questions to the kernel about its network.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Mutex;

use icx_io::{
    Datagram, DatagramBatches, DeviceError, Family, Latency, LinkError, Pump, PumpCounters, PumpError, PumpNotice,
    PumpOptions, RouteError, Tun, TunConfig, TunError, TunOffload, Udp, UdpConfig, UdpOffload,
};
use icx_proto::engine::{PathMtuChange, PathMtuReason};
use icx_proto::wire::traffic_class::TrafficClass;
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::device::{Device, DeviceSlot, require_room, taken, verdict};
use crate::engine::{self, EngineHandle, IcxPacket};
use crate::error::{Failure, Outcome};
use crate::events::{self, Kind, Watch};
use crate::guard::Call;
use crate::handle::{self, lock};
use crate::json::{self, InterfaceAddress, Text};

/// A TUN device that no pump has taken yet.
pub(crate) struct TunHandle {
    info: TunInfo,
    pub(crate) device: DeviceSlot<Tun>,
}

impl TunHandle {
    /// Closes the device at once, whoever still waits for it.
    pub(crate) fn close(&self) {
        self.device.close();
    }
}

#[derive(Serialize)]
struct TunInfo {
    name: String,
    index: u32,
    mtu: u32,
    queues: usize,
    offload: TunOffloads,
}

/// What a device is to do, and what it can.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct TunOffloads {
    tso: bool,
    uso: bool,
    gro: bool,
}

impl Default for TunOffloads {
    fn default() -> Self {
        TunOffload::default().into()
    }
}

impl From<TunOffload> for TunOffloads {
    fn from(TunOffload { tso, uso, gro }: TunOffload) -> Self {
        TunOffloads { tso, uso, gro }
    }
}

impl From<TunOffloads> for TunOffload {
    fn from(TunOffloads { tso, uso, gro }: TunOffloads) -> Self {
        TunOffload { tso, uso, gro }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TunOptions {
    name: String,
    mtu: u32,
    addresses: Vec<Text<InterfaceAddress>>,
    #[serde(default = "one")]
    queues: NonZero<u16>,
    #[serde(default)]
    offload: TunOffloads,
}

fn one() -> NonZero<u16> {
    NonZero::<u16>::MIN
}

pub(crate) fn open_tun(_: &Call, text: &[u8]) -> Outcome<u32> {
    let options: TunOptions = json::parse(text)?;
    let what = format!("open the TUN device '{}'", options.name);
    let addresses = options.addresses.iter().map(|address| (address.0.addr, address.0.prefix_len)).collect();
    let config = TunConfig {
        name: options.name,
        mtu: options.mtu,
        addresses,
        queues: options.queues,
        offload: options.offload.into(),
    };
    let device = Tun::open(config).map_err(|error| {
        let failure = Failure::system(what, &error, error.errno());
        if matches!(error, TunError::NoDriver | TunError::Device(DeviceError::Ipv6Disabled { .. })) {
            Failure { code: Code::Unsupported, ..failure }
        } else {
            failure
        }
    })?;
    let info = TunInfo {
        name: device.name().to_owned(),
        index: device.index(),
        mtu: device.mtu(),
        queues: device.queues(),
        offload: device.offload().into(),
    };
    handle::open(TunHandle { info, device: DeviceSlot::new(device) })
}

pub(crate) fn tun_info(call: &Call, tun: u32) -> Outcome<String> {
    json::text(&call.get::<TunHandle>(tun)?.info)
}

/// An underlay of UDP sockets that no pump has taken yet.
pub(crate) struct UdpHandle {
    info: UdpInfo,
    sockets: Mutex<Option<Sockets>>,
    watch: Watch,
}

struct Sockets {
    udp: Udp,
    /// Made when the first packet moves through this handle.
    batches: Option<Box<DatagramBatches>>,
}

impl UdpHandle {
    /// Closes the sockets at once, whoever still waits for them.
    pub(crate) fn close(&self) {
        drop(lock(&self.sockets).take());
        self.watch.end();
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UdpInfo {
    local_address: IpAddr,
    port: u16,
    sockets: usize,
    offload: UdpOffloads,
}

/// What the kernel is to do for the sockets, and what it can.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct UdpOffloads {
    segment: bool,
    merge: bool,
}

impl Default for UdpOffloads {
    fn default() -> Self {
        UdpOffload::default().into()
    }
}

impl From<UdpOffload> for UdpOffloads {
    fn from(UdpOffload { segment, merge }: UdpOffload) -> Self {
        UdpOffloads { segment, merge }
    }
}

impl From<UdpOffloads> for UdpOffload {
    fn from(UdpOffloads { segment, merge }: UdpOffloads) -> Self {
        UdpOffload { segment, merge }
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FamilyOptions {
    Ipv4,
    Ipv6,
    #[default]
    Dual,
}

impl From<FamilyOptions> for Family {
    fn from(family: FamilyOptions) -> Self {
        match family {
            FamilyOptions::Ipv4 => Family::Ipv4,
            FamilyOptions::Ipv6 => Family::Ipv6,
            FamilyOptions::Dual => Family::Dual,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UdpOptions {
    local_address: Option<Text<IpAddr>>,
    port: u16,
    source_port_hashing: bool,
    family: FamilyOptions,
    #[serde(default = "one")]
    sockets: NonZero<u16>,
    #[serde(default)]
    offload: UdpOffloads,
}

pub(crate) fn open_udp(_: &Call, text: &[u8]) -> Outcome<u32> {
    let options: UdpOptions = json::parse(text)?;
    let sockets = Udp::open(UdpConfig {
        local: options.local_address.map(|address| address.0),
        port: options.port,
        family: options.family.into(),
        source_port_hashing: options.source_port_hashing,
        sockets: options.sockets,
        offload: options.offload.into(),
    })
    .map_err(|error| Failure::system(format_args!("open UDP port {}", options.port), &error, error.errno()))?;
    let local = sockets.local_addr();
    let info = UdpInfo {
        local_address: local.ip(),
        port: local.port(),
        sockets: sockets.sockets(),
        offload: sockets.offload().into(),
    };
    let sockets = Mutex::new(Some(Sockets { udp: sockets, batches: None }));
    handle::open(UdpHandle { info, sockets, watch: Watch::default() })
}

pub(crate) fn udp_info(call: &Call, udp: u32) -> Outcome<String> {
    json::text(&call.get::<UdpHandle>(udp)?.info)
}

/// Receives datagrams to the start of `output`. None: event 2 comes once there are some.
pub(crate) fn receive_udp(call: &Call, udp: u32, packets: &mut [IcxPacket], output: &mut [u8]) -> Outcome<i32> {
    let handle = call.get::<UdpHandle>(udp)?;
    require_room(output)?;
    let readiness = handle.watch.readiness()?;
    let mut sockets = lock(&handle.sockets);
    let Sockets { udp: sockets, batches } = sockets.as_mut().ok_or_else(taken)?;
    let mut slots = packets.iter_mut();
    let mut used = 0;
    let count = batches
        .get_or_insert_default()
        .receive(sockets, &readiness, udp, &mut |datagram| {
            let payload = if datagram.truncated { &[] } else { datagram.payload };
            let range = used..used + payload.len();
            let Some(room) = output.get_mut(range.clone()) else { return false };
            let Some(packet) = slots.next() else { return false };
            room.copy_from_slice(payload);
            used = range.end;
            // Without an internet address it is from nobody, whom no peer filter lets pass.
            let from = datagram.from.unwrap_or_else(|| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0));
            *packet = IcxPacket {
                verdict: verdict(!datagram.truncated),
                addr: engine::octets_of(from.ip()),
                port: from.port(),
                traffic_class: datagram.traffic_class.get(),
                ..engine::placed_at(&range)
            };
            true
        })
        .map_err(|error| pump_failure("receive packets", &error))?;
    Ok(engine::processed(count))
}

/// Sends datagrams, as many as the sockets take at once. What the kernel refuses gets the verdict [`REFUSED`].
pub(crate) fn send_udp(call: &Call, udp: u32, input: &[u8], packets: &mut [IcxPacket]) -> Outcome<i32> {
    let handle = call.get::<UdpHandle>(udp)?;
    engine::check_ranges(input, packets)?;
    let readiness = handle.watch.readiness()?;
    let mut sockets = lock(&handle.sockets);
    let Sockets { udp: sockets, batches } = sockets.as_mut().ok_or_else(taken)?;
    let datagrams: Vec<Datagram<'_>> = packets
        .iter()
        .map_while(|packet| {
            Some(Datagram {
                payload: engine::frame(input, packet)?,
                to: SocketAddr::new(engine::ip_of(packet.addr), packet.port),
                source_port: (packet.source_port != 0).then_some(packet.source_port),
                traffic_class: TrafficClass::new(packet.traffic_class),
            })
        })
        .collect();
    let count = batches
        .get_or_insert_default()
        .send(sockets, icx_io::clock::now(), &datagrams, (&readiness, udp), &mut |at, outcome| {
            packets[at].verdict = verdict(outcome.sent);
            if outcome.fell_back {
                packets[at].source_port = 0;
            }
        })
        .map_err(|error| pump_failure("send packets", &error))?;
    Ok(engine::processed(count))
}

/// The threads between a device, an engine and an underlay.
pub(crate) struct PumpHandle {
    pump: Pump,
}

impl PumpHandle {
    /// Stops the threads and waits for them.
    pub(crate) fn stop(&self) {
        self.pump.stop();
        self.pump.join();
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PumpStart {
    engine: u32,
    device: u32,
    udp: u32,
    #[serde(default)]
    latency: LatencyOptions,
    #[serde(default)]
    clamp_mss: bool,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LatencyOptions {
    Low,
    #[default]
    Balanced,
    Idle,
}

impl From<LatencyOptions> for Latency {
    fn from(latency: LatencyOptions) -> Self {
        match latency {
            LatencyOptions::Low => Latency::Low,
            LatencyOptions::Balanced => Latency::Balanced,
            LatencyOptions::Idle => Latency::Idle,
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "notice", rename_all = "kebab-case")]
enum Notice {
    SegmentationRefused {
        local: SocketAddr,
        errno: Option<i32>,
        message: String,
    },
    #[serde(rename_all = "camelCase")]
    PathMtu {
        vni: u32,
        path_mtu: Option<u32>,
        inner_mtu: Option<u32>,
        reason: &'static str,
    },
}

impl From<PathMtuChange> for Notice {
    fn from(PathMtuChange { vni, learned, reason }: PathMtuChange) -> Self {
        let reason = match reason {
            PathMtuReason::Router => "router",
            PathMtuReason::Interface => "interface",
            PathMtuReason::Expired => "expired",
            PathMtuReason::PeerChanged => "peer-changed",
        };
        Notice::PathMtu {
            vni: vni.get(),
            path_mtu: learned.map(|learned| learned.path_mtu),
            inner_mtu: learned.map(|learned| learned.inner_mtu),
            reason,
        }
    }
}

#[derive(Serialize)]
struct PumpEnded {
    message: String,
    operation: String,
    errno: Option<i32>,
}

pub(crate) fn start_pump(call: &Call, text: &[u8]) -> Outcome<u32> {
    let ids: PumpStart = json::parse(text)?;
    let engine = call.get::<EngineHandle>(ids.engine)?;
    let device = Device::of(call, ids.device)?;
    let udp = call.get::<UdpHandle>(ids.udp)?;
    engine.require_udp("a pump over UDP sockets")?;
    let engine = engine.for_real_traffic("a pump")?;
    let reservation = handle::reserve()?;
    let id = reservation.id();

    // Both or neither. Whoever closed a handle at this moment, or starts another pump with it, has the object.
    let taken = device.take_with(ids.device, || lock(&udp.sockets).take());
    let Some((device, sockets)) = taken else {
        return Err(Failure::new(
            Code::State,
            "Cannot start the pump: its device or UDP underlay belongs to another pump",
        ));
    };
    udp.watch.end();
    handle::disown(ids.udp);
    let on_notice = Box::new(move |notice| {
        let notice = match notice {
            PumpNotice::SegmentationRefused { local, errno, message } => {
                Notice::SegmentationRefused { local, errno, message }
            }
            PumpNotice::PathMtu(change) => change.into(),
            _ => return,
        };
        events::push(Kind::PumpNotice, id, Code::Ok, json::text(&notice).unwrap_or_default());
    });
    let on_end = Box::new(move |result: Result<(), PumpError>| {
        if let Err(error) = result {
            let failure = pump_failure("move packets", &error);
            let ended =
                PumpEnded { message: failure.message, operation: error.operation().to_owned(), errno: failure.errno };
            // Two texts and a number always become JSON.
            events::push(Kind::PumpEnded, id, failure.code, json::text(&ended).unwrap_or_default());
        }
    });
    let mut options = PumpOptions::default();
    options.latency = ids.latency.into();
    options.clamp_mss = ids.clamp_mss;
    let pump = Pump::start(engine, device, sockets.udp, options, on_notice, on_end)
        .map_err(|error| pump_failure("start the pump", &error))?;
    Ok(reservation.open(std::sync::Arc::new(PumpHandle { pump })))
}

pub(crate) fn stop_pump(call: &Call, pump: u32) -> Outcome<i32> {
    call.get::<PumpHandle>(pump)?.stop();
    Ok(0)
}

pub(crate) fn set_device_mtu(call: &Call, pump: u32, mtu: u32) -> Outcome<i32> {
    let set = call.get::<PumpHandle>(pump)?.pump.set_device_mtu(mtu);
    set.map_err(|error| match error {
        DeviceError::BadMtu { .. } => Failure::of(Code::Invalid, "set the MTU of the device", &error),
        _ => Failure::system("set the MTU of the device", &error, error.errno()),
    })?;
    Ok(0)
}

/// In the order of [`pump_counter_names`].
pub(crate) fn pump_counters(call: &Call, pump: u32) -> Outcome<[u64; PumpCounters::NAMES.len()]> {
    Ok(call.get::<PumpHandle>(pump)?.pump.counters().values())
}

pub(crate) fn pump_counter_names() -> Outcome<String> {
    json::text(&PumpCounters::NAMES)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteQuestion {
    destination: Text<IpAddr>,
    source: Option<Text<IpAddr>>,
}

#[derive(Serialize)]
struct RouteAnswer {
    interface: String,
    index: u32,
    source: IpAddr,
    gateway: Option<IpAddr>,
    mtu: u32,
}

pub(crate) fn lookup_route(_: &Call, text: &[u8]) -> Outcome<String> {
    let question: RouteQuestion = json::parse(text)?;
    let destination = question.destination.0;
    let route = icx_io::route::lookup(destination, question.source.map(|source| source.0)).map_err(|error| {
        let code = match error {
            RouteError::FamilyMismatch { .. } => Code::Invalid,
            RouteError::NoRoute { .. } => Code::NotFound,
            _ => Code::System,
        };
        let errno = match &error {
            RouteError::NoRoute { source, .. } | RouteError::Lookup { source, .. } => source.errno(),
            _ => None,
        };
        Failure { errno, ..Failure::of(code, format_args!("find the way to {destination}"), &error) }
    })?;
    json::text(&RouteAnswer {
        interface: route.interface,
        index: route.index,
        source: route.source,
        gateway: route.gateway,
        mtu: route.mtu,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InterfaceQuestion {
    name: String,
}

#[derive(Serialize)]
struct InterfaceAnswer {
    name: String,
    index: u32,
    mtu: u32,
    mac: Option<String>,
    up: bool,
}

pub(crate) fn lookup_interface(_: &Call, text: &[u8]) -> Outcome<String> {
    let InterfaceQuestion { name } = json::parse(text)?;
    let link = icx_io::link::by_name(&name).map_err(|error| link_failure(&name, &error))?;
    json::text(&InterfaceAnswer {
        name: link.name,
        index: link.index,
        mtu: link.mtu,
        mac: link.mac.map(|mac| mac.to_string()),
        up: link.up,
    })
}

pub(crate) fn link_failure(name: &str, error: &LinkError) -> Failure {
    let (code, errno) = match error {
        LinkError::NotFound(_) => (Code::NotFound, None),
        LinkError::BadName(_) => (Code::Invalid, None),
        LinkError::Lookup { source, .. } => (Code::System, source.errno()),
        _ => (Code::System, None),
    };
    Failure { errno, ..Failure::of(code, format_args!("look at interface '{name}'"), error) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResolveQuestion {
    host: String,
    port: u16,
    #[serde(default)]
    family: FamilyOptions,
}

pub(crate) fn resolve(_: &Call, text: &[u8]) -> Outcome<String> {
    let question: ResolveQuestion = json::parse(text)?;
    let addresses =
        icx_io::resolve::lookup(&question.host, question.port, question.family.into()).map_err(|error| {
            Failure::of(Code::NotFound, format_args!("find the address of '{}'", question.host), &error)
        })?;
    json::text(&addresses)
}

pub(crate) fn pump_failure(what: &str, error: &PumpError) -> Failure {
    match error {
        PumpError::Panicked { .. } => Failure::of(Code::Panic, what, error),
        _ => Failure::system(what, error, error.errno()),
    }
}
