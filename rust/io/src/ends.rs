//! What the calls of a device and of sockets come to, for whoever moves packets between them: the pump's workers, or a caller outside
//! that takes and gives batches. Which failure ends that, and which costs a packet, is said here only.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use icx_proto::Instant;
use icx_proto::wire::traffic_class::TrafficClass;

use crate::device::DeviceError;
use crate::packet_device::{PacketDevice, PieceFormat};
use crate::pump::PumpError;
use crate::readiness::{Direction, Readiness};
use crate::sys::{self, ErrorSlot, Outgoing, ReceiveBatch, SendHeaders};
use crate::told::{Hear, Retry, WINDOW};
use crate::tun::Tun;
use crate::udp::{Choice, Udp, send_run};

/// The largest packet or datagram, by the length fields of IPv4, IPv6 (without jumbograms) and UDP.
pub const MAX_PACKET_BYTES: usize = 65_535;

/// Receive slots start at different cache sets, not all at the start of a page.
pub(crate) const RECEIVE_SLOT_BYTES: usize = 65_536 + 128;

/// Datagrams per system call, for callers outside.
const BATCH: usize = 64;

/// The queue to which callers outside write.
const FIRST: usize = 0;

impl PacketDevice for Tun {
    fn name(&self) -> &str {
        self.name()
    }

    fn queues(&self) -> usize {
        self.queues()
    }

    fn mtu(&self) -> u32 {
        self.mtu()
    }

    fn set_mtu(&self, mtu: u32) -> Result<(), DeviceError> {
        self.set_mtu(mtu)
    }

    fn format(&self) -> PieceFormat {
        let gro = self.offload().gro;
        PieceFormat { vnet: self.has_headers(), merged_tcp: gro, merged_udp: gro && self.merges_udp() }
    }

    fn start_offload(&self) -> io::Result<()> {
        self.start_offload()
    }

    fn queue_fd(&self, queue: usize) -> BorrowedFd<'_> {
        self.queue_fd(queue)
    }

    fn next_piece(&self, queue: usize, buffer: &mut [u8]) -> Result<Option<usize>, PumpError> {
        self.next(|| self.read(queue, buffer))
    }

    fn next_packet(&self, queue: usize, buffer: &mut [u8]) -> Result<Option<usize>, PumpError> {
        self.next(|| self.read_bare(queue, buffer))
    }

    // What is refused: the device is set down, there is no memory, the packet is no IP packet.
    fn deliver_piece(&self, queue: usize, bytes: &[u8]) -> Result<bool, PumpError> {
        self.deliver_by("write", || self.write(queue, bytes))
    }

    fn deliver_packet(&self, queue: usize, packet: &[u8]) -> Result<bool, PumpError> {
        self.deliver_by("write", || self.write_bare(queue, packet))
    }
}

impl Tun {
    fn next(&self, mut read: impl FnMut() -> io::Result<usize>) -> Result<Option<usize>, PumpError> {
        loop {
            match read() {
                Ok(0) => return Ok(None),
                Ok(length) => return Ok(Some(length)),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(device_failure(self.name(), "read", error)),
                },
            }
        }
    }

    fn deliver_by(&self, call: &'static str, mut write: impl FnMut() -> io::Result<()>) -> Result<bool, PumpError> {
        let error = loop {
            match write() {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        match error.raw_os_error() {
            Some(libc::EBADFD | libc::ENODEV | libc::ENXIO | libc::EBADF | libc::EFAULT) => {
                Err(device_failure(self.name(), call, error))
            }
            _ => Ok(false),
        }
    }
}

pub(crate) fn device_failure(name: &str, call: &'static str, source: io::Error) -> PumpError {
    let device = name.to_owned();
    match source.raw_os_error() {
        // What a descriptor answers whose device is gone (`tun_get` in drivers/net/tun.c), or is going.
        Some(libc::EBADFD | libc::ENODEV | libc::ENXIO) => PumpError::DeviceRemoved { device, call, source },
        _ => PumpError::Device { device, call, source },
    }
}

/// Reads up to `capacity` packets of a device to the start of `output`, one behind the other, without waiting, as long as there is room
/// for one of [`MAX_PACKET_BYTES`]. `packet` hears where each lies. Returns how many there were; when it is none, `readiness` tells
/// `token` once there are.
pub fn read_batch(
    device: &dyn PacketDevice,
    output: &mut [u8],
    capacity: usize,
    (readiness, token): (&Readiness, u32),
    packet: &mut dyn FnMut(Range<usize>),
) -> Result<usize, PumpError> {
    let (mut count, mut used) = (0, 0);
    for queue in 0..device.queues() {
        while count < capacity && output.len() - used >= MAX_PACKET_BYTES {
            let length = match device.next_packet(queue, &mut output[used..]) {
                Ok(Some(length)) => length,
                Err(error) if count == 0 => return Err(error),
                // Before a failure, what was read is handed out; the failure comes again.
                Ok(None) | Err(_) => break,
            };
            packet(used..used + length);
            used += length;
            count += 1;
        }
    }
    if count == 0 {
        for queue in 0..device.queues() {
            readiness
                .arm(Direction::Read, device.queue_fd(queue), token)
                .map_err(|source| PumpError::Wait { call: "epoll_ctl", source })?;
        }
    }
    Ok(count)
}

/// Hands a device a packet, as the pump does: false when it does not take it.
pub fn write_packet(device: &dyn PacketDevice, packet: &[u8]) -> Result<bool, PumpError> {
    device.deliver_packet(FIRST, packet)
}

/// What a receive came to.
pub(crate) enum Received {
    Messages(usize),
    /// None. `pause`: although the socket may be readable.
    Nothing {
        pause: bool,
    },
}

impl Udp {
    /// Receives up to `limit` messages of those that are there for worker number `worker`, without waiting. Only a socket that
    /// cannot be used any more is an error. `hear` hears what the socket is told of datagrams that were sent, where that is what it
    /// has in place of messages.
    pub(crate) fn receive(
        &self,
        worker: usize,
        (batch, limit): (&mut ReceiveBatch, usize),
        errors: &mut ErrorSlot,
        hear: &mut Hear<'_>,
    ) -> Result<Received, PumpError> {
        let mut retry = Retry::default();
        loop {
            let source = match sys::recvmmsg(self.base(worker), batch, limit) {
                Ok(received) => return Ok(Received::Messages(received)),
                Err(source) if retry.is_due(&source, self.base_errors(worker), errors, hear) => continue,
                Err(source) => source,
            };
            return match source.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(Received::Nothing { pause: false }),
                Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EINVAL) => {
                    Err(PumpError::Socket { address: self.local_addr(), call: "recvmmsg", source })
                }
                // A moment without memory.
                _ => Ok(Received::Nothing { pause: true }),
            };
        }
    }
}

/// A datagram to send.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub payload: &'a [u8],
    pub to: SocketAddr,
    /// The hashed port to send from; `None`: the base port.
    pub source_port: Option<u16>,
    /// Of the outer header.
    pub traffic_class: TrafficClass,
}

/// What became of a [`Datagram`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOutcome {
    pub sent: bool,
    /// It left, or would have, from the base port although a hashed one was asked for.
    pub fell_back: bool,
}

/// A datagram that has arrived.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedDatagram<'a> {
    pub payload: &'a [u8],
    /// `None` when the kernel gave no internet address.
    pub from: Option<SocketAddr>,
    /// Of the outer header.
    pub traffic_class: TrafficClass,
    /// It was longer than any that can be sent; its end is lost.
    pub truncated: bool,
}

/// What sending and receiving batches through a [`Udp`] takes in memory; it belongs to one socket set. Nothing is allocated after it
/// was made.
pub struct DatagramBatches {
    headers: SendHeaders,
    errors: ErrorSlot,
    /// When the sockets' errors are to be read next, also of those from which nothing is received.
    hear_at: Instant,
    choices: Vec<Choice>,
    received: ReceiveBatch,
    count: usize,
    /// The first of those received that has not been handed out.
    next: usize,
}

impl Default for DatagramBatches {
    fn default() -> Self {
        DatagramBatches {
            headers: SendHeaders::new(BATCH),
            errors: ErrorSlot::new(),
            hear_at: Instant::from_nanos(0),
            choices: Vec::with_capacity(BATCH),
            received: ReceiveBatch::new(BATCH, RECEIVE_SLOT_BYTES),
            count: 0,
            next: 0,
        }
    }
}

impl DatagramBatches {
    /// Hands out datagrams that have arrived, without waiting, until `take` answers false: that one comes first in the next call.
    /// Returns how many were taken; when none was there, `readiness` tells `token` once there is.
    pub fn receive(
        &mut self,
        udp: &Udp,
        readiness: &Readiness,
        token: u32,
        take: &mut dyn FnMut(ReceivedDatagram<'_>) -> bool,
    ) -> Result<usize, PumpError> {
        if self.next == self.count {
            self.next = 0;
            self.count = 0;
            for worker in 0..udp.sockets() {
                let batch = (&mut self.received, BATCH);
                if let Received::Messages(count @ 1..) = udp.receive(worker, batch, &mut self.errors, &mut |_| {})? {
                    self.count = count;
                    break;
                }
            }
        }
        if self.count == 0 {
            for worker in 0..udp.sockets() {
                // What is in the error queue would make it ready at once.
                let (socket, queue) = udp.base_errors(worker);
                queue.drain(socket, &mut self.errors, &mut |_| {});
                readiness
                    .arm(Direction::Read, socket, token)
                    .map_err(|source| PumpError::Wait { call: "epoll_ctl", source })?;
            }
            return Ok(0);
        }
        let first = self.next;
        // Each message is one datagram: the kernel merges them for pumps only.
        for message in self.received.messages().skip(first) {
            let sys::Received { payload, from, traffic_class, truncated, .. } = message;
            if !take(ReceivedDatagram { payload, from, traffic_class, truncated }) {
                break;
            }
            self.next += 1;
        }
        Ok(self.next - first)
    }

    /// Sends the first datagrams of `datagrams`, in order, without waiting; `outcome` hears of each. Returns how many that were: when the
    /// socket of the next one takes no more for the moment, `readiness` tells `token` once it does.
    pub fn send(
        &mut self,
        udp: &Udp,
        now: Instant,
        datagrams: &[Datagram<'_>],
        (readiness, token): (&Readiness, u32),
        outcome: &mut dyn FnMut(usize, SendOutcome),
    ) -> Result<usize, PumpError> {
        if self.hear_at <= now {
            self.hear_at = now.saturating_add(WINDOW);
            udp.hear(&mut self.errors, &mut |_| {});
        }
        let datagrams = &datagrams[..datagrams.len().min(BATCH)];
        self.choices.clear();
        self.choices.extend(datagrams.iter().map(|datagram| udp.choose(datagram.source_port, now)));
        let mut next = 0;
        for run in self.choices.chunk_by(|a, b| a.socket == b.socket) {
            let (first, last) = (next, next + run.len());
            let told = udp.errors(run[0].socket);
            let mut refused = [false; BATCH];
            next += send_run(
                told,
                (&mut self.headers, &mut self.errors),
                run.len(),
                |from| {
                    let rest = &datagrams[first + from..last];
                    rest.iter().map(|&Datagram { payload, to, traffic_class, .. }| {
                        let to = udp.to_socket_family(to);
                        Outgoing { to, payload, segment_size: None, traffic_class }
                    })
                },
                &mut |at, _error| refused[at] = true,
            );
            for at in first..next {
                let Choice { fell_back, .. } = run[at - first];
                outcome(at, SendOutcome { sent: !refused[at - first], fell_back });
            }
            if next < last {
                readiness
                    .arm(Direction::Write, told.0, token)
                    .map_err(|source| PumpError::Wait { call: "epoll_ctl", source })?;
                break;
            }
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;
    use std::time::Duration;

    use icx_proto::wire::traffic_class::TrafficClass;

    use super::{Datagram, DatagramBatches, SendOutcome};
    use crate::clock;
    use crate::pump::PumpError;
    use crate::readiness::{Direction, Readiness};
    use crate::sys;
    use crate::test_support::{NetNs, delete, set_up};
    use crate::tun::{Tun, TunConfig, TunOffload};
    use crate::udp::{Family, Udp, UdpConfig, UdpOffload};

    const LIVENESS: Duration = Duration::from_secs(20);
    const TOKEN: u32 = 5;

    fn told(readiness: &Readiness, timeout: Duration) -> Vec<(Direction, u32)> {
        let mut told = Vec::new();
        readiness.wait(timeout, &mut |direction, token| told.push((direction, token))).unwrap();
        told
    }

    #[test]
    fn a_socket_whose_buffer_is_full_tells_when_it_takes_more() {
        let (Some(near), Some(far)) = (NetNs::new(), NetNs::new()) else { return };
        near.connect(&far, ("192.0.2.1".parse().unwrap(), 24), ("192.0.2.2".parse().unwrap(), 24));
        near.run(|| {
            // What is for a neighbour that does not answer stays with its socket until that is found out.
            std::fs::write("/proc/sys/net/ipv4/neigh/under/retrans_time_ms", "100").unwrap();
            let udp = Udp::open(UdpConfig {
                local: None,
                port: 0,
                family: Family::Ipv4,
                source_port_hashing: false,
                sockets: NonZero::<u16>::MIN,
                offload: UdpOffload::default(),
            })
            .unwrap();
            sys::set_option(udp.base(0), libc::SOL_SOCKET, libc::SO_SNDBUF, 1).unwrap();
            let readiness = Readiness::new().unwrap();
            let mut batches = DatagramBatches::default();
            let payload = [0; 1000];
            let (to, traffic_class) = ("192.0.2.9:9".parse().unwrap(), TrafficClass::ZERO);
            let datagrams = [Datagram { payload: &payload, to, source_port: None, traffic_class }; 64];
            let mut send = || {
                let mut outcomes = Vec::new();
                let done = batches
                    .send(&udp, clock::now(), &datagrams, (&readiness, TOKEN), &mut |at, outcome| {
                        outcomes.push((at, outcome));
                    })
                    .unwrap();
                let good = SendOutcome { sent: true, fell_back: false };
                assert_eq!(outcomes, (0..done).map(|at| (at, good)).collect::<Vec<_>>());
                done
            };
            let first = send();
            assert!((1..64).contains(&first), "{first}");
            assert_eq!(send(), 0, "still full");
            assert_eq!(told(&readiness, LIVENESS), [(Direction::Write, TOKEN)]);
            assert!(send() > 0);
        });
    }

    #[test]
    fn datagrams_of_a_batch_have_each_their_class() {
        let loopback = [("127.0.0.1", Family::Ipv4), ("::1", Family::Ipv6)];
        for (address, family) in loopback {
            let open = || {
                let (source_port_hashing, sockets) = (false, NonZero::<u16>::MIN);
                let (local, offload) = (Some(address.parse().unwrap()), UdpOffload::default());
                Udp::open(UdpConfig { local, port: 0, family, source_port_hashing, sockets, offload }).unwrap()
            };
            let (near, far) = (open(), open());
            let readiness = Readiness::new().unwrap();
            let (mut sending, mut receiving) = (DatagramBatches::default(), DatagramBatches::default());
            let classes = [0x00, 0x03, 0xb8, 0xb8, 0x00, 0x02];
            let datagrams = classes.map(|class| Datagram {
                payload: b"one",
                to: far.local_addr(),
                source_port: None,
                traffic_class: TrafficClass::new(class),
            });
            let now = clock::now();
            let sent =
                sending.send(&near, now, &datagrams, (&readiness, TOKEN), &mut |_, outcome| assert!(outcome.sent));
            assert_eq!(sent.unwrap(), 6);
            let mut seen = Vec::new();
            let mut take = |datagram: super::ReceivedDatagram<'_>| {
                seen.push(datagram.traffic_class.get());
                true
            };
            while receiving.receive(&far, &readiness, TOKEN, &mut take).unwrap() > 0 {}
            assert_eq!(seen, classes, "{address}");
        }
    }

    #[test]
    fn a_device_gives_and_takes_batches_until_it_is_removed() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| [TunOffload::NONE, TunOffload::ALL].map(give_and_take));
    }

    fn give_and_take(offload: TunOffload) {
        let addresses = vec![("10.9.0.1".parse().unwrap(), 24)];
        let queues = NonZero::<u16>::MIN;
        let tun = Tun::open(TunConfig { name: "icx0".to_owned(), mtu: 1392, addresses, queues, offload }).unwrap();
        let readiness = Readiness::new().unwrap();
        let mut output = vec![0; 3 * super::MAX_PACKET_BYTES];
        let read = |output: &mut [u8], capacity| {
            let mut ranges = Vec::new();
            super::read_batch(&tun, output, capacity, (&readiness, TOKEN), &mut |range| ranges.push(range)).map(
                |count| {
                    assert_eq!(count, ranges.len());
                    ranges
                },
            )
        };
        assert_eq!(read(&mut output, 8).unwrap(), []);
        assert_eq!(told(&readiness, Duration::ZERO), []);
        let host = std::net::UdpSocket::bind("10.9.0.1:9").unwrap();
        for length in [10, 20, 30] {
            host.send_to(&vec![7; length], "10.9.0.2:9").unwrap();
        }
        assert_eq!(told(&readiness, LIVENESS), [(Direction::Read, TOKEN)]);
        assert_eq!(read(&mut output, 2).unwrap(), [0..38, 38..86]);
        assert_eq!(output[28..38], [7; 10]);
        assert_eq!(read(&mut output, 2).unwrap(), std::slice::from_ref(&(0..58)));
        assert_eq!(read(&mut output, 2).unwrap(), []);

        assert!(super::write_packet(&tun, &output[..58]).unwrap());
        assert!(!super::write_packet(&tun, &[0; 20]).unwrap(), "no IP packet");
        set_up("icx0", false).unwrap();
        assert!(!super::write_packet(&tun, &output[..58]).unwrap(), "set down");
        delete("icx0").unwrap();
        assert_eq!(told(&readiness, LIVENESS), [(Direction::Read, TOKEN)]);
        let removed = |error: PumpError, at| matches!(error, PumpError::DeviceRemoved { call, .. } if call == at);
        assert!(removed(read(&mut output, 2).unwrap_err(), "read"));
        assert!(removed(super::write_packet(&tun, &[0x45; 20]).unwrap_err(), "write"));
    }
}
