//! What smoltcp takes for a device: one packet to be looked at, and room for what it sends.

use std::collections::VecDeque;
use std::ops::Range;

use smoltcp::phy::{Device, DeviceCapabilities, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

/// A call's view of the device: at most one packet in, and out either one to `slot` or any number to `pending`.
pub(super) struct Port<'a> {
    pub(super) capabilities: &'a DeviceCapabilities,
    pub(super) arrived: Option<&'a [u8]>,
    pub(super) slot: Option<Slot<'a>>,
    pub(super) pending: &'a mut Pending,
}

/// Room for one packet.
pub(super) struct Slot<'a> {
    pub(super) buffer: &'a mut [u8],
    pub(super) sent: Option<Sent>,
}

/// A packet that was written to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) len: usize,
    /// Payload bytes of the segments that it is to be cut into.
    pub(super) cut: Option<u16>,
}

/// Packets that wait to be sent, in order: answers to what arrived, and datagrams. It has room for so many, and drops the rest.
#[derive(Debug)]
pub(super) struct Pending {
    buffer: Box<[u8]>,
    packets: VecDeque<Range<usize>>,
    /// Where the next one goes.
    end: usize,
    pub(super) dropped: u64,
}

impl Pending {
    const BYTES: usize = 256 << 10;
    const PACKETS: usize = 512;

    pub(super) fn new() -> Self {
        Pending {
            buffer: vec![0; Self::BYTES].into(),
            packets: VecDeque::with_capacity(Self::PACKETS),
            end: 0,
            dropped: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.packets.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Whether any packet fits.
    pub(super) fn has_room(&mut self) -> bool {
        self.packets.len() < Self::PACKETS && self.fits(usize::from(u16::MAX))
    }

    fn fits(&mut self, len: usize) -> bool {
        let start = self.packets.front().map_or(0, |first| first.start);
        // Only when there is as much to gain, so that each byte moves about once.
        if self.buffer.len() - self.end < len && start >= self.buffer.len() / 2 {
            self.buffer.copy_within(start..self.end, 0);
            self.end -= start;
            for packet in &mut self.packets {
                *packet = packet.start - start..packet.end - start;
            }
        }
        self.buffer.len() - self.end >= len
    }

    /// Copies the first packet to `out` and forgets it. `None`: there is none, or it is longer than `out`.
    pub(super) fn take(&mut self, out: &mut [u8]) -> Option<usize> {
        let packet = self.packets.pop_front()?;
        let len = packet.len();
        let taken = out.get_mut(..len).map(|out| out.copy_from_slice(&self.buffer[packet]));
        if self.packets.is_empty() {
            self.end = 0;
        }
        taken.map(|()| len)
    }

    fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.packets.len() == Self::PACKETS || !self.fits(len) {
            self.dropped += 1;
            return None;
        }
        let place = self.end..self.end + len;
        self.end = place.end;
        self.packets.push_back(place.clone());
        self.buffer.get_mut(place)
    }
}

impl Device for Port<'_> {
    type RxToken<'t>
        = Rx<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Tx<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
        let packet = self.arrived.take()?;
        Some((Rx(packet), Tx { room: Room::Pending(self.pending), cut: None }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        let room = match &mut self.slot {
            Some(slot) if slot.sent.is_none() => Room::Slot { buffer: &mut *slot.buffer, sent: &mut slot.sent },
            Some(_) => return None,
            None if self.pending.has_room() => Room::Pending(self.pending),
            None => return None,
        };
        Some(Tx { room, cut: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

pub(super) struct Rx<'t>(&'t [u8]);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Tx<'t> {
    room: Room<'t>,
    cut: Option<u16>,
}

enum Room<'t> {
    Pending(&'t mut Pending),
    Slot { buffer: &'t mut [u8], sent: &'t mut Option<Sent> },
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let room = match self.room {
            Room::Pending(pending) => pending.room(len),
            Room::Slot { buffer, sent } => {
                let room = buffer.get_mut(..len);
                *sent = room.is_some().then_some(Sent { len, cut: self.cut });
                room
            }
        };
        match room {
            Some(room) => f(room),
            // It has to be written somewhere before it can be dropped.
            None => f(&mut vec![0; len]),
        }
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.cut = meta.segmentation_offload_size.map(|size| size.get());
    }
}
