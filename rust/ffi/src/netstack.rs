//! Network stacks, and what is open on them.
//!
//! No call waits. One that finds nothing to do answers [`Code::WouldBlock`], and an event comes once it is worth calling again.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use icx_io::ends::MAX_PACKET_BYTES;
use icx_netstack::{
    BindError, Congestion, ConnectError, DatagramError, Echo, Resolution, ResolveError, Stack, StackCounters,
    StackDevice, StackOptions, StreamError, TcpListener, TcpStream, UdpSocket,
};
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::device::{DeviceSlot, require_room, verdict};
use crate::engine::{self, IcxPacket};
use crate::error::{Failure, Outcome, code_of};
use crate::events::{Bell, Kind};
use crate::guard::Call;
use crate::handle::{self, Reservation, Resource, lock};
use crate::json::{self, InterfaceAddress, Text};

/// A stack. Its device is in there until a pump takes it over.
pub(crate) struct StackHandle {
    stack: Stack,
    pub(crate) device: DeviceSlot<StackDevice>,
}

impl StackHandle {
    /// The stack, for whoever else uses it.
    pub(crate) fn stack(&self) -> Stack {
        self.stack.clone()
    }

    /// Ends everything on the stack at once.
    pub(crate) fn close(&self) {
        self.stack.close();
        self.device.close();
    }
}

fn stack_of(call: &Call, stack: u32) -> Outcome<Stack> {
    Ok(call.get::<StackHandle>(stack)?.stack())
}

/// Something on a stack that is called again when its bell has rung.
pub(crate) struct OnStack<T> {
    object: T,
    bell: Bell,
}

impl<T> OnStack<T> {
    /// No event comes any more.
    pub(crate) fn silence(&self) {
        self.bell.silence();
    }
}

pub(crate) type StreamHandle = OnStack<TcpStream>;
pub(crate) type ListenerHandle = OnStack<TcpListener>;
pub(crate) type DatagramHandle = OnStack<UdpSocket>;
pub(crate) type EchoHandle = OnStack<Echo>;
/// The query until it has ended.
pub(crate) type ResolutionHandle = OnStack<Mutex<Option<Resolution>>>;

/// Opens a handle for what `make` makes; without room for one, nothing is made.
fn open<T>(make: impl FnOnce() -> Outcome<T>) -> Outcome<u32>
where
    OnStack<T>: Resource,
{
    let reservation = handle::reserve()?;
    let object = make()?;
    Ok(admit(reservation, object))
}

fn admit<T>(reservation: Reservation, object: T) -> u32
where
    OnStack<T>: Resource,
{
    let bell = Bell::new(reservation.id());
    reservation.open(Arc::new(OnStack { object, bell }))
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CongestionOptions {
    Cubic,
    Reno,
    None,
}

impl From<CongestionOptions> for Congestion {
    fn from(congestion: CongestionOptions) -> Self {
        match congestion {
            CongestionOptions::Cubic => Congestion::Cubic,
            CongestionOptions::Reno => Congestion::Reno,
            CongestionOptions::None => Congestion::None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OpenOptions {
    addresses: Vec<Text<InterfaceAddress>>,
    mtu: u32,
    queues: Option<NonZero<u16>>,
    receive_buffer_bytes: Option<u32>,
    send_buffer_bytes: Option<u32>,
    congestion: Option<CongestionOptions>,
    max_connections: Option<u32>,
    connect_timeout_ms: Option<u32>,
    user_timeout_ms: Option<u32>,
    keep_alive_ms: Option<u32>,
    #[serde(default)]
    name_servers: Vec<Text<IpAddr>>,
}

impl From<OpenOptions> for StackOptions {
    fn from(given: OpenOptions) -> Self {
        let millis = |ms: u32| Duration::from_millis(ms.into());
        let addresses = given.addresses.iter().map(|address| (address.0.addr, address.0.prefix_len)).collect();
        let usual = StackOptions::new(addresses, given.mtu);
        StackOptions {
            queues: given.queues.unwrap_or(usual.queues),
            receive_buffer: given.receive_buffer_bytes.map_or(usual.receive_buffer, |bytes| bytes as usize),
            send_buffer: given.send_buffer_bytes.map_or(usual.send_buffer, |bytes| bytes as usize),
            congestion: given.congestion.map_or(usual.congestion, Congestion::from),
            max_connections: given.max_connections.map_or(usual.max_connections, |count| count as usize),
            connect_timeout: given.connect_timeout_ms.map_or(usual.connect_timeout, millis),
            user_timeout: given.user_timeout_ms.map_or(usual.user_timeout, millis),
            keep_alive: match given.keep_alive_ms {
                Some(0) => None,
                Some(ms) => Some(millis(ms)),
                None => usual.keep_alive,
            },
            name_servers: given.name_servers.iter().map(|server| server.0).collect(),
            ..usual
        }
    }
}

pub(crate) fn open_stack(_: &Call, text: &[u8]) -> Outcome<u32> {
    let options: OpenOptions = json::parse(text)?;
    let (stack, device) = Stack::open(options.into())
        .map_err(|error| Failure::of(code_of(&error, Code::Invalid), "open the network stack", &error))?;
    handle::open(StackHandle { stack, device: DeviceSlot::new(device) })
}

#[derive(Serialize)]
struct StackInfo {
    addresses: Vec<String>,
    mtu: u32,
}

pub(crate) fn stack_info(call: &Call, stack: u32) -> Outcome<String> {
    let stack = stack_of(call, stack)?;
    let addresses = stack.addresses().iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect();
    json::text(&StackInfo { addresses, mtu: stack.mtu() })
}

/// In the order of [`stack_counters`].
const COUNTER_NAMES: [&str; 7] =
    ["connections", "connects", "accepts", "failures", "refused", "bad_packets", "overflows"];

pub(crate) fn stack_counter_names() -> Outcome<String> {
    json::text(&COUNTER_NAMES)
}

pub(crate) fn stack_counters(call: &Call, stack: u32) -> Outcome<[u64; COUNTER_NAMES.len()]> {
    let StackCounters { connections, connects, accepts, failures, refused, bad_packets, overflows } =
        stack_of(call, stack)?.counters();
    Ok([connections, connects, accepts, failures, refused, bad_packets, overflows])
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectOptions {
    remote: Text<SocketAddr>,
}

pub(crate) fn connect(call: &Call, stack: u32, text: &[u8]) -> Outcome<u32> {
    let stack = stack_of(call, stack)?;
    let remote = json::parse::<ConnectOptions>(text)?.remote.0;
    open(|| stack.connect(remote).map_err(|error| connect_failure(remote, &error)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortOptions {
    port: u16,
}

pub(crate) fn listen(call: &Call, stack: u32, text: &[u8]) -> Outcome<u32> {
    let stack = stack_of(call, stack)?;
    let PortOptions { port } = json::parse(text)?;
    open(|| stack.listen(port).map_err(|error| bind_failure(format_args!("listen on port {port}"), &error)))
}

#[derive(Serialize)]
struct PortInfo {
    port: u16,
}

pub(crate) fn listener_info(call: &Call, listener: u32) -> Outcome<String> {
    json::text(&PortInfo { port: call.get::<ListenerHandle>(listener)?.object.port() })
}

/// The next connection. [`Code::WouldBlock`]: event 2 comes once there is one.
pub(crate) fn accept(call: &Call, listener: u32) -> Outcome<u32> {
    let handle = call.get::<ListenerHandle>(listener)?;
    // First, lest a connection is accepted for which there is no handle.
    let reservation = handle::reserve()?;
    match handle.object.poll_accept(handle.bell.waker(Kind::Readable)) {
        Poll::Ready(Ok(stream)) => Ok(admit(reservation, stream)),
        Poll::Ready(Err(error)) => Err(stream_failure("accept a connection", &error)),
        Poll::Pending => Err(would_block()),
    }
}

#[derive(Serialize)]
struct StreamInfo {
    local: SocketAddr,
    remote: SocketAddr,
}

pub(crate) fn stream_info(call: &Call, stream: u32) -> Outcome<String> {
    let stream = &call.get::<StreamHandle>(stream)?.object;
    json::text(&StreamInfo { local: stream.local_addr(), remote: stream.remote_addr() })
}

/// Whether the connection is there. [`Code::WouldBlock`]: event 3 comes once that is known.
pub(crate) fn connected(call: &Call, stream: u32) -> Outcome<i32> {
    let handle = call.get::<StreamHandle>(stream)?;
    let connected = handle.object.poll_connected(handle.bell.waker(Kind::Writable)).map_ok(|()| 0);
    answer(connected, |error| stream_failure(format_args!("connect to {}", handle.object.remote_addr()), error))
}

/// Reads to the start of `output`. [`Code::WouldBlock`]: event 2 comes once there is something.
pub(crate) fn read(call: &Call, stream: u32, output: &mut [u8]) -> Outcome<i32> {
    let handle = call.get::<StreamHandle>(stream)?;
    let received = handle.object.poll_recv(output, handle.bell.waker(Kind::Readable)).map_ok(engine::processed);
    answer(received, |error| stream_failure(format_args!("read from {}", handle.object.remote_addr()), error))
}

/// Takes bytes from the start of `input`. [`Code::WouldBlock`]: event 3 comes once there is room.
pub(crate) fn write(call: &Call, stream: u32, input: &[u8]) -> Outcome<i32> {
    let handle = call.get::<StreamHandle>(stream)?;
    let taken = handle.object.poll_send(input, handle.bell.waker(Kind::Writable)).map_ok(engine::processed);
    answer(taken, |error| stream_failure(format_args!("write to {}", handle.object.remote_addr()), error))
}

pub(crate) fn close_send(call: &Call, stream: u32) -> Outcome<i32> {
    let handle = call.get::<StreamHandle>(stream)?;
    handle
        .object
        .close_send()
        .map_err(|error| stream_failure(format_args!("end sending to {}", handle.object.remote_addr()), &error))?;
    Ok(0)
}

pub(crate) fn abort(call: &Call, stream: u32) -> Outcome<i32> {
    call.get::<StreamHandle>(stream)?.object.abort();
    Ok(0)
}

pub(crate) fn open_datagram(call: &Call, stack: u32, text: &[u8]) -> Outcome<u32> {
    let stack = stack_of(call, stack)?;
    let PortOptions { port } = json::parse(text)?;
    let what = format_args!("receive datagrams on port {port}");
    open(|| stack.bind_datagram(port).map_err(|error| bind_failure(what, &error)))
}

pub(crate) fn datagram_info(call: &Call, socket: u32) -> Outcome<String> {
    json::text(&PortInfo { port: call.get::<DatagramHandle>(socket)?.object.port() })
}

/// Receives datagrams to the start of `output`. None: event 2 comes once there are some.
pub(crate) fn receive_datagrams(
    call: &Call,
    socket: u32,
    packets: &mut [IcxPacket],
    output: &mut [u8],
) -> Outcome<i32> {
    let handle = call.get::<DatagramHandle>(socket)?;
    require_room(output)?;
    let waker = handle.bell.waker(Kind::Readable);
    let (mut count, mut used) = (0, 0);
    for packet in packets {
        // Whole: none is longer than this.
        let room = &mut output[used..];
        if room.len() < MAX_PACKET_BYTES {
            break;
        }
        match handle.object.poll_recv_from(room, waker) {
            Poll::Ready(Ok((length, from))) => {
                let (addr, port) = (engine::octets_of(from.ip()), from.port());
                *packet = IcxPacket { addr, port, ..engine::placed_at(&(used..used + length)) };
                used += length;
                count += 1;
            }
            // Before a failure, what was received is handed out; the failure comes again.
            Poll::Ready(Err(error)) if count == 0 => return Err(datagram_failure("receive datagrams", &error)),
            Poll::Ready(Err(_)) | Poll::Pending => break,
        }
    }
    Ok(engine::processed(count))
}

/// Sends datagrams, as many as there is room for; event 3 comes once there is room for the next. One that cannot be sent is refused.
pub(crate) fn send_datagrams(call: &Call, socket: u32, input: &[u8], packets: &mut [IcxPacket]) -> Outcome<i32> {
    let handle = call.get::<DatagramHandle>(socket)?;
    engine::check_ranges(input, packets)?;
    let waker = handle.bell.waker(Kind::Writable);
    let mut done = 0;
    for packet in packets {
        let Some(payload) = engine::frame(input, packet) else { break };
        let to = SocketAddr::new(engine::ip_of(packet.addr), packet.port);
        match handle.object.poll_send_to(payload, to, waker) {
            Poll::Ready(Ok(())) => packet.verdict = verdict(true),
            Poll::Ready(Err(error @ DatagramError::StackClosed)) => {
                // What was taken is told of; the failure comes again.
                if done > 0 {
                    break;
                }
                return Err(datagram_failure("send datagrams", &error));
            }
            Poll::Ready(Err(_)) => packet.verdict = verdict(false),
            Poll::Pending => break,
        }
        done += 1;
    }
    Ok(engine::processed(done))
}

pub(crate) fn open_echo(call: &Call, stack: u32) -> Outcome<u32> {
    let stack = stack_of(call, stack)?;
    open(|| stack.echo().map_err(|error| bind_failure("send echo requests", &error)))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EchoRequest {
    to: Text<IpAddr>,
    sequence: u16,
    payload_bytes: u16,
}

pub(crate) fn send_echo(call: &Call, echo: u32, text: &[u8]) -> Outcome<i32> {
    let handle = call.get::<EchoHandle>(echo)?;
    let EchoRequest { to, sequence, payload_bytes } = json::parse(text)?;
    let payload: Vec<u8> = (0..payload_bytes).map(|at| at as u8).collect();
    let sent = handle.object.send(to.0, sequence, &payload);
    match sent.map_err(|error| datagram_failure("send an echo request", &error))? {
        true => Ok(0),
        false => Err(Failure::new(Code::Busy, "Cannot send an echo request: there is no room for it at the moment")),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EchoReply {
    from: IpAddr,
    sequence: u16,
    payload_bytes: usize,
}

/// The next reply. [`Code::WouldBlock`]: event 2 comes once there is one.
pub(crate) fn receive_echo(call: &Call, echo: u32) -> Outcome<String> {
    let handle = call.get::<EchoHandle>(echo)?;
    let reply = handle.object.poll_reply(handle.bell.waker(Kind::Readable));
    let icx_netstack::EchoReply { from, sequence, len } =
        answer(reply, |error| datagram_failure("receive echo replies", error))?;
    json::text(&EchoReply { from, sequence, payload_bytes: len })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResolveQuestion {
    name: String,
    family: QueryFamily,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum QueryFamily {
    Ipv4,
    Ipv6,
}

pub(crate) fn resolve(call: &Call, stack: u32, text: &[u8]) -> Outcome<u32> {
    let stack = stack_of(call, stack)?;
    let ResolveQuestion { name, family } = json::parse(text)?;
    open(|| Ok(Mutex::new(Some(stack.resolve(&name, family == QueryFamily::Ipv6)))))
}

/// The answer, once. [`Code::WouldBlock`]: event 2 comes once there is one.
pub(crate) fn resolved(call: &Call, resolution: u32) -> Outcome<String> {
    let handle = call.get::<ResolutionHandle>(resolution)?;
    let mut query = lock(&handle.object);
    let pending =
        query.as_mut().ok_or_else(|| Failure::new(Code::State, "Cannot ask again: the name has been answered"))?;
    let answered = Pin::new(pending).poll(&mut Context::from_waker(handle.bell.waker(Kind::Readable)));
    if answered.is_ready() {
        *query = None;
    }
    json::text(&answer(answered, resolve_failure)?)
}

/// What a poll came to, as calls answer it.
fn answer<T, E>(poll: Poll<Result<T, E>>, failure: impl FnOnce(&E) -> Failure) -> Outcome<T> {
    match poll {
        Poll::Ready(result) => result.map_err(|error| failure(&error)),
        Poll::Pending => Err(would_block()),
    }
}

/// Without a text: it is part of the normal course.
fn would_block() -> Failure {
    Failure::new(Code::WouldBlock, String::new())
}

fn connect_failure(remote: SocketAddr, error: &ConnectError) -> Failure {
    let code = match error {
        ConnectError::BadRemote(_) | ConnectError::OwnAddress(_) | ConnectError::PortsExhausted(_) => {
            Code::AddressNotAvailable
        }
        ConnectError::NoAddress { .. } => Code::Unreachable,
        ConnectError::TooMany(_) => Code::Busy,
        ConnectError::Closed => Code::Closed,
        _ => Code::State,
    };
    Failure::of(code, format_args!("connect to {remote}"), error)
}

fn bind_failure(what: impl std::fmt::Display, error: &BindError) -> Failure {
    let code = match error {
        BindError::InUse(_) => Code::AddressInUse,
        BindError::NotOwn(_) | BindError::PortsExhausted => Code::AddressNotAvailable,
        BindError::Closed => Code::Closed,
        _ => Code::State,
    };
    Failure::of(code, what, error)
}

fn stream_failure(what: impl std::fmt::Display, error: &StreamError) -> Failure {
    let code = match error {
        StreamError::Refused => Code::Refused,
        StreamError::TimedOut => Code::TimedOut,
        StreamError::Reset => Code::Reset,
        StreamError::SendClosed => Code::SendClosed,
        StreamError::Closed => Code::NotConnected,
        StreamError::StackClosed => Code::Closed,
        _ => Code::State,
    };
    Failure::of(code, what, error)
}

fn datagram_failure(what: impl std::fmt::Display, error: &DatagramError) -> Failure {
    let code = match error {
        DatagramError::BadRemote(_) => Code::AddressNotAvailable,
        DatagramError::TooLong { .. } => Code::Invalid,
        DatagramError::StackClosed => Code::Closed,
        _ => Code::State,
    };
    Failure::of(code, what, error)
}

fn resolve_failure(error: &ResolveError) -> Failure {
    let code = match error {
        ResolveError::NoServer(_) => Code::State,
        ResolveError::BadName(_) => Code::Invalid,
        ResolveError::NotFound(_) => Code::NotFound,
        ResolveError::StackClosed => Code::Closed,
        _ => Code::State,
    };
    Failure::of(code, "resolve a name", error)
}
