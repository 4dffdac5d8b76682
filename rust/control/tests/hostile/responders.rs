//! Those who are dialled, and answer something else than a handshake.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use icx_control::{ControlEventKind, DialFailure, Identity};
use quinn::{ConnectionError, Endpoint};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::memory::shared;
use crate::node::{Node, SOON, identities};
use crate::raw::{self, Relay};
use crate::site::wait_until;

/// Patience of each dial; it takes at most twice that.
pub(crate) const PATIENCE: Duration = Duration::from_millis(250);
/// The patience, ten seconds for a handshake that was answered, and some for a busy machine.
const LIMIT: Duration = Duration::from_secs(15);

/// Answers every datagram with what `answer` makes of it, until dropped.
pub(crate) struct Answerer {
    pub(crate) addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Answerer {
    pub(crate) fn start(mut answer: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let addr = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut buffer = [0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                    for datagram in answer(&buffer[..len]) {
                        let _ = socket.send_to(&datagram, from);
                    }
                }
            }
        });
        Answerer { addr, stop, thread: Some(thread) }
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) fn dial_failure(node: &Node, remote: SocketAddr) -> (DialFailure, String, Duration) {
    let start = Instant::now();
    node.endpoint.dial(node.peer, remote, PATIENCE).unwrap();
    loop {
        match node.events.recv_timeout(LIMIT).expect("the dial ends").kind {
            ControlEventKind::DialFailed { kind, reason } => return (kind, reason, start.elapsed()),
            // One that sends a dial's words back makes the endpoint a stranger to itself.
            ControlEventKind::PeerRejected { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Real handshakes that stop, or go round in circles, at a point where the dialling side has seen some progress.
#[test]
fn a_handshake_that_stops_half_way_ends_within_ten_seconds_more() {
    let _shared = shared();
    let (a, b) = identities();
    let node = Node::start(&a, &b);
    // A flight of several datagrams.
    let (server, listening) = listener(padded_certificate(8 << 10));
    let relay = Relay::start_with(server, "127.0.0.1".parse().unwrap(), first_datagram_only());
    let (kind, reason, after) = dial_failure(&node, relay.addr);
    assert_eq!(kind, DialFailure::Timeout, "{reason}");
    assert!(after < LIMIT, "{after:?}");

    // The first datagram once more for everything that is said.
    let first: Arc<std::sync::Mutex<Option<Vec<u8>>>> = Arc::default();
    let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
    upstream.set_read_timeout(Some(SOON)).unwrap();
    let drip = Answerer::start(move |said| {
        let mut first = first.lock().unwrap();
        let flight = first.get_or_insert_with(|| {
            upstream.send_to(said, server).unwrap();
            let mut buffer = [0; 4096];
            let len = upstream.recv(&mut buffer).unwrap();
            buffer[..len].to_vec()
        });
        vec![flight.clone(); 10]
    });
    let (kind, reason, after) = dial_failure(&node, drip.addr);
    println!("the first datagram again and again: {kind} after {after:?}: {reason}");
    assert_eq!(kind, DialFailure::Timeout, "{reason}");
    assert!(after < LIMIT, "{after:?}");
    drop(listening);
    let peer = Node::start(&b, &a);
    node.dial(peer.addr());
}

/// Passes one datagram of the server, whichever relay asks.
fn first_datagram_only() -> raw::Answers {
    static PASSED: AtomicBool = AtomicBool::new(false);
    |_| !PASSED.swap(true, Ordering::Relaxed)
}

/// A listener with the certificates of `chain`, until what comes with its address is dropped.
pub(crate) fn listener(chain: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)) -> (SocketAddr, Listener) {
    let runtime = raw::runtime();
    let config = raw::server_config(chain.0, chain.1, 4, None);
    let endpoint = runtime.block_on(async { Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap() });
    let addr = endpoint.local_addr().unwrap();
    let thread = std::thread::spawn({
        let endpoint = endpoint.clone();
        move || {
            runtime.block_on(async {
                while let Some(incoming) = endpoint.accept().await {
                    tokio::spawn(async move {
                        if let Ok(connection) = incoming.await {
                            connection.closed().await;
                        }
                    });
                }
            });
        }
    });
    (addr, Listener { endpoint: Some(endpoint), thread: Some(thread) })
}

pub(crate) struct Listener {
    endpoint: Option<Endpoint>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.close(0u32.into(), b"");
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A certificate of about `len` bytes.
pub(crate) fn padded_certificate(len: usize) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::default();
    let padding = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999], vec![0; len]);
    params.custom_extensions.push(padding);
    let certificate = params.self_signed(&key).unwrap();
    (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// HelloRetryRequest is part of an honest handshake when the responder wants the other group (RFC 8446 section 4.1.4).
#[test]
fn a_responder_that_wants_the_other_group_gets_it_and_one_that_wants_a_third_does_not() {
    let _shared = shared();
    let (a, b) = identities();
    let node = Node::start(&a, &b);
    let group = |group| {
        let runtime = raw::runtime();
        let (certificates, key) = raw::chain(&b);
        let config = raw::server_config_of(raw::provider_with(group), certificates, key, 4, None);
        let endpoint = runtime.block_on(async { Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap() });
        let addr = endpoint.local_addr().unwrap();
        std::thread::spawn(move || {
            runtime.block_on(async {
                if let Ok(connection) = endpoint.accept().await.unwrap().await {
                    connection.closed().await;
                }
                endpoint.wait_idle().await;
            });
        });
        addr
    };
    node.dial(group(rustls::crypto::aws_lc_rs::kx_group::SECP384R1));
    node.endpoint.disconnect(node.peer).unwrap();
    assert!(matches!(node.next(), ControlEventKind::SessionLost { .. }));
    let (kind, reason, _) = dial_failure(&node, group(rustls::crypto::aws_lc_rs::kx_group::X25519));
    assert_eq!(kind, DialFailure::Protocol, "{reason}");
}

/// What the other side sees of attempts that end in each way there is: a close, at once, and not silence.
#[test]
fn an_attempt_that_is_given_up_is_closed_on_the_wire() {
    let _shared = shared();
    let (a, b) = identities();
    let [_, other] = [&b, &Arc::new(Identity::generate().unwrap())];
    let runtime = raw::runtime();

    // A key that is not the pinned one.
    let node = Node::start(&a, &b);
    let server = runtime.block_on(async { raw::server(other, 4) });
    node.endpoint.dial(node.peer, server.local_addr().unwrap(), SOON).unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(SOON, server.accept().await.unwrap()).await });
    let ended = ended.expect("the other side hears of it").expect_err("nobody gets a session with another key");
    assert!(matches!(ended, ConnectionError::ConnectionClosed(_)), "{ended:?}");
    assert!(matches!(node.next(), ControlEventKind::DialFailed { kind: DialFailure::Auth, .. }));

    // A dial that its owner gives up while the answer is on its way.
    let server = runtime.block_on(async { raw::server(&b, 4) });
    node.endpoint.dial(node.peer, server.local_addr().unwrap(), SOON).unwrap();
    let incoming = runtime.block_on(async { server.accept().await.unwrap() });
    node.endpoint.disconnect(node.peer).unwrap();
    assert!(matches!(node.next(), ControlEventKind::DialFailed { kind: DialFailure::Cancelled, .. }));
    let start = Instant::now();
    let ended = runtime.block_on(async { tokio::time::timeout(SOON, incoming).await });
    let ended = ended.expect("the other side hears of it").expect_err("there is nobody any more");
    println!("a dial that was given up: {ended:?} after {:?}", start.elapsed());
    assert!(matches!(ended, ConnectionError::ConnectionClosed(_) | ConnectionError::ApplicationClosed(_)), "{ended:?}");

    // An endpoint that closes with a session up.
    let server = runtime.block_on(async { raw::server(&b, 4) });
    node.endpoint.dial(node.peer, server.local_addr().unwrap(), SOON).unwrap();
    let connection = runtime.block_on(async { server.accept().await.unwrap().await.unwrap() });
    node.session_up();
    let endpoint = Arc::clone(&node.endpoint);
    let closing = std::thread::spawn(move || endpoint.close());
    assert_eq!(runtime.block_on(raw::close_code(&connection)), 0);
    closing.join().unwrap();
}

/// After the handshake, a responder with the right key opens streams that nobody allowed.
#[test]
fn a_responder_cannot_open_streams_and_goes_on_answering() {
    let _shared = shared();
    let (a, b) = identities();
    let runtime = raw::runtime();
    let server = runtime.block_on(async { raw::server(&b, 4) });
    let addr = server.local_addr().unwrap();
    let opened = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let opened = Arc::clone(&opened);
        move || {
            runtime.block_on(async {
                let connection = server.accept().await.unwrap().await.unwrap();
                let open = async {
                    tokio::select! {
                        _ = connection.open_bi() => opened.store(true, Ordering::Relaxed),
                        _ = connection.open_uni() => opened.store(true, Ordering::Relaxed),
                    }
                };
                let answer = async {
                    for counter in 1.. {
                        let Ok((mut send, mut recv)) = connection.accept_bi().await else { break };
                        raw::read_offer(&mut recv).await;
                        send.write_all(&raw::offer(0, 0x4000_0000 | counter)).await.unwrap();
                        send.finish().unwrap();
                        let _ = recv.read(&mut [0; 1]).await;
                    }
                };
                tokio::join!(open, answer);
            });
        }
    });
    let node = Node::start(&a, &b);
    node.dial(addr);
    for _ in 0..10 {
        node.exchange();
    }
    wait_until("ten exchanges are counted", || node.endpoint.status(node.peer).unwrap().exchanges == 10);
    assert!(!opened.load(Ordering::Relaxed));
}
