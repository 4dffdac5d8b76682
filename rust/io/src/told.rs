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
        if !self.deaf.load(Ordering::Relaxed) {
            // Cannot fail where switching it on has not; the queue is bounded as it is.
            let _ = listen(socket, self.is_ipv6, false);
            // Last, so that whoever ends the window at this moment does not leave it deaf for longer.
            self.deaf.store(true, Ordering::Relaxed);
        }
    }

    /// Ends a window.
    pub(crate) fn next_window(&self, socket: BorrowedFd<'_>) {
        self.window.store(self.read(), Ordering::Relaxed);
        if self.deaf.swap(false, Ordering::Relaxed) && listen(socket, self.is_ipv6, true).is_err() {
            self.deaf.store(true, Ordering::Relaxed);
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
    /// How many of them in a row brought no news. What came while the queue was read may fail the next without any.
    quiet: u32,
    /// What had been read at the last attempt.
    read: u32,
}

impl Retry {
    /// Whether to send or receive the same again after `error`: at most [`PATIENCE`] times and two more, when the socket is
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
        let before = if self.attempts == 0 { queue.read() } else { self.read };
        queue.drain(socket, slot, hear);
        let read = queue.read();
        self.quiet = if read == before { self.quiet + 1 } else { 0 };
        self.read = read;
        self.attempts += 1;
        if self.attempts > PATIENCE && self.quiet < 2 {
            queue.go_deaf(socket);
        }
        self.attempts <= PATIENCE + 2 && self.quiet < 2
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::num::NonZero;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant as Time};

    use icx_proto::engine::{Destination, RunBuffer};
    use icx_proto::wire::checksum::checksum;
    use icx_proto::wire::traffic_class::TrafficClass;
    use icx_proto::{Instant, Vni};
    use socket2::{Domain, Protocol, Socket, Type};

    use super::Told;
    use crate::ends::Received;
    use crate::sys::{self, ErrorSlot, Interest, ReceiveBatch};
    use crate::test_support::NetNs;
    use crate::udp::{Family, RUN_LIMITS, SendEvents, Sender, Udp, UdpConfig, UdpOffload};

    const LIVENESS: Duration = Duration::from_secs(20);

    /// What ICMP says of a datagram.
    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Complaint {
        PortUnreachable,
        TooBig(u32),
    }

    /// Sends ICMP messages about datagrams that may never have been.
    pub(crate) struct Liar(Socket);

    impl Liar {
        pub(crate) fn new(victim: IpAddr) -> Self {
            let protocol = if victim.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
            let socket = Socket::new(Domain::for_address((victim, 0).into()), Type::RAW, Some(protocol)).unwrap();
            Liar(socket)
        }

        /// Complains to `from` about its datagram to `to`, of which `quote` is the start of the payload.
        pub(crate) fn complain(&self, from: SocketAddr, to: SocketAddr, complaint: Complaint, quote: &[u8]) {
            let udp_len = (8 + quote.len()) as u16;
            let mut quoted = Vec::new();
            let (kind, code, mtu) = match (from.ip(), to.ip()) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    quoted.extend([0x45, 0, 0, (28 + quote.len()) as u8, 0, 0, 0x40, 0, 64, 17, 0, 0]);
                    quoted.extend(src.octets().into_iter().chain(dst.octets()));
                    match complaint {
                        Complaint::PortUnreachable => (3, 3, 0),
                        Complaint::TooBig(mtu) => (3, 4, mtu),
                    }
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    quoted.extend([0x60, 0, 0, 0, 0, udp_len as u8, 17, 64]);
                    quoted.extend(src.octets().into_iter().chain(dst.octets()));
                    match complaint {
                        Complaint::PortUnreachable => (1, 4, 0),
                        Complaint::TooBig(mtu) => (2, 0, mtu),
                    }
                }
                pair => panic!("two IP versions: {pair:?}"),
            };
            quoted.extend(from.port().to_be_bytes().into_iter().chain(to.port().to_be_bytes()));
            quoted.extend(udp_len.to_be_bytes().into_iter().chain([0, 0]).chain(quote.iter().copied()));
            let mut message = vec![kind, code, 0, 0];
            message.extend(mtu.to_be_bytes());
            message.extend(quoted);
            // The kernel computes the checksum of ICMPv6 (RFC 3542 section 3.1).
            if from.is_ipv4() {
                let sum = checksum(&message);
                message[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            self.0.send_to(&message, &SocketAddr::new(from.ip(), 0).into()).unwrap();
        }
    }

    fn open(family: Family, port: u16) -> Udp {
        let (sockets, offload) = (NonZero::<u16>::MIN, UdpOffload::default());
        Udp::open(UdpConfig { local: None, port, family, source_port_hashing: true, sockets, offload }).unwrap()
    }

    /// Tells a thread to end, whatever else happens.
    pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

    impl Drop for SetOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// What was told, with quotes of its own.
    #[derive(Debug, PartialEq, Eq)]
    enum Heard {
        TooBig(IpAddr, u32, Option<Vec<u8>>),
        Lost,
    }

    impl From<Told<'_>> for Heard {
        fn from(told: Told<'_>) -> Self {
            match told {
                Told::TooBig { to, mtu, quote } => Heard::TooBig(to, mtu, quote.map(<[u8]>::to_vec)),
                Told::Lost => Heard::Lost,
            }
        }
    }

    fn hear(udp: &Udp) -> Vec<Heard> {
        let mut heard = Vec::new();
        udp.hear(&mut ErrorSlot::new(), &mut |told| heard.push(told.into()));
        heard
    }

    #[derive(Default)]
    struct Events {
        failed: Vec<i32>,
        heard: Vec<Heard>,
    }

    impl SendEvents for Events {
        fn wait(&mut self, socket: std::os::fd::BorrowedFd<'_>) -> bool {
            sys::poll(&mut [Interest::writable(socket)], Some(LIVENESS)).unwrap() > 0
        }

        fn failed(&mut self, _vni: Vni, datagrams: u64, error: &std::io::Error) {
            self.failed.extend((0..datagrams).map(|_| error.raw_os_error().unwrap()));
        }

        fn told(&mut self, told: Told<'_>) {
            self.heard.push(told.into());
        }

        fn segmentation_refused(&mut self, local: SocketAddr, error: &std::io::Error) {
            panic!("{local}: {error}");
        }
    }

    /// Sends datagrams of `size` bytes to `peers`, in turn.
    fn send(udp: &Udp, sender: &mut Sender, peers: &[SocketAddr], size: usize, source_port: Option<u16>) -> Events {
        let mut runs = RunBuffer::new(200_000, 64, RUN_LIMITS);
        for &peer in peers {
            runs.space()[..size].fill(7);
            runs.push(
                size,
                &Destination { vni: Vni::new(1).unwrap(), peer, source_port, traffic_class: TrafficClass::ZERO },
            );
        }
        let mut events = Events::default();
        sender.send(udp, 0, Instant::from_nanos(0), &runs, &mut events);
        events
    }

    const FAMILIES: [(&str, Family, &str, &str); 3] = [
        ("IPv4", Family::Ipv4, "127.0.0.1", "192.0.2.7"),
        ("IPv4 on a socket for both", Family::Dual, "127.0.0.1", "192.0.2.7"),
        ("IPv6", Family::Dual, "::1", "2001:db8::7"),
    ];

    #[test]
    fn routers_are_heard_with_destination_mtu_and_quote() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            for (name, family, own, peer) in FAMILIES {
                let udp = open(family, 0);
                let own = SocketAddr::new(own.parse().unwrap(), udp.local_addr().port());
                let peer = SocketAddr::new(peer.parse().unwrap(), 6081);
                let liar = Liar::new(own.ip());
                let quote: Vec<u8> = (0..40).collect();
                liar.complain(own, peer, Complaint::TooBig(1400), &quote);
                liar.complain(own, peer, Complaint::PortUnreachable, &quote);
                assert_eq!(hear(&udp), [Heard::TooBig(peer.ip(), 1400, Some(quote)), Heard::Lost], "{name}");
                assert_eq!(hear(&udp), [], "{name}");
                // What follows is no longer to blame, nor does it wait.
                let mut batch = ReceiveBatch::new(4, 2000);
                let received = udp.receive(0, (&mut batch, 4), &mut ErrorSlot::new(), &mut |_| ()).unwrap();
                assert!(matches!(received, Received::Nothing { pause: false }), "{name}");
            }
        });
    }

    #[test]
    fn this_host_says_what_its_interface_takes() {
        let (Some(near), Some(far)) = (NetNs::new(), NetNs::new()) else { return };
        for (ours, theirs, prefix) in [("192.0.2.1", "192.0.2.2", 24), ("fd00:aa::1", "fd00:aa::2", 64)] {
            let (ours, theirs): (IpAddr, IpAddr) = (ours.parse().unwrap(), theirs.parse().unwrap());
            near.connect(&far, (ours, prefix), (theirs, prefix));
            // What fits is not to be answered.
            let taker = far.run(|| UdpSocket::bind((theirs, 0)).unwrap());
            near.run(|| {
                let udp = open(Family::Dual, 0);
                let peer = taker.local_addr().unwrap();
                for source_port in [None, Some(50_000)] {
                    // Several of one size, which the kernel is to cut, and one by itself.
                    for count in [3, 1] {
                        let events = send(&udp, &mut Sender::new(64), &vec![peer; count], 1500, source_port);
                        assert_eq!(events.failed, vec![libc::EMSGSIZE; count]);
                        let told = |heard| matches!(heard, &Heard::TooBig(to, 1500, None) if to == theirs);
                        assert!(!events.heard.is_empty() && events.heard.iter().all(told), "{:?}", events.heard);
                        assert_eq!(hear(&udp), []);
                    }
                    let events = send(&udp, &mut Sender::new(64), &[peer; 3], 1400, source_port);
                    assert_eq!((events.failed, events.heard), (vec![], vec![]));
                }
                crate::test_support::delete("under").unwrap();
            });
        }
    }

    #[test]
    fn a_closed_port_costs_no_datagram_to_an_open_one() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            for own in ["127.0.0.1", "::1"] {
                let udp = open(Family::Dual, 0);
                let open: UdpSocket = UdpSocket::bind((own, 0)).unwrap();
                let closed = UdpSocket::bind((own, 0)).unwrap().local_addr().unwrap();
                let peers = [closed, open.local_addr().unwrap()];
                let mut sender = Sender::new(64);
                let (mut lost, mut buffer) = (0, [0; 200]);
                open.set_read_timeout(Some(LIVENESS)).unwrap();
                for source_port in [None, Some(50_000)] {
                    for _ in 0..100 {
                        let events = send(&udp, &mut sender, &[peers; 4].concat(), 100, source_port);
                        assert_eq!(events.failed, []);
                        lost += events.heard.len() + hear(&udp).len();
                        for _ in 0..4 {
                            assert_eq!(open.recv(&mut buffer).unwrap(), 100);
                        }
                    }
                }
                assert!(lost > 0, "the kernel told");
            }
        });
    }

    #[test]
    fn a_flood_of_forged_messages_neither_loses_nor_holds_up_a_datagram() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            for (name, family, own, _) in FAMILIES {
                let udp = open(family, 0);
                let own = SocketAddr::new(own.parse().unwrap(), udp.local_addr().port());
                let receiver = UdpSocket::bind((own.ip(), 0)).unwrap();
                receiver.set_read_timeout(Some(LIVENESS)).unwrap();
                let peer = receiver.local_addr().unwrap();
                let (namespace, done) = (&namespace, &AtomicBool::new(false));
                let sent = thread::scope(|scope| {
                    let flood = scope.spawn(move || {
                        namespace.run(|| {
                            let liar = Liar::new(own.ip());
                            let mut count = 0;
                            while !done.load(Ordering::Relaxed) {
                                liar.complain(own, peer, Complaint::TooBig(600), &[7; 40]);
                                liar.complain(own, peer, Complaint::PortUnreachable, &[7; 40]);
                                count += 2;
                            }
                            count
                        })
                    });
                    let ends = SetOnDrop(done);
                    let mut sender = Sender::new(64);
                    let (mut heard, mut buffer, begin) = (0, [0; 200], Time::now());
                    let mut window = begin;
                    while begin.elapsed() < Duration::from_millis(500) {
                        let events = send(&udp, &mut sender, &[peer; 16], 100, None);
                        assert_eq!(events.failed, [], "{name}");
                        heard += events.heard.len();
                        for _ in 0..16 {
                            assert_eq!(receiver.recv(&mut buffer).unwrap(), 100, "{name}");
                        }
                        if window.elapsed() >= super::WINDOW {
                            window = Time::now();
                            heard += hear(&udp).len();
                        }
                    }
                    drop(ends);
                    let sent = flood.join().unwrap();
                    // A flood is heard up to a point in each of five windows, or a few more.
                    assert!(sent < 1000 || heard < 1000, "{name}: {heard} of {sent} messages were read");
                    sent
                });
                assert!(sent > 0, "{name}");
                // After the flood it hears again.
                hear(&udp);
                hear(&udp);
                Liar::new(own.ip()).complain(own, peer, Complaint::TooBig(1400), &[7; 40]);
                assert_eq!(hear(&udp), [Heard::TooBig(peer.ip(), 1400, Some(vec![7; 40]))], "{name}");
            }
        });
    }
}
