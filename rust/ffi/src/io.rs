//! Devices, sockets, the pumps between them, and questions to the kernel about its network.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use icx_io::{
    Family, LinkError, Pump, PumpCounters, PumpError, PumpOptions, RouteError, Tun, TunConfig, TunError, Udp, UdpConfig,
};
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::engine::EngineHandle;
use crate::error::{Failure, Outcome};
use crate::events::{self, Kind};
use crate::guard::Call;
use crate::handle;
use crate::json::{self, InterfaceAddress, Text};

/// A TUN device that no pump has taken yet.
pub(crate) struct TunHandle {
    info: TunInfo,
    device: Mutex<Option<Tun>>,
}

#[derive(Serialize)]
struct TunInfo {
    name: String,
    index: u32,
    mtu: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TunOptions {
    name: String,
    mtu: u32,
    addresses: Vec<Text<InterfaceAddress>>,
}

pub(crate) fn open_tun(_: &Call, text: &[u8]) -> Outcome<u32> {
    let options: TunOptions = json::parse(text)?;
    let what = format!("open the TUN device '{}'", options.name);
    let addresses = options.addresses.iter().map(|address| (address.0.addr, address.0.prefix_len)).collect();
    let device = Tun::open(TunConfig { name: options.name, mtu: options.mtu, addresses }).map_err(|error| {
        let failure = Failure::system(what, &error, error.errno());
        if matches!(error, TunError::NoDriver | TunError::Ipv6Disabled { .. }) {
            Failure { code: Code::Unsupported, ..failure }
        } else {
            failure
        }
    })?;
    let info = TunInfo { name: device.name().to_owned(), index: device.index(), mtu: device.mtu() };
    handle::open(TunHandle { info, device: Mutex::new(Some(device)) })
}

pub(crate) fn tun_info(call: &Call, tun: u32) -> Outcome<String> {
    json::text(&call.get::<TunHandle>(tun)?.info)
}

/// An underlay of UDP sockets that no pump has taken yet.
pub(crate) struct UdpHandle {
    info: UdpInfo,
    sockets: Mutex<Option<Udp>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UdpInfo {
    local_address: IpAddr,
    port: u16,
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
}

pub(crate) fn open_udp(_: &Call, text: &[u8]) -> Outcome<u32> {
    let options: UdpOptions = json::parse(text)?;
    let sockets = Udp::open(UdpConfig {
        local: options.local_address.map(|address| address.0),
        port: options.port,
        family: options.family.into(),
        source_port_hashing: options.source_port_hashing,
    })
    .map_err(|error| Failure::system(format_args!("open UDP port {}", options.port), &error, error.errno()))?;
    let local = sockets.local_addr();
    let info = UdpInfo { local_address: local.ip(), port: local.port() };
    handle::open(UdpHandle { info, sockets: Mutex::new(Some(sockets)) })
}

pub(crate) fn udp_info(call: &Call, udp: u32) -> Outcome<String> {
    json::text(&call.get::<UdpHandle>(udp)?.info)
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
#[serde(deny_unknown_fields)]
struct PumpStart {
    engine: u32,
    tun: u32,
    udp: u32,
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
    let tun = call.get::<TunHandle>(ids.tun)?;
    let udp = call.get::<UdpHandle>(ids.udp)?;
    engine.require_udp("a pump over UDP sockets")?;
    let engine = engine.for_real_traffic("a pump")?;
    let reservation = handle::reserve()?;
    let id = reservation.id();

    let mut device = tun.device.lock().unwrap_or_else(PoisonError::into_inner);
    let mut sockets = udp.sockets.lock().unwrap_or_else(PoisonError::into_inner);
    // Both or neither. Whoever closed a handle at this moment, or starts another pump with it, has the object.
    let (device, sockets) = match (device.take(), sockets.take()) {
        (Some(device), Some(sockets)) => (device, sockets),
        (was_device, was_sockets) => {
            *device = was_device;
            *sockets = was_sockets;
            return Err(Failure::new(
                Code::State,
                "Cannot start the pump: its TUN device or UDP underlay belongs to another pump",
            ));
        }
    };
    handle::disown(ids.tun);
    handle::disown(ids.udp);
    let on_end = Box::new(move |result: Result<(), PumpError>| {
        if let Err(error) = result {
            let failure = pump_failure("move packets", &error);
            let ended =
                PumpEnded { message: failure.message, operation: error.operation().to_owned(), errno: failure.errno };
            // Two texts and a number always become JSON.
            events::push(Kind::PumpEnded, id, failure.code, json::text(&ended).unwrap_or_default());
        }
    });
    let pump = Pump::start(engine, device, sockets, PumpOptions::default(), on_end)
        .map_err(|error| pump_failure("start the pump", &error))?;
    Ok(reservation.open(std::sync::Arc::new(PumpHandle { pump })))
}

pub(crate) fn stop_pump(call: &Call, pump: u32) -> Outcome<i32> {
    call.get::<PumpHandle>(pump)?.stop();
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
    let link = icx_io::link::by_name(&name).map_err(|error| {
        let (code, errno) = match &error {
            LinkError::NotFound(_) => (Code::NotFound, None),
            LinkError::BadName(_) => (Code::Invalid, None),
            LinkError::Lookup { source, .. } => (Code::System, source.errno()),
            _ => (Code::System, None),
        };
        Failure { errno, ..Failure::of(code, format_args!("look at interface '{name}'"), &error) }
    })?;
    json::text(&InterfaceAnswer {
        name: link.name,
        index: link.index,
        mtu: link.mtu,
        mac: link.mac.map(|mac| mac.to_string()),
        up: link.up,
    })
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

fn pump_failure(what: &str, error: &PumpError) -> Failure {
    match error {
        PumpError::Panicked { .. } => Failure::of(Code::Panic, what, error),
        _ => Failure::system(what, error, error.errno()),
    }
}
