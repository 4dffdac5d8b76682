//! The known-answer vectors of `tests/vectors`, or of the folder that `ICX_VECTORS_DIR` names.
#![allow(dead_code, reason = "every test binary uses its own part")]

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use icx_proto::MacAddr;
use serde_json::Value;

/// The cases of one vector file. `None`, with a printed note, when `ICX_VECTORS_DIR` lacks the file; without that
/// variable a missing file is a failure, and so is one that cannot be read or has no cases.
pub(crate) fn load(file: &str) -> Option<Vec<Value>> {
    let chosen = std::env::var_os("ICX_VECTORS_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let elsewhere = chosen.is_some();
    let folder = chosen.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors"));
    let path = folder.join(file);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if elsewhere && error.kind() == std::io::ErrorKind::NotFound => {
            println!("note: {file} is not in ICX_VECTORS_DIR, skipped");
            return None;
        }
        Err(error) => panic!("cannot read {}: {error}", path.display()),
    };
    let mut file: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    match file["cases"].take() {
        Value::Array(cases) if !cases.is_empty() => Some(cases),
        _ => panic!("{} has no cases", path.display()),
    }
}

pub(crate) fn name(case: &Value) -> &str {
    case["name"].as_str().unwrap_or("(unnamed)")
}

pub(crate) fn is_quirk(case: &Value) -> bool {
    case["quirk"] == true
}

pub(crate) fn is_crash(case: &Value) -> bool {
    case["crash"] == true
}

pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("'{key}' is not a string in {value}"))
}

pub(crate) fn bytes(value: &Value, key: &str) -> Vec<u8> {
    hex::decode(text(value, key)).unwrap_or_else(|error| panic!("'{key}' in {value}: {error}"))
}

/// A JSON number, or a decimal string as 64-bit numbers are written.
pub(crate) fn number(value: &Value, key: &str) -> u64 {
    let field = &value[key];
    field
        .as_u64()
        .or_else(|| field.as_str().and_then(|text| text.parse().ok()))
        .unwrap_or_else(|| panic!("'{key}' is not a number in {value}"))
}

/// A key of 16 hex digits, most significant first.
pub(crate) fn hex_u64(value: &Value, key: &str) -> u64 {
    u64::from_str_radix(text(value, key), 16).unwrap_or_else(|error| panic!("'{key}' in {value}: {error}"))
}

pub(crate) fn ip(value: &Value, key: &str) -> IpAddr {
    text(value, key).parse().unwrap_or_else(|error| panic!("'{key}' in {value}: {error}"))
}

pub(crate) fn mac(value: &Value, key: &str) -> MacAddr {
    MacAddr(bytes(value, key).try_into().unwrap_or_else(|_| panic!("'{key}' is no MAC address in {value}")))
}

/// `{ip, port, mac}`; the port must fit 16 bits.
pub(crate) fn endpoint(value: &Value) -> (SocketAddr, MacAddr) {
    let port = u16::try_from(number(value, "port")).expect("port");
    (SocketAddr::new(ip(value, "ip"), port), mac(value, "mac"))
}
