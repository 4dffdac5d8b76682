//! What a forwarder is made from, what it says of itself, and why it fails.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use icx_proto::MacAddr;

use super::program::{AttachMode, AttachedMode};
use crate::pump::{Latency, PumpError};
use crate::tun::Tun;

/// Whether the network interface reads and writes frames in the UMEM itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Where the driver can.
    #[default]
    Auto,
    /// Or the forwarder does not open.
    Require,
    Off,
}

/// Preferred busy polling of the interface's queues (`SO_PREFER_BUSY_POLL`): workers drive the driver instead of interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// How long one system call polls at most, in microseconds.
    pub microseconds: u32,
    /// Packets that it handles at most.
    pub budget: u32,
}

/// A veth pair to make, whose one end is the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethDevice {
    /// Of the host's end, 1 to 11 bytes; the other end is `<name>-xdp`. The engine's mode says its hardware address.
    pub name: String,
    /// The largest IP packet, in bytes.
    pub mtu: u32,
    pub addresses: Vec<(IpAddr, u8)>,
}

/// The inner side.
#[derive(Debug)]
pub enum DeviceConfig {
    /// For engines with [`Mode::L2`](icx_proto::engine::Mode).
    Veth(VethDevice),
    /// For engines with [`Mode::L3`](icx_proto::engine::Mode). It has as many queues as the forwarder.
    Tun(Tun),
}

#[derive(Debug)]
pub struct ForwarderConfig {
    /// The network interface of the outer side.
    pub interface: String,
    pub device: DeviceConfig,
    /// The addresses and ports whose datagrams are taken from the interface, 1 to 16; an unspecified address stands for all of its
    /// family.
    pub bound: Vec<SocketAddr>,
    pub attach: AttachMode,
    pub zero_copy: ZeroCopy,
    /// Queues of the interface that are served, the first ones. `None`: all. Matching traffic on others is dropped.
    pub queues: Option<u32>,
    /// Each worker on a processor of its own, of those that the process may use; with more workers than those, in turn.
    pub cpu_pin: bool,
    pub busy_poll: Option<BusyPoll>,
    pub latency: Latency,
    /// As [`PumpOptions::clamp_mss`](crate::PumpOptions).
    pub clamp_mss: bool,
    /// As [`PumpOptions::idle_wake`](crate::PumpOptions).
    pub idle_wake: Duration,
    /// Where to write frames of both sides to, in pcapng.
    pub capture: Option<PathBuf>,
}

/// What a forwarder was opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwarderInfo {
    pub interface: String,
    pub interface_index: u32,
    pub mac: MacAddr,
    pub driver: Option<String>,
    pub queues: u32,
    pub attached: AttachedMode,
    pub zero_copy: bool,
    pub device: DeviceInfo,
    /// Of one UMEM frame.
    pub frame_bytes: u32,
    /// The largest IP packet of the underlay that a frame holds, in bytes.
    pub max_path_mtu: u32,
    /// Settings of the interface that were changed, and are restored in the end, in words.
    pub settings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// "veth" or "tun".
    pub kind: &'static str,
    pub name: String,
    pub index: u32,
    pub mtu: u32,
    pub queues: u32,
}

/// How the network interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkStatus {
    /// Not started, or ended.
    Stopped,
    Up,
    /// Set down by its administrator, or without a carrier. Packets move again once it is up.
    Down,
    /// There is no interface of that name. Packets move again once there is one, with the same hardware address.
    Removed,
}

/// The way to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHopState {
    pub peer: IpAddr,
    /// Or why there is none; what is sealed for the peer meanwhile is dropped and counted.
    pub mac: Result<MacAddr, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwarderState {
    pub link: LinkStatus,
    /// The interface's name at present.
    pub interface: String,
    pub next_hops: Vec<NextHopState>,
}

/// What a forwarder has to tell while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForwarderNotice {
    Link {
        status: LinkStatus,
        interface: String,
    },
    NextHop(NextHopState),
    /// Frames came that are larger than the interface's MTU, as merged or uncut ones are, and were dropped. Told once.
    Oversize {
        hint: String,
    },
    /// The capture has ended early.
    CaptureFailed {
        message: String,
    },
}

/// Why a forwarder does not open, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwarderError {
    #[error(
        "a forwarder takes 1 to {most} addresses and ports, and {given} were given: leave some out, or use a wildcard address"
    )]
    Bound { given: usize, most: usize },
    #[error("{given} queues were asked for, and interface {interface} has {there}: take 1 to {there}")]
    Queues { interface: String, given: u32, there: u32 },
    #[error("a {device} device carries {carries}, and the engine is made for {made}: make the engine with mode {mode}")]
    Mode { device: &'static str, carries: &'static str, made: &'static str, mode: &'static str },
    #[error(
        "the engine seals UDP payloads, and this takes whole frames: make it with a raw underlay that has the address of {interface}"
    )]
    Underlay { interface: String },
    #[error(
        "the engine has no address with the hardware address {mac} of {interface}: make it with the interface's own"
    )]
    ForeignMac { interface: String, mac: MacAddr },
    #[error(
        "interface {interface} has an MTU of {mtu}, and frames of {frame} bytes hold IP packets of up to {most}: lower it with \
         `ip link set {interface} mtu {most}`"
    )]
    MtuTooLarge { interface: String, mtu: u32, frame: u32, most: u32 },
    #[error("the TUN device has {queues} queues, and the forwarder {needed}: open it with as many")]
    TunQueues { queues: usize, needed: u32 },
    #[error("interface {0} is down: set it up with `ip link set {0} up`")]
    LinkDown(String),
    #[error("cannot {action}: {source}")]
    System { action: String, source: io::Error },
    #[error("driver of {interface} does not do zero-copy: use --zero-copy auto or off ({source})")]
    NoZeroCopy { interface: String, source: io::Error },
    #[error("{0}")]
    Interface(Box<dyn std::error::Error + Send + Sync>, Option<i32>),
    #[error(transparent)]
    Worker(#[from] PumpError),
    #[error(
        "interface {interface} came back with the hardware address {mac}, and the engine has {expected}: start again"
    )]
    MacChanged { interface: String, mac: MacAddr, expected: MacAddr },
    #[error("device {0} was removed while packets were moving: start again to make it anew")]
    DeviceRemoved(String),
    #[error(
        "the forwarder's memory, {} KiB for all queues, exceeds what this process may lock ({source}): raise the limit (`ulimit -l`), \
         grant CAP_IPC_LOCK, or serve fewer --queues", .bytes / 1024
    )]
    LockedMemory { bytes: u64, source: io::Error },
    #[error("the forwarder was started before: open a new one")]
    Started,
}

impl ForwarderError {
    /// An error of one of the parts, with its error number where the operating system gave one.
    pub(super) fn of(errno: Option<i32>, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        ForwarderError::Interface(Box::new(error), errno)
    }

    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            ForwarderError::System { source, .. }
            | ForwarderError::NoZeroCopy { source, .. }
            | ForwarderError::LockedMemory { source, .. } => source.raw_os_error(),
            ForwarderError::DeviceRemoved(_) => Some(libc::ENODEV),
            ForwarderError::Interface(_, errno) => *errno,
            ForwarderError::Worker(error) => error.errno(),
            _ => None,
        }
    }
}
