//! One worker: one queue of the network interface, and the same queue of the device.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use icx_proto::counters::{RxDrop, TxDrop};
use icx_proto::engine::{Destination, Engine, Mode, OpenSink, RxVerdict, SealSink, TxVerdict};
use icx_proto::offload::Coalescer;
use icx_proto::wire::ethernet;
use icx_proto::wire::mss::Syn;
use icx_proto::{Instant, Vni};

use super::capture::{CaptureDirection, CaptureEnd, CaptureTap, HeldFrame};
use super::transform::Transform;
use super::umem::{BATCH, Pool, Port};
use crate::clock;
use crate::counters::{count, counters};
use crate::ends::MAX_PACKET_BYTES;
use crate::icmp::TooBig;
use crate::pump::{DeviceSide, Idle, Latency, PumpError, WorkerCounters};
use crate::sys::{Frame, Interest, Umem, XskDrops};
use crate::tun::Tun;
use crate::workers::Stop;

/// How long to wait for room on a full transmit ring before what waits is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// How soon it is tried again to transmit what the kernel refused.
const RETRY: Duration = Duration::from_millis(1);

/// How soon is looked again at a socket whose interface is gone.
const GONE: Duration = Duration::from_millis(10);

/// How often the kernel is asked what it dropped.
const LOOK: Duration = Duration::from_millis(200);

/// Frames that are opened in a row for a TUN device. One batch would cut what a sender had cut from 64 KiB in two, more often than not.
const OPEN_FRAMES: usize = 3 * BATCH;

/// The worker in charge of keepalives and timers.
const FIRST: usize = 0;

counters! {
    /// What only a forwarder counts. `filter` counters are of the XDP program on the network interface.
    ForwarderCounters of OwnCounters:
    /// Frames for one of the bound addresses and ports, taken from the kernel's stack.
    filter_redirected,
    /// Frames left to the kernel's stack.
    filter_passed,
    /// Frames as those redirected that came on a queue without a socket.
    filter_dropped,
    /// Frames longer than a UMEM frame holds, as merged or uncut ones are.
    rx_oversize,
    /// Frames that found the receive ring full.
    rx_ring_full,
    /// Times that the kernel found no frame to receive into.
    rx_fill_empty,
    /// The same three of the device's side.
    device_oversize,
    device_ring_full,
    device_fill_empty,
    /// Descriptors from or to the kernel that made no sense.
    invalid_descriptors,
    /// Sealed frames dropped since the hardware address of the next hop is not known.
    next_hop_unknown,
    /// Sealed frames dropped since they are larger than the interface's MTU.
    tx_oversize,
    /// Times that the kernel refused to transmit; frames stay on the ring then, and it is asked again.
    tx_refused,
    /// Frames counted as sent or written that were given up since the kernel took none for a second, or at the end.
    tx_abandoned,
    /// Frames, or batches from a TUN device, dropped since the transform panicked.
    transform_panics,
    /// ARP requests and neighbour solicitations from the device that were answered.
    neighbor_replies,
    /// Frames that the capture could not keep up with.
    capture_missed,
}

/// What all workers of a forwarder share, whatever becomes of the interface.
pub(super) struct Shared {
    pub(super) engine: Arc<Engine>,
    pub(super) transform: Arc<dyn Transform>,
    pub(super) inner: Inner,
    pub(super) clamp_mss: bool,
    pub(super) latency: Latency,
    pub(super) idle_wake: Duration,
    pub(super) busy_poll: bool,
    pub(super) tally: Arc<Tally>,
    /// The interface's MTU.
    pub(super) mtu: AtomicU32,
    /// Somebody wants to send to a peer whose next hop is not known.
    pub(super) next_hop_wanted: AtomicBool,
}

/// What the workers have counted, which outlives them.
pub(super) struct Tally {
    /// One for each worker.
    pub(super) counters: Box<[WorkerCounters]>,
    pub(super) own: Box<[OwnCounters]>,
}

impl Tally {
    pub(super) fn new(workers: usize) -> Self {
        Tally { counters: WorkerCounters::each(workers), own: OwnCounters::each(workers) }
    }
}

/// The inner side of all workers.
pub(super) enum Inner {
    /// How many bytes the XDP program of the virtual side has put in front of each frame.
    Veth {
        headroom: usize,
        mtu: u32,
    },
    Tun(Tun),
}

/// What one worker owns.
pub(super) struct WorkerParts {
    pub(super) pool: Pool,
    pub(super) nic: Port,
    /// Of the veth pair, if that is the device.
    pub(super) device: Option<Port>,
    pub(super) tap: Option<CaptureTap>,
}

pub(super) fn work(shared: &Shared, parts: WorkerParts, stop: &Stop, number: usize) -> Result<(), PumpError> {
    let now = clock::now();
    let side = match (&shared.inner, parts.device) {
        (&Inner::Veth { headroom, mtu }, Some(port)) => {
            let plain = parts.tap.as_ref().map(CaptureTap::holder);
            Side::Veth(Box::new(VethSide { port, headroom, mtu, too_big: TooBig::new(now), plain }))
        }
        (Inner::Tun(tun), None) => {
            let counters = &shared.tally.counters[number];
            let side = DeviceSide::new((tun, number), &shared.engine, shared.clamp_mss, counters, now);
            Side::Tun(Box::new(side))
        }
        // They are made together.
        _ => return Ok(()),
    };
    let outer = Outer {
        shared,
        counters: &shared.tally.counters[number],
        own: &shared.tally.own[number],
        pool: parts.pool,
        nic: parts.nic,
        batch: Vec::with_capacity(OPEN_FRAMES),
        reserved: VecDeque::with_capacity(BATCH),
        tap: parts.tap,
    };
    let idle = Idle::new(shared.latency, now);
    Worker { stop, number, outer, side, idle, look_at: now, nic_drops: None, device_drops: None }.run()
}

struct Worker<'a> {
    stop: &'a Stop,
    number: usize,
    outer: Outer<'a>,
    side: Side<'a>,
    idle: Idle,
    look_at: Instant,
    /// What the kernel had dropped when last asked.
    nic_drops: Option<XskDrops>,
    device_drops: Option<XskDrops>,
}

enum Side<'a> {
    Veth(Box<VethSide>),
    Tun(Box<DeviceSide<'a>>),
}

struct VethSide {
    port: Port,
    headroom: usize,
    mtu: u32,
    too_big: TooBig,
    /// For the capture, if there is one: what is sealed in its place is gone afterwards.
    plain: Option<HeldFrame>,
}

/// The outer side, and what both sides use.
struct Outer<'a> {
    shared: &'a Shared,
    counters: &'a WorkerCounters,
    own: &'a OwnCounters,
    pool: Pool,
    nic: Port,
    batch: Vec<Frame>,
    /// Empty between batches; kept for its memory.
    reserved: VecDeque<Frame>,
    tap: Option<CaptureTap>,
}

impl Worker<'_> {
    fn run(mut self) -> Result<(), PumpError> {
        let result = self.forward();
        self.look();
        let mut lost = self.outer.nic.abandon(&mut self.outer.pool);
        if let Side::Veth(side) = &mut self.side {
            lost += side.port.abandon(&mut self.outer.pool);
        }
        count(&self.outer.own.tx_abandoned, lost as u64);
        result
    }

    fn forward(&mut self) -> Result<(), PumpError> {
        while !self.stop.is_stopped() {
            let now = clock::now();
            if self.number == FIRST {
                self.outer.run_timers(now);
            }
            let is_busy = match &mut self.side {
                Side::Veth(side) => side.forward(&mut self.outer, now),
                Side::Tun(side) => self.outer.forward_tun(side, self.stop, now)?,
            };
            if self.look_at <= now {
                self.look_at = now.saturating_add(LOOK);
                self.look();
            }
            if is_busy {
                self.idle.busy(now);
            } else if self.idle.look_again(now) {
                std::thread::yield_now();
            } else {
                self.sleep(now)?;
            }
        }
        Ok(())
    }

    fn sleep(&mut self, now: Instant) -> Result<(), PumpError> {
        let is_stuck = self.outer.nic.is_stuck()
            | match &mut self.side {
                Side::Veth(side) => side.port.is_stuck(),
                Side::Tun(_) => false,
            };
        let longest = if is_stuck { RETRY } else { self.longest_sleep(now) };
        let device = match &self.side {
            Side::Veth(side) => side.port.fd(),
            Side::Tun(side) => side.fd(),
        };
        let interests = [Interest::readable(self.outer.nic.fd()), Interest::readable(device)];
        let [nic, device] = self.stop.wait(interests, Some(longest))?;
        let device_is_gone = device.has_error() && matches!(self.side, Side::Veth(_));
        if nic.has_error() || device_is_gone {
            // Whoever watches the interfaces ends this; until then it would be ready at once each time.
            self.stop.pause(GONE)?;
        }
        Ok(())
    }

    fn longest_sleep(&self, now: Instant) -> Duration {
        if self.number != FIRST {
            // The kernel's drops are still to be looked at.
            return Duration::from_secs(1);
        }
        let engine = &self.outer.shared.engine;
        let due = [engine.poll_timeout(), engine.next_keepalive()].into_iter().flatten().min();
        let idle = self.outer.shared.idle_wake;
        due.map_or(idle, |due| due.saturating_since(now).min(idle)).max(Duration::from_millis(1))
    }

    /// Counts what the kernel has dropped since the last look.
    fn look(&mut self) {
        let own = self.outer.own;
        let difference = |drops: Option<XskDrops>, last: &mut Option<XskDrops>| {
            let drops = drops?;
            let before = last.replace(drops).unwrap_or_default();
            Some(XskDrops {
                oversize: drops.oversize.saturating_sub(before.oversize),
                ring_full: drops.ring_full.saturating_sub(before.ring_full),
                fill_empty: drops.fill_empty.saturating_sub(before.fill_empty),
                invalid: drops.invalid.saturating_sub(before.invalid),
            })
        };
        if let Some(drops) = difference(self.outer.nic.drops(), &mut self.nic_drops) {
            count(&own.rx_oversize, drops.oversize);
            count(&own.rx_ring_full, drops.ring_full);
            count(&own.rx_fill_empty, drops.fill_empty);
            count(&own.invalid_descriptors, drops.invalid);
        }
        if let Side::Veth(side) = &self.side
            && let Some(drops) = difference(side.port.drops(), &mut self.device_drops)
        {
            count(&own.device_oversize, drops.oversize);
            count(&own.device_ring_full, drops.ring_full);
            count(&own.device_fill_empty, drops.fill_empty);
            count(&own.invalid_descriptors, drops.invalid);
        }
    }
}

impl VethSide {
    /// Both directions, one batch at most each. False: there was nothing.
    fn forward(&mut self, outer: &mut Outer<'_>, now: Instant) -> bool {
        let outbound = self.outbound(outer, now);
        outer.transmit();
        let inbound = self.inbound(outer, now);
        self.transmit(outer);
        self.port.refill(&mut outer.pool, false);
        outer.refill();
        outbound || inbound
    }

    fn outbound(&mut self, outer: &mut Outer<'_>, now: Instant) -> bool {
        if !outer.nic.has_room() {
            return false;
        }
        let mut batch = std::mem::take(&mut outer.batch);
        self.port.receive(&mut outer.pool, &mut batch);
        let is_busy = !batch.is_empty();
        count(&outer.counters.device_reads, batch.len() as u64);
        for frame in batch.drain(..) {
            self.encapsulate(outer, now, frame);
        }
        outer.batch = batch;
        is_busy
    }

    fn encapsulate(&mut self, outer: &mut Outer<'_>, now: Instant, mut frame: Frame) {
        let umem = &outer.pool.umem;
        let len = umem.packet(&frame).len();
        let room = umem.room(&mut frame);
        let at = self.headroom;
        if outer.shared.clamp_mss
            && let Some(packet) = room.get_mut(at + ethernet::HEADER_LEN..len)
            && let Some(syn) = Syn::parse(packet)
        {
            let mtu = outer.shared.engine.inner_mtu_for(packet).unwrap_or(u32::MAX);
            syn.clamp(packet, self.mtu.min(mtu));
        }
        if let Some(plain) = &mut self.plain {
            plain.hold(room.get(at..len).unwrap_or_default());
        }
        let transform = &*outer.shared.transform;
        let verdict = guarded(outer.own, || transform.encapsulate(now, room, at..len));
        if let (Some(tap), Some(plain)) = (&outer.tap, &self.plain) {
            let dropped = match &verdict {
                Some(TxVerdict::Drop(reason)) => Some(reason.counter_name()),
                Some(_) => None,
                None => Some(PANICKED),
            };
            tap.held(CaptureEnd::Device, CaptureDirection::Inbound, now, plain, dropped);
        }
        match verdict {
            Some(TxVerdict::Send { range, vni, .. }) => {
                let sealed = moved_to_front(umem, &mut frame, range);
                count(&outer.counters.device_read_packets, 1);
                outer.send(now, frame, sealed, vni);
            }
            Some(TxVerdict::Reply { range }) => {
                moved_to_front(umem, &mut frame, range);
                count(&outer.own.neighbor_replies, 1);
                self.port.waiting.push(frame);
            }
            Some(TxVerdict::Drop(TxDrop::TooBig)) => {
                count(&outer.counters.device_read_packets, 1);
                self.answer_too_big(outer, now, frame, at..len);
            }
            Some(TxVerdict::Drop(_)) | None => {
                count(&outer.counters.device_read_packets, 1);
                outer.pool.free.push(frame);
            }
        }
    }

    /// Tells the sender of a packet that was too big how large it may be, in the packet's own frame.
    fn answer_too_big(&mut self, outer: &mut Outer<'_>, now: Instant, mut frame: Frame, place: Range<usize>) {
        let umem = &outer.pool.umem;
        let room = umem.room(&mut frame);
        let mut reply = [0; TooBig::MAX_BYTES];
        let answered = room.get(place.start + ethernet::HEADER_LEN..place.end).and_then(|packet| {
            let mtu = outer.shared.engine.inner_mtu_for(packet).unwrap_or(self.mtu);
            self.too_big.reply(now, packet, mtu, &mut reply)
        });
        let (Some(length), Mode::L2 { host_mac, gateway_mac }) = (answered, outer.shared.engine.mode()) else {
            outer.pool.free.push(frame);
            return;
        };
        let ethertype = if reply[0] >> 4 == 6 { ethernet::ETHERTYPE_IPV6 } else { ethernet::ETHERTYPE_IPV4 };
        let (link, body) = room.split_at_mut(ethernet::HEADER_LEN);
        if let Some(link) = link.first_chunk_mut() {
            ethernet::Header { destination: host_mac, source: gateway_mac, ethertype }.emit(link);
        }
        body[..length].copy_from_slice(&reply[..length]);
        umem.set_len(&mut frame, ethernet::HEADER_LEN + length);
        count(&outer.counters.device_write_packets, 1);
        self.port.waiting.push(frame);
    }

    fn inbound(&mut self, outer: &mut Outer<'_>, now: Instant) -> bool {
        if !self.port.has_room() {
            return false;
        }
        let mut batch = std::mem::take(&mut outer.batch);
        outer.receive(&mut batch);
        let is_busy = !batch.is_empty();
        for frame in batch.drain(..) {
            self.decapsulate(outer, now, &frame);
            outer.pool.free.push(frame);
        }
        outer.batch = batch;
        is_busy
    }

    fn decapsulate(&mut self, outer: &mut Outer<'_>, now: Instant, frame: &Frame) {
        // There always is one: see `umem`.
        let Some(mut out) = outer.pool.free.pop() else { return };
        let umem = &outer.pool.umem;
        let transform = &*outer.shared.transform;
        let packet = umem.packet(frame);
        let room = umem.room(&mut out);
        let verdict = guarded(outer.own, || transform.decapsulate(now, packet, room));
        if let Some(tap) = &outer.tap {
            let dropped = match &verdict {
                Some(RxVerdict::Drop(reason)) => Some(reason.counter_name()),
                Some(_) => None,
                None => Some(PANICKED),
            };
            tap.frame(CaptureEnd::Underlay, CaptureDirection::Inbound, now, packet, dropped);
        }
        match verdict {
            Some(RxVerdict::Deliver { range, vni }) => {
                let len = moved_to_front(umem, &mut out, range);
                if outer.shared.clamp_mss
                    && let Some(packet) = umem.room(&mut out).get_mut(ethernet::HEADER_LEN..len)
                    && let Some(syn) = Syn::parse(packet)
                {
                    let mtu = outer.shared.engine.network_inner_mtu(vni).unwrap_or(u32::MAX);
                    syn.clamp(packet, self.mtu.min(mtu));
                }
                umem.set_len(&mut out, len);
                if let Some(tap) = &outer.tap {
                    tap.frame(CaptureEnd::Device, CaptureDirection::Outbound, now, umem.packet(&out), None);
                }
                self.port.waiting.push(out);
                count(&outer.counters.device_write_packets, 1);
            }
            Some(RxVerdict::Consumed { .. } | RxVerdict::Drop(_)) | None => outer.pool.free.push(out),
        }
    }

    fn transmit(&mut self, outer: &mut Outer<'_>) {
        let transmitted = self.port.transmit(&mut outer.pool);
        count(&outer.counters.device_writes, transmitted.frames as u64);
        count(&outer.own.tx_refused, transmitted.refused);
    }
}

impl Outer<'_> {
    /// Sends what is due of itself, and lets the engine expire and switch keys.
    fn run_timers(&mut self, now: Instant) {
        let engine = &self.shared.engine;
        if engine.poll_timeout().is_some_and(|due| due <= now) {
            engine.handle_timeout(now);
        }
        if engine.next_keepalive().is_none_or(|due| due > now) {
            return;
        }
        while self.nic.has_room()
            && let Some(mut frame) = self.pool.free.pop()
        {
            match engine.to_phy(now, self.pool.umem.room(&mut frame)) {
                Some(TxVerdict::Send { range, vni, .. }) => {
                    let len = moved_to_front(&self.pool.umem, &mut frame, range);
                    self.send(now, frame, len, vni);
                }
                Some(_) => self.pool.free.push(frame),
                None => {
                    self.pool.free.push(frame);
                    break;
                }
            }
        }
        self.transmit();
    }

    /// Takes what the interface has received, one batch at most, and returns how much that is.
    fn receive(&mut self, batch: &mut Vec<Frame>) -> usize {
        let received = self.nic.receive(&mut self.pool, batch);
        count(&self.counters.underlay_received, received as u64);
        count(&self.counters.underlay_receives, received as u64);
        received
    }

    fn refill(&mut self) {
        self.nic.refill(&mut self.pool, self.shared.busy_poll);
    }

    /// Puts a sealed frame of `len` bytes behind those that wait, or drops it.
    fn send(&mut self, now: Instant, frame: Frame, len: usize, vni: Vni) {
        self.sink(now).send(frame, len, vni);
    }

    /// What seals straight into frames of the UMEM.
    fn sink(&mut self, now: Instant) -> FrameSink<'_, '_> {
        let Outer { shared, counters, own, pool, nic, reserved, tap, .. } = self;
        FrameSink { shared, counters, own, pool, nic, reserved, tap: tap.as_ref(), now }
    }

    fn transmit(&mut self) {
        let transmitted = self.nic.transmit(&mut self.pool);
        count(&self.counters.underlay_sends, transmitted.frames as u64);
        count(&self.own.tx_refused, transmitted.refused);
    }

    /// Both directions with a TUN device inside, a few batches at most each. False: there was nothing.
    fn forward_tun(&mut self, side: &mut DeviceSide<'_>, stop: &Stop, now: Instant) -> Result<bool, PumpError> {
        let outbound = if self.nic.has_room() {
            let read = side.read();
            self.seal(side, stop, now)?;
            read?
        } else {
            self.transmit();
            false
        };
        let inbound = self.open(side, now)?;
        self.refill();
        Ok(outbound || inbound)
    }

    fn seal(&mut self, side: &mut DeviceSide<'_>, stop: &Stop, now: Instant) -> Result<(), PumpError> {
        let mut sink = self.sink(now);
        let sealed = catch_unwind(AssertUnwindSafe(|| side.seal(now, &mut sink, |sink| sink.flush(stop))));
        let Ok(result) = sealed else {
            count(&sink.own.transform_panics, 1);
            sink.pool.free.extend(sink.reserved.drain(..));
            return Ok(());
        };
        result
    }

    fn open(&mut self, side: &mut DeviceSide<'_>, now: Instant) -> Result<bool, PumpError> {
        let mut batch = std::mem::take(&mut self.batch);
        while self.receive(&mut batch) == BATCH && batch.len() < OPEN_FRAMES {}
        let is_busy = !batch.is_empty();
        let mut result = Ok(());
        for frame in batch.drain(..) {
            let packet = self.pool.umem.packet(&frame);
            let engine = &self.shared.engine;
            let mut dropped = None;
            loop {
                let mut sink = Opening { opened: &mut side.opened, dropped: &mut dropped };
                let opened =
                    guarded(self.own, || engine.open_batch(now, None::<IpAddr>, packet, packet.len(), &mut sink));
                if opened.is_none() {
                    dropped = Some(PANICKED);
                }
                if opened != Some(0) || packet.is_empty() {
                    break;
                }
                // No more room: what is there goes to the device.
                result = result.and(self.deliver(side, now));
            }
            if let Some(tap) = &self.tap {
                tap.frame(CaptureEnd::Underlay, CaptureDirection::Inbound, now, packet, dropped);
            }
            self.pool.free.push(frame);
        }
        self.batch = batch;
        result.and(self.deliver(side, now)).map(|()| is_busy)
    }

    /// Hands the device what was opened. In the capture it is as it was opened and merged, its segment sizes not yet clamped.
    fn deliver(&self, side: &mut DeviceSide<'_>, now: Instant) -> Result<(), PumpError> {
        if let Some(tap) = &self.tap {
            for packet in side.opened.packets() {
                tap.frame(CaptureEnd::Device, CaptureDirection::Outbound, now, packet.packet(), None);
            }
        }
        side.deliver()
    }
}

/// Opens a frame to where what was opened before is, and keeps why it was dropped.
struct Opening<'o> {
    opened: &'o mut Coalescer,
    dropped: &'o mut Option<&'static str>,
}

impl OpenSink for Opening<'_> {
    #[inline]
    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.opened.room(len)
    }

    #[inline]
    fn deliver(&mut self, vni: Vni, len: usize) {
        self.opened.deliver(vni, len);
    }

    fn dropped(&mut self, reason: RxDrop) {
        *self.dropped = Some(reason.counter_name());
    }
}

/// Seals straight into frames of the UMEM.
struct FrameSink<'w, 'a> {
    shared: &'a Shared,
    counters: &'a WorkerCounters,
    own: &'a OwnCounters,
    pool: &'w mut Pool,
    nic: &'w mut Port,
    reserved: &'w mut VecDeque<Frame>,
    tap: Option<&'w CaptureTap>,
    now: Instant,
}

impl SealSink for FrameSink<'_, '_> {
    fn largest(&self) -> usize {
        // More than any frame has: `reserve` would refuse it for ever otherwise.
        self.pool.free.last().map_or(MAX_PACKET_BYTES, |frame| self.pool.umem.room_len(frame))
    }

    #[inline]
    fn reserve(&mut self, len: usize) -> bool {
        if self.reserved.len() >= BATCH || !self.nic.has_room() {
            return false;
        }
        let Some(frame) = self.pool.free.pop_if(|frame| self.pool.umem.room_len(frame) >= len) else { return false };
        self.reserved.push_back(frame);
        true
    }

    #[inline]
    fn front(&mut self, len: usize) -> &mut [u8] {
        self.reserved.front_mut().map_or(&mut [], |frame| &mut self.pool.umem.room(frame)[..len])
    }

    #[inline]
    fn settle(&mut self, len: usize, to: Option<&Destination>) {
        let Some(frame) = self.reserved.pop_front() else { return };
        match to {
            Some(to) => self.send(frame, len, to.vni),
            None => self.pool.free.push(frame),
        }
    }

    #[inline]
    fn hear(&mut self, packet: &[u8], dropped: Option<TxDrop>) {
        if let Some(tap) = self.tap {
            let dropped = dropped.map(TxDrop::counter_name);
            tap.frame(CaptureEnd::Device, CaptureDirection::Inbound, self.now, packet, dropped);
        }
    }
}

impl FrameSink<'_, '_> {
    /// Puts a sealed frame of `len` bytes behind those that wait, or drops it.
    #[inline]
    fn send(&mut self, mut frame: Frame, len: usize, vni: Vni) {
        self.pool.umem.set_len(&mut frame, len);
        let packet = self.pool.umem.packet(&frame);
        let sendable = sendable(self.shared, self.own, packet);
        if let Some(tap) = self.tap {
            let dropped = sendable.as_ref().err().map(|(_, name)| *name);
            tap.frame(CaptureEnd::Underlay, CaptureDirection::Outbound, self.now, packet, dropped);
        }
        match sendable {
            Ok(()) => {
                count(&self.counters.underlay_sent, 1);
                self.nic.waiting.push(frame);
            }
            Err((reason, _)) => {
                count(reason, 1);
                count(&self.counters.underlay_send_errors, 1);
                self.shared.engine.count_tx_errors(vni, 1);
                self.pool.free.push(frame);
            }
        }
    }

    /// Sets going what is sealed, and waits until there is room for more; gives up what waits when that takes too long.
    fn flush(&mut self, stop: &Stop) {
        let mut patience_ends = None;
        loop {
            let transmitted = self.nic.transmit(self.pool);
            count(&self.counters.underlay_sends, transmitted.frames as u64);
            count(&self.own.tx_refused, transmitted.refused);
            if self.nic.has_room() {
                return;
            }
            let now = clock::now();
            let end = *patience_ends.get_or_insert(now.saturating_add(PATIENCE));
            if now >= end || stop.is_stopped() || stop.pause(RETRY).is_err() {
                break;
            }
        }
        count(&self.own.tx_abandoned, self.nic.abandon(self.pool) as u64);
    }
}

/// What a capture says of frames at which the transform panicked.
const PANICKED: &str = "transform_panics";

/// Why a sealed frame cannot go out: the counter for that, and its name.
type Unsendable<'c> = (&'c std::sync::atomic::AtomicU64, &'static str);

/// Whether a sealed frame can go out.
#[inline]
fn sendable<'c>(shared: &Shared, own: &'c OwnCounters, frame: &[u8]) -> Result<(), Unsendable<'c>> {
    if frame.len() > shared.mtu.load(Ordering::Relaxed) as usize + ethernet::HEADER_LEN {
        return Err((&own.tx_oversize, "tx_oversize"));
    }
    if frame.starts_with(&[0; 6]) {
        shared.next_hop_wanted.store(true, Ordering::Relaxed);
        return Err((&own.next_hop_unknown, "next_hop_unknown"));
    }
    Ok(())
}

/// Moves a packet to the start of its frame, where a descriptor has to have it; returns its length.
#[inline]
fn moved_to_front(umem: &Umem, frame: &mut Frame, range: Range<usize>) -> usize {
    let len = range.len();
    if range.start != 0 {
        umem.room(frame).copy_within(range, 0);
    }
    umem.set_len(frame, len);
    len
}

/// Runs what a defect could make panic; `None` when it did.
#[inline]
fn guarded<T>(own: &OwnCounters, body: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(body)).inspect_err(|_| count(&own.transform_panics, 1)).ok()
}
