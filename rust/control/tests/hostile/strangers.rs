//! Those who have no key that counts: hellos that fail, handshakes that stall, and what they are told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use icx_control::{ControlEventKind, Identity};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::memory::shared;
use crate::node::SOON;
use crate::raw;
use crate::site::{Site, rejections, three_identities};

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A client that differs from an honest one in what it is made of.
fn client(provider: CryptoProvider, (certificates, key): Chain, alpn: &[&[u8]]) -> quinn::ClientConfig {
    let mut tls = raw::client_tls(Arc::new(provider), certificates, key);
    tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// A self-signed certificate whose key is of another kind.
fn other_kind(algorithm: &'static rcgen::SignatureAlgorithm) -> Chain {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

/// How a connection attempt ends, which on this side may look finished at first.
async fn refusal(config: quinn::ClientConfig, to: SocketAddr) -> ConnectionError {
    let endpoint = raw::client();
    let attempt = async {
        match endpoint.connect_with(config, to, "icx").unwrap().await {
            Ok(connection) => closed(&connection).await,
            Err(error) => error,
        }
    };
    tokio::time::timeout(SOON, attempt).await.expect("refused in time")
}

async fn closed(connection: &Connection) -> ConnectionError {
    connection.closed().await
}

#[test]
fn no_client_hello_ends_the_listener() {
    let _shared = shared();
    let site = Site::start();
    let addr = site.endpoint.local_addr();
    let insider = || raw::chain(&site.insider);
    let provider = aws_lc_rs::default_provider;
    let x25519 = CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..provider() };
    let mut suites = provider().cipher_suites;
    // QUIC's own first packets need AES-128-GCM; TLS may leave it out only where it is not negotiated.
    suites.retain(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
    let one_suite = CryptoProvider { cipher_suites: suites, ..provider() };
    let alpn: &[&[u8]] = &[b"icx-ctrl/1"];
    let attempts = [
        ("another protocol", client(provider(), insider(), &[b"h3"])),
        ("no protocol", client(provider(), insider(), &[])),
        ("no common group", client(x25519, insider(), alpn)),
        ("a P-384 key", client(provider(), other_kind(&rcgen::PKCS_ECDSA_P384_SHA384), alpn)),
        ("an Ed25519 key", client(provider(), other_kind(&rcgen::PKCS_ED25519), alpn)),
        ("an unknown P-256 key", client(provider(), raw::chain(&Identity::generate().unwrap()), alpn)),
        ("the listener's own key", client(provider(), raw::chain(&site.identity), alpn)),
        ("a certificate that is none", client(provider(), (vec![vec![0x30, 0x80, 1].into()], insider().1), alpn)),
        ("the insider's certificate without its key", client(provider(), (insider().0, other_p256()), alpn)),
    ];
    let count = attempts.len() as u64;
    for (name, config) in attempts {
        let refused = raw::runtime().block_on(refusal(config, addr));
        assert!(matches!(refused, ConnectionError::ConnectionClosed(_)), "{name}: {refused:?}");
        site.lets_the_peer_in();
    }
    // Common ground is enough, however little.
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        let config = client(one_suite, insider(), &[b"h3", b"icx-ctrl/1"]);
        let connection = endpoint.connect_with(config, addr, "icx").unwrap().await.unwrap();
        raw::offer_and_read(&connection, 1).await;
    });
    let mut told = 0;
    while told < count {
        if let ControlEventKind::PeerRejected { count, .. } = site.next_within(2 * SOON) {
            told += count;
        }
    }
    assert_eq!(told, count, "each is counted once");
    site.bystander_was_undisturbed();
}

fn other_p256() -> PrivateKeyDer<'static> {
    raw::chain(&Identity::generate().unwrap()).1
}

#[test]
fn what_a_stranger_is_told_says_nothing_of_this_node() {
    let _shared = shared();
    let site = Site::start();
    let [stranger, ..] = three_identities();
    let config = raw::client_config(&stranger, raw::ALPN, None);
    let refused = raw::runtime().block_on(refusal(config, site.endpoint.local_addr()));
    let ConnectionError::ConnectionClosed(close) = &refused else { panic!("{refused:?}") };
    let told = String::from_utf8_lossy(&close.reason);
    println!("a stranger is told: {told}");
    for key in [&site.insider, &site.identity, &stranger] {
        assert!(!told.contains(&key.public_key().fingerprint()), "{told}");
    }
    assert!(told.len() < 120, "{told}");
    site.bystander_was_undisturbed();
}

#[test]
fn rejections_are_told_of_seldom() {
    let _shared = shared();
    let site = Site::start();
    let [stranger, ..] = three_identities();
    let start = Instant::now();
    raw::runtime().block_on(async {
        let endpoint = raw::client();
        while start.elapsed() < Duration::from_millis(2500) {
            let config = raw::client_config(&stranger, raw::ALPN, None);
            if let Ok(connection) = endpoint.connect_with(config, site.endpoint.local_addr(), "icx").unwrap().await {
                closed(&connection).await;
            }
        }
    });
    std::thread::sleep(Duration::from_millis(1200));
    // After one second, two more, four more.
    let most = 2 + (start.elapsed().as_secs() + 1).ilog2() as usize;
    let (count, reports) = rejections(&site.events());
    println!("{count} rejections in {reports} reports");
    assert!(count >= 10 && (2..=most).contains(&reports), "{count} in {reports}");
    site.bystander_was_undisturbed();
}
