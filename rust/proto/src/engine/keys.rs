//! The live keys of one VNI. A set never changes: control calls replace it, together with the table it is part of.
//! What packets change is inside the associations, which old and new sets share.

use core::time::Duration;
use std::sync::Arc;

use super::path_mtu::RECENT;
use super::sa::{AeadKey, PendingTx, RxSa, TxSa};
use crate::counters::TxDrop;
use crate::id::Spi;
use crate::key::SaKey;
use crate::time::Instant;

/// How long a receive key stays usable once a newer one has taken over.
const GRACE: Duration = Duration::from_secs(30);
/// Receive keys kept at once: a few rekeys within the grace period, and exchanges that never finished.
const MAX_RX: usize = 16;

#[derive(Clone, Default)]
pub(super) struct Keys {
    tx: Option<Arc<TxSa>>,
    pending: Option<Arc<PendingTx>>,
    /// The association that sealed before `tx`: its SPI, and the last counter value.
    former: Option<(Spi, u64)>,
    /// No two with one SPI, at most [`MAX_RX`].
    rx: Vec<Arc<RxSa>>,
}

impl Keys {
    // ---- transmit ----

    /// The association that seals at `now`: the waiting one from the moment on at which it need not wait.
    #[inline]
    pub(super) fn tx(&self, now: Instant) -> Option<&TxSa> {
        match &self.pending {
            Some(pending) if pending.is_ready(now) => Some(&pending.sa),
            _ => self.tx.as_deref(),
        }
    }

    /// The association and its key, if it seals at `now`.
    #[inline]
    pub(super) fn usable_tx(&self, now: Instant) -> Result<(&TxSa, &AeadKey), TxDrop> {
        let sa = self.tx(now).ok_or(TxDrop::NoKey)?;
        Ok((sa, sa.usable(now).ok_or(TxDrop::ExpiredKey)?))
    }

    /// The SPI that waits at `now`.
    pub(super) fn pending_tx(&self, now: Instant) -> Option<Spi> {
        self.pending.as_ref().filter(|pending| !pending.is_ready(now)).map(|pending| pending.sa.spi)
    }

    pub(super) fn set_tx(&mut self, sa: Arc<TxSa>) {
        let pending = self.pending.as_ref().map(|pending| &pending.sa).filter(|waiting| !Arc::ptr_eq(waiting, &sa));
        let last_used = pending.into_iter().chain(&self.tx).find(|sa| sa.counter.last() > 0);
        self.former = last_used.map(|sa| (sa.spi, sa.counter.last())).or(self.former);
        self.tx = Some(sa);
        self.pending = None;
    }

    /// Lets `sa` wait for the first packet under `rx_spi`. It takes the place of one that waits already.
    pub(super) fn set_pending(&mut self, rx_spi: Spi, deadline: Instant, sa: Arc<TxSa>) {
        let rx = self.find_rx(rx_spi.get()).cloned();
        self.pending = Some(Arc::new(PendingTx { rx_spi, rx, deadline, sa }));
    }

    /// Whether a packet with this SPI and counter was sent, and not long ago.
    pub(super) fn has_sent(&self, spi: u32, counter: u64) -> bool {
        let waiting = self.pending.as_ref().map(|pending| &*pending.sa);
        let live = [self.tx.as_deref(), waiting].into_iter().flatten();
        let mut known = live.map(|sa| (sa.spi, sa.counter.last())).chain(self.former);
        known.any(|(own, last)| own.get() == spi && (1..=last).contains(&counter) && last - counter < RECENT)
    }

    pub(super) fn sends_with(&self, key: &SaKey) -> bool {
        let uses = |sa: &TxSa| sa.key.as_ref().is_some_and(|used| used.same_as(key));
        self.tx.as_ref().is_some_and(|sa| uses(sa)) || self.pending.as_ref().is_some_and(|pending| uses(&pending.sa))
    }

    // ---- receive ----

    #[inline]
    pub(super) fn find_rx(&self, spi: u32) -> Option<&Arc<RxSa>> {
        self.rx.iter().find(|sa| sa.spi.get() == spi)
    }

    /// Oldest first.
    pub(super) fn valid_rx(&self, now: Instant) -> Vec<&RxSa> {
        let mut valid: Vec<_> = self.rx.iter().map(|sa| &**sa).filter(|sa| sa.opens_at(now)).collect();
        valid.sort_by_key(|sa| sa.seq());
        valid
    }

    pub(super) fn opens_with(&self, key: &SaKey) -> bool {
        self.rx.iter().any(|sa| sa.key.as_ref().is_some_and(|used| used.same_as(key)))
    }

    /// Inserts, in the place of an association with the same SPI if there is one. A full set gives up, in this order:
    /// what has expired, the one superseded first, the oldest under which nothing ever opened, the oldest.
    pub(super) fn insert_rx(&mut self, now: Instant, sa: Arc<RxSa>) {
        self.rx.retain(|other| other.spi != sa.spi);
        if self.rx.len() >= MAX_RX {
            let rank = |sa: &Arc<RxSa>| {
                let class = match sa {
                    sa if !sa.opens_at(now) => 0,
                    sa if sa.is_superseded() => 1,
                    sa if sa.is_unproven() => 2,
                    _ => 3,
                };
                (class, sa.seq())
            };
            if let Some((at, _)) = self.rx.iter().enumerate().min_by_key(|(_, sa)| rank(sa)) {
                self.rx.swap_remove(at);
            }
        }
        if let Some(pending) = &self.pending
            && pending.rx_spi == sa.spi
        {
            self.pending = Some(Arc::new(PendingTx {
                rx_spi: sa.spi,
                rx: Some(sa.clone()),
                deadline: pending.deadline,
                sa: pending.sa.clone(),
            }));
        }
        self.rx.push(sa);
    }

    /// Starts the grace period of every receive key installed before `seq`.
    pub(super) fn supersede_older(&self, now: Instant, seq: u64) {
        for sa in self.rx.iter().filter(|sa| sa.seq() < seq) {
            sa.supersede(now.saturating_add(GRACE));
        }
    }

    /// A packet has opened under `sa`, or the peer is known to have its key.
    #[cold]
    pub(super) fn rx_proven(&self, now: Instant, sa: &RxSa) {
        if sa.prove() {
            self.supersede_older(now, sa.seq());
        }
    }

    // ---- time ----

    /// The first instant at which [`Keys::swept`] finds something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        // At its last instant a key still works.
        let after = |last: Instant| (last < Instant::FAR_FUTURE).then(|| last.saturating_add(Duration::from_nanos(1)));
        let rx = self.rx.iter().filter(|sa| sa.key.is_some()).filter_map(|sa| after(sa.valid_until())).min();
        let tx = self.tx.as_ref().filter(|sa| sa.key.is_some()).and_then(|sa| after(sa.expires_at));
        let pending = self.pending.as_ref().map(|pending| pending.deadline);
        [rx, tx, pending].into_iter().flatten().min()
    }

    /// The set without the key bytes of what has expired, with a switch that is due carried out; `None`: nothing
    /// has to change. What has expired leaves a mark that says so to the packets it stops.
    pub(super) fn swept(&self, now: Instant) -> Option<Keys> {
        if self.next_timeout().is_none_or(|due| now < due) {
            return None;
        }
        let mut keys = Keys { tx: self.tx.clone(), pending: self.pending.clone(), former: self.former, rx: Vec::new() };
        if let Some(pending) = self.pending.as_ref().filter(|pending| pending.is_ready(now)) {
            keys.set_tx(pending.sa.clone());
        }
        if let Some(expired) = keys.tx.as_ref().filter(|sa| sa.usable(now).is_none()) {
            keys.tx = Some(Arc::new(expired.erased()));
        }
        for sa in &self.rx {
            match sa {
                sa if sa.opens_at(now) => keys.rx.push(sa.clone()),
                sa if sa.is_reported() => {}
                sa => keys.rx.push(Arc::new(sa.erased())),
            }
        }
        Some(keys)
    }
}
