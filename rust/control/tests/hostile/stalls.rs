//! What stops half-way is given up after ten seconds, which pass in real time.

use std::time::{Duration, Instant};

use icx_control::ControlEventKind;

use crate::memory::shared;
use crate::node::{Node, SOON, clock, vni};
use crate::raw::{self, Relay};
use crate::site::Site;

/// A byte now and then is no progress: the clock runs from when the stream was opened.
#[test]
fn a_stream_that_stalls_is_cut_ten_seconds_after_it_began() {
    let _shared = shared();
    let site = Site::start();
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let connection = raw::connect(&endpoint, &site.insider, site.endpoint.local_addr()).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let began = Instant::now();
        for byte in raw::offer(0, 1).into_iter().take(8) {
            if send.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1400)).await;
        }
        assert_eq!(raw::close_code(&connection).await, 1);
        let after = began.elapsed();
        println!("cut after {after:?}");
        assert!(after > Duration::from_secs(9) && after < Duration::from_secs(16), "{after:?}");
    });
    let events = site.events();
    assert!(
        matches!(&events[1], ControlEventKind::ExchangeFailed { reason, .. } if reason.contains("10.0 s")),
        "{events:?}"
    );
    assert!(site.engine.sa_status(clock()(), vni()).unwrap().rx.is_empty());
    site.lets_the_peer_in();
    site.bystander_was_undisturbed();
}

/// With the places that forged addresses may take all taken, newcomers are asked to retry, until the ten seconds are over.
#[test]
fn handshakes_that_stall_give_their_places_back_after_ten_seconds() {
    let _shared = shared();
    let site = Site::start();
    let deaf = Relay::start_one_way(site.endpoint.local_addr());
    let runtime = raw::runtime();
    let crowd = runtime.block_on(async {
        let endpoint = raw::client();
        let config = raw::client_config(&site.insider, raw::ALPN, None);
        let crowd: Vec<_> = (0..80).map(|_| endpoint.connect_with(config.clone(), deaf.addr, "icx").unwrap()).collect();
        let full = async {
            while deaf.retries() == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, full).await.expect("all places are taken");
        // The rest of what they say is lost, too.
        deaf.set_server(None);
        crowd
    });
    let stalled = Instant::now();
    let mut timed_out = 0;
    while timed_out < 64 {
        match site.next_within(Duration::from_secs(20)) {
            ControlEventKind::PeerRejected { reason, count, .. } => {
                assert!(reason.contains("no progress for 10 s"), "{reason}");
                timed_out += count;
            }
            other => panic!("{other:?}"),
        }
    }
    let after = stalled.elapsed();
    println!("{timed_out} places were given back after {after:?}");
    assert!(after > Duration::from_secs(8) && after < Duration::from_secs(16), "{after:?}");
    drop(crowd);

    let relay = Relay::start(site.endpoint.local_addr());
    let node = Node::start(&site.insider, &site.identity);
    node.dial(relay.addr);
    assert_eq!(relay.retries(), 0, "nobody is asked to retry any more");
    site.bystander_was_undisturbed();
}
