//! The stack as a pump sees it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use icx_io::{DeviceError, PacketDevice, PieceFormat, PumpError, Wakeup, check_device, clock};
use icx_proto::Instant;
use icx_proto::offload::VnetHeader;

use crate::stack::{Shared, Stack};

/// Where a stack's packets go in and out. The stack closes with it.
#[derive(Debug)]
pub struct StackDevice {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queues: usize,
    /// What the queues wait for that send nothing.
    pub(crate) never: Wakeup,
}

/// The queue that sends: a stack has one line of those whose turn it is.
const SENDING: usize = 0;

impl StackDevice {
    /// The stack.
    pub fn stack(&self) -> Stack {
        Stack(Arc::clone(&self.shared))
    }

    fn next(&self, queue: usize, buffer: &mut [u8]) -> Option<usize> {
        if queue != SENDING {
            return None;
        }
        let mut core = self.shared.lock();
        self.shared.look(&mut core);
        core.next(clock::now(), buffer)
    }
}

impl Drop for StackDevice {
    fn drop(&mut self) {
        self.shared.lock().close();
    }
}

impl PacketDevice for StackDevice {
    fn name(&self) -> &str {
        "netstack"
    }

    fn queues(&self) -> usize {
        self.queues
    }

    fn mtu(&self) -> u32 {
        self.shared.lock().mtu()
    }

    fn set_mtu(&self, mtu: u32) -> Result<(), DeviceError> {
        let mut core = self.shared.lock();
        check_device(core.addresses(), mtu)?;
        core.set_mtu(mtu, clock::now());
        Ok(())
    }

    fn format(&self) -> PieceFormat {
        PieceFormat { vnet: true, merged_tcp: true, merged_udp: false }
    }

    fn start_offload(&self) -> io::Result<()> {
        self.shared.lock().start_offload(clock::now());
        Ok(())
    }

    fn queue_fd(&self, queue: usize) -> BorrowedFd<'_> {
        if queue == SENDING { self.shared.wakeup.as_fd() } else { self.never.as_fd() }
    }

    fn due(&self) -> Option<Instant> {
        self.shared.lock().due()
    }

    fn next_piece(&self, queue: usize, buffer: &mut [u8]) -> Result<Option<usize>, PumpError> {
        Ok(self.next(queue, buffer))
    }

    fn next_packet(&self, queue: usize, buffer: &mut [u8]) -> Result<Option<usize>, PumpError> {
        Ok(self.next(queue, buffer))
    }

    fn deliver_piece(&self, _: usize, bytes: &[u8]) -> Result<bool, PumpError> {
        let Some((header, packet)) = bytes.split_first_chunk() else { return Ok(false) };
        // Whoever merged has found the checksums right, and left the sum of the pseudo-header.
        let verified = VnetHeader::parse(header).flags & VnetHeader::NEEDS_CSUM != 0;
        let mut core = self.shared.lock();
        core.take(clock::now(), packet, verified);
        let taken = !core.is_closed();
        if self.queues > 1 {
            // Whoever sends may be another thread, which sleeps.
            self.shared.wake(core);
        }
        Ok(taken)
    }

    fn deliver_packet(&self, _: usize, packet: &[u8]) -> Result<bool, PumpError> {
        let mut core = self.shared.lock();
        core.take(clock::now(), packet, false);
        let taken = !core.is_closed();
        // A reader that waits for readiness has more to read now.
        self.shared.wake(core);
        Ok(taken)
    }
}
