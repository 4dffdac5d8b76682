//! One place to wait for any number of devices and sockets that somebody else reads and writes.
//!
//! Whoever finds nothing to read, or no room to write, arms that direction; the waiter hears of it once. Closing a descriptor is all
//! it takes to end that: this holds none of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::sys::{self, Interest};
use crate::wakeup::Wakeup;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// Descriptors that are waited for, each under a token of its owner's.
#[derive(Debug)]
pub struct Readiness {
    /// Readable when the waiter is to return.
    wake: Wakeup,
    readable: OwnedFd,
    writable: OwnedFd,
}

impl Readiness {
    pub fn new() -> io::Result<Self> {
        Ok(Readiness { wake: Wakeup::new()?, readable: sys::epoll_set()?, writable: sys::epoll_set()? })
    }

    /// Lets the waiter hear of `token` once when `fd` can be read or written; at once, if it can now.
    pub(crate) fn arm(&self, direction: Direction, fd: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        match direction {
            Direction::Read => sys::epoll_arm(self.readable.as_fd(), fd, libc::EPOLLIN, token.into()),
            Direction::Write => sys::epoll_arm(self.writable.as_fd(), fd, libc::EPOLLOUT, token.into()),
        }
    }

    /// Makes the waiter return; without one, the next wait returns at once.
    pub fn wake(&self) {
        self.wake.set();
    }

    /// Waits until something that was armed is ready, for [`Readiness::wake`], or until `timeout` has passed. `ready` hears of what is
    /// ready; each has to be armed again.
    pub fn wait(&self, timeout: Duration, ready: &mut dyn FnMut(Direction, u32)) -> io::Result<()> {
        let mut interests =
            [&self.wake.as_fd(), &self.readable.as_fd(), &self.writable.as_fd()].map(|fd| Interest::readable(*fd));
        sys::poll(&mut interests, Some(timeout))?;
        if interests[0].is_ready() {
            self.wake.clear();
        }
        for (set, direction) in [(&self.readable, Direction::Read), (&self.writable, Direction::Write)] {
            // A token is the u32 that it was armed with.
            match sys::epoll_take(set.as_fd(), &mut |token| ready(direction, token as u32)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::{Direction, Readiness};

    fn ready(readiness: &Readiness, timeout: Duration) -> Vec<(Direction, u32)> {
        let mut ready = Vec::new();
        readiness.wait(timeout, &mut |direction, token| ready.push((direction, token))).unwrap();
        ready
    }

    const NOW: Duration = Duration::ZERO;
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn each_arming_is_told_once_and_directions_apart() {
        let readiness = Readiness::new().unwrap();
        let (mut near, mut far) = UnixStream::pair().unwrap();
        readiness.arm(Direction::Read, near.as_fd(), 7).unwrap();
        assert_eq!(ready(&readiness, NOW), []);
        readiness.arm(Direction::Write, near.as_fd(), 7).unwrap();
        assert_eq!(ready(&readiness, LONG), [(Direction::Write, 7)]);
        far.write_all(&[1]).unwrap();
        assert_eq!(ready(&readiness, LONG), [(Direction::Read, 7)], "still armed for reading");
        assert_eq!(ready(&readiness, NOW), [], "told once");
        readiness.arm(Direction::Read, near.as_fd(), 7).unwrap();
        assert_eq!(ready(&readiness, LONG), [(Direction::Read, 7)], "at once, as there is something");
        near.read_exact(&mut [0]).unwrap();
        readiness.arm(Direction::Read, near.as_fd(), 7).unwrap();
        drop(far);
        assert_eq!(ready(&readiness, LONG), [(Direction::Read, 7)], "the end of it is something to hear of too");
    }

    #[test]
    fn what_is_closed_is_forgotten_and_a_wake_is_not_lost() {
        let readiness = Readiness::new().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        readiness.arm(Direction::Read, near.as_fd(), 7).unwrap();
        readiness.arm(Direction::Write, near.as_fd(), 7).unwrap();
        drop(near);
        drop(far);
        readiness.wake();
        assert_eq!(ready(&readiness, LONG), []);
        assert_eq!(ready(&readiness, NOW), [], "the wake is used up");
    }

    #[test]
    fn arming_wakes_a_wait_that_has_begun() {
        let readiness = Readiness::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| ready(&readiness, LONG));
            far.write_all(&[1]).unwrap();
            readiness.arm(Direction::Read, near.as_fd(), 9).unwrap();
            assert_eq!(waiter.join().unwrap(), [(Direction::Read, 9)]);
        });
    }
}
