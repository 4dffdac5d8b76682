//! What shared state is made of: the standard parts, or loom's where its model checker drives a test.

#[cfg(all(test, loom))]
pub(crate) use loom::{hint, sync::atomic, thread};
#[cfg(not(all(test, loom)))]
pub(crate) use std::{hint, sync::atomic, thread};
