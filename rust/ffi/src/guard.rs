//! The single place where a panic stops: one that left an `extern "C"` function would abort the whole process.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::code::Code;
use crate::error::{Failure, Outcome};
use crate::handle::{self, Object, Resource};

/// No call names more handles than this.
const MAX_HANDLES: usize = 4;

/// One call from outside: it remembers which handles it used, so that a panic marks them.
pub(crate) struct Call {
    used: Cell<[u32; MAX_HANDLES]>,
}

impl Call {
    /// The object behind a handle. It lives as long as the call does, whoever closes the handle meanwhile.
    pub(crate) fn get<T: Resource>(&self, id: u32) -> Outcome<Arc<T>> {
        self.note(id);
        handle::get::<T>(id)
    }

    /// The object behind a handle of one of several kinds, as [`handle::pick`].
    pub(crate) fn pick<T>(&self, id: u32, kinds: &str, pick: impl FnOnce(&Object) -> Option<T>) -> Outcome<T> {
        self.note(id);
        handle::pick(id, kinds, pick)
    }

    /// Whatever is behind the handle.
    pub(crate) fn check(&self, id: u32) -> Outcome<()> {
        self.note(id);
        handle::check(id)
    }

    fn note(&self, id: u32) {
        let mut used = self.used.get();
        if let Some(free) = used.iter_mut().find(|slot| **slot == 0) {
            *free = id;
        }
        self.used.set(used);
    }
}

/// Runs the body of a C function. A panic becomes `ICX_EPANIC` and poisons the handles that the call had used:
/// what they stand for may be left in the middle of a change.
pub(crate) fn guard<T>(body: impl FnOnce(&Call) -> Outcome<T>) -> Outcome<T> {
    let call = Call { used: Cell::new([0; MAX_HANDLES]) };
    // Unwind safety: every object that the body could have left half-changed is poisoned below, and the
    // library's own tables are only locked around steps that cannot panic.
    match catch_unwind(AssertUnwindSafe(|| body(&call))) {
        Ok(outcome) => outcome,
        Err(payload) => {
            for id in call.used.get().into_iter().filter(|&id| id != 0) {
                handle::poison(id);
            }
            let what = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no message");
            Err(Failure::new(
                Code::Panic,
                format!("Internal error in the icx library ({what}): close the handle and report this bug"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_failure_with_its_message() {
        let failure = guard::<()>(|_| panic!("seven of {}", 9)).unwrap_err();
        assert_eq!(failure.code, Code::Panic);
        assert!(failure.message.contains("seven of 9"), "{}", failure.message);
    }
}
