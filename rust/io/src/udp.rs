//! UDP sockets: the outer side of the tunnel.
//!
//! The base sockets, one for each worker, receive everything, and send what has no hashed source port. None is ever
//! connected: a peer may send from any port. All datagrams leave with DF, TTL or hop limit 64 and flow label 0, and with
//! TOS or traffic class 0 unless the engine gives another. Where the kernel can, it cuts a run of datagrams itself
//! (`UDP_SEGMENT`) and merges what arrives (`UDP_GRO`); on the wire each is still a datagram of its own.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use icx_proto::engine::{RunBuffer, RunLimits, SealedRun};
use icx_proto::{Instant, Vni};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::sys::{self, ErrorSlot, Outgoing, SendHeaders};
use crate::told::{self, ErrorQueue, Hear, Retry, Told};

/// How many sockets on hashed ports there may be.
pub(crate) const PORT_SLOTS: usize = 64;

/// How long a slot sends from the base port after one of its ports turned out to be occupied.
const OCCUPIED_HOLD_OFF: Duration = Duration::from_secs(1);

/// Bytes that the kernel may hold for each direction of the base socket: about 20 ms at 1.6 Gbit/s.
const BUFFER_BYTES: libc::c_int = 4 << 20;

const TTL: u32 = 64;

/// What one segmented send takes: `UDP_MAX_SEGMENTS` of Linux before 6.9 (128 since, which only datagrams of less than
/// 512 bytes would use), and the longest UDP payload over IPv4.
pub(crate) const RUN_LIMITS: RunLimits = RunLimits { datagrams: 64, bytes: 65_507 };

/// Messages per system call.
const SEND_MESSAGES: usize = 64;

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
    /// Base sockets that share the port. The kernel keeps what comes from one address and port on one of them.
    pub sockets: NonZero<u16>,
    pub offload: UdpOffload,
}

/// What the kernel is asked to do for many datagrams at once, where it can, while a pump moves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpOffload {
    /// Cut a run of datagrams of one size that is sent in one call (`UDP_SEGMENT`).
    pub segment: bool,
    /// Hand over datagrams of one size from one sender in one call (`UDP_GRO`).
    pub merge: bool,
}

impl Default for UdpOffload {
    fn default() -> Self {
        UdpOffload { segment: true, merge: true }
    }
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
    /// At least one.
    bases: Box<[Sending]>,
    local: SocketAddr,
    hashed: Option<HashedPorts>,
    offload: UdpOffload,
}

/// A socket, whether the kernel cuts runs for it, and what it is told.
#[derive(Debug)]
struct Sending {
    socket: Socket,
    segments: AtomicBool,
    errors: ErrorQueue,
}

impl Sending {
    fn new(socket: Socket, local: SocketAddr, segments: bool) -> Self {
        Sending { socket, segments: AtomicBool::new(segments), errors: ErrorQueue::new(local.is_ipv6()) }
    }
}

impl Udp {
    /// Binds the base sockets, in the calling thread's network namespace. [`Family::Dual`] without `local` becomes IPv4
    /// where the kernel has no IPv6.
    pub fn open(config: UdpConfig) -> Result<Udp, UdpError> {
        let UdpConfig { local, port, family, source_port_hashing, sockets, offload } = config;
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
        // Alone on its port, so that a port that anybody holds is found out.
        let base = match bind(address, only_v6, false) {
            Err(source) if source.errno() == Some(libc::EAFNOSUPPORT) && !only_v6 => {
                address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
                bind(address, only_v6, false)?
            }
            result => result?,
        };
        let failed = |call, source| UdpError::System { address, call, source };
        let local = base
            .local_addr()
            .and_then(|local| local.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into()))
            .map_err(|source| failed("getsockname", source))?;
        let mut bases = vec![base];
        if sockets.get() > 1 {
            bases[0].set_reuse_port(true).map_err(|source| failed("setsockopt", source))?;
            for _ in 1..sockets.get() {
                bases.push(bind(local, only_v6, true)?);
            }
        }
        let mut merges = offload.merge;
        for base in &bases {
            enlarge_buffers(base)
                .and_then(|()| tell_traffic_class(base, local, only_v6))
                .map_err(|source| failed("setsockopt", source))?;
            // Linux before 5.0 does not know the option, which is left as it is here.
            merges = merges && sys::set_option(base.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 0).is_ok();
        }
        let segments = offload.segment && can_segment(&bases[0]);
        let hashed = source_port_hashing.then(|| HashedPorts::new(local, only_v6, segments));
        let bases = bases.into_iter().map(|socket| Sending::new(socket, local, segments)).collect();
        Ok(Udp { bases, local, hashed, offload: UdpOffload { segment: segments, merge: merges } })
    }

    /// What the base sockets are bound to, with the port that the kernel chose for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// How many base sockets there are.
    pub fn sockets(&self) -> usize {
        self.bases.len()
    }

    /// What the kernel was found able to do when the sockets were opened, of what it was asked for.
    pub fn offload(&self) -> UdpOffload {
        self.offload
    }

    /// Lets the kernel merge what arrives from now on, where it can and is to.
    pub(crate) fn start_offload(&self) -> io::Result<()> {
        let merges = self.offload.merge;
        self.bases
            .iter()
            .filter(|_| merges)
            .try_for_each(|base| sys::set_option(base.socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1))
    }

    /// The socket on which worker number `worker` receives.
    pub(crate) fn base(&self, worker: usize) -> BorrowedFd<'_> {
        self.base_of(worker).socket.as_fd()
    }

    fn base_of(&self, worker: usize) -> &Sending {
        &self.bases[worker % self.bases.len()]
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

    /// A socket as worker number `worker` sees it.
    fn socket(&self, index: SocketIndex, worker: usize) -> &Sending {
        let hashed = index.slot().and_then(|slot| self.hashed.as_ref()?.slots.get(slot)?.socket.get());
        hashed.unwrap_or_else(|| self.base_of(worker))
    }

    /// The socket on which worker number `worker` receives, and its error queue.
    pub(crate) fn base_errors(&self, worker: usize) -> (BorrowedFd<'_>, &ErrorQueue) {
        let base = self.base_of(worker);
        (base.socket.as_fd(), &base.errors)
    }

    /// The descriptor of a socket that sends, of the first base for that, and its error queue.
    pub(crate) fn errors(&self, index: SocketIndex) -> (BorrowedFd<'_>, &ErrorQueue) {
        let sending = self.socket(index, 0);
        (sending.socket.as_fd(), &sending.errors)
    }

    /// Hears what all sockets have been told, also those on which nobody waits, and begins a new window. To be called once
    /// in each.
    pub(crate) fn hear(&self, slot: &mut ErrorSlot, hear: &mut Hear<'_>) {
        let hashed = self.hashed.iter().flat_map(|hashed| &hashed.slots).filter_map(|slot| slot.socket.get());
        for Sending { socket, errors, .. } in self.bases.iter().chain(hashed) {
            errors.drain(socket.as_fd(), slot, hear);
            errors.next_window(socket.as_fd());
        }
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

/// Whether the kernel cuts what is sent on such sockets: Linux before 4.18 does not know the option, which is left as
/// it is here.
fn can_segment(socket: &Socket) -> bool {
    sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
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
    segments: bool,
}

#[derive(Debug, Default)]
struct PortSlot {
    socket: OnceLock<Sending>,
    /// No attempt to bind before this instant, in nanoseconds.
    retry_at: AtomicU64,
}

impl HashedPorts {
    fn new(local: SocketAddr, only_v6: bool, segments: bool) -> Self {
        let slots = std::iter::repeat_with(PortSlot::default).take(PORT_SLOTS).collect();
        HashedPorts { slots, local, only_v6, segments }
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
        match bind(address, self.only_v6, false).ok().and_then(|socket| send_only(&socket).ok().map(|()| socket)) {
            // When another thread was quicker, its socket stays and this one closes.
            Some(socket) => {
                slot.socket.get_or_init(|| Sending::new(socket, self.local, self.segments));
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

/// A nonblocking socket bound to `address`, with everything set that shows on the wire; `shared` with others that are so
/// too.
fn bind(address: SocketAddr, only_v6: bool, shared: bool) -> Result<Socket, UdpError> {
    let failed = |call| move |source| UdpError::System { address, call, source };
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))
        .map_err(failed("socket"))?;
    set_wire_options(&socket, address, only_v6)
        .and_then(|()| told::listen(socket.as_fd(), address.is_ipv6(), true))
        .and_then(|()| if shared { socket.set_reuse_port(true) } else { Ok(()) })
        .map_err(failed("setsockopt"))?;
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
    // DF on every datagram, and the kernel pays no attention to path MTUs learned from ICMP, which anybody can forge: it
    // refuses a datagram (EMSGSIZE) only when that does not fit the interface. The engine decides what is to be believed.
    sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
}

/// Lets the kernel tell the TOS or traffic class of what arrives.
fn tell_traffic_class(socket: &Socket, local: SocketAddr, only_v6: bool) -> io::Result<()> {
    if local.is_ipv6() {
        sys::set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        if only_v6 {
            return Ok(());
        }
    }
    // On a dual-stack socket too: this is for what comes from mapped addresses.
    sys::set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_RECVTOS, 1)
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

/// What a [`Sender`] asks and tells while it sends.
pub(crate) trait SendEvents {
    /// A socket's buffer is full: true to try again, false to give up what was to be sent from it.
    fn wait(&mut self, socket: BorrowedFd<'_>) -> bool;

    /// The kernel refused this many datagrams of a network, or they were given up.
    fn failed(&mut self, vni: Vni, datagrams: u64, error: &io::Error);

    /// Something is told of a datagram that was sent, this one or an earlier one.
    fn told(&mut self, told: Told<'_>);

    /// The kernel does not cut for the socket on `local` after all: it is asked to no more, and nothing was lost by that.
    fn segmentation_refused(&mut self, local: SocketAddr, error: &io::Error);
}

/// What became of the datagrams of one [`Sender::send`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// What the kernel took: messages, and the datagrams that they were.
    pub(crate) messages: u64,
    pub(crate) sent: u64,
    pub(crate) failed: u64,
    /// Of all, how many went to the base socket although a hashed port was asked for.
    pub(crate) port_fallbacks: u64,
}

/// Sends runs of sealed datagrams in few system calls. Never allocates after it was made, for up to as many runs as it
/// was made for.
pub(crate) struct Sender {
    headers: SendHeaders,
    errors: ErrorSlot,
    queue: Vec<(usize, SocketIndex)>,
}

impl Sender {
    pub(crate) fn new(runs: usize) -> Self {
        let headers = SendHeaders::new(SEND_MESSAGES);
        Sender { headers, errors: ErrorSlot::new(), queue: Vec::with_capacity(runs) }
    }

    /// Sends what is `sealed`, for worker number `worker`: socket by socket, in order within each.
    pub(crate) fn send(
        &mut self,
        udp: &Udp,
        worker: usize,
        now: Instant,
        sealed: &RunBuffer,
        events: &mut impl SendEvents,
    ) -> Sent {
        let mut done = Sent::default();
        self.queue.clear();
        for (index, run) in sealed.runs().iter().enumerate() {
            let Choice { socket, fell_back } = udp.choose(run.to.source_port, now);
            done.port_fallbacks += if fell_back { run.count as u64 } else { 0 };
            self.queue.push((index, socket));
        }
        let mut rest = &mut self.queue[..];
        while let Some(&(_, socket)) = rest.first() {
            // Stable, so that the datagrams of one flow, which share a socket, stay in order.
            let same = stable_partition(rest, |entry| entry.1 == socket);
            let (same, others) = rest.split_at_mut(same);
            let queue = SocketQueue { udp, socket: udp.socket(socket, worker), sealed, queue: same };
            queue.send((&mut self.headers, &mut self.errors), events, &mut done);
            rest = others;
        }
        done
    }
}

/// Runs that leave from one socket, in order.
struct SocketQueue<'a> {
    udp: &'a Udp,
    socket: &'a Sending,
    sealed: &'a RunBuffer,
    queue: &'a [(usize, SocketIndex)],
}

/// The next datagram to be sent: which run of the queue, and which datagram of that.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    run: usize,
    datagram: usize,
}

/// A run that the kernel did not take whole, sent piece by piece.
struct Trial {
    run: usize,
    error: io::Error,
    /// Not one of its datagrams was to blame: the first passed by itself.
    acquitted: bool,
}

impl SocketQueue<'_> {
    fn send(
        &self,
        (headers, errors): (&mut SendHeaders, &mut ErrorSlot),
        events: &mut impl SendEvents,
        done: &mut Sent,
    ) {
        let fd = self.socket.socket.as_fd();
        let told = (fd, &self.socket.errors);
        let mut retry = Retry::default();
        let mut next = Place::default();
        let mut trial: Option<Trial> = None;
        while next.run < self.queue.len() {
            if let Some(ended) = trial.take_if(|trial| trial.run != next.run) {
                self.conclude(&ended, events);
            }
            let whole = trial.is_none() && self.socket.segments.load(Ordering::Relaxed);
            let last = trial.as_ref().map_or(self.queue.len() - 1, |trial| trial.run);
            match sys::sendmmsg(fd, headers, self.messages(next, last, whole)) {
                Ok(messages) => {
                    if let Some(trial) = &mut trial {
                        trial.acquitted |= next.datagram == 0;
                    }
                    done.messages += messages as u64;
                    retry = Retry::default();
                    for _ in 0..messages {
                        done.sent += self.advance(&mut next, whole);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if retry.is_due(&error, told, errors, &mut |news| events.told(news)) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // What is in the error queue would end the wait at once.
                    self.socket.errors.drain(fd, errors, &mut |news| events.told(news));
                    if !events.wait(fd) {
                        while next.run < self.queue.len() {
                            done.failed += self.fail(&mut next, true, &error, events);
                        }
                    }
                }
                Err(error) if whole && self.run(next).count - next.datagram > 1 && may_be_segmentation(&error) => {
                    trial = Some(Trial { run: next.run, error, acquitted: false });
                    retry = Retry::default();
                }
                Err(error) => {
                    done.failed += self.fail(&mut next, whole, &error, events);
                    retry = Retry::default();
                }
            }
        }
        if let Some(ended) = trial {
            self.conclude(&ended, events);
        }
    }

    fn run(&self, place: Place) -> &SealedRun {
        &self.sealed.runs()[self.queue[place.run].0]
    }

    /// What is to be sent from `next` on, up to the run `last`: run by `whole` run, or datagram by datagram.
    fn messages(&self, next: Place, last: usize, whole: bool) -> impl Iterator<Item = Outgoing<'_>> {
        let mut place = next;
        std::iter::from_fn(move || {
            (place.run <= last).then(|| {
                let run = self.run(place);
                let start = run.range.start + place.datagram * run.segment_size;
                let end = if whole { run.range.end } else { run.range.end.min(start + run.segment_size) };
                let segments = self.advance(&mut place, whole) > 1;
                Outgoing {
                    to: self.udp.to_socket_family(run.to.peer),
                    payload: self.sealed.bytes(start..end),
                    segment_size: segments.then_some(run.segment_size as u16),
                    traffic_class: run.to.traffic_class,
                }
            })
        })
    }

    /// Steps over one message; returns its datagrams.
    fn advance(&self, place: &mut Place, whole: bool) -> u64 {
        let run = self.run(*place);
        let datagrams = if whole { run.count - place.datagram } else { 1 };
        place.datagram += datagrams;
        if place.datagram >= run.count {
            *place = Place { run: place.run + 1, datagram: 0 };
        }
        datagrams as u64
    }

    /// Gives one message up; returns its datagrams.
    fn fail(&self, place: &mut Place, whole: bool, error: &io::Error, events: &mut impl SendEvents) -> u64 {
        let vni = self.run(*place).to.vni;
        let datagrams = self.advance(place, whole);
        events.failed(vni, datagrams, error);
        datagrams
    }

    /// Puts the blame for a run that was not taken whole on segmentation, where it belongs there.
    fn conclude(&self, trial: &Trial, events: &mut impl SendEvents) {
        let to_blame = trial.acquitted || trial.error.raw_os_error() == Some(libc::EIO);
        if to_blame && self.socket.segments.swap(false, Ordering::Relaxed) {
            let local = self.socket.socket.local_addr().ok().and_then(|local| local.as_socket());
            events.segmentation_refused(local.unwrap_or(self.udp.local), &trial.error);
        }
    }
}

/// Whether a segmented send may have failed just because it was segmented.
fn may_be_segmentation(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
}

/// Sends `count` datagrams from one socket, in order, until it takes no more for the moment; returns how many it took or refused. What
/// the socket is told of earlier ones is forgotten.
/// `datagrams` gives those from an index on. `refused` hears of each that the kernel did not take: it is gone, and the next ones may
/// well pass.
pub(crate) fn send_run<'a, I: Iterator<Item = Outgoing<'a>>>(
    told: (BorrowedFd<'_>, &ErrorQueue),
    (headers, errors): (&mut SendHeaders, &mut ErrorSlot),
    count: usize,
    datagrams: impl Fn(usize) -> I,
    refused: &mut dyn FnMut(usize, &io::Error),
) -> usize {
    let (socket, queue) = told;
    let mut retry = Retry::default();
    let mut next = 0;
    while next < count {
        match sys::sendmmsg(socket, headers, datagrams(next)) {
            Ok(sent) => {
                next += sent;
                retry = Retry::default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if retry.is_due(&error, told, errors, &mut |_| {}) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // What is in the error queue would end the wait at once.
                queue.drain(socket, errors, &mut |_| {});
                break;
            }
            Err(error) => {
                refused(next, &error);
                next += 1;
                retry = Retry::default();
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
    use std::io;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
    use std::num::NonZero;
    use std::os::fd::BorrowedFd;
    use std::time::Duration;

    use icx_proto::engine::{Destination, RunBuffer};
    use icx_proto::wire::traffic_class::TrafficClass;
    use icx_proto::{Instant, Vni};

    use super::{
        Family, OCCUPIED_HOLD_OFF, PORT_SLOTS, RUN_LIMITS, SendEvents, Sender, Sent, SocketIndex, Udp, UdpConfig,
        UdpError, UdpOffload, stable_partition,
    };
    use crate::sys::{self, Interest, ReceiveBatch};
    use crate::test_support::NetNs;
    use crate::tun::{Tun, TunConfig, TunOffload};

    const START: Instant = Instant::from_nanos(1_000_000_000);
    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    const NO_OFFLOAD: UdpOffload = UdpOffload { segment: false, merge: false };

    fn config(local: Option<IpAddr>, port: u16, family: Family) -> UdpConfig {
        let sockets = NonZero::<u16>::MIN;
        UdpConfig { local, port, family, source_port_hashing: false, sockets, offload: NO_OFFLOAD }
    }

    fn open(local: Option<IpAddr>, family: Family, source_port_hashing: bool) -> Udp {
        Udp::open(UdpConfig { source_port_hashing, ..config(local, 0, family) }).unwrap()
    }

    fn offloading(offload: UdpOffload, sockets: u16) -> Udp {
        let sockets = NonZero::new(sockets).unwrap();
        Udp::open(UdpConfig { offload, sockets, ..config(Some(LOCALHOST), 0, Family::Ipv4) }).unwrap()
    }

    fn to(peer: SocketAddr, source_port: Option<u16>) -> Destination {
        Destination { vni: Vni::new(1).unwrap(), peer, source_port, traffic_class: TrafficClass::ZERO }
    }

    fn queue() -> RunBuffer {
        RunBuffer::new(200_000, 64, RUN_LIMITS)
    }

    fn push(queue: &mut RunBuffer, payload: &[u8], to: Destination) {
        queue.space()[..payload.len()].copy_from_slice(payload);
        queue.push(payload.len(), &to);
    }

    /// What a sender told.
    #[derive(Default)]
    struct Told {
        failed: Vec<(u32, u64, i32)>,
        refused: Vec<(SocketAddr, i32)>,
    }

    impl SendEvents for Told {
        fn wait(&mut self, _socket: BorrowedFd<'_>) -> bool {
            panic!("loopback has room")
        }

        fn failed(&mut self, vni: Vni, datagrams: u64, error: &io::Error) {
            self.failed.push((vni.get(), datagrams, error.raw_os_error().unwrap()));
        }

        fn told(&mut self, _told: crate::told::Told<'_>) {}

        fn segmentation_refused(&mut self, local: SocketAddr, error: &io::Error) {
            self.refused.push((local, error.raw_os_error().unwrap()));
        }
    }

    fn send(udp: &Udp, now: Instant, queue: &mut RunBuffer) -> (Sent, Told) {
        let mut told = Told::default();
        let sent = Sender::new(64).send(udp, 0, now, queue, &mut told);
        queue.clear();
        (sent, told)
    }

    fn sent(messages: u64, sent: u64) -> Sent {
        Sent { messages, sent, ..Sent::default() }
    }

    /// Everything that arrives until `expected` datagrams are there: source port and payload.
    fn receive(udp: &Udp, expected: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        receive_in_pieces(udp, expected).0
    }

    /// The same, and how many messages it were.
    fn receive_in_pieces(udp: &Udp, expected: usize) -> (Vec<(SocketAddr, Vec<u8>)>, usize) {
        let mut batch = ReceiveBatch::new(64, 70_000);
        let (mut all, mut pieces) = (Vec::new(), 0);
        while all.len() < expected {
            let ready = sys::poll(&mut [Interest::readable(udp.base(0))], Some(Duration::from_secs(10))).unwrap();
            assert_eq!(ready, 1, "{} of {expected} datagrams came", all.len());
            pieces += sys::recvmmsg(udp.base(0), &mut batch, 64).unwrap();
            for message in batch.messages() {
                assert!(!message.truncated);
                let before = all.len();
                match message.payload.len() {
                    0 => all.push((message.from.unwrap(), Vec::new())),
                    _ => all.extend(
                        message.payload.chunks(message.stride).map(|one| (message.from.unwrap(), one.to_vec())),
                    ),
                }
                assert_eq!(all.len() - before, message.datagrams());
            }
        }
        (all, pieces)
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
            let mut queue = queue();
            let payloads: Vec<Vec<u8>> = (0..100u8).map(|n| vec![n; usize::from(n / 4 + 1) * 10]).collect();
            for payload in &payloads {
                push(&mut queue, payload, to(receiver.local_addr(), None));
            }
            assert!(queue.runs().len() < 30, "datagrams of one size are one run: {:?}", queue.runs());
            assert_eq!(send(&sender, START, &mut queue).0, sent(100, 100), "more than one call takes");
            let received = receive(&receiver, 100);
            assert!(received.iter().all(|(from, _)| *from == sender.local_addr()));
            assert!(received.into_iter().map(|(_, payload)| payload).eq(payloads));
        }
    }

    /// Runs of every shape: full, with a shorter last one, of one datagram, beyond the limits of one send.
    fn runs(queue: &mut RunBuffer, to: Destination) -> Vec<Vec<u8>> {
        let lengths = [vec![1000; 70], vec![1000, 1000, 1], vec![1400], vec![90], vec![90, 20]].concat();
        let payloads: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(n, length)| vec![n as u8; *length]).collect();
        payloads.iter().for_each(|payload| push(queue, payload, to));
        payloads
    }

    #[test]
    fn runs_are_cut_and_merged_by_the_kernel_and_arrive_as_they_would_one_by_one() {
        let on = |segment, merge| UdpOffload { segment, merge };
        for (offload, sends, receives) in [(on(false, false), 77, 77), (on(true, false), 4, 77), (on(true, true), 4, 4)]
        {
            let (sender, receiver) = (offloading(offload, 1), offloading(offload, 1));
            receiver.start_offload().unwrap();
            assert_eq!(sender.offload(), offload);
            let mut queue = queue();
            let payloads = runs(&mut queue, to(receiver.local_addr(), None));
            let (done, told) = send(&sender, START, &mut queue);
            assert_eq!((done, told.refused.len()), (sent(sends, 77), 0));
            let (received, pieces) = receive_in_pieces(&receiver, 77);
            assert!(received.into_iter().map(|(_, payload)| payload).eq(payloads), "{offload:?}");
            assert_eq!(pieces, receives, "{offload:?}");
        }
    }

    #[test]
    fn a_socket_for_which_the_kernel_does_not_cut_sends_one_by_one_and_tells_once() {
        let sender = offloading(UdpOffload::default(), 1);
        let receiver = offloading(UdpOffload::default(), 1);
        // The kernel cuts nothing for a socket without checksums (`udp_send_skb` in net/ipv4/udp.c): EINVAL.
        sys::set_option(sender.base(0), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        let mut queue = queue();
        for told in [vec![(sender.local_addr(), libc::EINVAL)], Vec::new()] {
            let payloads = runs(&mut queue, to(receiver.local_addr(), None));
            let (done, events) = send(&sender, START, &mut queue);
            assert_eq!((done, events.failed.len()), (sent(77, 77), 0));
            assert_eq!(events.refused, told);
            assert!(receive(&receiver, 77).into_iter().map(|(_, payload)| payload).eq(payloads));
        }
    }

    #[test]
    fn datagrams_that_cannot_be_sent_anyhow_are_not_put_down_to_segmentation() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let addresses = vec![("10.9.0.1".parse().unwrap(), 24)];
            let (queues, offload) = (NonZero::<u16>::MIN, TunOffload::NONE);
            let tun = Tun::open(TunConfig { name: "wire".to_owned(), mtu: 1000, addresses, queues, offload }).unwrap();
            let config = config(None, 0, Family::Ipv4);
            let udp = Udp::open(UdpConfig { offload: UdpOffload::default(), ..config }).unwrap();
            let there = to("10.9.0.2:6081".parse().unwrap(), None);
            let mut queue = queue();
            // Longer than the MTU but for the last; then a run that passes, cut by the kernel.
            [1000, 1000, 500, 900, 900, 1].into_iter().for_each(|length| push(&mut queue, &vec![0; length], there));
            let (done, told) = send(&udp, START, &mut queue);
            assert_eq!(done, Sent { messages: 2, sent: 4, failed: 2, port_fallbacks: 0 });
            assert_eq!(told.failed, [(1, 1, libc::EMSGSIZE); 2]);
            assert_eq!(told.refused, []);
            let mut packet = [0; 2048];
            let lengths: Vec<_> = std::iter::from_fn(|| tun.read(0, &mut packet).ok()).collect();
            assert_eq!(lengths, [528, 928, 928, 29]);
        });
    }

    #[test]
    fn several_sockets_share_a_port_that_nobody_else_gets() {
        let receiver = offloading(UdpOffload::default(), 4);
        assert_eq!(receiver.sockets(), 4);
        for sockets in [1, 4] {
            let sockets = NonZero::new(sockets).unwrap();
            let port = receiver.local_addr().port();
            let error = Udp::open(UdpConfig { sockets, ..config(Some(LOCALHOST), port, Family::Ipv4) }).unwrap_err();
            assert!(matches!(error, UdpError::InUse(_)), "{error:?}");
        }
        // What comes from one address and port stays on one socket, and all are used.
        let mut used = [0; 4];
        for _ in 0..64 {
            let sender = UdpSocket::bind((LOCALHOST, 0)).unwrap();
            (0..4u8).for_each(|n| assert_eq!(sender.send_to(&[n], receiver.local_addr()).unwrap(), 1));
        }
        for (worker, used) in used.iter_mut().enumerate() {
            let mut batch = ReceiveBatch::new(256, 100);
            sys::recvmmsg(receiver.base(worker), &mut batch, 256).unwrap();
            let bytes: Vec<u8> = batch.messages().flat_map(|message| message.payload.to_vec()).collect();
            assert!(bytes.chunks(4).all(|four| four == [0, 1, 2, 3]), "{bytes:?}");
            *used = bytes.len();
        }
        assert!(used.iter().all(|bytes| *bytes > 0) && used.iter().sum::<usize>() == 256, "{used:?}");
    }

    #[test]
    fn one_refused_datagram_does_not_hold_up_the_others() {
        let sender = open(Some(LOCALHOST), Family::Ipv4, false);
        let receiver = open(Some(LOCALHOST), Family::Ipv4, false);
        let mut queue = queue();
        let there = to(receiver.local_addr(), None);
        let long = vec![0; 66_000];
        push(&mut queue, b"one", there);
        push(&mut queue, b"port 0", to(SocketAddr::new(LOCALHOST, 0), None));
        push(&mut queue, &long, there);
        push(&mut queue, b"v6", to("[::1]:9".parse().unwrap(), None));
        push(&mut queue, b"two", there);
        let (done, told) = send(&sender, START, &mut queue);
        assert_eq!(done, Sent { messages: 2, sent: 2, failed: 3, port_fallbacks: 0 });
        assert_eq!(told.failed, [(1, 1, libc::EINVAL), (1, 1, libc::EMSGSIZE), (1, 1, libc::EAFNOSUPPORT)]);
        let payloads: Vec<_> = receive(&receiver, 2).into_iter().map(|(_, payload)| payload).collect();
        assert_eq!(payloads, [b"one".to_vec(), b"two".to_vec()]);
    }

    #[test]
    fn datagrams_beyond_the_slot_are_marked() {
        let receiver = open(Some(LOCALHOST), Family::Ipv4, false);
        let sender = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        for length in [99, 100, 101] {
            sender.send_to(&vec![7; length], receiver.local_addr()).unwrap();
        }
        let mut batch = ReceiveBatch::new(8, 100);
        assert_eq!(sys::recvmmsg(receiver.base(0), &mut batch, 8).unwrap(), 3);
        let seen: Vec<_> = batch.messages().map(|message| (message.payload.len(), message.truncated)).collect();
        assert_eq!(seen, [(99, false), (100, false), (100, true)]);
        let error = sys::recvmmsg(receiver.base(0), &mut batch, 8).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        assert_eq!(batch.messages().count(), 0);
    }

    #[test]
    fn flows_leave_from_their_hashed_port_and_keepalives_from_the_base() {
        let receiver = open(Some(LOCALHOST), Family::Ipv4, false);
        let sender = open(Some(LOCALHOST), Family::Ipv4, true);
        let mut queue = queue();
        let port = free_port();
        let same_slot = port.checked_add(PORT_SLOTS as u16).unwrap_or(port - PORT_SLOTS as u16);
        let there = |source_port| to(receiver.local_addr(), source_port);
        for (payload, source_port) in [("a", Some(port)), ("k", None), ("b", Some(same_slot)), ("c", Some(port))] {
            push(&mut queue, payload.as_bytes(), there(source_port));
        }
        assert_eq!(send(&sender, START, &mut queue).0, sent(4, 4));
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
        let socket = sender.errors(SocketIndex((usize::from(port) % PORT_SLOTS) as u8)).0;
        let error = sys::recvmmsg(socket, &mut ReceiveBatch::new(1, 100), 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
    }

    #[test]
    fn an_occupied_port_falls_back_and_is_tried_again_later() {
        let receiver = open(Some(LOCALHOST), Family::Ipv4, false);
        let sender = open(Some(LOCALHOST), Family::Ipv4, true);
        let occupant = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        let port = occupant.local_addr().unwrap().port();
        let mut queue = queue();
        let there = to(receiver.local_addr(), Some(port));
        let mut send_one = |now, payload: &[u8]| {
            push(&mut queue, payload, there);
            send(&sender, now, &mut queue).0
        };
        let fallback = Sent { port_fallbacks: 1, ..sent(1, 1) };
        assert_eq!(send_one(START, b"occupied"), fallback);
        drop(occupant);
        let just_before = Instant::from_nanos(START.saturating_add(OCCUPIED_HOLD_OFF).as_nanos() - 1);
        assert_eq!(send_one(just_before, b"held off"), fallback);
        assert_eq!(send_one(START.saturating_add(OCCUPIED_HOLD_OFF), b"free"), sent(1, 1));
        let base = sender.local_addr().port();
        let ports: Vec<_> = receive(&receiver, 3).into_iter().map(|(from, _)| from.port()).collect();
        assert_eq!(ports, [base, base, port]);
    }

    #[test]
    fn without_hashing_the_port_asked_for_does_not_matter() {
        let receiver = open(Some(LOCALHOST), Family::Ipv4, false);
        let sender = open(Some(LOCALHOST), Family::Ipv4, false);
        let mut queue = queue();
        push(&mut queue, b"x", to(receiver.local_addr(), Some(free_port())));
        assert_eq!(send(&sender, START, &mut queue).0, sent(1, 1));
        assert_eq!(receive(&receiver, 1)[0].0, sender.local_addr());
    }

    #[test]
    fn a_dual_stack_socket_serves_both_families() {
        let receiver = open(None, Family::Dual, false);
        let sender = open(None, Family::Dual, true);
        let port = receiver.local_addr().port();
        let mut queue = queue();
        for peer in [SocketAddr::new(LOCALHOST, port), SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)] {
            push(&mut queue, b"x", to(peer, None));
        }
        assert_eq!(send(&sender, START, &mut queue).0, sent(2, 2));
        let sources: Vec<_> = receive(&receiver, 2).into_iter().map(|(from, _)| from.ip().to_canonical()).collect();
        assert_eq!(sources, [LOCALHOST, Ipv6Addr::LOCALHOST.into()]);
    }

    #[test]
    fn classes_arrive_with_their_datagrams_however_these_are_cut_and_merged() {
        let localhost6 = IpAddr::from(Ipv6Addr::LOCALHOST);
        let cases = [
            (Some(LOCALHOST), Family::Ipv4, LOCALHOST),
            (Some(localhost6), Family::Ipv6, localhost6),
            (None, Family::Ipv6, localhost6),
            (None, Family::Dual, LOCALHOST),
            (None, Family::Dual, localhost6),
        ];
        let rows = [(0x02, 3), (0x03, 2), (0xba, 1), (0x00, 2), (0xff, 4), (0x01, 1)];
        for (local, family, peer) in cases {
            for (offload, messages) in [(NO_OFFLOAD, 13), (UdpOffload::default(), rows.len())] {
                let open = || Udp::open(UdpConfig { offload, ..config(local, 0, family) }).unwrap();
                let (sender, receiver) = (open(), open());
                receiver.start_offload().unwrap();
                let there = to(SocketAddr::new(peer, receiver.local_addr().port()), None);
                let mut queue = queue();
                for (class, count) in rows {
                    let there = Destination { traffic_class: TrafficClass::new(class), ..there };
                    (0..count).for_each(|_| push(&mut queue, &[class; 1000], there));
                }
                let (done, told) = send(&sender, START, &mut queue);
                assert_eq!((done, told.refused), (sent(messages as u64, 13), vec![]), "{family} {peer}");
                let mut batch = ReceiveBatch::new(64, 70_000);
                let mut seen = Vec::new();
                while seen.len() < messages {
                    let ready = sys::poll(&mut [Interest::readable(receiver.base(0))], Some(Duration::from_secs(10)));
                    assert_eq!(ready.unwrap(), 1, "{} of {messages} came", seen.len());
                    sys::recvmmsg(receiver.base(0), &mut batch, 64).unwrap();
                    for message in batch.messages() {
                        let class = message.traffic_class.get();
                        assert!(message.payload.iter().all(|byte| *byte == class), "{family} {peer}: {class:#04x}");
                        seen.push((class, message.datagrams()));
                    }
                }
                let expected = rows.iter().flat_map(|&(class, count)| match offload.segment {
                    true => vec![(class, count)],
                    false => vec![(class, 1); count],
                });
                assert!(expected.eq(seen.iter().copied()), "{family} {peer}: {seen:?}");
            }
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let holder = open(Some(LOCALHOST), Family::Ipv4, false);
        let attempt =
            |local: &str, port, family| Udp::open(config(Some(local.parse().unwrap()), port, family)).unwrap_err();
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
        assert!(matches!(Udp::open(config(None, port, Family::Ipv4)), Err(UdpError::InUse(_))));
    }

    /// What is on the wire, read from a TUN device to which the route goes.
    #[test]
    fn outer_headers_have_df_ttl_64_and_no_flow_label_and_the_tos_that_is_given() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let addresses = vec![("10.9.0.1".parse().unwrap(), 24), ("fd00:9::1".parse().unwrap(), 64)];
            let (queues, offload) = (NonZero::<u16>::MIN, TunOffload::NONE);
            let tun = Tun::open(TunConfig { name: "wire".to_owned(), mtu: 1500, addresses, queues, offload }).unwrap();
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
                    let udp = Udp::open(UdpConfig {
                        source_port_hashing: true,
                        offload: UdpOffload::default(),
                        ..config(local, 0, family)
                    })
                    .unwrap();
                    let mut queue = queue();
                    push(&mut queue, b"x", to(peer, source_port));
                    assert_eq!(send(&udp, START, &mut queue).0, sent(1, 1), "{local:?} {family} {peer}");
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
                    // With a class of its own, alone and in a run that the kernel cuts.
                    let marked = Destination { traffic_class: TrafficClass::new(0xbb), ..to(peer, source_port) };
                    [9, 9, 1, 0].into_iter().for_each(|length| push(&mut queue, &vec![0; length], marked));
                    assert_eq!(send(&udp, START, &mut queue).0.sent, 4);
                    for _ in 0..4 {
                        tun.read(0, &mut packet).unwrap();
                        match peer {
                            SocketAddr::V4(_) => assert_eq!(packet[..2], [0x45, 0xbb]),
                            SocketAddr::V6(_) => assert_eq!(packet[..4], [0x6b, 0xb0, 0, 0]),
                        }
                    }
                    // 1500 bytes of MTU: one more does not pass, and is not fragmented.
                    let headers = if peer.is_ipv4() { 28 } else { 48 };
                    push(&mut queue, &vec![0; 1500 - headers], to(peer, source_port));
                    push(&mut queue, &vec![0; 1501 - headers], to(peer, source_port));
                    assert_eq!(send(&udp, START, &mut queue).0, Sent { failed: 1, ..sent(1, 1) });
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
