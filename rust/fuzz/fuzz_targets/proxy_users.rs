#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| icx_harness::netstack::proxy_users(data));
