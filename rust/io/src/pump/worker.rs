//! One worker: both directions of one queue and one socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

use icx_proto::engine::{Arrival, Destination, PathMtuVerdict, RunBuffer, TxVerdict};
use icx_proto::{Instant, Vni};

use super::device_side::{DeviceSide, READ_PACKETS};
use super::idle::Idle;
use super::{Control, Ends, PumpError, PumpNotice, WorkerCounters};
use crate::clock;
use crate::counters::count;
use crate::ends::{RECEIVE_SLOT_BYTES, Received};
use crate::sys::{ErrorSlot, Interest, ReceiveBatch};
use crate::told::{self, Told};
use crate::udp::{RUN_LIMITS, SendEvents, Sender};

/// Sealed datagrams that wait to be sent: one uncut packet as a whole, and each of the small ones by itself.
const SEND_BYTES: usize = 2 * 65_536;
const SEND_RUNS: usize = 2 * READ_PACKETS;

/// Messages per receive.
const RECEIVE_SLOTS: usize = 64;

/// How much a receive should bring at most, going by the last one. More would not stay in the processor's cache.
const RECEIVE_BYTES: usize = 2 * 65_536;

/// How long to wait for room in a full socket buffer before the batch is given up.
const SEND_PATIENCE: Duration = Duration::from_secs(1);

/// The worker in charge of keepalives and timers.
const FIRST: usize = 0;

pub(super) fn work(ends: &Ends, control: &Control, number: usize) -> Result<(), PumpError> {
    Worker::new(ends, control, number).run()
}

pub(super) struct Worker<'a> {
    ends: &'a Ends,
    number: usize,
    port: Port<'a>,
    device: DeviceSide<'a>,
    sealed: RunBuffer,
    received: ReceiveBatch,
    receive_limit: usize,
    errors: ErrorSlot,
    /// When the first worker reads what all sockets were told.
    hear_at: Instant,
    idle: Idle,
}

impl<'a> Worker<'a> {
    pub(super) fn new(ends: &'a Ends, control: &'a Control, number: usize) -> Self {
        let now = clock::now();
        let counters = &control.counters[number];
        Worker {
            ends,
            number,
            port: Port { ends, control, number, counters, sender: Sender::new(SEND_RUNS) },
            device: DeviceSide::new((&*ends.device, number), &ends.engine, ends.options.clamp_mss, counters, now),
            sealed: RunBuffer::new(SEND_BYTES, SEND_RUNS, RUN_LIMITS),
            received: ReceiveBatch::new(RECEIVE_SLOTS, RECEIVE_SLOT_BYTES),
            receive_limit: RECEIVE_SLOTS,
            errors: ErrorSlot::new(),
            hear_at: now,
            idle: Idle::new(ends.options.latency, now),
        }
    }

    fn run(&mut self) -> Result<(), PumpError> {
        while !self.port.control.stop.is_stopped() {
            let now = clock::now();
            if self.number == FIRST {
                self.run_timers(now);
            }
            let outbound = self.outbound(now)?;
            let inbound = self.inbound(now)?;
            if outbound || inbound {
                self.idle.busy(now);
            } else if self.idle.look_again(now) {
                // Whoever else could run goes first; when somebody did, it shows in the time that this took.
                thread::yield_now();
            } else {
                let device = Interest::readable(self.device.fd());
                let udp = Interest::readable(self.ends.udp.base(self.number));
                let [_, udp] = self.port.control.stop.wait([device, udp], self.sleep(now))?;
                if udp.has_error() {
                    // Left in the queue it would end the next wait at once.
                    self.hear_own(clock::now());
                }
            }
        }
        Ok(())
    }

    /// Hears what the worker's own socket was told.
    fn hear_own(&mut self, now: Instant) {
        let (socket, queue) = self.ends.udp.base_errors(self.number);
        let listener = self.port.listener();
        queue.drain(socket, &mut self.errors, &mut |told| listener.told(now, told));
    }

    /// Sends what is due of itself, and lets the engine expire and switch keys.
    fn run_timers(&mut self, now: Instant) {
        let engine = &self.ends.engine;
        if engine.poll_timeout().is_some_and(|due| due <= now) {
            engine.handle_timeout(now);
        }
        if self.hear_at <= now {
            self.hear_at = now.saturating_add(told::WINDOW);
            let listener = self.port.listener();
            self.ends.udp.hear(&mut self.errors, &mut |told| listener.told(now, told));
            // What has expired, and what control calls changed.
            listener.tell_path_mtus();
        }
        if engine.next_keepalive().is_some_and(|due| due <= now) {
            while let Some(verdict) = engine.to_phy(now, self.sealed.space()) {
                if let TxVerdict::Send { range, vni, peer, source_port, traffic_class } = verdict {
                    self.sealed.push(range.end, &Destination { vni, peer, source_port, traffic_class });
                }
                if self.sealed.space().len() < MAX_KEEPALIVE_BYTES {
                    self.port.send(now, &mut self.sealed);
                }
            }
            self.port.send(now, &mut self.sealed);
        }
    }

    /// From the device to the sockets, as much as one batch holds. False: there was nothing.
    fn outbound(&mut self, now: Instant) -> Result<bool, PumpError> {
        let filled = self.device.read();
        // Also before a failure: what has been read is sealed, and what is sealed is sent or counted.
        let port = &mut self.port;
        self.device.seal(now, &mut self.sealed, |sealed| port.send(now, sealed))?;
        filled
    }

    /// From the socket to the device, as much as one batch holds. False: there was nothing.
    fn inbound(&mut self, now: Instant) -> Result<bool, PumpError> {
        let Worker { ends, port, received, device, errors, .. } = self;
        let listener = port.listener();
        let batch = (&mut *received, self.receive_limit);
        match ends.udp.receive(self.number, batch, errors, &mut |told| listener.told(now, told))? {
            Received::Messages(_) => {}
            // Readable as it may be, the socket gave nothing.
            Received::Nothing { pause: true } => {
                return port.control.stop.pause(Duration::from_millis(1)).map(|()| false);
            }
            Received::Nothing { pause: false } => return Ok(false),
        }
        let (mut messages, mut datagrams, mut truncated, mut bytes) = (0, 0, 0, 0);
        for message in received.messages() {
            messages += 1;
            datagrams += message.datagrams() as u64;
            bytes += message.payload.len();
            if message.truncated {
                truncated += message.datagrams() as u64;
                continue;
            }
            let src: Option<IpAddr> = message.from.map(|from| from.ip().to_canonical());
            let arrival = Arrival { src, ecn: message.traffic_class.ecn() };
            if message.payload.is_empty() {
                // In a batch of datagrams there are none of no bytes.
                ends.engine.phy_to_virt(now, arrival, &[], &mut []);
                continue;
            }
            let mut rest = message.payload;
            loop {
                let done = ends.engine.open_batch(now, arrival, rest, message.stride, &mut device.opened);
                if done == rest.len() {
                    break;
                }
                // No more room: what is there goes to the device.
                rest = &rest[done..];
                device.deliver()?;
            }
        }
        let counters = port.counters;
        count(&counters.underlay_receives, messages);
        count(&counters.underlay_received, datagrams);
        count(&counters.underlay_truncated, truncated);
        self.receive_limit = (RECEIVE_BYTES * messages as usize / bytes.max(1)).clamp(1, RECEIVE_SLOTS);
        device.deliver()?;
        Ok(true)
    }

    /// Hands the device what counts as `packets`.
    #[cfg(test)]
    pub(super) fn write(&self, bytes: &[u8], packets: u64) -> Result<(), PumpError> {
        self.device.write(bytes, packets)
    }

    /// How long there is nothing to do without a packet; `None`: for ever.
    fn sleep(&self, now: Instant) -> Option<Duration> {
        // At least a millisecond, so that something overdue which the engine cannot serve does not burn a processor.
        const LEAST: Duration = Duration::from_millis(1);
        if self.number != FIRST {
            return None;
        }
        let Ends { engine, device, .. } = self.ends;
        let due = [engine.poll_timeout(), engine.next_keepalive(), device.due()].into_iter().flatten().min();
        let idle = self.ends.options.idle_wake;
        Some(due.map_or(idle, |due| due.saturating_since(now).min(idle)).max(LEAST))
    }
}

/// A keepalive with the headers of the largest underlay.
const MAX_KEEPALIVE_BYTES: usize = 128;

/// The ends as one worker uses them.
struct Port<'a> {
    ends: &'a Ends,
    control: &'a Control,
    number: usize,
    counters: &'a WorkerCounters,
    sender: Sender,
}

impl<'a> Port<'a> {
    fn listener(&self) -> Listener<'a> {
        Listener { ends: self.ends, control: self.control, counters: self.counters }
    }

    /// Sends what is sealed. What the kernel refuses is counted and gone: the next packets may well pass.
    fn send(&mut self, now: Instant, sealed: &mut RunBuffer) {
        if sealed.is_empty() {
            return;
        }
        let mut events = Events { listener: self.listener(), now, patience_ends: None };
        let sent = self.sender.send(&self.ends.udp, self.number, now, sealed, &mut events);
        sealed.clear();
        count(&self.counters.underlay_sends, sent.messages);
        count(&self.counters.underlay_sent, sent.sent);
        count(&self.counters.underlay_send_errors, sent.failed);
        count(&self.counters.port_fallbacks, sent.port_fallbacks);
    }
}

/// Takes in what is told of datagrams that were sent.
#[derive(Clone, Copy)]
struct Listener<'a> {
    ends: &'a Ends,
    control: &'a Control,
    counters: &'a WorkerCounters,
}

impl Listener<'_> {
    fn told(&self, now: Instant, told: Told<'_>) {
        let Told::TooBig { to, mtu, quote } = told else {
            count(&self.counters.underlay_lost_reports, 1);
            return;
        };
        match self.ends.engine.path_mtu_reported(now, to, mtu, quote) {
            PathMtuVerdict::Believed => {
                count(&self.counters.path_mtu_updates, 1);
                self.tell_path_mtus();
            }
            PathMtuVerdict::Ignored => count(&self.counters.path_mtu_ignored, 1),
        }
    }

    fn tell_path_mtus(&self) {
        while let Some(change) = self.ends.engine.next_path_mtu_change() {
            (self.control.on_notice)(PumpNotice::PathMtu(change));
        }
    }
}

/// What a worker answers its sender.
struct Events<'a> {
    listener: Listener<'a>,
    now: Instant,
    patience_ends: Option<Instant>,
}

impl SendEvents for Events<'_> {
    fn wait(&mut self, socket: BorrowedFd<'_>) -> bool {
        let now = clock::now();
        let end = *self.patience_ends.get_or_insert(now.saturating_add(SEND_PATIENCE));
        let left = end.saturating_since(now);
        !left.is_zero()
            && !self.listener.control.stop.is_stopped()
            && self
                .listener
                .control
                .stop
                .wait([Interest::writable(socket)], Some(left))
                .is_ok_and(|[room]| room.is_ready())
    }

    fn failed(&mut self, vni: Vni, datagrams: u64, _error: &io::Error) {
        self.listener.ends.engine.count_tx_errors(vni, datagrams);
    }

    fn told(&mut self, told: Told<'_>) {
        self.listener.told(self.now, told);
    }

    fn segmentation_refused(&mut self, local: SocketAddr, error: &io::Error) {
        let (errno, message) = (error.raw_os_error(), error.to_string());
        (self.listener.control.on_notice)(PumpNotice::SegmentationRefused { local, errno, message });
    }
}
