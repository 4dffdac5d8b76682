//! Forwarders over AF_XDP, and what a host can do for them.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use icx_io::afxdp::{
    self, AttachMode, AttachedMode, BusyPoll, DeviceConfig, Forwarder, ForwarderConfig, ForwarderCounters,
    ForwarderError, ForwarderInfo, ForwarderNotice, ForwarderState, Lack, LackKind, LinkStatus, NextHopState,
    VethDevice, XdpSupport, ZeroCopy,
};
use icx_io::{PumpCounters, PumpError};
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::engine::EngineHandle;
use crate::error::{Failure, Outcome};
use crate::events::{self, Kind};
use crate::guard::Call;
use crate::handle;
use crate::io::{LatencyOptions, TunHandle};
use crate::json::{self, InterfaceAddress, Text};

/// The counters of both kinds of datapaths, then those of a forwarder alone.
const COUNTERS: usize = PumpCounters::NAMES.len() + ForwarderCounters::NAMES.len();

pub(crate) struct ForwarderHandle {
    forwarder: Forwarder,
    /// For events.
    id: u32,
}

impl ForwarderHandle {
    /// Ends it and waits for that.
    pub(crate) fn stop(&self) {
        self.forwarder.stop();
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ForwarderOptions {
    engine: u32,
    interface: String,
    device: DeviceOptions,
    bound: Vec<Text<SocketAddr>>,
    #[serde(default)]
    attach: AttachOptions,
    #[serde(default)]
    zero_copy: ZeroCopyOptions,
    queues: Option<NonZero<u32>>,
    #[serde(default)]
    cpu_pin: bool,
    busy_poll: Option<BusyPollOptions>,
    #[serde(default)]
    latency: LatencyOptions,
    #[serde(default)]
    clamp_mss: bool,
    pcap_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum DeviceOptions {
    Veth(VethOptions),
    /// The handle of a TUN device.
    Tun(u32),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VethOptions {
    name: String,
    mtu: u32,
    addresses: Vec<Text<InterfaceAddress>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AttachOptions {
    #[default]
    Auto,
    Native,
    Generic,
}

impl From<AttachOptions> for AttachMode {
    fn from(mode: AttachOptions) -> Self {
        match mode {
            AttachOptions::Auto => AttachMode::Auto,
            AttachOptions::Native => AttachMode::Native,
            AttachOptions::Generic => AttachMode::Generic,
        }
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ZeroCopyOptions {
    #[default]
    Auto,
    Require,
    Off,
}

impl From<ZeroCopyOptions> for ZeroCopy {
    fn from(mode: ZeroCopyOptions) -> Self {
        match mode {
            ZeroCopyOptions::Auto => ZeroCopy::Auto,
            ZeroCopyOptions::Require => ZeroCopy::Require,
            ZeroCopyOptions::Off => ZeroCopy::Off,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct BusyPollOptions {
    microseconds: u32,
    budget: u32,
}

pub(crate) fn open_forwarder(call: &Call, text: &[u8]) -> Outcome<u32> {
    let options: ForwarderOptions = json::parse(text)?;
    let engine = call.get::<EngineHandle>(options.engine)?;
    let engine = engine.for_real_traffic("a forwarder")?;
    let reservation = handle::reserve()?;
    let device = match options.device {
        DeviceOptions::Veth(VethOptions { name, mtu, addresses }) => {
            let addresses = addresses.iter().map(|address| (address.0.addr, address.0.prefix_len)).collect();
            DeviceConfig::Veth(VethDevice { name, mtu, addresses })
        }
        DeviceOptions::Tun(tun) => {
            let device = call.get::<TunHandle>(tun)?.device.take()?;
            handle::disown(tun);
            DeviceConfig::Tun(device)
        }
    };
    let what = format!("open a forwarder on {}", options.interface);
    let config = ForwarderConfig {
        interface: options.interface,
        device,
        bound: options.bound.iter().map(|bound| bound.0).collect(),
        attach: options.attach.into(),
        zero_copy: options.zero_copy.into(),
        queues: options.queues.map(NonZero::get),
        cpu_pin: options.cpu_pin,
        busy_poll: options.busy_poll.map(|BusyPollOptions { microseconds, budget }| BusyPoll { microseconds, budget }),
        latency: options.latency.into(),
        clamp_mss: options.clamp_mss,
        idle_wake: Duration::from_millis(250),
        capture: options.pcap_file,
    };
    let forwarder = Forwarder::open(engine, config).map_err(|error| failure(what, &error))?;
    let id = reservation.id();
    Ok(reservation.open(Arc::new(ForwarderHandle { forwarder, id })))
}

fn failure(what: impl std::fmt::Display, error: &ForwarderError) -> Failure {
    match error {
        ForwarderError::Started | ForwarderError::LinkDown(_) | ForwarderError::MacChanged { .. } => {
            Failure::of(Code::State, what, error)
        }
        ForwarderError::Worker(PumpError::Panicked { .. }) => Failure::of(Code::Panic, what, error),
        ForwarderError::NoZeroCopy { .. } => {
            Failure { code: Code::Unsupported, ..Failure::system(what, error, error.errno()) }
        }
        _ => Failure::system(what, error, error.errno()),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info<'a> {
    interface: &'a str,
    interface_index: u32,
    mac: String,
    driver: Option<&'a str>,
    queues: u32,
    attached: &'static str,
    zero_copy: bool,
    device: DeviceInfo<'a>,
    frame_bytes: u32,
    max_path_mtu: u32,
    settings: &'a [String],
}

#[derive(Serialize)]
struct DeviceInfo<'a> {
    kind: &'static str,
    name: &'a str,
    index: u32,
    mtu: u32,
    queues: u32,
}

pub(crate) fn forwarder_info(call: &Call, forwarder: u32) -> Outcome<String> {
    let handle = call.get::<ForwarderHandle>(forwarder)?;
    let ForwarderInfo { interface, interface_index, mac, driver, queues, attached, .. } = handle.forwarder.info();
    let ForwarderInfo { zero_copy, device, frame_bytes, max_path_mtu, settings, .. } = handle.forwarder.info();
    json::text(&Info {
        interface,
        interface_index: *interface_index,
        mac: mac.to_string(),
        driver: driver.as_deref(),
        queues: *queues,
        attached: match attached {
            AttachedMode::Native => "native",
            AttachedMode::Generic => "generic",
        },
        zero_copy: *zero_copy,
        device: DeviceInfo {
            kind: device.kind,
            name: &device.name,
            index: device.index,
            mtu: device.mtu,
            queues: device.queues,
        },
        frame_bytes: *frame_bytes,
        max_path_mtu: *max_path_mtu,
        settings,
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    link: &'static str,
    interface: String,
    next_hops: Vec<NextHop>,
}

#[derive(Serialize)]
struct NextHop {
    peer: String,
    mac: Option<String>,
    reason: Option<String>,
}

impl From<NextHopState> for NextHop {
    fn from(NextHopState { peer, mac }: NextHopState) -> Self {
        let (mac, reason) = match mac {
            Ok(mac) => (Some(mac.to_string()), None),
            Err(reason) => (None, Some(reason)),
        };
        NextHop { peer: peer.to_string(), mac, reason }
    }
}

fn link_name(status: &LinkStatus) -> &'static str {
    match status {
        LinkStatus::Stopped => "stopped",
        LinkStatus::Up => "up",
        LinkStatus::Down => "down",
        LinkStatus::Removed => "removed",
    }
}

pub(crate) fn forwarder_state(call: &Call, forwarder: u32) -> Outcome<String> {
    let ForwarderState { link, interface, next_hops } = call.get::<ForwarderHandle>(forwarder)?.forwarder.state();
    let next_hops = next_hops.into_iter().map(Into::into).collect();
    json::text(&State { link: link_name(&link), interface, next_hops })
}

#[derive(Serialize)]
#[serde(tag = "notice", rename_all = "kebab-case")]
enum Notice {
    Link {
        link: &'static str,
        interface: String,
    },
    NextHop {
        #[serde(flatten)]
        next_hop: NextHop,
    },
    Oversize {
        hint: String,
    },
    CaptureFailed {
        message: String,
    },
}

#[derive(Serialize)]
struct Ended {
    message: String,
    operation: &'static str,
    errno: Option<i32>,
}

pub(crate) fn start_forwarder(call: &Call, forwarder: u32) -> Outcome<i32> {
    let handle = call.get::<ForwarderHandle>(forwarder)?;
    let id = handle.id;
    let on_notice = Box::new(move |notice| {
        let notice = match notice {
            ForwarderNotice::Link { status, interface } => Notice::Link { link: link_name(&status), interface },
            ForwarderNotice::NextHop(state) => Notice::NextHop { next_hop: state.into() },
            ForwarderNotice::Oversize { hint } => Notice::Oversize { hint },
            ForwarderNotice::CaptureFailed { message } => Notice::CaptureFailed { message },
            _ => return,
        };
        events::push(Kind::ForwarderNotice, id, Code::Ok, json::text(&notice).unwrap_or_default());
    });
    let on_end = Box::new(move |result: Result<(), ForwarderError>| {
        if let Err(error) = result {
            let failure = failure("forward packets", &error);
            let ended = Ended { message: failure.message, operation: "forward", errno: failure.errno };
            // Two texts and a number always become JSON.
            events::push(Kind::ForwarderEnded, id, failure.code, json::text(&ended).unwrap_or_default());
        }
    });
    handle.forwarder.start(on_notice, on_end).map_err(|error| failure("start the forwarder", &error))?;
    Ok(0)
}

pub(crate) fn stop_forwarder(call: &Call, forwarder: u32) -> Outcome<i32> {
    call.get::<ForwarderHandle>(forwarder)?.stop();
    Ok(0)
}

/// In the order of [`forwarder_counter_names`].
pub(crate) fn forwarder_counters(call: &Call, forwarder: u32) -> Outcome<[u64; COUNTERS]> {
    let (moved, own) = call.get::<ForwarderHandle>(forwarder)?.forwarder.counters();
    let mut values = [0; COUNTERS];
    let (first, rest) = values.split_at_mut(PumpCounters::NAMES.len());
    first.copy_from_slice(&moved.values());
    rest.copy_from_slice(&own.values());
    Ok(values)
}

pub(crate) fn forwarder_counter_names() -> Outcome<String> {
    json::text(&[&PumpCounters::NAMES[..], &ForwarderCounters::NAMES[..]].concat())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SupportQuestion {
    interface: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SupportAnswer {
    driver: Option<String>,
    queues: Option<u32>,
    native: Option<bool>,
    zero_copy: Option<bool>,
    missing: Vec<LackAnswer>,
}

#[derive(Serialize)]
struct LackAnswer {
    kind: &'static str,
    what: String,
}

impl From<Lack> for LackAnswer {
    fn from(Lack { kind, what }: Lack) -> Self {
        let kind = match kind {
            LackKind::Permission => "permission",
            LackKind::Kernel => "kernel",
            LackKind::System => "system",
        };
        LackAnswer { kind, what }
    }
}

pub(crate) fn support(_: &Call, text: &[u8]) -> Outcome<String> {
    let SupportQuestion { interface } = json::parse(text)?;
    let XdpSupport { driver, queues, native, zero_copy, missing } =
        afxdp::probe(&interface).map_err(|error| crate::io::link_failure(&interface, &error))?;
    let missing = missing.into_iter().map(LackAnswer::from).collect();
    json::text(&SupportAnswer { driver, queues, native, zero_copy, missing })
}
