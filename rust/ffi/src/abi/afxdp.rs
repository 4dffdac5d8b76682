//! Forwarders over AF_XDP. Only the artifact with the feature `afxdp` has these.

use super::{finish, run, run_json, run_json_out, run_out, write_numbers};
use crate::afxdp;
use crate::guard::guard;

/// Opens a forwarder between a network interface and a device, with everything that it needs: XDP programs, sockets, memory, and the
/// veth pair if that is the device. Returns a handle. May wait.
///
/// `json`: `{engine, interface, device: {veth: {name, mtu, addresses: ["10.9.0.1/24", ...]}} | {tun}, bound: ["ip:port", ...],
/// attach = "auto" | "native" | "generic", zeroCopy = "auto" | "require" | "off", queues?, cpuPin = false,
/// busyPoll?: {microseconds, budget}, latency = "balanced", clampMss = false, pcapFile?}`. The engine has a raw underlay with the
/// interface's hardware address, and mode "l2" for a veth pair, "l3" for a TUN device, whose handle is gone from then on, also when
/// this fails. Needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON: `ICX_EPERM`. `ICX_EBUSY` where the interface, a queue or the device is in
/// use, `ICX_EUNSUPPORTED`, `ICX_EINVAL`, `ICX_ESYS`. Nothing is left behind on failure.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_forwarder_open(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, afxdp::open_forwarder) }
}

/// Writes `{interface, interfaceIndex, mac, driver | null, queues, attached: "native" | "generic", zeroCopy, device: {kind, name,
/// index, mtu, queues}, frameBytes, maxPathMtu, settings: [text, ...]}`. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_forwarder_info(forwarder: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| afxdp::forwarder_info(call, forwarder)) }
}

/// Starts moving packets, once: `ICX_ESTATE` otherwise. Returns 0. When it fails later, the event 5 (forwarder ended) comes with
/// `{message, operation, errno}`. The event 6 (forwarder notice) has `{notice: "link", link, interface}`, `{notice: "next-hop", peer,
/// mac | null, reason | null}`, `{notice: "oversize", hint}` or `{notice: "capture-failed", message}`.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_forwarder_start(forwarder: u32, err: *mut u8, err_cap: u32) -> i32 {
    let outcome = guard(|call| afxdp::start_forwarder(call, forwarder));
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, outcome) }
}

/// Stops a forwarder, waits for that, and gives everything back; again is as good. Returns 0. Counters can be read until the handle is
/// closed.
#[unsafe(no_mangle)]
pub extern "C" fn icx_forwarder_stop(forwarder: u32) -> i32 {
    run(|call| afxdp::stop_forwarder(call, forwarder))
}

/// Writes `{link: "up" | "down" | "removed" | "stopped", interface, nextHops: [{peer, mac | null, reason | null}, ...]}`. Returns the
/// length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_forwarder_state(forwarder: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| afxdp::forwarder_state(call, forwarder)) }
}

/// Writes the counters of a forwarder, in the order of [`icx_forwarder_counter_names`]. Returns their number, or `ICX_EBUFFER`.
///
/// # Safety
/// `out` is writable for `count` 64-bit numbers during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_forwarder_counters(forwarder: u32, out: *mut u64, count: u32) -> i32 {
    run(|call| {
        let counters = afxdp::forwarder_counters(call, forwarder)?;
        // SAFETY: the contract on `out` is the same.
        unsafe { write_numbers(out, count, &counters) }
    })
}

/// Writes the names of the forwarder's counters as a JSON array, those of a pump first. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_forwarder_counter_names(out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |_| afxdp::forwarder_counter_names()) }
}

/// Finds out what this host can do for a forwarder on an interface, and changes nothing. Writes `{driver | null, queues | null, native: boolean |
/// null, zeroCopy: boolean | null, missing: [{kind: "permission" | "kernel" | "system", what: text}, ...]}`; `null`: not known. Returns the
/// length.
///
/// `json`: `{interface}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes, `out` writable for `out_cap` and `err` for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_afxdp_support(
    json: *const u8,
    json_len: u32,
    out: *mut u8,
    out_cap: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json_out(json, json_len, out, out_cap, err, err_cap, afxdp::support) }
}
