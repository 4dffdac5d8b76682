//! What belongs to one VNI for as long as it exists, whatever happens to its peer, routes and keys.

use core::time::Duration;
use std::sync::atomic::AtomicU32;

use super::path_mtu::LearnedMtu;
use crate::counters::Counters;
use crate::id::Vni;
use crate::rate_limit::RateLimit;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::Instant;

/// An instant that never comes.
const NEVER: u64 = u64::MAX;

pub(super) struct Network {
    pub(super) vni: Vni,
    pub(super) limit: RateLimit,
    pub(super) counters: Counters,
    pub(super) path_mtu: LearnedMtu,
    /// Written by control calls, under their lock.
    pub(super) last_epoch: AtomicU32,
    /// When the next keepalive is due, in nanoseconds; never without a transmit key.
    keepalive_at: AtomicU64,
}

impl Network {
    pub(super) fn new(vni: Vni, rx_rate_limit: Option<u32>) -> Self {
        Network {
            vni,
            limit: RateLimit::new(rx_rate_limit),
            counters: Counters::default(),
            path_mtu: LearnedMtu::new(),
            last_epoch: AtomicU32::new(0),
            keepalive_at: AtomicU64::new(NEVER),
        }
    }

    pub(super) fn keepalive_due(&self) -> Option<Instant> {
        let at = self.keepalive_at.load(Ordering::SeqCst);
        (at != NEVER).then(|| Instant::from_nanos(at))
    }

    /// `true` for the one caller that shall send the keepalive due at `now`; the next one is due after the interval.
    pub(super) fn claim_keepalive(&self, now: Instant, interval: Duration) -> bool {
        let due = self.keepalive_at.load(Ordering::SeqCst);
        let next = now.saturating_add(interval).as_nanos();
        due != NEVER
            && due <= now.as_nanos()
            && self.keepalive_at.compare_exchange(due, next, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// There is no key to send keepalives with.
    pub(super) fn stop_keepalives(&self) {
        self.keepalive_at.store(NEVER, Ordering::SeqCst);
    }

    /// There is a key: the first keepalive is due at once. Keepalives that run already go on as they are.
    pub(super) fn start_keepalives(&self) {
        let _ = self.keepalive_at.compare_exchange(NEVER, 0, Ordering::SeqCst, Ordering::SeqCst);
    }
}
