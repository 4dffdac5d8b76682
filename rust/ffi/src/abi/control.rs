//! The control plane: endpoints, pinned peers, sessions and exchanges.

use super::{finish, run_json, run_out};
use crate::control;
use crate::guard::guard;

/// Binds a control socket and starts its thread. Returns a handle.
///
/// `json`: `{identity, localAddress?, port}`; without `localAddress` it serves every address of both families. `ICX_EBUSY` where the
/// port is taken, `ICX_EPERM`, `ICX_ESYS`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_control_open(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, control::open) }
}

/// Writes `{localAddress, port}`. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_control_info(control: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| control::info(call, control)) }
}

/// Registers a pinned peer for a VNI of an engine; its sessions install their keys there. The keys decide who dials: a
/// responder accepts and answers from here on without further calls. Returns a handle; closing it ends the session.
///
/// `json`: `{control, engine, vni, peerKey, lifetimeMs}`, three handles and numbers, the key as base64. `ICX_EKEY`
/// for the node's own key, `ICX_EEXIST`, `ICX_ECLOSED`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_control_add_peer(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, control::add_peer) }
}

/// Writes `{role, fingerprint}`. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_peer_info(peer: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| control::peer_info(call, peer)) }
}

/// Starts a handshake with the peer; the event 10 (session up) or 12 (dial failed) tells how it went. Returns 0, `ICX_ESTATE` where a
/// dial or session is under way or the peer is the one to dial, or `ICX_ECLOSED`.
///
/// `json`: `{addr: "ip:port", answerTimeoutMs, repeatAfterMs?}`: after the latter another handshake is begun beside those under way,
/// and again; 0, the default: none is.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_peer_dial(peer: u32, json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| control::dial(call, peer, text)) }
}

/// Starts an exchange of new keys on the session; the event 13 (exchange done) or 14 (exchange failed) tells how it went.
/// Returns 0, `ICX_ESTATE` where there is no session, an exchange is under way or the peer is the one to start, or `ICX_ECLOSED`.
///
/// `json`: `{timeoutMs}`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_peer_exchange(
    peer: u32,
    json: *const u8,
    json_len: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, |call, text| control::exchange(call, peer, text)) }
}

/// Asks the peer for a sign of life if a session is up, at most once in 500 ms. Returns 0 or `ICX_ECLOSED`.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_peer_probe(peer: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, guard(|call| control::probe(call, peer))) }
}

/// Ends the session or the dial that is under way, if any. Returns 0 or `ICX_ECLOSED`.
///
/// # Safety
/// `err` is writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_peer_disconnect(peer: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on `err` is the same.
    unsafe { finish(err, err_cap, guard(|call| control::disconnect(call, peer))) }
}

/// Writes `{role, state: "idle" | "dialing" | "connected", remote, sessions, exchanges, rxSpi, txSpi, rttMs}`; what is not known is null.
/// Returns the length, or `ICX_ECLOSED`.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_peer_status(peer: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| control::peer_status(call, peer)) }
}
