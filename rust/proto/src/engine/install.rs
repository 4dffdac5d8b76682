//! Security associations come and go: the control path of keys.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::network::Network;
use super::sa::{AeadKey, PendingTx, RxSa, TxCounter, TxSa};
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
        let network = self.network(vni)?;
        self.install_pair(now, &mut control.last_seq, &network, sa)
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
        let network = self.network(vni)?;
        check_expiry(now, expires_at)?;
        if network.sends_with(&key) {
            return Err(InstallError::EqualKeys);
        }
        match new_rx(&network, spi, key)? {
            NewRx::Again(live) => live.set_expiry(expires_at),
            NewRx::Fresh(key) => {
                let seq = next(&mut control.last_seq);
                network.rx.insert(now, RxSa::new(spi, key, seq, expires_at));
            }
        }
        Ok(())
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
        let mut control = self.control();
        let network = self.network(vni)?;
        check_expiry(now, expires_at)?;
        if network.rx.holds_key(&key) {
            return Err(InstallError::EqualKeys);
        }
        let key = self.new_tx(spi, key)?;
        let sa = new_tx_sa(spi, key, next(&mut control.last_seq), expires_at);
        match switch {
            TxSwitch::OnFirstOpen { rx_spi, deadline } if deadline > now => {
                network.set_pending(Arc::new(PendingTx { rx_spi, deadline, sa }));
                network.switch_if_proven(rx_spi);
            }
            TxSwitch::OnFirstOpen { .. } | TxSwitch::Now => {
                network.clear_pending();
                network.activate_tx(sa);
            }
        }
        Ok(())
    }

    /// The peer is known to hold the key pair of `rx_spi`: older receive keys are superseded (30 s), and a transmit
    /// key that waited for it takes over.
    pub fn confirm_rx(&self, now: Instant, vni: Vni, rx_spi: Spi) {
        let _control = self.control();
        if let Ok(network) = self.network(vni)
            && let Some((_, sa)) = network.rx.find(rx_spi.get())
        {
            network.rx_proven(now, &sa);
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
        let network = self.network(vni)?;
        let last = network.last_epoch.load(Ordering::Relaxed);
        let spi = Spi::new(epoch).filter(|_| epoch > last).ok_or(InstallError::StaleEpoch { given: epoch, last })?;
        let pair = SaPair { rx_spi: spi, tx_spi: spi, rx_key, tx_key, expires_at };
        self.install_pair(now, &mut control.last_seq, &network, pair)?;
        network.last_epoch.store(epoch, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the current transmit key continue after `last`. Only forward: a value at or below the last one used
    /// changes nothing, and none goes beyond the rekey limit of 2^60.
    pub fn skip_tx_counter_to(&self, vni: Vni, last: u64) -> bool {
        let Ok(network) = self.network(vni) else { return false };
        network.tx.load().as_ref().is_some_and(|sa| sa.counter.skip_to(last))
    }

    pub fn sa_status(&self, now: Instant, vni: Vni) -> Option<SaStatus> {
        let network = self.network(vni).ok()?;
        let tx = network.current_tx(now);
        let mut live: Vec<_> = network.rx.iter().filter(|sa| now <= sa.valid_until()).collect();
        live.sort_by_key(|sa| sa.seq());
        Some(SaStatus {
            rx: live
                .iter()
                .map(|sa| RxSaStatus { spi: sa.spi, expires_at: sa.valid_until(), superseded: sa.is_superseded() })
                .collect(),
            tx: tx.as_ref().map(|sa| TxSaStatus { spi: sa.spi, expires_at: sa.expires_at, sealed: sa.counter.last() }),
            pending_tx: network.pending().as_ref().map(|pending| pending.sa.spi),
        })
    }

    /// When [`Engine::handle_timeout`] has something to do next: an expiry, a switch of keys.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table.load().entries().iter().filter_map(|entry| entry.network.next_timeout()).min()
    }

    /// Erases expired keys and carries out switches that are due. Packets do not depend on it: an expired key
    /// neither seals nor opens, and a switch that is due comes with the next packet.
    pub fn handle_timeout(&self, now: Instant) {
        let _control = self.control();
        for entry in self.table.load().entries() {
            entry.network.sweep(now);
        }
    }

    fn network(&self, vni: Vni) -> Result<Arc<Network>, InstallError> {
        let table = self.table.load();
        table.find(vni).map(|entry| entry.network.clone()).ok_or(InstallError::UnknownVni(vni))
    }

    fn install_pair(
        &self,
        now: Instant,
        last_seq: &mut u64,
        network: &Network,
        sa: SaPair,
    ) -> Result<(), InstallError> {
        check_expiry(now, sa.expires_at)?;
        if sa.rx_key.same_as(&sa.tx_key) {
            return Err(InstallError::EqualKeys);
        }
        let rx = new_rx(network, sa.rx_spi, sa.rx_key)?;
        let tx_key = self.new_tx(sa.tx_spi, sa.tx_key)?;
        // Nothing fails from here on.
        let seq = next(last_seq);
        match rx {
            NewRx::Again(live) => live.renew(seq, sa.expires_at),
            NewRx::Fresh(key) => network.rx.insert(now, RxSa::new(sa.rx_spi, key, seq, sa.expires_at)),
        }
        network.rx.supersede_older(now, seq);
        network.clear_pending();
        network.activate_tx(new_tx_sa(sa.tx_spi, tx_key, seq, sa.expires_at));
        Ok(())
    }

    /// Expands a transmit key and, last of all that can fail, records it as used.
    fn new_tx(&self, spi: Spi, key: SaKey) -> Result<AeadKey, InstallError> {
        let key = AeadKey::new(key).map_err(InstallError::KeyLength)?;
        if self.tx_key_history.record(spi, key.bytes()) { Ok(key) } else { Err(InstallError::TxKeyReused(spi)) }
    }
}

impl Network {
    fn sends_with(&self, key: &SaKey) -> bool {
        let uses = |sa: &TxSa| sa.key.as_ref().is_some_and(|used| used.same_as(key));
        self.tx.load().as_ref().is_some_and(|sa| uses(sa))
            || self.pending().as_ref().is_some_and(|pending| uses(&pending.sa))
    }
}

fn next(last_seq: &mut u64) -> u64 {
    *last_seq += 1;
    *last_seq
}

/// A key that expires at this very instant still works in it.
fn check_expiry(now: Instant, expires_at: Instant) -> Result<(), InstallError> {
    if expires_at < now { Err(InstallError::Expired) } else { Ok(()) }
}

fn new_rx(network: &Network, spi: Spi, key: SaKey) -> Result<NewRx, InstallError> {
    match network.rx.find(spi.get()) {
        Some((_, live)) if live.key.same_as(&key) => Ok(NewRx::Again(live)),
        _ => AeadKey::new(key).map(NewRx::Fresh).map_err(InstallError::KeyLength),
    }
}

fn new_tx_sa(spi: Spi, key: AeadKey, seq: u64, expires_at: Instant) -> Arc<TxSa> {
    Arc::new(TxSa { spi, seq, expires_at, counter: TxCounter::default(), key: Some(key) })
}
