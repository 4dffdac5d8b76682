//! The self-signed certificate that carries the public key through TLS. Peers compare its key and nothing else.

use core::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;

use crate::identity::Identity;
use crate::public_key::PublicKey;

const HOUR: Duration = Duration::from_secs(60 * 60);
const VALIDITY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the certificate of this node: {0}")]
pub struct CertificateError(#[from] rcgen::Error);

/// CN `icx:<fingerprint>`, serial 1, from an hour before `now` for 100 × 365 days, digitalSignature, server and client.
pub fn self_signed(identity: &Identity, now: SystemTime) -> Result<CertificateDer<'static>, CertificateError> {
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch.saturating_sub(HOUR);

    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("icx:{}", identity.public_key().fingerprint()));
    params.serial_number = Some(SerialNumber::from(1u64));
    params.not_before = not_before;
    params.not_after = not_before + VALIDITY;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params.self_signed(&CertificateKey(identity))?.der().clone())
}

/// The key of a peer's certificate, of which nothing else is looked at. `None`: it is no P-256 key.
pub fn public_key(certificate: &CertificateDer<'_>) -> Result<Option<PublicKey>, rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    Ok(PublicKey::from_der(&parsed.subject_public_key_info()).ok())
}

struct CertificateKey<'a>(&'a Identity);

impl PublicKeyData for CertificateKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().point()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for CertificateKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
