//! What fuzzing checks: one function for each parser and each state machine.
//!
//! A function takes bytes from anywhere, does with them what the product does with what it is sent, and panics where
//! an invariant does not hold. `rust/fuzz` hands them to the fuzzer; the tests here replay the committed corpora and
//! run seeded mutations of them.

pub mod authentic;
pub mod control;
pub mod engine_model;
pub mod ffi;
pub mod netstack;
pub mod offload;
pub mod state;
pub mod wire;

/// A function that checks one thing.
pub type Check = fn(&[u8]);

/// Every check by the name of its fuzz target and of its corpus folder.
pub const TARGETS: [(&str, Check); 29] = [
    ("announced_spis", state::announced_spis),
    ("authentic_packet", authentic::packet),
    ("certificate", control::certificate),
    ("control_frame", control::frame),
    ("engine_frame", authentic::frame),
    ("engine_model", engine_model::operations),
    ("ffi_batch", ffi::batch),
    ("ffi_handles", ffi::handles),
    ("ffi_json", ffi::json),
    ("geneve", wire::geneve),
    ("geneve_header", wire::geneve_header),
    ("http_connect", netstack::http_connect),
    ("icmp_too_big", wire::icmp_too_big),
    ("identity_pem", control::identity_pem),
    ("inner", wire::inner),
    ("ip_prefix", wire::ip_prefix),
    ("key_plane", control::key_plane),
    ("mss_clamp", wire::mss_clamp),
    ("neighbor", wire::neighbor),
    ("offload_cut", offload::cut),
    ("offload_merge", offload::merge),
    ("outer", wire::outer),
    ("proxy_users", netstack::proxy_users),
    ("public_key", control::public_key),
    ("rate_limit", state::rate_limit),
    ("replay_window", state::replay_window),
    ("route_table", state::route_table),
    ("socks_address", netstack::socks_address),
    ("stack_packets", netstack::stack_packets),
];
