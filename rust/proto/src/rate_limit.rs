//! A limit on frames per second, shared by threads without a lock.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::time::Instant;

/// A period of one second, from the first frame after the last period, in slots of 100 ms.
const SLOTS: u64 = 10;
const SLOT_NANOS: u64 = 100_000_000;
const PERIOD_NANOS: u64 = SLOTS * SLOT_NANOS;

/// Admits exactly as many frames in a period as the limit says, a tenth of them in each slot.
///
/// Slot k of a period holds the frames numbered from `ceil(k * limit / 10)` up to the same of k + 1, so the fractions
/// of small and odd limits add up; what a slot leaves unused is lost. Periods start at least one second apart,
/// unless the clock is set back by a second or more, which starts a new one.
pub struct RateLimit {
    /// Frames per second; 0 is no limit.
    limit: AtomicU32,
    /// The number of the period (32 bits), and in it the number of the next frame (32 bits). Frames are admitted, and
    /// periods begun, by replacing this word.
    state: AtomicU64,
    /// When the periods of even and of odd number started, in nanoseconds. The one that is not current is written
    /// before `state` moves to it.
    starts: [AtomicU64; 2],
}

impl RateLimit {
    /// `None` and `Some(0)` are no limit.
    pub fn new(limit: Option<u32>) -> Self {
        RateLimit {
            limit: AtomicU32::new(limit.unwrap_or(0)),
            state: AtomicU64::new(pack(0, 0)),
            // No clock is there yet: the first frame finds period 0 out of reach and starts period 1.
            starts: [AtomicU64::new(u64::MAX), AtomicU64::new(0)],
        }
    }

    /// Changes the limit. The current period goes on with it.
    pub fn set(&self, limit: Option<u32>) {
        self.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// The limit in force.
    pub fn get(&self) -> Option<u32> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != 0)
    }

    /// Whether a frame that arrives now may pass; it is counted then.
    #[must_use]
    #[inline]
    pub fn admit(&self, now: Instant) -> bool {
        match self.limit.load(Ordering::Relaxed) {
            0 => true,
            limit => self.admit_limited(limit, now.as_nanos()),
        }
    }

    fn admit_limited(&self, limit: u32, now: u64) -> bool {
        loop {
            let state = self.state.load(Ordering::Acquire);
            let (period, next) = unpack(state);
            let spare = &self.starts[period.wrapping_add(1) as usize % 2];
            let spare_start = spare.load(Ordering::Relaxed);
            let start = self.starts[period as usize % 2].load(Ordering::Relaxed);
            let new_state = match slot_of(now, start) {
                Some(slot) => {
                    let number = u64::from(next).max(first_of(slot, limit));
                    if number >= first_of(slot + 1, limit) {
                        return false;
                    }
                    pack(period, number as u32 + 1)
                }
                None => {
                    // When another thread was faster, its start is as good: it also found the last period over.
                    let _ = spare.compare_exchange(spare_start, now, Ordering::Relaxed, Ordering::Relaxed);
                    pack(period.wrapping_add(1), 1)
                }
            };
            if self.state.compare_exchange_weak(state, new_state, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return true;
            }
        }
    }
}

/// Which slot of the period that started at `start` holds `now`; `None` when the period is over. A little before
/// the start, because another thread read the clock later, is the first slot; a whole period before, the clock was
/// set back.
#[inline]
const fn slot_of(now: u64, start: u64) -> Option<u64> {
    if now < start {
        return if start - now < PERIOD_NANOS { Some(0) } else { None };
    }
    if now - start < PERIOD_NANOS { Some((now - start) / SLOT_NANOS) } else { None }
}

/// The number of the first frame of a slot.
#[inline]
const fn first_of(slot: u64, limit: u32) -> u64 {
    (limit as u64 * slot).div_ceil(SLOTS)
}

#[inline]
const fn pack(period: u32, next: u32) -> u64 {
    (period as u64) << 32 | next as u64
}

#[inline]
const fn unpack(state: u64) -> (u32, u32) {
    ((state >> 32) as u32, state as u32)
}

impl core::fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("RateLimit").field(&self.get()).finish()
    }
}
