//! The stack itself, without a clock, a lock or a descriptor: packets and time go in, packets come out.
//!
//! Each connection has a socket set of its own, found by its flow. Those with something to send stand in a queue and send one packet each
//! time it is their turn; the rest wait in a heap of timers. Datagram sockets share one set.

mod acknowledgements;
mod connection;
mod port;
mod wire;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::task::Waker;
use std::time::Duration;

use icx_io::tun::most_uncut_bytes;
use icx_proto::Instant;
use icx_proto::offload::VnetHeader;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{self, State};
use smoltcp::socket::{AnySocket, dns, icmp, udp};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};

use crate::error::{BindError, ConnectError, StreamError};
use crate::options::StackOptions;
pub(crate) use connection::Id;
use connection::{Connection, Owner, from_smol, to_smol};
use port::{Pending, Port, Slot};
use wire::{Arrived, Flow, Segment};

/// The first and last port that is chosen where none is asked for (RFC 6335 section 6).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// How long a connection that nobody holds may take to end.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(60);

/// Connections that only wait for late packets (TIME-WAIT). The oldest of more is forgotten.
const MAX_TIME_WAIT: usize = 64;

/// Connections of one listener whose handshake is under way, and those that wait to be accepted.
const BACKLOG: usize = 256;

/// Headers of IP and TCP, with all options that fit them (RFC 791, RFC 9293).
const MAX_HEADERS_BYTES: usize = 60 + 60;

/// When something is due that cannot be done, how soon it is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// What a stack has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackCounters {
    /// Connections that are there now, in whatever state.
    pub connections: u64,
    /// Connections that were opened from here, and from elsewhere.
    pub connects: u64,
    pub accepts: u64,
    /// Connections that ended otherwise than by being closed.
    pub failures: u64,
    /// First packets of connections for which a listener, or the stack, had no room.
    pub refused: u64,
    /// Packets that are no IP, for or from an address that cannot be, fragments of TCP, or have a wrong checksum.
    pub bad_packets: u64,
    /// Answers and datagrams for which there was no room on the way out.
    pub overflows: u64,
}

struct Listener {
    number: u64,
    waker: Option<Waker>,
    half_open: usize,
    queue: VecDeque<Id>,
}

pub(crate) struct Core {
    options: StackOptions,
    mtu: u32,
    capabilities: DeviceCapabilities,
    interface: Box<Interface>,
    /// Packets go out uncut, with a header before them.
    offload: bool,
    connections: HashMap<Id, Connection>,
    flows: HashMap<Flow, Id>,
    next_number: u64,
    listeners: HashMap<u16, Listener>,
    datagrams: SocketSet<'static>,
    resolver: SocketHandle,
    datagrams_due: Option<Instant>,
    ready: VecDeque<Id>,
    timers: BinaryHeap<Reverse<(Instant, Id)>>,
    time_wait: VecDeque<Id>,
    pending: Pending,
    /// Whose turn it is: what is pending, or a connection.
    pending_first: bool,
    random: RandomState,
    counters: StackCounters,
    closed: bool,
}

impl Core {
    /// The options have been checked.
    pub(crate) fn new(options: StackOptions, now: Instant) -> Self {
        let capabilities = capabilities(options.mtu, false);
        let random = RandomState::new();
        let mut pending = Pending::new();
        let interface = interface(&options.addresses, &capabilities, &mut pending, random.hash_one(0u64), now);
        let servers: Vec<IpAddress> = options.name_servers.iter().map(|&server| server.into()).collect();
        let mut datagrams = SocketSet::new(Vec::new());
        let resolver = datagrams.add(dns::Socket::new(&servers, Vec::new()));
        Core {
            mtu: options.mtu,
            options,
            capabilities,
            interface,
            offload: false,
            connections: HashMap::new(),
            flows: HashMap::new(),
            next_number: 1,
            listeners: HashMap::new(),
            datagrams,
            resolver,
            datagrams_due: None,
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            time_wait: VecDeque::new(),
            pending,
            pending_first: true,
            random,
            counters: StackCounters::default(),
            closed: false,
        }
    }

    pub(crate) fn mtu(&self) -> u32 {
        self.mtu
    }

    pub(crate) fn addresses(&self) -> &[(IpAddr, u8)] {
        &self.options.addresses
    }

    pub(crate) fn name_servers(&self) -> &[IpAddr] {
        &self.options.name_servers
    }

    pub(crate) fn counters(&self) -> StackCounters {
        StackCounters { connections: self.connections.len() as u64, overflows: self.pending.dropped, ..self.counters }
    }

    /// Of what is sent from now on.
    pub(crate) fn set_mtu(&mut self, mtu: u32, now: Instant) {
        self.mtu = mtu;
        self.renew_interface(now);
    }

    /// From now on packets go out with a virtio header before them, and TCP uncut.
    pub(crate) fn start_offload(&mut self, now: Instant) {
        self.offload = true;
        self.renew_interface(now);
    }

    /// smoltcp asks for the capabilities once. What an interface has besides, half a datagram at most, is lost.
    fn renew_interface(&mut self, now: Instant) {
        self.capabilities = capabilities(self.mtu, self.offload);
        let seed = self.number();
        let (addresses, seed) = (&self.options.addresses, self.random.hash_one(seed));
        self.interface = interface(addresses, &self.capabilities, &mut self.pending, seed, now);
    }

    /// Ends everything at once; nothing can be opened any more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        for connection in self.connections.values_mut() {
            connection.failure.get_or_insert(StreamError::StackClosed);
            // It also wakes whoever waits.
            connection.socket().abort();
        }
        self.connections.retain(|_, connection| connection.owner == Owner::Stream);
        self.listeners.drain().filter_map(|(_, listener)| listener.waker).for_each(Waker::wake);
        for (_, socket) in self.datagrams.iter_mut() {
            if let Some(socket) = udp::Socket::downcast_mut(socket) {
                socket.close();
            }
        }
        self.ready.clear();
        self.timers.clear();
        self.flows.clear();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    // Packets.

    /// When there is something to do that no packet or call brings about.
    pub(crate) fn due(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        [timer, self.datagrams_due].into_iter().flatten().min()
    }

    /// Takes a packet in. `verified`: its transport checksum is known to be right.
    pub(crate) fn take(&mut self, now: Instant, packet: &[u8], verified: bool) {
        if self.closed {
            return;
        }
        let is_for_us =
            wire::ends(packet).is_some_and(|(src, dst)| self.is_own(dst) && !self.is_own(src) && wire::is_host(src));
        if !is_for_us {
            self.counters.bad_packets += 1;
            return;
        }
        match wire::read(packet, verified) {
            Arrived::Tcp(segment) => self.take_segment(now, packet, segment),
            Arrived::Other => {
                let mut port = Port {
                    capabilities: &self.capabilities,
                    arrived: Some(packet),
                    slot: None,
                    pending: &mut self.pending,
                };
                self.interface.poll_ingress_single(to_smol(now), &mut port, &mut self.datagrams);
                self.datagrams_due = Some(now);
            }
            Arrived::Bad => self.counters.bad_packets += 1,
        }
    }

    fn take_segment(&mut self, now: Instant, packet: &[u8], segment: Segment) {
        let mut id = self.flows.get(&segment.flow).copied();
        if segment.opens {
            let over = |connection: &Connection| connection.state == State::TimeWait;
            // RFC 9293 section 3.6.1: a new connection may follow at once.
            if let Some(old) = id.filter(|id| self.connections.get(id).is_some_and(over)) {
                self.remove(old);
                id = None;
            }
            if id.is_none() && self.listeners.contains_key(&segment.flow.local.port()) {
                match self.receive_connection(segment.flow) {
                    Some(new) => id = Some(new),
                    // Not refused: there may be room when the peer tries again.
                    None => {
                        self.counters.refused += 1;
                        return;
                    }
                }
            }
        }
        let mut nobody = SocketSet::new([]);
        let mut connection = id.and_then(|id| self.connections.get_mut(&id));
        let mut take = |packet: &[u8], set: &mut SocketSet<'static>| {
            let mut port = Port {
                capabilities: &self.capabilities,
                arrived: Some(packet),
                slot: None,
                pending: &mut self.pending,
            };
            self.interface.poll_ingress_single(to_smol(now), &mut port, set);
        };
        match (&mut connection, segment.acknowledges) {
            (Some(connection), Some(acknowledgement)) if packet.len() <= MAX_HEADERS_BYTES => {
                let mut copy = [0; MAX_HEADERS_BYTES];
                let copy = &mut copy[..packet.len()];
                copy.copy_from_slice(packet);
                for number in connection.acknowledgements.read(acknowledgement, self.mtu) {
                    wire::acknowledge(copy, number);
                    take(copy, connection.set());
                }
            }
            (Some(connection), _) => take(packet, connection.set()),
            (None, _) => take(packet, &mut nobody),
        }
        let (Some(id), Some(connection)) = (id, connection) else { return };
        // RFC 9293 section 3.6: data for somebody who has closed.
        if matches!(connection.owner, Owner::None { .. }) && connection.socket().recv_queue() > 0 {
            connection.socket().abort();
        }
        self.look_at(id, segment.resets);
        self.stir(id);
    }

    /// Writes the next packet to `out`, with a virtio header before it where there are any. `None`: there is none.
    pub(crate) fn next(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        if self.closed {
            return None;
        }
        self.run_timers(now);
        if self.datagrams_due.is_some_and(|due| due <= now) {
            self.send_datagrams(now);
        }
        let front = if self.offload { VnetHeader::LEN } else { 0 };
        let (header, out) = out.split_at_mut_checked(front)?;
        self.pending_first = !self.pending_first;
        let sent = if self.pending_first {
            self.next_pending(out).or_else(|| self.next_of_connection(now, out))
        } else {
            self.next_of_connection(now, out).or_else(|| self.next_pending(out))
        };
        let (len, cut) = sent?;
        let vnet = wire::complete(&mut out[..len], cut);
        if front > 0 {
            header.copy_from_slice(&vnet.emit());
        }
        Some(front + len)
    }

    fn next_pending(&mut self, out: &mut [u8]) -> Option<(usize, Option<u16>)> {
        self.pending.take(out).map(|len| (len, None))
    }

    fn next_of_connection(&mut self, now: Instant, out: &mut [u8]) -> Option<(usize, Option<u16>)> {
        while let Some(id) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            let slot = Slot { buffer: &mut *out, sent: None };
            let mut port =
                Port { capabilities: &self.capabilities, arrived: None, slot: Some(slot), pending: &mut self.pending };
            self.interface.poll_egress(to_smol(now), &mut port, connection.set());
            let sent = port.slot.and_then(|slot| slot.sent);
            self.look_at(id, false);
            self.schedule(id, now, sent.is_some());
            if let Some(sent) = sent {
                return Some((sent.len, sent.cut));
            }
        }
        None
    }

    fn send_datagrams(&mut self, now: Instant) {
        while self.pending.has_room() {
            let mut port =
                Port { capabilities: &self.capabilities, arrived: None, slot: None, pending: &mut self.pending };
            let before = port.pending.len();
            self.interface.poll_egress(to_smol(now), &mut port, &mut self.datagrams);
            if port.pending.len() == before {
                break;
            }
        }
        let due = self.interface.poll_at(to_smol(now), &self.datagrams).map(from_smol);
        let soon = if self.pending.is_empty() { now.saturating_add(RETRY) } else { now };
        self.datagrams_due = due.map(|due| due.max(soon));
    }

    fn run_timers(&mut self, now: Instant) {
        while let Some(&Reverse((at, id))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if connection.armed != Some(at) {
                continue;
            }
            connection.armed = None;
            if matches!(connection.owner, Owner::None { until } if until <= now) {
                connection.socket().abort();
            }
            match connection.due {
                Some(due) if due > now => self.arm(id, due),
                _ => self.stir(id),
            }
        }
    }

    /// Puts a connection in the line of those whose turn comes, as it has something to do.
    pub(crate) fn stir(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.queued
        {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    /// After a connection had its turn: when it has the next.
    fn schedule(&mut self, id: Id, now: Instant, has_sent: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let at = self.interface.poll_at(to_smol(now), connection.set()).map(from_smol);
        let until = match connection.owner {
            Owner::None { until } => Some(until),
            _ => None,
        };
        connection.due = [at, until].into_iter().flatten().min();
        match connection.due {
            Some(due) if due <= now && has_sent => self.stir(id),
            Some(due) => self.arm(id, due.max(now.saturating_add(RETRY))),
            None => {}
        }
    }

    fn arm(&mut self, id: Id, due: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.due = Some(due);
        // A timer that comes too early looks again.
        if connection.armed.is_none_or(|armed| due < armed) {
            connection.armed = Some(due);
            self.timers.push(Reverse((due, id)));
        }
    }

    // Connections.

    /// Takes note of what has become of a connection. `reset`: by a segment that says so.
    fn look_at(&mut self, id: Id, reset: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let before = connection.state;
        let state = connection.socket().state();
        connection.state = state;
        let over = state == State::Closed;
        if !connection.established && !over && !matches!(state, State::SynSent | State::SynReceived | State::Listen) {
            connection.establish(&self.options);
            if let Owner::Listener(number) = connection.owner {
                let port = connection.flow.local.port();
                match self.listeners.get_mut(&port).filter(|listener| listener.number == number) {
                    Some(listener) => {
                        listener.half_open = listener.half_open.saturating_sub(1);
                        listener.queue.push_back(id);
                        listener.waker.take().into_iter().for_each(Waker::wake);
                    }
                    None => connection.socket().abort(),
                }
            }
        }
        if over && before != State::Closed {
            let ends_well = matches!(before, State::TimeWait | State::LastAck | State::Closing);
            if connection.failure.is_none() && !ends_well {
                self.counters.failures += 1;
                connection.failure = Some(match (reset, connection.established) {
                    (true, true) => StreamError::Reset,
                    (true, false) => StreamError::Refused,
                    (false, _) => StreamError::TimedOut,
                });
            }
        }
        if state == State::TimeWait && before != State::TimeWait {
            self.time_wait.push_back(id);
            if self.time_wait.len() > MAX_TIME_WAIT
                && let Some(oldest) = self.time_wait.pop_front()
            {
                self.forget(oldest);
            }
        }
        // A listening socket that did not like what opened it, or one that has nothing more to say: an abort has been told first.
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let done = state == State::Listen || (over && connection.socket().remote_endpoint().is_none());
        if done && connection.owner != Owner::Stream {
            self.remove(id);
        } else if done {
            self.release_flow(id);
        }
    }

    /// Ends what only waits for late packets.
    fn forget(&mut self, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.state != State::TimeWait {
            return;
        }
        match connection.owner {
            // What was received may yet be read.
            Owner::Stream => self.release_flow(id),
            _ => self.remove(id),
        }
    }

    /// The flow may be used again.
    fn release_flow(&mut self, id: Id) {
        if let Some(connection) = self.connections.get(&id)
            && self.flows.get(&connection.flow) == Some(&id)
        {
            self.flows.remove(&connection.flow);
        }
    }

    fn remove(&mut self, id: Id) {
        self.release_flow(id);
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Owner::Listener(number) = connection.owner
            && let Some(listener) = self.listeners.get_mut(&connection.flow.local.port())
            && listener.number == number
        {
            if connection.established {
                listener.queue.retain(|queued| *queued != id);
            } else {
                listener.half_open = listener.half_open.saturating_sub(1);
            }
        }
    }

    fn add(&mut self, flow: Flow, owner: Owner) -> Id {
        let id = self.number();
        self.connections.insert(id, Connection::new(flow, owner, &self.options));
        self.flows.insert(flow, id);
        id
    }

    /// A connection from elsewhere. `None`: there is no room for it.
    fn receive_connection(&mut self, flow: Flow) -> Option<Id> {
        let full = self.connections.len() >= self.options.max_connections;
        let listener = self.listeners.get_mut(&flow.local.port())?;
        if full || listener.half_open + listener.queue.len() >= BACKLOG {
            return None;
        }
        listener.half_open += 1;
        let number = listener.number;
        let id = self.add(flow, Owner::Listener(number));
        let local = IpListenEndpoint { addr: Some(flow.local.ip().into()), port: flow.local.port() };
        let socket = self.connections.get_mut(&id)?.socket();
        // It is new, and port 0 has no listener.
        let _ = socket.listen(local);
        self.counters.accepts += 1;
        Some(id)
    }

    /// Begins a connection.
    pub(crate) fn connect(&mut self, remote: SocketAddr) -> Result<(Id, Flow), ConnectError> {
        if self.closed {
            return Err(ConnectError::Closed);
        }
        let ip = remote.ip();
        if remote.port() == 0 || !wire::is_host(ip) {
            return Err(ConnectError::BadRemote(remote));
        }
        if self.is_own(ip) {
            return Err(ConnectError::OwnAddress(remote));
        }
        let local = self.source_for(ip).ok_or(ConnectError::NoAddress { remote: ip })?;
        if self.connections.len() >= self.options.max_connections {
            return Err(ConnectError::TooMany(self.connections.len()));
        }
        let free = |port: &u16| {
            let local = SocketAddr::new(local, *port);
            !self.flows.contains_key(&Flow { local, remote }) && !self.listeners.contains_key(port)
        };
        let port = self.ephemeral_ports().find(free).ok_or(ConnectError::PortsExhausted(remote))?;
        let flow = Flow { local: SocketAddr::new(local, port), remote };
        let id = self.add(flow, Owner::Stream);
        let context = self.interface.context();
        if let Some(connection) = self.connections.get_mut(&id) {
            // It is new, and both ends have been checked.
            let _ = connection.socket().connect(
                context,
                (IpAddress::from(ip), remote.port()),
                (IpAddress::from(local), port),
            );
            connection.state = State::SynSent;
        }
        self.counters.connects += 1;
        self.stir(id);
        Ok((id, flow))
    }

    /// All ports that may be chosen, from a random one on (RFC 6056 section 3.3.1).
    fn ephemeral_ports(&self) -> impl Iterator<Item = u16> + use<> {
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(self.next_number);
        let count = EPHEMERAL.len() as u64;
        let first = hasher.finish() % count;
        (0..count).map(move |n| EPHEMERAL.start() + ((first + n) % count) as u16)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.options.addresses.iter().any(|&(own, _)| own == address)
    }

    /// The own address to send a datagram to `remote` from, if one can be sent there.
    pub(crate) fn datagram_source(&self, remote: IpAddr) -> Option<IpAddr> {
        self.source_for(remote).filter(|_| wire::is_host(remote))
    }

    /// The own address to reach `remote` from: of its network, else the first of its family.
    pub(crate) fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        let same_family = || self.options.addresses.iter().filter(|(own, _)| own.is_ipv4() == remote.is_ipv4());
        let near = same_family().find(|&&(own, prefix)| IpCidr::new(own.into(), prefix).contains_addr(&remote.into()));
        near.or_else(|| same_family().next()).map(|&(own, _)| own)
    }

    /// What a call on a stream works on. `None`: it is gone, as the stack is.
    pub(crate) fn socket(&mut self, id: Id) -> Option<(&mut tcp::Socket<'static>, Option<StreamError>)> {
        let connection = self.connections.get_mut(&id)?;
        let failure = connection.failure;
        Some((connection.socket(), failure))
    }

    /// Whether the handshake is over.
    pub(crate) fn is_established(&self, id: Id) -> bool {
        self.connections.get(&id).is_some_and(|connection| connection.established)
    }

    /// Ends a connection at once: the peer is told so.
    pub(crate) fn abort(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.failure.get_or_insert(StreamError::Closed);
            connection.socket().abort();
            self.stir(id);
        }
    }

    /// Nobody holds a connection any more. It is closed, at once if something was not read (RFC 9293 section 3.6).
    pub(crate) fn release(&mut self, now: Instant, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let until = now.saturating_add(ORPHAN_PATIENCE);
        connection.owner = Owner::None { until };
        if connection.socket().recv_queue() > 0 {
            connection.failure.get_or_insert(StreamError::Closed);
            connection.socket().abort();
        } else {
            connection.socket().close();
        }
        if self.closed {
            self.connections.remove(&id);
            return;
        }
        self.look_at(id, false);
        self.stir(id);
    }

    // Listeners.

    /// Listens on a port, or on one that is free if it is 0. Returns the port.
    pub(crate) fn listen(&mut self, port: u16) -> Result<u16, BindError> {
        if self.closed {
            return Err(BindError::Closed);
        }
        let port = match port {
            0 => {
                let free = |port: &u16| {
                    !self.listeners.contains_key(port) && !self.flows.keys().any(|flow| flow.local.port() == *port)
                };
                self.ephemeral_ports().find(free).ok_or(BindError::PortsExhausted)?
            }
            port if self.listeners.contains_key(&port) => return Err(BindError::InUse(port)),
            port => port,
        };
        let number = self.number();
        self.listeners.insert(port, Listener { number, waker: None, half_open: 0, queue: VecDeque::new() });
        Ok(port)
    }

    /// The next connection that came to a port, or `waker` hears of it. An error: the stack is closed.
    pub(crate) fn accept(&mut self, port: u16, waker: &Waker) -> Result<Option<(Id, Flow)>, StreamError> {
        let listener = self.listeners.get_mut(&port).ok_or(StreamError::StackClosed)?;
        while let Some(id) = listener.queue.pop_front() {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.owner = Owner::Stream;
                return Ok(Some((id, connection.flow)));
            }
        }
        listener.waker = Some(waker.clone());
        Ok(None)
    }

    /// Nobody listens any more: what was not accepted is reset.
    pub(crate) fn stop_listening(&mut self, port: u16) {
        let Some(listener) = self.listeners.remove(&port) else { return };
        let of_it = |connection: &Connection| connection.owner == Owner::Listener(listener.number);
        let ids: Vec<Id> =
            self.connections.iter().filter(|(_, connection)| of_it(connection)).map(|(&id, _)| id).collect();
        ids.into_iter().for_each(|id| self.abort(id));
    }

    // Datagrams.

    /// Adds a datagram socket.
    pub(crate) fn add_datagrams<T: AnySocket<'static>>(&mut self, socket: T) -> SocketHandle {
        self.datagrams.add(socket)
    }

    /// A port for a UDP socket: `port`, or one that is free if it is 0.
    pub(crate) fn udp_port(&self, port: u16) -> Result<u16, BindError> {
        if self.closed {
            return Err(BindError::Closed);
        }
        let used = |port: u16| {
            let sockets = self.datagrams.iter().filter_map(|(_, socket)| udp::Socket::downcast(socket));
            sockets.map(|socket| socket.endpoint().port).any(|used| used == port)
        };
        match port {
            0 => self.ephemeral_ports().find(|&port| !used(port)).ok_or(BindError::PortsExhausted),
            port if used(port) => Err(BindError::InUse(port)),
            port => Ok(port),
        }
    }

    /// An identifier for echo requests.
    pub(crate) fn echo_ident(&mut self) -> u16 {
        let number = self.number();
        self.random.hash_one(number) as u16
    }

    pub(crate) fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.datagrams.get_mut(handle)
    }

    pub(crate) fn icmp(&mut self, handle: SocketHandle) -> &mut icmp::Socket<'static> {
        self.datagrams.get_mut(handle)
    }

    /// What name queries take.
    pub(crate) fn resolver(&mut self) -> (&mut dns::Socket<'static>, &mut smoltcp::iface::Context) {
        (self.datagrams.get_mut(self.resolver), self.interface.context())
    }

    pub(crate) fn remove_datagrams(&mut self, handle: SocketHandle) {
        self.datagrams.remove(handle);
    }

    /// After a call that gave a datagram socket something to do.
    pub(crate) fn stir_datagrams(&mut self, now: Instant) {
        self.datagrams_due = Some(now);
    }
}

fn capabilities(mtu: u32, offload: bool) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = mtu as usize;
    // `wire` does it, for whole packets and for those that are to be cut.
    capabilities.checksum.tcp = Checksum::None;
    if offload {
        // Not IPv6: smoltcp 0.14 drops what it asked to be cut (`dispatch_ip`).
        capabilities.segmentation.tcpv4 = most_uncut_bytes(mtu).and_then(|bytes| NonZero::new(bytes as usize));
    }
    capabilities
}

fn interface(
    addresses: &[(IpAddr, u8)],
    capabilities: &DeviceCapabilities,
    pending: &mut Pending,
    seed: u64,
    now: Instant,
) -> Box<Interface> {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut port = Port { capabilities, arrived: None, slot: None, pending };
    let mut interface = Box::new(Interface::new(config, &mut port, to_smol(now)));
    interface.update_ip_addrs(|own| {
        for &(address, prefix) in addresses {
            // There are as many places as there may be addresses.
            let _ = own.push(IpCidr::new(address.into(), prefix));
        }
    });
    for &(address, _) in addresses {
        // Everything goes into the tunnel, and none of it to a router of its own.
        match address {
            IpAddr::V4(address) => drop(interface.routes_mut().add_default_ipv4_route(address)),
            IpAddr::V6(address) => drop(interface.routes_mut().add_default_ipv6_route(address)),
        }
    }
    interface
}
