//! Identities: private keys that stay in the library, and public keys as text.

use super::{run_json, run_json_out, run_out};
use crate::identity;

/// Makes an identity key and writes it as PKCS#8 PEM. Returns a handle.
///
/// `json`: `{path, force = false}`. `path` "-" is standard output; else a file of mode 0600, which must not exist unless `force`, and
/// then is replaced in one step. `ICX_EEXIST`, `ICX_EPERM`, `ICX_ENOENT`, `ICX_ESYS`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_identity_generate(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, identity::generate) }
}

/// Loads an identity key. Returns a handle.
///
/// `json`: `{path}`. "-" is standard input, read to its end (this may wait). A file on which group or others have any right is refused.
/// `ICX_EKEY`, `ICX_ENOENT`, `ICX_EPERM`, `ICX_ESYS`.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_identity_load(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, identity::load) }
}

/// Writes `{publicKey, fingerprint}` of an identity. Returns the length.
///
/// # Safety
/// `out` is writable for `out_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_identity_info(identity: u32, out: *mut u8, out_cap: u32) -> i32 {
    // SAFETY: the contract on `out` is the same.
    unsafe { run_out(out, out_cap, |call| identity::info(call, identity)) }
}

/// Checks a peer's public key and writes `{publicKey, fingerprint}`. Returns the length.
///
/// `json`: `{text, allowFile = false}`. With `allowFile` a file of that name goes before the text itself. `ICX_EKEY`.
///
/// # Safety
/// `json` is readable for `json_len` bytes, `out` writable for `out_cap` and `err` for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_peer_key_parse(
    json: *const u8,
    json_len: u32,
    out: *mut u8,
    out_cap: u32,
    err: *mut u8,
    err_cap: u32,
) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json_out(json, json_len, out, out_cap, err, err_cap, identity::parse_peer_key) }
}

/// Which role the node with key `local` has towards `peer`: 1 initiator, 0 responder. Equal keys are `ICX_EKEY`.
///
/// `json`: `{local, peer}`, both base64 SPKI DER.
///
/// # Safety
/// `json` is readable for `json_len` bytes and `err` writable for `err_cap` bytes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn icx_role(json: *const u8, json_len: u32, err: *mut u8, err_cap: u32) -> i32 {
    // SAFETY: the contract on the buffers is the same.
    unsafe { run_json(json, json_len, err, err_cap, identity::role) }
}
