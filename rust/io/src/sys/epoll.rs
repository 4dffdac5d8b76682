use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A new epoll set, closed on exec.
///
/// `epoll_create1(2)`; needs no capability. Errors: EMFILE, ENFILE, ENOMEM.
pub(crate) fn epoll_set() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just made and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `set` tell `token` once when `fd` is ready for `events` (`EPOLLIN`, `EPOLLOUT`), at once if it is now; an error of the
/// descriptor counts as ready. Arming again replaces what was armed before. It ends with the descriptor.
///
/// `epoll_ctl(2)` with EPOLLONESHOT; needs no capability. Errors: ENOMEM, ENOSPC (`fs.epoll.max_user_watches`), EPERM for a
/// file that cannot be waited for.
pub(crate) fn epoll_arm(set: BorrowedFd<'_>, fd: BorrowedFd<'_>, events: libc::c_int, token: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events: (events | libc::EPOLLONESHOT).cast_unsigned(), u64: token };
    let mut control = |operation| {
        // SAFETY: both descriptors are borrowed, hence open; the kernel reads `event` during the call only.
        let result = unsafe { libc::epoll_ctl(set.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    match control(libc::EPOLL_CTL_MOD) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => control(libc::EPOLL_CTL_ADD),
        result => result,
    }
}

/// Takes the tokens of ready descriptors out of `set`, without waiting, and hands them to `ready`.
///
/// `epoll_wait(2)` with timeout 0; needs no capability. Its only error is EINTR, after which nothing was taken.
pub(crate) fn epoll_take(set: BorrowedFd<'_>, ready: &mut dyn FnMut(u64)) -> io::Result<()> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
    // SAFETY: pointer and length describe `events`, which the kernel writes during the call only.
    let taken = unsafe { libc::epoll_wait(set.as_raw_fd(), events.as_mut_ptr(), events.len() as libc::c_int, 0) };
    let taken = usize::try_from(taken).map_err(|_| io::Error::last_os_error())?;
    for event in &events[..taken] {
        ready(event.u64);
    }
    Ok(())
}
