//! Engines: networks, counters, batches of packets, and what vectors and tests need.

use super::{IcxPacket, finish, overlap, run, run_json, run_out, slice, slice_mut, write_numbers};
use crate::engine;
use crate::error::{Failure, Outcome};
use crate::guard::guard;

/// Makes an engine. Returns a handle.
///
/// `json`: `{mode: "l3"}` or `{mode: "l2", hostMac, gatewayMac}`, and `underlay: "udp"` or `underlay: {raw: {local: [{addr, mac}],
/// outerUdpChecksum = false, dontFragment = true}}`, `peerFilter = true`, `sourcePortHashing = false`, `copyEcn = false`,
/// `copyDscp = false`, `keepaliveMs = 0` (none), `innerMtu?` (bytes). For tests: `dangerFlowHashKey` (16 hexadecimal digits), `dangerManualClock`, `dangerIsolatedKeyHistory`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_create(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, engine::create) }
}

/// Sets the clock of an engine made with `dangerManualClock` to `hi` × 2^32 + `lo` nanoseconds. Returns 0 or `ICX_ESTATE`.
#[unsafe(no_mangle)]
pub extern "C" fn icx_engine_set_clock(engine: u32, lo: u32, hi: u32) -> i32 {
    run(|call| engine::set_clock(call, engine, u64::from(hi) << 32 | u64::from(lo)))
}

/// Adds a network. Returns 0, `ICX_EEXIST`, or `ICX_EINVAL` (a route belongs to another VNI); on error nothing has changed.
///
/// `json`: `{vni, peer: "ip:port", peerMac?, routes: [{src, dst}], rxRateLimitPps?}`; raw underlays demand `peerMac`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_add_network(
    engine: u32,
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| engine::add_network(call, engine, text)) }
}

/// Replaces peer, routes and rate limit of a network in one step; keys and counters stay. `json` as for
/// [`icx_engine_add_network`]. Returns 0, `ICX_ENOENT` or `ICX_EINVAL`; on error nothing has changed.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_update_network(
    engine: u32,
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| engine::update_network(call, engine, text)) }
}

/// Removes a network and erases its keys. Returns 0 or `ICX_ENOENT`.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_remove_network(engine: u32, vni: u32, err: *mut u8, err_cap: u32) -> i32 {
    let outcome = guard(|call| engine::remove_network(call, engine, vni));
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, outcome) }
}

/// Sets the largest inner packet that the engine seals, in bytes; 0: no bound. Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn icx_engine_set_inner_mtu(engine: u32, mtu: u32) -> i32 {
    run(|call| engine::set_inner_mtu(call, engine, mtu))
}

/// Installs given keys, for vectors and tests: static keys repeat nonces after a restart. Returns 0, `ICX_ENOENT`,
/// `ICX_EREUSED`, `ICX_EKEY` or `ICX_EINVAL`.
///
/// `json`: `{vni, rxSpi, txSpi, rxKey, txKey, expiresAtNs}`, keys in hexadecimal, the time on the engine's clock as decimal text.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_danger_install(
    engine: u32,
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| engine::danger_install(call, engine, text)) }
}

/// As [`icx_engine_danger_install`], with one epoch for both directions that must be above the last one (`ICX_EREUSED`).
///
/// `json`: `{vni, epoch, rxKey, txKey, expiresAtNs}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_danger_install_epoch(
    engine: u32,
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| engine::danger_install_epoch(call, engine, text)) }
}

/// Lets the transmit key of a network continue after counter `last`; never backwards. Returns 1 if it moved, else 0.
///
/// `json`: `{vni, last}`, the counter as decimal text.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_skip_tx_counter(
    engine: u32,
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| engine::skip_tx_counter(call, engine, text)) }
}

/// Writes the associations of a network: `{rx: [{spi, expiresInMs, superseded}], tx: {spi, expiresInMs, sealed} | null, pendingTxSpi}`,
/// `sealed` (packets) as decimal text. Returns the length, or `ICX_ENOENT`.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_sa_status(engine: u32, vni: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| engine::sa_status(call, engine, vni)) }
}

/// Writes the counters of a network, in the order of [`icx_counter_names`]; `vni` 0xffffffff: what belongs to none. Returns
/// how many were written: all, or `ICX_EBUFFER` where `count` is too small; `ICX_ENOENT`.
///
/// # Safety
/// `out` is writable for `count` 64-bit numbers during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_counters(engine: u32, vni: u32, out: *mut u64, count: u32) -> i32 {
    run(|call| {
        let counters = engine::counters(call, engine, vni)?;
        // SAFETY: the contract on `out` is the same.
        unsafe { write_numbers(out, count, &counters.values) }
    })
}

/// Counts sealed packets of a network that its underlay then refused, for underlays outside of the library. Returns 0; what
/// belongs to a network that is gone counts for the engine.
#[unsafe(no_mangle)]
pub extern "C" fn icx_engine_count_tx_errors(engine: u32, vni: u32, packets: u32) -> i32 {
    run(|call| engine::count_tx_errors(call, engine, vni, packets))
}

/// Writes the names of the counters as a JSON array. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_counter_names(out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |_| engine::counter_names()) }
}

/// Seals virtual-side frames. Returns how many packets were processed, from the first on: a packet for which the rest of
/// the output may not suffice (its length + 128) ends the call early, except for the first one. `ICX_EINVAL` where
/// a packet lies outside of the input or buffers overlap; then none was processed.
///
/// # Safety
/// `input` is readable for `input_len` bytes, `packets` readable and writable for `count` packets, `output` writable for `output_len`
/// bytes, during the call and by nobody else meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_virt_to_phy(
    engine: u32,
    input: *const u8,
    input_len: u32,
    packets: *mut IcxPacket,
    count: u32,
    output: *mut u8,
    output_len: u32,
) -> i32 {
    run(|call| {
        // SAFETY: the contract on the buffers is the same.
        let (input, packets, output) = unsafe { batch(input, input_len, packets, count, output, output_len) }?;
        engine::virt_to_phy(call, engine, input, packets, output)
    })
}

/// Opens frames (raw underlay) or datagrams (UDP underlay; `addr` and `traffic_class` of each packet are those of its outer
/// header). Returns as
/// [`icx_engine_virt_to_phy`].
///
/// # Safety
/// As [`icx_engine_virt_to_phy`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_phy_to_virt(
    engine: u32,
    input: *const u8,
    input_len: u32,
    packets: *mut IcxPacket,
    count: u32,
    output: *mut u8,
    output_len: u32,
) -> i32 {
    run(|call| {
        // SAFETY: the contract on the buffers is the same.
        let (input, packets, output) = unsafe { batch(input, input_len, packets, count, output, output_len) }?;
        engine::phy_to_virt(call, engine, input, packets, output)
    })
}

/// Carries out what is due by the clock (expiry of keys, switches to new ones) and writes the frames that are due of themselves: keepalives.
/// Returns how many there are; `capacity` may mean that more are due. `ICX_EBUFFER` for an output below 128 bytes.
///
/// # Safety
/// `packets` is writable for `capacity` packets and `output` for `output_len` bytes, during the call and by nobody else meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_engine_to_phy(
    engine: u32,
    packets: *mut IcxPacket,
    capacity: u32,
    output: *mut u8,
    output_len: u32,
) -> i32 {
    run(|call| {
        // SAFETY: the contract on the buffers is the same; no input is NULL with length 0.
        let (_, packets, output) = unsafe { batch(core::ptr::null(), 0, packets, capacity, output, output_len) }?;
        engine::to_phy(call, engine, packets, output)
    })
}

/// The largest inner packet in bytes for a path MTU, or `ICX_EINVAL` where none fits.
#[unsafe(no_mangle)]
pub extern "C" fn icx_inner_mtu(path_mtu: u32) -> i32 {
    run(|_| engine::inner_mtu(path_mtu))
}

/// The buffers of a batch as slices that do not alias.
///
/// # Safety
/// The contract of [`icx_engine_virt_to_phy`], for the lifetime that the caller picks.
pub(super) unsafe fn batch<'a>(
    input: *const u8,
    input_len: u32,
    packets: *mut IcxPacket,
    count: u32,
    output: *mut u8,
    output_len: u32,
) -> Outcome<(&'a [u8], &'a mut [IcxPacket], &'a mut [u8])> {
    if i32::try_from(count).is_err() {
        return Err(Failure::invalid(format!("A batch of {count} packets is too large: the most are {}", i32::MAX)));
    }
    if overlap(input, input_len, packets, count)
        || overlap(input, input_len, output, output_len)
        || overlap(packets, count, output, output_len)
    {
        return Err(Failure::invalid("The buffers of a batch overlap: give three separate ones"));
    }
    // SAFETY: readable by contract, and no mutable slice shares a byte with it, as checked above.
    let input = unsafe { slice(input, input_len, "input") }?;
    // SAFETY: writable by contract, and no other slice shares a byte with it; every bit pattern is a packet.
    let packets = unsafe { slice_mut(packets, count, "packets") }?;
    // SAFETY: writable by contract, and no other slice shares a byte with it.
    let output = unsafe { slice_mut(output, output_len, "output") }?;
    Ok((input, packets, output))
}
