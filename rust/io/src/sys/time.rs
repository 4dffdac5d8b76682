/// Nanoseconds of `CLOCK_BOOTTIME`.
///
/// `clock_gettime(2)`; needs no capability. Cannot fail: the clock exists since Linux 2.6.39 and the pointer is valid.
pub(crate) fn clock_boottime() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that the kernel writes during the call only.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    debug_assert_eq!(result, 0, "clock_gettime(CLOCK_BOOTTIME) failed");
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
