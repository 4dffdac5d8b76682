//! What proxies have to tell while they run.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::listen::Address;

#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyNotice {
    /// A client of the service on `service` did not give a user and password that are known.
    AuthenticationFailed { service: SocketAddr, client: SocketAddr },
    /// The service cannot take clients at the moment. It tries again.
    AcceptFailing { service: Address, errno: Option<i32>, message: String },
    /// So many notices came too fast to be told.
    Omitted { count: u64 },
}

pub(super) type OnNotice = Box<dyn Fn(ProxyNotice) + Send + Sync>;

/// Tells notices, a few in a second.
pub(super) struct Notices {
    tell: OnNotice,
    pace: Mutex<Pace>,
}

#[derive(Default)]
struct Pace {
    /// When the second began, and how many notices it has had.
    second: Option<Instant>,
    told: u32,
    omitted: u64,
}

impl Pace {
    const MOST: u32 = 3;

    /// Whether a notice may be told now, and if so how many could not before.
    fn allow(&mut self, now: Instant) -> Option<u64> {
        if self.second.is_none_or(|second| now.saturating_duration_since(second) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.told = 0;
        }
        if self.told == Self::MOST {
            self.omitted += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.omitted))
    }
}

impl Notices {
    pub(super) fn new(tell: OnNotice) -> Self {
        Notices { tell, pace: Mutex::default() }
    }

    pub(super) fn tell(&self, notice: impl FnOnce() -> ProxyNotice) {
        let allowed = self.pace.lock().unwrap_or_else(PoisonError::into_inner).allow(Instant::now());
        let Some(omitted) = allowed else { return };
        if omitted > 0 {
            (self.tell)(ProxyNotice::Omitted { count: omitted });
        }
        (self.tell)(notice());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_notices_pass_in_a_second_and_the_rest_are_counted() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let told: Vec<_> = (0..10).filter_map(|_| pace.allow(start)).collect();
        assert_eq!(told, [0; Pace::MOST as usize]);
        assert_eq!(pace.allow(start + Duration::from_millis(999)), None);
        assert_eq!(pace.allow(start + Duration::from_secs(1)), Some(8));
        assert_eq!(pace.allow(start + Duration::from_secs(1)), Some(0));
    }
}
