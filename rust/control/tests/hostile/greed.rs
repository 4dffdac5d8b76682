//! Peers with the right key that want more than anybody needs. Each test has the process to itself, so that it can measure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use icx_control::ControlEventKind;
use quinn::Connection;

use crate::memory::{Memory, alone};
use crate::node::{Node, SOON};
use crate::raw;
use crate::site::Site;

/// Counts the events of the kind that `pick` wants.
fn count(events: &[ControlEventKind], pick: fn(&ControlEventKind) -> bool) -> usize {
    events.iter().filter(|event| pick(event)).count()
}

fn sessions(events: &[ControlEventKind]) -> usize {
    count(events, |event| matches!(event, ControlEventKind::SessionUp { .. }))
}

#[test]
fn what_comes_behind_an_offer_is_thrown_away_and_not_without_end() {
    let _alone = alone();
    let site = Site::start();
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let connection = raw::connect(&endpoint, &site.insider, site.endpoint.local_addr()).await;
        let before = Memory::now();
        for round in 1..=20 {
            let (_, mut send, _recv) = raw::offer_and_read(&connection, round).await;
            let rubbish = vec![0x5a; 1 << 20];
            let outcome = tokio::time::timeout(SOON, send.write_all(&rubbish)).await.expect("an answer in time");
            assert!(matches!(outcome, Err(quinn::WriteError::Stopped(_))), "round {round}: {outcome:?}");
        }
        before.assert_growth("rubbish behind offers", 2);
        assert!(connection.close_reason().is_none(), "the session stays");
    });
    site.bystander_was_undisturbed();
}

#[test]
fn exchanges_without_pause_are_slowed_down() {
    let _alone = alone();
    let site = Site::start();
    let start = Instant::now();
    let before = Memory::now();
    let asked = raw::runtime().block_on(async {
        let endpoint = raw::client();
        let connection = raw::connect(&endpoint, &site.insider, site.endpoint.local_addr()).await;
        let mut counter = 0;
        while start.elapsed() < Duration::from_millis(2500) {
            counter += 1;
            let (_, mut send, _recv) = raw::offer_and_read(&connection, counter).await;
            send.finish().unwrap();
        }
        counter
    });
    let seconds = start.elapsed().as_secs_f64();
    let done = count(&site.events(), |event| matches!(event, ControlEventKind::ExchangeDone { .. }));
    println!("{done} exchanges of {asked} in {seconds:.1} s");
    assert!(done as f64 <= 1024.0 + 100.0 * (seconds + 0.5), "{done} exchanges in {seconds:.1} s");
    before.assert_growth("exchanges without pause", 4);
    site.bystander_was_undisturbed();
}

/// Each of them dials as soon as its session is lost, for ever.
#[test]
fn two_holders_of_one_key_are_slowed_down_and_the_newest_still_gets_in() {
    let _alone = alone();
    let site = Site::start();
    let addr = site.endpoint.local_addr();
    let before = Memory::now();
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let holders: Vec<_> = (0..2)
        .map(|_| {
            let node = Node::start(&site.insider, &site.identity);
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let (mut dials, mut exchanges, mut told) = (0, 0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let _ = node.endpoint.dial(node.peer, addr, SOON);
                    dials += 1;
                    loop {
                        match node.next() {
                            ControlEventKind::SessionUp { .. } => {
                                let _ = node.endpoint.exchange(node.peer, SOON);
                            }
                            ControlEventKind::ExchangeDone { .. } => exchanges += 1,
                            ControlEventKind::ExchangeFailed { .. } => {}
                            ControlEventKind::SessionLost { superseded, .. } => {
                                told += usize::from(superseded);
                                break;
                            }
                            ControlEventKind::DialFailed { .. } => break,
                            other => panic!("{other:?}"),
                        }
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                }
                (dials, exchanges, told)
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(3500));
    let seconds = start.elapsed().as_secs_f64();
    let events = site.events();
    stop.store(true, Ordering::Relaxed);
    // Whoever has the session now would wait for ever: a third one drives it out, and stays.
    let third = Node::start(&site.insider, &site.identity);
    third.dial(addr);
    for holder in holders {
        let (dials, exchanges, told) = holder.join().unwrap();
        println!("{dials} dials, {exchanges} exchanges, {told} times told that another has the session");
        assert!(told > 0, "an initiator learns why it lost its session");
        assert!(exchanges > 0, "neither starves");
    }
    println!("{} sessions in {seconds:.1} s", sessions(&events));
    assert!(sessions(&events) as f64 <= 32.0 + 10.0 * (seconds + 0.5), "{} in {seconds:.1} s", sessions(&events));
    before.assert_growth("two holders of one key", 8);
    third.endpoint.disconnect(third.peer).unwrap();
    site.lets_the_peer_in();
    site.bystander_was_undisturbed();
}

#[test]
fn a_storm_of_reconnects_is_slowed_down_and_the_last_one_gets_in() {
    let _alone = alone();
    let site = Site::start();
    let addr = site.endpoint.local_addr();
    let start = Instant::now();
    let before = Memory::now();
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let mut last = None;
        for _ in 0..10 {
            let storm: Vec<_> = (0..40)
                .map(|_| {
                    endpoint.connect_with(raw::client_config(&site.insider, raw::ALPN, None), addr, "icx").unwrap()
                })
                .collect();
            for connecting in storm {
                last = Some(connecting.await.expect("there is room for forty"));
            }
        }
        let last: Connection = last.unwrap();
        // Those of one round finish in any order, so this may be an older one.
        if last.close_reason().is_none() {
            let _ = tokio::time::timeout(Duration::from_millis(300), last.open_bi()).await;
        }
    });
    let events = site.events();
    let seconds = start.elapsed().as_secs_f64();
    println!("{} sessions of 400 handshakes in {seconds:.1} s", sessions(&events));
    assert!(sessions(&events) as f64 <= 32.0 + 10.0 * (seconds + 0.5), "{}", sessions(&events));
    before.assert_growth("a storm of reconnects", 8);
    site.lets_the_peer_in();
    site.bystander_was_undisturbed();
}
