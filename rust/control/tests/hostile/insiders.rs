//! Peers with the right key and the wrong manners.

use std::net::UdpSocket;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use icx_control::{ControlEventKind, PeerPhase};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::crypto::aws_lc_rs;

use crate::memory::shared;
use crate::node::{Node, SOON, clock, identities, passes, vni};
use crate::raw::{self, Relay};
use crate::site::{Site, three_identities, wait_until};

// ---- streams ----

/// It answers, and then neither ends its half nor reads on, until it is asked to stop.
#[test]
fn a_responder_that_never_ends_its_streams_does_not_wedge_the_session() {
    let _shared = shared();
    let (a, b) = identities();
    let runtime = raw::runtime();
    let server = runtime.block_on(async { raw::server(&b, 4) });
    let addr = server.local_addr().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let connection = server.accept().await.unwrap().await.unwrap();
            for counter in 1.. {
                let Ok((mut send, mut recv)) = connection.accept_bi().await else { break };
                raw::read_offer(&mut recv).await;
                send.write_all(&raw::offer(0, 0x4000_0000 | counter)).await.unwrap();
                tokio::spawn(async move {
                    // Its end came with the offer, so the stream is over for the peer once this half is.
                    let _ = recv.read(&mut [0; 1]).await;
                    if let Ok(Some(code)) = send.stopped().await {
                        let _ = send.reset(code);
                    }
                });
            }
        });
    });
    let initiator = Node::start(&a, &b);
    initiator.dial(addr);
    let start = Instant::now();
    for _ in 0..30 {
        initiator.exchange();
    }
    assert!(start.elapsed() < Duration::from_secs(5), "streams retire without waiting: {:?}", start.elapsed());
}

#[test]
fn a_peer_that_neither_ends_nor_resets_streams_wedges_its_own_session_only() {
    let _shared = shared();
    let site = Site::start();
    let runtime = raw::runtime();
    runtime.block_on(async {
        let endpoint = raw::client();
        let connection = raw::connect(&endpoint, &site.insider, site.endpoint.local_addr()).await;
        let mut open = Vec::new();
        for counter in 1..=4 {
            open.push(raw::offer_and_read(&connection, counter).await);
        }
        let fifth = tokio::time::timeout(Duration::from_millis(500), connection.open_bi()).await;
        assert!(fifth.is_err(), "a peer that gives no stream back gets none");
        // It knows what to do about that.
        let anew = raw::connect(&endpoint, &site.insider, site.endpoint.local_addr()).await;
        raw::offer_and_read(&anew, 1).await;
    });
    site.bystander_was_undisturbed();
}

#[test]
fn streams_and_datagrams_that_nobody_may_open_end_the_session_or_are_never_opened() {
    let _shared = shared();
    let site = Site::start();
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let connection = raw::connect(&endpoint, &site.insider, site.endpoint.local_addr()).await;
        let uni = tokio::time::timeout(Duration::from_millis(300), connection.open_uni()).await;
        assert!(uni.is_err(), "no stream of one direction");
        assert_eq!(connection.max_datagram_size(), None, "no datagrams");
        raw::offer_and_read(&connection, 1).await;
    });
    site.bystander_was_undisturbed();
}

// ---- keys ----

/// The last byte of an offer arrives with what makes a newer session supersede the old one. The old session's stream can
/// still be read then, but its keys must not replace those of the newer one.
#[test]
fn an_offer_that_was_left_in_a_superseded_session_changes_no_keys() {
    let _shared = shared();
    let (blocked, is_blocked) = channel();
    let (release, released) = channel();
    let (blocked, released) = (Mutex::new(blocked), Mutex::new(released));
    let site = Site::start_with(move |event| {
        if matches!(event.kind, ControlEventKind::PeerRejected { .. }) {
            blocked.lock().unwrap().send(()).unwrap();
            let _ = released.lock().unwrap().recv_timeout(SOON);
        }
    });
    let addr = site.endpoint.local_addr();

    // The old session, with all but one byte of an offer.
    let runtime = Arc::new(raw::runtime());
    let (done, finished) = tokio::sync::oneshot::channel::<()>();
    // The clients go on while this thread does other things.
    let driver = std::thread::spawn({
        let runtime = Arc::clone(&runtime);
        move || runtime.block_on(finished)
    });
    let endpoint = runtime.block_on(async { raw::client() });
    let (old, mut send, _recv) = runtime.block_on(async {
        let old = raw::connect(&endpoint, &site.insider, addr).await;
        let (mut send, recv) = old.open_bi().await.unwrap();
        send.write_all(&raw::offer(0, 1)[..8]).await.unwrap();
        (old, send, recv)
    });
    assert!(matches!(site.next_within(SOON), ControlEventKind::SessionUp { .. }));

    // The new session, up to the client's last flight.
    let (front, back) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    for socket in [&front, &back] {
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    }
    let front_addr = front.local_addr().unwrap();
    let new_endpoint = runtime.block_on(async { raw::client() });
    let config = {
        let (certificates, key) = raw::chain(&site.insider);
        let mut tls = raw::client_tls(raw::provider_with(aws_lc_rs::kx_group::SECP256R1), certificates, key);
        tls.alpn_protocols = vec![raw::ALPN.into()];
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
    };
    let new =
        runtime.spawn(async move { new_endpoint.connect_with(config, front_addr, "icx").unwrap().await.unwrap() });
    let mut buffer = [0; 4096];
    let (len, client) = front.recv_from(&mut buffer).expect("the hello");
    back.send_to(&buffer[..len], addr).unwrap();
    let mut held = Vec::new();
    while let Ok(len) = back.recv(&mut buffer) {
        front.send_to(&buffer[..len], client).unwrap();
        while let Ok(len) = front.recv(&mut buffer) {
            held.push(buffer[..len].to_vec());
        }
    }

    // A stranger's rejection holds the endpoint's thread up while both arrive.
    let [stranger, ..] = three_identities();
    let rejected = runtime.spawn(async move {
        let endpoint = raw::client();
        let config = raw::client_config(&stranger, raw::ALPN, None);
        let _ = endpoint.connect_with(config, addr, "icx").unwrap().await.unwrap().closed().await;
    });
    is_blocked.recv_timeout(SOON).unwrap();
    for datagram in &held {
        back.send_to(datagram, addr).unwrap();
    }
    runtime.block_on(async {
        send.write_all(&raw::offer(0, 1)[8..]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    });
    release.send(()).unwrap();

    assert!(matches!(site.next_within(SOON), ControlEventKind::PeerRejected { .. }));
    let next = site.next_within(SOON);
    assert!(matches!(next, ControlEventKind::SessionLost { superseded: true, .. }), "{next:?}");
    assert!(matches!(site.next_within(SOON), ControlEventKind::SessionUp { .. }));
    let status = site.engine.sa_status(clock()(), vni()).unwrap();
    assert!(status.rx.is_empty() && status.tx.is_none(), "keys of the old session: {status:?}");
    while let Ok(len) = back.recv(&mut buffer) {
        front.send_to(&buffer[..len], client).unwrap();
    }
    runtime.block_on(async {
        assert_eq!(raw::close_code(&old).await, 2);
        rejected.await.unwrap();
    });
    drop((new, done));
    let _ = driver.join().unwrap();
    site.bystander_was_undisturbed();
}

/// The responder has the keys of an exchange whose answer was lost, and may use them. A new session makes them old.
#[test]
fn an_exchange_whose_answer_was_lost_leaves_a_key_that_opens_until_the_next_one_works() {
    let _shared = shared();
    let (a, b) = identities();
    let (initiator, responder) = (Node::start(&a, &b), Node::start(&b, &a));
    let relay = Relay::start(responder.addr());
    initiator.dial(relay.addr);
    initiator.exchange();
    responder.session_up();
    responder.exchange_done();
    assert!(passes(&initiator.engine, &responder.engine), "the responder has the first key of the initiator in use");

    relay.set_answers(|_| false);
    initiator.endpoint.exchange(initiator.peer, Duration::from_millis(900)).unwrap();
    let (_, tx_spi) = responder.exchange_done();
    match initiator.next() {
        ControlEventKind::ExchangeFailed { .. } => {}
        other => panic!("{other:?}"),
    }
    let in_use = || responder.engine.sa_status(clock()(), vni()).unwrap().tx.unwrap().spi;
    wait_until("the responder switches after 500 ms", || in_use() == tx_spi);
    assert!(passes(&responder.engine, &initiator.engine), "what the responder seals from now on still opens");
    assert!(passes(&initiator.engine, &responder.engine));

    relay.set_answers(|_| true);
    initiator.endpoint.disconnect(initiator.peer).unwrap();
    assert!(matches!(initiator.next(), ControlEventKind::SessionLost { .. }));
    initiator.dial(relay.addr);
    let (rx_spi, _) = initiator.exchange();
    for rx in initiator.engine.sa_status(clock()(), vni()).unwrap().rx {
        let left = rx.expires_at.saturating_since(clock()());
        assert_eq!(rx.superseded, rx.spi != rx_spi, "{rx:?}");
        assert!(!rx.superseded || left <= Duration::from_secs(30), "{rx:?}");
    }
}

#[test]
fn exchanges_that_are_never_answered_do_not_pile_keys_up() {
    let _shared = shared();
    let (a, b) = identities();
    let runtime = raw::runtime();
    let server = runtime.block_on(async { raw::server(&b, 100) });
    let addr = server.local_addr().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let connection = server.accept().await.unwrap().await.unwrap();
            let mut unanswered = Vec::new();
            while let Ok(stream) = connection.accept_bi().await {
                unanswered.push(stream);
            }
        });
    });
    let initiator = Node::start(&a, &b);
    initiator.dial(addr);
    for _ in 0..30 {
        initiator.endpoint.exchange(initiator.peer, Duration::from_millis(20)).unwrap();
        assert!(matches!(initiator.next(), ControlEventKind::ExchangeFailed { .. }));
    }
    let status = initiator.engine.sa_status(clock()(), vni()).unwrap();
    assert!(status.rx.len() <= 16 && status.tx.is_none(), "{} keys", status.rx.len());
    assert_eq!(initiator.endpoint.status(initiator.peer).unwrap().phase, PeerPhase::Connected);
}

/// Where no stream can be opened nothing is offered, and no key is made.
#[test]
fn an_exchange_that_gets_no_stream_leaves_no_key() {
    let _shared = shared();
    let (a, b) = identities();
    let runtime = raw::runtime();
    let server = runtime.block_on(async { raw::server(&b, 0) });
    let addr = server.local_addr().unwrap();
    std::thread::spawn(move || {
        runtime.block_on(async {
            server.accept().await.unwrap().await.unwrap().closed().await;
        });
    });
    let initiator = Node::start(&a, &b);
    initiator.dial(addr);
    initiator.endpoint.exchange(initiator.peer, Duration::from_millis(100)).unwrap();
    assert!(matches!(initiator.next(), ControlEventKind::ExchangeFailed { .. }));
    assert!(initiator.engine.sa_status(clock()(), vni()).unwrap().rx.is_empty());
}
