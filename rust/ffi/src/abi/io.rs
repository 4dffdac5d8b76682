//! Devices, sockets, pumps, and questions to the kernel about its network.

use super::engine::batch;
use super::{finish, run, run_json, run_json_out, run_out, write_numbers};
use crate::engine::IcxPacket;
use crate::error::Outcome;
use crate::guard::{Call, guard};
use crate::{device, io};

/// Creates a TUN device that goes away with its handle or its pump, with MTU and addresses, up. Returns a handle.
///
/// `json`: `{name, mtu, addresses: ["10.9.0.1/24", ...], queues = 1, offload = {tso, uso, gro}}`, the offloads `true` unless
/// given. Needs CAP_NET_ADMIN: `ICX_EPERM`; `ICX_EBUSY`, `ICX_ESYS`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_tun_open(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, io::open_tun) }
}

/// Writes `{name, index, mtu, queues, offload: {tso, uso, gro}}`, the offloads as far as the kernel has them. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_tun_info(tun: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| io::tun_info(call, tun)) }
}

/// Reads packets of a device, a TUN device or a network stack, that no pump has taken to the start of `output`, without waiting, and writes where each lies. Returns how
/// many; 0 when there are none: then one event 2 comes once there are. `ICX_EBUFFER` for an output below 65535 bytes. `ICX_ESYS`
/// when the device is lost.
///
/// # Safety
/// As [`icx_engine_to_phy`](super::icx_engine_to_phy); `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_device_read(
    device: u32,
    packets: *mut IcxPacket,
    capacity: u32,
    output: *mut u8,
    output_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { fill(device, packets, capacity, output, output_len, err, err_cap, device::read) }
}

/// Hands packets to a device that no pump has taken. Returns how many were dealt with, from the first on, and writes the verdict of each: 0 taken,
/// −1 refused (the device is set down, the stack closed, or the packet is no IP packet). `ICX_ESYS` when the device is lost before the first.
///
/// # Safety
/// `input` is readable for `input_len` bytes, `packets` readable and writable for `count` packets, during the call and by nobody else
/// meanwhile; `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_device_write(
    device: u32,
    input: *const u8,
    input_len: u32,
    packets: *mut IcxPacket,
    count: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { hand(device, input, input_len, packets, count, err, err_cap, device::write) }
}

/// Binds the UDP sockets of an underlay. Returns a handle.
///
/// `json`: `{localAddress?, port, sourcePortHashing, family: "ipv4" | "ipv6" | "dual", sockets = 1, offload = {segment, merge}}`, the
/// offloads `true` unless given. `ICX_EBUSY` where the port is taken, `ICX_EPERM`, `ICX_ESYS`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_udp_open(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, io::open_udp) }
}

/// Writes `{localAddress, port, sockets, offload: {segment, merge}}`, the offloads as far as the kernel has them. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_udp_info(udp: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| io::udp_info(call, udp)) }
}

/// Receives datagrams on sockets that no pump has taken, as [`icx_device_read`]; `addr` and `port` of each are its source, `traffic_class`
/// is that of its outer header, and its verdict is 0, or −1 with no bytes for one that was longer than any that can be sent.
///
/// # Safety
/// As [`icx_engine_to_phy`](super::icx_engine_to_phy); `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_udp_receive(
    udp: u32,
    packets: *mut IcxPacket,
    capacity: u32,
    output: *mut u8,
    output_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { fill(udp, packets, capacity, output, output_len, err, err_cap, io::receive_udp) }
}

/// Sends datagrams to their `addr` and `port` with their `traffic_class` from sockets that no pump has taken. Returns how many were dealt with, from the first on, at
/// most 64, and writes the verdict of each: 0 sent, −1 refused. `source_port` becomes 0 where that port was taken and the base port
/// served. When the next one is not dealt with since its socket's buffer is full, one event 3 comes once there is room.
///
/// # Safety
/// `input` is readable for `input_len` bytes, `packets` readable and writable for `count` packets, during the call and by nobody else
/// meanwhile; `err` is writable for `err_cap` bytes during the call, or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_udp_send(
    udp: u32,
    input: *const u8,
    input_len: u32,
    packets: *mut IcxPacket,
    count: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { hand(udp, input, input_len, packets, count, err, err_cap, io::send_udp) }
}

/// Starts the threads that move packets between a TUN device, an engine and UDP sockets. Returns a handle.
///
/// `json`: `{engine, device, udp, latency = "balanced", clampMss = false}`, handles and "low", "balanced" or "idle". There is one thread for each queue of
/// the device, of which the underlay needs as many sockets. The pump takes device and sockets over once they are known to be good: their handles are
/// gone from then on, also when the start fails after that. The handle of a network stack stays, and the stack is closed when the pump ends. When a thread fails later, the event 1 (pump ended) comes
/// with `{message, operation, errno}`. The event 4 (pump notice) has `{notice: "segmentation-refused", local, errno, message}`: the
/// kernel would not cut datagrams from one socket, which sends them one by one from then on; or `{notice: "path-mtu", vni, pathMtu | null,
/// innerMtu | null, reason: "router" | "interface" | "expired" | "peer-changed"}`: the path to the peer of a network carries no larger
/// packets than these, outside and inside, or `null`, nothing is known of it any more.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_pump_start(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, io::start_pump) }
}

/// Gives the device of a pump another MTU, in bytes. Returns 0, also when the threads have ended; `ICX_EINVAL` outside of 68 to 65535, or
/// below 1280 for a device with an IPv6 address; `ICX_EPERM`, `ICX_ESYS`.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_pump_set_device_mtu(pump: u32, mtu: u32, err: *mut u8, err_cap: u32) -> i32 {
    let outcome = guard(|call| io::set_device_mtu(call, pump, mtu));
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, outcome) }
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

/// Runs a body that fills packets.
///
/// # Safety
/// As [`icx_device_read`].
#[expect(clippy::too_many_arguments, reason = "the parameters of a C function, one for one")]
pub(super) unsafe fn fill(
    end: u32,
    packets: *mut IcxPacket,
    capacity: u32,
    output: *mut u8,
    output_len: u32,
    err: *mut u8,
    err_cap: u32,
    body: impl FnOnce(&Call, u32, &mut [IcxPacket], &mut [u8]) -> Outcome<i32>,
) -> i32 {
    let outcome = guard(|call| {
        // SAFETY: the contract on the buffers is the same; no input is NULL with length 0.
        let (_, packets, output) = unsafe { batch(core::ptr::null(), 0, packets, capacity, output, output_len) }?;
        body(call, end, packets, output)
    });
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, outcome) }
}

/// Runs a body that takes packets.
///
/// # Safety
/// As [`icx_device_write`].
#[expect(clippy::too_many_arguments, reason = "the parameters of a C function, one for one")]
pub(super) unsafe fn hand(
    end: u32,
    input: *const u8,
    input_len: u32,
    packets: *mut IcxPacket,
    count: u32,
    err: *mut u8,
    err_cap: u32,
    body: impl FnOnce(&Call, u32, &[u8], &mut [IcxPacket]) -> Outcome<i32>,
) -> i32 {
    let outcome = guard(|call| {
        // SAFETY: the contract on the buffers is the same; no output is NULL with length 0.
        let (input, packets, _) = unsafe { batch(input, input_len, packets, count, core::ptr::null_mut(), 0) }?;
        body(call, end, input, packets)
    });
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, outcome) }
}
