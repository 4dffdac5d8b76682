//! Inner sides that no pump has taken yet, read and written in batches from outside.

use std::sync::{Arc, Mutex};

use icx_io::PacketDevice;
use icx_io::ends::{self, MAX_PACKET_BYTES};

use crate::code::Code;
use crate::engine::{self, IcxPacket};
use crate::error::{Failure, Outcome};
use crate::events::{self, Watch};
use crate::guard::Call;
use crate::handle::{self, Object, lock};
use crate::io::{TunHandle, pump_failure};
use crate::netstack::StackHandle;

/// The verdict of a packet that the operating system did not take, or of a datagram that it cut.
const REFUSED: i32 = -1;

pub(crate) fn verdict(is_good: bool) -> i32 {
    if is_good { 0 } else { REFUSED }
}

pub(crate) fn require_room(output: &[u8]) -> Outcome<()> {
    if output.len() >= MAX_PACKET_BYTES {
        return Ok(());
    }
    Err(Failure::new(Code::Buffer, format!("The output has {} bytes: give at least {MAX_PACKET_BYTES}", output.len())))
}

pub(crate) fn taken() -> Failure {
    Failure::new(Code::State, "Cannot move packets: the device or UDP underlay belongs to a pump, or is closed")
}

/// A device until somebody takes it over.
pub(crate) struct DeviceSlot<D> {
    device: Mutex<Option<D>>,
    watch: Watch,
}

impl<D: PacketDevice + 'static> DeviceSlot<D> {
    pub(crate) fn new(device: D) -> Self {
        DeviceSlot { device: Mutex::new(Some(device)), watch: Watch::default() }
    }

    /// The device, for somebody who takes it over.
    #[cfg(feature = "afxdp")]
    pub(crate) fn take(&self) -> Outcome<D> {
        let device = lock(&self.device).take().ok_or_else(taken)?;
        self.watch.end();
        Ok(device)
    }

    /// The device, and what `other` gives: both or neither.
    fn take_with<T>(&self, other: impl FnOnce() -> Option<T>) -> Option<(Box<dyn PacketDevice>, T)> {
        let mut device = lock(&self.device);
        let own = device.take()?;
        match other() {
            Some(other) => {
                self.watch.end();
                Some((Box::new(own), other))
            }
            None => {
                *device = Some(own);
                None
            }
        }
    }

    /// Closes the device at once, whoever still waits for it.
    pub(crate) fn close(&self) {
        drop(lock(&self.device).take());
        self.watch.end();
    }

    fn with<T>(&self, body: impl FnOnce(&dyn PacketDevice, &Watch) -> Outcome<T>) -> Outcome<T> {
        let device = lock(&self.device);
        body(device.as_ref().ok_or_else(taken)?, &self.watch)
    }
}

/// Whoever has a device for a pump.
pub(crate) enum Device {
    Tun(Arc<TunHandle>),
    Stack(Arc<StackHandle>),
}

impl Device {
    pub(crate) fn of(call: &Call, id: u32) -> Outcome<Device> {
        call.pick(id, "TUN device' or 'network stack", |object| match object {
            Object::Tun(tun) => Some(Device::Tun(Arc::clone(tun))),
            Object::Stack(stack) => Some(Device::Stack(Arc::clone(stack))),
            _ => None,
        })
    }

    /// The device behind the handle `id`, and what `other` gives: both or neither. The handle of a TUN device is gone then; that of a stack
    /// stays for those who use the stack.
    pub(crate) fn take_with<T>(
        &self,
        id: u32,
        other: impl FnOnce() -> Option<T>,
    ) -> Option<(Box<dyn PacketDevice>, T)> {
        match self {
            Device::Tun(tun) => {
                let both = tun.device.take_with(other)?;
                handle::disown(id);
                Some(both)
            }
            Device::Stack(stack) => stack.device.take_with(other),
        }
    }

    fn with<T>(&self, body: impl FnOnce(&dyn PacketDevice, &Watch) -> Outcome<T>) -> Outcome<T> {
        match self {
            Device::Tun(tun) => tun.device.with(body),
            Device::Stack(stack) => stack.device.with(body),
        }
    }
}

/// Reads packets to the start of `output`. None: event 2 comes once there are some.
pub(crate) fn read(call: &Call, device: u32, packets: &mut [IcxPacket], output: &mut [u8]) -> Outcome<i32> {
    let handle = Device::of(call, device)?;
    require_room(output)?;
    handle.with(|end, watch| {
        let readiness = watch.readiness()?;
        let capacity = packets.len();
        let mut slots = packets.iter_mut();
        let mut placed = |range| {
            if let Some(packet) = slots.next() {
                *packet = engine::placed_at(&range);
            }
        };
        let count = ends::read_batch(end, output, capacity, (&readiness, device), &mut placed)
            .map_err(|error| pump_failure("read packets", &error))?;
        if count == 0
            && let Some(due) = end.due()
        {
            events::remind(device, due);
        }
        Ok(engine::processed(count))
    })
}

/// Writes packets, all of them unless the device is lost. What it does not take gets the verdict [`REFUSED`].
pub(crate) fn write(call: &Call, device: u32, input: &[u8], packets: &mut [IcxPacket]) -> Outcome<i32> {
    let handle = Device::of(call, device)?;
    engine::check_ranges(input, packets)?;
    handle.with(|end, _| {
        let mut done = 0;
        for packet in packets {
            let Some(frame) = engine::frame(input, packet) else { break };
            match ends::write_packet(end, frame) {
                Ok(written) => packet.verdict = verdict(written),
                // What was written is told of; the failure comes again.
                Err(_) if done > 0 => break,
                Err(error) => return Err(pump_failure("write packets", &error)),
            }
            done += 1;
        }
        Ok(engine::processed(done))
    })
}
