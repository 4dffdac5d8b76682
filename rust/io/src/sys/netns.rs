use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Moves the calling thread, and no other, into a new network namespace.
///
/// `unshare(2)` with CLONE_NEWNET; needs CAP_SYS_ADMIN. Errors: EPERM, ENOSPC (too many namespaces).
pub(crate) fn unshare_network_namespace() -> io::Result<()> {
    // SAFETY: the call takes no pointers and affects only the calling thread's view of the network.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Moves the calling thread, and no other, into the network namespace that `namespace` is open on.
///
/// `setns(2)` with CLONE_NEWNET; needs CAP_SYS_ADMIN. Errors: EPERM, EINVAL (not a network namespace).
pub(crate) fn enter_network_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no pointers; the descriptor is borrowed during the call.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
