//! One VNI: its associations, counters and clocks, which outlive every change of peer or routes.

use core::time::Duration;
use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};
use std::sync::atomic::AtomicU32;

use crate::counters::Counters;
use crate::engine::sa::{PendingTx, RxSa, TxSa};
use crate::id::{Spi, Vni};
use crate::key::SaKey;
use crate::rate_limit::RateLimit;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::Instant;

/// How long a receive key stays usable once a newer one has taken over.
pub(super) const GRACE: Duration = Duration::from_secs(30);
/// Receive keys that may be live at once: a few rekeys within the grace period, and exchanges that never finished.
pub(super) const MAX_RX_SAS: usize = 16;
/// An instant that never comes, in the atomics that hold one.
const NEVER: u64 = u64::MAX;

pub(super) struct Network {
    pub(super) vni: Vni,
    pub(super) tx: ArcSwapOption<TxSa>,
    pub(super) rx: RxSas,
    pub(super) limit: RateLimit,
    pub(super) counters: Counters,
    /// Written by control calls, under their lock.
    pub(super) last_epoch: AtomicU32,
    pending: ArcSwapOption<PendingTx>,
    /// Not later than the deadline of `pending`, in nanoseconds, so that the packet path reads one number.
    switch_at: AtomicU64,
    /// When the next keepalive is due, in nanoseconds; never without a transmit key.
    keepalive_at: AtomicU64,
}

impl Network {
    pub(super) fn new(vni: Vni, rx_rate_limit: Option<u32>) -> Self {
        Network {
            vni,
            tx: ArcSwapOption::empty(),
            rx: RxSas::default(),
            limit: RateLimit::new(rx_rate_limit),
            counters: Counters::default(),
            last_epoch: AtomicU32::new(0),
            pending: ArcSwapOption::empty(),
            switch_at: AtomicU64::new(NEVER),
            keepalive_at: AtomicU64::new(NEVER),
        }
    }

    // ---- transmit keys ----

    /// The transmit key in use at `now`, after the switch that may be due.
    #[inline]
    pub(super) fn current_tx(&self, now: Instant) -> Guard<Option<Arc<TxSa>>> {
        if now.as_nanos() >= self.switch_at.load(Ordering::Acquire) {
            self.switch_if_due(now);
        }
        self.tx.load()
    }

    /// Puts `sa` in use unless a later install is in use already.
    pub(super) fn activate_tx(&self, sa: Arc<TxSa>) {
        let mut current = self.tx.load();
        while current.as_ref().is_none_or(|current| current.seq < sa.seq) {
            let found = self.tx.compare_and_swap(&*current, Some(sa.clone()));
            if same(&found, &current) {
                break;
            }
            current = found;
        }
        self.wake_keepalive();
    }

    pub(super) fn set_pending(&self, pending: Arc<PendingTx>) {
        let deadline = pending.deadline.as_nanos();
        self.pending.store(Some(pending));
        self.switch_at.store(deadline, Ordering::Release);
    }

    pub(super) fn clear_pending(&self) {
        self.pending.store(None);
        self.switch_at.store(NEVER, Ordering::Release);
    }

    pub(super) fn pending(&self) -> Guard<Option<Arc<PendingTx>>> {
        self.pending.load()
    }

    #[cold]
    pub(super) fn switch_if_due(&self, now: Instant) {
        self.switch_when(|pending| pending.deadline <= now);
    }

    fn switch_when(&self, ready: impl Fn(&PendingTx) -> bool) {
        let current = self.pending.load();
        let Some(pending) = current.as_ref() else { return };
        if !ready(pending) {
            return;
        }
        let found = self.pending.compare_and_swap(&*current, None::<Arc<PendingTx>>);
        if same(&found, &current) {
            self.activate_tx(pending.sa.clone());
            // A newer pending key has set another deadline, which stays; should it be the same one, the sweep of
            // `Engine::handle_timeout` looks at the pending key itself.
            let _ = self.switch_at.compare_exchange(
                pending.deadline.as_nanos(),
                NEVER,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
    }

    // ---- receive keys ----

    /// A packet has opened under `sa`, or the peer is known to have its key.
    #[cold]
    pub(super) fn rx_proven(&self, now: Instant, sa: &RxSa) {
        if sa.prove() {
            self.rx.supersede_older(now, sa.seq());
            self.switch_when(|pending| pending.rx_spi == sa.spi);
        }
    }

    /// Takes over a key that waits for `rx_spi`, if that has proven itself meanwhile.
    pub(super) fn switch_if_proven(&self, rx_spi: Spi) {
        if self.rx.find(rx_spi.get()).as_ref().is_some_and(|(_, sa)| !sa.is_unproven()) {
            self.switch_when(|pending| pending.rx_spi == rx_spi);
        }
    }

    // ---- time ----

    /// The first instant at which [`Network::sweep`] finds something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let after = |last: Instant| (last < Instant::FAR_FUTURE).then(|| last.saturating_add(Duration::from_nanos(1)));
        let rx = self.rx.iter().filter_map(|sa| after(sa.valid_until())).min();
        let tx = self.tx.load().as_ref().filter(|sa| sa.key.is_some()).and_then(|sa| after(sa.expires_at));
        let pending = self.pending.load().as_ref().map(|pending| pending.deadline);
        [rx, tx, pending].into_iter().flatten().min()
    }

    /// Erases what has expired and carries out a switch that is due. Callers hold the control lock.
    pub(super) fn sweep(&self, now: Instant) {
        self.switch_if_due(now);
        self.rx.sweep(now);
        let current = self.tx.load();
        if let Some(sa) = current.as_ref()
            && sa.key.is_some()
            && sa.usable(now).is_none()
        {
            self.tx.compare_and_swap(&*current, Some(Arc::new(sa.erased())));
        }
    }

    /// Lets go of every key; each is erased when the last packet that uses it is done.
    pub(super) fn erase_keys(&self) {
        self.clear_pending();
        self.tx.store(None);
        self.rx.clear();
    }

    // ---- keepalives ----

    pub(super) fn keepalive_due(&self) -> Option<Instant> {
        let at = self.keepalive_at.load(Ordering::Relaxed);
        (at != NEVER).then(|| Instant::from_nanos(at))
    }

    /// `true` for the one caller that shall send the keepalive due at `now`.
    pub(super) fn claim_keepalive(&self, now: Instant, interval: Duration) -> bool {
        let due = self.keepalive_at.load(Ordering::Acquire);
        if due == NEVER || now.as_nanos() < due {
            return false;
        }
        let next = now.saturating_add(interval).as_nanos();
        if self.keepalive_at.compare_exchange(due, next, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return false;
        }
        if self.tx.load().as_ref().is_some_and(|sa| sa.usable(now).is_some()) {
            return true;
        }
        // No key: sleep until one comes, and look again in case it came just now.
        let slept = self.keepalive_at.compare_exchange(next, NEVER, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        if slept && self.tx.load().as_ref().is_some_and(|sa| sa.usable(now).is_some()) {
            self.wake_keepalive();
        }
        false
    }

    fn wake_keepalive(&self) {
        let _ = self.keepalive_at.compare_exchange(NEVER, 0, Ordering::SeqCst, Ordering::Relaxed);
    }
}

fn same<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// The live receive keys. Packets find one by its SPI and erase an expired one without a lock or an allocation;
/// inserting is for the control path, which serialises itself.
#[derive(Default)]
pub(super) struct RxSas {
    /// The SPI of each slot, zero for none: a hint that is checked against the association itself.
    spis: [AtomicU32; MAX_RX_SAS],
    slots: [ArcSwapOption<RxSa>; MAX_RX_SAS],
}

impl RxSas {
    /// The association of `spi` and its slot.
    #[inline]
    pub(super) fn find(&self, spi: u32) -> Option<(usize, Arc<RxSa>)> {
        self.find_guarded(spi).and_then(|(at, sa)| Some((at, Arc::clone((*sa).as_ref()?))))
    }

    /// Like [`RxSas::find`] without counting a reference; the guard holds `Some`.
    #[inline]
    pub(super) fn find_guarded(&self, spi: u32) -> Option<(usize, Guard<Option<Arc<RxSa>>>)> {
        if spi == 0 {
            return None;
        }
        let at = self.spis.iter().position(|slot| slot.load(Ordering::Acquire) == spi)?;
        let sa = self.slots[at].load();
        sa.as_ref().is_some_and(|sa| sa.spi.get() == spi).then_some((at, sa))
    }

    /// Empties `slot` if it still holds `sa`.
    #[cold]
    pub(super) fn erase(&self, slot: usize, sa: &Guard<Option<Arc<RxSa>>>) {
        self.slots[slot].compare_and_swap(&**sa, None::<Arc<RxSa>>);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Arc<RxSa>> {
        self.slots.iter().filter_map(|slot| slot.load_full())
    }

    /// Inserts, in the place of an association with the same SPI if there is one. A full set gives up, in this order:
    /// what has expired, the one superseded first, the oldest under which nothing ever opened, the oldest.
    pub(super) fn insert(&self, now: Instant, sa: RxSa) {
        let spi = sa.spi.get();
        let at = self.find_guarded(spi).map(|(at, _)| at).unwrap_or_else(|| {
            let rank = |slot: &ArcSwapOption<RxSa>| match slot.load().as_ref() {
                None => (0, 0),
                Some(sa) if sa.valid_until() < now => (1, sa.seq()),
                Some(sa) if sa.is_superseded() => (2, sa.seq()),
                Some(sa) if sa.is_unproven() => (3, sa.seq()),
                Some(sa) => (4, sa.seq()),
            };
            (0..MAX_RX_SAS).min_by_key(|&at| rank(&self.slots[at])).unwrap_or(0)
        });
        self.slots[at].store(Some(Arc::new(sa)));
        self.spis[at].store(spi, Ordering::Release);
    }

    /// Whether `key` is one of the live receive keys.
    pub(super) fn holds_key(&self, key: &SaKey) -> bool {
        self.iter().any(|sa| sa.key.same_as(key))
    }

    /// Starts the grace period of every association installed before `seq`.
    pub(super) fn supersede_older(&self, now: Instant, seq: u64) {
        for slot in &self.slots {
            if let Some(sa) = slot.load().as_ref()
                && sa.seq() < seq
            {
                sa.supersede(now.saturating_add(GRACE));
            }
        }
    }

    fn sweep(&self, now: Instant) {
        for (slot, spi) in self.slots.iter().zip(&self.spis) {
            if slot.load().as_ref().is_some_and(|sa| sa.valid_until() < now) {
                slot.store(None);
            }
            if slot.load().is_none() {
                spi.store(0, Ordering::Release);
            }
        }
    }

    fn clear(&self) {
        for (slot, spi) in self.slots.iter().zip(&self.spis) {
            spi.store(0, Ordering::Release);
            slot.store(None);
        }
    }
}
