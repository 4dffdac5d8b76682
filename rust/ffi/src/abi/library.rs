//! The library as a whole: version, codes, handles, events.

use std::time::Duration;

use super::{ABI_VERSION, finish, run, run_out, write_numbers, write_out};
use crate::code::Code;
use crate::error::{Failure, Outcome};
use crate::guard::guard;
use crate::{events, handle, process};

/// The version of this interface; it moves independently of [`icx_version`].
#[unsafe(no_mangle)]
pub extern "C" fn icx_abi_version() -> u32 {
    ABI_VERSION
}

/// The library's release as text, such as `0.1.0`. Returns its length or `ICX_EBUFFER`.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_version(out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |_| Ok(env!("CARGO_PKG_VERSION"))) }
}

/// What a result code means, as text. Returns its length, `ICX_EINVAL` for a number that is no code, or `ICX_EBUFFER`.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_strerror(code: i32, out: *mut u8, out_cap: u32) -> i32 {
    let text = |_: &_| {
        Code::from_value(code).map(Code::text).ok_or_else(|| Failure::invalid(format!("{code} is no result code")))
    };
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, text) }
}

/// Closes a handle of any kind; what belongs to it has stopped when this returns, after at most about two seconds
/// (pumps and control endpoints wait for their threads; proxies also for what this host's resolver was asked, which may take longer). Returns 0, or `ICX_EBADHANDLE` for one that is closed already.
#[unsafe(no_mangle)]
pub extern "C" fn icx_close(handle: u32) -> i32 {
    run(|_| handle::close(handle).map(|()| 0))
}

/// [`icx_close`] under a second name, for callers that declare per name whether a call may wait.
#[unsafe(no_mangle)]
pub extern "C" fn icx_close_wait(handle: u32) -> i32 {
    icx_close(handle)
}

/// How many handles are open.
#[unsafe(no_mangle)]
pub extern "C" fn icx_handle_count() -> u32 {
    handle::count()
}

/// Writes the time on the clock that keys expire by: nanoseconds since boot, suspended time included. Returns 1, the
/// numbers written, or `ICX_EBUFFER`.
///
/// # Safety
/// `out` is writable for `count` 64-bit numbers during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_clock_now(out: *mut u64, count: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    run(|_| unsafe { write_numbers(out, count, &[icx_io::clock::now().as_nanos()]) })
}

/// Waits for events of any handle, at most `timeout_ms`, and writes as many whole ones as fit. Returns the bytes
/// written, 0 after the timeout or [`icx_events_wake`], `ICX_EBUSY` while another call waits, or `ICX_EBUFFER` when the
/// next event does not fit (it stays).
///
/// Each event, little endian: `u32` length in bytes of the whole event, a multiple of 4; `u32` kind; `u32` handle;
/// `i32` code; UTF-8 JSON, zero padded. The kinds: 1 pump ended, 2 and 3 a device, a UDP underlay or something on a network stack
/// can be read or written again (no JSON; see [`icx_device_read`](super::icx_device_read)), 4 pump notice, 7 proxies ended, 8 proxy notice, 10 session up, 11 session
/// lost, 12 dial failed, 13 exchange done, 14 exchange failed, 15 peer rejected.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_events_wait(out: *mut u8, out_cap: u32, timeout_ms: u32) -> i32 {
    run(|_| {
        // Before anything is taken from the queue.
        if out.is_null() {
            return Err(Failure::invalid("'out' is NULL"));
        }
        let events = events::wait(out_cap as usize, Duration::from_millis(timeout_ms.into()))?;
        // SAFETY: the contract on `out` is the same.
        unsafe { write_out(out, out_cap, &events) }
    })
}

/// Makes the call that waits for events return at once, or the next one if none waits now. Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn icx_events_wake() -> i32 {
    run(|_| {
        events::wake();
        Ok(0)
    })
}

/// Panics inside the library, to test that the boundary holds: the handle is out of service afterwards. Returns
/// `ICX_EPANIC`, or `ICX_EBADHANDLE`.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_danger_panic(handle: u32, err: *mut u8, err_cap: u32) -> i32 {
    let outcome = guard(|call| -> Outcome<i32> {
        call.check(handle)?;
        panic!("a panic was asked for");
    });
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, outcome) }
}

/// Lets the kernel send `signal` to this process when the thread that started it ends; 0 cancels that. Returns 0 or
/// `ICX_EINVAL`.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_process_set_parent_death_signal(signal: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, guard(|_| process::set_parent_death_signal(signal))) }
}
