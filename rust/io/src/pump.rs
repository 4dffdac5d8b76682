//! Worker threads between a TUN device, the engine and UDP sockets.
//!
//! `icx-out-0` reads inner packets, seals them into one buffer and sends the batch; it also sends keepalives and runs the
//! engine's timers. `icx-in-0` receives a batch of datagrams, opens each and hands it to the device. Both wait in
//! ppoll(2), also on one eventfd that tells them to stop.

use std::any::Any;
use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use icx_proto::Instant;
use icx_proto::counters::TxDrop;
use icx_proto::engine::{Engine, RxVerdict, TxVerdict};

use crate::clock;
use crate::ends::{MAX_PACKET_BYTES, RECEIVE_SLOT_BYTES, Received};
use crate::icmp::TooBig;
use crate::sys::{self, Interest, ReceiveBatch};
use crate::tun::Tun;
use crate::udp::{Destination, SendQueue, Udp};

/// Packets per batch, in both directions.
const BATCH: usize = 64;

/// A sealed datagram with its outer headers' share (Geneve 32, tag 16), rounded up.
const MAX_DATAGRAM_BYTES: usize = MAX_PACKET_BYTES + 64;

/// How long to wait for room in a full socket buffer before the batch is given up.
const SEND_PATIENCE: Duration = Duration::from_secs(1);

/// The first queue, which is also in charge of keepalives and timers.
const QUEUE: usize = 0;

#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PumpOptions {
    /// The longest that the outbound worker sleeps: how late it may notice keys that were installed while nothing was
    /// to be sent, and with them the first keepalive. Default: 250 ms, i.e. four wake-ups a second when idle.
    pub idle_wake: Duration,
}

impl Default for PumpOptions {
    fn default() -> Self {
        PumpOptions { idle_wake: Duration::from_millis(250) }
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
    Spawn { worker: &'static str, source: io::Error },
    #[error("worker {worker} panicked: {message}; this is a defect of icx, please report it")]
    Panicked { worker: &'static str, message: String },
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
            PumpError::Panicked { .. } => None,
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
    /// Inner packets read from the device.
    device_read_packets,
    /// Inner packets handed to the device.
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
}

/// Adds to a counter that only the calling thread writes.
fn count(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// A running pump. Dropping it stops it and waits for its threads.
#[derive(Debug)]
pub struct Pump {
    control: Arc<Control>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the pump and its workers share.
#[derive(Debug)]
struct Control {
    stop: AtomicBool,
    /// Readable from the stop on.
    stop_event: File,
    outbound: WorkerCounters,
    inbound: WorkerCounters,
}

impl Control {
    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Cannot fail but for an overflow of the event's 64 bits, and then it is readable too.
        let _ = (&self.stop_event).write_all(&1u64.to_ne_bytes());
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits for `interest` or the stop.
    fn wait(&self, interest: Interest<'_>, timeout: Option<Duration>) -> Result<(), PumpError> {
        self.ready(interest, timeout).map(drop)
    }

    /// Waits for the stop alone.
    fn pause(&self, timeout: Duration) -> Result<(), PumpError> {
        self.wait(Interest::readable(self.stop_event.as_fd()), Some(timeout))
    }

    /// Waits for `interest` or the stop; true when what was waited for is ready.
    fn ready(&self, interest: Interest<'_>, timeout: Option<Duration>) -> Result<bool, PumpError> {
        let mut interests = [interest, Interest::readable(self.stop_event.as_fd())];
        sys::poll(&mut interests, timeout).map_err(|source| PumpError::Wait { call: "ppoll", source })?;
        Ok(interests[0].is_ready())
    }
}

/// What the workers own together; it closes with the last of them.
struct Ends {
    engine: Arc<Engine>,
    tun: Tun,
    udp: Udp,
    options: PumpOptions,
}

/// What a worker thread does until the stop, or until it fails.
type Worker = fn(&Ends, &Control) -> Result<(), PumpError>;

type OnEnd = Box<dyn FnOnce(Result<(), PumpError>) + Send>;

/// Gathers how the workers ended, and tells it once when all have.
struct End(Mutex<EndState>);

struct EndState {
    running: usize,
    error: Option<PumpError>,
    on_end: Option<OnEnd>,
}

impl Pump {
    /// Starts the workers, which take the device and the sockets over: both close when the workers have ended.
    ///
    /// `on_end` is called exactly once, from a worker's thread, after the last worker has ended and everything is
    /// closed: with `Ok` after a stop, with the first failure otherwise. It must not stop, join or drop the pump.
    /// When this returns an error, `on_end` is not called.
    pub fn start(
        engine: Arc<Engine>,
        tun: Tun,
        udp: Udp,
        options: PumpOptions,
        on_end: Box<dyn FnOnce(Result<(), PumpError>) + Send>,
    ) -> Result<Pump, PumpError> {
        let ends = Ends { engine, tun, udp, options };
        Self::start_workers([("icx-out-0", outbound), ("icx-in-0", inbound)], ends, on_end)
    }

    fn start_workers<const N: usize>(
        workers: [(&'static str, Worker); N],
        ends: Ends,
        on_end: OnEnd,
    ) -> Result<Pump, PumpError> {
        let stop_event = sys::event_fd().map_err(|source| PumpError::Wait { call: "eventfd", source })?;
        let control = Arc::new(Control {
            stop: AtomicBool::new(false),
            stop_event: stop_event.into(),
            outbound: WorkerCounters::default(),
            inbound: WorkerCounters::default(),
        });
        let ends = Arc::new(ends);
        let end = Arc::new(End(Mutex::new(EndState { running: N, error: None, on_end: Some(on_end) })));

        // Workers begin once all of them exist; when one cannot be made, the others find their gate closed and leave.
        let mut threads = Vec::with_capacity(N);
        let mut gates = Vec::with_capacity(N);
        let mut spawned = Ok(());
        for (name, run) in workers {
            let (gate, opened) = mpsc::channel::<()>();
            let (control, ends, end) = (Arc::clone(&control), Arc::clone(&ends), Arc::clone(&end));
            let body = move || {
                if opened.recv().is_err() {
                    return;
                }
                let result = catch_unwind(AssertUnwindSafe(|| run(&ends, &control)))
                    .unwrap_or_else(|panic| Err(PumpError::Panicked { worker: name, message: panic_text(&*panic) }));
                // One ended, all end.
                control.stop();
                drop(ends);
                end.worker_ended(result);
            };
            match thread::Builder::new().name(name.to_owned()).spawn(body) {
                Ok(thread) => threads.push(thread),
                Err(source) => spawned = Err(PumpError::Spawn { worker: name, source }),
            }
            gates.push(gate);
        }
        drop(ends);
        let pump = Pump { control, threads: Mutex::new(threads) };
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

    /// The counters as they stand, also after the end.
    pub fn counters(&self) -> PumpCounters {
        let mut sum = PumpCounters::default();
        self.control.outbound.add_to(&mut sum);
        self.control.inbound.add_to(&mut sum);
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

/// From the device to the sockets.
struct Outbound<'a> {
    ends: &'a Ends,
    control: &'a Control,
    counters: &'a WorkerCounters,
    packet: Box<[u8]>,
    queue: SendQueue,
    too_big: TooBig,
}

fn outbound(ends: &Ends, control: &Control) -> Result<(), PumpError> {
    let mut worker = Outbound {
        ends,
        control,
        counters: &control.outbound,
        packet: vec![0; MAX_PACKET_BYTES].into(),
        queue: SendQueue::new(BATCH, MAX_DATAGRAM_BYTES),
        too_big: TooBig::new(clock::now()),
    };
    while !control.is_stopped() {
        let now = clock::now();
        let drained = worker.run_timers(now).and_then(|()| worker.seal_batch(now));
        // Also before a failure: what has been sealed is sent, or counted.
        worker.flush();
        if drained? {
            control.wait(Interest::readable(ends.tun.queue_fd(QUEUE)), Some(worker.sleep(now)))?;
        }
    }
    Ok(())
}

impl Outbound<'_> {
    /// Queues what is due of itself, and lets the engine expire and switch keys.
    fn run_timers(&mut self, now: Instant) -> Result<(), PumpError> {
        let engine = &self.ends.engine;
        if engine.poll_timeout().is_some_and(|due| due <= now) {
            engine.handle_timeout(now);
        }
        if engine.next_keepalive().is_some_and(|due| due <= now) {
            while let Some(verdict) = self.ends.engine.to_phy(now, self.queue.space()) {
                self.dispatch(now, verdict, 0)?;
                if self.queue.is_full() {
                    self.flush();
                }
            }
        }
        Ok(())
    }

    /// Reads and seals until the queue is full or the device has nothing more; true in the latter case.
    fn seal_batch(&mut self, now: Instant) -> Result<bool, PumpError> {
        let ends = self.ends;
        while !self.queue.is_full() {
            let Some(length) = ends.tun.next_packet(QUEUE, &mut self.packet)? else { return Ok(true) };
            count(&self.counters.device_read_packets, 1);
            let verdict = ends.engine.virt_to_phy(now, &self.packet[..length], self.queue.space());
            self.dispatch(now, verdict, length)?;
        }
        Ok(false)
    }

    /// Carries a verdict out; the packet that it is about is the first `length` bytes of `self.packet`.
    fn dispatch(&mut self, now: Instant, verdict: TxVerdict, length: usize) -> Result<(), PumpError> {
        match verdict {
            TxVerdict::Send { range, vni, peer, source_port } => {
                if self.queue.push(&self.ends.udp, now, range, Destination { vni, peer, source_port }) {
                    count(&self.counters.port_fallbacks, 1);
                }
            }
            TxVerdict::Reply { range } => {
                let reply = &self.queue.space()[range];
                self.ends.deliver(reply, self.counters)?;
            }
            TxVerdict::Drop(TxDrop::TooBig) => {
                let mut reply = [0; TooBig::MAX_BYTES];
                let mtu = self.ends.engine.inner_mtu().unwrap_or(self.ends.tun.mtu());
                if let Some(length) = self.too_big.reply(now, &self.packet[..length], mtu, &mut reply) {
                    self.ends.deliver(&reply[..length], self.counters)?;
                }
            }
            TxVerdict::Drop(_) => {}
        }
        Ok(())
    }

    /// Sends what is queued. What the kernel refuses is counted and gone: the next packets may well pass.
    fn flush(&mut self) {
        let (control, engine) = (self.control, &self.ends.engine);
        let mut patience_ends = None;
        let mut wait = |socket: BorrowedFd<'_>| {
            let now = clock::now();
            let end = *patience_ends.get_or_insert(now.saturating_add(SEND_PATIENCE));
            let left = end.saturating_since(now);
            !left.is_zero()
                && !control.is_stopped()
                && control.ready(Interest::writable(socket), Some(left)).unwrap_or(false)
        };
        let flushed = self.queue.flush(&self.ends.udp, &mut wait, &mut |vni, _error| engine.count_tx_errors(vni, 1));
        count(&self.counters.underlay_sent, flushed.sent);
        count(&self.counters.underlay_send_errors, flushed.failed);
    }

    /// How long there is nothing to do without a packet.
    fn sleep(&self, now: Instant) -> Duration {
        // At least a millisecond, so that something overdue which the engine cannot serve does not burn a processor.
        const LEAST: Duration = Duration::from_millis(1);
        let engine = &self.ends.engine;
        let due = [engine.poll_timeout(), engine.next_keepalive()].into_iter().flatten().min();
        let idle = self.ends.options.idle_wake;
        due.map_or(idle, |due| due.saturating_since(now).min(idle)).max(LEAST)
    }
}

/// From the sockets to the device.
fn inbound(ends: &Ends, control: &Control) -> Result<(), PumpError> {
    let counters = &control.inbound;
    let mut batch = ReceiveBatch::new(BATCH, RECEIVE_SLOT_BYTES);
    let mut packet = vec![0; MAX_DATAGRAM_BYTES].into_boxed_slice();
    while !control.is_stopped() {
        let received = match ends.udp.receive(&mut batch)? {
            Received::Datagrams(received) => received,
            // Readable as it may be, the socket gave nothing.
            Received::Nothing { pause: true } => {
                control.pause(Duration::from_millis(1))?;
                0
            }
            Received::Nothing { pause: false } => 0,
        };
        let now = clock::now();
        for datagram in batch.datagrams() {
            count(&counters.underlay_received, 1);
            if datagram.truncated {
                count(&counters.underlay_truncated, 1);
                continue;
            }
            let from: Option<IpAddr> = datagram.from.map(|from| from.ip().to_canonical());
            if let RxVerdict::Deliver { range, .. } = ends.engine.phy_to_virt(now, from, datagram.payload, &mut packet)
            {
                ends.deliver(&packet[range], counters)?;
            }
        }
        if received < BATCH {
            control.wait(Interest::readable(ends.udp.base()), None)?;
        }
    }
    Ok(())
}

impl Ends {
    /// Hands the device a packet. One that it does not take is counted.
    fn deliver(&self, packet: &[u8], counters: &WorkerCounters) -> Result<(), PumpError> {
        let taken = self.tun.deliver(QUEUE, packet);
        count(
            if matches!(taken, Ok(true)) { &counters.device_write_packets } else { &counters.device_write_errors },
            1,
        );
        taken.map(drop)
    }
}

#[cfg(test)]
mod tests;
