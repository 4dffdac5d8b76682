//! Worker threads between a TUN device, the engine and UDP sockets.
//!
//! One worker for each queue of the device, with a receiving socket of its own, serves both directions in turn: it reads
//! inner packets, seals them into one buffer and sends that; it receives datagrams, opens them into another and hands
//! the device what came together there. The first worker also sends keepalives and runs the engine's timers. When there
//! is nothing to do a worker looks again for a moment, as its [`Latency`] says, and then waits in ppoll(2), also on one
//! eventfd that tells it to stop.
//!
//! A flow stays in order: the kernel reads it from one queue, and what came from one address and port stays on one
//! socket. Which queue a flow is read from follows the queue to which its other direction was written last (`tun_flow_update`
//! in drivers/net/tun.c), so packets are written to the queue that the flow's hash names, whichever worker opened them.

mod idle;
mod worker;

use std::any::Any;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use icx_proto::engine::{Engine, PathMtuChange};

pub use idle::Latency;

use crate::sys::{self, Interest};
use crate::tun::{Tun, TunError};
use crate::udp::Udp;
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

macro_rules! pump_counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What the workers have done since the start, all threads together.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct PumpCounters {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl PumpCounters {
            /// In the order of [`PumpCounters::values`]. Append only.
            pub const NAMES: [&str; [$(stringify!($name)),+].len()] = [$(stringify!($name)),+];

            pub fn values(&self) -> [u64; Self::NAMES.len()] {
                [$(self.$name),+]
            }
        }

        /// The counters of one worker, which alone writes them. On cache lines of its own.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        struct WorkerCounters {
            $($name: AtomicU64,)+
        }

        impl WorkerCounters {
            fn add_to(&self, sum: &mut PumpCounters) {
                $(sum.$name += self.$name.load(Ordering::Relaxed);)+
            }
        }
    };
}

pump_counters! {
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

/// Adds to a counter that only the calling thread writes.
fn count(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// A running pump. Dropping it stops it and waits for its threads.
#[derive(Debug)]
pub struct Pump {
    control: Arc<Control>,
    /// While the workers run.
    ends: Weak<Ends>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the pump and its workers share.
struct Control {
    stop: AtomicBool,
    /// Readable from the stop on.
    stop_event: File,
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
        let stop_event = sys::event_fd().map_err(|source| PumpError::Wait { call: "eventfd", source })?;
        let counters = std::iter::repeat_with(WorkerCounters::default).take(workers).collect();
        Ok(Control { stop: AtomicBool::new(false), stop_event: stop_event.into(), counters, on_notice })
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Cannot fail but for an overflow of the event's 64 bits, and then it is readable too.
        let _ = (&self.stop_event).write_all(&1u64.to_ne_bytes());
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits for one of `interests` or the stop; gives them back with what they are ready for.
    fn wait<'a, const N: usize>(
        &'a self,
        interests: [Interest<'a>; N],
        timeout: Option<Duration>,
    ) -> Result<[Interest<'a>; N], PumpError> {
        let mut all = [Interest::readable(self.stop_event.as_fd()); 4];
        all[..N].copy_from_slice(&interests);
        sys::poll(&mut all[..=N], timeout).map_err(|source| PumpError::Wait { call: "ppoll", source })?;
        Ok(std::array::from_fn(|at| all[at]))
    }

    /// Waits for the stop alone.
    fn pause(&self, timeout: Duration) -> Result<(), PumpError> {
        self.wait([], Some(timeout)).map(drop)
    }
}

/// What the workers own together; it closes with the last of them.
#[derive(Debug)]
struct Ends {
    engine: Arc<Engine>,
    tun: Tun,
    udp: Udp,
    options: PumpOptions,
}

/// What a worker thread does until the stop, or until it fails. The number is the worker's.
type Work = fn(&Ends, &Control, usize) -> Result<(), PumpError>;

type OnNotice = Box<dyn Fn(PumpNotice) + Send + Sync>;
type OnEnd = Box<dyn FnOnce(Result<(), PumpError>) + Send>;

/// Gathers how the workers ended, and tells it once when all have.
struct End(Mutex<EndState>);

struct EndState {
    running: usize,
    error: Option<PumpError>,
    on_end: Option<OnEnd>,
}

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
        tun: Tun,
        udp: Udp,
        options: PumpOptions,
        on_notice: Box<dyn Fn(PumpNotice) + Send + Sync>,
        on_end: Box<dyn FnOnce(Result<(), PumpError>) + Send>,
    ) -> Result<Pump, PumpError> {
        let (queues, sockets) = (tun.queues(), udp.sockets());
        if queues != sockets {
            return Err(PumpError::Uneven { device: tun.name().to_owned(), queues, sockets });
        }
        sys::use_wide_checksums();
        tun.start_offload().map_err(|source| tun.failure("ioctl", source))?;
        udp.start_offload().map_err(|source| PumpError::Socket {
            address: udp.local_addr(),
            call: "setsockopt",
            source,
        })?;
        Self::start_workers(&vec![work as Work; queues], Ends { engine, tun, udp, options }, on_notice, on_end)
    }

    fn start_workers(works: &[Work], ends: Ends, on_notice: OnNotice, on_end: OnEnd) -> Result<Pump, PumpError> {
        let control = Arc::new(Control::new(works.len(), on_notice)?);
        let ends = Arc::new(ends);
        let end = Arc::new(End(Mutex::new(EndState { running: works.len(), error: None, on_end: Some(on_end) })));

        // Workers begin once all of them exist; when one cannot be made, the others find their gate closed and leave.
        let mut threads = Vec::with_capacity(works.len());
        let mut gates = Vec::with_capacity(works.len());
        let mut spawned = Ok(());
        for (number, &run) in works.iter().enumerate() {
            let name = format!("icx-pump-{number}");
            let (gate, opened) = mpsc::channel::<()>();
            let (control, ends, end, worker) =
                (Arc::clone(&control), Arc::clone(&ends), Arc::clone(&end), name.clone());
            let body = move || {
                if opened.recv().is_err() {
                    return;
                }
                let result = catch_unwind(AssertUnwindSafe(|| run(&ends, &control, number)))
                    .unwrap_or_else(|panic| Err(PumpError::Panicked { worker, message: panic_text(&*panic) }));
                // One ended, all end.
                control.stop();
                drop(ends);
                end.worker_ended(result);
            };
            match thread::Builder::new().name(name.clone()).spawn(body) {
                Ok(thread) => threads.push(thread),
                Err(source) => spawned = Err(PumpError::Spawn { worker: name, source }),
            }
            gates.push(gate);
        }
        let pump = Pump { control, ends: Arc::downgrade(&ends), threads: Mutex::new(threads) };
        drop(ends);
        if let Err(error) = spawned {
            drop(gates);
            drop(pump);
            return Err(error);
        }
        for gate in gates {
            // Cannot fail: the worker waits behind its gate.
            let _ = gate.send(());
        }
        Ok(pump)
    }

    /// Tells the workers to end, and does not wait: they do within milliseconds. Harmless when they have ended.
    pub fn stop(&self) {
        self.control.stop();
    }

    /// Waits until the workers have ended, whoever told them to, and device and sockets are closed.
    pub fn join(&self) {
        for thread in lock(&self.threads).drain(..) {
            if thread.thread().id() != thread::current().id() {
                // A panic has been caught and reported before the thread ended.
                let _ = thread.join();
            }
        }
    }

    /// Gives the device another MTU, as [`Tun::set_mtu`]. After the end there is none, and nothing to do.
    pub fn set_device_mtu(&self, mtu: u32) -> Result<(), TunError> {
        self.ends.upgrade().map_or(Ok(()), |ends| ends.tun.set_mtu(mtu))
    }

    /// The counters as they stand, also after the end.
    pub fn counters(&self) -> PumpCounters {
        let mut sum = PumpCounters::default();
        self.control.counters.iter().for_each(|worker| worker.add_to(&mut sum));
        sum
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

impl End {
    fn worker_ended(&self, result: Result<(), PumpError>) {
        let mut state = lock(&self.0);
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        state.running -= 1;
        if state.running > 0 {
            return;
        }
        let (error, on_end) = (state.error.take(), state.on_end.take());
        drop(state);
        if let Some(on_end) = on_end {
            on_end(error.map_or(Ok(()), Err));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes guard is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests;
