//! Running proxies on one of two stacks.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant as Time};

use icx_netstack::Stack;
use icx_netstack::proxy::{Address, Proxies, ProxyCounters, ProxyError, ProxyNotice, ProxyOptions, Service, Target};

/// For what must happen, but may be slow on a loaded machine.
pub(crate) const LIVENESS: Duration = Duration::from_secs(60);

/// Running proxies, and what they tell.
pub(crate) struct Served {
    pub(crate) proxies: Proxies,
    pub(crate) notices: Receiver<ProxyNotice>,
    pub(crate) ended: Receiver<Result<(), ProxyError>>,
}

impl Served {
    pub(crate) fn start(stack: &Stack, options: ProxyOptions) -> Result<Self, ProxyError> {
        let (notice, notices) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let on_notice = Box::new(move |told| drop(notice.send(told)));
        let on_end = Box::new(move |outcome| drop(end.send(outcome)));
        let proxies = Proxies::start(stack.clone(), options, on_notice, on_end)?;
        Ok(Served { proxies, notices, ended })
    }

    pub(crate) fn new(stack: &Stack, services: Vec<Service>) -> Self {
        Self::start(stack, ProxyOptions::new(services)).unwrap()
    }

    /// Where a service listens on this host.
    pub(crate) fn host(&self, service: usize) -> SocketAddr {
        match self.proxies.addresses()[service] {
            Address::Host(address) => address,
            Address::Tunnel(port) => panic!("service {service} listens on port {port} of the stack"),
        }
    }

    /// The port on which a service listens in the tunnel.
    pub(crate) fn port(&self, service: usize) -> u16 {
        match self.proxies.addresses()[service] {
            Address::Tunnel(port) => port,
            Address::Host(address) => panic!("service {service} listens on {address}"),
        }
    }

    /// Waits until a counter is what it shall be.
    pub(crate) fn expect(&self, name: &str, value: u64) {
        let at = ProxyCounters::NAMES.iter().position(|&known| known == name).unwrap();
        let is_reached = || self.proxies.counters().values()[at] == value;
        assert!(comes_true(is_reached), "{name} is never {value}: {:?}", self.proxies.counters());
    }
}

pub(crate) fn eventually(what: &str, is_true: impl FnMut() -> bool) {
    assert!(comes_true(is_true), "never: {what}");
}

fn comes_true(mut is_true: impl FnMut() -> bool) -> bool {
    let end = Time::now() + LIVENESS;
    while !is_true() {
        if Time::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Any port of IPv4's loopback.
pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

pub(crate) fn target(text: &str) -> Target {
    text.parse().unwrap()
}
