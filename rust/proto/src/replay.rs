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
