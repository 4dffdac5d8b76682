//! More than anybody needs: hellos from everywhere, and datagrams of every kind.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use icx_control::{ControlEventKind, DialFailure, Identity};
use quinn::Connecting;

use crate::memory::{Memory, alone};
use crate::node::{Node, SOON};
use crate::raw::{self, Relay, is_retry};
use crate::site::{Site, rejections, wait_until};

/// The first datagrams of `count` different handshakes.
fn hellos(identity: &Identity, count: usize) -> Vec<Vec<u8>> {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    sink.set_nonblocking(true).unwrap();
    let addr = sink.local_addr().unwrap();
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let config = raw::client_config(identity, raw::ALPN, None);
        let mut hellos = Vec::new();
        let mut buffer = [0; 2048];
        while hellos.len() < count {
            let attempts: Vec<_> =
                (0..16).map(|_| endpoint.connect_with(config.clone(), addr, "icx").unwrap()).collect();
            tokio::time::sleep(Duration::from_millis(5)).await;
            drop(attempts);
            while let Ok(len) = sink.recv(&mut buffer) {
                // What is not padded is not a hello but a goodbye (RFC 9000 section 14.1).
                if len >= 1200 {
                    hellos.push(buffer[..len].to_vec());
                }
            }
        }
        hellos
    })
}

#[test]
fn the_counter_counts() {
    let _alone = alone();
    let before = Memory::now();
    let block = vec![1u8; 32 << 20];
    let during = Memory::now();
    // Threads that earlier tests left behind may give something back meanwhile.
    assert!(during.live - before.live >= 24 << 20 && during.resident >= 32 << 20, "{before:?} {during:?}");
    drop(block);
    assert!(Memory::now().live - before.live < 8 << 20);
}

#[test]
fn hellos_from_forged_addresses_cost_neither_memory_nor_the_service() {
    let _alone = alone();
    let site = Site::start();
    let addr = site.endpoint.local_addr();
    let hellos = hellos(&site.insider, 1000);
    // Linux takes the whole of 127.0.0.0/8 for its own.
    let sources: Vec<UdpSocket> =
        (1..=200).map(|n| UdpSocket::bind((Ipv4Addr::new(127, 0, 9, n), 0)).unwrap()).collect();
    let mut pairs = hellos.iter().cycle().zip(sources.iter().cycle().skip(3));
    let mut flood = |time: Duration| {
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < time {
            for (hello, source) in pairs.by_ref().take(5) {
                sent += usize::from(source.send_to(hello, addr).is_ok());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        sent
    };
    flood(Duration::from_secs(1));
    let before = Memory::now();
    let sent = flood(Duration::from_millis(2500));
    println!("{sent} hellos in 2.5 s");
    before.assert_growth("hellos from forged addresses", 8);

    // While it goes on, whoever can prove an address comes in.
    let relay = Relay::start(addr);
    let node = Node::start(&site.insider, &site.identity);
    node.endpoint.dial(node.peer, relay.addr, SOON).unwrap();
    flood(Duration::from_millis(300));
    node.session_up();
    assert!(relay.retries() >= 1, "the newcomer had to retry");
    node.exchange();
    let (count, reports) = rejections(&site.events());
    println!("{count} rejections in {reports} reports");
    assert!(reports <= 8, "{reports} reports");
    site.bystander_was_undisturbed();
}

#[test]
fn nobody_fills_all_places_from_one_address_and_when_all_are_full_newcomers_are_refused() {
    let _alone = alone();
    let site = Site::start();
    let addr = site.endpoint.local_addr();
    let runtime = raw::runtime();
    let before = Memory::now();
    // These hear that they have to retry, do so, and never hear anything else.
    let crowd = |relay: &Relay, count: usize| -> (quinn::Endpoint, Vec<Connecting>) {
        runtime.block_on(async {
            let endpoint = raw::client();
            let config = raw::client_config(&site.insider, raw::ALPN, None);
            let mut crowd = Vec::new();
            for _ in 0..count {
                crowd.push(endpoint.connect_with(config.clone(), relay.addr, "icx").unwrap());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            (endpoint, crowd)
        })
    };
    let relay_from = |n| Relay::start_with(addr, Ipv4Addr::new(127, 0, 8, n).into(), is_retry);
    let first = relay_from(1);
    let mut crowds = vec![crowd(&first, 220)];
    let reasons = rejection_reasons(&site);
    assert!(reasons.iter().any(|reason| reason.starts_with("128 handshakes with its address")), "{reasons:?}");
    site.lets_the_peer_in();

    let others: Vec<Relay> = (2..=4).map(relay_from).collect();
    crowds.extend(others.iter().map(|relay| crowd(relay, 140)));
    let node = Node::start(&site.insider, &site.identity);
    node.endpoint.dial(node.peer, addr, SOON).unwrap();
    match node.next() {
        ControlEventKind::DialFailed { kind, reason } => assert_eq!(kind, DialFailure::Refused, "{reason}"),
        other => panic!("{other:?}"),
    }
    wait_until("it is said that all places are taken", || {
        rejection_reasons(&site).iter().any(|reason| reason.starts_with("512 handshakes are under way"))
    });
    before.assert_growth("a crowd and what it takes to serve it", 96);

    // They leave, and say so.
    runtime.block_on(async {
        for (endpoint, crowd) in crowds {
            drop(crowd);
            tokio::time::timeout(Duration::from_millis(100), endpoint.wait_idle()).await.ok();
        }
    });
    wait_until("the places are free again", || {
        node.endpoint.dial(node.peer, addr, SOON).unwrap();
        match node.next() {
            ControlEventKind::SessionUp { .. } => true,
            ControlEventKind::DialFailed { kind: DialFailure::Refused, .. } => false,
            other => panic!("{other:?}"),
        }
    });
    node.exchange();
    site.bystander_was_undisturbed();
}

fn rejection_reasons(site: &Site) -> Vec<String> {
    let reason = |event| match event {
        ControlEventKind::PeerRejected { reason, .. } => Some(reason),
        _ => None,
    };
    site.events().into_iter().filter_map(reason).collect()
}

/// Numbers without a pattern, always the same.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 56) as u8
    }

    fn fill(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next()).collect()
    }
}

/// Each first byte and each length; each QUIC version field; short headers and things that look like resets.
pub(crate) fn junk() -> Vec<Vec<u8>> {
    let mut noise = Noise(1);
    let mut junk: Vec<Vec<u8>> = (0..=1500).map(|len| noise.fill(len)).collect();
    for first in 0..=255u8 {
        for len in [1, 5, 21, 43, 1200, 1452] {
            let mut datagram = noise.fill(len);
            datagram[0] = first;
            junk.push(datagram);
        }
    }
    for version in [0u32, 1, 2, 0x6b33_43cf, 0x0a1a_2a3a, 0xff00_001d, 0xbabababa, u32::MAX] {
        for first in [0xc0u8, 0xd0, 0xe0, 0xf0, 0x80] {
            for len in [20, 1200, 9000] {
                for cid_len in [0u8, 8, 20, 21, 255] {
                    let mut datagram = noise.fill(len);
                    datagram[0] = first;
                    datagram[1..5].copy_from_slice(&version.to_be_bytes());
                    datagram[5] = cid_len;
                    junk.push(datagram);
                }
            }
        }
    }
    junk.push(noise.fill(60_000));
    junk
}

#[test]
fn junk_of_every_kind_and_length_changes_nothing_and_is_not_amplified() {
    let _alone = alone();
    let site = Site::start();
    let addr = site.endpoint.local_addr();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let junk = junk();
    let round = || {
        let (mut sent, mut answered, mut answers) = (0, 0, 0);
        let mut buffer = [0; 65_536];
        for (n, datagram) in junk.iter().enumerate() {
            socket.send_to(datagram, addr).unwrap();
            sent += datagram.len();
            if n % 5 == 0 {
                std::thread::sleep(Duration::from_micros(500));
            }
            while let Ok(len) = socket.recv(&mut buffer) {
                answered += len;
                answers += 1;
                assert!(len <= 1200, "an answer of {len} bytes");
            }
        }
        (sent, answered, answers)
    };
    round();
    let before = Memory::now();
    for _ in 0..2 {
        let (sent, answered, answers) = round();
        println!("{} datagrams with {sent} bytes, {answers} answers with {answered}", junk.len());
        assert!(answers > 0, "other versions are answered with the one there is");
        assert!(answered * 4 < sent, "{sent} bytes were answered with {answered}");
    }
    before.assert_growth("junk", 2);
    site.lets_the_peer_in();
    site.bystander_was_undisturbed();
}

/// Datagrams to the endpoint from the address of its peer's session: nothing of it is taken for the peer's.
#[test]
fn junk_in_the_peers_name_does_not_touch_its_session() {
    let _alone = alone();
    let site = Site::start();
    let relay = ForgingRelay::start(site.endpoint.local_addr());
    let node = Node::start(&site.insider, &site.identity);
    node.dial(relay.addr);
    node.exchange();
    let before = Memory::now();
    relay.forge_both_ways(&junk());
    before.assert_growth("junk in a peer's name", 2);
    node.exchange();
    assert_eq!(node.endpoint.status(node.peer).unwrap().sessions, 1);
    site.bystander_was_undisturbed();
}

/// Forwards between one client and a server, and sends in the name of either.
struct ForgingRelay {
    addr: SocketAddr,
    front: UdpSocket,
    back: UdpSocket,
    server: SocketAddr,
    client: std::sync::Arc<std::sync::Mutex<Option<SocketAddr>>>,
}

impl ForgingRelay {
    fn start(server: SocketAddr) -> Self {
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (front, back) = (bind(), bind());
        let client = std::sync::Arc::default();
        let relay = ForgingRelay {
            addr: front.local_addr().unwrap(),
            front,
            back,
            server,
            client: std::sync::Arc::clone(&client),
        };
        for socket in [&relay.front, &relay.back] {
            socket.set_read_timeout(Some(SOON)).unwrap();
        }
        // Each thread ends when nothing has come for a while.
        let (front, back) = (relay.front.try_clone().unwrap(), relay.back.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok((len, from)) = front.recv_from(&mut buffer) {
                *client.lock().unwrap() = Some(from);
                let _ = back.send_to(&buffer[..len], server);
            }
        });
        let (front, back) = (relay.front.try_clone().unwrap(), relay.back.try_clone().unwrap());
        let client = std::sync::Arc::clone(&relay.client);
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(len) = back.recv(&mut buffer) {
                if let Some(client) = *client.lock().unwrap() {
                    let _ = front.send_to(&buffer[..len], client);
                }
            }
        });
        relay
    }

    fn forge_both_ways(&self, datagrams: &[Vec<u8>]) {
        let client = self.client.lock().unwrap().unwrap();
        for (n, datagram) in datagrams.iter().enumerate() {
            self.back.send_to(datagram, self.server).unwrap();
            self.front.send_to(datagram, client).unwrap();
            if n % 5 == 0 {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    }
}
