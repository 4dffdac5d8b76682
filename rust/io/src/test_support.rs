//! Network namespaces for tests that need to be root.

use std::any::Any;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use icx_proto::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};

use crate::netlink::{Netlink, NetlinkError};
use crate::{device, route, sys};

/// Leaves a value as the process that had it would if it were killed: it is never dropped. Leak checkers can still reach it.
pub(crate) fn never_drop<T: Send + 'static>(value: T) {
    static KEPT: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());
    KEPT.lock().unwrap().push(Box::new(value));
}

/// A network namespace with its loopback up. It goes away with this value and what was opened inside.
pub(crate) struct NetNs(File);

impl NetNs {
    /// `None`, with the reason printed, without the right to make one. Panics instead where `ICX_TEST_PRIVILEGED=1` says
    /// that the right is there.
    pub(crate) fn new() -> Option<NetNs> {
        let made = thread::spawn(|| {
            sys::unshare_network_namespace()?;
            File::open("/proc/thread-self/ns/net")
        });
        match made.join().expect("the thread does not panic") {
            Ok(file) => {
                let namespace = NetNs(file);
                namespace.run(|| set_up("lo", true).unwrap());
                Some(namespace)
            }
            Err(error) => {
                let granted = std::env::var("ICX_TEST_PRIVILEGED").is_ok_and(|value| value == "1");
                assert!(!granted, "ICX_TEST_PRIVILEGED=1, yet no network namespace can be made: {error}");
                eprintln!("skipped: making a network namespace needs CAP_SYS_ADMIN: {error}");
                None
            }
        }
    }

    /// Runs `body` on a thread inside the namespace.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            sys::enter_network_namespace(self.0.as_fd()).unwrap();
            body()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Takes an interface of the calling thread's namespace over.
    pub(crate) fn take_in(&self, index: u32) {
        let there = LinkAttribute::NetNsFd(self.0.as_raw_fd());
        crate::link::set(&mut Netlink::open().unwrap(), index, vec![there]).unwrap();
    }

    /// Connects the two namespaces by a veth pair, `under` in both, up, with an address each.
    pub(crate) fn connect(&self, other: &NetNs, ours: (IpAddr, u8), theirs: (IpAddr, u8)) {
        self.connect_queues(other, ours, theirs, 1);
    }

    /// The same with so many queues in both directions.
    pub(crate) fn connect_queues(&self, other: &NetNs, ours: (IpAddr, u8), theirs: (IpAddr, u8), queues: u32) {
        self.connect_with(other, ours, theirs, queues, None);
    }

    /// The same with given hardware addresses.
    pub(crate) fn connect_with(
        &self,
        other: &NetNs,
        ours: (IpAddr, u8),
        theirs: (IpAddr, u8),
        queues: u32,
        macs: Option<[MacAddr; 2]>,
    ) {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![LinkAttribute::IfName("under".into()), LinkAttribute::NetNsFd(other.0.as_raw_fd())];
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName("under".into())];
        if let Some([ours, theirs]) = macs {
            link.attributes.push(LinkAttribute::Address(ours.0.to_vec()));
            peer.attributes.push(LinkAttribute::Address(theirs.0.to_vec()));
        }
        for end in [&mut peer, &mut link] {
            end.attributes.extend([LinkAttribute::NumTxQueues(queues), LinkAttribute::NumRxQueues(queues)]);
        }
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.run(|| {
            let mut netlink = Netlink::open().unwrap();
            netlink.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL).unwrap();
        });
        for (namespace, (address, prefix)) in [(self, ours), (other, theirs)] {
            namespace.run(|| {
                let index = crate::link::by_name("under").unwrap().index;
                let mut netlink = Netlink::open().unwrap();
                let request = device::address_request(index, address, prefix);
                netlink.request(request, NLM_F_CREATE | NLM_F_EXCL).unwrap();
                set_up("under", true).unwrap();
            });
        }
        for namespace in [self, other] {
            namespace.run(until_running);
        }
    }
}

/// Waits until the kernel has told that "under" is running, which it does some time after both ends were set up.
fn until_running() {
    let mut netlink = Netlink::open().unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName("under".into()));
        let link = crate::link::get(&mut netlink, request).unwrap().unwrap();
        if link.header.flags.contains(LinkFlags::Running) {
            return;
        }
        assert!(Instant::now() < patience, "a pair that is up does not run");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sets an interface up or down.
pub(crate) fn set_up(name: &str, up: bool) -> Result<(), NetlinkError> {
    let mut request = named(name);
    request.header.change_mask = LinkFlags::Up;
    if up {
        request.header.flags = LinkFlags::Up;
    }
    Netlink::open()?.request(RouteNetlinkMessage::SetLink(request), 0).map(drop)
}

pub(crate) fn delete(name: &str) -> Result<(), NetlinkError> {
    Netlink::open()?.request(RouteNetlinkMessage::DelLink(named(name)), 0).map(drop)
}

/// Gives an interface another name, for which it must be down for a moment before Linux 6.4.
pub(crate) fn rename(name: &str, new: &str) {
    let index = crate::link::by_name(name).unwrap().index;
    set_up(name, false).unwrap();
    crate::link::set(&mut Netlink::open().unwrap(), index, vec![LinkAttribute::IfName(new.into())]).unwrap();
    set_up(new, true).unwrap();
}

/// Adds a route by `gateway`, with an MTU of its own where `mtu` is given.
pub(crate) fn add_route(destination: IpAddr, prefix: u8, gateway: IpAddr, mtu: Option<u32>) {
    let mut message = RouteMessage::default();
    message.header.address_family = route::family(destination);
    message.header.destination_prefix_length = prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Destination(destination.into()), RouteAttribute::Gateway(gateway.into())];
    message.attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    let mut netlink = Netlink::open().unwrap();
    netlink.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL).unwrap();
}

fn named(name: &str) -> LinkMessage {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.into()));
    request
}

/// How many descriptors and threads this process has.
pub(crate) fn resources() -> (usize, usize) {
    let entries = |path| std::fs::read_dir(path).unwrap().count();
    (entries("/proc/self/fd"), entries("/proc/self/task"))
}
