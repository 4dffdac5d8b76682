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
    fn choose(&self, source_port: Option<u16>, now: Instant) -> Choice {
        match (&self.hashed, source_port) {
            (Some(hashed), Some(port)) => hashed.choose(port, now),
            _ => Choice { socket: SocketIndex::BASE, fell_back: false },
        }
    }

    fn socket(&self, index: SocketIndex) -> BorrowedFd<'_> {
        let hashed = index.slot().and_then(|slot| self.hashed.as_ref()?.slots.get(slot)?.socket.get());
        hashed.unwrap_or(&self.base).as_fd()
    }

    /// `address` in the family of the sockets: IPv4 is mapped on an IPv6 socket.
    fn to_socket_family(&self, address: SocketAddr) -> SocketAddr {
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
struct SocketIndex(u8);

impl SocketIndex {
    const BASE: SocketIndex = SocketIndex(u8::MAX);

    fn slot(self) -> Option<usize> {
        (self != Self::BASE).then_some(usize::from(self.0))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    socket: SocketIndex,
    /// A hashed port was asked for, and could not be had.
    fell_back: bool,
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
            let mut next = 0;
            while let Some(entry) = run.get(next) {
                let datagrams = run[next..].iter().map(|entry| (entry.to, &self.buffer[entry.range.clone()]));
                match sys::sendmmsg(fd, &mut self.headers, datagrams) {
                    Ok(sent) => {
                        next += sent;
                        flushed.sent += sent as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if !wait(fd) {
                            for entry in &run[next..] {
                                failed(entry.vni, &error);
                                flushed.failed += 1;
                            }
                            break;
                        }
                    }
                    Err(error) => {
                        failed(entry.vni, &error);
                        flushed.failed += 1;
                        next += 1;
                    }
                }
            }
            rest = others;
        }
        self.entries.clear();
        self.used = 0;
        flushed
    }
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
