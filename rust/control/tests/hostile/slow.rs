//! Time: peers that are slow, and sessions on which nothing happens.

use std::time::{Duration, Instant};

use icx_control::{ControlEventKind, PeerPhase};

use crate::memory::shared;
use crate::node::{Node, SOON, identities, passes};
use crate::raw::Relay;
use crate::site::wait_until;
use crate::slow_peer::{Habits, SlowPeer};

/// An initiator with a session at `peer` vanishes; another with its key takes its place. How long until keys are in place.
fn recovery_after_a_crash(habits: Habits, patience: Duration) -> Duration {
    let (a, b) = identities();
    let peer = SlowPeer::start(&b, habits);
    let relay = Relay::start(peer.addr);
    let crashed = Node::start(&a, &b);
    crashed.dial(relay.addr);
    crashed.exchange();
    relay.set_server(None);

    let restarted = Instant::now();
    let node = Node::start(&a, &b);
    node.dial(peer.addr);
    assert_eq!(peer.served(), 1, "the peer sits on the dead session");
    node.endpoint.exchange(node.peer, patience).unwrap();
    match node.events.recv_timeout(patience + SOON).expect("an event was due").kind {
        ControlEventKind::ExchangeDone { .. } => {}
        other => panic!("{other:?} after {:?}", restarted.elapsed()),
    }
    assert!(passes(&node.engine, &peer.engine) && passes(&peer.engine, &node.engine));
    restarted.elapsed()
}

/// Why sessions that came up are kept: this is what the slow peer does to those who do not.
#[test]
fn impatience_never_gets_its_turn_at_a_peer_that_serves_one_session_at_a_time() {
    let _shared = shared();
    let habits = Habits::REAL.faster(15);
    let (a, b) = identities();
    let peer = SlowPeer::start(&b, habits);
    let relay = Relay::start(peer.addr);
    let crashed = Node::start(&a, &b);
    crashed.dial(relay.addr);
    crashed.exchange();
    relay.set_server(None);

    let node = Node::start(&a, &b);
    let until = Instant::now() + 2 * habits.idle_timeout;
    while Instant::now() < until {
        node.dial(peer.addr);
        node.endpoint.exchange(node.peer, Duration::from_millis(200)).unwrap();
        match node.next() {
            ControlEventKind::ExchangeFailed { .. } => {}
            other => panic!("{other:?}"),
        }
        node.endpoint.disconnect(node.peer).unwrap();
        assert!(matches!(node.next(), ControlEventKind::SessionLost { .. }));
    }
    assert_eq!(peer.served(), 1);
}

#[test]
#[ignore = "soak: the peer's idle timeout of 30 s passes in real time"]
fn soak_the_turn_comes_within_45_seconds_with_real_timeouts() {
    let _shared = shared();
    let recovery = recovery_after_a_crash(Habits::REAL, Duration::from_secs(60));
    println!("recovered after {recovery:?}");
    assert!(recovery < Duration::from_secs(45), "{recovery:?}");
}

#[test]
#[ignore = "soak: the idle timeout of 30 s passes in real time"]
fn soak_a_session_of_a_peer_that_vanished_ends_after_its_idle_timeout() {
    let _shared = shared();
    let (a, b) = identities();
    let (initiator, responder) = (Node::start(&a, &b), Node::start(&b, &a));
    let relay = Relay::start(responder.addr());
    initiator.dial(relay.addr);
    initiator.exchange();
    responder.session_up();
    responder.exchange_done();
    relay.set_server(None);
    let vanished = Instant::now();
    for (name, node) in [("initiator", &initiator), ("responder", &responder)] {
        match node.events.recv_timeout(Duration::from_secs(50)).expect("an event was due").kind {
            ControlEventKind::SessionLost { reason, superseded: false, reset: false, .. } => {
                assert!(reason.contains("30 s"), "{name}: {reason}");
            }
            other => panic!("{name}: {other:?}"),
        }
        let after = vanished.elapsed();
        println!("{name}: after {after:?}");
        // A keepalive that was sent meanwhile prolongs it once (RFC 9000 section 10.1).
        assert!(after > Duration::from_secs(20) && after < Duration::from_secs(45), "{name}: {after:?}");
    }
    assert!(passes(&initiator.engine, &responder.engine), "the keys in place go on");
}

#[test]
#[ignore = "soak: longer than the idle timeout of 30 s, in real time"]
fn soak_a_session_without_exchanges_stays() {
    let _shared = shared();
    let (a, b) = identities();
    let (initiator, responder) = (Node::start(&a, &b), Node::start(&b, &a));
    initiator.dial(responder.addr());
    initiator.exchange();
    std::thread::sleep(Duration::from_secs(42));
    initiator.exchange();
    assert_eq!(initiator.endpoint.status(initiator.peer).unwrap().sessions, 1);
    assert_eq!(responder.endpoint.status(responder.peer).unwrap().sessions, 1);
}

#[test]
fn a_dial_that_gave_up_is_no_obstacle_for_the_next() {
    let _shared = shared();
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    let relay = Relay::start_with(responder.addr(), "127.0.0.1".parse().unwrap(), |_| false);
    let node = Node::start(&a, &b);
    for round in 0..20 {
        node.endpoint.dial(node.peer, relay.addr, SOON).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        node.endpoint.disconnect(node.peer).unwrap();
        assert!(matches!(node.next(), ControlEventKind::DialFailed { .. }), "round {round}");
    }
    relay.set_answers(|_| true);
    node.dial(relay.addr);
    node.exchange();
    wait_until("the responder has the session", || {
        responder.endpoint.status(responder.peer).unwrap().phase == PeerPhase::Connected
    });
}
