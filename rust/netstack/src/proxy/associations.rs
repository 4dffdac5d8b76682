//! UDP has no connections: what belongs together ends after silence, or when there is no room for something newer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::counters::{Presence, Tally, count};

/// As many associations as there may be at a time.
#[derive(Clone)]
pub(super) struct Associations(Arc<Table>);

struct Table {
    most: usize,
    tally: Arc<Tally>,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    next: u64,
    all: HashMap<u64, Arc<Entry>>,
}

struct Entry {
    used: Mutex<Instant>,
    evicted: Notify,
}

/// An association's place. Dropping it gives the place back.
pub(super) struct Association {
    table: Arc<Table>,
    number: u64,
    entry: Arc<Entry>,
    _presence: Presence,
}

impl Associations {
    pub(super) fn new(most: usize, tally: &Arc<Tally>) -> Self {
        Associations(Arc::new(Table { most, tally: Arc::clone(tally), entries: Mutex::default() }))
    }

    /// Makes a place, if need be that of the one which was silent longest.
    pub(super) fn admit(&self) -> Association {
        let Table { most, tally, .. } = &*self.0;
        let entry = Arc::new(Entry { used: Mutex::new(Instant::now()), evicted: Notify::new() });
        let mut entries = self.0.entries();
        if entries.all.len() >= *most {
            let silent = entries.all.iter().min_by_key(|(_, entry)| entry.used()).map(|(&number, _)| number);
            if let Some(oldest) = silent.and_then(|number| entries.all.remove(&number)) {
                oldest.evicted.notify_one();
                count(&tally.associations_evicted, 1);
            }
        }
        let number = entries.next;
        entries.next += 1;
        entries.all.insert(number, Arc::clone(&entry));
        count(&tally.associations_total, 1);
        let presence = Presence::new(tally, |tally| &tally.associations);
        Association { table: Arc::clone(&self.0), number, entry, _presence: presence }
    }
}

impl Table {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Association {
    /// It is not silent.
    pub(super) fn touch(&self) {
        *self.entry.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until it was silent for `timeout`, or has lost its place.
    pub(super) async fn over(&self, timeout: Duration) {
        let silent = async {
            loop {
                let until = self.entry.used() + timeout;
                if until <= Instant::now() {
                    return;
                }
                sleep_until(until).await;
            }
        };
        tokio::select! {
            () = silent => {}
            () = self.entry.evicted.notified() => {}
        }
    }
}

impl Drop for Association {
    fn drop(&mut self) {
        self.table.entries().all.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test);
    }

    async fn is_over(association: &Association) -> bool {
        tokio::select! {
            biased;
            () = association.over(TIMEOUT) => true,
            () = tokio::task::yield_now() => false,
        }
    }

    #[test]
    fn the_longest_silent_one_makes_room() {
        run(async {
            let tally = Arc::new(Tally::default());
            let associations = Associations::new(2, &tally);
            let first = associations.admit();
            tokio::time::advance(Duration::from_secs(1)).await;
            let second = associations.admit();
            tokio::time::advance(Duration::from_secs(1)).await;
            first.touch();
            let third = associations.admit();
            assert_eq!([is_over(&first).await, is_over(&second).await, is_over(&third).await], [false, true, false]);
            drop(second);
            drop(first);
            let fourth = associations.admit();
            assert!(!is_over(&third).await);
            drop((third, fourth));
            let figures = tally.figures();
            assert_eq!([figures.associations, figures.associations_total, figures.associations_evicted], [0, 4, 1]);
        });
    }

    #[test]
    fn silence_ends_one() {
        run(async {
            let associations = Associations::new(2, &Arc::default());
            let association = associations.admit();
            tokio::time::advance(TIMEOUT - Duration::from_secs(1)).await;
            association.touch();
            tokio::time::advance(Duration::from_secs(2)).await;
            assert!(!is_over(&association).await);
            tokio::time::advance(TIMEOUT).await;
            assert!(is_over(&association).await);
        });
    }
}
