use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A new eventfd that starts at 0, nonblocking, closed on exec.
///
/// `eventfd(2)`; needs no capability. Errors: EMFILE, ENFILE, ENOMEM.
pub(crate) fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just made and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One descriptor to wait for, and afterwards what it is ready for.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Interest<'a> {
    poll: libc::pollfd,
    owner: std::marker::PhantomData<BorrowedFd<'a>>,
}

impl<'a> Interest<'a> {
    pub(crate) fn readable(fd: BorrowedFd<'a>) -> Self {
        Self::new(fd, libc::POLLIN)
    }

    pub(crate) fn writable(fd: BorrowedFd<'a>) -> Self {
        Self::new(fd, libc::POLLOUT)
    }

    fn new(fd: BorrowedFd<'a>, events: libc::c_short) -> Self {
        let poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
        Interest { poll, owner: std::marker::PhantomData }
    }

    /// It has an error to tell, or something in its error queue.
    pub(crate) fn has_error(&self) -> bool {
        self.poll.revents & libc::POLLERR != 0
    }

    /// The next operation on it will not block: it is ready, or has an error to tell.
    pub(crate) fn is_ready(&self) -> bool {
        self.poll.revents != 0
    }
}

/// Waits until a descriptor is ready or `timeout` has passed (`None`: for ever); returns how many are ready.
/// A signal ends the wait with 0, like a timeout.
///
/// `ppoll(2)`; needs no capability. Errors: ENOMEM, and EINVAL beyond RLIMIT_NOFILE descriptors.
pub(crate) fn poll(interests: &mut [Interest<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|duration| libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `Interest` is a transparent pollfd, so pointer and length describe exactly the slice; the descriptors are
    // borrowed for as long as `interests` lives; `timeout` is NULL or outlives the call; the signal mask is unchanged.
    let ready = unsafe {
        libc::ppoll(interests.as_mut_ptr().cast(), interests.len() as libc::nfds_t, timeout, std::ptr::null())
    };
    match usize::try_from(ready) {
        Ok(ready) => Ok(ready),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {
                for interest in interests {
                    interest.poll.revents = 0;
                }
                Ok(0)
            }
            error => Err(error),
        },
    }
}
