//! Counters of worker threads: each worker writes its own, and whoever asks gets the sums.

use std::sync::atomic::{AtomicU64, Ordering};

/// Makes the sums, a plain struct, and the counters of one worker, on cache lines of its own.
macro_rules! counters {
    ($(#[$about:meta])* $sums:ident of $worker:ident: $($(#[$doc:meta])* $name:ident,)+) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $sums {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl $sums {
            /// In the order of `values`. Append only.
            pub const NAMES: [&str; [$(stringify!($name)),+].len()] = [$(stringify!($name)),+];

            pub fn values(&self) -> [u64; Self::NAMES.len()] {
                [$(self.$name),+]
            }
        }

        /// The counters of one worker, which alone writes them. On cache lines of its own.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub(crate) struct $worker {
            $(pub(crate) $name: std::sync::atomic::AtomicU64,)+
        }

        impl $worker {
            /// For each of `workers`.
            pub(crate) fn each(workers: usize) -> Box<[Self]> {
                std::iter::repeat_with(Self::default).take(workers).collect()
            }

            pub(crate) fn add_to(&self, sum: &mut $sums) {
                $(sum.$name += self.$name.load(std::sync::atomic::Ordering::Relaxed);)+
            }
        }
    };
}

pub(crate) use counters;

/// Adds to a counter that only the calling thread writes.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}
