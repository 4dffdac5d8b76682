//! Proxies and forwards between this host and a network stack, which a thread of their own serves.

use super::{run, run_json, run_out, write_numbers};
use crate::proxy;

/// Starts services on a stack, all of them or none. Returns a handle. The stack stays its owner's. `ICX_EINVAL`; `ICX_EADDRINUSE` and `ICX_EADDRNOTAVAIL`
/// where one cannot listen; `ICX_EPERM`, `ICX_ECLOSED`, `ICX_ESYS`.
///
/// `json`: `{stack, services, nameResolution = "host" | "tunnel", maxClients = 1024, handshakeTimeoutMs = 10000, maxAssociations = 256,
/// associationTimeoutMs = 60000}`. A service is one of
/// - `{kind: "socks5", listen: "ip:port", users?, usersFile?, dangerOpen = false}`; `users`, or a file that nobody but its owner may read, has lines of the
///   form `user:password`
/// - `{kind: "http-connect", listen, users?, usersFile?, dangerOpen = false}`
/// - `{kind: "forward", protocol: "tcp" | "udp", listen, remote: "host:port", dangerOpen = false}`, from this host into the tunnel
/// - `{kind: "reverse", protocol, listenPort, target: "host:port"}`, from a port of the stack to what this host reaches
///
/// Port 0 is one that is free. Beyond loopback a service needs `users`, or `dangerOpen`.
///
/// When the services end otherwise than by [`icx_proxy_stop`], the event 7 (proxies ended) comes with `{message, errno}`. The event 8 (proxy notice) has
/// `{notice: "authentication-failed", service: "ip:port", client: "ip:port"}`, `{notice: "accept-failing", service, errno, message}`, where
/// `service` is as in [`icx_proxy_info`], or `{notice: "omitted", count}` for notices that came too fast.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_proxy_start(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, proxy::start) }
}

/// Writes where the services listen, in their order: `{services: [{host: "ip:port"} | {tunnel: port}, ...]}`. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_proxy_info(proxy: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| proxy::info(call, proxy)) }
}

/// Stops the services and waits for their thread, also for what this host's resolver was asked; again is as good. Returns 0. Counters can be read until the handle is closed.
#[unsafe(no_mangle)]
pub extern "C" fn icx_proxy_stop(proxy: u32) -> i32 {
    run(|call| proxy::stop(call, proxy))
}

/// Writes the counters of proxies, in the order of [`icx_proxy_counter_names`]. Returns their number, or `ICX_EBUFFER`.
///
/// # Safety
/// `out` is writable for `count` 64-bit numbers during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_proxy_counters(proxy: u32, out: *mut u64, count: u32) -> i32 {
    run(|call| {
        let counters = proxy::counters(call, proxy)?;
        // SAFETY: the contract on `out` is the same.
        unsafe { write_numbers(out, count, &counters) }
    })
}

/// Writes the names of the counters of proxies as a JSON array. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_proxy_counter_names(out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |_| proxy::counter_names()) }
}
