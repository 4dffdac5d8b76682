//! Drop reasons and counters. Every reason has a counter, every counter a name that users see.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::Instant;

/// Why an inbound frame or datagram went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RxDrop {
    Malformed,
    UnknownVni,
    BadPeer,
    NoKey,
    ExpiredKey,
    SpiMismatch,
    RateLimited,
    AuthFailed,
    Replayed,
    BadInner,
    InvalidSrc,
    InvalidDst,
    BadEcn,
}

/// Why an outbound packet went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TxDrop {
    NotIp,
    Malformed,
    NoRoute,
    NoKey,
    ExpiredKey,
    Exhausted,
    TooBig,
    NoLocal,
    Errors,
}

impl RxDrop {
    /// The counter that goes up by one for this reason.
    pub const fn counter_name(self) -> &'static str {
        COUNTER_NAMES[rx_drop_at(self as usize)]
    }
}

impl TxDrop {
    /// The counter that goes up by one for this reason.
    pub const fn counter_name(self) -> &'static str {
        COUNTER_NAMES[TX_DROPS + self as usize]
    }
}

/// The counters of one VNI, or of the engine for what belongs to none, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// In the order of [`COUNTER_NAMES`].
    pub values: [u64; COUNTER_NAMES.len()],
}

/// Names of the counters, in the order in which every interface gives them. Append only.
/// Those that begin with `last_` are instants of the engine's clock in nanoseconds, zero for never.
pub const COUNTER_NAMES: [&str; 29] = [
    "rx_packets",
    "rx_bytes",
    "rx_malformed",
    "rx_unknown_vni",
    "rx_bad_peer",
    "rx_no_key",
    "rx_expired_key",
    "rx_spi_mismatch",
    "rx_rate_limited",
    "rx_auth_failed",
    "rx_replayed",
    "rx_bad_inner",
    "rx_invalid_src",
    "rx_invalid_dst",
    "tx_packets",
    "tx_bytes",
    "tx_not_ip",
    "tx_malformed",
    "tx_no_route",
    "tx_no_key",
    "tx_expired_key",
    "tx_exhausted",
    "tx_too_big",
    "tx_no_local",
    "tx_errors",
    "last_rx",
    "last_tx",
    "last_keepalive",
    "rx_bad_ecn",
];

const RX_DROPS: usize = 2;
const TX: usize = 14;
const TX_DROPS: usize = TX + 2;
const LAST_RX: usize = 25;
const LAST_TX: usize = 26;
const LAST_KEEPALIVE: usize = 27;
/// Where the reasons for inbound drops go on.
const MORE_RX_DROPS: usize = 28;

/// The reasons for inbound drops that come before what is outbound, and all of them.
const FIRST_RX_DROPS: usize = TX - RX_DROPS;
const ALL_RX_DROPS: usize = RxDrop::BadEcn as usize + 1;

const _: () = assert!(COUNTER_NAMES.len() == MORE_RX_DROPS + (ALL_RX_DROPS - FIRST_RX_DROPS));

const fn rx_drop_at(reason: usize) -> usize {
    if reason < FIRST_RX_DROPS { RX_DROPS + reason } else { MORE_RX_DROPS + (reason - FIRST_RX_DROPS) }
}

const LANES: usize = lane::COUNT;

impl CounterSnapshot {
    pub fn get(&self, name: &str) -> Option<u64> {
        COUNTER_NAMES.iter().position(|&n| n == name).map(|at| self.values[at])
    }
}

/// Live counters. What every packet moves is kept in lanes, one for each thread, so that threads neither wait for each
/// other's cache lines nor need an atomic addition; drops and times are shared.
#[derive(Default)]
pub(crate) struct Counters {
    lanes: [Traffic; LANES],
    /// For the threads that have no lane of their own.
    shared: Traffic,
    drops: Drops,
}

/// Packets and bytes.
#[derive(Default)]
#[repr(align(128))]
struct Traffic {
    rx: [AtomicU64; 2],
    tx: [AtomicU64; 2],
}

#[derive(Default)]
#[repr(align(128))]
struct Drops {
    rx: [AtomicU64; ALL_RX_DROPS],
    last_rx: AtomicU64,
    tx: [AtomicU64; LAST_RX - TX_DROPS],
    last_tx: AtomicU64,
    last_keepalive: AtomicU64,
}

impl Counters {
    #[inline]
    pub(crate) fn received(&self, now: Instant, packets: u64, bytes: u64) {
        self.add(|traffic| &traffic.rx, packets, bytes);
        self.drops.last_rx.store(now.as_nanos(), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn sent(&self, now: Instant, packets: u64, bytes: u64) {
        self.add(|traffic| &traffic.tx, packets, bytes);
        self.drops.last_tx.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// A keepalive is a sent packet of no bytes, and leaves `last_tx` to the data.
    pub(crate) fn sent_keepalive(&self, now: Instant) {
        self.add(|traffic| &traffic.tx, 1, 0);
        self.drops.last_keepalive.store(now.as_nanos(), Ordering::Relaxed);
    }

    #[inline]
    fn add(&self, side: impl Fn(&Traffic) -> &[AtomicU64; 2], packets: u64, bytes: u64) {
        match lane::mine() {
            Some(lane) => {
                // The thread is the lane's only writer: nothing is lost between the load and the store.
                for (counter, by) in side(&self.lanes[lane]).iter().zip([packets, bytes]) {
                    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
                }
            }
            None => {
                for (counter, by) in side(&self.shared).iter().zip([packets, bytes]) {
                    counter.fetch_add(by, Ordering::Relaxed);
                }
            }
        }
    }

    pub(crate) fn rx_dropped(&self, reason: RxDrop) {
        self.drops.rx[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn tx_dropped(&self, reason: TxDrop, packets: u64) {
        self.drops.tx[reason as usize].fetch_add(packets, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> CounterSnapshot {
        let mut values = [0; COUNTER_NAMES.len()];
        for traffic in self.lanes.iter().chain([&self.shared]) {
            for at in 0..2 {
                values[at] += traffic.rx[at].load(Ordering::Relaxed);
                values[TX + at] += traffic.tx[at].load(Ordering::Relaxed);
            }
        }
        let Drops { rx, last_rx, tx, last_tx, last_keepalive } = &self.drops;
        for (reason, drops) in rx.iter().enumerate() {
            values[rx_drop_at(reason)] = drops.load(Ordering::Relaxed);
        }
        for (value, drops) in values[TX_DROPS..LAST_RX].iter_mut().zip(tx) {
            *value = drops.load(Ordering::Relaxed);
        }
        values[LAST_RX] = last_rx.load(Ordering::Relaxed);
        values[LAST_TX] = last_tx.load(Ordering::Relaxed);
        values[LAST_KEEPALIVE] = last_keepalive.load(Ordering::Relaxed);
        CounterSnapshot { values }
    }
}

/// Lanes: small numbers, each held by at most one living thread of the process.
mod lane {
    use std::sync::atomic::{AtomicU32, Ordering};

    pub(super) const COUNT: usize = 16;

    /// One bit for each lane that a thread holds.
    static TAKEN: AtomicU32 = AtomicU32::new(0);

    thread_local! {
        static LANE: Lane = Lane::claim();
    }

    /// Given back when the thread ends.
    struct Lane(Option<usize>);

    impl Lane {
        fn claim() -> Self {
            // Acquire, for what the holder before has written; its release is in `drop`.
            let taken = TAKEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                let free = taken.trailing_ones() as usize;
                (free < COUNT).then(|| taken | 1 << free)
            });
            Lane(taken.ok().map(|taken| taken.trailing_ones() as usize))
        }
    }

    impl Drop for Lane {
        fn drop(&mut self) {
            if let Some(lane) = self.0 {
                TAKEN.fetch_and(!(1 << lane), Ordering::AcqRel);
            }
        }
    }

    /// The lane of this thread; `None` when all are held, and at the very end of the thread.
    #[inline]
    pub(super) fn mine() -> Option<usize> {
        LANE.try_with(|lane| lane.0).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_moves_the_counter_of_its_name() {
        use RxDrop as R;
        use TxDrop as T;
        let rx = [
            R::Malformed,
            R::UnknownVni,
            R::BadPeer,
            R::NoKey,
            R::ExpiredKey,
            R::SpiMismatch,
            R::RateLimited,
            R::AuthFailed,
            R::Replayed,
            R::BadInner,
            R::InvalidSrc,
            R::InvalidDst,
            R::BadEcn,
        ];
        let tx = [
            T::NotIp,
            T::Malformed,
            T::NoRoute,
            T::NoKey,
            T::ExpiredKey,
            T::Exhausted,
            T::TooBig,
            T::NoLocal,
            T::Errors,
        ];
        for reason in rx {
            let counters = Counters::default();
            counters.rx_dropped(reason);
            assert_eq!(counters.snapshot().get(reason.counter_name()), Some(1), "{reason:?}");
            assert_eq!(counters.snapshot().values.iter().sum::<u64>(), 1, "{reason:?}");
        }
        for reason in tx {
            let counters = Counters::default();
            counters.tx_dropped(reason, 1);
            assert_eq!(counters.snapshot().get(reason.counter_name()), Some(1), "{reason:?}");
            assert_eq!(counters.snapshot().values.iter().sum::<u64>(), 1, "{reason:?}");
        }
        assert_eq!(RxDrop::InvalidDst.counter_name(), "rx_invalid_dst");
        assert_eq!(TxDrop::Errors.counter_name(), "tx_errors");
        assert_eq!(COUNTER_NAMES[LAST_RX], "last_rx");
    }

    #[test]
    fn traffic_and_keepalives_are_told_apart_by_their_times() {
        let counters = Counters::default();
        counters.received(Instant::from_nanos(5), 2, 100);
        counters.sent(Instant::from_nanos(6), 3, 200);
        counters.sent_keepalive(Instant::from_nanos(7));
        let seen = counters.snapshot();
        let value = |name| seen.get(name).unwrap();
        assert_eq!((value("rx_packets"), value("rx_bytes"), value("last_rx")), (2, 100, 5));
        assert_eq!((value("tx_packets"), value("tx_bytes"), value("last_tx")), (4, 200, 6));
        assert_eq!(value("last_keepalive"), 7);
    }

    #[test]
    fn traffic_adds_up_over_more_threads_than_lanes_and_after_they_end() {
        let counters = Counters::default();
        for _ in 0..3 {
            let barrier = std::sync::Barrier::new(2 * LANES);
            std::thread::scope(|scope| {
                for _ in 0..2 * LANES {
                    scope.spawn(|| {
                        // All of them are alive at once, so half have no lane.
                        barrier.wait();
                        for _ in 0..1000 {
                            counters.received(Instant::from_nanos(1), 1, 10);
                            counters.sent(Instant::from_nanos(1), 2, 20);
                        }
                        barrier.wait();
                    });
                }
            });
        }
        let seen = counters.snapshot();
        let rounds = 3 * 2 * LANES as u64 * 1000;
        let traffic = ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes"].map(|name| seen.get(name).unwrap());
        assert_eq!(traffic, [rounds, 10 * rounds, 2 * rounds, 20 * rounds]);
    }
}
