//! The peers of an endpoint.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::event::PeerId;
use crate::peer::{Peer, PeerConfig};
use crate::public_key::PublicKey;
use crate::role::{EqualKeysError, Role};
use crate::tls::Trust;

/// Why a peer was not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddPeerError {
    #[error(transparent)]
    EqualKeys(#[from] EqualKeysError),
    #[error("the key with fingerprint {0} belongs to another peer of this endpoint: remove that one first")]
    KeyExists(String),
    #[error("VNI {0} of this engine gets its keys from another peer already: each peer needs a VNI of its own")]
    VniInUse(icx_proto::Vni),
    #[error("a key lifetime of 0 would make every key expire at once: give at least 1 ms, an hour is usual")]
    NoKeyLifetime,
    #[error("the control endpoint is closed")]
    Closed,
}

#[derive(Default)]
pub(crate) struct Registry {
    peers: Mutex<Peers>,
}

#[derive(Default)]
struct Peers {
    last_id: u32,
    by_id: HashMap<PeerId, Arc<Peer>>,
    by_key: HashMap<PublicKey, PeerId>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, own: &PublicKey, config: PeerConfig) -> Result<PeerId, AddPeerError> {
        let role = own.role_against(&config.key)?;
        if config.key_lifetime.is_zero() {
            return Err(AddPeerError::NoKeyLifetime);
        }
        let mut peers = self.lock();
        if peers.by_key.contains_key(&config.key) {
            return Err(AddPeerError::KeyExists(config.key.fingerprint()));
        }
        let shares =
            |other: &Arc<Peer>| other.config.vni == config.vni && Arc::ptr_eq(&other.config.engine, &config.engine);
        if peers.by_id.values().any(shares) {
            return Err(AddPeerError::VniInUse(config.vni));
        }
        peers.last_id += 1;
        let id = PeerId(peers.last_id);
        peers.by_key.insert(config.key.clone(), id);
        peers.by_id.insert(id, Arc::new(Peer::new(id, role, config)));
        Ok(id)
    }

    pub(crate) fn remove(&self, id: PeerId) -> Option<Arc<Peer>> {
        let mut peers = self.lock();
        let peer = peers.by_id.remove(&id)?;
        peers.by_key.remove(&peer.config.key);
        Some(peer)
    }

    pub(crate) fn get(&self, id: PeerId) -> Option<Arc<Peer>> {
        self.lock().by_id.get(&id).cloned()
    }

    /// The peer that may dial this node with `key`.
    pub(crate) fn dialing_peer(&self, key: &PublicKey) -> Option<Arc<Peer>> {
        let peers = self.lock();
        let peer = peers.by_id.get(peers.by_key.get(key)?)?;
        (peer.role == Role::Responder).then(|| Arc::clone(peer))
    }

    /// Forgets every peer.
    pub(crate) fn drain(&self) -> Vec<Arc<Peer>> {
        let mut peers = self.lock();
        peers.by_key.clear();
        peers.by_id.drain().map(|(_, peer)| peer).collect()
    }
}

impl Trust for Registry {
    fn trusts(&self, key: &PublicKey) -> bool {
        self.dialing_peer(key).is_some()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("peers", &self.lock().by_id.len()).finish()
    }
}
