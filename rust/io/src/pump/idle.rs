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

/// A look that takes longer than this, the yield included, has let others run: they share the processor.
const LATE: Duration = Duration::from_micros(10);

/// How long there is no looking on a processor that is shared. It would take time from those who could use it, such as the
/// process that the packets are for; and whoever yields to them is put behind them (`yield_task_fair` in
/// kernel/sched/fair.c), where one who sleeps is put before them when a packet comes.
const SHARED: Duration = Duration::from_millis(20);

/// Decides between looking again and sleeping.
#[derive(Debug)]
pub(crate) struct Idle {
    patience: Duration,
    /// How many times in a row patience may run out before there is none.
    tries: u32,
    vain: u32,
    /// When there was something to do last.
    last: Instant,
    /// When the look under way began.
    looking: Option<Instant>,
    /// Until then others are taken to share the processor.
    shared: Instant,
}

impl Idle {
    pub(crate) fn new(latency: Latency, now: Instant) -> Self {
        let (patience, tries) = latency.patience();
        Idle { patience, tries, vain: 0, last: now, looking: None, shared: now }
    }

    /// There was something to do in the round that began at `now`.
    pub(crate) fn busy(&mut self, now: Instant) {
        self.looked(now);
        if self.is_soon(now) {
            // Looking for it has paid, or would have.
            self.vain = 0;
        }
        self.last = now;
    }

    /// There was nothing to do in the round that began at `now`: whether to yield and look again, rather than to sleep.
    pub(crate) fn look_again(&mut self, now: Instant) -> bool {
        self.looked(now);
        if self.vain >= self.tries || now < self.shared {
            return false;
        }
        let is_soon = self.is_soon(now);
        self.vain += u32::from(!is_soon);
        self.looking = is_soon.then_some(now);
        is_soon
    }

    /// A look that is over by now says whether others run on the processor.
    fn looked(&mut self, now: Instant) {
        if self.looking.take().is_some_and(|began| now.saturating_since(began) > LATE) {
            self.shared = now.saturating_add(SHARED);
        }
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
            let mut looked = 0;
            while idle.look_again(at(100 + looked)) {
                looked += 1;
            }
            assert_eq!(looked, patience, "{latency:?}");
        }
    }

    #[test]
    fn there_is_no_looking_while_others_share_the_processor() {
        for latency in [Latency::Low, Latency::Balanced] {
            let mut idle = Idle::new(latency, at(0));
            idle.busy(at(100));
            assert!(idle.look_again(at(101)));
            assert!(idle.look_again(at(111)), "as long as a look may take");
            assert!(!idle.look_again(at(122)), "late");
            idle.busy(at(20_121));
            assert!(!idle.look_again(at(20_121)));
            idle.busy(at(20_122));
            assert!(idle.look_again(at(20_122)), "tried again");
            idle.busy(at(20_140));
            assert!(!idle.look_again(at(20_141)), "a look that found something, late");
        }
    }

    #[test]
    fn sleeping_long_says_nothing_about_the_processor() {
        let mut idle = Idle::new(Latency::Low, at(0));
        idle.busy(at(0));
        (0..1000).for_each(|micros| assert!(idle.look_again(at(micros))));
        assert!(!idle.look_again(at(1000)), "patience is over");
        idle.busy(at(50_000));
        assert!(idle.look_again(at(50_001)));
    }

    #[test]
    fn balanced_gives_up_searching_in_vain_and_takes_it_up_when_it_would_have_paid() {
        let mut idle = Idle::new(Latency::Balanced, at(0));
        let mut searched = 0;
        // A packet a millisecond.
        for packet in 1..100 {
            idle.busy(at(packet * 1000));
            searched += u32::from((1..).take_while(|micros| idle.look_again(at(packet * 1000 + micros))).count() > 0);
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
