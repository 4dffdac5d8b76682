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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILLI: u64 = 1_000_000;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * MILLI)
    }

    /// How many of the frames at these milliseconds pass.
    fn admitted(limit: &RateLimit, millis: impl IntoIterator<Item = u64>) -> u64 {
        millis.into_iter().map(|millis| u64::from(limit.admit(at(millis)))).sum()
    }

    #[test]
    fn small_and_odd_limits_are_exact() {
        for limit in [1, 2, 3, 7, 9, 10, 11, 15, 99, 101, 333, 999] {
            let limiter = RateLimit::new(Some(limit));
            for second in 5..8 {
                let frames = (second * 1000..(second + 1) * 1000).flat_map(|millis| [millis, millis]);
                assert_eq!(admitted(&limiter, frames), u64::from(limit), "second {second} at {limit} a second");
            }
        }
    }

    #[test]
    fn one_a_second_is_one_a_second() {
        let limit = RateLimit::new(Some(1));
        let passed: Vec<u64> = (0..10_000).filter(|millis| limit.admit(at(*millis))).collect();
        assert_eq!(passed, (0..10).map(|second| second * 1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_slot_admits_a_tenth_and_what_it_leaves_is_lost() {
        let limit = RateLimit::new(Some(1000));
        assert_eq!(admitted(&limit, [0; 500]), 100);
        assert_eq!(admitted(&limit, [99; 500]), 0);
        assert_eq!(admitted(&limit, [100; 500]), 100);
        assert_eq!(admitted(&limit, [950; 500]), 100);
    }

    #[test]
    fn the_first_frame_after_a_pause_always_passes() {
        let limit = RateLimit::new(Some(1));
        assert!([3, 1700, 2700, 9999].into_iter().all(|millis| limit.admit(at(millis))));
    }

    #[test]
    fn nothing_is_limited_without_a_limit() {
        for none in [None, Some(0)] {
            let limit = RateLimit::new(none);
            assert_eq!(admitted(&limit, [5; 1000]), 1000);
            assert_eq!(limit.get(), None);
        }
    }

    #[test]
    fn a_limit_changes_while_it_is_in_force() {
        let limit = RateLimit::new(Some(10));
        assert_eq!(admitted(&limit, [0; 100]), 1);
        limit.set(Some(500));
        assert_eq!(admitted(&limit, [1; 100]), 49);
        limit.set(Some(10));
        assert_eq!(admitted(&limit, [2; 100]), 0);
        assert_eq!(admitted(&limit, [1002; 100]), 1);
        limit.set(None);
        assert_eq!(admitted(&limit, [1003; 100]), 100);
    }

    #[test]
    fn a_clock_that_steps_neither_blocks_nor_opens_the_limit() {
        let limit = RateLimit::new(Some(10));
        let day = 86_400_000;
        assert_eq!(admitted(&limit, [day; 10]), 1);
        // A little back, as of a thread that read the clock earlier: nothing more.
        assert_eq!(admitted(&limit, [day - 500; 10]), 0);
        // Far back and far ahead: a new period each.
        assert_eq!(admitted(&limit, [5; 10]), 1);
        assert_eq!(admitted(&limit, [105; 10]), 1);
        assert_eq!(admitted(&limit, [10 * day; 10]), 1);
        let far = RateLimit::new(Some(10));
        assert!(far.admit(Instant::FAR_FUTURE) && !far.admit(Instant::FAR_FUTURE) && far.admit(at(0)));
    }

    #[test]
    fn the_highest_limit_does_not_overflow() {
        let limit = RateLimit::new(Some(u32::MAX));
        assert_eq!(admitted(&limit, (0..2000).flat_map(|millis| [millis; 3])), 6000);
        assert_eq!(first_of(SLOTS, u32::MAX), u64::from(u32::MAX));
    }

    #[test]
    fn threads_share_one_limit() {
        let limit = RateLimit::new(Some(1000));
        for second in 1..20 {
            let passed: u64 = std::thread::scope(|scope| {
                let count = || admitted(&limit, (0..1000).flat_map(|millis| [second * 1000 + millis; 2]));
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            // Threads may lag behind one another by slots, and then leave some unused.
            assert!((1..=1000).contains(&passed), "{passed} in second {second}");
        }
    }

    proptest! {
        #[test]
        fn no_period_admits_more_than_the_limit(
            limit in 1u32..2000,
            gaps in proptest::collection::vec(0u64..300 * MILLI, 1..400),
        ) {
            let limiter = RateLimit::new(Some(limit));
            let mut now = 0;
            let passed: Vec<u64> = gaps
                .into_iter()
                .map(|gap| { now += gap; now })
                .filter(|now| limiter.admit(Instant::from_nanos(*now)))
                .collect();
            // A second begins anywhere: it meets ten whole slots at most, and the ends of two more.
            let most = limit as usize + limit.div_ceil(10) as usize;
            for (index, start) in passed.iter().enumerate() {
                let within = passed[index..].iter().take_while(|now| **now < start + PERIOD_NANOS).count();
                prop_assert!(within <= most, "{within} within a second at {limit}");
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn loom_racing_threads_begin_one_period() {
        loom::model(|| {
            let limit = Arc::new(RateLimit::new(Some(1)));
            assert!(limit.admit(Instant::from_nanos(7)));
            let now = Instant::from_nanos(7 + PERIOD_NANOS);
            let other = {
                let limit = Arc::clone(&limit);
                loom::thread::spawn(move || limit.admit(now))
            };
            let mine = limit.admit(now.saturating_add(core::time::Duration::from_millis(3)));
            assert!(mine != other.join().unwrap(), "one of two frames passes in the new period");
        });
    }
}
