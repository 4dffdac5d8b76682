//! Waking a thread that waits for descriptors.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys;

/// A descriptor that is readable from [`Wakeup::set`] to [`Wakeup::clear`] (eventfd(2)).
#[derive(Debug)]
pub struct Wakeup(File);

impl Wakeup {
    pub fn new() -> io::Result<Wakeup> {
        sys::event_fd().map(|fd| Wakeup(File::from(fd)))
    }

    /// Makes it readable. It may be so already.
    pub fn set(&self) {
        // The only failure is that it is so 2^64 - 2 times already.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Makes it unreadable. It may be so already, also because another thread was quicker.
    pub fn clear(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
