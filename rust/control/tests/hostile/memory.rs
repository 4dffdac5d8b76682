//! What the process holds, and having it to oneself while that is measured.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// How long what is being closed may hold on to memory.
const SETTLE: Duration = Duration::from_secs(10);

static LIVE: AtomicI64 = AtomicI64::new(0);
static TESTS: RwLock<()> = RwLock::new(());

/// Counts the bytes that are allocated and not yet given back.
struct Counting;

#[expect(unsafe_code, reason = "a global allocator cannot be written without")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// No other test of this file's binary runs while this is held.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    TESTS.write().unwrap_or_else(PoisonError::into_inner)
}

/// Other tests may run, but none that is [`alone`].
pub(crate) fn shared() -> RwLockReadGuard<'static, ()> {
    TESTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of Rust's allocations, and of pages in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) live: i64,
    pub(crate) resident: i64,
}

impl Memory {
    pub(crate) fn now() -> Self {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: i64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        Memory { live: LIVE.load(Ordering::Relaxed), resident: pages * 4096 }
    }

    fn grown(self) -> Self {
        let now = Memory::now();
        Memory { live: now.live - self.live, resident: now.resident - self.resident }
    }

    /// Asserts that since then at most `mib` MiB were allocated and kept, and prints how many bytes were. What still
    /// closes has [`SETTLE`] to let go.
    pub(crate) fn assert_growth(self, what: &str, mib: i64) {
        let deadline = Instant::now() + SETTLE;
        let mut grown = self.grown();
        while grown.live > mib << 20 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
            grown = self.grown();
        }
        println!("{what}: {grown:?}");
        assert!(grown.live <= mib << 20, "{what}: {grown:?} in bytes, at most {mib} MiB expected");
        // Pages stay with the allocator for a while.
        assert!(grown.resident <= (4 * mib + 32) << 20, "{what}: {grown:?} in bytes");
    }
}
