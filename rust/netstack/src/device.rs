//! The stack as a pump sees it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use icx_io::{DeviceError, PacketDevice, PieceFormat, PumpError, check_device, clock};
use icx_proto::Instant;
use icx_proto::offload::VnetHeader;

use crate::stack::{Shared, Stack};

/// Where a stack's packets go in and out. The stack closes with it.
#[derive(Debug)]
pub struct StackDevice(pub(crate) Arc<Shared>);

impl StackDevice {
    /// The stack.
    pub fn stack(&self) -> Stack {
        Stack(Arc::clone(&self.0))
    }

    fn next(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut core = self.0.lock();
        self.0.look(&mut core);
        core.next(clock::now(), buffer)
    }
}

impl Drop for StackDevice {
    fn drop(&mut self) {
        self.0.lock().close();
    }
}

impl PacketDevice for StackDevice {
    fn name(&self) -> &str {
        "netstack"
    }

    fn queues(&self) -> usize {
        1
    }

    fn mtu(&self) -> u32 {
        self.0.lock().mtu()
    }

    fn set_mtu(&self, mtu: u32) -> Result<(), DeviceError> {
        let mut core = self.0.lock();
        check_device(core.addresses(), mtu)?;
        core.set_mtu(mtu, clock::now());
        Ok(())
    }

    fn format(&self) -> PieceFormat {
        PieceFormat { vnet: true, merged_tcp: true, merged_udp: false }
    }

    fn start_offload(&self) -> io::Result<()> {
        self.0.lock().start_offload(clock::now());
        Ok(())
    }

    fn queue_fd(&self, _: usize) -> BorrowedFd<'_> {
        self.0.wakeup.as_fd()
    }

    fn due(&self) -> Option<Instant> {
        self.0.lock().due()
    }

    fn next_piece(&self, _: usize, buffer: &mut [u8]) -> Result<Option<usize>, PumpError> {
        Ok(self.next(buffer))
    }

    fn next_packet(&self, _: usize, buffer: &mut [u8]) -> Result<Option<usize>, PumpError> {
        Ok(self.next(buffer))
    }

    fn deliver_piece(&self, _: usize, bytes: &[u8]) -> Result<bool, PumpError> {
        let Some((header, packet)) = bytes.split_first_chunk() else { return Ok(false) };
        // Whoever merged has found the checksums right, and left the sum of the pseudo-header.
        let verified = VnetHeader::parse(header).flags & VnetHeader::NEEDS_CSUM != 0;
        let mut core = self.0.lock();
        core.take(clock::now(), packet, verified);
        Ok(!core.is_closed())
    }

    fn deliver_packet(&self, _: usize, packet: &[u8]) -> Result<bool, PumpError> {
        let mut core = self.0.lock();
        core.take(clock::now(), packet, false);
        let taken = !core.is_closed();
        // A reader that waits for readiness has more to read now.
        self.0.wake(core);
        Ok(taken)
    }
}
