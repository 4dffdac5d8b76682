//! Frames and rings as a worker uses them: none is lost, and none of its rings starves.
//!
//! A worker's frames are in its pool, on the rings of its sockets, or wait for a transmit ring. Each socket holds [`RING`] frames to
//! receive into at most, and takes no more than as many to transmit ([`Port::has_room`]), so that with [`frames_for`] frames the pool
//! never runs dry for the other side, whatever the kernel does with what it was given.

use std::num::NonZeroU32;
use std::os::fd::BorrowedFd;

use crate::sys::{Frame, Kick, Umem, XDP_HEADROOM, Xsk, XskDrops};
use icx_proto::wire::ethernet;

/// Entries of each ring, a power of two.
pub(super) const RING: u32 = 1024;

/// Frames that move in one step.
pub(super) const BATCH: usize = 64;

/// How many times the kernel is asked in a row to transmit. It takes 32 frames a time (`TX_BATCH_SIZE` in net/xdp/xsk.c).
const KICKS: u32 = 2 * RING / 32;

/// How many frames a worker with `sockets` sockets takes.
pub(super) fn frames_for(sockets: u32) -> NonZeroU32 {
    let frames = sockets * (2 * RING + 2 * BATCH as u32);
    NonZeroU32::new(frames).unwrap_or(NonZeroU32::MIN)
}

/// The sizes of frames that there are, in bytes: the kernel takes up to a page.
const FRAME_BYTES: [u32; 2] = [2048, 4096];

/// The smallest frames that hold IP packets of `mtu` bytes, or the largest that there are.
pub(super) fn frame_bytes_for(mtu: u32) -> u32 {
    FRAME_BYTES.into_iter().find(|bytes| max_mtu(*bytes) >= mtu).unwrap_or(FRAME_BYTES[1])
}

/// The largest IP packet of the underlay that a frame holds, in bytes.
pub(super) const fn max_mtu(frame_bytes: u32) -> u32 {
    frame_bytes - XDP_HEADROOM - ethernet::HEADER_LEN as u32
}

/// The frames of one worker that are on no ring.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) umem: Umem,
    pub(super) free: Vec<Frame>,
}

/// One socket, and what waits to be transmitted by it.
#[derive(Debug)]
pub(super) struct Port {
    socket: Xsk,
    pub(super) waiting: Vec<Frame>,
}

/// What came of [`Port::transmit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Transmitted {
    /// Frames that the transmit ring took.
    pub(super) frames: usize,
    /// Times that the kernel refused to transmit what is on the ring.
    pub(super) refused: u64,
}

impl Port {
    pub(super) fn new(socket: Xsk) -> Self {
        Port { socket, waiting: Vec::with_capacity(2 * RING as usize) }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    pub(super) fn drops(&self) -> Option<XskDrops> {
        self.socket.drops().ok()
    }

    /// Whether a batch of frames more may be put behind those that wait.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() + self.socket.transmitting() <= RING as usize
    }

    /// Whether there is something to transmit that nobody but this process sets going.
    pub(super) fn is_stuck(&mut self) -> bool {
        !self.waiting.is_empty() || self.socket.has_untransmitted()
    }

    /// Takes what has been received, one batch at most.
    pub(super) fn receive(&mut self, pool: &mut Pool, received: &mut Vec<Frame>) -> usize {
        self.socket.receive(&mut pool.umem, received)
    }

    /// Lends the kernel frames to receive into.
    pub(super) fn refill(&mut self, pool: &mut Pool, busy_poll: bool) {
        self.socket.refill(&mut pool.umem, &mut pool.free);
        self.socket.poll_driver(busy_poll);
    }

    /// Puts what waits on the ring and sets it going. What the kernel refuses stays there, for the next time.
    pub(super) fn transmit(&mut self, pool: &mut Pool) -> Transmitted {
        let mut transmitted = Transmitted::default();
        self.socket.reclaim(&mut pool.umem, &mut pool.free);
        for _ in 0..KICKS {
            transmitted.frames += self.socket.submit(&mut pool.umem, &mut self.waiting);
            if !self.socket.has_untransmitted() {
                break;
            }
            if self.socket.kick() == Kick::Refused {
                transmitted.refused += 1;
                break;
            }
            self.socket.reclaim(&mut pool.umem, &mut pool.free);
        }
        transmitted
    }

    /// Gives up what waits; returns how many frames that were.
    pub(super) fn abandon(&mut self, pool: &mut Pool) -> usize {
        let count = self.waiting.len();
        pool.free.append(&mut self.waiting);
        count
    }
}
