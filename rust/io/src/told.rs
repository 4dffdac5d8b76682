//! What is told of datagrams that were sent: by ICMP, and by this host when they leave.
//!
//! With `IP_RECVERR` such news lie in a socket's error queue. Those that came with ICMP, forged ones among them, fail the next send
//! or receive on the socket in addition, once (`__udp4_lib_err` in net/ipv4/udp.c, `sock_alloc_send_pskb` and `__skb_recv_udp`),
//! which therefore has to be done again.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::sys::{self, ErrorOrigin, ErrorSlot, SocketError};

/// How many news of one socket are read in one [`WINDOW`]. Who floods it with more makes it deaf until the next.
const MOST: u32 = 64;

/// How often sockets begin to count anew.
pub(crate) const WINDOW: Duration = Duration::from_millis(100);

/// RFC 792, RFC 1191 section 4: destination unreachable, fragmentation needed.
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_FRAGMENTATION_NEEDED: u8 = 4;
/// RFC 4443 section 3.2; its code means nothing.
const ICMPV6_TOO_BIG: u8 = 2;

/// What is told of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told<'a> {
    /// It did not fit: its way carries IP packets of up to `mtu` bytes. `quote` is the start of its payload as ICMP has it;
    /// `None`: this host says so.
    TooBig { to: IpAddr, mtu: u32, quote: Option<&'a [u8]> },
    /// That it did not arrive, for another reason.
    Lost,
}

impl<'a> Told<'a> {
    fn from(error: SocketError<'a>) -> Self {
        let quote = match (error.origin, error.kind, error.code) {
            (ErrorOrigin::Icmp, ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED) => Some(error.quote),
            (ErrorOrigin::Icmpv6, ICMPV6_TOO_BIG, _) => Some(error.quote),
            (ErrorOrigin::Local, ..) if error.errno == libc::EMSGSIZE as u32 => None,
            _ => return Told::Lost,
        };
        match error.to {
            Some(to) => Told::TooBig { to: to.ip().to_canonical(), mtu: error.info, quote },
            None => Told::Lost,
        }
    }
}

/// Hears what is told.
pub(crate) type Hear<'a> = dyn FnMut(Told<'_>) + 'a;

/// The error queue of one socket.
#[derive(Debug)]
pub(crate) struct ErrorQueue {
    is_ipv6: bool,
    /// How many have been read, and how many had been when the window began.
    read: AtomicU32,
    window: AtomicU32,
    deaf: AtomicBool,
}

impl ErrorQueue {
    /// The queue of a new socket, which [`listen`] was called for.
    pub(crate) fn new(is_ipv6: bool) -> Self {
        ErrorQueue { is_ipv6, read: AtomicU32::new(0), window: AtomicU32::new(0), deaf: AtomicBool::new(false) }
    }

    /// How many have been read by any thread. It wraps around.
    pub(crate) fn read(&self) -> u32 {
        self.read.load(Ordering::Relaxed)
    }

    /// Reads what is there, or the rest of what may be in this window.
    pub(crate) fn drain(&self, socket: BorrowedFd<'_>, slot: &mut ErrorSlot, hear: &mut Hear<'_>) {
        while !self.deaf.load(Ordering::Relaxed) {
            match sys::receive_error(socket, slot) {
                Ok(Some(error)) => hear(Told::from(error)),
                Ok(None) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // A moment without memory.
                Err(_) => return,
            }
            let read = self.read.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if read.wrapping_sub(self.window.load(Ordering::Relaxed)) >= MOST {
                self.go_deaf(socket);
            }
        }
    }

    /// Forgets what is in the queue, and takes no more until the window ends: nothing but what has come already can fail a
    /// send or a receive then, once.
    pub(crate) fn go_deaf(&self, socket: BorrowedFd<'_>) {
        if !self.deaf.swap(true, Ordering::Relaxed) {
            // Cannot fail where switching it on has not; the queue is bounded as it is.
            let _ = listen(socket, self.is_ipv6, false);
        }
    }

    /// Ends a window.
    pub(crate) fn next_window(&self, socket: BorrowedFd<'_>) {
        self.window.store(self.read(), Ordering::Relaxed);
        if self.deaf.load(Ordering::Relaxed) && listen(socket, self.is_ipv6, true).is_ok() {
            self.deaf.store(false, Ordering::Relaxed);
        }
    }
}

/// Lets a socket have an error queue or not, for either IP version that it can send.
pub(crate) fn listen(socket: BorrowedFd<'_>, is_ipv6: bool, on: bool) -> io::Result<()> {
    if is_ipv6 {
        sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, on.into())?;
    }
    // On an IPv6 socket for what goes to mapped addresses.
    sys::set_option(socket, libc::IPPROTO_IP, libc::IP_RECVERR, on.into())
}

/// Whether a send or receive may have failed for what ICMP told of an earlier datagram: the errors of `icmp_err_convert` in
/// net/ipv4/icmp.c and of `icmpv6_err_convert` in net/ipv6/icmp.c.
pub(crate) fn may_be_told(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EMSGSIZE
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EACCES
        )
    )
}

/// How often the same message is tried while news come in between.
const PATIENCE: u32 = 4;

/// Tells the errors of a message itself from those that ICMP told of earlier ones: the latter come once.
#[derive(Default)]
pub(crate) struct Retry {
    attempts: u32,
    /// What had been read at the last attempt.
    read: u32,
}

impl Retry {
    /// Whether to send or receive the same again after `error`. At most [`PATIENCE`] times and two more, when the socket is
    /// deaf to whatever could keep on failing it.
    pub(crate) fn is_due(
        &mut self,
        error: &io::Error,
        (socket, queue): (BorrowedFd<'_>, &ErrorQueue),
        slot: &mut ErrorSlot,
        hear: &mut Hear<'_>,
    ) -> bool {
        if !may_be_told(error) {
            return false;
        }
        queue.drain(socket, slot, hear);
        let read = queue.read();
        let is_news = self.attempts == 0 || read != self.read;
        self.read = read;
        self.attempts += 1;
        match self.attempts {
            attempts if attempts <= PATIENCE => is_news,
            attempts if attempts <= PATIENCE + 2 => {
                queue.go_deaf(socket);
                true
            }
            _ => false,
        }
    }
}
