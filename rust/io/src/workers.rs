//! Threads that end together: how they begin, are told to stop, and how it is told that the last of them has ended.

use std::any::Any;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::pump::PumpError;
use crate::sys::{self, Interest};
use crate::wakeup::Wakeup;

/// Tells threads to end, also those that wait in ppoll(2).
#[derive(Debug)]
pub(crate) struct Stop {
    stopped: AtomicBool,
    /// Readable from the stop on.
    event: Wakeup,
}

impl Stop {
    pub(crate) fn new() -> Result<Stop, PumpError> {
        let event = Wakeup::new().map_err(|source| PumpError::Wait { call: "eventfd", source })?;
        Ok(Stop { stopped: AtomicBool::new(false), event })
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.event.set();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Readable from the stop on.
    #[cfg(feature = "afxdp")]
    pub(crate) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Waits for one of `interests`, three at most, or the stop; gives them back with what they are ready for.
    pub(crate) fn wait<'a, const N: usize>(
        &'a self,
        interests: [Interest<'a>; N],
        timeout: Option<Duration>,
    ) -> Result<[Interest<'a>; N], PumpError> {
        let mut all = [Interest::readable(self.event.as_fd()); 4];
        all[..N].copy_from_slice(&interests);
        sys::poll(&mut all[..=N], timeout).map_err(|source| PumpError::Wait { call: "ppoll", source })?;
        Ok(std::array::from_fn(|at| all[at]))
    }

    /// Waits for the stop alone.
    pub(crate) fn pause(&self, timeout: Duration) -> Result<(), PumpError> {
        self.wait([], Some(timeout)).map(drop)
    }
}

/// What a thread does until the stop, or until it fails. What it owns is dropped before anybody hears of its end.
pub(crate) type Work = Box<dyn FnOnce() -> Result<(), PumpError> + Send>;

pub(crate) type OnEnd = Box<dyn FnOnce(Result<(), PumpError>) + Send>;

/// Running threads. Dropping this stops them and waits.
#[derive(Debug)]
pub(crate) struct Workers {
    stop: Arc<Stop>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Gathers how the workers ended, and tells it once when all have.
struct End(Mutex<EndState>);

struct EndState {
    running: usize,
    error: Option<PumpError>,
    on_end: Option<OnEnd>,
}

impl Workers {
    /// Starts a thread `<name>-<number>` for each of `works`; when one ends, `stop` tells all others to.
    ///
    /// `on_end` is called exactly once, from a worker's thread, after the last one has ended: with the first failure, if there was
    /// one. It must not drop or join what this returns. When this returns an error, nothing has been done and `on_end` is not called.
    pub(crate) fn start(name: &str, works: Vec<Work>, stop: Arc<Stop>, on_end: OnEnd) -> Result<Workers, PumpError> {
        let end = Arc::new(End(Mutex::new(EndState { running: works.len(), error: None, on_end: Some(on_end) })));

        // Workers begin once all of them exist; when one cannot be made, the others find their gate closed and leave.
        let mut threads = Vec::with_capacity(works.len());
        let mut gates = Vec::with_capacity(works.len());
        let mut spawned = Ok(());
        for (number, work) in works.into_iter().enumerate() {
            let name = format!("{name}-{number}");
            let (gate, opened) = mpsc::channel::<()>();
            let (stop, end, worker) = (Arc::clone(&stop), Arc::clone(&end), name.clone());
            let body = move || {
                if opened.recv().is_err() {
                    return;
                }
                let result = catch_unwind(AssertUnwindSafe(work))
                    .unwrap_or_else(|panic| Err(PumpError::Panicked { worker, message: panic_text(&*panic) }));
                // One ended, all end.
                stop.stop();
                end.worker_ended(result);
            };
            match thread::Builder::new().name(name.clone()).spawn(body) {
                Ok(thread) => threads.push(thread),
                Err(source) => spawned = Err(PumpError::Spawn { worker: name, source }),
            }
            gates.push(gate);
        }
        let workers = Workers { stop, threads: Mutex::new(threads) };
        if let Err(error) = spawned {
            drop(gates);
            drop(workers);
            return Err(error);
        }
        for gate in gates {
            // Cannot fail: the worker waits behind its gate.
            let _ = gate.send(());
        }
        Ok(workers)
    }

    /// Waits until the workers have ended, whoever told them to.
    pub(crate) fn join(&self) {
        for thread in lock(&self.threads).drain(..) {
            if thread.thread().id() != thread::current().id() {
                // A panic has been caught and reported before the thread ended.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.stop();
        self.join();
    }
}

impl End {
    fn worker_ended(&self, result: Result<(), PumpError>) {
        let mut state = lock(&self.0);
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        state.running -= 1;
        if state.running > 0 {
            return;
        }
        let (error, on_end) = (state.error.take(), state.on_end.take());
        drop(state);
        if let Some(on_end) = on_end {
            on_end(error.map_or(Ok(()), Err));
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these mutexes guard is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
