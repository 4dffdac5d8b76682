//! The C functions as a caller with any bytes uses them.
#![expect(unsafe_code, reason = "the C functions are called")]

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use arbitrary::{Arbitrary, Unstructured};
use icx::abi::*;
use icx::code::Code;

use crate::state::decode;

/// Handles are the process's: one check at a time.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

const ERR_CAP: usize = 256;

/// Calls with a buffer for the reason, and checks both the code and the reason.
fn explained(call: impl FnOnce(*mut u8, u32) -> i32) -> Result<u32, Code> {
    let mut err = [0xee; ERR_CAP];
    let result = call(err.as_mut_ptr(), ERR_CAP as u32);
    if let Ok(value) = u32::try_from(result) {
        assert_eq!(err, [0xee; ERR_CAP], "a reason was written without a failure");
        return Ok(value);
    }
    let len = u32::from_le_bytes([err[0], err[1], err[2], err[3]]) as usize;
    let text = core::str::from_utf8(&err[8..8 + len]).expect("the reason is UTF-8");
    assert!(!text.is_empty());
    assert!(err[8 + len..].iter().all(|byte| *byte == 0xee));
    Err(code(result))
}

fn code(result: i32) -> Code {
    let code = Code::from_value(result).expect("a code of the table");
    assert_ne!(code, Code::Panic);
    code
}

fn create(json: &[u8]) -> Result<u32, Code> {
    // SAFETY: pointers and lengths describe live buffers.
    explained(|err, cap| unsafe { icx_engine_create(json.as_ptr(), json.len() as u32, err, cap) })
}

fn send(
    f: unsafe extern "C" fn(u32, *const u8, u32, *mut u8, u32) -> i32,
    handle: u32,
    json: &[u8],
) -> Result<u32, Code> {
    // SAFETY: pointers and lengths describe live buffers.
    explained(|err, cap| unsafe { f(handle, json.as_ptr(), json.len() as u32, err, cap) })
}

const UDP: &[u8] =
    br#"{"mode":"l3","underlay":"udp","keepaliveMs":25000,"dangerManualClock":true,"dangerIsolatedKeyHistory":true}"#;
const RAW: &[u8] = br#"{"mode":"l2","hostMac":"02:00:00:00:00:01","gatewayMac":"02:00:00:00:00:02","underlay":{"raw":{"local":[{"addr":"192.0.2.1:6081","mac":"02:00:00:00:00:03"}]}},"dangerManualClock":true,"dangerIsolatedKeyHistory":true}"#;
const NETWORK: &[u8] = br#"{"vni":1,"peer":"192.0.2.2:6081","peerMac":"02:00:00:00:00:04","routes":[{"src":"0.0.0.0/0","dst":"0.0.0.0/0"},{"src":"::/0","dst":"::/0"}]}"#;
/// Both directions have one SPI, and what is sealed can be opened where the keys are the other way round.
const KEYS: [&[u8]; 2] = [
    br#"{"vni":1,"rxSpi":9,"txSpi":9,"rxKey":"11111111111111111111111111111111","txKey":"22222222222222222222222222222222","expiresAtNs":"18446744073709551615"}"#,
    br#"{"vni":1,"rxSpi":9,"txSpi":9,"rxKey":"22222222222222222222222222222222","txKey":"11111111111111111111111111111111","expiresAtNs":"18446744073709551615"}"#,
];

fn close(handle: u32) {
    assert_eq!(icx_close(handle), 0);
}

/// JSON to a function that the first byte chooses. Those that would open files, devices or sockets are left out.
pub fn json(input: &[u8]) {
    let Some((&choice, json)) = input.split_first() else { return };
    // A name of a file may be any device of this machine.
    if json.windows(9).any(|window| window == b"allowFile") || json.contains(&b'\\') && choice % 12 == 10 {
        return;
    }
    let _turn = turn();
    let engine = create(UDP).expect("good options");
    send(icx_engine_add_network, engine, NETWORK).expect("a good network");
    let before = icx_handle_count();
    let pointer = (json.as_ptr(), json.len() as u32);
    match choice % 12 {
        0 => {
            if let Ok(handle) = create(json) {
                assert_eq!(icx_handle_count(), before + 1);
                let _ = send(icx_engine_add_network, handle, NETWORK);
                close(handle);
            }
        }
        1 => drop(send(icx_engine_add_network, engine, json)),
        2 => drop(send(icx_engine_update_network, engine, json)),
        3 => drop(send(icx_engine_danger_install, engine, json)),
        4 => drop(send(icx_engine_danger_install_epoch, engine, json)),
        5 => drop(send(icx_engine_skip_tx_counter, engine, json)),
        // No other kind of handle is open, so none of these gets beyond its arguments.
        6 => assert!(send(icx_peer_dial, engine, json).is_err()),
        // SAFETY: pointers and lengths describe live buffers.
        7 => assert!(explained(|err, cap| unsafe { icx_control_open(pointer.0, pointer.1, err, cap) }).is_err()),
        // SAFETY: pointers and lengths describe live buffers.
        8 => assert!(explained(|err, cap| unsafe { icx_control_add_peer(pointer.0, pointer.1, err, cap) }).is_err()),
        // SAFETY: pointers and lengths describe live buffers.
        9 => assert!(explained(|err, cap| unsafe { icx_pump_start(pointer.0, pointer.1, err, cap) }).is_err()),
        10 => {
            let mut out = [0xee; 512];
            // SAFETY: pointers and lengths describe live buffers.
            let parsed = explained(|err, cap| unsafe {
                icx_peer_key_parse(pointer.0, pointer.1, out.as_mut_ptr(), out.len() as u32, err, cap)
            });
            let len = parsed.unwrap_or(0) as usize;
            assert!(core::str::from_utf8(&out[..len]).is_ok());
            assert!(out[len..].iter().all(|byte| *byte == 0xee));
        }
        // SAFETY: pointers and lengths describe live buffers.
        _ => drop(explained(|err, cap| unsafe { icx_role(pointer.0, pointer.1, err, cap) })),
    }
    assert_eq!(icx_handle_count(), before);
    let mut counters = [0; 64];
    // SAFETY: pointer and length describe `counters`.
    assert!(unsafe { icx_engine_counters(engine, 1, counters.as_mut_ptr(), 64) } > 0, "the engine still answers");
    close(engine);
}

#[derive(Arbitrary, Debug)]
struct Batch<'a> {
    raw: bool,
    inbound: bool,
    /// Offset and length; those beyond the input are refused.
    packets: Vec<(u16, u16)>,
    output_len: u16,
    input: &'a [u8],
}

/// Descriptors of a batch, good and bad, in both directions; what was sealed is opened again.
pub fn batch(input: &[u8]) {
    let Ok(batch) = Batch::arbitrary_take_rest(Unstructured::new(input)) else { return };
    let packets: Vec<IcxPacket> = batch
        .packets
        .iter()
        .take(64)
        .map(|(offset, length)| IcxPacket {
            offset: (*offset).into(),
            length: (*length).into(),
            ..IcxPacket::default()
        })
        .collect();
    let good = packets.iter().all(|packet| (packet.offset + packet.length) as usize <= batch.input.len());
    let _turn = turn();
    let engines = KEYS.map(|keys| {
        let engine = create(if batch.raw { RAW } else { UDP }).expect("good options");
        send(icx_engine_add_network, engine, NETWORK).expect("a good network");
        send(icx_engine_danger_install, engine, keys).expect("good keys");
        engine
    });
    let (mut done, output) = run(engines[0], batch.inbound, batch.input, &packets, batch.output_len.into());
    match &done {
        Err(code) => assert!(*code == Code::Invalid && !good, "{code:?}"),
        Ok(done) => {
            assert!(good);
            assert!(!done.is_empty() || packets.is_empty(), "a batch gets on");
        }
    }
    if let Ok(done) = &mut done
        && !batch.inbound
        && !batch.raw
    {
        done.retain(|packet| packet.verdict == 0);
        for packet in done.iter_mut() {
            packet.addr = *b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x02";
        }
        let (opened, _) = run(engines[1], true, &output, done, output.len() + 128 * done.len());
        let opened = opened.expect("they lie within");
        assert_eq!(opened.len(), done.len());
        for (sealed, opened) in done.iter().zip(&opened) {
            assert_eq!((opened.verdict, opened.length + 48), (0, sealed.length));
        }
    }
    engines.into_iter().for_each(close);
}

/// The packets that were processed, and the output. Results lie in order and apart, within the output.
fn run(
    engine: u32,
    inbound: bool,
    input: &[u8],
    packets: &[IcxPacket],
    output_len: usize,
) -> (Result<Vec<IcxPacket>, Code>, Vec<u8>) {
    let mut after = packets.to_vec();
    // Exact allocations, so that a byte too far is seen by the sanitizer.
    let input: Box<[u8]> = input.into();
    let mut output = vec![0xee; output_len].into_boxed_slice();
    let f = if inbound { icx_engine_phy_to_virt } else { icx_engine_virt_to_phy };
    // SAFETY: pointers and lengths describe three separate live buffers.
    let result = unsafe {
        f(
            engine,
            input.as_ptr(),
            input.len() as u32,
            after.as_mut_ptr(),
            after.len() as u32,
            output.as_mut_ptr(),
            output.len() as u32,
        )
    };
    let Ok(count) = usize::try_from(result) else {
        assert_eq!(after, packets, "a refused batch is left alone");
        assert!(output.iter().all(|byte| *byte == 0xee));
        return (Err(code(result)), output.into());
    };
    assert_eq!(after[count..], packets[count..]);
    let mut end = 0;
    for packet in &after[..count] {
        assert!(packet.verdict <= 2 && packet.reserved == [0; 11]);
        if packet.verdict < 0 || packet.verdict == 2 {
            assert_eq!((packet.offset, packet.length), (0, 0));
        } else {
            assert!(packet.offset as usize >= end);
            end = (packet.offset + packet.length) as usize;
        }
    }
    assert!(end <= output.len());
    after.truncate(count);
    (Ok(after), output.into())
}

#[derive(Arbitrary)]
enum HandleStep {
    Open,
    /// One of those that were given out, open or not.
    Close(u8),
    Use(u8),
    UseAsAnother(u8),
    UseAny(u32),
    CloseAny(u32),
}

/// The handle table against a map of what is open.
pub fn handles(input: &[u8]) {
    let _turn = turn();
    let others = icx_handle_count();
    let mut given: Vec<u32> = Vec::new();
    let mut open: HashMap<u32, ()> = HashMap::new();
    let pick = |given: &[u32], choice: u8| given.get(usize::from(choice) % given.len().max(1)).copied();
    for step in decode(input).into_iter().take(256) {
        match step {
            HandleStep::Open => {
                let handle = create(UDP).expect("good options");
                assert!(handle != 0 && i32::try_from(handle).is_ok());
                assert!(!given.contains(&handle), "a handle was given out twice");
                given.push(handle);
                open.insert(handle, ());
            }
            HandleStep::Close(choice) => {
                let Some(handle) = pick(&given, choice) else { continue };
                let result = icx_close(handle);
                assert_eq!(result, if open.remove(&handle).is_some() { 0 } else { Code::BadHandle as i32 });
            }
            HandleStep::Use(choice) => {
                let Some(handle) = pick(&given, choice) else { continue };
                let expected = if open.contains_key(&handle) { 0 } else { Code::BadHandle as i32 };
                assert_eq!(icx_engine_set_inner_mtu(handle, 1400), expected);
            }
            HandleStep::UseAsAnother(choice) => {
                let Some(handle) = pick(&given, choice) else { continue };
                assert_eq!(icx_pump_stop(handle), Code::BadHandle as i32);
            }
            HandleStep::UseAny(handle) => {
                let expected = if open.contains_key(&handle) { 0 } else { Code::BadHandle as i32 };
                assert_eq!(icx_engine_set_inner_mtu(handle, 1400), expected);
            }
            HandleStep::CloseAny(handle) => {
                let expected = if open.remove(&handle).is_some() { 0 } else { Code::BadHandle as i32 };
                assert_eq!(icx_close(handle), expected);
            }
        }
        assert_eq!(icx_handle_count() as usize, others as usize + open.len());
    }
    open.into_keys().for_each(close);
}
