//! The C functions as safe calls: every buffer is a slice of the right length, as a well-behaved caller passes it.
#![expect(unsafe_code, reason = "the tests call the C functions")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use icx::abi::*;

/// Handles, events and counts are the process's: tests that use them run one after another, and must leave no handle.
pub(crate) struct Exclusive {
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

pub(crate) fn exclusive() -> Exclusive {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(icx_handle_count(), 0, "a test before this one left a handle");
    Exclusive { _turn: turn }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(icx_handle_count(), 0, "the test left a handle");
        }
    }
}

/// What a failed call explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason {
    pub(crate) code: i32,
    pub(crate) errno: i32,
    pub(crate) text: String,
}

pub(crate) type Answer<T> = Result<T, Reason>;

const ERR_CAP: u32 = 1024;

fn answer(call: impl FnOnce(*mut u8, u32) -> i32) -> Answer<u32> {
    let mut err = [0; ERR_CAP as usize];
    let code = call(err.as_mut_ptr(), ERR_CAP);
    if let Ok(value) = u32::try_from(code) {
        return Ok(value);
    }
    let word = |at: usize| <[u8; 4]>::try_from(&err[at..at + 4]).unwrap();
    let len = u32::from_le_bytes(word(0)) as usize;
    let text = String::from_utf8(err[8..8 + len].to_vec()).unwrap();
    Err(Reason { code, errno: i32::from_le_bytes(word(4)), text })
}

type FillFn = unsafe extern "C" fn(u32, *mut IcxPacket, u32, *mut u8, u32, *mut u8, u32) -> i32;
type HandFn = unsafe extern "C" fn(u32, *const u8, u32, *mut IcxPacket, u32, *mut u8, u32) -> i32;
type JsonFn = unsafe extern "C" fn(*const u8, u32, *mut u8, u32) -> i32;
type ReceiverJsonFn = unsafe extern "C" fn(u32, *const u8, u32, *mut u8, u32) -> i32;
type OutFn = unsafe extern "C" fn(u32, *mut u8, u32) -> i32;
type OutErrFn = unsafe extern "C" fn(u32, *mut u8, u32, *mut u8, u32) -> i32;
type ErrFn = unsafe extern "C" fn(u32, *mut u8, u32) -> i32;
type JsonOutFn = unsafe extern "C" fn(*const u8, u32, *mut u8, u32, *mut u8, u32) -> i32;

/// `(end, packets, output, err)`
pub(crate) fn fill(f: FillFn, end: u32, packets: &mut [IcxPacket], output: &mut [u8]) -> Answer<u32> {
    let (packets, count) = (packets.as_mut_ptr(), packets.len() as u32);
    // SAFETY: pointers and lengths describe separate live buffers.
    answer(|err, cap| unsafe { f(end, packets, count, output.as_mut_ptr(), output.len() as u32, err, cap) })
}

/// `(end, input, packets, err)`
pub(crate) fn hand(f: HandFn, end: u32, input: &[u8], packets: &mut [IcxPacket]) -> Answer<u32> {
    let (packets, count) = (packets.as_mut_ptr(), packets.len() as u32);
    // SAFETY: pointers and lengths describe separate live buffers.
    answer(|err, cap| unsafe { f(end, input.as_ptr(), input.len() as u32, packets, count, err, cap) })
}

/// `(json, err)`
pub(crate) fn json(f: JsonFn, text: &str) -> Answer<u32> {
    // SAFETY: pointers and lengths describe live buffers.
    answer(|err, cap| unsafe { f(text.as_ptr(), text.len() as u32, err, cap) })
}

/// `(receiver, json, err)`
pub(crate) fn json_to(f: ReceiverJsonFn, receiver: u32, text: &str) -> Answer<u32> {
    // SAFETY: pointers and lengths describe live buffers.
    answer(|err, cap| unsafe { f(receiver, text.as_ptr(), text.len() as u32, err, cap) })
}

/// `(receiver, err)`
pub(crate) fn explained(f: ErrFn, receiver: u32) -> Answer<u32> {
    // SAFETY: pointer and length describe a live buffer.
    answer(|err, cap| unsafe { f(receiver, err, cap) })
}

/// `(json, out, err)`
pub(crate) fn json_out(f: JsonOutFn, text: &str) -> Answer<serde_json::Value> {
    let mut out = [0; 4096];
    // SAFETY: pointers and lengths describe live buffers.
    let len = answer(|err, cap| unsafe {
        f(text.as_ptr(), text.len() as u32, out.as_mut_ptr(), out.len() as u32, err, cap)
    })?;
    Ok(serde_json::from_slice(&out[..len as usize]).unwrap())
}

/// `(receiver, out, err)`
pub(crate) fn out_explained(f: OutErrFn, receiver: u32, out: &mut [u8]) -> Answer<u32> {
    // SAFETY: pointers and lengths describe separate live buffers.
    answer(|err, cap| unsafe { f(receiver, out.as_mut_ptr(), out.len() as u32, err, cap) })
}

pub(crate) fn stream_write(stream: u32, input: &[u8]) -> Answer<u32> {
    // SAFETY: pointers and lengths describe separate live buffers.
    answer(|err, cap| unsafe { icx_stream_write(stream, input.as_ptr(), input.len() as u32, err, cap) })
}

/// `(receiver, out)`
pub(crate) fn out(f: OutFn, receiver: u32) -> Result<serde_json::Value, i32> {
    let mut out = [0; 4096];
    // SAFETY: pointer and length describe a live buffer.
    let len = unsafe { f(receiver, out.as_mut_ptr(), out.len() as u32) };
    let len = usize::try_from(len).map_err(|_| len)?;
    Ok(serde_json::from_slice(&out[..len]).unwrap())
}

pub(crate) fn strerror(code: i32, out: &mut [u8]) -> i32 {
    // SAFETY: pointer and length describe `out`.
    unsafe { icx_strerror(code, out.as_mut_ptr(), out.len() as u32) }
}

pub(crate) fn events_wait(out: &mut [u8], timeout_ms: u32) -> i32 {
    // SAFETY: pointer and length describe `out`.
    unsafe { icx_events_wait(out.as_mut_ptr(), out.len() as u32, timeout_ms) }
}

pub(crate) fn counters(engine: u32, vni: u32, out: &mut [u64]) -> i32 {
    // SAFETY: pointer and length describe `out`.
    unsafe { icx_engine_counters(engine, vni, out.as_mut_ptr(), out.len() as u32) }
}

pub(crate) fn virt_to_phy(engine: u32, input: &[u8], packets: &mut [IcxPacket], output: &mut [u8]) -> i32 {
    // SAFETY: pointers and lengths describe three separate live buffers.
    unsafe {
        icx_engine_virt_to_phy(
            engine,
            input.as_ptr(),
            input.len() as u32,
            packets.as_mut_ptr(),
            packets.len() as u32,
            output.as_mut_ptr(),
            output.len() as u32,
        )
    }
}

pub(crate) fn phy_to_virt(engine: u32, input: &[u8], packets: &mut [IcxPacket], output: &mut [u8]) -> i32 {
    // SAFETY: pointers and lengths describe three separate live buffers.
    unsafe {
        icx_engine_phy_to_virt(
            engine,
            input.as_ptr(),
            input.len() as u32,
            packets.as_mut_ptr(),
            packets.len() as u32,
            output.as_mut_ptr(),
            output.len() as u32,
        )
    }
}

pub(crate) fn to_phy(engine: u32, packets: &mut [IcxPacket], output: &mut [u8]) -> i32 {
    // SAFETY: pointers and lengths describe two separate live buffers.
    unsafe {
        icx_engine_to_phy(engine, packets.as_mut_ptr(), packets.len() as u32, output.as_mut_ptr(), output.len() as u32)
    }
}

/// An engine in virtual time whose key history is its own.
pub(crate) fn engine() -> u32 {
    json(
        icx_engine_create,
        r#"{"mode":"l3","underlay":"udp","keepaliveMs":25000,"dangerManualClock":true,"dangerIsolatedKeyHistory":true}"#,
    )
    .unwrap()
}

pub(crate) fn sa_status(engine: u32, vni: u32) -> serde_json::Value {
    let mut out = [0; 4096];
    // SAFETY: pointer and length describe `out`.
    let len = unsafe { icx_engine_sa_status(engine, vni, out.as_mut_ptr(), out.len() as u32) };
    serde_json::from_slice(&out[..usize::try_from(len).unwrap()]).unwrap()
}

pub(crate) fn counter_names() -> Vec<String> {
    let mut out = [0; 4096];
    // SAFETY: pointer and length describe `out`.
    let len = unsafe { icx_counter_names(out.as_mut_ptr(), out.len() as u32) };
    serde_json::from_slice(&out[..usize::try_from(len).unwrap()]).unwrap()
}

pub(crate) fn remove_network(engine: u32, vni: u32) -> Answer<u32> {
    // SAFETY: pointer and length describe a live buffer.
    answer(|err, cap| unsafe { icx_engine_remove_network(engine, vni, err, cap) })
}
