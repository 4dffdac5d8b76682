//! Two stacks, each the inner side of a pump, with a tunnel between them over loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;

use icx_io::{Family, Pump, PumpOptions, Udp, UdpConfig, UdpOffload, clock};
use icx_netstack::{Stack, StackDevice, StackOptions};
use icx_proto::engine::{Engine, EngineConfig, Mode, NetworkConfig, OuterTrafficClass, Underlay};
use icx_proto::{AllowedRoute, Instant, IpPrefix, MacAddr, SaKey, TxKeyHistory, Vni};

pub(crate) const FAR_V4: &str = "10.9.0.2";
pub(crate) const FAR_V6: &str = "fd00::2";

/// Both ends.
pub(crate) struct Pair {
    pub(crate) near: Stack,
    pub(crate) far: Stack,
    _pumps: [Pump; 2],
}

impl Pair {
    pub(crate) fn new() -> Self {
        Self::with(|options| options)
    }

    /// `change` concerns the near one.
    pub(crate) fn with(change: impl FnOnce(StackOptions) -> StackOptions) -> Self {
        let options = |number: u16| {
            let v6 = [0xfd00, 0, 0, 0, 0, 0, 0, number];
            StackOptions::new(vec![([10, 9, 0, number as u8].into(), 24), (v6.into(), 64)], 1392)
        };
        let (near, near_device) = Stack::open(change(options(1))).unwrap();
        let (far, far_device) = Stack::open(options(2)).unwrap();
        let udp = [open_udp(), open_udp()];
        let [near_address, far_address] = [udp[0].local_addr(), udp[1].local_addr()];
        let [near_udp, far_udp] = udp;
        let pumps = [pump(0, near_device, near_udp, far_address), pump(1, far_device, far_udp, near_address)];
        Pair { near, far, _pumps: pumps }
    }
}

fn open_udp() -> Udp {
    Udp::open(UdpConfig {
        local: Some(Ipv4Addr::LOCALHOST.into()),
        port: 0,
        family: Family::Ipv4,
        source_port_hashing: false,
        sockets: NonZero::<u16>::MIN,
        offload: UdpOffload::default(),
    })
    .unwrap()
}

fn pump(number: u8, device: StackDevice, udp: Udp, peer: SocketAddr) -> Pump {
    let engine = Engine::new(EngineConfig {
        mode: Mode::L3,
        underlay: Underlay::Udp,
        peer_filter: true,
        source_port_hashing: None,
        outer_traffic_class: OuterTrafficClass::default(),
        keepalive: None,
        inner_mtu: None,
        tx_key_history: Arc::new(TxKeyHistory::new(&[number; 32])),
    });
    let vni = Vni::new(7).unwrap();
    let everything = |address: &str| {
        let prefix = || IpPrefix::new(address.parse::<IpAddr>().unwrap(), 0).unwrap();
        AllowedRoute { src: prefix(), dst: prefix() }
    };
    let routes = vec![everything("0.0.0.0"), everything("::")];
    let network = NetworkConfig { vni, peer, peer_mac: MacAddr::default(), routes, rx_rate_limit: None };
    engine.add_network(network).unwrap();
    let key = |number: u8| SaKey::from_slice(&[number + 1; 16]).unwrap();
    let (rx, tx) = (key(number), key(1 - number));
    engine.danger_install_epoch(clock::now(), vni, 1, rx, tx, Instant::FAR_FUTURE).unwrap();
    let on_end = |ended: Result<(), icx_io::PumpError>| ended.unwrap();
    let options = PumpOptions::default();
    Pump::start(Arc::new(engine), Box::new(device), udp, options, Box::new(|_| {}), Box::new(on_end)).unwrap()
}
