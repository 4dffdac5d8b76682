//! AF_XDP sockets and the memory that they share with the kernel (Documentation/networking/af_xdp.rst).
//!
//! A frame is a piece of the UMEM. It belongs either to this process, as a [`Frame`], or to the kernel, on one of the four rings of
//! a socket; [`Umem`] knows which have been lent, so that nothing that the kernel writes to a ring makes a second [`Frame`] of one
//! piece.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::slice;

use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig, XDP_UMEM_MIN_CHUNK_SIZE,
};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue};

/// What the kernel leaves free before a received packet, for XDP programs (`XDP_PACKET_HEADROOM`).
pub(crate) const XDP_HEADROOM: u32 = 256;

/// Descriptors that move between a ring and frames in one step.
const BATCH: usize = 64;

/// A piece of the UMEM that this process owns, and the packet in it.
#[derive(Debug)]
pub(crate) struct Frame(FrameDesc);

/// Memory for frames.
#[derive(Debug)]
pub(crate) struct Umem {
    umem: xsk_rs::Umem,
    frame_bytes: usize,
    /// Of each frame: the kernel has it.
    lent: Box<[bool]>,
}

impl Umem {
    /// Maps memory for `frames` frames of `frame_bytes` (2048 or 4096), and gives all of them. The kernel's rings for it have
    /// `ring` entries, a power of two.
    ///
    /// `setsockopt(2)` with XDP_UMEM_REG: without CAP_IPC_LOCK it counts against RLIMIT_MEMLOCK (ENOBUFS; `xdp_umem_account_pages` in
    /// net/xdp/xdp_umem.c). Needs CAP_NET_RAW (EPERM).
    pub(crate) fn new(frames: NonZeroU32, frame_bytes: u32, ring: u32) -> io::Result<(Self, Vec<Frame>)> {
        let config = UmemConfig::builder()
            .frame_size(FrameSize::new(frame_bytes.max(XDP_UMEM_MIN_CHUNK_SIZE)).map_err(io::Error::other)?)
            .fill_queue_size(QueueSize::new(ring).map_err(io::Error::other)?)
            .comp_queue_size(QueueSize::new(ring).map_err(io::Error::other)?)
            .build()
            .map_err(io::Error::other)?;
        let (umem, frame_descs) = xsk_rs::Umem::new(config, frames, false).map_err(os_error)?;
        let lent = vec![false; frame_descs.len()].into();
        let frame_bytes = frame_bytes as usize;
        Ok((Umem { umem, frame_bytes, lent }, frame_descs.into_iter().map(Frame).collect()))
    }

    /// The packet in a frame.
    pub(crate) fn packet<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        // SAFETY: `Frame`s are made of descriptors of this UMEM only (`take` checks those from rings), address and length
        // within one piece, of which nobody else has a `Frame`, so that nobody writes to it.
        let data = unsafe { self.umem.data(&frame.0) };
        data.contents()
    }

    /// All bytes from the packet's start to the frame's end. The packet takes them all, until [`Umem::set_len`].
    pub(crate) fn room<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        // SAFETY: as for `packet`; the `Frame` is borrowed mutably for as long as the bytes are.
        let mut data = unsafe { self.umem.data_mut(&mut frame.0) };
        data.cursor().set_pos(usize::MAX);
        let bytes = data.contents_mut();
        let (start, len) = (bytes.as_mut_ptr(), bytes.len());
        // SAFETY: the very slice that was just borrowed, for as long as `frame` is.
        unsafe { slice::from_raw_parts_mut(start, len) }
    }

    /// The bytes that [`Umem::room`] would have.
    pub(crate) fn room_len(&self, frame: &Frame) -> usize {
        self.frame_bytes - frame.0.addr() % self.frame_bytes
    }

    /// Makes the packet the first `len` bytes from its start, of those that there are.
    pub(crate) fn set_len(&self, frame: &mut Frame, len: usize) {
        // SAFETY: as for `room`; nothing is read or written.
        let mut data = unsafe { self.umem.data_mut(&mut frame.0) };
        data.cursor().set_pos(len);
    }

    /// How many frames the kernel has.
    #[cfg(test)]
    pub(crate) fn lent(&self) -> usize {
        self.lent.iter().filter(|lent| **lent).count()
    }

    fn lend(&mut self, frame: &Frame) {
        self.lent[frame.0.addr() / self.frame_bytes] = true;
    }

    /// Makes a frame of a descriptor that came from a ring; `None` for one that the kernel cannot have meant.
    fn take(&mut self, descriptor: FrameDesc) -> Option<Frame> {
        let (index, offset) = (descriptor.addr() / self.frame_bytes, descriptor.addr() % self.frame_bytes);
        let lent = self.lent.get_mut(index)?;
        let is_good = *lent && offset + descriptor.lengths().data() <= self.frame_bytes;
        is_good.then(|| {
            *lent = false;
            Frame(descriptor)
        })
    }
}

/// What a socket is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct XskConfig<'a> {
    pub(crate) interface: &'a str,
    pub(crate) queue: u32,
    /// Entries of each ring, a power of two.
    pub(crate) ring: u32,
    /// `None`: where the driver can.
    pub(crate) zero_copy: Option<bool>,
}

/// What became of a call that asks the kernel to transmit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kick {
    /// What was on the ring is under way.
    Done,
    /// EAGAIN: there is more on the ring than it takes in one call, or the device's queue is full.
    Again,
    /// Another error (EBUSY, ENOBUFS, ENETDOWN, ENXIO): what is on the ring stays there, or the kernel dropped a frame.
    Refused,
}

/// A socket bound to one queue of an interface, with its rings.
#[derive(Debug)]
pub(crate) struct Xsk {
    tx: TxQueue,
    rx: RxQueue,
    fill: FillQueue,
    completion: CompQueue,
    descriptors: [FrameDesc; BATCH],
    /// Frames on the fill ring or received and not read.
    filled: u32,
    /// Frames on the transmit ring or being transmitted.
    transmitting: u32,
    /// Descriptors of the kernel that made no sense.
    invalid: u64,
    ring: u32,
}

impl Xsk {
    /// Binds a socket. The first one of a UMEM decides about zero-copy for all.
    ///
    /// `bind(2)` of AF_XDP; needs CAP_NET_RAW. Errors: EBUSY (the queue has a socket), EOPNOTSUPP (no zero-copy), ENODEV, EINVAL (no
    /// such queue), ENETDOWN.
    pub(crate) fn bind(umem: &Umem, config: XskConfig<'_>) -> io::Result<Xsk> {
        let mode = match config.zero_copy {
            None => BindFlags::empty(),
            Some(true) => BindFlags::XDP_ZEROCOPY,
            Some(false) => BindFlags::XDP_COPY,
        };
        let ring = QueueSize::new(config.ring).map_err(io::Error::other)?;
        let options = SocketConfig::builder()
            .rx_queue_size(ring)
            .tx_queue_size(ring)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_USE_NEED_WAKEUP | mode)
            .build();
        let interface: Interface = config.interface.parse().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: the flag that it asks for is set.
        let bound = unsafe { Socket::new(options, &umem.umem, &interface, config.queue) };
        let (tx, rx, rings) = bound.map_err(os_error)?;
        // None where another socket of the UMEM is bound to the queue.
        let (fill, completion) = rings.ok_or_else(|| io::Error::from_raw_os_error(libc::EBUSY))?;
        let descriptors = [FrameDesc::default(); BATCH];
        let ring = config.ring;
        Ok(Xsk { tx, rx, fill, completion, descriptors, filled: 0, transmitting: 0, invalid: 0, ring })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as the queues that hold the socket.
        unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) }
    }

    /// Whether the interface's driver reads and writes the UMEM itself.
    pub(crate) fn is_zero_copy(&self) -> io::Result<bool> {
        Ok(self.option::<u32>(libc::XDP_OPTIONS)? & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// What the kernel dropped at this socket.
    pub(crate) fn drops(&self) -> io::Result<XskDrops> {
        let statistics = self.rx.fd().xdp_statistics()?;
        Ok(XskDrops {
            // It has those in it that found no frame to receive into (`xsk_rcv` in net/xdp/xsk.c).
            oversize: statistics.rx_dropped().saturating_sub(statistics.rx_fill_ring_empty_descs()),
            ring_full: statistics.rx_ring_full(),
            fill_empty: statistics.rx_fill_ring_empty_descs(),
            invalid: statistics.rx_invalid_descs() + statistics.tx_invalid_descs() + self.invalid,
        })
    }

    fn option<T: Default>(&self, name: libc::c_int) -> io::Result<T> {
        let mut value = T::default();
        let mut len = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is writable for `len` bytes, and every content of what is asked for (integers) is valid.
        let result = unsafe {
            libc::getsockopt(
                self.fd().as_raw_fd(),
                libc::SOL_XDP,
                name,
                std::ptr::from_mut(&mut value).cast(),
                &raw mut len,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
    }

    /// Lends the kernel frames of `free` to receive into, as long as it takes more. Returns how many.
    pub(crate) fn refill(&mut self, umem: &mut Umem, free: &mut Vec<Frame>) -> usize {
        let before = self.filled;
        while self.filled < self.ring && !free.is_empty() {
            let count = BATCH.min((self.ring - self.filled) as usize).min(free.len());
            let from = free.len() - count;
            for (descriptor, frame) in self.descriptors.iter_mut().zip(&free[from..]) {
                *descriptor = frame.0;
            }
            // SAFETY: frames of this UMEM, which are given up below.
            let taken = unsafe { self.fill.produce(&self.descriptors[..count]) };
            // The ring takes the first ones, and all of them or none: it has as many entries as may be lent.
            for frame in free.drain(from..from + taken) {
                umem.lend(&frame);
            }
            self.filled += taken as u32;
            if taken < count {
                break;
            }
        }
        (self.filled - before) as usize
    }

    /// Takes what has been received, at most 64 frames, to the end of `received`. Returns how many.
    pub(crate) fn receive(&mut self, umem: &mut Umem, received: &mut Vec<Frame>) -> usize {
        // SAFETY: what the kernel puts on this ring it took from the fill ring; `take` checks that.
        let count = unsafe { self.rx.consume(&mut self.descriptors) };
        self.filled -= (count as u32).min(self.filled);
        let before = received.len();
        received.extend(self.descriptors[..count].iter().filter_map(|descriptor| umem.take(*descriptor)));
        self.invalid += (count - (received.len() - before)) as u64;
        received.len() - before
    }

    /// Puts the first frames of `waiting` on the transmit ring, as many as it takes. Returns how many.
    pub(crate) fn submit(&mut self, umem: &mut Umem, waiting: &mut Vec<Frame>) -> usize {
        let mut submitted = 0;
        while submitted < waiting.len() {
            // The ring takes all of what it is given, or nothing.
            let count = BATCH.min(waiting.len() - submitted).min(self.tx.nb_free(BATCH as u32) as usize);
            if count == 0 {
                break;
            }
            for (descriptor, frame) in self.descriptors.iter_mut().zip(&waiting[submitted..]) {
                *descriptor = frame.0;
            }
            // SAFETY: frames of this UMEM, which are given up below.
            let taken = unsafe { self.tx.produce(&self.descriptors[..count]) };
            submitted += taken;
            if taken < count {
                break;
            }
        }
        for frame in waiting.drain(..submitted) {
            umem.lend(&frame);
        }
        self.transmitting += submitted as u32;
        submitted
    }

    /// Takes back the frames that have been transmitted, or dropped by the kernel.
    pub(crate) fn reclaim(&mut self, umem: &mut Umem, free: &mut Vec<Frame>) {
        while self.transmitting > 0 {
            // SAFETY: what the kernel puts on this ring it took from the transmit ring; `take` checks that.
            let count = unsafe { self.completion.consume(&mut self.descriptors) };
            if count == 0 {
                return;
            }
            self.transmitting -= (count as u32).min(self.transmitting);
            let before = free.len();
            free.extend(self.descriptors[..count].iter().filter_map(|descriptor| umem.take(*descriptor)));
            self.invalid += (count - (free.len() - before)) as u64;
        }
    }

    /// How many frames the kernel has to transmit, those that it is at included.
    pub(crate) fn transmitting(&self) -> usize {
        self.transmitting as usize
    }

    /// Whether there are frames on the transmit ring that the kernel has not looked at.
    pub(crate) fn has_untransmitted(&mut self) -> bool {
        self.transmitting > 0 && self.tx.nb_free_exact() < self.ring
    }

    /// Asks the kernel to transmit, where it waits to be asked (`xsk_sendmsg` in net/xdp/xsk.c).
    pub(crate) fn kick(&self) -> Kick {
        if !self.tx.needs_wakeup() {
            return Kick::Done;
        }
        // SAFETY: no memory is passed.
        let sent = unsafe {
            libc::sendto(self.fd().as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
        };
        if sent >= 0 {
            return Kick::Done;
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Kick::Again,
            _ => Kick::Refused,
        }
    }

    /// Asks the driver to look at the fill ring and at what came, where it waits to be asked or `always`, as busy polling needs
    /// (`xsk_recvmsg`).
    pub(crate) fn poll_driver(&self, always: bool) {
        if !always && !self.fill.needs_wakeup() {
            return;
        }
        // A failure means that there is nothing, or a link that is down.
        // SAFETY: no memory is passed.
        let _ = unsafe {
            libc::recvfrom(
                self.fd().as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
    }
}

/// Why frames did not reach a socket (`struct xdp_statistics`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct XskDrops {
    /// Longer than a frame holds, or there was no memory.
    pub(crate) oversize: u64,
    pub(crate) ring_full: u64,
    pub(crate) fill_empty: u64,
    /// Descriptors that the kernel, or this process, could make no sense of.
    pub(crate) invalid: u64,
}

/// The error number inside an error of xsk-rs.
fn os_error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    let errno = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    errno.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
}
