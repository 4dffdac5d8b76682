//! What an engine believes of reports about the path to a peer, what it makes of that, and for how long.

mod support;

use core::time::Duration;
use std::net::{IpAddr, SocketAddr};

use icx_proto::counters::TxDrop;
use icx_proto::engine::{
    BatchPacket, PathMtu, PathMtuChange, PathMtuReason, PathMtuVerdict, RunBuffer, RunLimits, Stop, TxSwitch, TxVerdict,
};
use icx_proto::{Engine, EngineConfig, Instant, Mode, NetworkConfig, Underlay};

use support::{GENEVE, NOW, Side, TAG, config, ip, ipv4, ipv4_of, key, network, pair, sa, seal, spi, vni};

const LIFETIME: Duration = Duration::from_secs(600);
const LEARNED: PathMtu = PathMtu { path_mtu: 1400, inner_mtu: 1296 };

fn peer() -> IpAddr {
    ip(Side::B)
}

/// The start of a datagram that `engine` sends now.
fn quote(engine: &Engine) -> Vec<u8> {
    seal(engine, NOW, &ipv4(b"quoted"))[..GENEVE].to_vec()
}

fn report(engine: &Engine, now: Instant, mtu: u32, quote: &[u8]) -> PathMtuVerdict {
    engine.path_mtu_reported(now, peer(), mtu, Some(quote))
}

fn changes(engine: &Engine) -> Vec<PathMtuChange> {
    std::iter::from_fn(|| engine.next_path_mtu_change()).collect()
}

fn change(learned: Option<PathMtu>, reason: PathMtuReason) -> PathMtuChange {
    PathMtuChange { vni: vni(1), learned, reason }
}

fn send(engine: &Engine, len: usize) -> Result<(), TxDrop> {
    match engine.virt_to_phy(NOW, &ipv4(&vec![0; len - 28]), &mut vec![0; 4096]) {
        TxVerdict::Send { .. } => Ok(()),
        TxVerdict::Drop(reason) => Err(reason),
        verdict => panic!("{verdict:?}"),
    }
}

#[test]
fn a_report_that_quotes_what_was_sent_lowers_what_is_sealed() {
    let (engine, _) = pair(Mode::L3, false);
    let quote = quote(&engine);
    assert_eq!(send(&engine, 1392), Ok(()));
    assert_eq!(report(&engine, NOW, 1400, &quote), PathMtuVerdict::Believed);
    assert_eq!(changes(&engine), [change(Some(LEARNED), PathMtuReason::Router)]);
    assert_eq!(changes(&engine), []);
    assert_eq!(engine.path_mtu(vni(1)), Some(LEARNED));
    assert_eq!((engine.network_inner_mtu(vni(1)), engine.inner_mtu()), (Some(1296), None));
    assert_eq!((engine.inner_mtu_for(&ipv4(b"")), engine.inner_mtu_for(&[0x45; 20])), (Some(1296), None));
    assert_eq!(send(&engine, 1296), Ok(()));
    assert_eq!(send(&engine, 1297), Err(TxDrop::TooBig));
    let mut out = RunBuffer::new(9000, 8, RunLimits { datagrams: 64, bytes: 65_000 });
    let packet = ipv4(&[0; 1400]);
    let mtu_told = |engine: &Engine, out: &mut RunBuffer| match engine
        .seal_batch(NOW, &mut [BatchPacket::Whole(&packet)], out)
        .stopped
    {
        Some(Stop::TooBig { mtu }) => mtu,
        stopped => panic!("{stopped:?}"),
    };
    assert_eq!(mtu_told(&engine, &mut out), Some(1296));
    engine.set_inner_mtu(Some(1000));
    assert_eq!(mtu_told(&engine, &mut out), Some(1000), "the smaller one");
}

#[test]
fn what_quotes_nothing_that_was_sent_is_not_believed() {
    let (engine, _) = pair(Mode::L3, false);
    let sent = quote(&engine);
    type Forgery = fn(&mut Vec<u8>);
    let forgeries: [(&str, Forgery); 12] = [
        ("nothing", Vec::clear),
        ("eight bytes, which RFC 792 demands", |quote| quote.truncate(8)),
        ("all but the last byte", |quote| quote.truncate(GENEVE - 1)),
        ("another version", |quote| quote[0] |= 0x40),
        ("a header without the counter", |quote| quote[0] = 2),
        ("another network", |quote| quote[6] += 1),
        ("another SPI", |quote| (quote[15], quote[23]) = (quote[15] ^ 1, quote[23] ^ 1)),
        ("another SPI in the option alone", |quote| quote[15] ^= 1),
        ("another SPI in the nonce alone", |quote| quote[23] ^= 1),
        ("the SPI of the other direction", |quote| {
            let own = 0x101_u32.to_be_bytes();
            quote[12..16].copy_from_slice(&own);
            quote[20..24].copy_from_slice(&own);
        }),
        ("a counter that is yet to come", |quote| quote[31] += 1),
        ("counter zero", |quote| quote[24..32].fill(0)),
    ];
    for (name, forge) in forgeries {
        let mut quote = sent.clone();
        forge(&mut quote);
        assert_eq!(report(&engine, NOW, 1400, &quote), PathMtuVerdict::Ignored, "{name}");
    }
    let stranger = "192.0.2.99".parse().unwrap();
    assert_eq!(engine.path_mtu_reported(NOW, stranger, 1400, Some(&sent)), PathMtuVerdict::Ignored);
    assert_eq!(engine.path_mtu_reported(NOW, stranger, 1400, None), PathMtuVerdict::Ignored);
    assert_eq!((engine.path_mtu(vni(1)), changes(&engine)), (None, vec![]));
    assert_eq!(engine.poll_timeout(), None);
    assert_eq!(report(&engine, NOW, 1400, &sent), PathMtuVerdict::Believed, "the quote itself");
    let longer = [&sent[..], &[7; 100]].concat();
    assert_eq!(report(&engine, NOW, 1380, &longer), PathMtuVerdict::Believed, "and with more of the datagram");
}

#[test]
fn a_counter_is_recent_for_a_million_packets() {
    let (engine, _) = pair(Mode::L3, false);
    let quote = quote(&engine);
    assert!(engine.skip_tx_counter_to(vni(1), 1 << 20));
    assert_eq!(report(&engine, NOW, 1400, &quote), PathMtuVerdict::Believed);
    assert!(engine.skip_tx_counter_to(vni(1), (1 << 20) + 1));
    assert_eq!(report(&engine, NOW, 1380, &quote), PathMtuVerdict::Ignored);
}

#[test]
fn the_keys_before_and_after_a_rekey_are_both_recent() {
    let (engine, _) = pair(Mode::L3, false);
    let first = quote(&engine);
    let deadline = NOW.saturating_add(Duration::from_millis(500));
    let switch = TxSwitch::OnFirstOpen { rx_spi: spi(0x102), deadline };
    engine.install_tx(NOW, vni(1), spi(0x4000_0102), key(9), Instant::FAR_FUTURE, switch).unwrap();
    let second = seal(&engine, deadline, &ipv4(b"under the waiting key"))[..GENEVE].to_vec();
    assert_eq!(report(&engine, NOW, 1450, &first), PathMtuVerdict::Believed);
    assert_eq!(report(&engine, NOW, 1440, &second), PathMtuVerdict::Believed);
    engine.handle_timeout(deadline);
    assert_eq!(report(&engine, deadline, 1430, &first), PathMtuVerdict::Believed, "the former key");
    assert_eq!(report(&engine, deadline, 1420, &second), PathMtuVerdict::Believed);
    engine.install(deadline, vni(1), sa(Side::A, 3, Instant::FAR_FUTURE)).unwrap();
    assert_eq!(report(&engine, deadline, 1410, &second), PathMtuVerdict::Believed);
    assert_eq!(report(&engine, deadline, 1400, &first), PathMtuVerdict::Ignored, "two keys ago");
}

#[test]
fn sizes_are_bounded_on_both_sides() {
    let v4 = "198.51.100.7:6081";
    let v6 = "[2001:db8::7]:6081";
    let cases: [(&str, &str, u32, Option<PathMtu>); 9] = [
        ("zero, of a router that knows no discovery", v4, 0, None),
        ("what IPv4 promises", v4, 576, Some(PathMtu { path_mtu: 576, inner_mtu: 480 })),
        ("less than IPv4 promises", v4, 575, Some(PathMtu { path_mtu: 576, inner_mtu: 480 })),
        ("one byte", v4, 1, Some(PathMtu { path_mtu: 576, inner_mtu: 480 })),
        ("what IPv6 promises", v6, 1280, Some(PathMtu { path_mtu: 1280, inner_mtu: 1184 })),
        ("less than IPv6 promises", v6, 1279, Some(PathMtu { path_mtu: 1280, inner_mtu: 1184 })),
        ("less than the engine has", v4, 1487, Some(PathMtu { path_mtu: 1487, inner_mtu: 1376 })),
        ("what the engine has anyway", v4, 1488, None),
        ("more than the engine has", v6, u32::MAX, None),
    ];
    for (name, peer, mtu, expected) in cases {
        let peer: SocketAddr = peer.parse().unwrap();
        let engine = Engine::new(EngineConfig { inner_mtu: Some(1392), ..config(Mode::L3, Underlay::Udp) });
        engine.add_network(NetworkConfig { peer, ..network(Side::A, 1) }).unwrap();
        engine.install(NOW, vni(1), sa(Side::A, 1, Instant::FAR_FUTURE)).unwrap();
        let quote = quote(&engine);
        let verdict = engine.path_mtu_reported(NOW, peer.ip(), mtu, Some(&quote));
        assert_eq!(engine.path_mtu(vni(1)), expected, "{name}");
        assert_eq!(verdict == PathMtuVerdict::Believed, expected.is_some(), "{name}");
    }
}

#[test]
fn this_host_needs_no_proof_and_every_network_of_the_peer_is_meant() {
    let (engine, _) = pair(Mode::L3, false);
    engine.add_network(network(Side::A, 2)).unwrap();
    let elsewhere = "192.0.2.50:6081".parse().unwrap();
    engine.add_network(NetworkConfig { peer: elsewhere, ..network(Side::A, 3) }).unwrap();
    let mapped = "::ffff:198.51.100.7".parse().unwrap();
    assert_eq!(engine.path_mtu_reported(NOW, mapped, 1400, None), PathMtuVerdict::Believed);
    let expected = [1, 2].map(|n| PathMtuChange { vni: vni(n), ..change(Some(LEARNED), PathMtuReason::Interface) });
    assert_eq!(changes(&engine), expected);
    engine.install(NOW, vni(3), sa(Side::A, 7, Instant::FAR_FUTURE)).unwrap();
    assert!(!seal(&engine, NOW, &ipv4_of(3, &[0; 1390])).is_empty());
}

#[test]
fn what_was_learned_is_tried_again_after_ten_minutes_without_confirmation() {
    let (engine, _) = pair(Mode::L3, false);
    let quote = quote(&engine);
    let at = |seconds: u64| NOW.saturating_add(Duration::from_secs(seconds));
    assert_eq!(report(&engine, NOW, 1400, &quote), PathMtuVerdict::Believed);
    assert_eq!(engine.poll_timeout(), Some(at(600)));
    assert_eq!(report(&engine, at(100), 1400, &quote), PathMtuVerdict::Believed, "a confirmation");
    assert_eq!(report(&engine, at(200), 1401, &quote), PathMtuVerdict::Ignored, "more than is known");
    assert_eq!(changes(&engine), [change(Some(LEARNED), PathMtuReason::Router)], "told once");
    assert_eq!(engine.poll_timeout(), Some(at(700)));
    engine.handle_timeout(at(699));
    assert_eq!(engine.path_mtu(vni(1)), Some(LEARNED));
    engine.handle_timeout(at(700));
    assert_eq!((engine.path_mtu(vni(1)), engine.poll_timeout()), (None, None));
    assert_eq!(changes(&engine), [change(None, PathMtuReason::Expired)]);
    assert_eq!(send(&engine, 1392), Ok(()));
    assert_eq!(report(&engine, at(701), 1400, &quote), PathMtuVerdict::Believed, "as narrow as before");
    assert_eq!(engine.poll_timeout(), Some(at(701).saturating_add(LIFETIME)));
}

#[test]
fn another_address_of_the_peer_has_another_path() {
    let (engine, _) = pair(Mode::L3, false);
    let quote = quote(&engine);
    assert_eq!(report(&engine, NOW, 1400, &quote), PathMtuVerdict::Believed);
    let mut moved = network(Side::A, 1);
    moved.peer.set_port(7000);
    engine.update_network(moved.clone()).unwrap();
    assert_eq!(engine.path_mtu(vni(1)), Some(LEARNED), "another port is the same path");
    moved.peer.set_ip("198.51.100.8".parse().unwrap());
    engine.update_network(moved).unwrap();
    assert_eq!(engine.path_mtu(vni(1)), None);
    assert_eq!(changes(&engine), [change(None, PathMtuReason::PeerChanged)]);
    assert_eq!(report(&engine, NOW, 1400, &quote), PathMtuVerdict::Ignored, "not to this peer");
}

#[test]
fn a_keepalive_proves_as_much_as_a_packet() {
    let engine = Engine::new(EngineConfig { keepalive: Some(LIFETIME), ..config(Mode::L3, Underlay::Udp) });
    engine.add_network(network(Side::A, 1)).unwrap();
    engine.install(NOW, vni(1), sa(Side::A, 1, Instant::FAR_FUTURE)).unwrap();
    let mut out = [0; 128];
    assert!(matches!(engine.to_phy(NOW, &mut out), Some(TxVerdict::Send { range, .. }) if range.len() == GENEVE + TAG));
    assert_eq!(report(&engine, NOW, 1400, &out[..GENEVE]), PathMtuVerdict::Believed);
}
