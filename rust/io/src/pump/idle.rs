//! How a worker passes the time when there is nothing to do.

use std::time::Duration;

use icx_proto::Instant;

/// How much processor time a worker gives for answering sooner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Latency {
    /// Looks for more for up to a millisecond after each packet.
    Low,
    /// Looks for more for up to 60 microseconds.
    #[default]
    Balanced,
    /// Sleeps at once.
    Idle,
}

impl Latency {
    /// The longest that a worker looks for more before it sleeps.
    fn patience(self) -> Duration {
        Duration::from_micros(match self {
            Latency::Low => 1000,
            Latency::Balanced => 60,
            Latency::Idle => 0,
        })
    }
}

/// Decides between looking again and sleeping.
#[derive(Debug)]
pub(super) struct Idle {
    patience: Duration,
    /// When there was something to do last.
    last: Instant,
}

impl Idle {
    pub(super) fn new(latency: Latency, now: Instant) -> Self {
        Idle { patience: latency.patience(), last: now }
    }

    /// There was something to do.
    pub(super) fn busy(&mut self, now: Instant) {
        self.last = now;
    }

    /// There was nothing to do: whether to look again rather than to sleep.
    pub(super) fn look_again(&self, now: Instant) -> bool {
        now.saturating_since(self.last) < self.patience
    }
}
