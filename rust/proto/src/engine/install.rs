//! Security associations come and go: the control path of keys.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::keys::Keys;
use super::network::Network;
use super::sa::{AeadKey, RxSa, TxCounter, TxSa};
use super::table::Entry;
use super::{Control, Engine};
use crate::id::{Spi, Vni};
use crate::key::SaKey;
use crate::time::Instant;

/// The two halves of a security association, as the key exchange produced them.
#[derive(Debug)]
pub struct SaPair {
    pub rx_spi: Spi,
    pub tx_spi: Spi,
    pub rx_key: SaKey,
    pub tx_key: SaKey,
    /// The last instant at which the keys work.
    pub expires_at: Instant,
}

/// When a new transmit key takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxSwitch {
    Now,
    /// With the first packet that opens under `rx_spi`, at the latest at `deadline`. A later install takes the place
    /// of a key that still waits.
    OnFirstOpen {
        rx_spi: Spi,
        deadline: Instant,
    },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    #[error("there is no VNI {0}")]
    UnknownVni(Vni),
    #[error("the receive and the transmit key are equal")]
    EqualKeys,
    #[error("transmit SPI {0} was used with this key before: its nonces would repeat")]
    TxKeyReused(Spi),
    #[error("epoch {given} is not above the last one, {last}")]
    StaleEpoch { given: u32, last: u32 },
    #[error("the key has expired already")]
    Expired,
    #[error("the key has {0} bytes, which this suite does not take")]
    KeyLength(usize),
}

/// Associations of one VNI as they stand, for people to look at. No key bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaStatus {
    /// Oldest first.
    pub rx: Vec<RxSaStatus>,
    /// The one in use; once expired it stays here, without its key, until the next one.
    pub tx: Option<TxSaStatus>,
    pub pending_tx: Option<Spi>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxSaStatus {
    pub spi: Spi,
    /// The last instant at which it opens, the grace period of a superseded key included.
    pub expires_at: Instant,
    pub superseded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxSaStatus {
    pub spi: Spi,
    pub expires_at: Instant,
    /// How many packets this key has sealed.
    pub sealed: u64,
}

/// A receive key on its way in.
enum NewRx {
    /// The SPI is live with the same key: the association, and with it the replay window, stays.
    Again(Arc<RxSa>),
    Fresh(AeadKey),
}

impl Engine {
    /// Installs both halves at once: the receive key first, older receive keys superseded, then the transmit key.
    /// On error nothing has changed.
    pub fn install(&self, now: Instant, vni: Vni, sa: SaPair) -> Result<(), InstallError> {
        let mut control = self.control();
        self.change_keys(vni, |network, keys| self.install_pair(now, &mut control, network, keys, sa))
    }

    /// Installs a receive key beside those that are there; it supersedes them once a packet opens under it, or
    /// [`Engine::confirm_rx`] says that the peer has it. The same SPI with the same key changes nothing but the
    /// expiry; the same SPI with another key starts a fresh replay window. At most 16 receive keys are kept per VNI.
    pub fn install_rx(
        &self,
        now: Instant,
        vni: Vni,
        spi: Spi,
        key: SaKey,
        expires_at: Instant,
    ) -> Result<(), InstallError> {
        let mut control = self.control();
        self.change_keys(vni, |_, keys| {
            check_expiry(now, expires_at)?;
            if keys.sends_with(&key) {
                return Err(InstallError::EqualKeys);
            }
            match new_rx(keys, spi, key)? {
                NewRx::Again(live) => live.set_expiry(expires_at),
                NewRx::Fresh(key) => {
                    keys.insert_rx(now, Arc::new(RxSa::new(spi, key, control.next_seq(), expires_at)));
                }
            }
            Ok(())
        })
    }

    /// Installs a transmit key, whose first packet has counter 1. Refused when this process has installed the same
    /// (SPI, key) before.
    pub fn install_tx(
        &self,
        now: Instant,
        vni: Vni,
        spi: Spi,
        key: SaKey,
        expires_at: Instant,
        switch: TxSwitch,
    ) -> Result<(), InstallError> {
        let _control = self.control();
        self.change_keys(vni, |network, keys| {
            check_expiry(now, expires_at)?;
            if keys.opens_with(&key) {
                return Err(InstallError::EqualKeys);
            }
            let sa = self.new_tx(spi, key, expires_at)?;
            match switch {
                TxSwitch::Now => keys.set_tx(sa),
                TxSwitch::OnFirstOpen { rx_spi, deadline } => keys.set_pending(rx_spi, deadline, sa),
            }
            network.start_keepalives();
            Ok(())
        })
    }

    /// The peer is known to hold the key pair of `rx_spi`: older receive keys are superseded (30 s), and a transmit
    /// key that waited for it takes over.
    pub fn confirm_rx(&self, now: Instant, vni: Vni, rx_spi: Spi) {
        let _control = self.control();
        let table = self.table.load();
        if let Some(entry) = table.find(vni)
            && let Some(sa) = entry.keys.find_rx(rx_spi.get())
        {
            entry.keys.rx_proven(now, sa);
        }
    }

    /// One epoch for both directions, strictly increasing. For vectors and tests: static keys repeat nonces after a
    /// restart.
    pub fn danger_install_epoch(
        &self,
        now: Instant,
        vni: Vni,
        epoch: u32,
        rx_key: SaKey,
        tx_key: SaKey,
        expires_at: Instant,
    ) -> Result<(), InstallError> {
        let mut control = self.control();
        self.change_keys(vni, |network, keys| {
            let last = network.last_epoch.load(Ordering::Relaxed);
            let stale = InstallError::StaleEpoch { given: epoch, last };
            let spi = Spi::new(epoch).filter(|_| epoch > last).ok_or(stale)?;
            let pair = SaPair { rx_spi: spi, tx_spi: spi, rx_key, tx_key, expires_at };
            self.install_pair(now, &mut control, network, keys, pair)?;
            network.last_epoch.store(epoch, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Makes the transmit key in use continue after `last`. Only forward: a value at or below the last one used
    /// changes nothing, and none goes beyond the rekey limit of 2^60. `false`: nothing changed, or there is no key.
    pub fn skip_tx_counter_to(&self, vni: Vni, last: u64) -> bool {
        // An instant before every deadline: a key that still waits is not in use.
        let at = Instant::from_nanos(0);
        let table = self.table.load();
        table.find(vni).and_then(|entry| entry.keys.tx(at)).is_some_and(|sa| sa.counter.skip_to(last))
    }

    pub fn sa_status(&self, now: Instant, vni: Vni) -> Option<SaStatus> {
        let table = self.table.load();
        let keys = &table.find(vni)?.keys;
        let rx = |sa: &RxSa| RxSaStatus { spi: sa.spi, expires_at: sa.valid_until(), superseded: sa.is_superseded() };
        let tx = |sa: &TxSa| TxSaStatus { spi: sa.spi, expires_at: sa.expires_at, sealed: sa.counter.last() };
        Some(SaStatus {
            rx: keys.valid_rx(now).into_iter().map(rx).collect(),
            tx: keys.tx(now).map(tx),
            pending_tx: keys.pending_tx(now),
        })
    }

    /// When [`Engine::handle_timeout`] has something to do next: an expiry, of a key or a path MTU, a switch of keys.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due =
            |entry: &Entry| [entry.keys.next_timeout(), entry.network.path_mtu.expiry()].into_iter().flatten().min();
        self.table.load().entries().iter().filter_map(|entry| due(entry)).min()
    }

    /// Erases expired keys, carries out switches that are due, and forgets path MTUs that are too old. Packets do not
    /// depend on it but for the last: an expired key neither seals nor opens, and a switch that is due comes with the next
    /// packet.
    pub fn handle_timeout(&self, now: Instant) {
        let _control = self.control();
        self.sweep(now);
        self.expire_path_mtus(now);
    }

    fn install_pair(
        &self,
        now: Instant,
        control: &mut Control,
        network: &Network,
        keys: &mut Keys,
        sa: SaPair,
    ) -> Result<(), InstallError> {
        check_expiry(now, sa.expires_at)?;
        if sa.rx_key.same_as(&sa.tx_key) {
            return Err(InstallError::EqualKeys);
        }
        let rx = new_rx(keys, sa.rx_spi, sa.rx_key)?;
        let tx = self.new_tx(sa.tx_spi, sa.tx_key, sa.expires_at)?;
        // Nothing fails from here on.
        let seq = control.next_seq();
        match rx {
            NewRx::Again(live) => live.renew(seq, sa.expires_at),
            NewRx::Fresh(key) => keys.insert_rx(now, Arc::new(RxSa::new(sa.rx_spi, key, seq, sa.expires_at))),
        }
        keys.supersede_older(now, seq);
        keys.set_tx(tx);
        network.start_keepalives();
        Ok(())
    }

    /// Expands a transmit key and, last of all that can fail, records it as used.
    fn new_tx(&self, spi: Spi, key: SaKey, expires_at: Instant) -> Result<Arc<TxSa>, InstallError> {
        let key = AeadKey::new(key).map_err(InstallError::KeyLength)?;
        if !self.tx_key_history.record(spi, key.bytes()) {
            return Err(InstallError::TxKeyReused(spi));
        }
        Ok(Arc::new(TxSa { spi, expires_at, counter: TxCounter::default(), key: Some(key) }))
    }
}

/// A key that expires at this very instant still works in it.
fn check_expiry(now: Instant, expires_at: Instant) -> Result<(), InstallError> {
    if expires_at < now { Err(InstallError::Expired) } else { Ok(()) }
}

fn new_rx(keys: &Keys, spi: Spi, key: SaKey) -> Result<NewRx, InstallError> {
    match keys.find_rx(spi.get()) {
        Some(live) if live.key.as_ref().is_some_and(|used| used.same_as(&key)) => Ok(NewRx::Again(live.clone())),
        _ => AeadKey::new(key).map(NewRx::Fresh).map_err(InstallError::KeyLength),
    }
}
