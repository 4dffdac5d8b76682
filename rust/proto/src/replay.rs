//! The anti-replay window (RFC 6479), shared by every thread that receives under one key.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{hint, thread};

const BLOCK_BITS: u64 = 64;

/// Blocks of the window of a receive key.
pub const BLOCKS: usize = 128;

/// Counters from here on are never accepted.
pub const COUNTER_LIMIT: u64 = u64::MAX - (1 << 13);

/// Accepts each counter at most once, however many threads ask: a bitmap of the last `(N - 1) * 64` counters.
///
/// The bitmap is guarded by a spinlock that is held for at most `N` stores.
pub struct ReplayWindow<const N: usize = BLOCKS> {
    locked: AtomicBool,
    /// The highest counter accepted.
    last: AtomicU64,
    blocks: [AtomicU64; N],
}

impl<const N: usize> ReplayWindow<N> {
    /// How far a counter may lie behind the highest one accepted.
    pub const WINDOW: u64 = (N as u64 - 1) * BLOCK_BITS;

    pub fn new() -> Self {
        const { assert!(N.is_power_of_two() && N >= 2) };
        ReplayWindow {
            locked: AtomicBool::new(false),
            last: AtomicU64::new(0),
            blocks: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Accepts `counter` unless it was accepted before or is too far behind. To be called only for a packet that has
    /// been authenticated.
    #[must_use]
    #[inline]
    pub fn check_and_update(&self, counter: u64) -> bool {
        self.check_and_update_below(counter, COUNTER_LIMIT)
    }

    /// The same with a limit of the caller's, exclusive.
    #[must_use]
    #[inline]
    pub fn check_and_update_below(&self, counter: u64, limit: u64) -> bool {
        if counter >= limit {
            return false;
        }
        let _guard = Guard::lock(&self.locked);
        // The guard orders everything below: relaxed accesses suffice.
        let last = self.last.load(Ordering::Relaxed);
        if counter > last {
            self.advance(last, counter);
        } else if last - counter > Self::WINDOW {
            return false;
        }
        let block = self.block(counter / BLOCK_BITS);
        let bit = 1 << (counter % BLOCK_BITS);
        let seen = block.load(Ordering::Relaxed);
        block.store(seen | bit, Ordering::Relaxed);
        seen & bit == 0
    }

    /// RFC 6479 section 2: moving the window clears whole blocks, at most all of them.
    #[inline]
    fn advance(&self, last: u64, counter: u64) {
        let (from, to) = (last / BLOCK_BITS, counter / BLOCK_BITS);
        for index in 1..=(to - from).min(N as u64) {
            self.block(from + index).store(0, Ordering::Relaxed);
        }
        self.last.store(counter, Ordering::Relaxed);
    }

    #[inline]
    fn block(&self, index: u64) -> &AtomicU64 {
        &self.blocks[index as usize % N]
    }
}

impl<const N: usize> Default for ReplayWindow<N> {
    fn default() -> Self {
        ReplayWindow::new()
    }
}

impl<const N: usize> core::fmt::Debug for ReplayWindow<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ReplayWindow").field("last", &self.last.load(Ordering::Relaxed)).finish_non_exhaustive()
    }
}

/// Turns around the lock before the thread offers its core to whoever holds it and was put to sleep.
const SPINS_BEFORE_YIELD: u32 = 128;

struct Guard<'a>(&'a AtomicBool);

impl<'a> Guard<'a> {
    #[inline]
    fn lock(locked: &'a AtomicBool) -> Self {
        let mut spins = 0;
        while locked.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            spins += 1;
            if cfg!(all(loom, test)) || spins % SPINS_BEFORE_YIELD == 0 {
                thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
        Guard(locked)
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// What the window is to do, with a set of all that was ever accepted.
    #[derive(Default)]
    struct Oracle {
        seen: HashSet<u64>,
        last: u64,
    }

    impl Oracle {
        fn check_and_update(&mut self, counter: u64, window: u64) -> bool {
            if counter >= COUNTER_LIMIT || self.last.saturating_sub(counter) > window {
                return false;
            }
            self.last = self.last.max(counter);
            self.seen.insert(counter)
        }
    }

    /// A walk that repeats, lags and leaps, with edges of blocks and of the window more often than chance has them.
    fn counters(window: u64) -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![
            4 => (-70i64..70).boxed(),
            2 => prop_oneof![Just(0), Just(1), Just(63), Just(64), Just(65)].boxed(),
            2 => (-3i64..3).prop_map(move |off| off - window as i64).boxed(),
            1 => (-3i64..3).prop_map(move |off| off + window as i64).boxed(),
            1 => (0..window as i64 * 5).boxed(),
            1 => (0..window as i64).prop_map(|off| -off).boxed(),
        ];
        let start = prop_oneof![Just(0u64), 0..100_000u64, Just(1 << 60), Just(COUNTER_LIMIT - 500)];
        (start, proptest::collection::vec(step, 1..400)).prop_map(|(start, steps)| {
            let mut at = start;
            let walk = |step: i64| {
                at = at.saturating_add_signed(step);
                at
            };
            core::iter::once(start).chain(steps.into_iter().map(walk)).collect()
        })
    }

    fn agrees<const N: usize>(counters: &[u64]) -> Result<(), TestCaseError> {
        let window = ReplayWindow::<N>::new();
        let mut oracle = Oracle::default();
        for counter in counters {
            let expected = oracle.check_and_update(*counter, ReplayWindow::<N>::WINDOW);
            prop_assert_eq!(window.check_and_update(*counter), expected, "counter {}", counter);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(counters in counters(ReplayWindow::<BLOCKS>::WINDOW)) {
            agrees::<BLOCKS>(&counters)?;
        }

        #[test]
        fn a_small_window_agrees_with_a_set(counters in counters(ReplayWindow::<2>::WINDOW)) {
            agrees::<2>(&counters)?;
        }
    }

    #[test]
    fn the_window_reaches_8128_back() {
        assert_eq!(ReplayWindow::<BLOCKS>::WINDOW, 8128);
        let window = ReplayWindow::<BLOCKS>::new();
        assert!(window.check_and_update(10_000));
        assert!(!window.check_and_update(10_000 - 8129));
        assert!(window.check_and_update(10_000 - 8128));
    }

    #[test]
    fn the_last_counters_are_refused_and_move_nothing() {
        assert_eq!(COUNTER_LIMIT, 18446744073709543423);
        let window = ReplayWindow::<BLOCKS>::new();
        assert!(!window.check_and_update(u64::MAX));
        assert!(!window.check_and_update(COUNTER_LIMIT));
        assert!(window.check_and_update(1));
        assert!(window.check_and_update(COUNTER_LIMIT - 1));
        assert!(!window.check_and_update(2));
    }

    #[test]
    fn each_counter_is_accepted_once_however_many_threads_race() {
        const COUNTERS: u64 = 50_000;
        const THREADS: u64 = 4;
        let window = ReplayWindow::<BLOCKS>::new();
        let accepted: Vec<Vec<u64>> = std::thread::scope(|scope| {
            // Every thread tries every counter, in blocks of 64 that each takes in another order.
            let race = |thread: u64| {
                let order = (0..COUNTERS).map(move |n| n / 64 * 64 + (n * (2 * thread + 1) + thread) % 64);
                order.filter(|counter| window.check_and_update(*counter)).collect()
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || race(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let all: Vec<u64> = accepted.concat();
        let distinct: HashSet<u64> = all.iter().copied().collect();
        assert_eq!(all.len(), distinct.len(), "a counter was accepted twice");
        // A thread that sleeps while others run through the window loses its counters, but not those that they take.
        assert!(distinct.len() as u64 > COUNTERS / 2, "only {} of {COUNTERS} accepted", distinct.len());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// How often each counter is accepted when one thread tries `theirs` while another tries `ours`.
    fn race(ours: &'static [u64], theirs: &'static [u64], check: impl Fn(&dyn Fn(u64) -> u32) + Sync + Send + 'static) {
        loom::model(move || {
            let window = Arc::new(ReplayWindow::<2>::new());
            let other = {
                let window = Arc::clone(&window);
                let attempt = move |counter: &u64| window.check_and_update(*counter).then_some(*counter);
                loom::thread::spawn(move || theirs.iter().filter_map(attempt).collect::<Vec<_>>())
            };
            let mut accepted: Vec<u64> = ours.iter().copied().filter(|c| window.check_and_update(*c)).collect();
            accepted.extend(other.join().unwrap());
            check(&|counter| accepted.iter().filter(|c| **c == counter).count() as u32);
        });
    }

    #[test]
    fn loom_a_counter_is_accepted_exactly_once() {
        race(&[5], &[5], |times| assert_eq!(times(5), 1));
    }

    #[test]
    fn loom_the_same_block_loses_no_bit() {
        race(&[3, 4], &[4, 3], |times| assert_eq!((times(3), times(4)), (1, 1)));
    }

    #[test]
    fn loom_a_moving_window_accepts_nothing_twice() {
        race(&[1, 200], &[1, 200], |times| {
            assert!(times(1) <= 1);
            assert_eq!(times(200), 1);
        });
    }
}
