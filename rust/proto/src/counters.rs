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
        COUNTER_NAMES[RX_DROPS + self as usize]
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
/// The last three are instants of the engine's clock in nanoseconds, zero for never.
pub const COUNTER_NAMES: [&str; 28] = [
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
];

const RX_DROPS: usize = 2;
const TX: usize = 14;
const TX_DROPS: usize = TX + 2;
const LAST_RX: usize = 25;
const LAST_TX: usize = 26;
const LAST_KEEPALIVE: usize = 27;

impl CounterSnapshot {
    pub fn get(&self, name: &str) -> Option<u64> {
        COUNTER_NAMES.iter().position(|&n| n == name).map(|at| self.values[at])
    }
}

/// Live counters. The two directions lie on cache lines of their own, since different threads drive them.
#[derive(Default)]
pub(crate) struct Counters {
    rx: RxCounters,
    tx: TxCounters,
}

#[derive(Default)]
#[repr(align(128))]
struct RxCounters {
    packets_bytes_drops: [AtomicU64; TX],
    last: AtomicU64,
}

#[derive(Default)]
#[repr(align(128))]
struct TxCounters {
    packets_bytes_drops: [AtomicU64; LAST_RX - TX],
    last: AtomicU64,
    last_keepalive: AtomicU64,
}

impl Counters {
    pub(crate) fn received(&self, now: Instant, packets: u64, bytes: u64) {
        self.rx.packets_bytes_drops[0].fetch_add(packets, Ordering::Relaxed);
        self.rx.packets_bytes_drops[1].fetch_add(bytes, Ordering::Relaxed);
        self.rx.last.store(now.as_nanos(), Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, now: Instant, packets: u64, bytes: u64) {
        self.tx.packets_bytes_drops[0].fetch_add(packets, Ordering::Relaxed);
        self.tx.packets_bytes_drops[1].fetch_add(bytes, Ordering::Relaxed);
        self.tx.last.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// A keepalive is a sent packet of no bytes, and leaves `last_tx` to the data.
    pub(crate) fn sent_keepalive(&self, now: Instant) {
        self.tx.packets_bytes_drops[0].fetch_add(1, Ordering::Relaxed);
        self.tx.last_keepalive.store(now.as_nanos(), Ordering::Relaxed);
    }

    pub(crate) fn rx_dropped(&self, reason: RxDrop) {
        self.rx.packets_bytes_drops[RX_DROPS + reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn tx_dropped(&self, reason: TxDrop, packets: u64) {
        self.tx.packets_bytes_drops[TX_DROPS - TX + reason as usize].fetch_add(packets, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> CounterSnapshot {
        let mut values = [0; COUNTER_NAMES.len()];
        let live = self.rx.packets_bytes_drops.iter().chain(&self.tx.packets_bytes_drops);
        for (value, live) in values.iter_mut().zip(live) {
            *value = live.load(Ordering::Relaxed);
        }
        values[LAST_RX] = self.rx.last.load(Ordering::Relaxed);
        values[LAST_TX] = self.tx.last.load(Ordering::Relaxed);
        values[LAST_KEEPALIVE] = self.tx.last_keepalive.load(Ordering::Relaxed);
        CounterSnapshot { values }
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
}
