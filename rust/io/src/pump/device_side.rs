//! The inner side of a worker: one queue of a device, from which it reads packets to be sealed and to which it hands what was
//! opened.

use std::os::fd::BorrowedFd;

use icx_proto::engine::{BatchPacket, Engine, SealSink, Stop};
use icx_proto::offload::{CoalesceOptions, Coalescer, VnetHeader, outgoing_with};
use icx_proto::wire::flow_hash::flow_hash;
use icx_proto::wire::mss::Syn;
use icx_proto::{Instant, Vni};

use super::{PumpError, WorkerCounters};
use crate::counters::count;
use crate::ends::MAX_PACKET_BYTES;
use crate::icmp::TooBig;
use crate::packet_device::PacketDevice;

/// What the device hands over in one read.
const MAX_READ_BYTES: usize = VnetHeader::LEN + MAX_PACKET_BYTES;

/// Packets that are read from the device before they are sealed.
pub(crate) const READ_PACKETS: usize = 64;

/// Bytes for those: one packet of the largest size, or many small ones. More would not stay in the processor's cache
/// until they are sealed.
const READ_BYTES: usize = 2 * MAX_READ_BYTES;

/// What was opened, until the device has it.
const DELIVER_BYTES: usize = 2 * 65_536;

/// One worker's queue of the device, with what is read and what waits to be written.
pub(crate) struct DeviceSide<'a> {
    port: Port<'a>,
    read: ReadBatch,
    /// Emptied after each batch; kept for its memory.
    packets: Vec<BatchPacket<'static>>,
    /// Takes what is opened, until [`DeviceSide::deliver`].
    pub(crate) opened: Coalescer,
    too_big: TooBig,
    /// Numbers of the packets of the batch that were too big, and what would not have been, where that is bounded.
    oversized: Vec<(usize, Option<u32>)>,
}

impl<'a> DeviceSide<'a> {
    pub(crate) fn new(
        (device, number): (&'a dyn PacketDevice, usize),
        engine: &'a Engine,
        clamp_mss: bool,
        counters: &'a WorkerCounters,
        now: Instant,
    ) -> Self {
        let format = device.format();
        DeviceSide {
            port: Port { device, number, engine, clamp_mss, counters },
            read: ReadBatch::new(if format.vnet { VnetHeader::LEN } else { 0 }),
            packets: Vec::with_capacity(READ_PACKETS),
            opened: Coalescer::new(CoalesceOptions {
                tcp: format.merged_tcp,
                udp: format.merged_udp,
                vnet: format.vnet,
                bytes: DELIVER_BYTES,
            }),
            too_big: TooBig::new(now),
            oversized: Vec::with_capacity(READ_PACKETS),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'a> {
        self.port.device.queue_fd(self.port.number)
    }

    /// Reads until the batch is full or the device has nothing more; false when it had nothing at all. The batch is to be sealed also
    /// after a failure: it has what was read before.
    pub(crate) fn read(&mut self) -> Result<bool, PumpError> {
        self.read.fill(&self.port)
    }

    /// Seals what was read into `sink`, which `flush` empties whenever it is full, and in the end. Senders of packets that are too big
    /// are told.
    pub(crate) fn seal<S: SealSink>(
        &mut self,
        now: Instant,
        sink: &mut S,
        mut flush: impl FnMut(&mut S),
    ) -> Result<(), PumpError> {
        if self.read.lengths.is_empty() {
            return Ok(());
        }
        let mut packets = recycle(std::mem::take(&mut self.packets));
        self.read.packets(&mut packets, &|packet| self.port.clamp_outbound(packet));
        let segments = packets.iter().map(|packet| packet.packets()).sum();
        count(&self.port.counters.device_read_packets, segments);
        let mut delivered = Ok(());
        let mut done = 0;
        while done < packets.len() {
            let batch = self.port.engine.seal_batch(now, &mut packets[done..], sink);
            done += batch.packets;
            match batch.stopped {
                Some(Stop::Reply(reply)) => delivered = delivered.and(self.port.reply(reply.as_bytes())),
                Some(Stop::TooBig { mtu }) => self.oversized.push((done - 1, mtu)),
                Some(_) => {}
                None if done < packets.len() => flush(sink),
                None => {}
            }
        }
        self.packets = recycle(packets);
        flush(sink);
        for (number, mtu) in self.oversized.drain(..) {
            let mtu = mtu.unwrap_or(self.port.device.mtu());
            let packet = self.read.packet(number);
            let mut reply = [0; TooBig::MAX_BYTES];
            if let Some(length) = self.too_big.reply(now, packet, mtu, &mut reply) {
                delivered = delivered.and(self.port.reply(&reply[..length]));
            }
        }
        delivered
    }

    /// Hands the device what was opened.
    pub(crate) fn deliver(&mut self) -> Result<(), PumpError> {
        self.port.deliver(&mut self.opened)
    }

    /// Hands the device what counts as `packets`.
    #[cfg(test)]
    pub(crate) fn write(&self, bytes: &[u8], packets: u64) -> Result<(), PumpError> {
        self.port.write(self.port.number, bytes, packets)
    }
}

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
            match port.device.next_piece(port.number, &mut self.buffer[used..]) {
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

/// The queue itself.
struct Port<'a> {
    device: &'a dyn PacketDevice,
    number: usize,
    engine: &'a Engine,
    clamp_mss: bool,
    counters: &'a WorkerCounters,
}

impl Port<'_> {
    /// Lowers the segment size that a packet from the device announces, where that is wanted.
    #[inline]
    fn clamp_outbound(&self, packet: &mut [u8]) {
        if self.clamp_mss
            && let Some(syn) = Syn::parse(packet)
        {
            let mtu = self.engine.inner_mtu_for(packet);
            syn.clamp(packet, self.device.mtu().min(mtu.unwrap_or(u32::MAX)));
        }
    }

    /// The same for a packet to the device.
    fn clamp_inbound(&self, vni: Vni, packet: &mut [u8]) {
        if let Some(syn) = Syn::parse(packet) {
            let mtu = self.engine.network_inner_mtu(vni);
            syn.clamp(packet, self.device.mtu().min(mtu.unwrap_or(u32::MAX)));
        }
    }

    /// Hands the device what was opened.
    fn deliver(&self, opened: &mut Coalescer) -> Result<(), PumpError> {
        if self.clamp_mss {
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
        match self.device.queues() {
            1 => 0,
            // The upper bits, which are the better mixed ones.
            queues => (usize::from(flow_hash(0, packet)) * queues) >> u16::BITS,
        }
    }

    /// Hands the device a packet of this node's own.
    fn reply(&self, packet: &[u8]) -> Result<(), PumpError> {
        self.written(self.device.deliver_packet(self.number, packet), 1)
    }

    /// Hands the device what counts as `packets`. What it does not take is counted.
    fn write(&self, queue: usize, bytes: &[u8], packets: u64) -> Result<(), PumpError> {
        self.written(self.device.deliver_piece(queue, bytes), packets)
    }

    fn written(&self, taken: Result<bool, PumpError>, packets: u64) -> Result<(), PumpError> {
        let counters = self.counters;
        count(&counters.device_writes, 1);
        let is_taken = matches!(taken, Ok(true));
        count(if is_taken { &counters.device_write_packets } else { &counters.device_write_errors }, packets);
        taken.map(drop)
    }
}
