//! Network stacks in this process, and what is open on them.
//!
//! Nothing here waits. `ICX_EAGAIN` says that an event comes once it is worth calling again: one for each call that answered so.

use super::io::{fill, hand};
use super::{IcxPacket, finish, run, run_json, run_out, slice, slice_mut, write_numbers, write_out};
use crate::error::Outcome;
use crate::guard::{Call, guard};
use crate::netstack;

/// Makes a TCP/IP stack, closed with its handle or with the pump that has taken its device. Returns a handle, which is also that of the device. `ICX_EINVAL`,
/// `ICX_ESYS`.
///
/// `json`: `{addresses: ["10.9.0.1/24", ...], mtu, queues = 1, receiveBufferBytes = 524288, sendBufferBytes = 524288, congestion = "cubic" | "reno" | "none",
/// maxConnections = 4096, connectTimeoutMs = 15000, userTimeoutMs = 120000, keepAliveMs = 30000 (0: never), nameServers = []}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_netstack_open(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, netstack::open_stack) }
}

/// Writes `{addresses, mtu}`. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_netstack_info(stack: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| netstack::stack_info(call, stack)) }
}

/// Writes the counters of a stack, in the order of [`icx_netstack_counter_names`]. Returns their number, or `ICX_EBUFFER`.
///
/// # Safety
/// `out` is writable for `count` 64-bit numbers during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_netstack_counters(stack: u32, out: *mut u64, count: u32) -> i32 {
    run(|call| {
        let counters = netstack::stack_counters(call, stack)?;
        // SAFETY: the contract on `out` is the same.
        unsafe { write_numbers(out, count, &counters) }
    })
}

/// Writes the names of the counters of stacks as a JSON array. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_netstack_counter_names(out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |_| netstack::stack_counter_names()) }
}

/// Begins a connection. Returns the handle of its stream; see [`icx_stream_connected`]. `ICX_EADDRNOTAVAIL` where `remote` cannot be connected to, or no port
/// is free towards it; `ICX_ENETUNREACH` without an address of its family; `ICX_EBUSY` with as many connections as there may be;
/// `ICX_ECLOSED`.
///
/// `json`: `{remote: "ip:port"}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_netstack_connect(
    stack: u32,
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| netstack::connect(call, stack, text)) }
}

/// Listens on a port of all addresses; 0: on one that is free. Returns the handle of the listener. `ICX_EADDRINUSE`; `ICX_EADDRNOTAVAIL` where no port is
/// free; `ICX_ECLOSED`.
///
/// `json`: `{port}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_netstack_listen(
    stack: u32,
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| netstack::listen(call, stack, text)) }
}

/// Opens a UDP socket on a port of all addresses; 0: on one that is free. Returns its handle. Failures as of [`icx_netstack_listen`].
///
/// `json`: `{port}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_netstack_datagram(
    stack: u32,
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| netstack::open_datagram(call, stack, text)) }
}

/// Opens what sends echo requests and hears their replies. Returns its handle, or `ICX_ECLOSED`.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_netstack_echo(stack: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, guard(|call| netstack::open_echo(call, stack))) }
}

/// Begins to ask the name servers of a stack for addresses. Returns the handle of the query; see [`icx_resolution_answer`].
///
/// `json`: `{name, family: "ipv4" | "ipv6"}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_netstack_resolve(
    stack: u32,
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| netstack::resolve(call, stack, text)) }
}

/// Writes `{port}`. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_listener_info(listener: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| netstack::listener_info(call, listener)) }
}

/// Takes the next connection. Returns the handle of its stream. `ICX_EAGAIN`: event 2 comes once there is one. `ICX_ECLOSED` when the stack has been
/// closed.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_listener_accept(listener: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, guard(|call| netstack::accept(call, listener))) }
}

/// Writes `{local: "ip:port", remote: "ip:port"}`. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_stream_info(stream: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| netstack::stream_info(call, stream)) }
}

/// Whether a connection is there: 0. `ICX_EAGAIN`: event 3 comes once that is known. `ICX_ECONNREFUSED`, `ICX_ETIMEDOUT`, `ICX_ECONNRESET`,
/// `ICX_ENOTCONN` after [`icx_stream_abort`], `ICX_ECLOSED` when the stack has been closed.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_stream_connected(stream: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, guard(|call| netstack::connected(call, stream))) }
}

/// Reads what has come to the start of `out`. Returns how many bytes, 0 at the end or for an empty `out`. `ICX_EAGAIN`: event 2 comes once there is
/// something. `ICX_ECONNRESET`, `ICX_ETIMEDOUT`, and the others of [`icx_stream_connected`].
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call and by nobody else meanwhile; `err` is writable for `err_cap` bytes, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_stream_read(stream: u32, out: *mut u8, out_cap: u32, err: *mut u8, err_cap: u32) -> i32 {
    let outcome = guard(|call| {
        // SAFETY: the contract on `out` is the same.
        let out = unsafe { slice_mut(out, out_cap, "out") }?;
        netstack::read(call, stream, out)
    });
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, outcome) }
}

/// Takes bytes to be sent, from the start of `input` on. Returns how many. `ICX_EAGAIN`: event 3 comes once there is room. `ICX_EPIPE` after
/// [`icx_stream_close_send`], `ICX_ECONNRESET`, `ICX_ETIMEDOUT`, and the others of [`icx_stream_connected`].
///
/// # Safety
/// `input` is readable for `input_len` bytes during the call; `err` is writable for `err_cap` bytes, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_stream_write(
    stream: u32,
    input: *const u8,
    input_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    let outcome = guard(|call| {
        // SAFETY: the contract on `input` is the same.
        let input = unsafe { slice(input, input_len, "input") }?;
        netstack::write(call, stream, input)
    });
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, outcome) }
}

/// Ends the sending side behind what was written; reading goes on. Returns 0, or what [`icx_stream_connected`] may.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_stream_close_send(stream: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, guard(|call| netstack::close_send(call, stream))) }
}

/// Ends a connection at once, and resets it at the peer. Returns 0. Closing the handle ends it in order instead, unless something has come that was
/// not read.
#[unsafe(no_mangle)]
pub extern "C" fn icx_stream_abort(stream: u32) -> i32 {
    run(|call| netstack::abort(call, stream))
}

/// Writes `{port}`. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_datagram_info(socket: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| netstack::datagram_info(call, socket)) }
}

/// Receives datagrams to the start of `output`, as [`icx_device_read`](super::icx_device_read); `addr` and `port` of each are its source. `ICX_ECLOSED` when the
/// stack has been closed.
///
/// # Safety
/// As [`icx_engine_to_phy`](super::icx_engine_to_phy); `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_datagram_receive(
    socket: u32,
    packets: *mut IcxPacket,
    capacity: u32,
    output: *mut u8,
    output_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { fill(socket, packets, capacity, output, output_len, err, err_cap, netstack::receive_datagrams) }
}

/// Sends datagrams to their `addr` and `port`. Returns how many were dealt with, from the first on, and writes the verdict of each: 0 taken, −1 refused (it
/// is too long, or cannot be sent there). When the next one is not dealt with since there is no room, one event 3 comes once there is.
/// `ICX_ECLOSED` when the stack has been closed.
///
/// # Safety
/// `input` is readable for `input_len` bytes, `packets` readable and writable for `count` packets, during the call and by nobody else
/// meanwhile; `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_datagram_send(
    socket: u32,
    input: *const u8,
    input_len: u32,
    packets: *mut IcxPacket,
    count: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { hand(socket, input, input_len, packets, count, err, err_cap, netstack::send_datagrams) }
}

/// Sends an echo request. Returns 0. `ICX_EBUSY` where there is no room for it, `ICX_EADDRNOTAVAIL`, `ICX_EINVAL` for more than 1200 bytes,
/// `ICX_ECLOSED`.
///
/// `json`: `{to, sequence, payloadBytes}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_echo_send(echo: u32, json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| netstack::send_echo(call, echo, text)) }
}

/// Writes the next reply, `{from, sequence, payloadBytes}`. Returns the length. `ICX_EAGAIN`: event 2 comes once there is one. `ICX_ECLOSED`. A reply that
/// does not fit `out` is lost: 128 bytes are enough.
///
/// # Safety
/// `out` is writable for `out_cap` bytes and `err` for `err_cap` bytes during the call; each may be NULL with length 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_echo_receive(echo: u32, out: *mut u8, out_cap: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { answer(echo, out, out_cap, err, err_cap, netstack::receive_echo) }
}

/// Writes the answer to a query, a JSON array of IP addresses. Returns the length. `ICX_EAGAIN`: event 2 comes once there is one. `ICX_ENOENT` where no
/// name server has an address, or none answers; `ICX_ESTATE` without name servers, or when it was asked for before; `ICX_EINVAL` for what is no
/// name; `ICX_ECLOSED`. An answer that does not fit `out` is lost: 512 bytes are enough.
///
/// # Safety
/// `out` is writable for `out_cap` bytes and `err` for `err_cap` bytes during the call; each may be NULL with length 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_resolution_answer(
    resolution: u32,
    out: *mut u8,
    out_cap: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { answer(resolution, out, out_cap, err, err_cap, netstack::resolved) }
}

/// Runs a body that answers with a text or explains why not.
///
/// # Safety
/// As [`icx_echo_receive`].
unsafe fn answer(
    receiver: u32,
    out: *mut u8,
    out_cap: u32,
    err: *mut u8,
    err_cap: u32,
    body: impl FnOnce(&Call, u32) -> Outcome<String>,
) -> i32 {
    let outcome = guard(|call| {
        let text = body(call, receiver)?;
        // SAFETY: the contract on `out` is the same.
        unsafe { write_out(out, out_cap, text.as_bytes()) }
    });
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, outcome) }
}
