//! Proxies through the C functions.
#![expect(unsafe_code, reason = "the tests call the C functions with wrong arguments")]

mod util;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use icx::abi::*;
use icx::code::Code;
use util::*;

const ENDED: u32 = 7;
const NOTICE: u32 = 8;
const LIVENESS: Duration = Duration::from_secs(20);

fn stack() -> u32 {
    json(icx_netstack_open, r#"{"addresses":["10.9.0.1/24"],"mtu":1400}"#).unwrap()
}

fn start(stack: u32, services: &str) -> Answer<u32> {
    json(icx_proxy_start, &format!(r#"{{"stack":{stack},"services":[{services}]}}"#))
}

/// The JSON of the next event of a kind.
fn event(kind: u32, handle: u32) -> (i32, serde_json::Value) {
    let mut bytes = [0; 8192];
    let end = Instant::now() + LIVENESS;
    while Instant::now() < end {
        let len = usize::try_from(events_wait(&mut bytes, 100)).unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut at = 0;
        while at < len {
            let size = word(at) as usize;
            if (word(at + 4), word(at + 8)) == (kind, handle) {
                let text = bytes[at + 16..at + size].trim_ascii_end();
                let text = text.split(|&byte| byte == 0).next().unwrap();
                return (word(at + 12).cast_signed(), serde_json::from_slice(text).unwrap());
            }
            at += size;
        }
    }
    panic!("no event of kind {kind} for {handle}");
}

fn counter(proxy: u32, name: &str) -> u64 {
    let mut names = [0; 4096];
    // SAFETY: pointer and length describe a live buffer.
    let len = unsafe { icx_proxy_counter_names(names.as_mut_ptr(), names.len() as u32) };
    let names: Vec<String> = serde_json::from_slice(&names[..usize::try_from(len).unwrap()]).unwrap();
    let mut values = vec![0; names.len()];
    // SAFETY: pointer and length describe a live buffer.
    let count = unsafe { icx_proxy_counters(proxy, values.as_mut_ptr(), values.len() as u32) };
    assert_eq!(usize::try_from(count).unwrap(), names.len());
    values[names.iter().position(|known| known == name).unwrap()]
}

#[test]
fn services_listen_serve_tell_and_stop() {
    let _turn = exclusive();
    let stack = stack();
    let services = r#"
        {"kind":"socks5","listen":"127.0.0.1:0","users":"ann:secret\n"},
        {"kind":"http-connect","listen":"127.0.0.1:0"},
        {"kind":"forward","protocol":"udp","listen":"127.0.0.1:0","remote":"10.9.0.2:53"},
        {"kind":"reverse","protocol":"tcp","listenPort":80,"target":"localhost:8080"}"#;
    let proxy = start(stack, services).unwrap();
    let info = out(icx_proxy_info, proxy).unwrap();
    let host = |service: usize| info["services"][service]["host"].as_str().unwrap().to_owned();
    assert!((0..3).all(|service| !host(service).ends_with(":0")), "{info}");
    assert_eq!(info["services"][3], serde_json::json!({ "tunnel": 80 }));

    let mut client = TcpStream::connect(host(0)).unwrap();
    client.write_all(&[5, 1, 2, 1, 3]).unwrap();
    client.write_all(b"ann\x05wrong").unwrap();
    let mut answer = [0; 4];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [5, 2, 1, 1]);
    let (code, notice) = event(NOTICE, proxy);
    assert_eq!(code, 0);
    let client = client.local_addr().unwrap();
    let expected = serde_json::json!({ "notice": "authentication-failed", "service": host(0), "client": client });
    assert_eq!(notice, expected);

    assert_eq!([icx_proxy_stop(proxy), icx_proxy_stop(proxy)], [0, 0]);
    assert_eq!(
        [counter(proxy, "auth_failures"), counter(proxy, "clients"), counter(proxy, "clients_total")],
        [1, 0, 1]
    );
    assert!(TcpStream::connect(host(1)).is_err());
    assert_eq!([icx_close(proxy), icx_close(stack)], [0, 0]);
}

#[test]
fn what_cannot_be_served_is_refused_with_its_reason() {
    let _turn = exclusive();
    let stack = stack();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let on_taken =
        format!(r#"{{"kind":"forward","protocol":"tcp","listen":"{}","remote":"a:1"}}"#, taken.local_addr().unwrap());
    for (services, code, part) in [
        (r#"{"kind":"socks5","listen":"0.0.0.0:0"}"#, Code::Invalid, "loopback"),
        (r#"{"kind":"socks5","listen":"127.0.0.1"}"#, Code::Invalid, "services[0]"),
        (r#"{"kind":"socks5","listen":"127.0.0.1:0","users":"hidden"}"#, Code::Invalid, "line 1"),
        (r#"{"kind":"socks4","listen":"127.0.0.1:0"}"#, Code::Invalid, "socks4"),
        (r#"{"kind":"socks5","listen":"127.0.0.1:0","other":1}"#, Code::Invalid, "other"),
        (r#"{"kind":"forward","protocol":"tcp","listen":"127.0.0.1:0","remote":"a"}"#, Code::Invalid, "port"),
        (r#"{"kind":"forward","protocol":"sctp","listen":"127.0.0.1:0","remote":"a:1"}"#, Code::Invalid, "sctp"),
        (&on_taken, Code::AddressInUse, "another port"),
        (
            r#"{"kind":"forward","protocol":"udp","listen":"192.0.2.1:1","remote":"a:1","dangerOpen":true}"#,
            Code::AddressNotAvailable,
            "192.0.2.1:1",
        ),
    ] {
        let reason = start(stack, services).unwrap_err();
        assert_eq!(Code::from_value(reason.code), Some(code), "{services}: {reason:?}");
        assert!(reason.text.contains(part) && !reason.text.contains("hidden"), "{services}: {reason:?}");
    }
    let reverse = r#"{"kind":"reverse","protocol":"tcp","listenPort":80,"target":"a:1"}"#;
    let proxy = start(stack, reverse).unwrap();
    assert_eq!(start(stack, reverse).unwrap_err().code, Code::AddressInUse as i32);
    let reason = json(icx_proxy_start, &format!(r#"{{"stack":{stack},"services":[],"maxClients":0}}"#)).unwrap_err();
    assert_eq!(reason.code, Code::Invalid as i32);
    assert_eq!([icx_close(proxy), icx_close(stack)], [0, 0]);
}

#[test]
fn the_end_of_the_stack_is_told_and_handles_are_checked() {
    let _turn = exclusive();
    let stack = stack();
    let proxy = start(stack, r#"{"kind":"reverse","protocol":"udp","listenPort":0,"target":"127.0.0.1:1"}"#).unwrap();
    assert_eq!(icx_proxy_stop(stack), Code::BadHandle as i32);
    assert_eq!(start(proxy, "").unwrap_err().code, Code::BadHandle as i32);
    assert_eq!(icx_close(stack), 0);
    let (code, ended) = event(ENDED, proxy);
    assert_eq!(code, Code::Closed as i32);
    assert!(ended["message"].as_str().unwrap().contains("stack"), "{ended}");
    assert_eq!(icx_close(proxy), 0);
    for stale in [icx_proxy_stop(proxy), icx_close(proxy), start(stack, "").unwrap_err().code] {
        assert_eq!(stale, Code::BadHandle as i32);
    }
    for len in [0, 1] {
        // SAFETY: no buffer is there to be read or written, and the library has to find that out.
        assert_eq!(unsafe { icx_proxy_start(null(), len, null_mut(), 0) }, Code::Invalid as i32);
    }
    let mut short = [0; 2];
    // SAFETY: pointer and length describe a live buffer.
    assert_eq!(unsafe { icx_proxy_counter_names(short.as_mut_ptr(), 2) }, Code::Buffer as i32);
}
