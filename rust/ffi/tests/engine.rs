//! Engines over the C functions: options, networks, batches of packets.
#![expect(unsafe_code, reason = "the tests call the C functions with wrong arguments")]

mod util;

use icx::abi::*;
use icx::code::Code;
use util::*;

const EINVAL: i32 = Code::Invalid as i32;

const VNI: u32 = 7;

fn ipv4(len: u16, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; len.into()];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&from);
    packet[16..20].copy_from_slice(&to);
    packet
}

/// Two engines, each other's peer, with keys.
fn pair() -> (u32, u32) {
    pair_of(engine(), engine())
}

/// The same of engines that are there.
fn pair_of(a: u32, b: u32) -> (u32, u32) {
    let setups = [
        (a, "192.0.2.2:6081", "10.1.0.0/16", "10.2.0.0/16", 1, 0x4000_0001_u32, "11", "22"),
        (b, "192.0.2.1:6081", "10.2.0.0/16", "10.1.0.0/16", 0x4000_0001, 1, "22", "11"),
    ];
    for (engine, peer, src, dst, rx_spi, tx_spi, rx_key, tx_key) in setups {
        let network = format!(r#"{{"vni":{VNI},"peer":"{peer}","routes":[{{"src":"{src}","dst":"{dst}"}}]}}"#);
        json_to(icx_engine_add_network, engine, &network).unwrap();
        let sa = format!(
            r#"{{"vni":{VNI},"rxSpi":{rx_spi},"txSpi":{tx_spi},"rxKey":"{}","txKey":"{}","expiresAtNs":"18446744073709551615"}}"#,
            rx_key.repeat(16),
            tx_key.repeat(16)
        );
        json_to(icx_engine_danger_install, engine, &sa).unwrap();
    }
    (a, b)
}

fn close(handles: [u32; 2]) {
    for handle in handles {
        assert_eq!(icx_close(handle), 0);
    }
}

fn counter(engine: u32, vni: u32, name: &str) -> u64 {
    let names = counter_names();
    let mut values = vec![0; names.len()];
    assert_eq!(counters(engine, vni, &mut values), i32::try_from(names.len()).unwrap());
    values[names.iter().position(|n| n == name).unwrap()]
}

#[test]
fn options_are_checked_and_the_message_says_which() {
    let _turn = exclusive();
    let cases = [
        (r#"{"underlay":"udp"}"#, "Cannot use the options: missing field `mode`"),
        (r#"{"mode":"l4","underlay":"udp"}"#, "Cannot use option 'mode': unknown variant `l4`, expected `l2` or `l3`"),
        (
            r#"{"mode":"l3","underlay":"tcp"}"#,
            "Cannot use option 'underlay': unknown variant `tcp`, expected `udp` or `raw`",
        ),
        (
            r#"{"mode":"l2","underlay":"udp","hostMac":"02:00:00:00:00:01"}"#,
            "Cannot use mode 'l2' alone: it takes both 'hostMac' and 'gatewayMac'",
        ),
        (
            r#"{"mode":"l3","underlay":"udp","dangerFlowHashKey":"0000000000000000"}"#,
            "Cannot use 'dangerFlowHashKey' without 'sourcePortHashing': set that to true",
        ),
        (
            r#"{"mode":"l3","underlay":{"raw":{"local":[{"addr":"192.0.2.1","mac":"02:00:00:00:00:01"}]}}}"#,
            "Cannot use option 'underlay.raw.local[0].addr': '192.0.2.1' is not an address with a port: write one such as 192.0.2.1:6081 or [2001:db8::1]:6081",
        ),
    ];
    for (text, message) in cases {
        let reason = json(icx_engine_create, text).unwrap_err();
        assert_eq!((reason.code, reason.text.as_str()), (EINVAL, message), "{text}");
    }
}

#[test]
fn the_clock_is_set_on_manual_engines_only() {
    let _turn = exclusive();
    let (manual, real) = (engine(), json(icx_engine_create, r#"{"mode":"l3","underlay":"udp"}"#).unwrap());
    assert_eq!(icx_engine_set_clock(manual, 5, 1), 0);
    assert_eq!(icx_engine_set_clock(real, 5, 1), Code::State as i32);
    close([manual, real]);
}

#[test]
fn networks_are_told_apart_by_code() {
    let _turn = exclusive();
    let (engine, _b) = pair();
    let network = |vni: u32, route: &str| {
        format!(r#"{{"vni":{vni},"peer":"192.0.2.9:1","routes":[{{"src":"{route}","dst":"{route}"}}]}}"#)
    };
    let code = |answer: Answer<u32>| answer.unwrap_err().code;
    assert_eq!(code(json_to(icx_engine_add_network, engine, &network(VNI, "10.9.0.0/16"))), Code::Exists as i32);
    assert_eq!(code(json_to(icx_engine_update_network, engine, &network(8, "10.9.0.0/16"))), Code::NotFound as i32);
    assert_eq!(json_to(icx_engine_update_network, engine, &network(VNI, "10.9.0.0/16")), Ok(0));
    let taken = json_to(icx_engine_add_network, engine, &network(8, "10.9.0.0/16")).unwrap_err();
    assert_eq!(taken.code, EINVAL);
    assert!(taken.text.contains("belongs to VNI 7"), "{}", taken.text);
    let host_bits = json_to(icx_engine_add_network, engine, &network(8, "10.9.0.1/16")).unwrap_err();
    assert!(host_bits.text.contains("10.9.0.0/16"), "{}", host_bits.text);
    let remove = |vni| remove_network(engine, vni);
    assert_eq!(remove(8).unwrap_err().code, Code::NotFound as i32);
    assert_eq!(remove(VNI), Ok(0));
    assert_eq!(remove(1 << 24).unwrap_err().code, EINVAL);
    let mut values = [0; 64];
    assert_eq!(counters(engine, VNI, &mut values), Code::NotFound as i32);
    close([engine, _b]);
}

#[test]
fn keys_are_refused_by_code_and_never_shown() {
    let _turn = exclusive();
    let (a, b) = pair();
    let key = "33".repeat(16);
    let install = |vni: u32, rx: &str, tx: &str| {
        let text = format!(
            r#"{{"vni":{vni},"rxSpi":9,"txSpi":1073741825,"rxKey":"{rx}","txKey":"{tx}","expiresAtNs":"1000"}}"#
        );
        json_to(icx_engine_danger_install, a, &text).unwrap_err()
    };
    assert_eq!(install(9, &key, &"44".repeat(16)).code, Code::NotFound as i32);
    assert_eq!(install(VNI, &key, &key).code, Code::Key as i32);
    // The key that the pair was made with.
    assert_eq!(install(VNI, &key, &"22".repeat(16)).code, Code::Reused as i32);
    let reason = install(VNI, &key, "not a key");
    assert_eq!(reason.code, EINVAL);
    assert!(!reason.text.contains(&key) && !reason.text.contains("not a key"), "{}", reason.text);

    assert_eq!(sa_status(a, VNI)["tx"]["spi"], 0x4000_0001);
    assert_eq!(sa_status(a, VNI)["tx"]["sealed"], "0");
    assert_eq!(json_to(icx_engine_skip_tx_counter, a, &format!(r#"{{"vni":{VNI},"last":"9007199254740993"}}"#)), Ok(1));
    assert_eq!(json_to(icx_engine_skip_tx_counter, a, &format!(r#"{{"vni":{VNI},"last":"5"}}"#)), Ok(0));
    close([a, b]);
}

#[test]
fn packets_pass_from_one_engine_to_the_other_in_batches() {
    let _turn = exclusive();
    let (a, b) = pair();
    let mut input = Vec::new();
    let mut packets = Vec::new();
    for len in [20, 100, 1392] {
        packets.push(IcxPacket { offset: input.len() as u32, length: len.into(), ..IcxPacket::default() });
        input.extend(ipv4(len, [10, 1, 0, 1], [10, 2, 0, 1]));
    }
    // No route.
    packets.push(IcxPacket { offset: input.len() as u32, length: 20, ..IcxPacket::default() });
    input.extend(ipv4(20, [10, 1, 0, 1], [172, 16, 0, 1]));

    let mut sealed = vec![0; 4096];
    assert_eq!(virt_to_phy(a, &input, &mut packets, &mut sealed), 4);
    let peer = "::ffff:192.0.2.2".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut end = 0;
    for (packet, len) in packets.iter().zip([20, 100, 1392]) {
        assert_eq!((packet.verdict, packet.vni, packet.addr, packet.port, packet.source_port), (0, VNI, peer, 6081, 0));
        assert_eq!((packet.offset, packet.length), (end, len + 48));
        end += packet.length;
    }
    assert_eq!((packets[3].verdict, packets[3].length), (-3, 0));
    assert_eq!(counter_names()[14 + 2 + 2], "tx_no_route");

    packets.truncate(3);
    for packet in &mut packets {
        packet.addr = "::ffff:192.0.2.1".parse::<std::net::Ipv6Addr>().unwrap().octets();
    }
    // Once more at the end: a replay. And one from elsewhere.
    packets.push(packets[0]);
    packets.push(IcxPacket { addr: [1; 16], ..packets[0] });
    let mut opened = vec![0; 4096];
    assert_eq!(phy_to_virt(b, &sealed, &mut packets, &mut opened), 5);
    assert_eq!(opened[..1512], input[..1512]);
    assert_eq!(packets.iter().map(|packet| packet.verdict).collect::<Vec<_>>(), [0, 0, 0, -9, -3]);
    assert_eq!(counter(b, VNI, "rx_packets"), 3);
    assert_eq!(counter(b, VNI, "rx_replayed"), 1);
    assert_eq!(counter(b, VNI, "rx_bad_peer"), 1);
    assert_eq!(counter(b, u32::MAX, "rx_packets"), 0);
    close([a, b]);
}

#[test]
fn traffic_classes_go_out_and_come_in_with_their_packets() {
    let _turn = exclusive();
    let options = |more: &str| format!(r#"{{"mode":"l3","underlay":"udp","dangerIsolatedKeyHistory":true{more}}}"#);
    let rows = [
        ("", 0x00),
        (r#","copyEcn":true"#, 0x03),
        (r#","copyDscp":true"#, 0xfc),
        (r#","copyEcn":true,"copyDscp":true"#, 0xff),
    ];
    for (more, mask) in rows {
        let (a, b) = pair_of(json(icx_engine_create, &options(more)).unwrap(), engine());
        // Expedited forwarding, with each ECN field.
        let mut packets: Vec<_> =
            (0..4).map(|ecn| IcxPacket { offset: ecn * 20, length: 20, ..IcxPacket::default() }).collect();
        let mut input = ipv4(20, [10, 1, 0, 1], [10, 2, 0, 1]).repeat(4);
        (0..4).for_each(|ecn| input[ecn * 20 + 1] = 0xb8 | ecn as u8);
        let mut sealed = vec![0; 4096];
        assert_eq!(virt_to_phy(a, &input, &mut packets, &mut sealed), 4);
        let classes: Vec<_> = packets.iter().map(|packet| packet.traffic_class).collect();
        assert_eq!(classes, [0xb8, 0xb9, 0xba, 0xbb].map(|class| class & mask), "{more}");

        for packet in &mut packets {
            packet.addr = "::ffff:192.0.2.1".parse::<std::net::Ipv6Addr>().unwrap().octets();
            packet.traffic_class = 0x4b;
        }
        let mut opened = vec![0; 4096];
        assert_eq!(phy_to_virt(b, &sealed, &mut packets, &mut opened), 4);
        assert_eq!(packets.iter().map(|packet| packet.verdict).collect::<Vec<_>>(), [-13, 0, 0, 0]);
        assert!(packets.iter().all(|packet| (packet.traffic_class, packet.reserved) == (0, [0; 11])));
        assert_eq!([opened[1], opened[21], opened[41]], [0xbb; 3]);
        assert_eq!((counter(b, VNI, "rx_bad_ecn"), counter(b, VNI, "rx_packets")), (1, 3));
        close([a, b]);
    }
    let reason = json(icx_engine_create, &options(r#","copyEcn":1"#)).unwrap_err();
    assert!(reason.code == EINVAL && reason.text.contains("copyEcn"), "{}", reason.text);
}

#[test]
fn a_batch_ends_early_where_the_output_may_not_suffice_and_goes_on_in_the_next_call() {
    let _turn = exclusive();
    let (a, b) = pair();
    let input = ipv4(1000, [10, 1, 0, 1], [10, 2, 0, 1]);
    let mut packets = [IcxPacket { offset: 0, length: 1000, ..IcxPacket::default() }; 3];
    let mut sealed = vec![0; 2 * 1048 + 127];
    assert_eq!(virt_to_phy(a, &input, &mut packets, &mut sealed), 2);
    assert_eq!((packets[2].length, packets[2].verdict), (1000, 0));
    assert_eq!(counter(a, VNI, "tx_packets"), 2);
    assert_eq!(virt_to_phy(a, &input, &mut packets[2..], &mut sealed), 1);

    // The first packet of a call always gets a verdict.
    let mut packets = [IcxPacket { offset: 0, length: 1000, ..IcxPacket::default() }; 2];
    assert_eq!(virt_to_phy(a, &input, &mut packets, &mut sealed[..1048]), 1);
    assert_eq!((packets[0].verdict, packets[0].length), (0, 1048));
    let mut packet = [IcxPacket { offset: 0, length: 1000, ..IcxPacket::default() }];
    assert_eq!(virt_to_phy(a, &input, &mut packet, &mut sealed[..1047]), 1);
    assert_eq!((packet[0].verdict, packet[0].length), (-7, 0));
    assert_eq!(counter(a, VNI, "tx_too_big"), 1);
    assert_eq!(virt_to_phy(a, &[], &mut [], &mut []), 0);
    close([a, b]);
}

#[test]
fn bad_ranges_and_overlapping_buffers_are_refused_before_anything_is_sealed() {
    let _turn = exclusive();
    let (a, b) = pair();
    let input = ipv4(100, [10, 1, 0, 1], [10, 2, 0, 1]);
    let good = IcxPacket { offset: 0, length: 100, ..IcxPacket::default() };
    for bad in [
        IcxPacket { offset: 1, length: 100, ..good },
        IcxPacket { offset: 101, length: 0, ..good },
        IcxPacket { offset: u32::MAX, length: u32::MAX, ..good },
    ] {
        assert_eq!(virt_to_phy(a, &input, &mut [good, bad], &mut [0; 1000]), EINVAL);
    }

    let mut shared = vec![0_u8; 4096];
    let base = shared.as_mut_ptr();
    let mut packets = [good];
    // SAFETY: the two buffers overlap, which is refused before either is touched.
    let code = unsafe { icx_engine_virt_to_phy(a, base, 100, packets.as_mut_ptr(), 1, base.wrapping_add(99), 1000) };
    assert_eq!(code, EINVAL);
    // SAFETY: packets lie within the output, which is refused before either is touched.
    let code = unsafe {
        icx_engine_to_phy(a, packets.as_mut_ptr(), 1, packets.as_mut_ptr().cast::<u8>().wrapping_add(47), 200)
    };
    assert_eq!(code, EINVAL);
    // SAFETY: a pointer that is not aligned is refused.
    let code = unsafe {
        icx_engine_to_phy(a, base.wrapping_add(1 + base.align_offset(4)).cast(), 1, base.wrapping_add(1000), 1000)
    };
    assert_eq!(code, EINVAL);
    // SAFETY: NULL is refused.
    let code = unsafe { icx_engine_virt_to_phy(a, std::ptr::null(), 100, packets.as_mut_ptr(), 1, base, 1000) };
    assert_eq!(code, EINVAL);
    // SAFETY: a count beyond i32 is refused before the pointer is used.
    let code = unsafe { icx_engine_to_phy(a, packets.as_mut_ptr(), 1 << 31, base, 1000) };
    assert_eq!(code, EINVAL);
    assert_eq!(counter(a, VNI, "tx_packets"), 0);
    close([a, b]);
}

#[test]
fn keepalives_come_of_themselves() {
    let _turn = exclusive();
    let (a, b) = pair();
    let mut packets = [IcxPacket::default(); 4];
    let mut output = vec![0; 4096];
    assert_eq!(to_phy(a, &mut packets, &mut output), 1);
    assert_eq!((packets[0].verdict, packets[0].vni, packets[0].length, packets[0].source_port), (0, VNI, 48, 0));
    assert_eq!(to_phy(a, &mut packets[1..], &mut output[48..]), 0);
    packets[0].addr = "::ffff:192.0.2.1".parse::<std::net::Ipv6Addr>().unwrap().octets();
    assert_eq!(phy_to_virt(b, &output, &mut packets[..1], &mut [0; 256]), 1);
    assert_eq!((packets[0].verdict, packets[0].vni, packets[0].length), (2, VNI, 0));

    let in_25_s = 25_000_000_000_u64;
    assert_eq!(icx_engine_set_clock(a, in_25_s as u32, (in_25_s >> 32) as u32), 0);
    assert_eq!(to_phy(a, &mut packets, &mut output[..127]), Code::Buffer as i32);
    assert_eq!(to_phy(a, &mut packets, &mut output[..128]), 1);
    close([a, b]);
}

#[test]
fn refused_packets_count_for_their_network_or_for_the_engine_when_it_is_gone() {
    let _turn = exclusive();
    let (a, b) = pair();
    assert_eq!(icx_engine_count_tx_errors(a, VNI, 3), 0);
    assert_eq!(icx_engine_count_tx_errors(a, VNI + 1, 2), 0);
    assert_eq!((counter(a, VNI, "tx_errors"), counter(a, u32::MAX, "tx_errors")), (3, 2));
    assert_eq!(icx_engine_count_tx_errors(a, 1 << 24, 1), EINVAL);
    close([a, b]);
}

#[test]
fn counters_need_room_for_all_of_them() {
    let _turn = exclusive();
    let engine = engine();
    let count = counter_names().len();
    let mut values = vec![u64::MAX; count];
    assert_eq!(counters(engine, u32::MAX, &mut values[..count - 1]), Code::Buffer as i32);
    assert_eq!(values, vec![u64::MAX; count]);
    assert_eq!(counters(engine, 1 << 24, &mut values), EINVAL);
    assert_eq!(counters(engine, u32::MAX, &mut values), i32::try_from(count).unwrap());
    assert_eq!(values, vec![0; count]);
    assert_eq!(icx_close(engine), 0);
}

#[test]
fn the_inner_mtu_follows_from_the_path() {
    assert_eq!(icx_inner_mtu(1500), 1392);
    assert_eq!(icx_inner_mtu(9000), 8896);
    assert_eq!(icx_inner_mtu(0), EINVAL);
}
