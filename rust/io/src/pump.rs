//! Worker threads between a device, the engine and UDP sockets.
//!
//! One worker for each queue of the device, with a receiving socket of its own, serves both directions in turn: it reads
//! inner packets, seals them into one buffer and sends that; it receives datagrams, opens them into another and hands
//! the device what came together there. The first worker also sends keepalives and runs the engine's timers. When there
//! is nothing to do a worker looks again for a moment, as its [`Latency`] says, and then waits in ppoll(2), also on one
//! eventfd that tells it to stop.
//!
//! A flow stays in order: with a TUN device the kernel reads it from one queue, and what came from one address and port stays on one
//! socket. Which queue a flow is read from follows the queue to which its other direction was written last (`tun_flow_update`
//! in drivers/net/tun.c), so packets are written to the queue that the flow's hash names, whichever worker opened them.

mod device_side;
mod idle;

mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use icx_proto::engine::{Engine, PathMtuChange};

#[cfg(feature = "afxdp")]
pub(crate) use device_side::DeviceSide;
#[cfg(feature = "afxdp")]
pub(crate) use idle::Idle;
pub use idle::Latency;

use crate::counters::counters;
use crate::device::DeviceError;
use crate::ends::device_failure;
use crate::packet_device::PacketDevice;
use crate::sys;
use crate::udp::Udp;
use crate::workers::{self, OnEnd, Stop, Workers};
use worker::work;

#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PumpOptions {
    /// The longest that the first worker sleeps: how late it may notice keys that were installed while nothing was
    /// to be sent, and with them the first keepalive. Default: 250 ms, i.e. four wake-ups a second when idle.
    pub idle_wake: Duration,
    /// How long workers look for more to do before they sleep.
    pub latency: Latency,
    /// Lower the segment size that passing TCP connections announce to what fits the tunnel (RFC 9293 section 3.7.1).
    pub clamp_mss: bool,
}

impl Default for PumpOptions {
    fn default() -> Self {
        PumpOptions { idle_wake: Duration::from_millis(250), latency: Latency::default(), clamp_mss: false }
    }
}

/// Why a pump ended, or did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PumpError {
    #[error("device {device} was removed while packets were moving ({call}: {source}): start again to make it anew")]
    DeviceRemoved { device: String, call: &'static str, source: io::Error },
    #[error("device {device} failed ({call}): {source}")]
    Device { device: String, call: &'static str, source: io::Error },
    #[error("the UDP socket on {address} failed ({call}): {source}")]
    Socket { address: std::net::SocketAddr, call: &'static str, source: io::Error },
    #[error("cannot wait for packets ({call}): {source}")]
    Wait { call: &'static str, source: io::Error },
    #[error(
        "cannot start worker thread {worker}: {source}: raise the limit on threads (`ulimit -u`, or `pids.max` of the control \
         group)"
    )]
    Spawn { worker: String, source: io::Error },
    #[error("worker {worker} panicked: {message}; this is a defect of icx, please report it")]
    Panicked { worker: String, message: String },
    #[error(
        "{queues} queues of device {device} need as many sockets, and there are {sockets}: open both for one number"
    )]
    Uneven { device: String, queues: usize, sockets: usize },
}

/// What a pump has to tell while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PumpNotice {
    /// The kernel refused to cut datagrams that were sent from the socket on `local`, and is asked to no more. Nothing was
    /// lost by that.
    SegmentationRefused { local: SocketAddr, errno: Option<i32>, message: String },
    /// The largest packet of a network is another one from now on.
    PathMtu(PathMtuChange),
}

impl PumpError {
    /// The system call or step that failed.
    pub fn operation(&self) -> &'static str {
        match self {
            PumpError::DeviceRemoved { call, .. }
            | PumpError::Device { call, .. }
            | PumpError::Socket { call, .. }
            | PumpError::Wait { call, .. } => call,
            PumpError::Spawn { .. } => "spawn",
            PumpError::Panicked { .. } => "panic",
            PumpError::Uneven { .. } => "start",
        }
    }

    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            PumpError::DeviceRemoved { source, .. }
            | PumpError::Device { source, .. }
            | PumpError::Socket { source, .. }
            | PumpError::Wait { source, .. }
            | PumpError::Spawn { source, .. } => source.raw_os_error(),
            PumpError::Panicked { .. } | PumpError::Uneven { .. } => None,
        }
    }
}

counters! {
    /// What the workers have done since the start, all threads together.
    PumpCounters of WorkerCounters:
    /// Inner packets read from the device: what it handed over uncut counts as the packets that it becomes.
    device_read_packets,
    /// Inner packets handed to the device: what it was given merged counts as the packets that it is made of.
    device_write_packets,
    /// Inner packets that the device refused: it is set down, or they are no IP packets.
    device_write_errors,
    /// Datagrams that the kernel took for sending, keepalives included.
    underlay_sent,
    /// Datagrams received, whatever became of them.
    underlay_received,
    /// Datagrams that the kernel refused to send.
    underlay_send_errors,
    /// Datagrams that left from the base port because their hashed port was occupied.
    port_fallbacks,
    /// Datagrams dropped because they were longer than any that can be sent.
    underlay_truncated,
    /// Reads from the device that brought something, cut or uncut.
    device_reads,
    /// Writes to the device, merged or not, replies and what was refused included.
    device_writes,
    /// Messages that the kernel took for sending, each of one datagram or more.
    underlay_sends,
    /// Messages received, each of one datagram or more.
    underlay_receives,
    /// Reports that a datagram did not fit its path, by ICMP or by this host, that were believed.
    path_mtu_updates,
    /// Such reports that proved nothing, or said nothing new.
    path_mtu_ignored,
    /// Reports by ICMP that a datagram did not arrive for another reason, which change nothing.
    underlay_lost_reports,
}

/// A running pump. Dropping it stops it and waits for its threads.
#[derive(Debug)]
pub struct Pump {
    control: Arc<Control>,
    /// While the workers run.
    ends: Weak<Ends>,
    /// Dropping them stops them.
    workers: Workers,
}

/// What the pump and its workers share.
struct Control {
    stop: Arc<Stop>,
    /// One for each worker.
    counters: Box<[WorkerCounters]>,
    on_notice: OnNotice,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("stop", &self.stop).field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Control {
    fn new(workers: usize, on_notice: OnNotice) -> Result<Control, PumpError> {
        Ok(Control { stop: Arc::new(Stop::new()?), counters: WorkerCounters::each(workers), on_notice })
    }
}

/// What the workers own together; it closes with the last of them.
#[derive(Debug)]
struct Ends {
    engine: Arc<Engine>,
    device: Box<dyn PacketDevice>,
    udp: Udp,
    options: PumpOptions,
}

/// What a worker thread does until the stop, or until it fails. The number is the worker's.
type Work = fn(&Ends, &Control, usize) -> Result<(), PumpError>;

type OnNotice = Box<dyn Fn(PumpNotice) + Send + Sync>;
impl Pump {
    /// Starts the workers, one for each queue of the device and socket, which take both over: they close when the workers
    /// have ended.
    ///
    /// `on_notice` may be called from any worker's thread while it runs, and must not wait.
    ///
    /// `on_end` is called exactly once, from a worker's thread, after the last worker has ended and everything is
    /// closed: with `Ok` after a stop, with the first failure otherwise. It must not stop, join or drop the pump.
    /// When this returns an error, `on_end` is not called.
    pub fn start(
        engine: Arc<Engine>,
        device: Box<dyn PacketDevice>,
        udp: Udp,
        options: PumpOptions,
        on_notice: Box<dyn Fn(PumpNotice) + Send + Sync>,
        on_end: Box<dyn FnOnce(Result<(), PumpError>) + Send>,
    ) -> Result<Pump, PumpError> {
        let (queues, sockets) = (device.queues(), udp.sockets());
        if queues != sockets {
            return Err(PumpError::Uneven { device: device.name().to_owned(), queues, sockets });
        }
        sys::use_wide_checksums();
        device.start_offload().map_err(|source| device_failure(device.name(), "ioctl", source))?;
        udp.start_offload().map_err(|source| PumpError::Socket {
            address: udp.local_addr(),
            call: "setsockopt",
            source,
        })?;
        Self::start_workers(&vec![work as Work; queues], Ends { engine, device, udp, options }, on_notice, on_end)
    }

    fn start_workers(works: &[Work], ends: Ends, on_notice: OnNotice, on_end: OnEnd) -> Result<Pump, PumpError> {
        let control = Arc::new(Control::new(works.len(), on_notice)?);
        let ends = Arc::new(ends);
        let bodies = works.iter().enumerate().map(|(number, &run)| {
            let (control, ends) = (Arc::clone(&control), Arc::clone(&ends));
            Box::new(move || run(&ends, &control, number)) as workers::Work
        });
        let stop = Arc::clone(&control.stop);
        let (bodies, ends) = (bodies.collect(), Arc::downgrade(&ends));
        let workers = Workers::start("icx-pump", bodies, stop, on_end)?;
        Ok(Pump { control, ends, workers })
    }

    /// Tells the workers to end, and does not wait: they do within milliseconds. Harmless when they have ended.
    pub fn stop(&self) {
        self.control.stop.stop();
    }

    /// Waits until the workers have ended, whoever told them to, and device and sockets are closed.
    pub fn join(&self) {
        self.workers.join();
    }

    /// Gives the device another MTU, as [`PacketDevice::set_mtu`]. After the end there is none, and nothing to do.
    pub fn set_device_mtu(&self, mtu: u32) -> Result<(), DeviceError> {
        self.ends.upgrade().map_or(Ok(()), |ends| ends.device.set_mtu(mtu))
    }

    /// The counters as they stand, also after the end.
    pub fn counters(&self) -> PumpCounters {
        let mut sum = PumpCounters::default();
        self.control.counters.iter().for_each(|worker| worker.add_to(&mut sum));
        sum
    }
}

#[cfg(test)]
mod tests;
