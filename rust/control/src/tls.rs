//! TLS 1.3 with pinned keys: whom a handshake authenticates, and what it may negotiate.
//!
//! A verifier belongs to one connection and remembers that it ran. quinn does not say whether a session resumed; a
//! resumed one would not have asked the verifier.

use core::fmt;
use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, SignatureAlgorithm,
    SignatureScheme,
};

use crate::certificate;
use crate::identity::Identity;
use crate::public_key::PublicKey;

pub(crate) const ALPN: &[u8] = b"icx-ctrl/1";
pub(crate) const SERVER_NAME: &str = "icx";

/// The only signature in use: ECDSA P-256 with SHA-256.
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// Whom this node answers to on one side of a handshake.
pub(crate) trait Trust: Send + Sync + fmt::Debug {
    /// Whether a peer with this key may complete a handshake.
    fn trusts(&self, key: &PublicKey) -> bool;
}

/// One peer's key, for the side that dials.
#[derive(Debug)]
pub(crate) struct Pinned(pub(crate) PublicKey);

impl Trust for Pinned {
    fn trusts(&self, key: &PublicKey) -> bool {
        *key == self.0
    }
}

/// What a handshake showed about the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The certificate holds no P-256 key.
    NoUsableKey,
    /// A key that is not trusted.
    Untrusted(PublicKey),
    /// A trusted key. Whether the peer has its private half is another matter.
    Trusted(PublicKey),
}

/// The peer check of one connection.
#[derive(Debug)]
pub(crate) struct Verifier {
    provider: Arc<CryptoProvider>,
    trust: Arc<dyn Trust>,
    shown: OnceLock<Shown>,
    signed: OnceLock<()>,
}

impl Verifier {
    /// What the peer's certificate showed; `None` when the handshake did not come that far.
    pub(crate) fn shown(&self) -> Option<&Shown> {
        self.shown.get()
    }

    /// The peer's key, when this very handshake checked both the key and the signature made with it.
    pub(crate) fn authenticated(&self) -> Option<&PublicKey> {
        match (self.shown.get(), self.signed.get()) {
            (Some(Shown::Trusted(key)), Some(())) => Some(key),
            _ => None,
        }
    }

    fn check_key(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let shown = match certificate::public_key(certificate)? {
            Some(key) if self.trust.trusts(&key) => Shown::Trusted(key),
            Some(key) => Shown::Untrusted(key),
            None => Shown::NoUsableKey,
        };
        let trusted = matches!(shown, Shown::Trusted(_));
        if self.shown.set(shown).is_err() {
            return Err(Error::General("a verifier serves one handshake".into()));
        }
        if trusted { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signature.scheme != SCHEME {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        let valid = verify_tls13_signature(message, certificate, signature, algorithms)?;
        let _ = self.signed.set(());
        Ok(valid)
    }
}

/// What both traits of verifiers ask for in the same words.
macro_rules! signature_methods {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            // TLS 1.2 is not offered, so nothing signs with it.
            Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.check_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SCHEME]
        }
    };
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_key(end_entity).map(|()| ServerCertVerified::assertion())
    }

    signature_methods!();
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check_key(end_entity).map(|()| ClientCertVerified::assertion())
    }

    signature_methods!();
}

/// TLS could not be set up. This depends on the build, never on a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("cannot configure TLS: {0}")]
    Rustls(#[from] Error),
    #[error("cannot configure TLS for QUIC: the initial cipher suite is missing")]
    NoInitialCipherSuite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// Makes the TLS half of connections, each with a verifier of its own.
#[derive(Debug)]
pub(crate) struct TlsFactory {
    provider: Arc<CryptoProvider>,
    certificate: Arc<SingleCertAndKey>,
}

impl TlsFactory {
    pub(crate) fn new(identity: Arc<Identity>, certificate: CertificateDer<'static>) -> Self {
        let provider = CryptoProvider {
            cipher_suites: vec![
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            ],
            kx_groups: vec![aws_lc_rs::kx_group::SECP256R1, aws_lc_rs::kx_group::SECP384R1],
            ..aws_lc_rs::default_provider()
        };
        let key = CertifiedKey::new(vec![certificate], Arc::new(IdentitySigner(identity)));
        TlsFactory { provider: Arc::new(provider), certificate: Arc::new(SingleCertAndKey::from(key)) }
    }

    /// For one outgoing connection.
    pub(crate) fn client(&self, trust: Arc<dyn Trust>) -> Result<(QuicClientConfig, Arc<Verifier>), TlsError> {
        let verifier = self.verifier(trust);
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_client_cert_resolver(Arc::clone(&self.certificate) as _);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok((config.try_into()?, verifier))
    }

    /// For one incoming connection.
    pub(crate) fn server(&self, trust: Arc<dyn Trust>) -> Result<(QuicServerConfig, Arc<Verifier>), TlsError> {
        let verifier = self.verifier(trust);
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(Arc::clone(&self.certificate) as _);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok((config.try_into()?, verifier))
    }

    fn verifier(&self, trust: Arc<dyn Trust>) -> Arc<Verifier> {
        let provider = Arc::clone(&self.provider);
        Arc::new(Verifier { provider, trust, shown: OnceLock::new(), signed: OnceLock::new() })
    }
}

/// A finished handshake is not what it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeFlaw {
    #[error("the handshake did not agree on the protocol icx-ctrl/1")]
    Alpn,
    #[error("the handshake did not authenticate the peer anew")]
    NotAuthenticated,
}

/// What must hold after every handshake: the right ALPN, and the peer authenticated in it and not in an earlier one.
pub(crate) fn inspect(connection: &quinn::Connection, verifier: &Verifier) -> Result<PublicKey, HandshakeFlaw> {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    if data.and_then(|data| data.protocol).as_deref() != Some(ALPN) {
        return Err(HandshakeFlaw::Alpn);
    }
    verifier.authenticated().cloned().ok_or(HandshakeFlaw::NotAuthenticated)
}

/// Signs handshakes with the identity, whose key stays where it is.
#[derive(Debug)]
struct IdentitySigner(Arc<Identity>);

impl SigningKey for IdentitySigner {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SCHEME).then(|| Box::new(IdentitySigner(Arc::clone(&self.0))) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for IdentitySigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.0.sign(message).map_err(|_| Error::General("signing failed".into()))
    }

    fn scheme(&self) -> SignatureScheme {
        SCHEME
    }
}
