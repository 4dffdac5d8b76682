use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use icx_proto::wire::traffic_class::TrafficClass;

/// Sets a socket option whose value is one `int`.
///
/// `setsockopt(2)`; which capability it needs, and its errors, are those of the option (socket(7), ip(7), ipv6(7)).
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which the kernel reads during the call only.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An internet socket address as the kernel lays it out.
#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

const V4_NAME_BYTES: libc::socklen_t = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
const V6_NAME_BYTES: libc::socklen_t = mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t;

impl Name {
    const UNSPECIFIED: Name = Name {
        v6: libc::sockaddr_in6 {
            sin6_family: libc::AF_UNSPEC as libc::sa_family_t,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        },
    };

    fn encode(address: SocketAddr) -> (Name, libc::socklen_t) {
        match address {
            SocketAddr::V4(v4) => {
                let name = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (Name { v4: name }, V4_NAME_BYTES)
            }
            SocketAddr::V6(v6) => {
                let name = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                (Name { v6: name }, V6_NAME_BYTES)
            }
        }
    }

    /// The address in the first `length` bytes; `None` when they are not one of the internet families.
    fn decode(&self, length: libc::socklen_t) -> Option<SocketAddr> {
        // SAFETY: every variant starts with the family, and all bytes of the union are always initialised (see
        // `UNSPECIFIED` and `encode`; the kernel only overwrites).
        let family = libc::c_int::from(unsafe { self.family });
        match family {
            libc::AF_INET if length >= V4_NAME_BYTES => {
                // SAFETY: all bytes are initialised, and every bit pattern is a valid sockaddr_in.
                let name = unsafe { self.v4 };
                let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
            }
            libc::AF_INET6 if length >= V6_NAME_BYTES => {
                // SAFETY: all bytes are initialised, and every bit pattern is a valid sockaddr_in6.
                let name = unsafe { self.v6 };
                let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(ip, u16::from_be(name.sin6_port), 0, name.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: mmsghdr is integers and pointers (and padding): all zeros is a valid value, with no name, data or control.
    unsafe { mem::zeroed() }
}

/// One control message with a value of up to eight bytes, as the kernel lays it out.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    value: [u8; 8],
}

/// `CMSG_LEN` of nothing: where the value starts.
// SAFETY: the macro computes with numbers only.
const CONTROL_HEADER: usize = unsafe { libc::CMSG_LEN(0) } as usize;

const _: () = assert!(mem::offset_of!(Control, value) == CONTROL_HEADER);

/// `CMSG_SPACE` of an `int`: how far the kernel steps from one control message to the next. It is the same for every value here.
// SAFETY: the macro computes with numbers only.
const CONTROL_SPACE: usize = unsafe { libc::CMSG_SPACE(mem::size_of::<libc::c_int>() as libc::c_uint) } as usize;

const _: () = assert!(mem::size_of::<Control>() == CONTROL_SPACE);

impl Control {
    fn empty() -> Control {
        // SAFETY: cmsghdr is integers (and padding): all zeros is a valid value, of a message without a header.
        Control { header: unsafe { mem::zeroed() }, value: [0; 8] }
    }

    fn new<const N: usize>(level: libc::c_int, kind: libc::c_int, value: [u8; N]) -> Control {
        let mut control = Control::empty();
        control.header.cmsg_len = CONTROL_HEADER + N;
        control.header.cmsg_level = level;
        control.header.cmsg_type = kind;
        control.value[..N].copy_from_slice(&value);
        control
    }

    /// `UDP_SEGMENT` with its unsigned short.
    fn segment(size: u16) -> Control {
        Control::new(libc::SOL_UDP, libc::UDP_SEGMENT, size.to_ne_bytes())
    }

    /// `IP_TOS` for what leaves as IPv4, from whichever socket, else `IPV6_TCLASS`, each with an `int`: `ip_cmsg_send` in
    /// net/ipv4/ip_sockglue.c, `ip6_datagram_send_ctl` in net/ipv6/datagram.c.
    fn traffic_class(class: TrafficClass, to: SocketAddr) -> Control {
        let value = libc::c_int::from(class.get()).to_ne_bytes();
        match to.ip().to_canonical() {
            IpAddr::V4(_) => Control::new(libc::IPPROTO_IP, libc::IP_TOS, value),
            IpAddr::V6(_) => Control::new(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, value),
        }
    }

    /// The value as an `int`.
    fn int(&self) -> libc::c_int {
        let [a, b, c, d, ..] = self.value;
        libc::c_int::from_ne_bytes([a, b, c, d])
    }
}

/// Beside one message: how it is, or was, made of datagrams, and its traffic class.
type Controls = [Control; 2];

/// The datagrams' size, where the kernel merged them, and their traffic class from the first `length` bytes, which it wrote.
fn decode(controls: &Controls, length: usize) -> (Option<usize>, TrafficClass) {
    let (mut segment_size, mut class) = (None, TrafficClass::ZERO);
    for control in controls.iter().take(length / CONTROL_SPACE) {
        match (control.header.cmsg_level, control.header.cmsg_type) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                segment_size = usize::try_from(control.int()).ok().filter(|size| *size > 0);
            }
            // One byte: `ip_cmsg_recv_tos` in net/ipv4/ip_sockglue.c.
            (libc::IPPROTO_IP, libc::IP_TOS) => class = TrafficClass::new(control.value[0]),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => class = TrafficClass::new(control.int() as u8),
            _ => {}
        }
    }
    (segment_size, class)
}

/// One message to be sent: a datagram, or several of one size back to back, of which the last may be shorter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) to: SocketAddr,
    pub(crate) payload: &'a [u8],
    /// Where the kernel is to cut (`UDP_SEGMENT`); `None` for one datagram.
    pub(crate) segment_size: Option<u16>,
    /// Of the IP header; zero is what the socket has by itself.
    pub(crate) traffic_class: TrafficClass,
}

/// Room for the headers of one [`sendmmsg`], reused from call to call. The headers hold pointers, which are written anew in each
/// call and followed in that call only.
pub(crate) struct SendHeaders {
    names: Box<[(Name, libc::socklen_t)]>,
    pieces: Box<[libc::iovec]>,
    controls: Box<[Controls]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: no pointer in the headers is followed but in the call that wrote it, which borrows all of this mutably.
unsafe impl Send for SendHeaders {}

impl SendHeaders {
    pub(crate) fn new(capacity: usize) -> Self {
        SendHeaders {
            names: vec![(Name::UNSPECIFIED, 0); capacity].into(),
            pieces: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; capacity].into(),
            controls: vec![[Control::empty(); 2]; capacity].into(),
            headers: vec![empty_header(); capacity].into(),
        }
    }
}

/// Sends messages in order without blocking; returns how many the kernel took, at least one. Messages beyond the
/// capacity of `headers` are left for the next call.
///
/// `sendmmsg(2)`; needs no capability. An error is that of the first message: nothing was sent. EAGAIN: wait until the
/// socket is writable. Others belong to that one message (EMSGSIZE, ENETUNREACH, EHOSTUNREACH, EPERM from a firewall,
/// ENOBUFS, …) or to the socket. With a segment size also, from `udp_send_skb` in net/ipv4/udp.c: EIO (the route or the
/// device cannot have segments cut), EINVAL (more segments than the kernel knows, no checksums on this socket, or
/// segments beyond the MTU, for which newer kernels say EMSGSIZE); none of its datagrams has been sent then.
pub(crate) fn sendmmsg<'a>(
    socket: BorrowedFd<'_>,
    headers: &mut SendHeaders,
    messages: impl Iterator<Item = Outgoing<'a>>,
) -> io::Result<usize> {
    let mut count = 0;
    let slots = headers.names.iter_mut().zip(&mut headers.pieces).zip(&mut headers.controls).zip(&mut headers.headers);
    for (outgoing, (((name, piece), controls), header)) in messages.zip(slots) {
        let Outgoing { to, payload, segment_size, traffic_class } = outgoing;
        *name = Name::encode(to);
        *piece = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
        header.msg_hdr.msg_name = (&raw mut name.0).cast();
        header.msg_hdr.msg_namelen = name.1;
        header.msg_hdr.msg_iov = piece;
        header.msg_hdr.msg_iovlen = 1;
        let class = (traffic_class != TrafficClass::ZERO).then(|| Control::traffic_class(traffic_class, to));
        let needed = segment_size.map(Control::segment).into_iter().chain(class);
        let filled = controls.iter_mut().zip(needed).map(|(slot, control)| *slot = control).count();
        (header.msg_hdr.msg_control, header.msg_hdr.msg_controllen) = match filled {
            0 => (std::ptr::null_mut(), 0),
            _ => ((&raw mut *controls).cast(), filled * CONTROL_SPACE),
        };
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` headers were just filled in with pointers to a name, one iovec, a payload and perhaps
    // control messages that are borrowed until the end of this function; the kernel only reads payloads in a send, and
    // count ≤ headers.len().
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), headers.headers.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT as _)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// One message of a [`ReceiveBatch`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    /// What fitted the slot: one datagram, or several that the kernel merged.
    pub(crate) payload: &'a [u8],
    /// The bytes of each datagram in `payload`, but for the last, which may be shorter. At least 1.
    pub(crate) stride: usize,
    /// `None` when the kernel gave no internet address.
    pub(crate) from: Option<SocketAddr>,
    /// Of the IP header, where the socket was asked to tell it.
    pub(crate) traffic_class: TrafficClass,
    /// There was more than fits the slot; the end is lost.
    pub(crate) truncated: bool,
}

impl Received<'_> {
    /// How many datagrams it is.
    pub(crate) fn datagrams(&self) -> usize {
        self.payload.len().div_ceil(self.stride).max(1)
    }
}

/// Buffers and headers of one [`recvmmsg`], reused from call to call, as [`SendHeaders`].
pub(crate) struct ReceiveBatch {
    buffer: Box<[u8]>,
    slot_bytes: usize,
    names: Box<[Name]>,
    pieces: Box<[libc::iovec]>,
    controls: Box<[Controls]>,
    headers: Box<[libc::mmsghdr]>,
    received: usize,
}

// SAFETY: as for [`SendHeaders`]; what was received is read from the buffer itself.
unsafe impl Send for ReceiveBatch {}

impl ReceiveBatch {
    /// `slots` messages of at most `slot_bytes` each. Memory becomes resident only as far as messages reach.
    pub(crate) fn new(slots: usize, slot_bytes: usize) -> Self {
        ReceiveBatch {
            buffer: vec![0; slots * slot_bytes].into(),
            slot_bytes,
            names: vec![Name::UNSPECIFIED; slots].into(),
            pieces: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; slots].into(),
            controls: vec![[Control::empty(); 2]; slots].into(),
            headers: vec![empty_header(); slots].into(),
            received: 0,
        }
    }

    /// The messages of the last [`recvmmsg`], in the order of arrival.
    pub(crate) fn messages(&self) -> impl Iterator<Item = Received<'_>> {
        let slots = self.buffer.chunks_exact(self.slot_bytes).zip(&self.names).zip(&self.controls).zip(&self.headers);
        slots.take(self.received).map(|(((slot, name), controls), header)| {
            let payload = &slot[..slot.len().min(header.msg_len as usize)];
            let (stride, traffic_class) = decode(controls, header.msg_hdr.msg_controllen);
            Received {
                payload,
                stride: stride.unwrap_or(payload.len()).max(1),
                from: name.decode(header.msg_hdr.msg_namelen),
                traffic_class,
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            }
        })
    }
}

/// Receives as many messages as are there and fit `limit` slots of the batch, without blocking; returns how many. On
/// error the batch is empty.
///
/// `recvmmsg(2)`; needs no capability. Errors: EAGAIN (none there), EINTR, or a pending error of the socket.
pub(crate) fn recvmmsg(socket: BorrowedFd<'_>, batch: &mut ReceiveBatch, limit: usize) -> io::Result<usize> {
    batch.received = 0;
    let slots = batch.buffer.chunks_exact_mut(batch.slot_bytes).take(limit);
    let headers = batch.names.iter_mut().zip(&mut batch.pieces).zip(&mut batch.controls).zip(&mut batch.headers);
    let mut count = 0;
    for (slot, (((name, piece), controls), header)) in slots.zip(headers) {
        *name = Name::UNSPECIFIED;
        *piece = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
        header.msg_hdr.msg_name = (&raw mut *name).cast();
        header.msg_hdr.msg_namelen = mem::size_of::<Name>() as libc::socklen_t;
        header.msg_hdr.msg_iov = piece;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = (&raw mut *controls).cast();
        header.msg_hdr.msg_controllen = mem::size_of::<Controls>();
        header.msg_hdr.msg_flags = 0;
        header.msg_len = 0;
        count += 1;
    }
    // SAFETY: the first `count` headers were just filled in with pointers to a name, one iovec, a slot of the buffer and
    // a control buffer, all distinct and exclusively borrowed until the end of this function; a NULL timeout means none.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            batch.headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    match usize::try_from(received) {
        Ok(received) => {
            batch.received = received;
            Ok(received)
        }
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Who found that a datagram could not be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorOrigin {
    /// This host, when it was to be sent.
    Local,
    /// ICMP and ICMPv6 messages.
    Icmp,
    Icmpv6,
    Other,
}

/// What is told of a datagram that was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketError<'a> {
    pub(crate) origin: ErrorOrigin,
    pub(crate) errno: u32,
    /// Type and code of the ICMP message.
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// The MTU, where the error is about that.
    pub(crate) info: u32,
    /// Where the datagram was to go; `None` when the kernel gave no internet address.
    pub(crate) to: Option<SocketAddr>,
    /// What the message quotes of its UDP payload, as far as there is room; nothing of errors of this host.
    pub(crate) quote: &'a [u8],
}

/// Room for the control messages of an error: that itself with the address of who sent the ICMP message, and what else the
/// socket asked for, such as the traffic class.
#[repr(align(8))]
struct ErrorControls([u8; 256]);

/// Room for one error of a socket, and as much of a quote as is looked at.
pub(crate) struct ErrorSlot {
    quote: [u8; Self::QUOTE_BYTES],
}

impl ErrorSlot {
    const QUOTE_BYTES: usize = 64;

    pub(crate) const fn new() -> Self {
        ErrorSlot { quote: [0; Self::QUOTE_BYTES] }
    }
}

/// The error among the control messages of `header`, which the kernel has just written to `controls`; one without an origin when
/// there is none.
fn extended_error(header: &libc::msghdr, controls: &ErrorControls) -> libc::sock_extended_err {
    const LENGTH: usize = CONTROL_HEADER + mem::size_of::<libc::sock_extended_err>();
    let start = (&raw const controls.0).addr();
    // SAFETY: only the fields of `header` are looked at.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        let at = next.addr() - start;
        // SAFETY: a header that the two macros give lies whole within the `msg_controllen` bytes that the kernel wrote.
        let control = unsafe { next.read_unaligned() };
        let is_error = matches!(
            (control.cmsg_level, control.cmsg_type),
            (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
        );
        if is_error && control.cmsg_len >= LENGTH && at + LENGTH <= controls.0.len() {
            let value = next.wrapping_byte_add(CONTROL_HEADER).cast::<libc::sock_extended_err>();
            // SAFETY: the value is behind its header, within `controls` by the check above, and integers throughout.
            return unsafe { value.read_unaligned() };
        }
        // SAFETY: `next` is a header among those of `header`; its length is looked at, and nothing behind `msg_controllen`.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    // SAFETY: integers throughout, for which all zeros is a valid value; origin 0 is SO_EE_ORIGIN_NONE.
    unsafe { mem::zeroed() }
}

/// Takes the next error of a socket that has `IP_RECVERR` or `IPV6_RECVERR`, without blocking; `None`: there is none.
///
/// `recvmsg(2)` with `MSG_ERRQUEUE`; needs no capability. Errors: EINTR, ENOMEM. The errno of what is taken is also what the next
/// send or receive fails with, once, where it came with ICMP (`sk_err`; `__udp4_lib_err` in net/ipv4/udp.c); what this host says
/// itself has failed the send that it is about.
pub(crate) fn receive_error<'a>(
    socket: BorrowedFd<'_>,
    slot: &'a mut ErrorSlot,
) -> io::Result<Option<SocketError<'a>>> {
    let mut name = Name::UNSPECIFIED;
    let mut controls = ErrorControls([0; 256]);
    let mut piece = libc::iovec { iov_base: slot.quote.as_mut_ptr().cast(), iov_len: slot.quote.len() };
    let mut header = empty_header().msg_hdr;
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = mem::size_of::<Name>() as libc::socklen_t;
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut controls).cast();
    header.msg_controllen = mem::size_of::<ErrorControls>();
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header has pointers to a name, one iovec into the slot and a control buffer, all distinct, exclusively
    // borrowed and with their lengths, until the end of the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let Ok(length) = usize::try_from(received) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    };
    let error = extended_error(&header, &controls);
    let origin = match error.ee_origin {
        libc::SO_EE_ORIGIN_LOCAL => ErrorOrigin::Local,
        libc::SO_EE_ORIGIN_ICMP => ErrorOrigin::Icmp,
        libc::SO_EE_ORIGIN_ICMP6 => ErrorOrigin::Icmpv6,
        _ => ErrorOrigin::Other,
    };
    Ok(Some(SocketError {
        origin,
        errno: error.ee_errno,
        kind: error.ee_type,
        code: error.ee_code,
        info: error.ee_info,
        to: name.decode(header.msg_namelen),
        quote: &slot.quote[..length.min(ErrorSlot::QUOTE_BYTES)],
    }))
}
