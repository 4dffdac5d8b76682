//! Network stacks through the C functions: two of them, whose packets the test carries from one to the other.
#![expect(unsafe_code, reason = "the tests call the C functions with wrong arguments")]

mod util;

use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use icx::abi::*;
use icx::code::Code;
use util::*;

const READABLE: u32 = 2;
const WRITABLE: u32 = 3;
const LIVENESS: Duration = Duration::from_secs(20);

const NEAR: &str = "10.9.0.1";
const FAR: &str = "10.9.0.2";

fn stack(address: &str) -> u32 {
    let options = format!(
        r#"{{"addresses":["{address}/24"],"mtu":1400,"receiveBufferBytes":8192,"sendBufferBytes":8192,"maxConnections":4,"nameServers":["10.9.0.53"]}}"#
    );
    json(icx_netstack_open, &options).unwrap()
}

fn code<T: std::fmt::Debug>(answer: Answer<T>) -> Code {
    Code::from_value(answer.unwrap_err().code).unwrap()
}

fn port_of(info: unsafe extern "C" fn(u32, *mut u8, u32) -> i32, handle: u32) -> u64 {
    out(info, handle).unwrap()["port"].as_u64().unwrap()
}

/// Kinds and handles of what has come, without waiting.
fn events() -> Vec<(u32, u32)> {
    let mut bytes = [0; 4096];
    let len = usize::try_from(events_wait(&mut bytes, 0)).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut events = Vec::new();
    let mut at = 0;
    while at < len {
        events.push((word(at + 4), word(at + 8)));
        at += word(at) as usize;
    }
    events
}

/// Two stacks and the way between them.
struct Pair {
    near: u32,
    far: u32,
    packets: Vec<IcxPacket>,
    buffer: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        let packets = vec![IcxPacket::default(); 64];
        Pair { near: stack(NEAR), far: stack(FAR), packets, buffer: vec![0; 4 * 65_535] }
    }

    /// Carries what there is, in both directions, until there is nothing more.
    fn carry(&mut self) {
        let mut quiet = false;
        while !quiet {
            quiet = true;
            for (from, to) in [(self.near, self.far), (self.far, self.near)] {
                let count = fill(icx_device_read, from, &mut self.packets, &mut self.buffer).unwrap();
                quiet &= count == 0;
                let taken = hand(icx_device_write, to, &self.buffer, &mut self.packets[..count as usize]);
                assert_eq!(taken, Ok(count));
            }
        }
    }

    /// Carries packets until `done` gives something: what is due by time comes about meanwhile.
    fn until<T>(&mut self, mut done: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + LIVENESS;
        loop {
            self.carry();
            if let Some(value) = done() {
                return value;
            }
            assert!(Instant::now() < deadline, "it never came about");
            std::thread::yield_now();
        }
    }

    fn connect(&mut self, port: u64) -> u32 {
        json_to(icx_netstack_connect, self.near, &format!(r#"{{"remote":"{FAR}:{port}"}}"#)).unwrap()
    }

    /// A connection, from both its ends.
    fn connected(&mut self) -> (u32, u32) {
        let listener = json_to(icx_netstack_listen, self.far, r#"{"port":0}"#).unwrap();
        let near = self.connect(port_of(icx_listener_info, listener));
        self.carry();
        assert_eq!(explained(icx_stream_connected, near), Ok(0));
        let far = explained(icx_listener_accept, listener).unwrap();
        assert_eq!(icx_close(listener), 0);
        (near, far)
    }

    fn close(self) {
        assert_eq!(icx_close(self.near), 0);
        assert_eq!(icx_close(self.far), 0);
        assert_eq!(events(), []);
    }
}

fn read(stream: u32) -> Answer<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let length = out_explained(icx_stream_read, stream, &mut bytes)?;
    bytes.truncate(length as usize);
    Ok(bytes)
}

#[test]
fn a_stream_carries_bytes_and_ends_one_direction_after_the_other() {
    let _turn = exclusive();
    let mut pair = Pair::new();
    let listener = json_to(icx_netstack_listen, pair.far, r#"{"port":80}"#).unwrap();
    assert_eq!(port_of(icx_listener_info, listener), 80);
    assert_eq!(code(explained(icx_listener_accept, listener)), Code::WouldBlock);
    let near = pair.connect(80);
    assert_eq!(code(explained(icx_stream_connected, near)), Code::WouldBlock);
    assert_eq!(code(read(near)), Code::WouldBlock);
    pair.carry();
    let mut told = events();
    told.retain(|event| *event != (READABLE, pair.near) && *event != (READABLE, pair.far));
    assert!(told.contains(&(READABLE, listener)) && told.contains(&(WRITABLE, near)), "{told:?}");
    assert_eq!(explained(icx_stream_connected, near), Ok(0));
    let far = explained(icx_listener_accept, listener).unwrap();
    let (here, there) = (out(icx_stream_info, near).unwrap(), out(icx_stream_info, far).unwrap());
    assert_eq!((&here["local"], &here["remote"]), (&there["remote"], &there["local"]));
    assert_eq!(here["remote"], format!("{FAR}:80"));

    assert_eq!(code(read(far)), Code::WouldBlock);
    assert_eq!(stream_write(near, b"one"), Ok(3));
    pair.carry();
    assert!(events().contains(&(READABLE, far)));
    assert_eq!(read(far).unwrap(), b"one");
    assert_eq!(explained(icx_stream_close_send, near), Ok(0));
    assert_eq!(code(stream_write(near, b"two")), Code::SendClosed);
    pair.carry();
    assert_eq!(read(far).unwrap(), b"", "the end");
    assert_eq!(stream_write(far, b"three"), Ok(5));
    assert_eq!(explained(icx_stream_close_send, far), Ok(0));
    pair.carry();
    assert_eq!(read(near).unwrap(), b"three");
    pair.carry();
    assert_eq!(read(near).unwrap(), b"");

    for handle in [near, far, listener] {
        assert_eq!(icx_close(handle), 0);
        assert_eq!(icx_close(handle), Code::BadHandle as i32);
    }
    pair.close();
}

#[test]
fn an_event_comes_once_for_each_call_that_would_have_waited() {
    let _turn = exclusive();
    let mut pair = Pair::new();
    let (near, far) = pair.connected();
    let of_far = |events: Vec<(u32, u32)>| events.into_iter().filter(|(_, handle)| *handle == far).count();
    assert_eq!(stream_write(near, b"unasked"), Ok(7));
    pair.carry();
    assert_eq!(of_far(events()), 0, "nobody waits");
    assert_eq!(read(far).unwrap(), b"unasked");
    for round in 0..3 {
        assert_eq!(code(read(far)), Code::WouldBlock);
        assert_eq!(code(read(far)), Code::WouldBlock, "again is as good");
        for _ in 0..2 {
            assert_eq!(stream_write(near, b"asked"), Ok(5));
            pair.carry();
        }
        assert_eq!(of_far(events()), 1, "{round}");
        assert_eq!(read(far).unwrap(), b"askedasked");
    }
    assert_eq!((icx_close(near), icx_close(far)), (0, 0));
    pair.close();
}

#[test]
fn a_writer_waits_for_room_and_hears_of_it() {
    let _turn = exclusive();
    let mut pair = Pair::new();
    let (near, far) = pair.connected();
    let chunk = [7; 4096];
    let mut written = 0;
    let full = loop {
        match stream_write(near, &chunk) {
            Ok(count) => written += count,
            Err(reason) => break reason,
        }
        pair.carry();
    };
    assert_eq!(full.code, Code::WouldBlock as i32);
    assert!(written <= 4 * 8192, "{written} bytes under way");
    while !events().is_empty() {}
    let mut received = 0;
    let told = pair.until(|| {
        received += read(far).map_or(0, |bytes| bytes.len());
        events().contains(&(WRITABLE, near)).then_some(received)
    });
    assert!(told > 0, "a writer is told when something was read");
    assert!(stream_write(near, &chunk).unwrap() > 0);
    assert_eq!((icx_close(near), icx_close(far)), (0, 0));
    pair.close();
}

#[test]
fn failures_have_each_their_code() {
    let _turn = exclusive();
    let mut pair = Pair::new();
    let connect =
        |stack: u32, remote: &str| json_to(icx_netstack_connect, stack, &format!(r#"{{"remote":"{remote}"}}"#));
    assert_eq!(code(connect(pair.near, "10.9.0.2:0")), Code::AddressNotAvailable);
    assert_eq!(code(connect(pair.near, "224.0.0.1:80")), Code::AddressNotAvailable);
    assert_eq!(code(connect(pair.near, "10.9.0.1:80")), Code::AddressNotAvailable);
    assert_eq!(code(connect(pair.near, "[fd00::2]:80")), Code::Unreachable);
    assert_eq!(code(connect(pair.near, "nowhere")), Code::Invalid);

    let listener = json_to(icx_netstack_listen, pair.far, r#"{"port":80}"#).unwrap();
    assert_eq!(code(json_to(icx_netstack_listen, pair.far, r#"{"port":80}"#)), Code::AddressInUse);
    let socket = json_to(icx_netstack_datagram, pair.far, r#"{"port":53}"#).unwrap();
    assert_eq!(code(json_to(icx_netstack_datagram, pair.far, r#"{"port":53}"#)), Code::AddressInUse);
    assert_eq!(code(json_to(icx_netstack_listen, pair.far, r#"{"port":65536}"#)), Code::Invalid);

    let refused = connect(pair.near, "10.9.0.2:81").unwrap();
    pair.carry();
    assert_eq!(code(explained(icx_stream_connected, refused)), Code::Refused);
    assert_eq!(icx_close(refused), 0);

    let (near, far) = pair.connected();
    assert_eq!(code(read(near)), Code::WouldBlock);
    assert_eq!(icx_stream_abort(far), 0);
    pair.carry();
    assert!(events().contains(&(READABLE, near)), "a reset is something to hear of");
    assert_eq!(code(read(near)), Code::Reset);
    assert_eq!(code(stream_write(near, b"x")), Code::Reset);
    assert_eq!(code(stream_write(far, b"x")), Code::NotConnected);

    let open: Vec<u32> = (0..3).map(|_| connect(pair.near, "10.9.0.2:80").unwrap()).collect();
    assert_eq!(code(connect(pair.near, "10.9.0.2:80")), Code::Busy, "as many as there may be");
    for handle in open.into_iter().chain([near, far, listener, socket]) {
        assert_eq!(icx_close(handle), 0);
    }
    for (options, named) in [
        (r#"{"addresses":[],"mtu":1400}"#, "1 to 8 addresses, not 0"),
        (r#"{"addresses":["10.0.0.1/8"],"mtu":60}"#, "68 to 65535"),
        (r#"{"addresses":["10.0.0.1"],"mtu":1400}"#, "'addresses[0]'"),
        (r#"{"addresses":["10.0.0.1/8"],"mtu":1400,"receiveBufferBytes":1}"#, "4096 to 67108864"),
        (r#"{"addresses":["10.0.0.1/8"],"mtu":1400,"maxConnections":0}"#, "1 to 65536 connections"),
        (r#"{"addresses":["10.0.0.1/8"],"mtu":1400,"congestion":"vegas"}"#, "'congestion'"),
    ] {
        let reason = json(icx_netstack_open, options).unwrap_err();
        assert_eq!(reason.code, Code::Invalid as i32, "{options}");
        assert!(reason.text.contains(named), "{}", reason.text);
    }
    pair.close();
}

#[test]
fn a_closed_stack_ends_everything_on_it_and_tells_who_waits() {
    let _turn = exclusive();
    let mut pair = Pair::new();
    let (near, far) = pair.connected();
    let listener = json_to(icx_netstack_listen, pair.near, r#"{"port":80}"#).unwrap();
    let socket = json_to(icx_netstack_datagram, pair.near, r#"{"port":0}"#).unwrap();
    let echo = explained(icx_netstack_echo, pair.near).unwrap();
    assert_eq!(code(read(near)), Code::WouldBlock);
    assert_eq!(code(explained(icx_listener_accept, listener)), Code::WouldBlock);
    while !events().is_empty() {}
    let gone = pair.near;
    assert_eq!(icx_close(gone), 0);
    let told = events();
    assert!(told.contains(&(READABLE, near)) && told.contains(&(READABLE, listener)), "{told:?}");
    assert_eq!(code(read(near)), Code::Closed);
    assert_eq!(code(stream_write(near, b"x")), Code::Closed);
    assert_eq!(code(explained(icx_listener_accept, listener)), Code::Closed);
    let mut packets = [IcxPacket::default()];
    let mut output = vec![0; 65_535];
    assert_eq!(code(fill(icx_datagram_receive, socket, &mut packets, &mut output)), Code::Closed);
    assert_eq!(code(hand(icx_datagram_send, socket, b"", &mut packets)), Code::Closed);
    assert_eq!(code(json_to(icx_echo_send, echo, r#"{"to":"10.9.0.2","sequence":1,"payloadBytes":8}"#)), Code::Closed);
    assert_eq!(code(json_to(icx_netstack_listen, gone, r#"{"port":1}"#)), Code::BadHandle);
    for handle in [near, far, listener, socket, echo, pair.far] {
        assert_eq!(icx_close(handle), 0);
    }
    assert_eq!(events(), []);
}

#[test]
fn a_handle_that_is_closed_while_it_waits_tells_nothing() {
    let _turn = exclusive();
    let mut pair = Pair::new();
    let (near, far) = pair.connected();
    assert_eq!(code(read(near)), Code::WouldBlock);
    assert_eq!(icx_close(near), 0);
    assert_eq!(stream_write(far, b"late"), Ok(4));
    pair.carry();
    assert!(events().iter().all(|(_, handle)| *handle != near));
    assert_eq!(icx_close(far), 0);
    pair.close();
}

#[test]
fn datagrams_and_echoes_pass_in_batches_and_alone() {
    let _turn = exclusive();
    let mut pair = Pair::new();
    let socket = |stack| json_to(icx_netstack_datagram, stack, r#"{"port":0}"#).unwrap();
    let (near, far) = (socket(pair.near), socket(pair.far));
    let port = port_of(icx_datagram_info, far) as u16;
    let addr = std::net::Ipv4Addr::new(10, 9, 0, 2).to_ipv6_mapped().octets();
    let mut packets = vec![IcxPacket { length: 3, addr, port, ..IcxPacket::default() }; 3];
    packets[1].port = 0;
    assert_eq!(fill(icx_datagram_receive, far, &mut [IcxPacket::default()], &mut vec![0; 65_535]), Ok(0));
    assert_eq!(hand(icx_datagram_send, near, b"one", &mut packets), Ok(3));
    assert_eq!([packets[0].verdict, packets[1].verdict, packets[2].verdict], [0, -1, 0]);
    pair.carry();
    assert!(events().contains(&(READABLE, far)));
    let mut output = vec![0; 65_535 + 3];
    assert_eq!(fill(icx_datagram_receive, far, &mut packets, &mut output), Ok(2));
    assert_eq!(&output[..6], b"oneone");
    assert_eq!((packets[1].offset, packets[1].length), (3, 3));
    assert_eq!(u64::from(packets[0].port), port_of(icx_datagram_info, near));
    assert_eq!(code(fill(icx_datagram_receive, far, &mut packets, &mut output[..65_534])), Code::Buffer);

    let mut full = vec![IcxPacket { length: 3, addr, port, ..IcxPacket::default() }; 300];
    let taken = hand(icx_datagram_send, near, b"one", &mut full).unwrap();
    assert!((1..300).contains(&taken), "{taken}");
    pair.carry();
    assert!(events().contains(&(WRITABLE, near)), "there is room again");

    let echo = explained(icx_netstack_echo, pair.near).unwrap();
    let mut answer = [0; 256];
    assert_eq!(code(out_explained(icx_echo_receive, echo, &mut answer)), Code::WouldBlock);
    assert_eq!(json_to(icx_echo_send, echo, r#"{"to":"10.9.0.2","sequence":7,"payloadBytes":56}"#), Ok(0));
    pair.carry();
    let told = events();
    assert!(told.contains(&(READABLE, echo)), "{told:?}");
    let length = out_explained(icx_echo_receive, echo, &mut answer).unwrap() as usize;
    let reply: serde_json::Value = serde_json::from_slice(&answer[..length]).unwrap();
    assert_eq!(reply, serde_json::json!({"from": FAR, "sequence": 7, "payloadBytes": 56}));
    let long = json_to(icx_echo_send, echo, r#"{"to":"10.9.0.2","sequence":8,"payloadBytes":1201}"#);
    assert_eq!(code(long), Code::Invalid);

    for handle in [near, far, echo] {
        assert_eq!(icx_close(handle), 0);
    }
    pair.close();
}

#[test]
fn a_name_is_asked_for_and_not_found_out_without_a_server() {
    let _turn = exclusive();
    let mut pair = Pair::new();
    let ask = |name: &str| {
        json_to(icx_netstack_resolve, pair.near, &format!(r#"{{"name":"{name}","family":"ipv4"}}"#)).unwrap()
    };
    let (good, bad) = (ask("host.example"), ask(""));
    let mut answer = [0; 512];
    assert_eq!(code(out_explained(icx_resolution_answer, good, &mut answer)), Code::WouldBlock);
    assert_eq!(code(out_explained(icx_resolution_answer, bad, &mut answer)), Code::Invalid);
    assert_eq!(code(out_explained(icx_resolution_answer, bad, &mut answer)), Code::State, "it was answered");
    let none = json(icx_netstack_open, r#"{"addresses":["10.9.0.3/24"],"mtu":1400}"#).unwrap();
    let unserved = json_to(icx_netstack_resolve, none, r#"{"name":"host.example","family":"ipv6"}"#).unwrap();
    assert_eq!(code(out_explained(icx_resolution_answer, unserved, &mut answer)), Code::State);
    pair.carry();
    for handle in [good, bad, unserved, none] {
        assert_eq!(icx_close(handle), 0);
    }
    pair.close();
}

#[test]
fn what_is_due_by_time_makes_a_device_readable() {
    let _turn = exclusive();
    let mut pair = Pair::new();
    let stream = pair.connect(80);
    let near = pair.near;
    let sent = |pair: &mut Pair| fill(icx_device_read, near, &mut pair.packets, &mut pair.buffer).unwrap();
    assert_eq!(sent(&mut pair), 1, "what opens the connection");
    assert_eq!(sent(&mut pair), 0);
    let mut event = [0; 256];
    let deadline = Instant::now() + LIVENESS;
    // Nobody answers: it is sent again after a while, of which the event tells.
    while {
        assert!(Instant::now() < deadline, "nothing was sent again");
        assert!(events_wait(&mut event, 20_000) > 0);
        assert_eq!(u32::from_le_bytes(event[8..12].try_into().unwrap()), near);
        sent(&mut pair) == 0
    } {}
    assert_eq!(icx_close(stream), 0);
    pair.close();
}

#[test]
fn buffers_of_no_length_and_none_at_all_are_harmless() {
    let _turn = exclusive();
    let mut pair = Pair::new();
    let (near, far) = pair.connected();
    assert_eq!(stream_write(near, b""), Ok(0));
    assert_eq!(out_explained(icx_stream_read, near, &mut []), Ok(0));
    // SAFETY: NULL is allowed with length 0, and refused with one.
    assert_eq!(unsafe { icx_stream_read(near, null_mut(), 0, null_mut(), 0) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { icx_stream_read(near, null_mut(), 9, null_mut(), 0) }, Code::Invalid as i32);
    // SAFETY: as above.
    assert_eq!(unsafe { icx_stream_write(near, null(), 0, null_mut(), 0) }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { icx_stream_write(near, null(), 9, null_mut(), 0) }, Code::Invalid as i32);
    // SAFETY: nothing is written where nothing fits.
    assert_eq!(unsafe { icx_netstack_counters(pair.near, null_mut(), 0) }, Code::Buffer as i32);
    let mut counters = [0; 16];
    // SAFETY: pointer and length describe `counters`.
    let count = unsafe { icx_netstack_counters(pair.near, counters.as_mut_ptr(), 16) };
    let mut names = [0; 512];
    // SAFETY: pointer and length describe `names`.
    let length = usize::try_from(unsafe { icx_netstack_counter_names(names.as_mut_ptr(), 512) }).unwrap();
    let names: Vec<String> = serde_json::from_slice(&names[..length]).unwrap();
    assert_eq!(names.len(), usize::try_from(count).unwrap());
    assert_eq!((names[0].as_str(), counters[0]), ("connections", 1));
    assert_eq!((icx_close(near), icx_close(far)), (0, 0));
    pair.close();
}

#[test]
fn a_pump_takes_the_device_of_a_stack_and_leaves_its_handle() {
    let _turn = exclusive();
    let near = stack(NEAR);
    let listener = json_to(icx_netstack_listen, near, r#"{"port":80}"#).unwrap();
    let engine = json(icx_engine_create, r#"{"mode":"l3","underlay":"udp"}"#).unwrap();
    let udp = || {
        json(icx_udp_open, r#"{"localAddress":"127.0.0.1","port":0,"sourcePortHashing":false,"family":"ipv4"}"#)
            .unwrap()
    };
    let (first, second) = (udp(), udp());
    let start = |udp: u32| json(icx_pump_start, &format!(r#"{{"engine":{engine},"device":{near},"udp":{udp}}}"#));
    let pump = start(first).unwrap();
    assert_eq!(code(start(second)), Code::State, "it has been taken");
    assert!(out(icx_udp_info, second).is_ok(), "the sockets stay");
    assert_eq!(out(icx_netstack_info, near).unwrap()["mtu"], 1400);
    assert_eq!(code(fill(icx_device_read, near, &mut [], &mut vec![0; 65_535])), Code::State);
    assert_eq!(code(explained(icx_listener_accept, listener)), Code::WouldBlock);
    assert_eq!(icx_pump_stop(pump), 0);
    assert_eq!(code(explained(icx_listener_accept, listener)), Code::Closed, "the stack ends with the pump");
    for handle in [pump, near, listener, second, engine] {
        assert_eq!(icx_close(handle), 0);
    }
}
