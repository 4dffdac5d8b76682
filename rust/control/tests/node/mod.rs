//! Whole nodes on loopback: an endpoint, an engine with one VNI, and the events as they come.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use icx_control::{ControlConfig, ControlEndpoint, ControlEvent, ControlEventKind, Identity, PeerConfig, PeerId};
use icx_control::{Role, SessionId};
use icx_proto::engine::{OuterTrafficClass, RxVerdict, TxVerdict};
use icx_proto::{
    AllowedRoute, Engine, EngineConfig, IpPrefix, MacAddr, Mode, NetworkConfig, Spi, TxKeyHistory, Underlay, Vni,
};

pub(crate) const VNI: u32 = 7;
pub(crate) const LIFETIME: Duration = Duration::from_secs(3600);
/// For what happens within milliseconds unless the machine is overloaded.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) fn vni() -> Vni {
    Vni::new(VNI).unwrap()
}

/// One process's monotonic clock.
pub(crate) fn clock() -> icx_control::Clock {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    Arc::new(move || icx_proto::Instant::from_nanos(1 + start.elapsed().as_nanos() as u64))
}

/// Two identities: the first one initiates.
pub(crate) fn identities() -> (Arc<Identity>, Arc<Identity>) {
    let (a, b) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    match a.public_key().role_against(b.public_key()).unwrap() {
        Role::Initiator => (Arc::new(a), Arc::new(b)),
        Role::Responder => (Arc::new(b), Arc::new(a)),
    }
}

/// An engine with one VNI that lets every IPv4 packet pass. Like the engine of a process of its own, it shares no history.
pub(crate) fn engine() -> Arc<Engine> {
    let engine = Engine::new(EngineConfig {
        mode: Mode::L3,
        underlay: Underlay::Udp,
        peer_filter: false,
        source_port_hashing: None,
        outer_traffic_class: OuterTrafficClass::default(),
        keepalive: None,
        inner_mtu: None,
        tx_key_history: Arc::new(TxKeyHistory::new(&[9; 32])),
    });
    let any = IpPrefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).unwrap();
    let network = NetworkConfig {
        vni: vni(),
        peer: "127.0.0.1:6081".parse().unwrap(),
        peer_mac: MacAddr::default(),
        routes: vec![AllowedRoute { src: any, dst: any }],
        rx_rate_limit: None,
    };
    engine.add_network(network).unwrap();
    Arc::new(engine)
}

pub(crate) struct Node {
    pub(crate) endpoint: Arc<ControlEndpoint>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) peer: PeerId,
    pub(crate) events: Receiver<ControlEvent>,
}

impl Node {
    /// A node on a loopback port of its own with `peer` as its only peer.
    pub(crate) fn start(identity: &Arc<Identity>, peer: &Identity) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), identity, peer)
    }

    pub(crate) fn start_at(bind: SocketAddr, identity: &Arc<Identity>, peer: &Identity) -> Self {
        let (sender, events) = channel();
        let config = ControlConfig { identity: Arc::clone(identity), bind, clock: clock() };
        let sink = Arc::new(move |event| drop(sender.send(event)));
        let endpoint = Arc::new(ControlEndpoint::open(config, sink).unwrap());
        let engine = engine();
        let config = PeerConfig {
            key: peer.public_key().clone(),
            engine: Arc::clone(&engine),
            vni: vni(),
            key_lifetime: LIFETIME,
        };
        let peer = endpoint.add_peer(config).unwrap();
        Node { endpoint, engine, peer, events }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    /// The next event, which has to come soon.
    pub(crate) fn next(&self) -> ControlEventKind {
        self.events.recv_timeout(SOON).expect("an event was due").kind
    }

    pub(crate) fn dial(&self, remote: SocketAddr) -> SessionId {
        self.endpoint.dial(self.peer, remote, SOON).unwrap();
        self.session_up()
    }

    pub(crate) fn session_up(&self) -> SessionId {
        match self.next() {
            ControlEventKind::SessionUp { session, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    /// Asks for an exchange and waits for its end: (receive SPI, transmit SPI).
    pub(crate) fn exchange(&self) -> (Spi, Spi) {
        self.endpoint.exchange(self.peer, SOON).unwrap();
        self.exchange_done()
    }

    pub(crate) fn exchange_done(&self) -> (Spi, Spi) {
        match self.next() {
            ControlEventKind::ExchangeDone { rx_spi, tx_spi, .. } => (rx_spi, tx_spi),
            other => panic!("{other:?}"),
        }
    }
}

/// Whether what `from` seals opens at `to`.
pub(crate) fn passes(from: &Engine, to: &Engine) -> bool {
    let now = clock()();
    let mut packet = [0u8; 28];
    packet[0] = 0x45;
    packet[3] = 28;
    packet[9] = 253;
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    let (mut sealed, mut opened) = ([0; 2048], [0; 2048]);
    let TxVerdict::Send { range, .. } = from.virt_to_phy(now, &packet, &mut sealed) else { return false };
    let source = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    match to.phy_to_virt(now, source, &sealed[range], &mut opened) {
        RxVerdict::Deliver { range, .. } => opened[range] == packet,
        _ => false,
    }
}
