//! Telling of strangers without letting them flood anybody.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::event::ControlEventKind;

const INTERVAL: Duration = Duration::from_secs(1);

/// What to do after a rejection was recorded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Report {
    Now(ControlEventKind),
    /// Call [`Rejections::flush`] then.
    At(Instant),
    /// Someone will call [`Rejections::flush`] already.
    Pending,
}

/// Lets one report through a second, and counts what it holds back.
#[derive(Debug, Default)]
pub(crate) struct Rejections {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
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
        match state.last.map(|last| last + INTERVAL) {
            Some(next) if now < next => {
                state.held = Some((remote, reason, 1));
                Report::At(next)
            }
            _ => {
                state.last = Some(now);
                Report::Now(ControlEventKind::PeerRejected { remote, reason, count: 1 })
            }
        }
    }

    /// The report of what was held back.
    pub(crate) fn flush(&self, now: Instant) -> Option<ControlEventKind> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (remote, reason, count) = state.held.take()?;
        state.last = Some(now);
        Some(ControlEventKind::PeerRejected { remote, reason, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_report_a_second_and_none_is_lost_from_the_count() {
        let rejections = Rejections::default();
        let remote = "192.0.2.1:5".parse().unwrap();
        let start = Instant::now();
        let count = |report| match report {
            ControlEventKind::PeerRejected { count, .. } => count,
            other => panic!("{other:?}"),
        };

        let Report::Now(first) = rejections.record(start, remote, "a".into()) else { panic!("the first is told") };
        assert_eq!(count(first), 1);
        let at = start + Duration::from_millis(100);
        assert_eq!(rejections.record(at, remote, "b".into()), Report::At(start + INTERVAL));
        for _ in 0..98 {
            assert_eq!(rejections.record(at, remote, "c".into()), Report::Pending);
        }
        assert_eq!(rejections.flush(start + INTERVAL).map(count), Some(99));
        assert_eq!(rejections.flush(start + INTERVAL), None);
        let soon = start + INTERVAL + Duration::from_millis(1);
        assert_eq!(rejections.record(soon, remote, "d".into()), Report::At(start + 2 * INTERVAL));
        assert_eq!(rejections.flush(start + 2 * INTERVAL).map(count), Some(1));
        assert!(matches!(rejections.record(start + 4 * INTERVAL, remote, "e".into()), Report::Now(_)));
    }
}
