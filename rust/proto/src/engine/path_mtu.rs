//! Path MTUs as the underlay reports them: what is believed, for how long, and what it leaves for inner packets.

use core::time::Duration;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::Engine;
use super::table::{Entry, Table};
use crate::id::Vni;
use crate::time::Instant;
use crate::wire::inner::Inner;
use crate::wire::{geneve, mtu};

/// RFC 1191 section 6.3: ten minutes after it was last lowered, the larger size is tried again.
const LIFETIME: Duration = Duration::from_secs(600);

/// RFC 1191 leaves 68 bytes, at which nothing useful passes; every host takes this much (RFC 1122 section 3.3.2).
const LEAST_IPV4: u32 = 576;
/// RFC 8200 section 5: every IPv6 link carries this much.
const LEAST_IPV6: u32 = 1280;

/// How many packets ago one may have been sent that a report quotes.
pub(super) const RECENT: u64 = 1 << 20;

/// No path MTU is known, and no bound to inner packets.
const NONE: u32 = u32::MAX;
/// An instant that never comes.
const NEVER: u64 = u64::MAX;

/// Why the largest packet of a network is another one now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMtuReason {
    /// A router on the way to the peer said that a packet was too big for it.
    Router,
    /// The interface on the way to the peer takes no larger packet.
    Interface,
    /// What was learned is too old.
    Expired,
    /// The peer has another address, and its path has yet to be learned.
    PeerChanged,
}

/// The largest packet of a network has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtuChange {
    pub vni: Vni,
    pub learned: Option<PathMtu>,
    pub reason: PathMtuReason,
}

/// What has been learned about the path to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// The largest outer IP packet, in bytes.
    pub path_mtu: u32,
    /// The largest inner packet, in bytes.
    pub inner_mtu: u32,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMtuVerdict {
    /// It is believed: the path is narrower than was known, or still as narrow. [`Engine::next_path_mtu_change`] tells
    /// the difference.
    Believed,
    /// It proves nothing, or says nothing new.
    Ignored,
}

/// The path MTU of one network. Control calls, and reports, write it under the lock of the control path.
pub(super) struct LearnedMtu {
    /// Bytes of outer packet, and of inner packet; [`NONE`].
    path: AtomicU32,
    inner: AtomicU32,
    /// In nanoseconds.
    expires_at: AtomicU64,
    reason: AtomicU32,
    /// Nobody has been told.
    changed: AtomicBool,
}

const REASONS: [PathMtuReason; 4] =
    [PathMtuReason::Router, PathMtuReason::Interface, PathMtuReason::Expired, PathMtuReason::PeerChanged];

impl LearnedMtu {
    pub(super) fn new() -> Self {
        LearnedMtu {
            path: AtomicU32::new(NONE),
            inner: AtomicU32::new(NONE),
            expires_at: AtomicU64::new(NEVER),
            reason: AtomicU32::new(0),
            changed: AtomicBool::new(false),
        }
    }

    /// The largest inner packet; `u32::MAX` for no bound.
    #[inline]
    pub(super) fn inner(&self) -> u32 {
        self.inner.load(Ordering::Relaxed)
    }

    fn learned(&self) -> Option<PathMtu> {
        let (path_mtu, inner_mtu) = (self.path.load(Ordering::Relaxed), self.inner());
        (path_mtu != NONE).then_some(PathMtu { path_mtu, inner_mtu })
    }

    pub(super) fn expiry(&self) -> Option<Instant> {
        let at = self.expires_at.load(Ordering::Relaxed);
        (at != NEVER).then(|| Instant::from_nanos(at))
    }

    fn set(&self, learned: Option<PathMtu>, expires_at: u64, reason: PathMtuReason) {
        let changed = self.learned() != learned;
        let PathMtu { path_mtu, inner_mtu } = learned.unwrap_or(PathMtu { path_mtu: NONE, inner_mtu: NONE });
        self.path.store(path_mtu, Ordering::Relaxed);
        self.inner.store(inner_mtu, Ordering::Relaxed);
        self.expires_at.store(expires_at, Ordering::Relaxed);
        if changed {
            self.reason.store(reason as u32, Ordering::Relaxed);
            self.changed.store(true, Ordering::Release);
        }
    }

    /// Takes in what a path is said to carry. `false`: that is more than is known already, or too little for anything.
    fn lower(&self, now: Instant, path_mtu: u32, bound: u32, reason: PathMtuReason) -> bool {
        let Ok(inner_mtu) = mtu::inner_mtu(path_mtu) else { return false };
        if inner_mtu >= bound || path_mtu > self.path.load(Ordering::Relaxed) {
            return false;
        }
        self.set(Some(PathMtu { path_mtu, inner_mtu }), now.saturating_add(LIFETIME).as_nanos(), reason);
        true
    }

    /// Forgets what was learned; `true`: there was something.
    pub(super) fn forget(&self, reason: PathMtuReason) -> bool {
        let known = self.learned().is_some();
        if known {
            self.set(None, NEVER, reason);
        }
        known
    }
}

impl Engine {
    /// Takes in that a datagram to `peer` met a path, or an interface, that carries IP packets of up to `mtu` bytes only.
    ///
    /// `quote` is what an ICMP message quotes of the datagram, from the Geneve header on. Anybody can send such a message:
    /// it is believed only with the whole header of a packet that a network with that peer has sent of late, whose SPI and
    /// counter those alone know who see the packets. `None`: this host itself says so, which needs no proof.
    ///
    /// It holds for ten minutes (RFC 1191 section 6.3) for every network with that peer. What is below the least MTU of the
    /// peer's IP version counts as that; 0, from a router that knows no path MTU discovery, says nothing.
    pub fn path_mtu_reported(&self, now: Instant, peer: IpAddr, mtu: u32, quote: Option<&[u8]>) -> PathMtuVerdict {
        let peer = peer.to_canonical();
        let is_credible = |table: &Table| match quote {
            Some(quote) => table.has_sent(peer, quote),
            None => table.entries().iter().any(|entry| entry.peer_ip == peer),
        };
        // What is not, which may be a flood, does not reach the lock.
        if mtu == 0 || !is_credible(&self.table.load()) {
            return PathMtuVerdict::Ignored;
        }
        let _control = self.control();
        let table = self.table.load();
        if !is_credible(&table) {
            return PathMtuVerdict::Ignored;
        }
        let path_mtu = mtu.max(if peer.is_ipv4() { LEAST_IPV4 } else { LEAST_IPV6 });
        let bound = self.inner_mtu.load(Ordering::Relaxed);
        let reason = if quote.is_some() { PathMtuReason::Router } else { PathMtuReason::Interface };
        let mut believed = false;
        for entry in table.entries().iter().filter(|entry| entry.peer_ip == peer) {
            believed |= entry.network.path_mtu.lower(now, path_mtu, bound, reason);
        }
        if !believed {
            return PathMtuVerdict::Ignored;
        }
        self.path_mtu_changed.store(true, Ordering::Release);
        PathMtuVerdict::Believed
    }

    /// A network whose largest packet has changed since it was last told here, if there is one. Call again until `None`.
    pub fn next_path_mtu_change(&self) -> Option<PathMtuChange> {
        if !self.path_mtu_changed.load(Ordering::Relaxed) || !self.path_mtu_changed.swap(false, Ordering::Acquire) {
            return None;
        }
        let table = self.table.load();
        let mut changed = table.entries().iter().filter(|entry| entry.network.path_mtu.changed.load(Ordering::Acquire));
        let entry = changed.next()?;
        if changed.next().is_some() {
            self.path_mtu_changed.store(true, Ordering::Release);
        }
        let path_mtu = &entry.network.path_mtu;
        path_mtu.changed.store(false, Ordering::Release);
        let _control = self.control();
        let reason = REASONS[path_mtu.reason.load(Ordering::Relaxed) as usize % REASONS.len()];
        Some(PathMtuChange { vni: entry.network.vni, learned: path_mtu.learned(), reason })
    }

    /// What has been learned about the path of a network.
    pub fn path_mtu(&self, vni: Vni) -> Option<PathMtu> {
        self.table.load().find(vni).and_then(|entry| entry.network.path_mtu.learned())
    }

    /// The largest inner packet that the engine seals for, and expects from, a network, in bytes; `None`: there is no
    /// bound, or no such network.
    pub fn network_inner_mtu(&self, vni: Vni) -> Option<u32> {
        self.table.load().find(vni).and_then(|entry| self.bound(entry))
    }

    /// The same for the network that an inner packet goes to.
    pub fn inner_mtu_for(&self, packet: &[u8]) -> Option<u32> {
        let table = self.table.load();
        table.route(&Inner::parse(packet).ok()?).and_then(|entry| self.bound(entry))
    }

    pub(super) fn bound(&self, entry: &Entry) -> Option<u32> {
        let bound = self.inner_mtu.load(Ordering::Relaxed).min(entry.network.path_mtu.inner());
        (bound != NONE).then_some(bound)
    }

    /// Forgets what is too old. The caller holds the lock.
    pub(super) fn expire_path_mtus(&self, now: Instant) {
        let table = self.table.load();
        for path_mtu in table.entries().iter().map(|entry| &entry.network.path_mtu) {
            if path_mtu.expiry().is_some_and(|at| at <= now) && path_mtu.forget(PathMtuReason::Expired) {
                self.path_mtu_changed.store(true, Ordering::Release);
            }
        }
    }
}

impl Table {
    /// Whether a network with this peer has sent, and of late, the datagram that `quote` is the start of.
    fn has_sent(&self, peer: IpAddr, quote: &[u8]) -> bool {
        // Also of a quote that goes on, the header alone is looked at: it has to be whole.
        let Some(header) = quote.first_chunk::<{ geneve::HEADER_LEN }>() else { return false };
        let Ok(geneve::Parsed { vni, key_epoch, nonce: Some(nonce), .. }) = geneve::parse(header) else { return false };
        let [s0, s1, s2, s3, counter @ ..] = *nonce;
        u32::from_be_bytes([s0, s1, s2, s3]) == key_epoch
            && self.find(vni).is_some_and(|entry| {
                entry.peer_ip == peer && entry.keys.has_sent(key_epoch, u64::from_be_bytes(counter))
            })
    }
}
