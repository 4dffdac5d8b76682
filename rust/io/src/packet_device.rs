//! The inner side of a pump, whatever it is: a TUN device of the kernel, or a network stack in this process.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

use icx_proto::Instant;

use crate::device::DeviceError;
use crate::pump::PumpError;

/// What a device hands over and takes in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceFormat {
    /// A virtio header ([`VnetHeader`](icx_proto::offload::VnetHeader)) stands before each packet, in both directions. Without it nothing
    /// is cut or merged.
    pub vnet: bool,
    /// It takes TCP that was merged.
    pub merged_tcp: bool,
    /// It takes UDP that was merged.
    pub merged_udp: bool,
}

/// Gives packets that are to be sealed and takes what was opened. No call waits.
///
/// A *piece* is a packet with what [`PieceFormat`] says before it.
pub trait PacketDevice: Debug + Send + Sync {
    /// For messages.
    fn name(&self) -> &str;

    /// Queues, at least one. Each has a worker of its own.
    fn queues(&self) -> usize;

    /// The largest packet, in bytes.
    fn mtu(&self) -> u32;

    /// Changes that while packets move.
    fn set_mtu(&self, mtu: u32) -> Result<(), DeviceError>;

    fn format(&self) -> PieceFormat;

    /// A pump begins: from now on pieces may be uncut packets.
    fn start_offload(&self) -> io::Result<()>;

    /// Is readable when a queue has something to give, or an error to tell.
    fn queue_fd(&self, queue: usize) -> BorrowedFd<'_>;

    /// When the first queue has something to give even if nothing makes its descriptor readable.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Writes the next piece of a queue to `buffer`; `None` when there is none. Only a lost device is an error.
    fn next_piece(&self, queue: usize, buffer: &mut [u8]) -> Result<Option<usize>, PumpError>;

    /// As [`PacketDevice::next_piece`], for a bare packet, as long as no pump has begun.
    fn next_packet(&self, queue: usize, buffer: &mut [u8]) -> Result<Option<usize>, PumpError>;

    /// Hands over a piece; false when the device does not take it. Only a lost device is an error.
    fn deliver_piece(&self, queue: usize, bytes: &[u8]) -> Result<bool, PumpError>;

    /// The same for a bare packet.
    fn deliver_packet(&self, queue: usize, packet: &[u8]) -> Result<bool, PumpError>;
}
