//! A burst at once, and after it one at a time.

use core::time::Duration;
use std::time::Instant;

/// Lets `burst` steps through at once and then one per `interval`; what is not used gathers again, up to the burst.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Duration,
    burst: u32,
    /// When everything that was let through would have come, had it come one per interval.
    used_until: Option<Instant>,
}

impl Pace {
    pub(crate) const fn new(burst: u32, interval: Duration) -> Self {
        Pace { interval, burst, used_until: None }
    }

    /// Lets one step through, or says when to try again. An attempt that fails uses nothing up.
    pub(crate) fn step(&mut self, now: Instant) -> Result<(), Instant> {
        let used_until = self.used_until.map_or(now, |at| at.max(now)) + self.interval;
        let early = used_until.saturating_duration_since(now).saturating_sub(self.interval * self.burst);
        if !early.is_zero() {
            return Err(now + early);
        }
        self.used_until = Some(used_until);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(10);

    #[test]
    fn a_burst_passes_and_then_one_per_interval() {
        let start = Instant::now();
        let mut pace = Pace::new(5, INTERVAL);
        for _ in 0..5 {
            assert_eq!(pace.step(start), Ok(()));
        }
        for n in 1..=1000 {
            let due = start + n * INTERVAL;
            let early = due - Duration::from_nanos(1);
            assert_eq!(pace.step(early), Err(due), "step {n}");
            assert_eq!(pace.step(early), Err(due), "asking does not put it off");
            assert_eq!(pace.step(due), Ok(()), "step {n}");
        }
    }

    #[test]
    fn a_pause_gathers_one_burst_and_no_more() {
        let start = Instant::now();
        let mut pace = Pace::new(3, INTERVAL);
        for at in [start, start + INTERVAL * 1000] {
            assert_eq!([(); 4].map(|()| pace.step(at).is_ok()), [true, true, true, false]);
        }
        let after_two = start + INTERVAL * 1002;
        assert_eq!([(); 3].map(|()| pace.step(after_two).is_ok()), [true, true, false]);
    }
}
