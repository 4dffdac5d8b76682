//! One worker: both directions of one queue and one socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

use icx_proto::engine::{Arrival, BatchPacket, Destination, PathMtuVerdict, RunBuffer, Stop, TxVerdict};
use icx_proto::offload::{CoalesceOptions, Coalescer, VnetHeader, outgoing_with};
use icx_proto::wire::flow_hash::flow_hash;
use icx_proto::wire::mss::Syn;
use icx_proto::{Instant, Vni};

use super::idle::Idle;
use super::{Control, Ends, PumpError, PumpNotice, WorkerCounters, count};
use crate::clock;
use crate::ends::{MAX_PACKET_BYTES, RECEIVE_SLOT_BYTES, Received};
use crate::icmp::TooBig;
use crate::sys::{ErrorSlot, Interest, ReceiveBatch};
use crate::told::{self, Told};
use crate::udp::{RUN_LIMITS, SendEvents, Sender};

/// What the device hands over in one read.
const MAX_READ_BYTES: usize = VnetHeader::LEN + MAX_PACKET_BYTES;

/// Packets that are read from the device before they are sealed.
const READ_PACKETS: usize = 64;

/// Bytes for those: one packet of the largest size, or many small ones. More would not stay in the processor's cache
/// until they are sealed.
const READ_BYTES: usize = 2 * MAX_READ_BYTES;

/// Sealed datagrams that wait to be sent: one uncut packet as a whole, and each of the small ones by itself.
const SEND_BYTES: usize = 2 * 65_536;
const SEND_RUNS: usize = 2 * READ_PACKETS;

/// Messages per receive.
const RECEIVE_SLOTS: usize = 64;

/// How much a receive should bring at most, going by the last one. As with [`READ_BYTES`].
const RECEIVE_BYTES: usize = 2 * 65_536;

/// What was opened, until the device has it.
const DELIVER_BYTES: usize = 2 * 65_536;

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
    read: ReadBatch,
    /// Emptied after each batch; kept for its memory.
    packets: Vec<BatchPacket<'static>>,
    sealed: RunBuffer,
    received: ReceiveBatch,
    receive_limit: usize,
    opened: Coalescer,
    too_big: TooBig,
    /// Numbers of the packets of the batch that were too big, and what would not have been, where that is bounded.
    oversized: Vec<(usize, Option<u32>)>,
    errors: ErrorSlot,
    /// When the first worker reads what all sockets were told.
    hear_at: Instant,
    idle: Idle,
}

impl<'a> Worker<'a> {
    pub(super) fn new(ends: &'a Ends, control: &'a Control, number: usize) -> Self {
        let now = clock::now();
        let gro = ends.tun.offload().gro;
        Worker {
            ends,
            number,
            port: Port { ends, control, number, counters: &control.counters[number], sender: Sender::new(SEND_RUNS) },
            read: ReadBatch::new(if ends.tun.has_headers() { VnetHeader::LEN } else { 0 }),
            packets: Vec::with_capacity(READ_PACKETS),
            sealed: RunBuffer::new(SEND_BYTES, SEND_RUNS, RUN_LIMITS),
            received: ReceiveBatch::new(RECEIVE_SLOTS, RECEIVE_SLOT_BYTES),
            receive_limit: RECEIVE_SLOTS,
            opened: Coalescer::new(CoalesceOptions {
                tcp: gro,
                udp: gro && ends.tun.merges_udp(),
                vnet: ends.tun.has_headers(),
                bytes: DELIVER_BYTES,
            }),
            too_big: TooBig::new(now),
            oversized: Vec::with_capacity(READ_PACKETS),
            errors: ErrorSlot::new(),
            hear_at: now,
            idle: Idle::new(ends.options.latency, now),
        }
    }

    fn run(&mut self) -> Result<(), PumpError> {
        while !self.port.control.is_stopped() {
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
                let tun = Interest::readable(self.ends.tun.queue_fd(self.number));
                let udp = Interest::readable(self.ends.udp.base(self.number));
                let [_, udp] = self.port.control.wait([tun, udp], self.sleep(now))?;
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
        let filled = self.read.fill(&self.port);
        // Also before a failure: what has been read is sealed, and what is sealed is sent or counted.
        self.seal(now)?;
        filled
    }

    fn seal(&mut self, now: Instant) -> Result<(), PumpError> {
        if self.read.lengths.is_empty() {
            return Ok(());
        }
        let engine = &self.ends.engine;
        let mut packets = recycle(std::mem::take(&mut self.packets));
        self.read.packets(&mut packets, &|packet| self.port.clamp_outbound(packet));
        let segments = packets.iter().map(|packet| packet.packets()).sum();
        count(&self.port.counters.device_read_packets, segments);
        let mut delivered = Ok(());
        let mut done = 0;
        while done < packets.len() {
            let batch = engine.seal_batch(now, &mut packets[done..], &mut self.sealed);
            done += batch.packets;
            match batch.stopped {
                Some(Stop::Reply(reply)) => delivered = delivered.and(self.port.reply(reply.as_bytes())),
                Some(Stop::TooBig { mtu }) => self.oversized.push((done - 1, mtu)),
                Some(_) => {}
                None if done < packets.len() => self.port.send(now, &mut self.sealed),
                None => {}
            }
        }
        self.packets = recycle(packets);
        self.port.send(now, &mut self.sealed);
        for (number, mtu) in self.oversized.drain(..) {
            let mtu = mtu.unwrap_or(self.ends.tun.mtu());
            let packet = self.read.packet(number);
            let mut reply = [0; TooBig::MAX_BYTES];
            if let Some(length) = self.too_big.reply(now, packet, mtu, &mut reply) {
                delivered = delivered.and(self.port.reply(&reply[..length]));
            }
        }
        delivered
    }

    /// From the socket to the device, as much as one batch holds. False: there was nothing.
    fn inbound(&mut self, now: Instant) -> Result<bool, PumpError> {
        let Worker { ends, port, received, opened, errors, .. } = self;
        let listener = port.listener();
        let batch = (&mut *received, self.receive_limit);
        match ends.udp.receive(self.number, batch, errors, &mut |told| listener.told(now, told))? {
            Received::Messages(_) => {}
            // Readable as it may be, the socket gave nothing.
            Received::Nothing { pause: true } => return port.control.pause(Duration::from_millis(1)).map(|()| false),
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
                let done = ends.engine.open_batch(now, arrival, rest, message.stride, opened);
                if done == rest.len() {
                    break;
                }
                // No more room: what is there goes to the device.
                rest = &rest[done..];
                port.deliver(opened)?;
            }
        }
        let counters = port.counters;
        count(&counters.underlay_receives, messages);
        count(&counters.underlay_received, datagrams);
        count(&counters.underlay_truncated, truncated);
        self.receive_limit = (RECEIVE_BYTES * messages as usize / bytes.max(1)).clamp(1, RECEIVE_SLOTS);
        port.deliver(opened)?;
        Ok(true)
    }

    /// Hands the device what counts as `packets`.
    #[cfg(test)]
    pub(super) fn write(&self, bytes: &[u8], packets: u64) -> Result<(), PumpError> {
        self.port.write(self.number, bytes, packets)
    }

    /// How long there is nothing to do without a packet; `None`: for ever.
    fn sleep(&self, now: Instant) -> Option<Duration> {
        // At least a millisecond, so that something overdue which the engine cannot serve does not burn a processor.
        const LEAST: Duration = Duration::from_millis(1);
        if self.number != FIRST {
            return None;
        }
        let engine = &self.ends.engine;
        let due = [engine.poll_timeout(), engine.next_keepalive()].into_iter().flatten().min();
        let idle = self.ends.options.idle_wake;
        Some(due.map_or(idle, |due| due.saturating_since(now).min(idle)).max(LEAST))
    }
}

/// A keepalive with the headers of the largest underlay.
const MAX_KEEPALIVE_BYTES: usize = 128;

/// An empty vector in the memory of another one, for packets that live for another time.
fn recycle<'b>(mut packets: Vec<BatchPacket<'_>>) -> Vec<BatchPacket<'b>> {
    packets.clear();
    // Collected in place, with nothing to convert.
    packets.into_iter().map_while(|_| None).collect()
}

/// Packets read from the device, back to back in one buffer.
struct ReadBatch {
    buffer: Box<[u8]>,
    /// Bytes of virtio header in front of each packet.
    header: usize,
    /// Of each packet, the header included.
    lengths: Vec<usize>,
}

impl ReadBatch {
    fn new(header: usize) -> Self {
        ReadBatch { buffer: vec![0; READ_BYTES].into(), header, lengths: Vec::with_capacity(READ_PACKETS) }
    }

    /// Reads until the batch is full or the device has nothing more; false when it had nothing at all.
    fn fill(&mut self, port: &Port<'_>) -> Result<bool, PumpError> {
        self.lengths.clear();
        let mut used = 0;
        let result = loop {
            if self.lengths.len() == READ_PACKETS || self.buffer.len() - used < MAX_READ_BYTES {
                break Ok(true);
            }
            match port.ends.tun.next_piece(port.number, &mut self.buffer[used..]) {
                // Nothing follows the header of an empty packet, which there is none of.
                Ok(Some(length)) if length > self.header => {
                    self.lengths.push(length);
                    used += length;
                }
                Ok(_) => break Ok(!self.lengths.is_empty()),
                Err(error) => break Err(error),
            }
        };
        count(&port.counters.device_reads, self.lengths.len() as u64);
        result
    }

    /// Appends the packets to an empty vector, for the engine; `change` sees those that are not to be cut.
    fn packets<'b>(&'b mut self, packets: &mut Vec<BatchPacket<'b>>, change: &impl Fn(&mut [u8])) {
        let mut rest = &mut self.buffer[..];
        for &length in &self.lengths {
            let (whole, others) = rest.split_at_mut(length);
            packets.push(if self.header == 0 {
                change(whole);
                BatchPacket::Whole(whole)
            } else if let Some((header, packet)) = whole.split_first_chunk_mut() {
                outgoing_with(&VnetHeader::parse(header), packet, change)
            } else {
                BatchPacket::Malformed
            });
            rest = others;
        }
    }

    /// A packet as it was read, unless it has been cut since.
    fn packet(&self, number: usize) -> &[u8] {
        let start: usize = self.lengths[..number].iter().sum();
        &self.buffer[start + self.header..start + self.lengths[number]]
    }
}

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

    /// Lowers the segment size that a packet from the device announces, where that is wanted.
    #[inline]
    fn clamp_outbound(&self, packet: &mut [u8]) {
        if self.ends.options.clamp_mss
            && let Some(syn) = Syn::parse(packet)
        {
            let mtu = self.ends.engine.inner_mtu_for(packet);
            syn.clamp(packet, self.ends.tun.mtu().min(mtu.unwrap_or(u32::MAX)));
        }
    }

    /// The same for a packet to the device.
    fn clamp_inbound(&self, vni: Vni, packet: &mut [u8]) {
        if let Some(syn) = Syn::parse(packet) {
            let mtu = self.ends.engine.network_inner_mtu(vni);
            syn.clamp(packet, self.ends.tun.mtu().min(mtu.unwrap_or(u32::MAX)));
        }
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

    /// Hands the device what was opened.
    fn deliver(&self, opened: &mut Coalescer) -> Result<(), PumpError> {
        if self.ends.options.clamp_mss {
            opened.change_single(|vni, packet| self.clamp_inbound(vni, packet));
        }
        let mut result = Ok(());
        for packet in opened.packets() {
            let queue = self.queue_of(packet.packet());
            result = result.and(self.write(queue, packet.bytes(), u64::from(packet.segments)));
        }
        opened.clear();
        result
    }

    /// The queue from which the answers to a packet are to be read.
    fn queue_of(&self, packet: &[u8]) -> usize {
        match self.ends.tun.queues() {
            1 => 0,
            // The upper bits, which are the better mixed ones.
            queues => (usize::from(flow_hash(0, packet)) * queues) >> u16::BITS,
        }
    }

    /// Hands the device a packet of this node's own.
    fn reply(&self, packet: &[u8]) -> Result<(), PumpError> {
        self.written(self.ends.tun.deliver(self.number, packet), 1)
    }

    /// Hands the device what counts as `packets`. What it does not take is counted.
    fn write(&self, queue: usize, bytes: &[u8], packets: u64) -> Result<(), PumpError> {
        self.written(self.ends.tun.deliver_piece(queue, bytes), packets)
    }

    fn written(&self, taken: Result<bool, PumpError>, packets: u64) -> Result<(), PumpError> {
        let counters = self.counters;
        count(&counters.device_writes, 1);
        let is_taken = matches!(taken, Ok(true));
        count(if is_taken { &counters.device_write_packets } else { &counters.device_write_errors }, packets);
        taken.map(drop)
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
            && !self.listener.control.is_stopped()
            && self.listener.control.wait([Interest::writable(socket)], Some(left)).is_ok_and(|[room]| room.is_ready())
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
