use std::io;

/// `prctl(PR_SET_PDEATHSIG)`: the kernel sends `signal` to this process when the thread that started it ends.
/// 0 cancels that.
pub(crate) fn set_parent_death_signal(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer, checked by the kernel, and touches no memory of this process.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
