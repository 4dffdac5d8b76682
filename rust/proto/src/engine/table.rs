//! The table of networks and routes, replaced whole: a packet sees the old one or the new one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::keys::Keys;
use super::network::Network;
use super::path_mtu::PathMtuReason;
use super::{Engine, InstallError, LocalEndpoint, NetworkConfig, NetworkError, Underlay};
use crate::id::{MacAddr, Vni};
use crate::routes::{PeerRoutes, RouteError, RouteTable};
use crate::time::Instant;
use crate::wire::inner::{IPV4_HEADER_LEN, Inner};
use crate::wire::{address, outer};

/// RFC 791: the total length has 16 bits. RFC 8200: the payload length has.
const MAX_UDP_PAYLOAD_IPV4: usize = 65_535 - IPV4_HEADER_LEN - outer::UDP_HEADER_LEN;
const MAX_UDP_PAYLOAD_IPV6: usize = 65_535 - outer::UDP_HEADER_LEN;

pub(super) struct Table {
    /// By VNI, ascending.
    entries: Vec<Arc<Entry>>,
    /// From addresses to a position in `entries`.
    routes: Arc<RouteTable<usize>>,
}

/// A network as of one table.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) network: Arc<Network>,
    pub(super) keys: Keys,
    pub(super) peer: SocketAddr,
    /// Its address, IPv4 where it is an IPv4-mapped one.
    pub(super) peer_ip: IpAddr,
    pub(super) peer_mac: MacAddr,
    /// Raw underlays: where frames to the peer come from, if there is an address of its family.
    pub(super) local: Option<LocalEndpoint>,
    /// Bytes in front of the Geneve header.
    pub(super) outer_len: usize,
    /// The longest datagram or frame that the outer length fields can express.
    pub(super) max_len: usize,
    /// What the peer may send.
    pub(super) receive: Arc<PeerRoutes>,
    config: Arc<NetworkConfig>,
}

impl Table {
    pub(super) fn empty() -> Self {
        Table { entries: Vec::new(), routes: Arc::new(RouteTable::empty()) }
    }

    /// `changed` is the position of the network whose routes are to blame for a conflict.
    fn build(entries: Vec<Arc<Entry>>, changed: Option<usize>) -> Result<Self, RouteError> {
        let others = (0..entries.len()).filter(|at| Some(*at) != changed);
        let in_turn = others.chain(changed).map(|at| (entries[at].network.vni, at, &*entries[at].config.routes));
        let routes = Arc::new(RouteTable::build(in_turn)?);
        Ok(Table { entries, routes })
    }

    pub(super) fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    #[inline]
    pub(super) fn find(&self, vni: Vni) -> Option<&Entry> {
        match self.entries.as_slice() {
            [only] => (only.network.vni == vni).then_some(only),
            _ => self.position(vni).ok().map(|at| &*self.entries[at]),
        }
    }

    /// The network that packets between these addresses go to.
    #[inline]
    pub(super) fn route(&self, inner: &Inner) -> Option<&Entry> {
        self.routes.lookup(inner).and_then(|&at| self.entries.get(at)).map(|entry| &**entry)
    }

    /// The same table with other keys for some networks.
    fn with_keys(&self, changes: impl IntoIterator<Item = (usize, Keys)>) -> Table {
        let mut entries = self.entries.clone();
        for (at, keys) in changes {
            let entry = &mut entries[at];
            *entry = Arc::new(Entry { keys, ..Entry::clone(entry) });
        }
        Table { entries, routes: self.routes.clone() }
    }

    /// Where the VNI is, or would be inserted.
    fn position(&self, vni: Vni) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&vni, |entry| entry.network.vni)
    }
}

impl Engine {
    /// Adds a VNI. On error nothing has changed.
    pub fn add_network(&self, network: NetworkConfig) -> Result<(), NetworkError> {
        let _control = self.control();
        let table = self.table.load();
        let Err(at) = table.position(network.vni) else { return Err(NetworkError::Exists(network.vni)) };
        let state = Arc::new(Network::new(network.vni, network.rx_rate_limit));
        let mut entries = table.entries.clone();
        entries.insert(at, Arc::new(self.entry(state, Keys::default(), network)?));
        self.table.store(Arc::new(Table::build(entries, Some(at))?));
        Ok(())
    }

    /// Replaces peer, routes and rate limit of a VNI in one step; its associations and counters stay, and so does what was
    /// learned about the path, unless the peer's address is another one. On error nothing has changed.
    pub fn update_network(&self, network: NetworkConfig) -> Result<(), NetworkError> {
        let _control = self.control();
        let table = self.table.load();
        let at = table.position(network.vni).map_err(|_| NetworkError::Unknown(network.vni))?;
        let rx_rate_limit = network.rx_rate_limit;
        let mut entries = table.entries.clone();
        let Entry { network: state, keys, peer_ip, .. } = Entry::clone(&entries[at]);
        entries[at] = Arc::new(self.entry(state, keys, network)?);
        let moved = entries[at].peer_ip != peer_ip;
        let updated = Arc::new(Table::build(entries, Some(at))?);
        let network = &table.entries[at].network;
        network.limit.set(rx_rate_limit);
        self.table.store(updated);
        if moved && network.path_mtu.forget(PathMtuReason::PeerChanged) {
            self.path_mtu_changed.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Sets the hardware address to which frames go for every network whose peer has the IP address `peer` (an
    /// IPv4-mapped one is the IPv4 one). Everything else about those networks stays, and so does their peer where it
    /// moves meanwhile.
    pub fn set_next_hop(&self, peer: IpAddr, mac: MacAddr) {
        let _control = self.control();
        let table = self.table.load();
        let peer = peer.to_canonical();
        let mut entries = table.entries.clone();
        let mut changed = false;
        for entry in entries.iter_mut().filter(|entry| entry.peer_ip == peer && entry.peer_mac != mac) {
            let config = Arc::new(NetworkConfig { peer_mac: mac, ..NetworkConfig::clone(&entry.config) });
            *entry = Arc::new(Entry { peer_mac: mac, config, ..Entry::clone(entry) });
            changed = true;
        }
        if changed {
            self.table.store(Arc::new(Table { entries, routes: table.routes.clone() }));
        }
    }

    /// Removes a VNI. Its keys are erased as soon as the last packet that uses them is done.
    pub fn remove_network(&self, vni: Vni) -> Result<(), NetworkError> {
        let _control = self.control();
        let table = self.table.load();
        let at = table.position(vni).map_err(|_| NetworkError::Unknown(vni))?;
        let mut entries = table.entries.clone();
        entries.remove(at);
        self.table.store(Arc::new(Table::build(entries, None)?));
        Ok(())
    }

    /// Every VNI as it was last configured, in ascending order.
    pub fn networks(&self) -> Vec<NetworkConfig> {
        self.table.load().entries.iter().map(|entry| NetworkConfig::clone(&entry.config)).collect()
    }

    /// Replaces the keys of a VNI by what `change` makes of them; on error they stay. The caller holds the lock.
    pub(super) fn change_keys(
        &self,
        vni: Vni,
        change: impl FnOnce(&Network, &mut Keys) -> Result<(), InstallError>,
    ) -> Result<(), InstallError> {
        let table = self.table.load();
        let at = table.position(vni).map_err(|_| InstallError::UnknownVni(vni))?;
        let entry = &table.entries[at];
        let mut keys = entry.keys.clone();
        change(&entry.network, &mut keys)?;
        self.table.store(Arc::new(table.with_keys([(at, keys)])));
        Ok(())
    }

    /// Sweeps the keys of every VNI. The caller holds the lock.
    pub(super) fn sweep(&self, now: Instant) {
        let table = self.table.load();
        let swept = |(at, entry): (usize, &Arc<Entry>)| entry.keys.swept(now).map(|keys| (at, keys));
        let mut changes = table.entries.iter().enumerate().filter_map(swept).peekable();
        if changes.peek().is_some() {
            self.table.store(Arc::new(table.with_keys(changes)));
        }
    }

    fn entry(&self, network: Arc<Network>, keys: Keys, config: NetworkConfig) -> Result<Entry, RouteError> {
        let receive = Arc::new(PeerRoutes::build(&config.routes)?);
        let (peer, peer_mac) = (config.peer, config.peer_mac);
        let peer_ip = peer.ip().to_canonical();
        let (local, outer_len, over_ipv6) = match &self.underlay {
            Underlay::Udp => (None, 0, peer_ip.is_ipv6()),
            Underlay::Raw { local, .. } => {
                let at = address::select_local(local.iter().map(|endpoint| endpoint.addr.ip()), peer.ip());
                (at.map(|at| local[at]), outer::header_len(peer.is_ipv6()), peer.is_ipv6())
            }
        };
        let max_len = outer_len + if over_ipv6 { MAX_UDP_PAYLOAD_IPV6 } else { MAX_UDP_PAYLOAD_IPV4 };
        let config = Arc::new(config);
        Ok(Entry { network, keys, peer, peer_ip, peer_mac, local, outer_len, max_len, receive, config })
    }
}
