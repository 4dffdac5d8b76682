//! Many packets per call: runs of sealed datagrams that one segmented send takes, and received batches of datagrams
//! of one size, as segmentation offload makes them.
//!
//! What is the same for a whole group of packets is looked up, and counted, once: the key, a block of its counter
//! values, the network's counters. Counter values are taken only for packets whose every check is behind them.

use core::ops::Range;
use std::net::{IpAddr, SocketAddr};

use super::Engine;
use super::table::{Entry, Table};
use super::tx::{Outbound, Plain, SEAL_OVERHEAD, UsableTx};
use crate::counters::TxDrop;
use crate::id::Vni;
use crate::time::Instant;
use crate::wire::geneve::TunnelHeader;

/// Packets whose counter values are taken in one step.
const BLOCK: usize = 64;

/// One element of a batch to be sealed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum BatchPacket<'a> {
    /// One virtual-side frame.
    Whole(&'a [u8]),
}

/// How long a run may get, which is what one segmented send takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLimits {
    /// Datagrams per run; at least 1.
    pub datagrams: usize,
    /// Bytes per run, unless a single datagram is longer.
    pub bytes: usize,
}

/// Consecutive datagrams of one network to one peer from one source port, back to back in the output buffer. All
/// have `segment_size` bytes but the last, which may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedRun {
    pub range: Range<usize>,
    pub segment_size: usize,
    pub count: usize,
    pub vni: Vni,
    pub peer: SocketAddr,
    /// `None` for the unhashed port.
    pub source_port: Option<u16>,
}

impl SealedRun {
    /// The place of each datagram in the output buffer, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (end, size) = (self.range.end, self.segment_size.max(1));
        self.range.clone().step_by(size).map(move |start| start..end.min(start + size))
    }

    fn takes(&self, next: &SealedRun, limits: RunLimits) -> bool {
        let len = next.range.len();
        self.range.end == next.range.start
            && (self.vni, self.peer, self.source_port) == (next.vni, next.peer, next.source_port)
            && self.range.len() == self.count * self.segment_size
            && len <= self.segment_size
            && self.count < limits.datagrams
            && self.range.len() + len <= limits.bytes
    }
}

/// How far [`Engine::seal_batch`] has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedBatch {
    /// Packets that are done with: sealed, dropped or answered. The rest found no room, or comes after an answer.
    pub packets: usize,
    /// Bytes of the output buffer in use.
    pub bytes: usize,
    /// A local reply (ARP, neighbour advertisement) to the last of `packets`, which goes back to the virtual side.
    pub reply: Option<Range<usize>>,
}

/// Where [`Engine::open_batch`] puts what it opens.
pub trait OpenSink {
    /// Room for a virtual-side frame of up to `len` bytes. What is written there counts only once
    /// [`OpenSink::deliver`] says so. `None` ends the batch before this datagram.
    fn room(&mut self, len: usize) -> Option<&mut [u8]>;

    /// The first `len` bytes of the room last given are a virtual-side frame.
    fn deliver(&mut self, vni: Vni, len: usize);
}

/// A packet of a block: its inner packet among the inputs, its datagram in the output.
#[derive(Clone, Copy, Default)]
struct Planned {
    input: usize,
    inner_at: usize,
    protocol: u16,
    source_port: Option<u16>,
    start: usize,
    end: usize,
}

/// Packets to one network that are certain to be sealed, but for the counter limit.
struct Block<'t> {
    entry: &'t Entry,
    tx: UsableTx<'t>,
    planned: [Planned; BLOCK],
    len: usize,
}

impl Engine {
    /// Seals `packets` into `out`, back to back, and appends the runs they form to `runs`. It stops early when `out` is
    /// full and after a local reply: call it again with the rest. A packet that does not even fit an empty `out` is
    /// dropped as [`TxDrop::TooBig`].
    pub fn seal_batch(
        &self,
        now: Instant,
        packets: &[BatchPacket<'_>],
        out: &mut [u8],
        limits: RunLimits,
        runs: &mut Vec<SealedRun>,
    ) -> SealedBatch {
        let table = self.table.load();
        let mut done = SealedBatch { packets: 0, bytes: 0, reply: None };
        loop {
            let before = done.packets;
            if let Some(block) = self.plan(&table, now, packets, out, &mut done) {
                self.seal_block(now, &block, packets, out, limits, runs);
            }
            if done.packets == before || done.packets == packets.len() || done.reply.is_some() {
                return done;
            }
        }
    }

    /// Collects the next packets that go to one network, and settles what comes before and between them: drops, and
    /// one local reply.
    fn plan<'t>(
        &self,
        table: &'t Table,
        now: Instant,
        packets: &[BatchPacket<'_>],
        out: &mut [u8],
        done: &mut SealedBatch,
    ) -> Option<Block<'t>> {
        let mut block: Option<Block<'t>> = None;
        for (input, BatchPacket::Whole(frame)) in packets.iter().enumerate().skip(done.packets) {
            let (entry, inner, protocol) = match self.classify(table, frame) {
                Ok(Outbound::Seal { entry, inner, protocol }) => (entry, inner, protocol),
                Ok(Outbound::Reply(reply)) => {
                    if let Some(len) = reply.write(&mut out[done.bytes..]) {
                        done.reply = Some(done.bytes..done.bytes + len);
                        done.bytes += len;
                        done.packets += 1;
                    } else if done.bytes == 0 {
                        self.tx_drop(None, TxDrop::TooBig);
                        done.packets += 1;
                    }
                    break;
                }
                Err(reason) => {
                    self.tx_drop(None, reason);
                    done.packets += 1;
                    continue;
                }
            };
            // The key of a block is looked up with its first packet.
            let ready = match &block {
                Some(block) if !core::ptr::eq(block.entry, entry) || block.len == BLOCK => break,
                Some(_) => self.sealed_len(entry, inner.len()).ok_or(TxDrop::TooBig).map(|len| (None, len)),
                None => self.ready(now, entry, inner.len()).map(|(tx, len)| (Some(tx), len)),
            };
            let (tx, len) = match ready.and_then(|(tx, len)| fits(len, out.len()).map(|len| (tx, len))) {
                Ok(ready) => ready,
                Err(reason) => {
                    self.tx_drop(Some(entry), reason);
                    done.packets += 1;
                    continue;
                }
            };
            if len > out.len() - done.bytes {
                break;
            }
            if let Some(tx) = tx {
                block = Some(Block { entry, tx, planned: [Planned::default(); BLOCK], len: 0 });
            }
            if let Some(block) = &mut block {
                let source_port = self.source_port(&frame[inner.clone()]);
                let (start, end) = (done.bytes, done.bytes + len);
                block.planned[block.len] = Planned { input, inner_at: inner.start, protocol, source_port, start, end };
                block.len += 1;
            }
            done.bytes += len;
            done.packets += 1;
        }
        block
    }

    fn seal_block(
        &self,
        now: Instant,
        block: &Block<'_>,
        packets: &[BatchPacket<'_>],
        out: &mut [u8],
        limits: RunLimits,
        runs: &mut Vec<SealedRun>,
    ) {
        let Block { entry, tx, planned, len } = block;
        let (vni, peer) = (entry.network.vni, entry.peer);
        let counters = &entry.network.counters;
        let (sa, key) = tx;
        let (first, granted) = sa.counter.take(*len as u16);
        let (mut sent, mut bytes) = (0, 0);
        for (counter, packet) in (first..).zip(&planned[..usize::from(granted)]) {
            let BatchPacket::Whole(frame) = packets[packet.input];
            let inner = &frame[packet.inner_at..];
            let range = packet.start..packet.end;
            let header = TunnelHeader { protocol: packet.protocol, vni, spi: sa.spi.get(), counter };
            let text = Plain::At(inner);
            match self.seal_frame(entry, key, &header, packet.source_port, text, &mut out[range.clone()]) {
                Ok(()) => {
                    sent += 1;
                    bytes += inner.len() as u64;
                    let segment_size = range.len();
                    let source_port = packet.source_port;
                    append(runs, SealedRun { range, segment_size, count: 1, vni, peer, source_port }, limits);
                }
                Err(reason) => counters.tx_dropped(reason, 1),
            }
        }
        counters.sent(now, sent, bytes);
        if usize::from(granted) < *len {
            counters.tx_dropped(TxDrop::Exhausted, (*len - usize::from(granted)) as u64);
        }
    }

    /// Opens `datagrams`, which came from `src` in one receive: `stride` bytes each but for the last, which may be
    /// shorter. Raw underlays: whole frames, `src` is ignored. They are opened in order, each into the room that `sink`
    /// gives. Returns the bytes that are done with: less than given only when the sink had no more room.
    pub fn open_batch(
        &self,
        now: Instant,
        src: Option<IpAddr>,
        datagrams: &[u8],
        stride: usize,
        sink: &mut impl OpenSink,
    ) -> usize {
        let table = self.table.load();
        let mut tally = Tally { entry: None, packets: 0, bytes: 0 };
        let mut done = 0;
        for datagram in datagrams.chunks(stride.max(1)) {
            // What opens has at least the tunnel header and the tag in addition.
            let longest = self.link_header_len() + datagram.len().saturating_sub(SEAL_OVERHEAD);
            let Some(room) = sink.room(longest) else { break };
            match self.admit(&table, now, src, datagram) {
                Ok(inbound) => match self.open_into(now, &inbound, datagram, room) {
                    Ok(delivered) => {
                        tally.add(now, inbound.entry, inbound.text_len());
                        if let Some(len) = delivered {
                            sink.deliver(inbound.entry.network.vni, len);
                        }
                    }
                    Err(reason) => {
                        self.rx_drop((Some(inbound.entry), reason));
                    }
                },
                Err(refusal) => {
                    self.rx_drop(refusal);
                }
            }
            done += datagram.len();
        }
        tally.flush(now);
        done
    }
}

fn fits(len: usize, room: usize) -> Result<usize, TxDrop> {
    if len <= room { Ok(len) } else { Err(TxDrop::TooBig) }
}

/// Adds a datagram to the last run, or starts another.
fn append(runs: &mut Vec<SealedRun>, datagram: SealedRun, limits: RunLimits) {
    match runs.last_mut() {
        Some(run) if run.takes(&datagram, limits) => {
            run.range.end = datagram.range.end;
            run.count += 1;
        }
        _ => runs.push(datagram),
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
