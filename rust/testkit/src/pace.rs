//! An even rate.

use std::time::Duration;

/// At most this many at once, however late the sender is.
const BURST: u64 = 64;

/// Tells how many are due, so that their number follows the time that has passed.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Per second; 0 for as many as possible.
    rate: u64,
    done: u64,
}

impl Pace {
    pub fn new(rate: u64) -> Self {
        Pace { rate, done: 0 }
    }

    /// How many to send `elapsed` after the start. What was missed is made up for, in bursts.
    pub fn due(&self, elapsed: Duration) -> u64 {
        if self.rate == 0 {
            return BURST;
        }
        let all = (u128::from(self.rate) * elapsed.as_nanos() / 1_000_000_000) as u64;
        all.saturating_sub(self.done).min(BURST)
    }

    pub fn sent(&mut self, count: u64) {
        self.done += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_follows_the_time_in_bursts() {
        let mut pace = Pace::new(1000);
        assert_eq!(pace.due(Duration::ZERO), 0);
        assert_eq!(pace.due(Duration::from_millis(10)), 10);
        pace.sent(10);
        assert_eq!(pace.due(Duration::from_millis(10)), 0);
        assert_eq!(pace.due(Duration::from_secs(1)), BURST);
        assert_eq!(Pace::new(0).due(Duration::ZERO), BURST);
    }
}
