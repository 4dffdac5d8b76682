#[cfg(feature = "afxdp")]
use std::ffi::CStr;
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

/// Gives the calling thread, and no other, mounts of its own, with the sysfs of its network namespace at /sys.
///
/// `unshare(2)` with CLONE_NEWNS, then `mount(2)`; needs CAP_SYS_ADMIN. Errors: EPERM, ENOSPC (too many namespaces).
#[cfg(feature = "afxdp")]
pub(crate) fn mount_sysfs() -> io::Result<()> {
    // SAFETY: the call takes no pointers and affects only the calling thread's view of the mounts.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mount = |kind: &CStr, at: &CStr, flags| {
        // SAFETY: the strings end with NUL and outlive the call; neither type of mount takes data.
        let result = unsafe { libc::mount(c"none".as_ptr(), at.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // Nothing that is mounted here shall appear elsewhere.
    mount(c"none", c"/", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(c"sysfs", c"/sys", 0)
}
