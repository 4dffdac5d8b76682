//! The C functions as a careless or hostile caller uses them: every misuse ends as a code, never as a crash.
#![expect(unsafe_code, reason = "the tests call the C functions with wrong arguments")]

mod util;

use std::ptr::{null, null_mut};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use icx::abi::*;
use icx::code::Code;
use util::*;

const EINVAL: i32 = Code::Invalid as i32;
const EBADHANDLE: i32 = Code::BadHandle as i32;
const EBUFFER: i32 = Code::Buffer as i32;
const EPANIC: i32 = Code::Panic as i32;
const EBUSY: i32 = Code::Busy as i32;

/// Ids that no table ever gave out, among them such whose slot exists.
const NEVER_GIVEN: [u32; 5] = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX];

#[test]
fn version_and_codes_have_texts() {
    assert_eq!(icx_abi_version(), 1);
    let mut out = [0; 64];
    // SAFETY: pointer and length describe `out`.
    let len = unsafe { icx_version(out.as_mut_ptr(), 64) };
    assert_eq!(&out[..usize::try_from(len).unwrap()], env!("CARGO_PKG_VERSION").as_bytes());

    let mut seen = std::collections::HashSet::new();
    for code in Code::ALL {
        let mut out = [0; 128];
        let len = usize::try_from(strerror(*code as i32, &mut out)).unwrap();
        assert!(len > 3 && seen.insert(out[..len].to_vec()), "{} has no text of its own", code.symbol());
    }
    for unknown in [1, -25, i32::MIN, i32::MAX] {
        assert_eq!(strerror(unknown, &mut out), EINVAL, "{unknown}");
    }
}

#[test]
fn a_short_output_is_left_alone() {
    let mut out = [0xaa; 8];
    assert_eq!(strerror(0, &mut out[..6]), EBUFFER);
    assert_eq!(out, [0xaa; 8]);
    assert_eq!(strerror(0, &mut out[..7]), 7);
    assert_eq!(&out, b"success\xaa");
    // SAFETY: NULL with length 0 is allowed.
    assert_eq!(unsafe { icx_strerror(0, null_mut(), 0) }, EBUFFER);
    // SAFETY: NULL is refused, not written.
    assert_eq!(unsafe { icx_strerror(0, null_mut(), 64) }, EINVAL);
}

#[test]
fn null_and_empty_text_are_errors_with_and_without_room_for_the_reason() {
    let functions = [
        icx_engine_create,
        icx_identity_generate,
        icx_identity_load,
        icx_role,
        icx_tun_open,
        icx_udp_open,
        icx_netstack_open,
        icx_pump_start,
        icx_control_open,
        icx_control_add_peer,
    ];
    for f in functions {
        // SAFETY: NULL is refused with a length, and allowed without.
        assert_eq!(unsafe { f(null(), 5, null_mut(), 0) }, EINVAL);
        // SAFETY: as above.
        assert_eq!(unsafe { f(null(), 0, null_mut(), 0) }, EINVAL);
        // SAFETY: as above; NULL for the reason too.
        assert_eq!(unsafe { f(null(), 0, null_mut(), 500) }, EINVAL);
        let reason = json(f, "").unwrap_err();
        assert_eq!((reason.code, reason.errno), (EINVAL, 0));
        assert!(reason.text.starts_with("Cannot use the options: EOF"), "{}", reason.text);
        assert_eq!(json(f, "\u{fffd}").unwrap_err().code, EINVAL);
    }
}

#[test]
fn a_reason_is_cut_at_a_character_where_it_does_not_fit() {
    let bad = r#"{"mode":"ü"}"#;
    let full = json(icx_engine_create, bad).unwrap_err().text;
    let at = full.find('ü').unwrap();
    for cap in [0, 7, 8, 9, 8 + at, 8 + at + 1, 8 + at + 2, 8 + full.len(), 512] {
        let mut err = [0xaa; 512];
        // SAFETY: pointers and lengths describe live buffers.
        let code = unsafe { icx_engine_create(bad.as_ptr(), bad.len() as u32, err.as_mut_ptr(), cap as u32) };
        assert_eq!(code, EINVAL);
        if cap < 8 {
            assert_eq!(err, [0xaa; 512]);
            continue;
        }
        let len = u32::from_le_bytes(err[..4].try_into().unwrap()) as usize;
        assert!(full.starts_with(std::str::from_utf8(&err[8..8 + len]).unwrap()), "{cap}");
        assert!(err[8 + len..].iter().all(|&byte| byte == 0xaa), "{cap}");
        assert_eq!(len, if cap == 8 + at + 1 { at } else { (cap - 8).min(full.len()) }, "{cap}");
    }
}

#[test]
fn handles_that_are_not_open_are_refused_everywhere() {
    let _turn = exclusive();
    let closed = engine();
    assert_eq!(icx_close(closed), 0);
    for handle in NEVER_GIVEN.into_iter().chain([closed]) {
        assert_eq!(icx_close(handle), EBADHANDLE);
        assert_eq!(icx_close_wait(handle), EBADHANDLE);
        assert_eq!(explained(icx_danger_panic, handle).unwrap_err().code, EBADHANDLE);
        assert_eq!(icx_engine_set_clock(handle, 0, 0), EBADHANDLE);
        assert_eq!(icx_engine_set_inner_mtu(handle, 1), EBADHANDLE);
        assert_eq!(icx_pump_stop(handle), EBADHANDLE);
        assert_eq!(icx_stream_abort(handle), EBADHANDLE);
        // SAFETY: NULL with length 0 is allowed.
        assert_eq!(unsafe { icx_pump_set_device_mtu(handle, 1400, null_mut(), 0) }, EBADHANDLE);
        let texts = [
            icx_identity_info,
            icx_tun_info,
            icx_udp_info,
            icx_netstack_info,
            icx_listener_info,
            icx_stream_info,
            icx_datagram_info,
            icx_control_info,
            icx_peer_info,
            icx_peer_status,
        ];
        for f in texts {
            assert_eq!(out(f, handle).unwrap_err(), EBADHANDLE);
        }
        let explaining = [
            icx_peer_probe,
            icx_peer_disconnect,
            icx_netstack_echo,
            icx_listener_accept,
            icx_stream_connected,
            icx_stream_close_send,
        ];
        for f in explaining {
            assert_eq!(explained(f, handle).unwrap_err().code, EBADHANDLE);
        }
        for f in [icx_device_read, icx_udp_receive, icx_datagram_receive] {
            assert_eq!(fill(f, handle, &mut [], &mut []).unwrap_err().code, EBADHANDLE);
        }
        for f in [icx_device_write, icx_udp_send, icx_datagram_send] {
            assert_eq!(hand(f, handle, &[], &mut []).unwrap_err().code, EBADHANDLE);
        }
        let receivers = [
            icx_engine_add_network,
            icx_engine_update_network,
            icx_engine_danger_install,
            icx_engine_danger_install_epoch,
            icx_engine_skip_tx_counter,
            icx_peer_dial,
            icx_peer_exchange,
            icx_netstack_connect,
            icx_netstack_listen,
            icx_netstack_datagram,
            icx_netstack_resolve,
            icx_echo_send,
        ];
        for f in receivers {
            assert_eq!(json_to(f, handle, "{}").unwrap_err().code, EBADHANDLE);
        }
        let mut numbers = [0; 64];
        assert_eq!(counters(handle, u32::MAX, &mut numbers), EBADHANDLE);
        // SAFETY: pointer and length describe `numbers`.
        assert_eq!(unsafe { icx_pump_counters(handle, numbers.as_mut_ptr(), 64) }, EBADHANDLE);
        // SAFETY: pointer and length describe `numbers`.
        assert_eq!(unsafe { icx_netstack_counters(handle, numbers.as_mut_ptr(), 64) }, EBADHANDLE);
        for f in [icx_echo_receive, icx_resolution_answer, icx_stream_read] {
            assert_eq!(out_explained(f, handle, &mut []).unwrap_err().code, EBADHANDLE);
        }
        assert_eq!(stream_write(handle, &[]).unwrap_err().code, EBADHANDLE);
        let mut packets = [IcxPacket::default()];
        assert_eq!(virt_to_phy(handle, &[], &mut packets, &mut [0; 200]), EBADHANDLE);
        assert_eq!(phy_to_virt(handle, &[], &mut packets, &mut [0; 200]), EBADHANDLE);
        assert_eq!(to_phy(handle, &mut packets, &mut [0; 200]), EBADHANDLE);
        let peer = format!(
            r#"{{"control":{handle},"engine":{handle},"vni":1,"lifetimeMs":1,"peerKey":"{}"}}"#,
            "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q=="
        );
        assert_eq!(json(icx_control_add_peer, &peer).unwrap_err().code, EBADHANDLE);
        let pump = format!(r#"{{"engine":{handle},"device":{handle},"udp":{handle}}}"#);
        assert_eq!(json(icx_pump_start, &pump).unwrap_err().code, EBADHANDLE);
        let control = format!(r#"{{"identity":{handle},"port":0}}"#);
        assert_eq!(json(icx_control_open, &control).unwrap_err().code, EBADHANDLE);
    }
}

#[test]
fn a_handle_of_another_kind_is_refused_by_name() {
    let _turn = exclusive();
    let engine = engine();
    assert_eq!(out(icx_identity_info, engine).unwrap_err(), EBADHANDLE);
    let reason = json(icx_control_open, &format!(r#"{{"identity":{engine},"port":0}}"#)).unwrap_err();
    assert_eq!(reason.code, EBADHANDLE);
    assert!(reason.text.ends_with("this call takes one of kind 'identity', not 'engine'"), "{}", reason.text);
    assert_eq!(icx_close(engine), 0);
}

#[test]
fn a_panic_puts_its_handle_out_of_service_and_no_other() {
    let _turn = exclusive();
    let (broken, sound) = (engine(), engine());
    let reason = explained(icx_danger_panic, broken).unwrap_err();
    assert_eq!(reason.code, EPANIC);
    assert!(reason.text.contains("a panic was asked for"), "{}", reason.text);

    assert_eq!(icx_engine_set_inner_mtu(broken, 0), EPANIC);
    assert_eq!(out(icx_identity_info, broken).unwrap_err(), EPANIC);
    assert_eq!(json_to(icx_engine_add_network, broken, "{}").unwrap_err().code, EPANIC);
    assert_eq!(icx_engine_set_inner_mtu(sound, 0), 0);
    assert_eq!(icx_handle_count(), 2);

    assert_eq!(icx_close(broken), 0);
    assert_eq!(icx_close(broken), EBADHANDLE);
    assert_eq!(icx_close(sound), 0);
}

#[test]
fn opening_and_closing_reuses_slots_and_leaves_nothing() {
    let _turn = exclusive();
    let kept = engine();
    let mut last = 0;
    for _ in 0..1000 {
        let handle = engine();
        assert_ne!(handle, last);
        last = handle;
        assert_eq!(icx_handle_count(), 2);
        assert_eq!(icx_close(handle), 0);
    }
    assert_eq!(icx_close(kept), 0);
}

#[test]
fn waiting_for_events_ends_by_time_or_when_woken() {
    let _turn = exclusive();
    let mut out = [0; 256];
    let start = Instant::now();
    assert_eq!(events_wait(&mut out, 30), 0);
    assert!(start.elapsed() >= Duration::from_millis(30));
    // Without a waiter, the wake is for the next one.
    assert_eq!(icx_events_wake(), 0);
    assert_eq!(events_wait(&mut out, 60_000), 0);
    // SAFETY: NULL is refused.
    assert_eq!(unsafe { icx_events_wait(null_mut(), 256, 0) }, EINVAL);
}

#[test]
fn one_waits_for_events_at_a_time_while_handles_open_and_close() {
    let _turn = exclusive();
    let handle = engine();
    let (entered, waits) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        entered.send(()).unwrap();
        events_wait(&mut [0; 256], 60_000)
    });
    waits.recv().unwrap();
    // The other thread is on its way into the wait: from some moment on it is busy, until it is woken.
    let deadline = Instant::now() + Duration::from_secs(20);
    while events_wait(&mut [0; 256], 0) != EBUSY {
        assert!(Instant::now() < deadline, "the waiter never began to wait");
        std::thread::yield_now();
    }
    assert_eq!(icx_close(handle), 0);
    let other = engine();
    assert_eq!(icx_close(other), 0);
    assert_eq!(icx_events_wake(), 0);
    assert_eq!(waiter.join().unwrap(), 0);
    assert_eq!(events_wait(&mut [0; 256], 0), 0);
}

fn udp() -> u32 {
    json(icx_udp_open, r#"{"localAddress":"127.0.0.1","port":0,"sourcePortHashing":false,"family":"ipv4"}"#).unwrap()
}

/// How many descriptors this process has.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn sockets_tell_of_datagrams_by_an_event_and_take_what_waits_for_it_with_them() {
    const READABLE: u32 = 2;
    let _turn = exclusive();
    let before = descriptors();
    let handle = udp();
    let port = out(icx_udp_info, handle).unwrap()["port"].as_u64().unwrap() as u16;
    let mut packets = [IcxPacket::default(); 4];
    let mut output = vec![0; 65_535];
    assert_eq!(fill(icx_udp_receive, handle, &mut packets, &mut output), Ok(0));
    let mut event = [0; 256];
    assert_eq!(events_wait(&mut event, 0), 0, "nothing has come");

    let far = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    far.send_to(b"one", ("127.0.0.1", port)).unwrap();
    assert_eq!(events_wait(&mut event, 20_000), 16);
    let word = |at: usize| u32::from_le_bytes(event[at..at + 4].try_into().unwrap());
    assert_eq!((word(4), word(8), word(12)), (READABLE, handle, 0));
    assert_eq!(events_wait(&mut event, 0), 0, "told once");
    assert_eq!(fill(icx_udp_receive, handle, &mut packets, &mut output), Ok(1));
    assert_eq!((packets[0].offset, packets[0].length, packets[0].verdict), (0, 3, 0));
    assert_eq!(packets[0].port, far.local_addr().unwrap().port());
    assert_eq!(&output[..3], b"one");

    // Back to where it came from, and to nobody.
    packets[1] = IcxPacket { port: 0, ..packets[0] };
    assert_eq!(hand(icx_udp_send, handle, b"one", &mut packets[..2]), Ok(2));
    assert_eq!((packets[0].verdict, packets[1].verdict), (0, -1));
    assert_eq!(far.recv(&mut [0; 8]).unwrap(), 3);

    // A waiter that has begun with the sockets goes on without them, and holds nothing of theirs.
    assert_eq!(fill(icx_udp_receive, handle, &mut packets, &mut output), Ok(0));
    let waiter = std::thread::spawn(|| events_wait(&mut [0; 256], 60_000));
    let deadline = Instant::now() + Duration::from_secs(20);
    while events_wait(&mut [0; 256], 0) != EBUSY {
        assert!(Instant::now() < deadline, "the waiter never began to wait");
    }
    drop(far);
    assert_eq!(icx_close(handle), 0);
    std::net::UdpSocket::bind(("127.0.0.1", port)).expect("the port is free at once");
    while descriptors() > before {
        assert!(Instant::now() < deadline, "descriptors are left: {} of {before}", descriptors());
        std::thread::yield_now();
    }
    assert_eq!(icx_events_wake(), 0);
    assert_eq!(waiter.join().unwrap(), 0);
}

#[test]
fn a_waiter_that_began_before_any_sockets_hears_of_theirs() {
    let _turn = exclusive();
    let waiter = std::thread::spawn(|| events_wait(&mut [0; 256], 20_000));
    let deadline = Instant::now() + Duration::from_secs(20);
    while events_wait(&mut [0; 256], 0) != EBUSY {
        assert!(Instant::now() < deadline, "the waiter never began to wait");
    }
    let handle = udp();
    let port = out(icx_udp_info, handle).unwrap()["port"].as_u64().unwrap() as u16;
    assert_eq!(fill(icx_udp_receive, handle, &mut [IcxPacket::default()], &mut vec![0; 65_535]), Ok(0));
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"one", ("127.0.0.1", port)).unwrap();
    assert_eq!(waiter.join().unwrap(), 16);
    assert_eq!(icx_close(handle), 0);
}

#[test]
fn a_batch_that_does_not_fit_its_buffers_moves_nothing() {
    let _turn = exclusive();
    let handle = udp();
    let mut packets = [IcxPacket { length: 4, ..IcxPacket::default() }];
    assert_eq!(hand(icx_udp_send, handle, b"one", &mut packets).unwrap_err().code, EINVAL);
    assert_eq!(fill(icx_udp_receive, handle, &mut packets, &mut vec![0; 65_534]).unwrap_err().code, EBUFFER);
    // SAFETY: NULL is refused with a length.
    assert_eq!(unsafe { icx_udp_receive(handle, null_mut(), 1, null_mut(), 0, null_mut(), 0) }, EINVAL);
    // SAFETY: as above.
    assert_eq!(unsafe { icx_udp_send(handle, null(), 1, null_mut(), 0, null_mut(), 0) }, EINVAL);
    let reason = fill(icx_device_read, handle, &mut packets, &mut []).unwrap_err();
    assert_eq!(reason.code, EBADHANDLE);
    assert!(reason.text.contains("'TUN device' or 'network stack', not 'UDP underlay'"), "{}", reason.text);
    assert_eq!(icx_close(handle), 0);
}

#[test]
fn a_parent_death_signal_is_a_signal() {
    assert_eq!(explained(icx_process_set_parent_death_signal, 0), Ok(0));
    let reason = explained(icx_process_set_parent_death_signal, 65).unwrap_err();
    assert_eq!((reason.code, reason.errno), (EINVAL, 22));
    assert!(reason.text.contains("65") && reason.text.contains("1 to 64"), "{}", reason.text);
}

#[test]
fn the_clock_is_the_time_since_boot() {
    let now = || {
        let mut out = [0; 1];
        // SAFETY: `out` takes one number.
        assert_eq!(unsafe { icx_clock_now(out.as_mut_ptr(), 1) }, 1);
        out[0]
    };
    let uptime = || {
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = text.split(' ').next().unwrap().parse().unwrap();
        (seconds * 1e9) as u64
    };
    // The file has hundredths of a second.
    const STEP: u64 = 10_000_000;
    let (before, first, second, after) = (uptime(), now(), now(), uptime());
    assert!(before <= first && first <= second && second <= after + STEP, "{before} {first} {second} {after}");
    // SAFETY: nothing is written where nothing fits.
    assert_eq!(unsafe { icx_clock_now(core::ptr::null_mut(), 0) }, EBUFFER);
}
