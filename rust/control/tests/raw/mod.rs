//! Peers made of bare quinn, which do what a test wants and not what the protocol says.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use icx_control::codec::{Message, SaOffer};
use icx_control::{Identity, certificate};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError, Endpoint, IdleTimeout, RecvStream, SendStream, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, NamedGroup, SignatureScheme};

pub(crate) const ALPN: &str = "icx-ctrl/1";

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Trusts everybody.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Keeps TLS tickets, and counts them.
#[derive(Debug)]
pub(crate) struct TicketCounter {
    store: ClientSessionMemoryCache,
    pub(crate) tickets: AtomicUsize,
}

impl TicketCounter {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(TicketCounter { store: ClientSessionMemoryCache::new(8), tickets: AtomicUsize::new(0) })
    }
}

impl ClientSessionStore for TicketCounter {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.store.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.store.kx_hint(server)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: rustls::client::Tls13ClientSessionValue) {
        self.tickets.fetch_add(1, Ordering::Relaxed);
        self.store.insert_tls13_ticket(server, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.store.take_tls13_ticket(server)
    }
}

pub(crate) fn chain(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = certificate::self_signed(identity, SystemTime::now()).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_slice(identity.to_pem().as_bytes()).unwrap())
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Knows one group only.
pub(crate) fn provider_with(group: &'static dyn SupportedKxGroup) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() })
}

pub(crate) fn client_config(identity: &Identity, alpn: &str, store: Option<Arc<TicketCounter>>) -> quinn::ClientConfig {
    let (certificates, key) = chain(identity);
    let mut tls = client_tls(provider(), certificates, key);
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    tls.enable_early_data = true;
    if let Some(store) = store {
        tls.resumption = Resumption::store(store);
    }
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// A client without ALPN.
pub(crate) fn client_tls(
    provider: Arc<CryptoProvider>,
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_cert_resolver(certified(certificates, key))
}

/// Whether certificate and key belong together is for the other side to find out.
fn certified(certificates: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Arc<SingleCertAndKey> {
    let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(certificates, key)))
}

/// A client endpoint on a port of its own.
pub(crate) fn client() -> Endpoint {
    Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap()
}

/// Completes a handshake as `identity`.
pub(crate) async fn connect(endpoint: &Endpoint, identity: &Identity, to: SocketAddr) -> Connection {
    let config = client_config(identity, ALPN, None);
    endpoint.connect_with(config, to, "icx").unwrap().await.unwrap()
}

/// A listener as `identity` that allows `streams` streams at a time.
pub(crate) fn server(identity: &Identity, streams: u32) -> Endpoint {
    server_with(identity, streams, None)
}

/// The same, with an idle timeout other than QUIC's usual one.
pub(crate) fn server_with(identity: &Identity, streams: u32, idle_timeout: Option<IdleTimeout>) -> Endpoint {
    let (certificates, key) = chain(identity);
    let config = server_config(certificates, key, streams, idle_timeout);
    Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap()
}

pub(crate) fn server_config(
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    streams: u32,
    idle_timeout: Option<IdleTimeout>,
) -> quinn::ServerConfig {
    server_config_of(provider(), certificates, key, streams, idle_timeout)
}

pub(crate) fn server_config_of(
    provider: Arc<CryptoProvider>,
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    streams: u32,
    idle_timeout: Option<IdleTimeout>,
) -> quinn::ServerConfig {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_cert_resolver(certified(certificates, key));
    tls.alpn_protocols = vec![ALPN.as_bytes().to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(streams));
    if idle_timeout.is_some() {
        transport.max_idle_timeout(idle_timeout);
    }
    config.transport_config(Arc::new(transport));
    config
}

pub(crate) fn offer(suite: u8, rx_spi: u32) -> Vec<u8> {
    SaOffer { suite, rx_spi }.encode_framed()
}

/// Reads exactly one offer off a stream and leaves the rest there.
pub(crate) async fn read_offer(recv: &mut RecvStream) -> SaOffer {
    let mut frame = [0; 9];
    recv.read_exact(&mut frame).await.unwrap();
    SaOffer::decode(&frame[2..]).unwrap()
}

/// Offers `rx_spi`, leaves the stream open, and returns what came back. Panics when nothing comes.
pub(crate) async fn offer_and_read(connection: &Connection, rx_spi: u32) -> (SaOffer, SendStream, RecvStream) {
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&offer(0, rx_spi)).await.unwrap();
        let answer = read_offer(&mut recv).await;
        (answer, send, recv)
    };
    tokio::time::timeout(Duration::from_secs(8), exchange).await.expect("a stream and an answer in time")
}

/// The application code with which the peer closes the connection.
pub(crate) async fn close_code(connection: &Connection) -> u64 {
    match tokio::time::timeout(Duration::from_secs(15), connection.closed()).await.expect("closed in time") {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other:?}"),
    }
}

/// Passes datagrams between clients and one server, whose address may change. Counts what looks like QUIC Retry packets.
pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    server: Arc<Mutex<Option<SocketAddr>>>,
    answers: Arc<Mutex<Answers>>,
    retries: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Which of the server's datagrams a relay passes on.
pub(crate) type Answers = fn(&[u8]) -> bool;

/// RFC 9000 section 17.2.5: long header, fixed bit, type 3.
pub(crate) fn is_retry(datagram: &[u8]) -> bool {
    datagram[0] & 0xf0 == 0xf0
}

impl Relay {
    pub(crate) fn start(server: SocketAddr) -> Self {
        Self::start_with(server, Ipv4Addr::LOCALHOST.into(), |_| true)
    }

    /// What the server sends is lost.
    pub(crate) fn start_one_way(server: SocketAddr) -> Self {
        Self::start_with(server, Ipv4Addr::LOCALHOST.into(), |_| false)
    }

    /// The server sees `source` as the clients' address.
    pub(crate) fn start_with(server: SocketAddr, source: IpAddr, answers: Answers) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind((source, 0)).unwrap();
        for socket in [&front, &back] {
            socket.set_nonblocking(true).unwrap();
        }
        let addr = front.local_addr().unwrap();
        let server = Arc::new(Mutex::new(Some(server)));
        let answers = Arc::new(Mutex::new(answers));
        let retries = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (server, answers) = (Arc::clone(&server), Arc::clone(&answers));
            let (retries, stop) = (Arc::clone(&retries), Arc::clone(&stop));
            move || {
                let mut client = None;
                let mut buffer = [0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    let mut idle = true;
                    if let Ok((len, from)) = front.recv_from(&mut buffer) {
                        (client, idle) = (Some(from), false);
                        if let Some(server) = *server.lock().unwrap() {
                            let _ = back.send_to(&buffer[..len], server);
                        }
                    }
                    if let Ok((len, from)) = back.recv_from(&mut buffer) {
                        idle = false;
                        if is_retry(&buffer[..len]) {
                            retries.fetch_add(1, Ordering::Relaxed);
                        }
                        let answers = *answers.lock().unwrap();
                        let pass = answers(&buffer[..len]) && *server.lock().unwrap() == Some(from);
                        if let (Some(client), true) = (client, pass) {
                            let _ = front.send_to(&buffer[..len], client);
                        }
                    }
                    if idle {
                        std::thread::sleep(Duration::from_micros(500));
                    }
                }
            }
        });
        Relay { addr, server, answers, retries, stop, thread: Some(thread) }
    }

    /// `None`: what comes is lost.
    pub(crate) fn set_server(&self, server: Option<SocketAddr>) {
        *self.server.lock().unwrap() = server;
    }

    pub(crate) fn set_answers(&self, answers: Answers) {
        *self.answers.lock().unwrap() = answers;
    }

    pub(crate) fn retries(&self) -> usize {
        self.retries.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
