//! The library-wide event queue: one caller at a time waits on it and takes what has come, in order.
//!
//! The queue is bounded per handle. What is in it stays; a newer event that finds its handle's share used up
//! takes the place of the latest one of the same kind, and a closed handle takes its events with it.
//!
//! While there are devices or sockets that a caller reads and writes itself, the same wait tells when they are ready. What is open on a
//! network stack rings a [`Bell`] instead.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use icx_io::{Direction, Readiness, clock};

use crate::code::Code;
use crate::error::{Failure, Outcome};
use crate::handle::lock;

/// What an event tells of. The numbers are part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    PumpEnded = 1,
    Readable = 2,
    Writable = 3,
    PumpNotice = 4,
    #[cfg(feature = "afxdp")]
    ForwarderEnded = 5,
    #[cfg(feature = "afxdp")]
    ForwarderNotice = 6,
    ProxyEnded = 7,
    ProxyNotice = 8,
    SessionUp = 10,
    SessionLost = 11,
    DialFailed = 12,
    ExchangeDone = 13,
    ExchangeFailed = 14,
    PeerRejected = 15,
}

/// Events that one handle may have waiting.
const MAX_PER_HANDLE: usize = 256;

/// Bytes before the payload: total length, kind, handle, code.
const HEADER: usize = 16;

struct Event {
    kind: Kind,
    handle: u32,
    code: Code,
    payload: String,
}

impl Event {
    fn encoded_len(&self) -> usize {
        (HEADER + self.payload.len()).next_multiple_of(4)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let len = self.encoded_len();
        // A payload is a few hundred bytes, far from 4 GiB.
        out.extend_from_slice(&(len as u32).to_le_bytes());
        out.extend_from_slice(&(self.kind as u32).to_le_bytes());
        out.extend_from_slice(&self.handle.to_le_bytes());
        out.extend_from_slice(&(self.code as i32).to_le_bytes());
        out.extend_from_slice(self.payload.as_bytes());
        out.resize(start + len, 0);
    }
}

struct State {
    queue: VecDeque<Event>,
    /// Queued events per handle; no entry for none.
    queued: Option<HashMap<u32, usize>>,
    /// The present waiter, or the next one, is to return at once.
    woken: bool,
    waiting: bool,
    /// When handles are to be told that they can be read, one time each.
    reminders: Vec<(Instant, u32)>,
    /// Where the waiter waits while somebody's descriptors may have to be waited for, and how many may.
    readiness: Option<(Arc<Readiness>, usize)>,
}

impl State {
    const EMPTY: State = State {
        queue: VecDeque::new(),
        queued: None,
        woken: false,
        waiting: false,
        reminders: Vec::new(),
        readiness: None,
    };
}

static STATE: Mutex<State> = Mutex::new(State::EMPTY);
static CHANGED: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, State> {
    lock(&STATE)
}

pub(crate) fn push(kind: Kind, handle: u32, code: Code, payload: String) {
    let mut state = state();
    state.push(Event { kind, handle, code, payload });
    interrupt(state);
}

/// Makes the waiter look again, wherever it waits.
fn interrupt(state: MutexGuard<'static, State>) {
    let readiness = state.readiness.as_ref().map(|(readiness, _)| Arc::clone(readiness));
    drop(state);
    CHANGED.notify_all();
    if let Some(readiness) = readiness {
        readiness.wake();
    }
}

/// A descriptor's way into the queue: events 2 and 3 for its handle.
#[derive(Default)]
pub(crate) struct Watch(Mutex<Option<Arc<Readiness>>>);

impl Watch {
    /// What is to be armed. The waiter is there from the first time on.
    pub(crate) fn readiness(&self) -> Outcome<Arc<Readiness>> {
        let mut own = lock(&self.0);
        if let Some(readiness) = &*own {
            return Ok(Arc::clone(readiness));
        }
        let mut state = state();
        let readiness = match &mut state.readiness {
            Some((readiness, watches)) => {
                *watches += 1;
                Arc::clone(readiness)
            }
            none => {
                let new = Readiness::new()
                    .map(Arc::new)
                    .map_err(|error| Failure::system("make room to wait for packets", &error, error.raw_os_error()))?;
                *none = Some((Arc::clone(&new), 1));
                new
            }
        };
        interrupt(state);
        *own = Some(Arc::clone(&readiness));
        Ok(readiness)
    }

    /// Nothing is armed through it any more. With the last one, the waiter lets go of what it waits with.
    pub(crate) fn end(&self) {
        let Some(own) = lock(&self.0).take() else { return };
        let mut state = state();
        if let Some((_, watches)) = &mut state.readiness {
            *watches -= 1;
            if *watches == 0 {
                state.readiness = None;
            }
        }
        drop(state);
        own.wake();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

/// Event 2 comes for `handle` at `at`, in place of the time that was said before.
pub(crate) fn remind(handle: u32, at: icx_proto::Instant) {
    let left = Duration::from_nanos(at.as_nanos().saturating_sub(clock::now().as_nanos()));
    let mut state = state();
    state.reminders.retain(|(_, other)| *other != handle);
    state.reminders.push((Instant::now() + left, handle));
    interrupt(state);
}

/// A handle's way into the queue for what wakes a [`Waker`]: events 2 and 3.
pub(crate) struct Bell {
    live: Arc<Mutex<bool>>,
    readable: Waker,
    writable: Waker,
}

/// One direction of a [`Bell`].
struct Clapper {
    live: Arc<Mutex<bool>>,
    kind: Kind,
    handle: u32,
}

impl Bell {
    pub(crate) fn new(handle: u32) -> Self {
        let live = Arc::new(Mutex::new(true));
        let waker = |kind| Waker::from(Arc::new(Clapper { live: Arc::clone(&live), kind, handle }));
        Bell { readable: waker(Kind::Readable), writable: waker(Kind::Writable), live: Arc::clone(&live) }
    }

    /// What brings about one event of this kind each time that it is armed.
    pub(crate) fn waker(&self, kind: Kind) -> &Waker {
        if kind == Kind::Writable { &self.writable } else { &self.readable }
    }

    /// Whoever still has a waker brings about nothing any more.
    pub(crate) fn silence(&self) {
        *lock(&self.live) = false;
    }
}

impl Wake for Clapper {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Held to the end: behind a silence nothing is pushed.
        let live = lock(&self.live);
        if *live {
            push(self.kind, self.handle, Code::Ok, String::new());
        }
    }
}

/// Removes what is queued for a handle that is gone.
pub(crate) fn forget(handle: u32) {
    state().forget(handle);
}

/// Makes the waiter return; without one, the next wait returns at once.
pub(crate) fn wake() {
    let mut state = state();
    state.woken = true;
    interrupt(state);
}

/// Waits for events, at most `timeout`, and takes as many whole ones as `capacity` bytes hold. Empty: timeout or woken.
pub(crate) fn wait(capacity: usize, timeout: Duration) -> Outcome<Vec<u8>> {
    let deadline = Instant::now() + timeout;
    let mut state = state();
    if state.waiting {
        return Err(Failure::new(Code::Busy, "Another call waits for events already: there can be one at a time"));
    }
    state.waiting = true;
    let outcome = loop {
        if state.woken {
            state.woken = false;
            break Ok(Vec::new());
        }
        let now = Instant::now();
        let reminder = state.take_reminders(now);
        if !state.queue.is_empty() {
            break state.take(capacity);
        }
        let left = deadline.saturating_duration_since(now);
        if left.is_zero() {
            break Ok(Vec::new());
        }
        let left = reminder.map_or(left, |at| left.min(at.saturating_duration_since(now)));
        let Some(readiness) = state.readiness.as_ref().map(|(readiness, _)| Arc::clone(readiness)) else {
            state = CHANGED.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        };
        drop(state);
        let mut ready = Vec::new();
        let waited = readiness.wait(left, &mut |direction, handle| {
            let kind = match direction {
                Direction::Read => Kind::Readable,
                Direction::Write => Kind::Writable,
            };
            ready.push(Event { kind, handle, code: Code::Ok, payload: String::new() });
        });
        // Not under the lock: it closes with its last owner.
        drop(readiness);
        state = self::state();
        for event in ready {
            state.push(event);
        }
        if let Err(error) = waited {
            break Err(Failure::system("wait for packets", &error, error.raw_os_error()));
        }
    };
    state.waiting = false;
    outcome
}

impl State {
    fn push(&mut self, event: Event) {
        let queued = self.queued.get_or_insert_default().entry(event.handle).or_default();
        if *queued < MAX_PER_HANDLE {
            *queued += 1;
            self.queue.push_back(event);
            return;
        }
        let same = |old: &&mut Event| old.handle == event.handle && old.kind == event.kind;
        if let Some(old) = self.queue.iter_mut().rev().find(same) {
            *old = event;
        }
    }

    /// Tells the handles whose time has come. Returns the next time.
    fn take_reminders(&mut self, now: Instant) -> Option<Instant> {
        let due: Vec<u32> = self.reminders.extract_if(.., |(at, _)| *at <= now).map(|(_, handle)| handle).collect();
        for handle in due {
            self.push(Event { kind: Kind::Readable, handle, code: Code::Ok, payload: String::new() });
        }
        self.reminders.iter().map(|(at, _)| *at).min()
    }

    fn forget(&mut self, handle: u32) {
        self.reminders.retain(|(_, other)| *other != handle);
        if self.queued.as_mut().is_some_and(|queued| queued.remove(&handle).is_some()) {
            self.queue.retain(|event| event.handle != handle);
        }
    }

    fn take(&mut self, capacity: usize) -> Outcome<Vec<u8>> {
        let mut out = Vec::new();
        while let Some(event) = self.queue.front() {
            if out.len() + event.encoded_len() > capacity {
                break;
            }
            event.encode(&mut out);
            let handle = event.handle;
            self.queue.pop_front();
            if let Some(queued) = &mut self.queued
                && let Some(count) = queued.get_mut(&handle)
            {
                *count -= 1;
                if *count == 0 {
                    queued.remove(&handle);
                }
            }
        }
        match self.queue.front() {
            Some(event) if out.is_empty() => Err(Failure::new(
                Code::Buffer,
                format!("The next event has {} bytes, the buffer {capacity}: give a larger one", event.encoded_len()),
            )),
            _ => Ok(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(handle: u32, kind: Kind, payload: &str) -> Event {
        Event { kind, handle, code: Code::Ok, payload: payload.into() }
    }

    #[test]
    fn events_are_taken_whole_and_in_order() {
        let mut state = State::EMPTY;
        state.push(event(1, Kind::SessionUp, "{}"));
        state.push(event(2, Kind::PumpEnded, "12345"));
        assert_eq!(state.take(19).unwrap_err().code, Code::Buffer);
        let first = state.take(43).unwrap();
        assert_eq!(first, [&[20u8, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], b"{}\0\0"].concat());
        assert_eq!(state.take(24).unwrap()[16..], *b"12345\0\0\0");
        assert_eq!(state.queued.as_ref().map(HashMap::len), Some(0));
    }

    #[test]
    fn a_handle_cannot_fill_the_queue_and_keeps_its_latest_of_a_kind() {
        let mut state = State::EMPTY;
        for n in 0..1000 {
            state.push(event(1, Kind::SessionUp, &n.to_string()));
        }
        state.push(event(1, Kind::SessionLost, "no room, none of its kind to replace"));
        state.push(event(2, Kind::SessionUp, "another handle"));
        assert_eq!(state.queue.len(), MAX_PER_HANDLE + 1);
        assert_eq!(state.queue[0].payload, "0");
        assert_eq!(state.queue[MAX_PER_HANDLE - 1].payload, "999");
        state.forget(1);
        assert_eq!(state.queue.len(), 1);
        state.forget(1);
        state.forget(2);
        assert!(state.queue.is_empty());
    }
}
