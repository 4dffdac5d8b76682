//! How a worker passes the time when there is nothing to do.

use std::time::Duration;

use icx_proto::Instant;

/// How much processor time a worker gives for answering sooner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Latency {
    /// Looks for more for up to a millisecond after each packet.
    Low,
    /// Looks for more for up to 60 microseconds, as long as that finds something now and then.
    #[default]
    Balanced,
    /// Sleeps at once.
    Idle,
}

impl Latency {
    /// The longest that a worker looks for more before it sleeps, and how many times in a row in vain.
    fn patience(self) -> (Duration, u32) {
        match self {
            Latency::Low => (Duration::from_millis(1), u32::MAX),
            Latency::Balanced => (Duration::from_micros(60), 16),
            Latency::Idle => (Duration::ZERO, 0),
        }
    }
}

/// Decides between looking again and sleeping.
#[derive(Debug)]
pub(super) struct Idle {
    patience: Duration,
    /// How many times in a row patience may run out before there is none.
    tries: u32,
    vain: u32,
    /// When there was something to do last.
    last: Instant,
}

impl Idle {
    pub(super) fn new(latency: Latency, now: Instant) -> Self {
        let (patience, tries) = latency.patience();
        Idle { patience, tries, vain: 0, last: now }
    }

    /// There was something to do.
    pub(super) fn busy(&mut self, now: Instant) {
        if self.is_soon(now) {
            // Looking for it has paid, or would have.
            self.vain = 0;
        }
        self.last = now;
    }

    /// There was nothing to do: whether to look again rather than to sleep.
    pub(super) fn look_again(&mut self, now: Instant) -> bool {
        if self.vain >= self.tries {
            return false;
        }
        let is_soon = self.is_soon(now);
        self.vain += u32::from(!is_soon);
        is_soon
    }

    fn is_soon(&self, now: Instant) -> bool {
        now.saturating_since(self.last) < self.patience
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use icx_proto::Instant;

    use super::{Idle, Latency};

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(0).saturating_add(Duration::from_micros(micros))
    }

    #[test]
    fn the_search_ends_when_patience_does() {
        for (latency, patience) in [(Latency::Low, 1000), (Latency::Balanced, 60), (Latency::Idle, 0)] {
            let mut idle = Idle::new(latency, at(0));
            idle.busy(at(100));
            for micros in [0, 1, 59, 60, 61, 999, 1000, 5000] {
                assert_eq!(idle.look_again(at(100 + micros)), micros < patience, "{latency:?} after {micros} µs");
            }
        }
    }

    #[test]
    fn balanced_gives_up_searching_in_vain_and_takes_it_up_when_it_would_have_paid() {
        let mut idle = Idle::new(Latency::Balanced, at(0));
        let mut searched = 0;
        // A packet a millisecond.
        for packet in 1..100 {
            idle.busy(at(packet * 1000));
            searched += u32::from(idle.look_again(at(packet * 1000 + 1)));
            idle.look_again(at(packet * 1000 + 61));
        }
        assert_eq!(searched, 16);
        assert!(!idle.look_again(at(99_002)));
        idle.busy(at(99_059));
        assert!(idle.look_again(at(99_060)), "the last two came soon after each other");
    }

    #[test]
    fn low_never_gives_up() {
        let mut idle = Idle::new(Latency::Low, at(0));
        for packet in 1..100 {
            idle.busy(at(packet * 10_000));
            assert!(idle.look_again(at(packet * 10_000 + 999)));
            assert!(!idle.look_again(at(packet * 10_000 + 1000)));
        }
    }
}
