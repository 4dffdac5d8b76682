//! Devices, sockets, pumps, and questions to the kernel about its network.

use super::{run, run_json, run_json_out, run_out, write_numbers};
use crate::io;

/// Creates a TUN device that goes away with its handle or its pump, with MTU and addresses, up. Returns a handle.
///
/// `json`: `{name, mtu, addresses: ["10.9.0.1/24", ...]}`. Needs CAP_NET_ADMIN: `ICX_EPERM`; `ICX_EBUSY`, `ICX_ESYS`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_tun_open(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, io::open_tun) }
}

/// Writes `{name, index, mtu}`. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_tun_info(tun: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| io::tun_info(call, tun)) }
}

/// Binds the UDP sockets of an underlay. Returns a handle.
///
/// `json`: `{localAddress?, port, sourcePortHashing, family: "ipv4" | "ipv6" | "dual"}`. `ICX_EBUSY` where the port is taken,
/// `ICX_EPERM`, `ICX_ESYS`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_udp_open(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, io::open_udp) }
}

/// Writes `{localAddress, port}`. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_udp_info(udp: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| io::udp_info(call, udp)) }
}

/// Starts the threads that move packets between a TUN device, an engine and UDP sockets. Returns a handle.
///
/// `json`: `{engine, tun, udp}`, handles all. The pump takes device and sockets over once they are known to be good: their handles are
/// gone from then on, also when the start fails after that. When a thread fails later, the event 1 (pump ended) comes
/// with `{message, operation, errno}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_pump_start(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, io::start_pump) }
}

/// Stops a pump and waits for its threads; again is as good. Returns 0. Counters can be read until the handle is closed.
#[unsafe(no_mangle)]
pub extern "C" fn icx_pump_stop(pump: u32) -> i32 {
    run(|call| io::stop_pump(call, pump))
}

/// Writes the counters of a pump, in the order of [`icx_pump_counter_names`]. Returns their number, or `ICX_EBUFFER`.
///
/// # Safety
/// `out` is writable for `count` 64-bit numbers during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_pump_counters(pump: u32, out: *mut u64, count: u32) -> i32 {
    run(|call| {
        let counters = io::pump_counters(call, pump)?;
        // SAFETY: the contract on `out` is the same.
        unsafe { write_numbers(out, count, &counters) }
    })
}

/// Writes the names of the pump counters as a JSON array. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_pump_counter_names(out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |_| io::pump_counter_names()) }
}

/// Asks the kernel for the way to an address and writes `{interface, index, source, gateway | null, mtu}`. Returns the length,
/// or `ICX_ENOENT` where there is none. May wait.
///
/// `json`: `{destination, source?}`, IP addresses.
///
/// # Safety
/// `json` is readable for `json_len` bytes, `out` writable for `out_cap` and `err` for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_route_lookup(
    json: *const u8,
    json_len: u32,
    out: *mut u8,
    out_cap: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json_out(json, json_len, out, out_cap, err, err_cap, io::lookup_route) }
}

/// Writes `{name, index, mtu, mac | null, up}` of a network interface. Returns the length, or `ICX_ENOENT`.
///
/// `json`: `{name}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes, `out` writable for `out_cap` and `err` for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_interface_lookup(
    json: *const u8,
    json_len: u32,
    out: *mut u8,
    out_cap: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json_out(json, json_len, out, out_cap, err, err_cap, io::lookup_interface) }
}

/// Resolves a host name and writes a JSON array of "ip:port", best first. Returns the length, or `ICX_ENOENT`. May wait.
///
/// `json`: `{host, port, family = "dual"}`, the family "ipv4", "ipv6" or "dual".
///
/// # Safety
/// `json` is readable for `json_len` bytes, `out` writable for `out_cap` and `err` for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_resolve(
    json: *const u8,
    json_len: u32,
    out: *mut u8,
    out_cap: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json_out(json, json_len, out, out_cap, err, err_cap, io::resolve) }
}
