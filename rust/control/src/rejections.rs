//! Telling of strangers without letting them flood anybody.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::event::ControlEventKind;

/// The shortest time between two reports. A peer with a wrong key tries for ever, so it doubles with each of them,
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
/// up to this one, and begins anew when nobody was rejected for as long.
const LONGEST_INTERVAL: Duration = Duration::from_secs(15);

/// What to do after a rejection was recorded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Report {
    Now(ControlEventKind),
    /// Call [`Rejections::flush`] then.
    At(Instant),
    /// Someone will call [`Rejections::flush`] already.
    Pending,
}

/// Lets the first report through at once and further ones ever less often, and counts what it holds back.
#[derive(Debug, Default)]
pub(crate) struct Rejections {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Earlier than then there is no report, and how long that is after the last one.
    next: Option<(Instant, Duration)>,
    /// Held back since the last report: the latest one, and how many.
    held: Option<(SocketAddr, String, u64)>,
}

impl Rejections {
    pub(crate) fn record(&self, now: Instant, remote: SocketAddr, reason: String) -> Report {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last_remote, last_reason, count)) = &mut state.held {
            (*last_remote, *last_reason, *count) = (remote, reason, *count + 1);
            return Report::Pending;
        }
        match state.next {
            Some((next, _)) if now < next => {
                state.held = Some((remote, reason, 1));
                Report::At(next)
            }
            _ => {
                state.next = Some((now + FIRST_INTERVAL, FIRST_INTERVAL));
                Report::Now(ControlEventKind::PeerRejected { remote, reason, count: 1 })
            }
        }
    }

    /// The report of what was held back.
    pub(crate) fn flush(&self, now: Instant) -> Option<ControlEventKind> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (remote, reason, count) = state.held.take()?;
        let interval = state.next.map_or(FIRST_INTERVAL, |(_, last)| LONGEST_INTERVAL.min(2 * last));
        state.next = Some((now + interval, interval));
        Some(ControlEventKind::PeerRejected { remote, reason, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_of_ever_less_often_and_none_is_lost_from_the_count() {
        let rejections = Rejections::default();
        let remote = "192.0.2.1:5".parse().unwrap();
        let count = |report| match report {
            ControlEventKind::PeerRejected { count, .. } => count,
            other => panic!("{other:?}"),
        };
        let mut now = Instant::now();
        let Report::Now(first) = rejections.record(now, remote, "a".into()) else { panic!("the first is told") };
        assert_eq!(count(first), 1);
        for seconds in [1, 2, 4, 8, 15, 15] {
            let next = now + Duration::from_secs(seconds);
            now += Duration::from_millis(100);
            assert_eq!(rejections.record(now, remote, "b".into()), Report::At(next));
            for _ in 0..98 {
                assert_eq!(rejections.record(now, remote, "c".into()), Report::Pending);
            }
            now = next;
            assert_eq!(rejections.flush(now).map(count), Some(99));
            assert_eq!(rejections.flush(now), None);
        }
        now += Duration::from_secs(15);
        assert!(matches!(rejections.record(now, remote, "d".into()), Report::Now(_)), "after a silence");
        let next = now + Duration::from_secs(1);
        assert_eq!(rejections.record(now, remote, "e".into()), Report::At(next), "it begins anew");
    }
}
