//! Sessions on loopback: between two of ours, and with peers that behave otherwise.

mod node;
#[allow(dead_code, reason = "each test binary uses a part")]
mod raw;

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use icx_control::{
    AddPeerError, CommandError, ControlConfig, ControlEndpoint, ControlEventKind, DialFailure, Patience, PeerConfig,
    PeerPhase,
};
use node::{LIFETIME, Node, SOON, clock, identities, passes, vni};

/// What only these tests look for.
impl Node {
    /// No event comes within `time`.
    fn quiet(&self, time: Duration) {
        match self.events.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => {}
            other => panic!("{other:?}"),
        }
    }

    /// The reason of a failed exchange.
    fn exchange_failed(&self) -> String {
        match self.next() {
            ControlEventKind::ExchangeFailed { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Reason, superseded, reset.
    fn session_lost(&self) -> (String, bool, bool) {
        match self.next() {
            ControlEventKind::SessionLost { reason, superseded, reset, .. } => (reason, superseded, reset),
            other => panic!("{other:?}"),
        }
    }
}

fn connected_pair() -> (Node, Node) {
    let (a, b) = identities();
    let (initiator, responder) = (Node::start(&a, &b), Node::start(&b, &a));
    initiator.dial(responder.addr());
    responder.session_up();
    (initiator, responder)
}

// ---- between two of ours ----

#[test]
fn an_exchange_makes_traffic_pass_both_ways() {
    let (initiator, responder) = connected_pair();
    assert!(!passes(&initiator.engine, &responder.engine), "no traffic before the exchange");
    let (rx_spi, tx_spi) = initiator.exchange();
    assert_eq!(responder.exchange_done(), (tx_spi, rx_spi));
    assert!(passes(&initiator.engine, &responder.engine));
    assert!(passes(&responder.engine, &initiator.engine));

    let status = initiator.endpoint.status(initiator.peer).unwrap();
    assert_eq!((status.phase, status.sessions, status.exchanges), (PeerPhase::Connected, 1, 1));
    assert_eq!((status.remote, status.rx_spi, status.tx_spi), (Some(responder.addr()), Some(rx_spi), Some(tx_spi)));
    assert!(status.rtt.is_some());

    let lifetime = initiator.engine.sa_status(clock()(), vni()).unwrap().tx.unwrap().expires_at;
    let left = lifetime.saturating_since(clock()());
    assert!(left <= LIFETIME && left > LIFETIME - SOON, "the key lives for {left:?}");
}

#[test]
fn a_rekey_loses_nothing_while_the_responder_waits_for_the_initiator() {
    let (initiator, responder) = connected_pair();
    initiator.exchange();
    let (_, first) = responder.exchange_done();
    initiator.exchange();
    let (_, second) = responder.exchange_done();

    let status = || responder.engine.sa_status(clock()(), vni()).unwrap();
    // The responder still seals with the old key, unless the 500 ms are over on a very slow machine.
    assert!(status().pending_tx == Some(second) && status().tx.unwrap().spi == first || status().pending_tx.is_none());
    assert!(passes(&responder.engine, &initiator.engine));
    assert!(passes(&initiator.engine, &responder.engine), "this shows the responder that the new key is there");
    assert_eq!((status().tx.unwrap().spi, status().pending_tx), (second, None));
    assert!(passes(&responder.engine, &initiator.engine));
}

#[test]
fn five_hundred_exchanges_on_one_session_never_repeat_an_spi() {
    let (initiator, responder) = connected_pair();
    let mut spis = HashSet::new();
    let start = Instant::now();
    for round in 0..500 {
        let (rx_spi, tx_spi) = initiator.exchange();
        assert_eq!(responder.exchange_done(), (tx_spi, rx_spi), "round {round}");
        assert!(spis.insert(rx_spi) && spis.insert(tx_spi), "round {round} repeats an SPI");
    }
    println!("500 exchanges: {:?} each", start.elapsed() / 500);
    assert!(passes(&initiator.engine, &responder.engine) && passes(&responder.engine, &initiator.engine));
    assert_eq!(initiator.endpoint.status(initiator.peer).unwrap().sessions, 1);
}

#[test]
fn a_session_closed_by_one_side_is_over_for_the_other_at_once_and_dialled_again() {
    let (initiator, responder) = connected_pair();
    initiator.exchange();
    responder.exchange_done();
    let remote = responder.addr();
    initiator.endpoint.disconnect(initiator.peer).unwrap();
    // The dial may follow at once; the events stay in order.
    initiator.endpoint.dial(initiator.peer, remote, SOON).unwrap();
    assert_eq!(initiator.session_lost(), ("this node closed the session".into(), false, false));
    assert_eq!(initiator.session_up().get(), 2);

    let first = responder.session_lost();
    assert!(!first.2, "{first:?}");
    responder.session_up();
    let (rx_spi, tx_spi) = initiator.exchange();
    assert_eq!(responder.exchange_done(), (tx_spi, rx_spi));
    assert!(passes(&initiator.engine, &responder.engine) && passes(&responder.engine, &initiator.engine));

    responder.endpoint.disconnect(responder.peer).unwrap();
    assert_eq!(initiator.session_lost(), ("the peer closed the session".into(), false, false));
}

#[test]
fn closing_an_endpoint_tells_its_peers() {
    let (initiator, responder) = connected_pair();
    let start = Instant::now();
    responder.endpoint.close();
    assert!(start.elapsed() < Duration::from_secs(3), "closing took {:?}", start.elapsed());
    assert_eq!(initiator.session_lost().0, "the peer closed the session");
    assert_eq!(responder.endpoint.disconnect(responder.peer), Err(CommandError::Closed));
}

#[test]
fn an_initiator_that_probes_learns_of_a_crashed_and_restarted_responder_within_a_second() {
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    let relay = raw::Relay::start(responder.addr());
    let initiator = Node::start(&a, &b);
    initiator.dial(relay.addr);
    initiator.exchange();

    // As after a crash: the old process says nothing any more, the new one has its identity and address.
    relay.set_server(None);
    drop(responder);
    let responder = Node::start(&b, &a);
    relay.set_server(Some(responder.addr()));
    let restarted = Instant::now();
    assert!(initiator.endpoint.probe(initiator.peer).unwrap());
    assert!(!initiator.endpoint.probe(initiator.peer).unwrap(), "at most one probe in 500 ms");
    let (reason, superseded, reset) = initiator.session_lost();
    let elapsed = restarted.elapsed();
    println!("reset after {elapsed:?}: {reason}");
    assert!(reset && !superseded, "{reason}");
    assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");

    initiator.dial(relay.addr);
    let (rx_spi, tx_spi) = initiator.exchange();
    println!("exchanged after {:?}", restarted.elapsed());
    responder.session_up();
    assert_eq!(responder.exchange_done(), (tx_spi, rx_spi));
}

#[test]
fn probes_go_on_while_the_responder_is_away_and_find_it_when_it_is_back() {
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    let relay = raw::Relay::start(responder.addr());
    let initiator = Node::start(&a, &b);
    initiator.dial(relay.addr);
    initiator.exchange();
    relay.set_server(None);
    drop(responder);
    let away_until = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < away_until {
        initiator.endpoint.probe(initiator.peer).unwrap();
        initiator.quiet(Duration::from_millis(100));
    }
    let responder = Node::start(&b, &a);
    relay.set_server(Some(responder.addr()));
    let back = Instant::now();
    while !matches!(initiator.endpoint.status(initiator.peer).unwrap().phase, PeerPhase::Idle) {
        initiator.endpoint.probe(initiator.peer).unwrap();
        assert!(back.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("reset {:?} after the responder was back", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
    assert!(initiator.session_lost().2);
}

// ---- peers that behave otherwise ----

/// A stream retires at such a peer only if its end came with the last byte of the offer.
#[test]
fn a_responder_that_never_reads_the_end_of_a_stream_does_not_wedge_the_session() {
    let (a, b) = identities();
    let runtime = raw::runtime();
    let server = runtime.block_on(async { raw::server(&b, 4) });
    let addr = server.local_addr().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let connection = server.accept().await.unwrap().await.unwrap();
            let mut unread = Vec::new();
            for counter in 1.. {
                let Ok((mut send, mut recv)) = connection.accept_bi().await else { break };
                raw::read_offer(&mut recv).await;
                let mut none = [0; 1];
                tokio::select! {
                    biased;
                    end = recv.read(&mut none) => assert_eq!(end, Ok(None)),
                    () = std::future::ready(()) => unread.push(recv),
                }
                send.write_all(&raw::offer(0, 0x4000_0000 | counter)).await.unwrap();
                send.finish().unwrap();
            }
        });
    });
    let initiator = Node::start(&a, &b);
    initiator.dial(addr);
    for _ in 0..100 {
        initiator.exchange();
    }
}

#[test]
fn an_initiator_that_never_ends_its_streams_does_not_wedge_the_session() {
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    let start = Instant::now();
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let connection = raw::connect(&endpoint, &a, responder.addr()).await;
        for counter in 1..=30 {
            let (_, mut send, recv) = raw::offer_and_read(&connection, counter).await;
            // Never a FIN, but what RFC 9000 section 3.5 demands: a reset when asked to stop.
            tokio::spawn(async move {
                let _recv = recv;
                if let Ok(Some(code)) = send.stopped().await {
                    send.reset(code).unwrap();
                }
            });
        }
    });
    assert!(start.elapsed() < Duration::from_secs(5), "streams retire without waiting: {:?}", start.elapsed());
    responder.session_up();
    for _ in 0..30 {
        responder.exchange_done();
    }
}

#[test]
fn an_offer_in_pieces_is_answered_as_soon_as_it_is_complete() {
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let connection = raw::connect(&endpoint, &a, responder.addr()).await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        for byte in raw::offer(0, 1) {
            send.write_all(&[byte]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let answer = tokio::time::timeout(Duration::from_secs(5), raw::read_offer(&mut recv)).await.unwrap();
        assert_eq!(answer.suite, 0);
        assert!(answer.rx_spi >> 30 == 1, "a responder's SPI: {:#x}", answer.rx_spi);
        assert_eq!(recv.read(&mut [0; 8]).await.unwrap(), None, "one frame and then the end");
    });
}

#[test]
fn an_unacceptable_offer_ends_the_session_and_installs_nothing() {
    let cases: [(&str, Vec<u8>, &str); 11] = [
        ("another suite", raw::offer(1, 1), "suite 1"),
        ("an unknown suite", raw::offer(9, 1), "suite 9"),
        ("the responder's own half", raw::offer(0, 0x4000_0001), "role bit"),
        ("the other master key", raw::offer(0, 0x8000_0001), "master key 1"),
        ("SPI 0", raw::offer(0, 0), "reserved"),
        ("protocol version 2", vec![0, 7, 2, 1, 0, 0, 0, 0, 1], "version 2"),
        ("a key request's type", vec![0, 7, 1, 2, 0, 0, 0, 0, 1], "type 2"),
        ("a byte too few", vec![0, 6, 1, 1, 0, 0, 0, 0], "6 bytes"),
        ("an empty frame", vec![0, 0], "0 bytes"),
        ("a frame that is too large", vec![0x10, 0x01, 1, 1, 0, 0, 0, 0, 1], "4097"),
        ("the end inside a frame", vec![0, 7, 1, 1, 0], "before its message was complete"),
    ];
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    let runtime = raw::runtime();
    for (name, offer, word) in cases {
        runtime.block_on(async {
            let endpoint = raw::client();
            let connection = raw::connect(&endpoint, &a, responder.addr()).await;
            let (mut send, _recv) = connection.open_bi().await.unwrap();
            send.write_all(&offer).await.unwrap();
            send.finish().unwrap();
            assert_eq!(raw::close_code(&connection).await, 1, "{name}");
        });
        responder.session_up();
        let reason = responder.exchange_failed();
        assert!(reason.contains(word), "{name}: {reason}");
        let (reason, superseded, reset) = responder.session_lost();
        assert!(reason.contains(word) && !superseded && !reset, "{name}: {reason}");
    }
    let status = responder.engine.sa_status(clock()(), vni()).unwrap();
    assert!(status.rx.is_empty() && status.tx.is_none(), "{status:?}");
}

#[test]
fn an_spi_announced_twice_on_a_session_is_refused() {
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let connection = raw::connect(&endpoint, &a, responder.addr()).await;
        let _first = raw::offer_and_read(&connection, 5).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&raw::offer(0, 5)).await.unwrap();
        assert_eq!(raw::close_code(&connection).await, 1);
    });
    responder.session_up();
    responder.exchange_done();
    assert!(responder.exchange_failed().contains("announced before"));
}

#[test]
fn an_unacceptable_answer_fails_the_exchange_and_leaves_the_session_to_the_owner() {
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("another suite", raw::offer(1, 0x4000_0001), "suite 1"),
        ("the initiator's own half", raw::offer(0, 2), "role bit"),
        ("the other master key", raw::offer(0, 0xc000_0001), "master key 1"),
        ("a zero counter", raw::offer(0, 0x4000_0000), "reserved"),
        ("a key grant", vec![0, 12, 1, 3, 0, 0, 0x40, 0, 0, 1, 0, 0, 0, 7], "12 bytes"),
        ("no answer", vec![], "before its message was complete"),
    ];
    for (name, answer, word) in cases {
        let (a, b) = identities();
        let runtime = raw::runtime();
        let server = runtime.block_on(async { raw::server(&b, 4) });
        let addr = server.local_addr().unwrap();
        std::thread::spawn(move || {
            runtime.block_on(async {
                let connection = server.accept().await.unwrap().await.unwrap();
                let (mut send, mut recv) = connection.accept_bi().await.unwrap();
                raw::read_offer(&mut recv).await;
                send.write_all(&answer).await.unwrap();
                send.finish().unwrap();
                connection.closed().await;
            });
        });
        let initiator = Node::start(&a, &b);
        initiator.dial(addr);
        initiator.endpoint.exchange(initiator.peer, SOON).unwrap();
        let reason = initiator.exchange_failed();
        assert!(reason.contains(word), "{name}: {reason}");
        assert_eq!(initiator.endpoint.status(initiator.peer).unwrap().phase, PeerPhase::Connected, "{name}");
        let status = initiator.engine.sa_status(clock()(), vni()).unwrap();
        assert!(status.tx.is_none(), "{name}: nothing seals");
    }
}

#[test]
fn an_answer_that_does_not_come_times_out_as_asked() {
    let (a, b) = identities();
    let runtime = raw::runtime();
    let server = runtime.block_on(async { raw::server(&b, 4) });
    let addr = server.local_addr().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let connection = server.accept().await.unwrap().await.unwrap();
            let _stream = connection.accept_bi().await.unwrap();
            connection.closed().await;
        });
    });
    let initiator = Node::start(&a, &b);
    initiator.dial(addr);
    let start = Instant::now();
    initiator.endpoint.exchange(initiator.peer, Duration::from_millis(300)).unwrap();
    assert_eq!(initiator.endpoint.exchange(initiator.peer, SOON), Err(CommandError::Exchanging));
    let reason = initiator.exchange_failed();
    assert!(reason.contains("0.3 s") && start.elapsed() >= Duration::from_millis(300), "{reason}");
    assert_eq!(initiator.endpoint.status(initiator.peer).unwrap().phase, PeerPhase::Connected, "the owner decides");
}

#[test]
fn keys_that_the_engine_refuses_fail_the_exchange() {
    let (initiator, responder) = connected_pair();
    responder.engine.remove_network(vni()).unwrap();
    initiator.endpoint.exchange(initiator.peer, SOON).unwrap();
    assert!(responder.exchange_failed().contains("no VNI 7"));
    responder.session_lost();
    assert!(initiator.exchange_failed().contains("code 1"));
    initiator.session_lost();

    let (initiator, _responder) = connected_pair();
    initiator.engine.remove_network(vni()).unwrap();
    initiator.endpoint.exchange(initiator.peer, SOON).unwrap();
    assert!(initiator.exchange_failed().contains("no VNI 7"));
}

#[test]
fn the_newest_session_of_a_peer_supersedes_the_older_one() {
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let old = raw::connect(&endpoint, &a, responder.addr()).await;
        raw::offer_and_read(&old, 1).await;
        let new = raw::connect(&endpoint, &a, responder.addr()).await;
        assert_eq!(raw::close_code(&old).await, 2);
        // The SPI comes again with another session's key.
        raw::offer_and_read(&new, 1).await;
    });
    assert_eq!(responder.session_up().get(), 1);
    responder.exchange_done();
    let (reason, superseded, _) = responder.session_lost();
    assert!(superseded, "{reason}");
    assert_eq!(responder.session_up().get(), 2);
    responder.exchange_done();
}

// ---- strangers ----

#[test]
fn strangers_and_noise_are_turned_away_and_the_peer_still_comes_in() {
    let (a, b) = identities();
    let (_, stranger) = identities();
    let responder = Node::start(&b, &a);

    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    for seed in 0..200u8 {
        let mut packet: Vec<u8> = (0..=seed).map(|i| i.wrapping_mul(31) ^ seed).chain([0; 1200]).collect();
        // A long header of QUIC version 1, of another version, a short header, and whatever comes.
        match seed % 4 {
            0 => packet[..5].copy_from_slice(&[0xc0, 0, 0, 0, 1]),
            1 => packet[..5].copy_from_slice(&[0xc0, 0xba, 0xdb, 0xad, 0]),
            2 => packet[0] = 0x40,
            _ => packet.truncate(usize::from(seed)),
        }
        noise.send_to(&packet, responder.addr()).unwrap();
    }

    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let attempts = [
            ("an unknown key", raw::client_config(&stranger, raw::ALPN, None)),
            ("the responder's own key", raw::client_config(&b, raw::ALPN, None)),
            ("another protocol", raw::client_config(&a, "h3", None)),
        ];
        for (name, config) in attempts {
            let refused = match endpoint.connect_with(config, responder.addr(), "icx").unwrap().await {
                Ok(connection) => tokio::time::timeout(SOON, connection.closed()).await.unwrap(),
                Err(error) => error,
            };
            assert!(matches!(refused, quinn::ConnectionError::ConnectionClosed(_)), "{name}: {refused:?}");
        }
    });
    let mut turned_away = 0;
    while turned_away < 3 {
        match responder.next() {
            ControlEventKind::PeerRejected { reason, count, .. } => {
                println!("rejected: {reason} ({count})");
                turned_away += count;
            }
            other => panic!("{other:?}"),
        }
    }

    let initiator = Node::start(&a, &b);
    initiator.dial(responder.addr());
    initiator.exchange();
}

#[test]
fn a_client_gets_no_ticket_and_no_early_data() {
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    let store = raw::TicketCounter::new();
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        for round in 0..2 {
            let config = raw::client_config(&a, raw::ALPN, Some(Arc::clone(&store)));
            let connecting = endpoint.connect_with(config, responder.addr(), "icx").unwrap();
            let Err(connecting) = connecting.into_0rtt() else { panic!("round {round}: early data was possible") };
            let connection = connecting.await.unwrap();
            raw::offer_and_read(&connection, 1).await;
        }
    });
    assert_eq!(store.tickets.load(Ordering::Relaxed), 0);
}

#[test]
fn a_crowd_of_half_open_handshakes_makes_newcomers_prove_their_address() {
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    // These say hello and never hear the answer.
    let deaf = raw::Relay::start_one_way(responder.addr());
    let runtime = raw::runtime();
    let _crowd = runtime.block_on(async {
        let endpoint = raw::client();
        let config = raw::client_config(&a, raw::ALPN, None);
        let crowd: Vec<_> = (0..80).map(|_| endpoint.connect_with(config.clone(), deaf.addr, "icx").unwrap()).collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        crowd
    });
    assert!(deaf.retries() > 0, "the last of the crowd are asked to retry already");
    let relay = raw::Relay::start(responder.addr());
    let initiator = Node::start(&a, &b);
    initiator.dial(relay.addr);
    assert_eq!(relay.retries(), 1, "one Retry for the one that came late");
    initiator.exchange();
}

// ---- dials ----

#[test]
fn an_eager_dial_finds_a_peer_that_comes_up_between_two_packets_of_one_handshake() {
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    let relay = raw::Relay::start(responder.addr());
    relay.set_server(None);
    let initiator = Node::start(&a, &b);
    // Packets of one handshake leave after 0, 0.3, 0.9, 2.1 and 4.5 s.
    let patience = Patience { answer: Duration::from_secs(4), repeat: Some(Duration::from_millis(500)) };
    initiator.endpoint.dial(initiator.peer, relay.addr, patience).unwrap();
    std::thread::sleep(Duration::from_millis(2300));
    relay.set_server(Some(responder.addr()));
    initiator.session_up();
    responder.session_up();
    initiator.exchange();
    responder.exchange_done();
    // The handshakes that came to nothing are no session, and nobody was turned away.
    let more = responder.events.recv_timeout(Duration::from_millis(1200));
    assert!(more.is_err(), "{more:?}");
    assert_eq!(initiator.endpoint.status(initiator.peer).unwrap().sessions, 1);
}

#[test]
fn a_failed_dial_says_what_kind_of_failure_and_why() {
    let (a, b) = identities();
    let initiator = Node::start(&a, &b);
    let failure = || match initiator.next() {
        ControlEventKind::DialFailed { reason, kind } => (kind, reason),
        other => panic!("{other:?}"),
    };

    // Somebody else at the address.
    let (_, other) = identities();
    let runtime = raw::runtime();
    let server = runtime.block_on(async { raw::server(&other, 4) });
    let addr = server.local_addr().unwrap();
    let accepting = std::thread::spawn(move || {
        runtime.block_on(async {
            let _ = server.accept().await.unwrap().await;
        });
    });
    initiator.endpoint.dial(initiator.peer, addr, SOON).unwrap();
    let (kind, reason) = failure();
    assert_eq!(kind, DialFailure::Auth, "{reason}");
    for key in [other.public_key(), b.public_key()] {
        assert!(reason.contains(&key.fingerprint()), "{reason}");
    }
    accepting.join().unwrap();

    // Nobody.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let start = Instant::now();
    initiator.endpoint.dial(initiator.peer, silent.local_addr().unwrap(), Duration::from_millis(300)).unwrap();
    assert_eq!(initiator.endpoint.dial(initiator.peer, addr, SOON), Err(CommandError::Dialing));
    let (kind, reason) = failure();
    assert_eq!(kind, DialFailure::Timeout, "{reason}");
    assert!(start.elapsed() >= Duration::from_millis(300) && start.elapsed() < SOON);

    // Given up.
    initiator.endpoint.dial(initiator.peer, silent.local_addr().unwrap(), SOON).unwrap();
    initiator.endpoint.disconnect(initiator.peer).unwrap();
    assert_eq!(failure().0, DialFailure::Cancelled);

    // No IPv6 on an IPv4 socket.
    initiator.endpoint.dial(initiator.peer, "[::1]:6082".parse().unwrap(), SOON).unwrap();
    let (kind, reason) = failure();
    assert!(matches!(kind, DialFailure::Local | DialFailure::Unreachable), "{kind}: {reason}");
    assert_eq!(initiator.endpoint.status(initiator.peer).unwrap().phase, PeerPhase::Idle);
}

#[test]
fn a_responder_that_does_not_know_us_is_told_apart_from_one_that_is_away() {
    let (a, b) = identities();
    let (_, stranger) = identities();
    let responder = Node::start(&b, &stranger);
    let initiator = Node::start(&a, &b);
    // On the dialling side the handshake is over before the other side has looked at the certificate.
    initiator.endpoint.dial(initiator.peer, responder.addr(), SOON).unwrap();
    let reason = match initiator.next() {
        ControlEventKind::SessionUp { .. } => initiator.session_lost().0,
        ControlEventKind::DialFailed { reason, kind: DialFailure::Auth } => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason.contains("does not accept this node's key"), "{reason}");
}

// ---- the interface ----

#[test]
fn calls_that_the_state_does_not_allow_are_errors() {
    let (initiator, responder) = connected_pair();
    let any = responder.addr();
    assert_eq!(initiator.endpoint.dial(initiator.peer, any, SOON), Err(CommandError::SessionUp));
    assert_eq!(responder.endpoint.dial(responder.peer, any, SOON), Err(CommandError::Responder));
    assert_eq!(responder.endpoint.exchange(responder.peer, SOON), Err(CommandError::Responder));
    initiator.endpoint.disconnect(initiator.peer).unwrap();
    initiator.session_lost();
    assert_eq!(initiator.endpoint.exchange(initiator.peer, SOON), Err(CommandError::NoSession));
    assert_eq!(initiator.endpoint.probe(initiator.peer), Ok(false));
    initiator.endpoint.remove_peer(initiator.peer).unwrap();
    assert_eq!(initiator.endpoint.dial(initiator.peer, any, SOON), Err(CommandError::UnknownPeer(initiator.peer)));
    assert_eq!(initiator.endpoint.status(initiator.peer), None);
}

#[test]
fn a_peer_has_a_key_and_a_vni_of_its_own() {
    let (a, b) = identities();
    let node = Node::start(&a, &b);
    let (_, c) = identities();
    let config = |key: &icx_control::PublicKey, engine| PeerConfig {
        key: key.clone(),
        engine,
        vni: vni(),
        key_lifetime: LIFETIME,
    };
    let own = node.endpoint.add_peer(config(a.public_key(), node::engine()));
    assert!(matches!(own, Err(AddPeerError::EqualKeys(_))), "{own:?}");
    let again = node.endpoint.add_peer(config(b.public_key(), node::engine()));
    assert_eq!(again, Err(AddPeerError::KeyExists(b.public_key().fingerprint())));
    let shared = node.endpoint.add_peer(config(c.public_key(), Arc::clone(&node.engine)));
    assert_eq!(shared, Err(AddPeerError::VniInUse(vni())));
    let dead_keys = PeerConfig { key_lifetime: Duration::ZERO, ..config(c.public_key(), node::engine()) };
    assert_eq!(node.endpoint.add_peer(dead_keys), Err(AddPeerError::NoKeyLifetime));
    node.endpoint.add_peer(config(c.public_key(), node::engine())).unwrap();
    node.endpoint.remove_peer(node.peer).unwrap();
    node.endpoint.add_peer(config(b.public_key(), Arc::clone(&node.engine))).unwrap();
}

#[test]
fn one_socket_serves_peers_in_both_roles() {
    let mut all = [identities(), identities()].map(|(a, b)| [a, b]).concat();
    all.sort_by(|a, b| a.public_key().cmp(b.public_key()));
    let [low, middle, high, _] = &all[..] else { unreachable!() };
    let node = Node::start(middle, high);
    let engine = node::engine();
    let config =
        PeerConfig { key: low.public_key().clone(), engine: Arc::clone(&engine), vni: vni(), key_lifetime: LIFETIME };
    node.endpoint.add_peer(config).unwrap();
    let (below, above) = (Node::start(low, middle), Node::start(high, middle));
    node.dial(above.addr());
    below.dial(node.addr());
    node.session_up();
    above.session_up();
    node.exchange();
    above.exchange_done();
    below.exchange();
    node.exchange_done();
    assert!(passes(&node.engine, &above.engine) && passes(&above.engine, &node.engine));
    assert!(passes(&engine, &below.engine) && passes(&below.engine, &engine));
    assert!(!passes(&above.engine, &below.engine));
}

#[test]
fn the_event_sink_may_call_the_endpoint() {
    let (a, b) = identities();
    let responder = Node::start(&b, &a);
    let remote = responder.addr();
    let slot: Arc<OnceLock<ControlEndpoint>> = Arc::default();
    let log: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let (done, finished) = std::sync::mpsc::channel();
    let sink = {
        let (slot, log) = (Arc::clone(&slot), Arc::clone(&log));
        Arc::new(move |event: icx_control::ControlEvent| {
            let (endpoint, peer) = (slot.get().unwrap(), event.peer.unwrap());
            endpoint.status(peer);
            log.lock().unwrap().push(match event.kind {
                ControlEventKind::SessionUp { .. } => {
                    endpoint.exchange(peer, SOON).unwrap();
                    "up"
                }
                ControlEventKind::ExchangeDone { .. } => {
                    endpoint.disconnect(peer).unwrap();
                    "done"
                }
                ControlEventKind::SessionLost { session, .. } if session.get() == 1 => {
                    endpoint.dial(peer, remote, SOON).unwrap();
                    "lost"
                }
                ControlEventKind::SessionLost { .. } => {
                    endpoint.close();
                    done.send(()).unwrap();
                    "lost"
                }
                other => panic!("{other:?}"),
            });
        })
    };
    let config = ControlConfig { identity: a, bind: "127.0.0.1:0".parse().unwrap(), clock: clock() };
    slot.set(ControlEndpoint::open(config, sink).unwrap()).unwrap();
    let endpoint = slot.get().unwrap();
    let config = PeerConfig { key: b.public_key().clone(), engine: node::engine(), vni: vni(), key_lifetime: LIFETIME };
    let peer = endpoint.add_peer(config).unwrap();
    endpoint.dial(peer, remote, SOON).unwrap();
    finished.recv_timeout(SOON).expect("the chain of calls came to its end");
    assert_eq!(*log.lock().unwrap(), ["up", "done", "lost", "up", "done", "lost"]);
    endpoint.close();
}
