//! Security associations: what may be installed, when keys take over, and when they stop.

mod support;

use std::time::Duration;

use icx_proto::counters::{RxDrop, TxDrop};
use icx_proto::engine::{InstallError, NetworkError, RxVerdict, SaPair, TxSwitch, TxVerdict};
use icx_proto::{Engine, EngineConfig, Instant, MacAddr, Mode, Underlay};
use support::*;

const HOUR: Duration = Duration::from_secs(3600);
const NANO: Duration = Duration::from_nanos(1);

fn after(start: Instant, by: Duration) -> Instant {
    start.saturating_add(by)
}

/// An engine of `side` with VNI 1 and no keys.
fn keyless(side: Side) -> Engine {
    let engine = Engine::new(config(Mode::L3, Underlay::Udp));
    engine.add_network(network(side, 1)).unwrap();
    engine
}

fn open(engine: &Engine, now: Instant, datagram: &[u8]) -> RxVerdict {
    engine.phy_to_virt(now, Some(ip(Side::A)), datagram, &mut vec![0; 2048])
}

fn seal_verdict(engine: &Engine, now: Instant) -> TxVerdict {
    engine.virt_to_phy(now, &ipv4(b"x"), &mut [0; 2048])
}

fn tx_spi(engine: &Engine, now: Instant) -> u32 {
    u32::from_be_bytes(seal(engine, now, &ipv4(b"x"))[12..16].try_into().unwrap())
}

fn delivered(verdict: &RxVerdict) -> bool {
    matches!(verdict, RxVerdict::Deliver { .. })
}

#[test]
fn a_refused_install_changes_nothing() {
    let (a, b) = pair(Mode::L3, false);
    let before = (a.sa_status(NOW, vni(1)), b.sa_status(NOW, vni(1)));
    let expiry = after(NOW, HOUR);
    let mut equal = sa(Side::A, 2, expiry);
    equal.rx_key = sa(Side::A, 2, expiry).tx_key;
    assert_eq!(a.install(NOW, vni(1), equal), Err(InstallError::EqualKeys));
    let mut reused = sa(Side::A, 3, expiry);
    (reused.tx_spi, reused.tx_key) = (sa(Side::A, 1, expiry).tx_spi, sa(Side::A, 1, expiry).tx_key);
    assert_eq!(a.install(NOW, vni(1), reused), Err(InstallError::TxKeyReused(spi(0x4000_0101))));
    let late = Instant::from_nanos(NOW.as_nanos() - 1);
    assert_eq!(a.install(NOW, vni(1), sa(Side::A, 4, late)), Err(InstallError::Expired));
    assert_eq!(a.install(NOW, vni(9), sa(Side::A, 5, expiry)), Err(InstallError::UnknownVni(vni(9))));
    assert_eq!((a.sa_status(NOW, vni(1)), b.sa_status(NOW, vni(1))), before);
    // None of the refused transmit keys counts as used, but for the one that was.
    assert_eq!(a.install(NOW, vni(1), sa(Side::A, 4, expiry)), Ok(()));
    assert_eq!(a.install(NOW, vni(1), sa(Side::A, 2, expiry)), Ok(()));
}

#[test]
fn a_transmit_key_seals_under_one_install_only() {
    let shared = history();
    let engine = || {
        let engine = Engine::new(EngineConfig { tx_key_history: shared.clone(), ..config(Mode::L3, Underlay::Udp) });
        engine.add_network(network(Side::A, 1)).unwrap();
        engine
    };
    let first = engine();
    for n in [1, 2] {
        first.install(NOW, vni(1), sa(Side::A, n, Instant::FAR_FUTURE)).unwrap();
    }
    let again = || sa(Side::A, 1, Instant::FAR_FUTURE);
    let refused = Err(InstallError::TxKeyReused(again().tx_spi));
    assert_eq!(first.install(NOW, vni(1), again()), refused, "A, B, A");
    let SaPair { tx_spi, tx_key, expires_at, .. } = again();
    assert_eq!(first.install_tx(NOW, vni(1), tx_spi, tx_key, expires_at, TxSwitch::Now), refused);
    first.remove_network(vni(1)).unwrap();
    first.add_network(network(Side::A, 1)).unwrap();
    assert_eq!(first.install(NOW, vni(1), again()), refused, "after the VNI came anew");
    assert_eq!(engine().install(NOW, vni(1), again()), refused, "in another engine of the process");
    // The SPI alone is free: after a reconnect it comes again with another key.
    let renumbered = SaPair { tx_key: key(77), ..again() };
    assert_eq!(first.install(NOW, vni(1), renumbered), Ok(()));
}

#[test]
fn separate_installs_refuse_the_key_of_the_other_direction() {
    let engine = keyless(Side::A);
    engine.install_rx(NOW, vni(1), spi(1), key(1), Instant::FAR_FUTURE).unwrap();
    let install_tx = |byte| engine.install_tx(NOW, vni(1), spi(2), key(byte), Instant::FAR_FUTURE, TxSwitch::Now);
    assert_eq!(install_tx(1), Err(InstallError::EqualKeys));
    assert_eq!(install_tx(2), Ok(()));
    assert_eq!(engine.install_rx(NOW, vni(1), spi(3), key(2), Instant::FAR_FUTURE), Err(InstallError::EqualKeys));
}

#[test]
fn epochs_only_go_up() {
    let engine = keyless(Side::A);
    let install =
        |epoch, byte| engine.danger_install_epoch(NOW, vni(1), epoch, key(byte), key(byte + 1), Instant::FAR_FUTURE);
    assert_eq!(install(0, 1), Err(InstallError::StaleEpoch { given: 0, last: 0 }));
    assert_eq!(install(5, 1), Ok(()));
    assert_eq!(install(5, 3), Err(InstallError::StaleEpoch { given: 5, last: 5 }));
    assert_eq!(install(4, 3), Err(InstallError::StaleEpoch { given: 4, last: 5 }));
    assert_eq!(install(6, 3), Ok(()));
    assert_eq!(tx_spi(&engine, NOW), 6);
}

#[test]
fn a_receive_key_that_was_renewed_after_its_expiry_expires_again() {
    let (a, b) = pair(Mode::L3, false);
    let datagram = seal(&a, NOW, &ipv4(b"late"));
    let (short, late) = (after(NOW, HOUR), after(NOW, HOUR + HOUR));
    let renew = |now, expires_at| {
        let SaPair { rx_spi, rx_key, .. } = sa(Side::B, 1, NOW);
        b.install_rx(now, vni(1), rx_spi, rx_key, expires_at).unwrap();
    };
    renew(NOW, short);
    assert_eq!(open(&b, late, &datagram), RxVerdict::Drop(RxDrop::ExpiredKey));
    assert_eq!(open(&b, late, &datagram), RxVerdict::Drop(RxDrop::NoKey));
    renew(late, late);
    let later = after(late, NANO);
    assert_eq!(open(&b, later, &datagram), RxVerdict::Drop(RxDrop::ExpiredKey));
    assert_eq!(open(&b, later, &datagram), RxVerdict::Drop(RxDrop::NoKey));
    renew(later, after(later, HOUR));
    assert!(delivered(&open(&b, later, &datagram)));
}

#[test]
fn the_same_receive_key_again_keeps_its_replay_window_and_another_key_gets_a_fresh_one() {
    let (a, b) = pair(Mode::L3, false);
    let datagram = seal(&a, NOW, &ipv4(b"once"));
    assert!(delivered(&open(&b, NOW, &datagram)));
    let SaPair { rx_spi, rx_key, .. } = sa(Side::B, 1, NOW);
    let expiry = after(NOW, HOUR);
    b.install_rx(NOW, vni(1), rx_spi, rx_key, expiry).unwrap();
    assert_eq!(open(&b, NOW, &datagram), RxVerdict::Drop(RxDrop::Replayed));
    assert_eq!(b.sa_status(NOW, vni(1)).unwrap().rx[0].expires_at, expiry);
    // The whole pair again, with a new transmit key: the window still stays.
    let pair = SaPair { tx_key: key(50), ..sa(Side::B, 1, expiry) };
    b.install(NOW, vni(1), pair).unwrap();
    assert_eq!(open(&b, NOW, &datagram), RxVerdict::Drop(RxDrop::Replayed));

    b.install_rx(NOW, vni(1), rx_spi, key(51), expiry).unwrap();
    assert_eq!(open(&b, NOW, &datagram), RxVerdict::Drop(RxDrop::AuthFailed), "the old key is gone");
    let other = keyless(Side::A);
    other.install_tx(NOW, vni(1), rx_spi, key(51), expiry, TxSwitch::Now).unwrap();
    assert!(delivered(&open(&b, NOW, &seal(&other, NOW, &ipv4(b"counter 1 again")))));
}

#[test]
fn an_expired_transmit_key_sends_nothing() {
    let expiry = after(NOW, HOUR);
    let engine = keyless(Side::A);
    assert_eq!(seal_verdict(&engine, NOW), TxVerdict::Drop(TxDrop::NoKey));
    engine.install(NOW, vni(1), sa(Side::A, 1, expiry)).unwrap();
    assert!(matches!(seal_verdict(&engine, expiry), TxVerdict::Send { .. }), "its last instant");
    let late = after(expiry, NANO);
    assert_eq!(seal_verdict(&engine, late), TxVerdict::Drop(TxDrop::ExpiredKey));
    assert_eq!(engine.poll_timeout(), Some(late));
    engine.handle_timeout(late);
    assert_eq!(engine.poll_timeout(), None, "nothing is left to erase");
    assert_eq!(seal_verdict(&engine, late), TxVerdict::Drop(TxDrop::ExpiredKey));
    assert_eq!(engine.sa_status(late, vni(1)).unwrap().tx.unwrap().sealed, 1);
    engine.install(late, vni(1), sa(Side::A, 2, after(late, HOUR))).unwrap();
    assert!(matches!(seal_verdict(&engine, late), TxVerdict::Send { .. }));
}

#[test]
fn an_expired_receive_key_says_so_once_whether_or_not_it_was_swept() {
    for sweep in [false, true] {
        let expiry = after(NOW, HOUR);
        let (a, b) = (keyless(Side::A), keyless(Side::B));
        a.install(NOW, vni(1), sa(Side::A, 1, Instant::FAR_FUTURE)).unwrap();
        b.install(NOW, vni(1), sa(Side::B, 1, expiry)).unwrap();
        let packets: Vec<_> = (0..3).map(|_| seal(&a, NOW, &ipv4(b"x"))).collect();
        assert!(delivered(&open(&b, expiry, &packets[0])), "its last instant");
        let late = after(expiry, NANO);
        if sweep {
            b.handle_timeout(late);
        }
        assert_eq!(open(&b, late, &packets[1]), RxVerdict::Drop(RxDrop::ExpiredKey));
        assert_eq!(open(&b, late, &packets[2]), RxVerdict::Drop(RxDrop::NoKey));
        assert_eq!(b.sa_status(late, vni(1)).unwrap().rx, []);
    }
}

#[test]
fn a_receive_key_alone_supersedes_nobody_until_a_packet_opens_under_it() {
    let (a, b) = pair(Mode::L3, false);
    let SaPair { rx_spi, rx_key, expires_at, .. } = sa(Side::B, 2, Instant::FAR_FUTURE);
    b.install_rx(NOW, vni(1), rx_spi, rx_key, expires_at).unwrap();
    let much_later = after(NOW, HOUR);
    assert!(delivered(&open(&b, much_later, &seal(&a, much_later, &ipv4(b"old key")))));
    let old = seal(&a, much_later, &ipv4(b"old key, late"));
    let older = seal(&a, much_later, &ipv4(b"old key, too late"));

    let SaPair { tx_spi, tx_key, .. } = sa(Side::A, 2, Instant::FAR_FUTURE);
    a.install_tx(much_later, vni(1), tx_spi, tx_key, Instant::FAR_FUTURE, TxSwitch::Now).unwrap();
    assert!(delivered(&open(&b, much_later, &seal(&a, much_later, &ipv4(b"new key")))));
    let grace_ends = after(much_later, Duration::from_secs(30));
    let superseded: Vec<_> = b.sa_status(much_later, vni(1)).unwrap().rx.iter().map(|sa| sa.superseded).collect();
    assert_eq!(superseded, [true, false]);
    assert!(delivered(&open(&b, grace_ends, &old)));
    assert_eq!(open(&b, after(grace_ends, NANO), &older), RxVerdict::Drop(RxDrop::ExpiredKey));
    assert!(delivered(&open(&b, grace_ends, &seal(&a, grace_ends, &ipv4(b"new key")))));
}

#[test]
fn a_confirmation_supersedes_as_a_packet_does() {
    let (_, b) = pair(Mode::L3, false);
    let SaPair { rx_spi, rx_key, .. } = sa(Side::B, 2, NOW);
    b.install_rx(NOW, vni(1), rx_spi, rx_key, Instant::FAR_FUTURE).unwrap();
    b.confirm_rx(NOW, vni(1), rx_spi);
    assert_eq!(b.poll_timeout(), Some(after(after(NOW, Duration::from_secs(30)), NANO)));
    // Saying it twice does not prolong anything.
    b.confirm_rx(after(NOW, HOUR), vni(1), rx_spi);
    assert_eq!(b.poll_timeout(), Some(after(after(NOW, Duration::from_secs(30)), NANO)));
}

#[test]
fn a_waiting_transmit_key_takes_over_with_the_first_packet_or_at_its_deadline() {
    let deadline = after(NOW, Duration::from_millis(500));
    let just_before = Instant::from_nanos(deadline.as_nanos() - 1);
    let prepare = || {
        let (a, b) = pair(Mode::L3, false);
        let SaPair { rx_spi, tx_spi, rx_key, tx_key, .. } = sa(Side::B, 2, NOW);
        b.install_rx(NOW, vni(1), rx_spi, rx_key, Instant::FAR_FUTURE).unwrap();
        let switch = TxSwitch::OnFirstOpen { rx_spi, deadline };
        b.install_tx(NOW, vni(1), tx_spi, tx_key, Instant::FAR_FUTURE, switch).unwrap();
        let SaPair { tx_spi, tx_key, .. } = sa(Side::A, 2, NOW);
        a.install_tx(NOW, vni(1), tx_spi, tx_key, Instant::FAR_FUTURE, TxSwitch::Now).unwrap();
        (a, b)
    };
    let reply = frame(Mode::L3, &{
        let mut packet = ipv4(b"x");
        let (src, dst) = ([10, 101, 0, 1], [10, 1, 0, 1]);
        packet[12..16].copy_from_slice(&src);
        packet[16..20].copy_from_slice(&dst);
        packet
    });
    let spi_of = |engine: &Engine, now| u32::from_be_bytes(seal(engine, now, &reply)[12..16].try_into().unwrap());

    let (a, b) = prepare();
    assert_eq!(spi_of(&b, just_before), 0x101);
    assert_eq!(b.sa_status(NOW, vni(1)).unwrap().pending_tx, Some(spi(0x102)));
    assert!(delivered(&open(&b, NOW, &seal(&a, NOW, &ipv4(b"new key")))));
    assert_eq!(spi_of(&b, NOW), 0x102, "the first packet");
    assert_eq!(b.sa_status(NOW, vni(1)).unwrap().pending_tx, None);

    let (_, b) = prepare();
    assert_eq!(b.poll_timeout(), Some(deadline));
    assert_eq!(spi_of(&b, just_before), 0x101);
    assert_eq!(spi_of(&b, deadline), 0x102, "the deadline, without a sweep");
    b.handle_timeout(deadline);
    assert_eq!(b.poll_timeout(), None);
    assert_eq!(spi_of(&b, deadline), 0x102);

    let (_, b) = prepare();
    b.confirm_rx(NOW, vni(1), spi(0x4000_0102));
    assert_eq!(spi_of(&b, NOW), 0x102, "a confirmation");

    // The packet may come before the transmit key.
    let (a, b) = pair(Mode::L3, false);
    let SaPair { rx_spi, tx_spi, rx_key, tx_key, .. } = sa(Side::B, 2, NOW);
    b.install_rx(NOW, vni(1), rx_spi, rx_key, Instant::FAR_FUTURE).unwrap();
    let initiator = sa(Side::A, 2, NOW);
    a.install_tx(NOW, vni(1), initiator.tx_spi, initiator.tx_key, Instant::FAR_FUTURE, TxSwitch::Now).unwrap();
    assert!(delivered(&open(&b, NOW, &seal(&a, NOW, &ipv4(b"early")))));
    let switch = TxSwitch::OnFirstOpen { rx_spi, deadline };
    b.install_tx(NOW, vni(1), tx_spi, tx_key, Instant::FAR_FUTURE, switch).unwrap();
    assert_eq!(spi_of(&b, NOW), 0x102, "the packet came first");
}

#[test]
fn receive_keys_are_bounded_and_the_one_in_use_is_never_given_up() {
    let (a, b) = pair(Mode::L3, false);
    assert!(delivered(&open(&b, NOW, &seal(&a, NOW, &ipv4(b"in use")))));
    for n in 0..100 {
        b.install_rx(NOW, vni(1), spi(0x5000 + n), key(n as u8 + 100), Instant::FAR_FUTURE).unwrap();
    }
    let status = b.sa_status(NOW, vni(1)).unwrap();
    assert_eq!(status.rx.len(), 16);
    assert_eq!(status.rx[0].spi, spi(0x4000_0101));
    assert_eq!(status.rx[15].spi, spi(0x5000 + 99));
    assert!(delivered(&open(&b, NOW, &seal(&a, NOW, &ipv4(b"still in use")))));
}

#[test]
fn a_far_expiry_does_not_overflow() {
    let (_, b) = pair(Mode::L3, false);
    assert_eq!(b.poll_timeout(), None);
    let last = Instant::from_nanos(u64::MAX - 1);
    b.install(last, vni(1), sa(Side::B, 2, Instant::FAR_FUTURE)).unwrap();
    b.handle_timeout(Instant::FAR_FUTURE);
    assert_eq!(b.sa_status(Instant::FAR_FUTURE, vni(1)).unwrap().rx.len(), 2);
}

#[test]
fn the_last_counter_is_two_to_the_sixtieth() {
    let (a, b) = pair(Mode::L3, false);
    assert!(a.skip_tx_counter_to(vni(1), (1 << 60) - 1));
    assert!(!a.skip_tx_counter_to(vni(1), 7), "never backwards");
    let last = seal(&a, NOW, &ipv4(b"last"));
    assert_eq!(last[24..32], (1_u64 << 60).to_be_bytes());
    assert!(delivered(&open(&b, NOW, &last)));
    for _ in 0..3 {
        assert_eq!(seal_verdict(&a, NOW), TxVerdict::Drop(TxDrop::Exhausted));
    }
    assert_eq!(a.sa_status(NOW, vni(1)).unwrap().tx.unwrap().sealed, 1 << 60);
}

#[test]
fn keepalives_wait_for_keys_and_for_nobody_else() {
    let interval = Duration::from_secs(25);
    let engine = Engine::new(EngineConfig { keepalive: Some(interval), ..config(Mode::L3, Underlay::Udp) });
    for number in [1, 2, 3] {
        engine.add_network(network(Side::A, number)).unwrap();
    }
    let mut out = [0; 128];
    assert_eq!(engine.next_keepalive(), None);
    assert_eq!(engine.to_phy(NOW, &mut out), None);
    let expiry = after(NOW, Duration::from_secs(30));
    engine.install(NOW, vni(3), sa(Side::A, 1, expiry)).unwrap();
    let sent = |now: Instant, out: &mut [u8]| match engine.to_phy(now, out) {
        Some(TxVerdict::Send { vni, range, source_port: None, .. }) => {
            assert_eq!(range, 0..GENEVE + TAG);
            Some(vni.get())
        }
        None => None,
        verdict => panic!("{verdict:?}"),
    };
    assert_eq!((sent(NOW, &mut out), sent(NOW, &mut out)), (Some(3), None), "at once, and once");
    let next = after(NOW, interval);
    assert_eq!(engine.next_keepalive(), Some(next));
    engine.install(NOW, vni(2), sa(Side::A, 2, Instant::FAR_FUTURE)).unwrap();
    assert_eq!((sent(NOW, &mut out), sent(NOW, &mut out)), (Some(2), None));
    assert_eq!([sent(next, &mut out), sent(next, &mut out), sent(next, &mut out)], [Some(2), Some(3), None]);
    // Past its expiry the key sends nothing, and delays nobody.
    let later = after(next, interval);
    assert_eq!((sent(later, &mut out), sent(later, &mut out)), (Some(2), None));
    engine.install(later, vni(3), sa(Side::A, 3, Instant::FAR_FUTURE)).unwrap();
    assert_eq!(sent(later, &mut out), Some(3), "at once with the new key");
    let counters = engine.network_counters(vni(3)).unwrap();
    assert_eq!((counters.get("tx_packets"), counters.get("last_tx")), (Some(3), Some(0)));
    assert_eq!(counters.get("last_keepalive"), Some(later.as_nanos()));
}

#[test]
fn networks_change_whole_or_not_at_all() {
    let (a, b) = pair(Mode::L3, false);
    assert_eq!(a.add_network(network(Side::A, 1)), Err(NetworkError::Exists(vni(1))));
    assert_eq!(a.update_network(network(Side::A, 2)), Err(NetworkError::Unknown(vni(2))));
    assert_eq!(a.remove_network(vni(2)), Err(NetworkError::Unknown(vni(2))));
    let mut taken = network(Side::A, 2);
    taken.routes = network(Side::A, 1).routes;
    assert!(matches!(a.add_network(taken.clone()), Err(NetworkError::Route(_))));
    assert_eq!(a.networks(), [network(Side::A, 1)]);
    a.add_network(network(Side::A, 2)).unwrap();
    assert!(matches!(a.update_network(taken), Err(NetworkError::Route(_))));
    assert_eq!(a.networks(), [network(Side::A, 1), network(Side::A, 2)]);

    // An update keeps keys and counters; a removal keeps neither.
    let moved_peer = icx_proto::NetworkConfig { peer: "203.0.113.9:7000".parse().unwrap(), ..network(Side::A, 1) };
    a.update_network(moved_peer.clone()).unwrap();
    match seal_verdict(&a, NOW) {
        TxVerdict::Send { peer, .. } => assert_eq!(peer, moved_peer.peer),
        verdict => panic!("{verdict:?}"),
    }
    let datagram = seal(&a, NOW, &ipv4(b"x"));
    assert!(delivered(&open(&b, NOW, &datagram)));
    b.remove_network(vni(1)).unwrap();
    assert_eq!(open(&b, NOW, &datagram), RxVerdict::Drop(RxDrop::UnknownVni));
    b.add_network(network(Side::B, 1)).unwrap();
    assert_eq!(open(&b, NOW, &datagram), RxVerdict::Drop(RxDrop::NoKey));
    assert_eq!(b.network_counters(vni(1)).unwrap().get("rx_packets"), Some(0));
}

#[test]
fn a_next_hop_is_that_of_every_network_with_the_peer_and_of_no_other() {
    let (a, _) = pair(Mode::L3, true);
    let elsewhere = icx_proto::NetworkConfig { peer: "203.0.113.9:6081".parse().unwrap(), ..network(Side::A, 3) };
    a.add_network(network(Side::A, 2)).unwrap();
    a.add_network(elsewhere.clone()).unwrap();
    let frame_goes_to = || seal(&a, NOW, &ipv4(b"x"))[..6].to_vec();
    assert_eq!(frame_goes_to(), [4; 6]);

    for (peer, mac) in [(ip(Side::B), MacAddr([6; 6])), ("::ffff:198.51.100.7".parse().unwrap(), MacAddr([8; 6]))] {
        a.set_next_hop(peer, mac);
        let by = |number| icx_proto::NetworkConfig { peer_mac: mac, ..network(Side::A, number) };
        assert_eq!(a.networks(), [by(1), by(2), elsewhere.clone()]);
        // Keys and routes are the ones from before.
        assert_eq!(frame_goes_to(), mac.0);
    }
    a.set_next_hop("192.0.2.99".parse().unwrap(), MacAddr([10; 6]));
    assert_eq!(frame_goes_to(), [8; 6]);
}

#[test]
fn a_mapped_source_is_the_peer_and_a_missing_one_is_not() {
    let (a, b) = pair(Mode::L3, false);
    let mut out = [0; 2048];
    let mapped = Some("::ffff:192.0.2.1".parse().unwrap());
    let datagram = seal(&a, NOW, &ipv4(b"x"));
    assert!(delivered(&b.phy_to_virt(NOW, mapped, &datagram, &mut out)));
    let datagram = seal(&a, NOW, &ipv4(b"x"));
    assert_eq!(b.phy_to_virt(NOW, None, &datagram, &mut out), RxVerdict::Drop(RxDrop::BadPeer));
}

#[test]
fn inner_packets_above_the_device_mtu_are_too_big_whatever_the_frame_could_hold() {
    let engine = Engine::new(EngineConfig { inner_mtu: Some(100), ..config(Mode::L3, Underlay::Udp) });
    engine.add_network(network(Side::A, 1)).unwrap();
    engine.install(NOW, vni(1), sa(Side::A, 1, Instant::FAR_FUTURE)).unwrap();
    let mut out = vec![0; 4096];
    let send = |len: usize, out: &mut [u8]| engine.virt_to_phy(NOW, &ipv4(&vec![0; len - 28]), out);
    assert!(matches!(send(100, &mut out), TxVerdict::Send { .. }));
    assert_eq!(send(101, &mut out), TxVerdict::Drop(TxDrop::TooBig));
    engine.set_inner_mtu(Some(101));
    assert!(matches!(send(101, &mut out), TxVerdict::Send { .. }));
    engine.set_inner_mtu(None);
    assert!(matches!(send(2000, &mut out), TxVerdict::Send { .. }));
    // No UDP datagram over IPv4 holds more than 65507 bytes.
    let mut out = vec![0; 70_000];
    let largest = 65_507 - GENEVE - TAG;
    assert!(matches!(send(largest, &mut out), TxVerdict::Send { .. }));
    assert_eq!(send(largest + 1, &mut out), TxVerdict::Drop(TxDrop::TooBig));
    assert_eq!(engine.sa_status(NOW, vni(1)).unwrap().tx.unwrap().sealed, 4);
}
