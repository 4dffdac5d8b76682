//! Many packets per call: runs of sealed datagrams that one segmented send takes, and received batches of datagrams
//! of one size, as segmentation offload makes them.
//!
//! What is the same for a whole group of packets is looked up, and counted, once: the key, a block of its counter
//! values, the network's counters. Counter values are taken only for packets whose every check is behind them.

use core::ops::Range;
use std::net::SocketAddr;

use super::table::{Entry, Table};
use super::tx::{Followed, LocalReply, Outbound, Plain, SEAL_OVERHEAD, UsableTx};
use super::{Arrival, Engine, Mode};
use crate::counters::{RxDrop, TxDrop};
use crate::id::Vni;
use crate::offload::Segments;
use crate::time::Instant;
use crate::wire::geneve::TunnelHeader;
use crate::wire::traffic_class::TrafficClass;

/// Packets whose counter values are taken in one step.
const BLOCK: usize = 64;

/// One element of a batch to be sealed.
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation for each packet")]
#[derive(Debug)]
#[non_exhaustive]
pub enum BatchPacket<'a> {
    /// One virtual-side frame.
    Whole(&'a [u8]),
    /// An inner packet to be cut. A batch that ends within it goes on there the next time. Engines with
    /// [`Mode::L2`](super::Mode) have no such packets: [`TxDrop::Malformed`].
    Segmented(Segments<'a>),
    /// What a device handed over contradicts itself.
    Malformed,
}

/// Where a sealed datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub vni: Vni,
    pub peer: SocketAddr,
    /// `None` for the unhashed port.
    pub source_port: Option<u16>,
    /// Of the outer header.
    pub traffic_class: TrafficClass,
}

/// Where [`Engine::seal_batch`] puts what it seals. Room is set aside for some datagrams in order, then filled and
/// settled in the same order.
pub trait SealSink {
    /// The longest datagram that there is room for when nothing else is there.
    fn largest(&self) -> usize;

    /// Sets room for the next datagram of `len` bytes aside. `false`: there is none left.
    fn reserve(&mut self, len: usize) -> bool;

    /// The earliest room that is not settled, of the `len` bytes that were asked for.
    fn front(&mut self, len: usize) -> &mut [u8];

    /// What is in that room goes to `to`; `None`: it is not used.
    fn settle(&mut self, len: usize, to: Option<&Destination>);

    /// Tells of each inner packet, cut where it was to be cut, that it has been sealed, or why it was dropped: before it is settled, if
    /// there is room for it. What is dropped before it is cut comes once, as its headers, and what is malformed may be empty.
    #[inline]
    fn hear(&mut self, _packet: &[u8], _dropped: Option<TxDrop>) {}
}

/// How long a run may get, which is what one segmented send takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLimits {
    /// Datagrams per run; at least 1.
    pub datagrams: usize,
    /// Bytes per run, unless a single datagram is longer.
    pub bytes: usize,
}

/// Consecutive datagrams of one network to one peer from one source port with one traffic class, back to back in one buffer.
/// All have `segment_size` bytes but the last, which may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedRun {
    pub range: Range<usize>,
    pub segment_size: usize,
    pub count: usize,
    pub to: Destination,
}

impl SealedRun {
    /// The place of each datagram in the buffer, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (end, size) = (self.range.end, self.segment_size.max(1));
        self.range.clone().step_by(size).map(move |start| start..end.min(start + size))
    }

    fn takes(&self, next: &Range<usize>, to: &Destination, limits: RunLimits) -> bool {
        let len = next.len();
        self.range.end == next.start
            && self.to == *to
            && self.range.len() == self.count * self.segment_size
            && len <= self.segment_size
            && self.count < limits.datagrams
            && self.range.len() + len <= limits.bytes
    }
}

/// Sealed datagrams back to back in one buffer, in runs that one segmented send each takes. It allocates nothing after it
/// was made.
#[derive(Debug)]
pub struct RunBuffer {
    buffer: Box<[u8]>,
    /// Bytes that are settled, and those that are set aside in addition.
    settled: usize,
    reserved: usize,
    /// Datagrams for which room is set aside.
    pending: usize,
    runs: Vec<SealedRun>,
    max_runs: usize,
    limits: RunLimits,
}

impl RunBuffer {
    /// Holds `bytes`, and at least `runs` runs.
    pub fn new(bytes: usize, runs: usize, limits: RunLimits) -> Self {
        // What is set aside in one block may be as many runs, or one.
        let max_runs = runs + BLOCK;
        RunBuffer {
            buffer: vec![0; bytes].into(),
            settled: 0,
            reserved: 0,
            pending: 0,
            runs: Vec::with_capacity(max_runs),
            max_runs,
            limits,
        }
    }

    /// What is settled, in the order in which it was sealed.
    pub fn runs(&self) -> &[SealedRun] {
        &self.runs
    }

    /// The bytes of a run, or of one of its datagrams.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.settled
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Where a single datagram may be written, to be added with [`RunBuffer::push`]. Empty when no run can be added.
    pub fn space(&mut self) -> &mut [u8] {
        let from = if self.runs.len() < self.max_runs { self.settled } else { self.buffer.len() };
        &mut self.buffer[from..]
    }

    /// Takes in what was written to the first `len` bytes of [`RunBuffer::space`].
    pub fn push(&mut self, len: usize, to: &Destination) {
        self.reserved += len;
        self.pending += 1;
        self.settle(len, Some(to));
    }

    /// Forgets everything, for instance because it has been sent.
    pub fn clear(&mut self) {
        self.runs.clear();
        (self.settled, self.reserved, self.pending) = (0, 0, 0);
    }
}

impl SealSink for RunBuffer {
    fn largest(&self) -> usize {
        self.buffer.len()
    }

    #[inline]
    fn reserve(&mut self, len: usize) -> bool {
        // Each datagram may turn out to start a run.
        let fits =
            self.settled + self.reserved + len <= self.buffer.len() && self.runs.len() + self.pending < self.max_runs;
        if fits {
            self.reserved += len;
            self.pending += 1;
        }
        fits
    }

    #[inline]
    fn front(&mut self, len: usize) -> &mut [u8] {
        &mut self.buffer[self.settled..self.settled + len]
    }

    #[inline]
    fn settle(&mut self, len: usize, to: Option<&Destination>) {
        let range = self.settled..self.settled + len;
        self.settled = range.end;
        self.reserved -= len;
        self.pending -= 1;
        let Some(to) = to else { return };
        match self.runs.last_mut() {
            Some(run) if run.takes(&range, to, self.limits) => {
                run.range.end = range.end;
                run.count += 1;
            }
            _ => self.runs.push(SealedRun { segment_size: range.len(), range, count: 1, to: *to }),
        }
    }
}

/// How far [`Engine::seal_batch`] has come.
#[derive(Debug)]
pub struct SealedBatch {
    /// Packets that are done with: sealed, dropped or answered. Where it is fewer than were given, and nothing below
    /// asks for attention, the sink has no more room.
    pub packets: usize,
    /// What the last of `packets` asks for before the batch goes on.
    pub stopped: Option<Stop>,
}

/// Why a batch ended before its end.
#[derive(Debug)]
#[non_exhaustive]
pub enum Stop {
    /// A local reply (ARP, neighbour advertisement) to the last packet, which goes back to the virtual side.
    Reply(LocalReply),
    /// The last packet was dropped as [`TxDrop::TooBig`], which its sender should hear of: `mtu` is the most that the
    /// engine and the packet's network take, in bytes, if there is a bound.
    TooBig { mtu: Option<u32> },
}

/// Where [`Engine::open_batch`] puts what it opens.
pub trait OpenSink {
    /// Room for a virtual-side frame of up to `len` bytes. What is written there counts only once
    /// [`OpenSink::deliver`] says so. `None` ends the batch before this datagram.
    fn room(&mut self, len: usize) -> Option<&mut [u8]>;

    /// The first `len` bytes of the room last given are a virtual-side frame.
    fn deliver(&mut self, vni: Vni, len: usize);

    /// Tells why the datagram that the room last given was for is dropped.
    #[inline]
    fn dropped(&mut self, _reason: RxDrop) {}
}

/// A datagram of a block: its packet among the inputs, and which part of that it carries.
#[derive(Clone, Copy, Default)]
struct Planned {
    input: usize,
    /// Where the inner packet starts in a frame; which segment of a packet to be cut.
    at: usize,
    protocol: u16,
    followed: Followed,
    sealed_len: usize,
}

/// Datagrams to one network that are certain to be sealed, but for the counter limit.
struct Block<'t> {
    entry: &'t Entry,
    tx: UsableTx<'t>,
    planned: [Planned; BLOCK],
    len: usize,
}

impl Block<'_> {
    fn is_full(&self) -> bool {
        self.len == BLOCK
    }

    fn add(&mut self, planned: Planned) {
        self.planned[self.len] = planned;
        self.len += 1;
    }
}

/// Why a plan ends before all packets are in it.
enum PlanEnd {
    /// The next datagram belongs to another block.
    Block,
    /// There is no more room.
    Full,
    Stop(Stop),
}

impl BatchPacket<'_> {
    /// How many packets it counts as, as far as they are not planned.
    pub fn packets(&self) -> u64 {
        match self {
            BatchPacket::Whole(_) | BatchPacket::Malformed => 1,
            BatchPacket::Segmented(segments) => segments.left() as u64,
        }
    }

    /// The inner packet that [`Planned::at`] speaks of. Nothing is planned of what is malformed.
    fn inner(&mut self, at: usize) -> &[u8] {
        match self {
            BatchPacket::Whole(frame) => &frame[at..],
            BatchPacket::Segmented(segments) => segments.cut(at),
            BatchPacket::Malformed => &[],
        }
    }
}

impl Engine {
    /// Seals `packets` into `sink`. It ends early when `sink` has no more room, and when a packet asks for attention:
    /// call it again with the rest. A packet for which even an empty sink has no room is dropped as [`TxDrop::TooBig`].
    ///
    /// A packet to be cut counts as the packets that it would become, whatever becomes of it.
    pub fn seal_batch(&self, now: Instant, packets: &mut [BatchPacket<'_>], sink: &mut impl SealSink) -> SealedBatch {
        let table = self.table.load();
        let mut done = 0;
        loop {
            let mut block = None;
            let end = loop {
                // After the last packet there is nothing left for the room.
                let Some(packet) = packets.get_mut(done) else { break PlanEnd::Full };
                match self.plan(&table, now, done, packet, &mut block, sink) {
                    Ok(()) => done += 1,
                    Err(end) => break end,
                }
            };
            if let Some(block) = &block {
                self.seal_block(now, block, packets, sink);
            }
            match end {
                PlanEnd::Block => {}
                PlanEnd::Full => return SealedBatch { packets: done, stopped: None },
                PlanEnd::Stop(stop) => return SealedBatch { packets: done + 1, stopped: Some(stop) },
            }
        }
    }

    /// Adds the datagrams of one packet to a block, which begins with the first of them, or drops the packet.
    fn plan<'t, S: SealSink>(
        &self,
        table: &'t Table,
        now: Instant,
        input: usize,
        packet: &mut BatchPacket<'_>,
        block: &mut Option<Block<'t>>,
        sink: &mut S,
    ) -> Result<(), PlanEnd> {
        let head = match &*packet {
            BatchPacket::Whole(frame) => *frame,
            BatchPacket::Segmented(segments) if matches!(self.mode, Mode::L3) => segments.head(),
            BatchPacket::Segmented(_) | BatchPacket::Malformed => {
                self.tx_drops(None, TxDrop::Malformed, packet.packets());
                sink.hear(&[], Some(TxDrop::Malformed));
                return Ok(());
            }
        };
        let (entry, inner, protocol) = match self.classify(table, head) {
            Ok(Outbound::Seal { entry, inner, protocol }) => (entry, inner, protocol),
            Ok(Outbound::Reply(reply)) => return Err(PlanEnd::Stop(Stop::Reply(reply))),
            Err(reason) => {
                self.tx_drops(None, reason, packet.packets());
                sink.hear(head.get(self.link_header_len()..).unwrap_or_default(), Some(reason));
                return Ok(());
            }
        };
        if block.as_ref().is_some_and(|block| !core::ptr::eq(block.entry, entry) || block.is_full()) {
            return Err(PlanEnd::Block);
        }
        let followed = self.followed(&head[inner.clone()]);
        let longest = match &*packet {
            BatchPacket::Segmented(segments) => segments.peek().map_or(0, |(_, len)| len),
            _ => inner.len(),
        };
        let dropped = |sink: &mut S, reason, packets| {
            self.tx_drops(Some(entry), reason, packets);
            sink.hear(&head[inner.clone()], Some(reason));
            if reason != TxDrop::TooBig {
                return Ok(());
            }
            Err(PlanEnd::Stop(Stop::TooBig { mtu: self.bound(entry) }))
        };
        // The key of a block is looked up with its first packet.
        let block = match block {
            Some(block) => block,
            None => match self.ready(now, entry, longest) {
                Ok((tx, _)) => block.insert(Block { entry, tx, planned: [Planned::default(); BLOCK], len: 0 }),
                Err(reason) => return dropped(sink, reason, packet.packets()),
            },
        };
        let Some(sealed_len) = self.sealed_len(entry, longest).filter(|len| *len <= sink.largest()) else {
            return dropped(sink, TxDrop::TooBig, packet.packets());
        };
        let mut add = |at, sealed_len| {
            if block.is_full() {
                return Err(PlanEnd::Block);
            }
            if !sink.reserve(sealed_len) {
                return Err(PlanEnd::Full);
            }
            block.add(Planned { input, at, protocol, followed, sealed_len });
            Ok(())
        };
        match packet {
            BatchPacket::Segmented(segments) => {
                while let Some((index, len)) = segments.peek() {
                    add(index, sealed_len - (longest - len))?;
                    segments.advance();
                }
                Ok(())
            }
            _ => add(inner.start, sealed_len),
        }
    }

    fn seal_block(&self, now: Instant, block: &Block<'_>, packets: &mut [BatchPacket<'_>], sink: &mut impl SealSink) {
        let Block { entry, tx: (sa, key), planned, len } = block;
        if *len == 0 {
            return;
        }
        let (vni, peer) = (entry.network.vni, entry.peer);
        let counters = &entry.network.counters;
        let (first, granted) = sa.counter.take(*len as u16);
        let (sealed, refused) = planned[..*len].split_at(usize::from(granted));
        let (mut sent, mut bytes) = (0, 0);
        for (counter, datagram) in (first..).zip(sealed) {
            let &Planned { input, at, protocol, followed, sealed_len } = datagram;
            let inner = packets[input].inner(at);
            let header = TunnelHeader { protocol, vni, spi: sa.spi.get(), counter };
            let out = sink.front(sealed_len);
            let sealed = self.seal_frame(entry, key, &header, followed, Plain::At(inner), out);
            sink.hear(inner, sealed.err());
            match sealed {
                Ok(()) => {
                    sent += 1;
                    bytes += inner.len() as u64;
                    let Followed { source_port, traffic_class } = followed;
                    sink.settle(sealed_len, Some(&Destination { vni, peer, source_port, traffic_class }));
                }
                Err(reason) => {
                    counters.tx_dropped(reason, 1);
                    sink.settle(sealed_len, None);
                }
            }
        }
        counters.sent(now, sent, bytes);
        if !refused.is_empty() {
            counters.tx_dropped(TxDrop::Exhausted, refused.len() as u64);
            for datagram in refused {
                sink.hear(packets[datagram.input].inner(datagram.at), Some(TxDrop::Exhausted));
                sink.settle(datagram.sealed_len, None);
            }
        }
    }

    /// Opens `datagrams`, which came in one receive as `arrival` says: `stride` bytes each but for the last, which may be
    /// shorter. Raw underlays: whole frames, `arrival` is ignored. They are opened in order, each into the room that `sink`
    /// gives. Returns the bytes that are done with: less than given only when the sink had no more room.
    pub fn open_batch(
        &self,
        now: Instant,
        arrival: impl Into<Arrival>,
        datagrams: &[u8],
        stride: usize,
        sink: &mut impl OpenSink,
    ) -> usize {
        let arrival = arrival.into();
        let table = self.table.load();
        let mut tally = Tally { entry: None, packets: 0, bytes: 0 };
        let mut done = 0;
        for datagram in datagrams.chunks(stride.max(1)) {
            // What opens has at least the tunnel header and the tag in addition.
            let longest = self.link_header_len() + datagram.len().saturating_sub(SEAL_OVERHEAD);
            let Some(room) = sink.room(longest) else { break };
            match self.admit(&table, now, arrival, datagram) {
                Ok(inbound) => match self.open_into(now, &inbound, datagram, room) {
                    Ok(delivered) => {
                        tally.add(now, inbound.entry, inbound.text_len());
                        if let Some(len) = delivered {
                            sink.deliver(inbound.entry.network.vni, len);
                        }
                    }
                    Err(reason) => {
                        self.rx_drop((Some(inbound.entry), reason));
                        sink.dropped(reason);
                    }
                },
                Err(refusal) => {
                    self.rx_drop(refusal);
                    sink.dropped(refusal.1);
                }
            }
            done += datagram.len();
        }
        tally.flush(now);
        done
    }
}

/// What has been received for one network in a row.
struct Tally<'t> {
    entry: Option<&'t Entry>,
    packets: u64,
    bytes: u64,
}

impl<'t> Tally<'t> {
    fn add(&mut self, now: Instant, entry: &'t Entry, bytes: usize) {
        if !self.entry.is_some_and(|last| core::ptr::eq(last, entry)) {
            self.flush(now);
            *self = Tally { entry: Some(entry), packets: 0, bytes: 0 };
        }
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    fn flush(&self, now: Instant) {
        if let Some(entry) = self.entry {
            entry.network.counters.received(now, self.packets, self.bytes);
        }
    }
}
