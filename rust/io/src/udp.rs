//! UDP sockets: the outer side of the tunnel.
//!
//! One base socket receives everything, and sends what has no hashed source port. None is ever connected: a peer may
//! send from any port. All datagrams leave with DF, TTL or hop limit 64, TOS or traffic class 0 and flow label 0.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use icx_proto::{Instant, Vni};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::sys::{self, SendHeaders};

/// How many sockets on hashed ports there may be.
pub(crate) const PORT_SLOTS: usize = 64;

/// How long a slot sends from the base port after one of its ports turned out to be occupied.
const OCCUPIED_HOLD_OFF: Duration = Duration::from_secs(1);

/// Bytes that the kernel may hold for each direction of the base socket: about 20 ms at 1.6 Gbit/s.
const BUFFER_BYTES: libc::c_int = 4 << 20;

const TTL: u32 = 64;

/// Which addresses a socket serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Family {
    Ipv4,
    Ipv6,
    /// Both, IPv4 as mapped addresses on one IPv6 socket.
    #[default]
    Dual,
}

impl Family {
    pub(crate) fn includes(self, address: IpAddr) -> bool {
        match self {
            Family::Ipv4 => address.is_ipv4(),
            Family::Ipv6 => address.is_ipv6(),
            Family::Dual => true,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
            Family::Dual => "IPv4 or IPv6",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpConfig {
    /// The one address to send from and receive on; `None`: all of the family.
    pub local: Option<IpAddr>,
    /// The port to receive on; 0 lets the kernel choose.
    pub port: u16,
    /// Must include `local`, if that is given.
    pub family: Family,
    /// Send from the port that the engine's flow hash asks for, where that can be had.
    pub source_port_hashing: bool,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UdpError {
    #[error("local address {local} is not {family}: give an address of that family, or change the family")]
    FamilyMismatch { local: IpAddr, family: Family },
    #[error("UDP port {} is in use on {}: choose another --port, or stop the process that holds it (`ss -lunp`)", .0.port(), .0.ip())]
    InUse(SocketAddr),
    #[error("{0} is not an address of this machine: choose one that `ip addr` shows as --local-address")]
    NotLocal(IpAddr),
    #[error("no permission for UDP port {0}: choose --port 1024 or higher, or give CAP_NET_BIND_SERVICE")]
    NoPermission(u16),
    #[error("cannot set up UDP socket {address} ({call}): {source}")]
    System { address: SocketAddr, call: &'static str, source: io::Error },
}

impl UdpError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            UdpError::FamilyMismatch { .. } => None,
            UdpError::InUse(_) => Some(libc::EADDRINUSE),
            UdpError::NotLocal(_) => Some(libc::EADDRNOTAVAIL),
            UdpError::NoPermission(_) => Some(libc::EACCES),
            UdpError::System { source, .. } => source.raw_os_error(),
        }
    }
}

/// The sockets of one node's underlay. Threads share it.
#[derive(Debug)]
pub struct Udp {
    base: Socket,
    local: SocketAddr,
    hashed: Option<HashedPorts>,
}

impl Udp {
    /// Binds the base socket, in the calling thread's network namespace. [`Family::Dual`] without `local` becomes IPv4 where
    /// the kernel has no IPv6.
    pub fn open(config: UdpConfig) -> Result<Udp, UdpError> {
        let UdpConfig { local, port, family, source_port_hashing } = config;
        let unspecified = match family {
            Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::Ipv6 | Family::Dual => Ipv6Addr::UNSPECIFIED.into(),
        };
        let ip = local.unwrap_or(unspecified);
        if !family.includes(ip) {
            return Err(UdpError::FamilyMismatch { local: ip, family });
        }
        let only_v6 = family == Family::Ipv6 || local.is_some();
        let mut address = SocketAddr::new(ip, port);
        let base = match bind(address, only_v6) {
            Err(source) if source.errno() == Some(libc::EAFNOSUPPORT) && !only_v6 => {
                address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
                bind(address, only_v6)?
            }
            result => result?,
        };
        let failed = |call, source| UdpError::System { address, call, source };
        enlarge_buffers(&base).map_err(|source| failed("setsockopt", source))?;
        let local = base
            .local_addr()
            .and_then(|local| local.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into()))
            .map_err(|source| failed("getsockname", source))?;
        let hashed = source_port_hashing.then(|| HashedPorts::new(local, only_v6));
        Ok(Udp { base, local, hashed })
    }

    /// What the base socket is bound to, with the port that the kernel chose for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The socket that receives.
    pub(crate) fn base(&self) -> BorrowedFd<'_> {
        self.base.as_fd()
    }

    /// The socket from which to send a datagram whose flow hash asks for `source_port`.
    ///
    /// The first use of a port slot opens a socket, on the caller's thread: a few system calls, at most once per slot, and
    /// at most once a second while the port is occupied.
    pub(crate) fn choose(&self, source_port: Option<u16>, now: Instant) -> Choice {
        match (&self.hashed, source_port) {
            (Some(hashed), Some(port)) => hashed.choose(port, now),
            _ => Choice { socket: SocketIndex::BASE, fell_back: false },
        }
    }

    pub(crate) fn socket(&self, index: SocketIndex) -> BorrowedFd<'_> {
        let hashed = index.slot().and_then(|slot| self.hashed.as_ref()?.slots.get(slot)?.socket.get());
        hashed.unwrap_or(&self.base).as_fd()
    }

    /// `address` in the family of the sockets: IPv4 is mapped on an IPv6 socket.
    pub(crate) fn to_socket_family(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.local.is_ipv6() => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            other => other,
        }
    }
}

/// One of a [`Udp`]'s sockets: the base, or the one of a port slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketIndex(u8);

impl SocketIndex {
    const BASE: SocketIndex = SocketIndex(u8::MAX);

    fn slot(self) -> Option<usize> {
        (self != Self::BASE).then_some(usize::from(self.0))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) socket: SocketIndex,
    /// A hashed port was asked for, and could not be had.
    pub(crate) fell_back: bool,
}

/// Sockets on hashed ports, in slots by port number. A slot keeps the first port that was free; other ports of the slot
/// leave from it too. So the number of sockets is bounded, and a flow keeps its port once it has one.
#[derive(Debug)]
struct HashedPorts {
    slots: Box<[PortSlot]>,
    local: SocketAddr,
    only_v6: bool,
}

#[derive(Debug, Default)]
struct PortSlot {
    socket: OnceLock<Socket>,
    /// No attempt to bind before this instant, in nanoseconds.
    retry_at: AtomicU64,
}

impl HashedPorts {
    fn new(local: SocketAddr, only_v6: bool) -> Self {
        let slots = std::iter::repeat_with(PortSlot::default).take(PORT_SLOTS).collect();
        HashedPorts { slots, local, only_v6 }
    }

    fn choose(&self, port: u16, now: Instant) -> Choice {
        let index = usize::from(port) % PORT_SLOTS;
        let slot = &self.slots[index];
        let hashed = Choice { socket: SocketIndex(index as u8), fell_back: false };
        if slot.socket.get().is_some() {
            return hashed;
        }
        let fallback = Choice { socket: SocketIndex::BASE, fell_back: true };
        if now.as_nanos() < slot.retry_at.load(Ordering::Relaxed) {
            return fallback;
        }
        let address = SocketAddr::new(self.local.ip(), port);
        match bind(address, self.only_v6).ok().and_then(|socket| send_only(&socket).ok().map(|()| socket)) {
            // When another thread was quicker, its socket stays and this one closes.
            Some(socket) => {
                slot.socket.get_or_init(|| socket);
                hashed
            }
            None if slot.socket.get().is_some() => hashed,
            None => {
                slot.retry_at.store(now.saturating_add(OCCUPIED_HOLD_OFF).as_nanos(), Ordering::Relaxed);
                fallback
            }
        }
    }
}

/// A nonblocking socket bound to `address`, with everything set that shows on the wire.
fn bind(address: SocketAddr, only_v6: bool) -> Result<Socket, UdpError> {
    let failed = |call| move |source| UdpError::System { address, call, source };
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))
        .map_err(failed("socket"))?;
    set_wire_options(&socket, address, only_v6).map_err(failed("setsockopt"))?;
    socket.bind(&address.into()).map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => UdpError::InUse(address),
        Some(libc::EADDRNOTAVAIL) => UdpError::NotLocal(address.ip()),
        Some(libc::EACCES | libc::EPERM) => UdpError::NoPermission(address.port()),
        _ => failed("bind")(source),
    })?;
    Ok(socket)
}

fn set_wire_options(socket: &Socket, address: SocketAddr, only_v6: bool) -> io::Result<()> {
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
        socket.set_unicast_hops_v6(TTL)?;
        socket.set_tclass_v6(0)?;
        let fd = socket.as_fd();
        sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, 0)?;
        if only_v6 {
            return Ok(());
        }
    }
    // On a dual-stack socket too: these are for what goes to mapped addresses.
    socket.set_ttl_v4(TTL)?;
    socket.set_tos_v4(0)?;
    // DF on every datagram, and no attention to path MTUs learned from ICMP, which anybody can forge: a datagram is
    // refused (EMSGSIZE) only when it does not fit the interface.
    sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
}

/// Asks for large buffers; CAP_NET_ADMIN lifts the limits of `net.core.rmem_max` and `wmem_max`, without it they hold.
fn enlarge_buffers(socket: &Socket) -> io::Result<()> {
    let fd = socket.as_fd();
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        sys::set_option(fd, libc::SOL_SOCKET, force, BUFFER_BYTES)
            .or_else(|_| sys::set_option(fd, libc::SOL_SOCKET, plain, BUFFER_BYTES))?;
    }
    Ok(())
}

/// Makes the kernel drop whatever arrives, and send from a buffer as large as the base socket's.
fn send_only(socket: &Socket) -> io::Result<()> {
    enlarge_buffers(socket)?;
    // Classic BPF: return 0 bytes of every packet.
    socket.attach_filter(&[SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0)])
}

/// A sealed datagram in a [`SendQueue`].
#[derive(Clone, Debug)]
struct Entry {
    range: Range<usize>,
    to: SocketAddr,
    vni: Vni,
    socket: SocketIndex,
}

/// Where a datagram goes, as the engine's verdict says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Destination {
    pub(crate) vni: Vni,
    pub(crate) peer: SocketAddr,
    /// `None`: the base port.
    pub(crate) source_port: Option<u16>,
}

/// What became of a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flushed {
    pub(crate) sent: u64,
    pub(crate) failed: u64,
}

/// Sealed datagrams that wait in one buffer to leave in few system calls. Never allocates after it was made.
pub(crate) struct SendQueue {
    buffer: Box<[u8]>,
    used: usize,
    entries: Vec<Entry>,
    headers: SendHeaders,
    room: usize,
}

impl SendQueue {
    /// Holds `datagrams` of about 2 KiB, and at any time one more of `room` bytes.
    pub(crate) fn new(datagrams: usize, room: usize) -> Self {
        SendQueue {
            buffer: vec![0; datagrams * 2048 + room].into(),
            used: 0,
            entries: Vec::with_capacity(datagrams),
            headers: SendHeaders::new(datagrams),
            room,
        }
    }

    /// It must be flushed before more goes in.
    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() == self.entries.capacity() || self.buffer.len() - self.used < self.room
    }

    /// Where the next datagram is to be written; empty while the queue is full.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.is_full() { &mut [] } else { &mut self.buffer[self.used..] }
    }

    /// Takes in the datagram in `range` of [`SendQueue::space`]. True when it leaves from the base port although a
    /// hashed one was asked for.
    pub(crate) fn push(&mut self, udp: &Udp, now: Instant, range: Range<usize>, to: Destination) -> bool {
        let range = self.used + range.start..self.used + range.end;
        self.used = range.end;
        let Choice { socket, fell_back } = udp.choose(to.source_port, now);
        self.entries.push(Entry { range, to: udp.to_socket_family(to.peer), vni: to.vni, socket });
        fell_back
    }

    /// Sends everything, socket by socket, in order within each, and leaves the queue empty.
    ///
    /// `wait` is called when a socket's buffer is full: true to try again, false to give the rest of that socket up.
    /// `failed` is called for each datagram that the kernel refused or that was given up.
    pub(crate) fn flush(
        &mut self,
        udp: &Udp,
        wait: &mut dyn FnMut(BorrowedFd<'_>) -> bool,
        failed: &mut dyn FnMut(Vni, &io::Error),
    ) -> Flushed {
        let mut flushed = Flushed::default();
        let mut rest = &mut self.entries[..];
        while let Some(first) = rest.first() {
            let socket = first.socket;
            // Stable, so that the datagrams of one flow, which share a socket, stay in order.
            let run = stable_partition(rest, |entry| entry.socket == socket);
            let (run, others) = rest.split_at_mut(run);
            let fd = udp.socket(socket);
            let (buffer, headers) = (&self.buffer, &mut self.headers);
            let mut next = 0;
            while next < run.len() {
                let rest = &run[next..];
                let mut refused = 0;
                let done = send_run(
                    fd,
                    headers,
                    rest.len(),
                    |from| rest[from..].iter().map(|entry| (entry.to, &buffer[entry.range.clone()])),
                    &mut |at, error| {
                        failed(rest[at].vni, error);
                        refused += 1;
                    },
                );
                next += done;
                flushed.sent += done as u64 - refused;
                flushed.failed += refused;
                if next < run.len() && !wait(fd) {
                    for entry in &run[next..] {
                        failed(entry.vni, &io::ErrorKind::WouldBlock.into());
                        flushed.failed += 1;
                    }
                    break;
                }
            }
            rest = others;
        }
        self.entries.clear();
        self.used = 0;
        flushed
    }
}

/// Sends `count` datagrams from one socket, in order, until it takes no more for the moment; returns how many it took or refused.
/// `datagrams` gives those from an index on. `refused` hears of each that the kernel did not take: it is gone, and the next ones may
/// well pass.
pub(crate) fn send_run<'a, I: Iterator<Item = (SocketAddr, &'a [u8])>>(
    socket: BorrowedFd<'_>,
    headers: &mut SendHeaders,
    count: usize,
    datagrams: impl Fn(usize) -> I,
    refused: &mut dyn FnMut(usize, &io::Error),
) -> usize {
    let mut next = 0;
    while next < count {
        match sys::sendmmsg(socket, headers, datagrams(next)) {
            Ok(sent) => next += sent,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => {
                refused(next, &error);
                next += 1;
            }
        }
    }
    next
}

/// Moves the items for which `belongs` holds to the front, both parts in their order; returns how many they are.
/// The first item belongs. Quadratic in the length of the foreign runs, for batches of 64.
fn stable_partition<T>(items: &mut [T], belongs: impl Fn(&T) -> bool) -> usize {
    let mut front = 0;
    for at in 0..items.len() {
        if belongs(&items[at]) {
            items[front..=at].rotate_right(1);
            front += 1;
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
    use std::time::Duration;

    use icx_proto::{Instant, Vni};

    use super::{
        Destination, Family, Flushed, OCCUPIED_HOLD_OFF, PORT_SLOTS, SendQueue, SocketIndex, Udp, UdpConfig, UdpError,
        stable_partition,
    };
    use crate::sys::{self, Interest, ReceiveBatch};
    use crate::test_support::NetNs;
    use crate::tun::{Tun, TunConfig};

    const START: Instant = Instant::from_nanos(1_000_000_000);
    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn open(local: Option<IpAddr>, family: Family, source_port_hashing: bool) -> Udp {
        Udp::open(UdpConfig { local, port: 0, family, source_port_hashing }).unwrap()
    }

    fn to(peer: SocketAddr, source_port: Option<u16>) -> Destination {
        Destination { vni: Vni::new(1).unwrap(), peer, source_port }
    }

    fn push(queue: &mut SendQueue, udp: &Udp, now: Instant, payload: &[u8], to: Destination) -> bool {
        queue.space()[..payload.len()].copy_from_slice(payload);
        queue.push(udp, now, 0..payload.len(), to)
    }

    fn flush(queue: &mut SendQueue, udp: &Udp) -> Flushed {
        queue.flush(udp, &mut |_| panic!("loopback has room"), &mut |_, _| {})
    }

    /// Everything that arrives until `expected` datagrams are there: source port and payload.
    fn receive(udp: &Udp, expected: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut batch = ReceiveBatch::new(64, 2048);
        let mut all = Vec::new();
        while all.len() < expected {
            let ready = sys::poll(&mut [Interest::readable(udp.base())], Some(Duration::from_secs(10))).unwrap();
            assert_eq!(ready, 1, "{} of {expected} datagrams came", all.len());
            sys::recvmmsg(udp.base(), &mut batch).unwrap();
            for datagram in batch.datagrams() {
                assert!(!datagram.truncated);
                all.push((datagram.from.unwrap(), datagram.payload.to_vec()));
            }
        }
        all
    }

    /// A port that was free a moment ago, in another slot than those given.
    fn free_port() -> u16 {
        UdpSocket::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn a_batch_arrives_whole_and_in_order() {
        for local in [LOCALHOST, Ipv6Addr::LOCALHOST.into()] {
            let sender = open(Some(local), Family::Dual, false);
            let receiver = open(Some(local), Family::Dual, false);
            let mut queue = SendQueue::new(64, 2048);
            let payloads: Vec<Vec<u8>> = (0..64u8).map(|n| vec![n; usize::from(n) * 10 + 1]).collect();
            for payload in &payloads {
                assert!(!queue.is_full());
                assert!(!push(&mut queue, &sender, START, payload, to(receiver.local_addr(), None)));
            }
            assert!(queue.is_full() && queue.space().is_empty());
            assert_eq!(flush(&mut queue, &sender), Flushed { sent: 64, failed: 0 });
            assert!(!queue.is_full());
            let received = receive(&receiver, 64);
            assert!(received.iter().all(|(from, _)| *from == sender.local_addr()));
            assert!(received.into_iter().map(|(_, payload)| payload).eq(payloads));
        }
    }

    #[test]
    fn one_refused_datagram_does_not_hold_up_the_others() {
        let sender = open(Some(LOCALHOST), Family::Ipv4, false);
        let receiver = open(Some(LOCALHOST), Family::Ipv4, false);
        let mut queue = SendQueue::new(64, 70_000);
        let there = to(receiver.local_addr(), None);
        let long = vec![0; 66_000];
        push(&mut queue, &sender, START, b"one", there);
        push(&mut queue, &sender, START, b"port 0", to(SocketAddr::new(LOCALHOST, 0), None));
        push(&mut queue, &sender, START, &long, there);
        push(&mut queue, &sender, START, b"v6", to("[::1]:9".parse().unwrap(), None));
        push(&mut queue, &sender, START, b"two", there);
        let mut errors = Vec::new();
        let flushed = queue.flush(&sender, &mut |_| unreachable!(), &mut |vni, error| {
            errors.push((vni.get(), error.raw_os_error().unwrap()));
        });
        assert_eq!(flushed, Flushed { sent: 2, failed: 3 });
        assert_eq!(errors, [(1, libc::EINVAL), (1, libc::EMSGSIZE), (1, libc::EAFNOSUPPORT)]);
        let payloads: Vec<_> = receive(&receiver, 2).into_iter().map(|(_, payload)| payload).collect();
        assert_eq!(payloads, [b"one".to_vec(), b"two".to_vec()]);
    }

    #[test]
    fn a_full_queue_takes_no_more_before_its_room_is_used_up() {
        let udp = open(Some(LOCALHOST), Family::Ipv4, false);
        let mut queue = SendQueue::new(4, 1000);
        let long = vec![0; 8000];
        push(&mut queue, &udp, START, &long, to(udp.local_addr(), None));
        assert!(!queue.is_full() && queue.space().len() >= 1000);
        push(&mut queue, &udp, START, &[0; 500], to(udp.local_addr(), None));
        assert!(queue.is_full(), "less than 1000 bytes are left");
    }

    #[test]
    fn datagrams_beyond_the_slot_are_marked() {
        let receiver = open(Some(LOCALHOST), Family::Ipv4, false);
        let sender = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        for length in [99, 100, 101] {
            sender.send_to(&vec![7; length], receiver.local_addr()).unwrap();
        }
        let mut batch = ReceiveBatch::new(8, 100);
        assert_eq!(sys::recvmmsg(receiver.base(), &mut batch).unwrap(), 3);
        let seen: Vec<_> = batch.datagrams().map(|datagram| (datagram.payload.len(), datagram.truncated)).collect();
        assert_eq!(seen, [(99, false), (100, false), (100, true)]);
        let error = sys::recvmmsg(receiver.base(), &mut batch).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        assert_eq!(batch.datagrams().count(), 0);
    }

    #[test]
    fn flows_leave_from_their_hashed_port_and_keepalives_from_the_base() {
        let receiver = open(Some(LOCALHOST), Family::Ipv4, false);
        let sender = open(Some(LOCALHOST), Family::Ipv4, true);
        let mut queue = SendQueue::new(64, 2048);
        let port = free_port();
        let same_slot = port.checked_add(PORT_SLOTS as u16).unwrap_or(port - PORT_SLOTS as u16);
        let there = |source_port| to(receiver.local_addr(), source_port);
        for (payload, source_port) in [("a", Some(port)), ("k", None), ("b", Some(same_slot)), ("c", Some(port))] {
            assert!(!push(&mut queue, &sender, START, payload.as_bytes(), there(source_port)));
        }
        assert_eq!(flush(&mut queue, &sender), Flushed { sent: 4, failed: 0 });
        let base = sender.local_addr().port();
        let mut received: Vec<_> =
            receive(&receiver, 4).into_iter().map(|(from, payload)| (payload, from.port())).collect();
        let of_flows: Vec<_> =
            received.iter().filter(|(_, from)| *from == port).map(|(payload, _)| payload[0]).collect();
        assert_eq!(of_flows, b"abc", "in order, and the second port of a slot leaves from the first");
        received.retain(|(_, from)| *from != port);
        assert_eq!(received, [(b"k".to_vec(), base)]);

        // What is sent to a hashed port is dropped by the kernel, not queued.
        let stranger = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        stranger.send_to(b"hello", (LOCALHOST, port)).unwrap();
        let socket = sender.socket(SocketIndex((usize::from(port) % PORT_SLOTS) as u8));
        let error = sys::recvmmsg(socket, &mut ReceiveBatch::new(1, 100)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
    }

    #[test]
    fn an_occupied_port_falls_back_and_is_tried_again_later() {
        let receiver = open(Some(LOCALHOST), Family::Ipv4, false);
        let sender = open(Some(LOCALHOST), Family::Ipv4, true);
        let occupant = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        let port = occupant.local_addr().unwrap().port();
        let mut queue = SendQueue::new(64, 2048);
        let there = to(receiver.local_addr(), Some(port));
        assert!(push(&mut queue, &sender, START, b"occupied", there));
        drop(occupant);
        let just_before = Instant::from_nanos(START.saturating_add(OCCUPIED_HOLD_OFF).as_nanos() - 1);
        assert!(push(&mut queue, &sender, just_before, b"held off", there));
        assert!(!push(&mut queue, &sender, START.saturating_add(OCCUPIED_HOLD_OFF), b"free", there));
        assert_eq!(flush(&mut queue, &sender).sent, 3);
        let base = sender.local_addr().port();
        let ports: Vec<_> = receive(&receiver, 3).into_iter().map(|(from, _)| from.port()).collect();
        assert_eq!(ports, [base, base, port]);
    }

    #[test]
    fn without_hashing_the_port_asked_for_does_not_matter() {
        let receiver = open(Some(LOCALHOST), Family::Ipv4, false);
        let sender = open(Some(LOCALHOST), Family::Ipv4, false);
        let mut queue = SendQueue::new(64, 2048);
        assert!(!push(&mut queue, &sender, START, b"x", to(receiver.local_addr(), Some(free_port()))));
        flush(&mut queue, &sender);
        assert_eq!(receive(&receiver, 1)[0].0, sender.local_addr());
    }

    #[test]
    fn a_dual_stack_socket_serves_both_families() {
        let receiver = open(None, Family::Dual, false);
        let sender = open(None, Family::Dual, true);
        let port = receiver.local_addr().port();
        let mut queue = SendQueue::new(64, 2048);
        for peer in [SocketAddr::new(LOCALHOST, port), SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)] {
            push(&mut queue, &sender, START, b"x", to(peer, None));
        }
        assert_eq!(flush(&mut queue, &sender), Flushed { sent: 2, failed: 0 });
        let sources: Vec<_> = receive(&receiver, 2).into_iter().map(|(from, _)| from.ip().to_canonical()).collect();
        assert_eq!(sources, [LOCALHOST, Ipv6Addr::LOCALHOST.into()]);
    }

    #[test]
    fn refusals_say_what_to_do() {
        let holder = open(Some(LOCALHOST), Family::Ipv4, false);
        let attempt = |local: &str, port, family| {
            let local = Some(local.parse().unwrap());
            Udp::open(UdpConfig { local, port, family, source_port_hashing: false }).unwrap_err()
        };
        let port = holder.local_addr().port();
        let error = attempt("127.0.0.1", port, Family::Ipv4);
        assert!(matches!(error, UdpError::InUse(_)), "{error:?}");
        assert_eq!(error.errno(), Some(libc::EADDRINUSE));
        let text = error.to_string();
        assert!(
            text.contains(&format!("UDP port {port} is in use")) && text.contains("choose another --port"),
            "{text}"
        );
        let error = attempt("192.0.2.77", 0, Family::Dual);
        assert!(matches!(error, UdpError::NotLocal(_)), "{error:?}");
        assert!(error.to_string().contains("192.0.2.77"), "{error}");
        let error = attempt("127.0.0.1", 0, Family::Ipv6);
        assert!(matches!(error, UdpError::FamilyMismatch { .. }), "{error:?}");
    }

    #[test]
    fn a_wildcard_socket_occupies_the_port_for_both_families() {
        let holder = open(None, Family::Dual, false);
        let port = holder.local_addr().port();
        let config = UdpConfig { local: None, port, family: Family::Ipv4, source_port_hashing: false };
        assert!(matches!(Udp::open(config), Err(UdpError::InUse(_))));
    }

    /// What is on the wire, read from a TUN device to which the route goes.
    #[test]
    fn outer_headers_have_df_ttl_64_and_no_tos_or_flow_label() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let addresses = vec![("10.9.0.1".parse().unwrap(), 24), ("fd00:9::1".parse().unwrap(), 64)];
            let tun = Tun::open(TunConfig { name: "wire".to_owned(), mtu: 1500, addresses }).unwrap();
            let v4: SocketAddr = "10.9.0.2:6081".parse().unwrap();
            let v6: SocketAddr = "[fd00:9::2]:6081".parse().unwrap();
            let cases = [
                (None, Family::Ipv4, v4),
                (None, Family::Dual, v4),
                (None, Family::Dual, v6),
                (None, Family::Ipv6, v6),
                (Some("10.9.0.1".parse().unwrap()), Family::Dual, v4),
                (Some("fd00:9::1".parse().unwrap()), Family::Dual, v6),
            ];
            for (local, family, peer) in cases {
                for source_port in [None, Some(50_001)] {
                    let udp = open(local, family, true);
                    let mut queue = SendQueue::new(64, 2048);
                    assert!(!push(&mut queue, &udp, START, b"x", to(peer, source_port)));
                    assert_eq!(flush(&mut queue, &udp), Flushed { sent: 1, failed: 0 }, "{local:?} {family} {peer}");
                    let mut packet = [0; 2048];
                    let length = tun.read(0, &mut packet).unwrap();
                    let from = source_port.unwrap_or(udp.local_addr().port());
                    if peer.is_ipv4() {
                        assert_eq!((packet[0], packet[1], length), (0x45, 0, 29), "no options, TOS 0");
                        assert_eq!(packet[6..8], [0x40, 0], "DF, no fragment");
                        assert_eq!(packet[8], 64, "TTL");
                        assert_eq!(packet[20..22], from.to_be_bytes());
                    } else {
                        assert_eq!(packet[..4], [0x60, 0, 0, 0], "traffic class and flow label 0");
                        assert_eq!((packet[6], packet[7], length), (17, 64, 49), "UDP, hop limit");
                        assert_eq!(packet[40..42], from.to_be_bytes());
                    }
                    // 1500 bytes of MTU: one more does not pass, and is not fragmented.
                    let headers = if peer.is_ipv4() { 28 } else { 48 };
                    push(&mut queue, &udp, START, &vec![0; 1500 - headers], to(peer, source_port));
                    push(&mut queue, &udp, START, &vec![0; 1501 - headers], to(peer, source_port));
                    assert_eq!(flush(&mut queue, &udp), Flushed { sent: 1, failed: 1 });
                    assert_eq!(tun.read(0, &mut packet).unwrap(), 1500);
                    assert_eq!(tun.read(0, &mut packet).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
                }
            }
        });
    }

    #[test]
    fn partition_keeps_both_orders() {
        let mut items = [1, 10, 2, 20, 30, 3];
        assert_eq!(stable_partition(&mut items, |item| *item < 10), 3);
        assert_eq!(items, [1, 2, 3, 10, 20, 30]);
        assert_eq!(stable_partition(&mut items, |_| true), 6);
        assert_eq!(items, [1, 2, 3, 10, 20, 30]);
        assert_eq!(stable_partition(&mut items, |_| false), 0);
        assert_eq!(stable_partition(&mut [0; 0], |_| true), 0);
    }
}
