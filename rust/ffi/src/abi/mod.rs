//! The exported functions. Each checks its pointers and lengths, and calls the typed function of its receiver.
//! With `io::sys` this is the only place with unsafe code.
#![expect(unsafe_code, reason = "C functions: callers' pointers become checked slices here, nowhere else")]

#[cfg(feature = "afxdp")]
mod afxdp;
mod control;
mod engine;
mod identity;
mod io;
mod library;
mod netstack;
mod proxy;

pub use crate::engine::IcxPacket;
#[cfg(feature = "afxdp")]
pub use afxdp::*;
pub use control::*;
pub use engine::*;
pub use identity::*;
pub use io::*;
pub use library::*;
pub use netstack::*;
pub use proxy::*;

use crate::code::Code;
use crate::error::{Failure, Outcome};
use crate::guard::{Call, guard};

/// Changes when a function changes its meaning or its signature; `native/` refuses another one.
pub const ABI_VERSION: u32 = 1;

/// A success as the caller sees it.
trait Success {
    fn into_result(self) -> i32;
}

impl Success for i32 {
    fn into_result(self) -> i32 {
        self
    }
}

/// Handles have 31 bits.
impl Success for u32 {
    fn into_result(self) -> i32 {
        self.cast_signed()
    }
}

/// Runs a body that takes neither text nor buffers.
fn run<T: Success>(body: impl FnOnce(&Call) -> Outcome<T>) -> i32 {
    match guard(body) {
        Ok(value) => value.into_result(),
        Err(failure) => failure.code as i32,
    }
}

/// The result of a call that may explain its failure.
///
/// # Safety
/// `err` is writable for `err_cap` bytes, or NULL.
unsafe fn finish<T: Success>(err: *mut u8, err_cap: u32, outcome: Outcome<T>) -> i32 {
    match outcome {
        Ok(value) => value.into_result(),
        Err(failure) => {
            // SAFETY: the caller's promise about `err` is this function's own.
            unsafe { explain(err, err_cap, &failure) };
            failure.code as i32
        }
    }
}

/// Runs a body with a JSON text.
///
/// # Safety
/// `json` is readable for `json_len` bytes during the call and `err` writable for `err_cap`; each may be NULL with length 0.
unsafe fn run_json<T: Success>(
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
    body: impl FnOnce(&Call, &[u8]) -> Outcome<T>,
) -> i32 {
    let outcome = guard(|call| {
        // SAFETY: the caller's promise about `json` is this function's own.
        let text = unsafe { slice(json, json_len, "json") }?;
        body(call, text)
    });
    // SAFETY: the caller's promise about `err` is this function's own.
    unsafe { finish(err, err_cap, outcome) }
}

/// Runs a body with a JSON text that answers with a text.
///
/// # Safety
/// As [`run_json`]; `out` is writable for `out_cap` bytes during the call, or NULL with length 0.
unsafe fn run_json_out(
    json: *const u8,
    json_len: u32,
    out: *mut u8,
    out_cap: u32,
    err: *mut u8,
    err_cap: u32,
    body: impl FnOnce(&Call, &[u8]) -> Outcome<String>,
) -> i32 {
    let write = |call: &Call, text: &[u8]| {
        let answer = body(call, text)?;
        // SAFETY: the caller's promise about `out` is this function's own.
        unsafe { write_out(out, out_cap, answer.as_bytes()) }
    };
    // SAFETY: the caller's promises are the same.
    unsafe { run_json(json, json_len, err, err_cap, write) }
}

/// Runs a body that answers with a text.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call, or NULL with length 0.
unsafe fn run_out<B: AsRef<[u8]>>(out: *mut u8, out_cap: u32, body: impl FnOnce(&Call) -> Outcome<B>) -> i32 {
    run(|call| {
        let answer = body(call)?;
        // SAFETY: the caller's promise about `out` is this function's own.
        unsafe { write_out(out, out_cap, answer.as_ref()) }
    })
}

/// A caller's input. Length 0 goes with any pointer: Deno passes NULL for an empty buffer.
///
/// # Safety
/// `data` is NULL or valid for reads of `len` values for the lifetime that the caller picks, and nobody writes there meanwhile.
unsafe fn slice<'a, T>(data: *const T, len: u32, name: &str) -> Outcome<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    check(data, len, name)?;
    // SAFETY: not NULL, aligned and within isize::MAX bytes as checked; the rest is the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts(data, len as usize) })
}

/// A caller's output, to be filled in place.
///
/// # Safety
/// As [`slice`], for reads and writes, and nobody else touches it meanwhile.
unsafe fn slice_mut<'a, T>(data: *mut T, len: u32, name: &str) -> Outcome<&'a mut [T]> {
    if len == 0 {
        return Ok(&mut []);
    }
    check(data, len, name)?;
    // SAFETY: not NULL, aligned and within isize::MAX bytes as checked; the rest is the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts_mut(data, len as usize) })
}

fn check<T>(data: *const T, len: u32, name: &str) -> Outcome<()> {
    if data.is_null() {
        return Err(Failure::invalid(format!("'{name}' is NULL with length {len}: NULL goes with length 0 alone")));
    }
    if !data.is_aligned() {
        return Err(Failure::invalid(format!("'{name}' is not aligned to {} bytes", align_of::<T>())));
    }
    if (len as usize).checked_mul(size_of::<T>()).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(Failure::invalid(format!("'{name}' cannot have {len} elements")));
    }
    Ok(())
}

/// Whether two buffers share a byte: slices over both would alias.
fn overlap<T, U>(a: *const T, a_len: u32, b: *const U, b_len: u32) -> bool {
    let (a_start, b_start) = (a.addr(), b.addr());
    let a_end = a_start.saturating_add((a_len as usize).saturating_mul(size_of::<T>()));
    let b_end = b_start.saturating_add((b_len as usize).saturating_mul(size_of::<U>()));
    a_start < b_end && b_start < a_end
}

/// Copies an answer out whole, and gives its length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes, or NULL with length 0.
unsafe fn write_out(out: *mut u8, out_cap: u32, answer: &[u8]) -> Outcome<i32> {
    if answer.len() > out_cap as usize {
        return Err(Failure::new(
            Code::Buffer,
            format!("The answer has {} bytes, the output takes {out_cap}: give a larger one", answer.len()),
        ));
    }
    if answer.is_empty() {
        return Ok(0);
    }
    check(out.cast_const(), out_cap, "out")?;
    let len = i32::try_from(answer.len()).map_err(|_| Failure::new(Code::Buffer, "The answer is too long"))?;
    // SAFETY: `out` is not NULL and takes `answer.len()` bytes, as checked. `answer` is the library's own memory or a
    // static text; `copy` would allow an overlap.
    unsafe { core::ptr::copy(answer.as_ptr(), out, answer.len()) };
    Ok(len)
}

/// Length of the text and errno, before the text of a failure.
const EXPLANATION_HEADER: usize = 8;

/// Writes the reason of a failure, cut at a character where it does not fit.
///
/// # Safety
/// `err` is writable for `err_cap` bytes, or NULL.
unsafe fn explain(err: *mut u8, err_cap: u32, failure: &Failure) {
    let Some(room) = (err_cap as usize).checked_sub(EXPLANATION_HEADER) else { return };
    if err.is_null() {
        return;
    }
    let text = &failure.message[..failure.message.floor_char_boundary(room)];
    let mut explanation = Vec::with_capacity(EXPLANATION_HEADER + text.len());
    // At most `err_cap`, a u32.
    explanation.extend_from_slice(&(text.len() as u32).to_le_bytes());
    explanation.extend_from_slice(&failure.errno.unwrap_or(0).to_le_bytes());
    explanation.extend_from_slice(text.as_bytes());
    // SAFETY: `err` is not NULL and takes `err_cap` bytes, which the explanation does not exceed.
    unsafe { core::ptr::copy(explanation.as_ptr(), err, explanation.len()) };
}

/// Copies counters out, all of them.
///
/// # Safety
/// `out` is writable for `count` numbers, or NULL with length 0.
unsafe fn write_numbers(out: *mut u64, count: u32, numbers: &[u64]) -> Outcome<i32> {
    if numbers.len() > count as usize {
        return Err(Failure::new(
            Code::Buffer,
            format!("There are {} counters, the output takes {count}: give a larger one", numbers.len()),
        ));
    }
    // SAFETY: writable by contract; `numbers` is the library's own memory.
    let out = unsafe { slice_mut(out, count, "out") }?;
    out[..numbers.len()].copy_from_slice(numbers);
    // Counters are a few dozen.
    Ok(numbers.len() as i32)
}
