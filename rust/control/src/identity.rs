//! The node's long-term key: ECDSA P-256, PKCS#8 PEM in a file that only its owner can read.

use core::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::pkcs8::Document;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject};
use zeroize::{Zeroize, Zeroizing};

use crate::file_kind;
use crate::kdf;
use crate::key_file::{self, WriteError};
use crate::public_key::PublicKey;

/// No key file is longer; what is, is something else.
const MAX_FILE_LEN: usize = 16 * 1024;
const PEM_LINE: usize = 64;

/// What is accepted, for error messages.
const ACCEPTED: &str = "this node needs an ECDSA P-256 private key as PKCS#8 PEM (\"-----BEGIN PRIVATE KEY-----\"), as \
                        `icx genkey` and `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` write it";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    #[error("cannot read the identity key {path}: {source}{}", read_advice(path, source), path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is a {kind}, not a file with an identity key: name the file, or make one with `icx genkey`", path = path.display())]
    NotAFile { path: PathBuf, kind: &'static str },
    #[error(
        "the identity key {path} has mode {mode:04o}, so others than its owner can reach it: allowed is 0600 or less, run \
         `chmod 600 {path}`", path = path.display()
    )]
    Mode { path: PathBuf, mode: u32 },
    #[error("the identity key {path} is not usable: {source}", path = path.display())]
    File { path: PathBuf, source: Box<IdentityError> },
    #[error("the key is longer than {MAX_FILE_LEN} bytes: {ACCEPTED}")]
    TooLong,
    #[error("there is no private key in it: {ACCEPTED}")]
    NoKey,
    #[error("it holds more than one private key: {ACCEPTED}")]
    SeveralKeys,
    #[error("its PEM is damaged: {ACCEPTED}")]
    Pem,
    #[error("it is {0}: {ACCEPTED}; `openssl pkcs8 -topk8 -nocrypt` converts a P-256 key")]
    Encoding(&'static str),
    #[error("its key is damaged or not of the curve P-256 (P-384 and Ed25519 are not accepted): {ACCEPTED}")]
    NotP256,
    #[error("the cryptography library could not make a key")]
    Generate,
}

fn read_advice(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("; check the name, or make a key with `icx genkey {}`", path.display()),
        io::ErrorKind::PermissionDenied => "; run as the owner of the file, or as root".to_owned(),
        _ => String::new(),
    }
}

impl From<Unspecified> for IdentityError {
    fn from(_: Unspecified) -> Self {
        IdentityError::Generate
    }
}

/// An identity key pair. The private half cannot be printed, and is erased when dropped.
pub struct Identity {
    key_pair: EcdsaKeyPair,
    pkcs8: Document,
    public_key: PublicKey,
}

impl Identity {
    /// Makes a new key.
    pub fn generate() -> Result<Self, IdentityError> {
        Self::from_key_pair(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?)
    }

    /// Reads PKCS#8 PEM; text around the PEM block is skipped.
    pub fn from_pem(pem: &[u8]) -> Result<Self, IdentityError> {
        if pem.len() > MAX_FILE_LEN {
            return Err(IdentityError::TooLong);
        }
        if pem.windows(24).any(|w| w == b"BEGIN ENCRYPTED PRIVATE ") {
            return Err(IdentityError::Encoding("an encrypted key"));
        }
        let mut keys = PrivateKeyDer::pem_slice_iter(pem);
        let mut key = match keys.next() {
            Some(Ok(key)) => key,
            None | Some(Err(pem::Error::NoItemsFound)) => return Err(IdentityError::NoKey),
            Some(Err(_)) => return Err(IdentityError::Pem),
        };
        let identity = match &key {
            PrivateKeyDer::Pkcs8(der) => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der())
                    .map_err(|_| IdentityError::NotP256)
                    .and_then(Self::from_key_pair)
            }
            PrivateKeyDer::Sec1(_) => Err(IdentityError::Encoding("a SEC1 key (\"EC PRIVATE KEY\")")),
            PrivateKeyDer::Pkcs1(_) => Err(IdentityError::Encoding("an RSA key")),
            _ => Err(IdentityError::Encoding("of a kind that is not known")),
        };
        key.zeroize();
        if let Some(Ok(mut second)) = keys.next() {
            second.zeroize();
            return Err(IdentityError::SeveralKeys);
        }
        identity
    }

    /// Reads a key file. Refused when group or others have any right on it.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let read_error = |source| IdentityError::Read { path: path.into(), source };
        let mut file = File::open(path).map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if let Some(kind) = file_kind::other_than_file(&metadata) {
            return Err(IdentityError::NotAFile { path: path.into(), kind });
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Mode { path: path.into(), mode });
        }
        let mut buffer = Zeroizing::new([0; MAX_FILE_LEN + 1]);
        let mut len = 0;
        while len < buffer.len() {
            match file.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(read_error(e)),
            }
        }
        Self::from_pem(&buffer[..len]).map_err(|e| IdentityError::File { path: path.into(), source: Box::new(e) })
    }

    /// Writes the key to a new file of mode 0600. With `force` an existing file is replaced in one step; without it,
    /// one that exists is an error and stays as it is.
    pub fn write_new(&self, path: &Path, force: bool) -> Result<(), WriteError> {
        let pem = self.to_pem();
        if force { key_file::replace(path, pem.as_bytes()) } else { key_file::create(path, pem.as_bytes()) }
    }

    /// The private key as PKCS#8 PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let body = Zeroizing::new(BASE64_STANDARD.encode(&self.pkcs8));
        let mut pem = Zeroizing::new(String::with_capacity(body.len() + body.len() / PEM_LINE + 64));
        pem.push_str("-----BEGIN PRIVATE KEY-----\n");
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(rest.len().min(PEM_LINE));
            pem.push_str(line);
            pem.push('\n');
            rest = more;
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        pem
    }

    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// ECDSA with SHA-256, DER-encoded (RFC 5480 section 3 curves, RFC 8446 section 4.2.3 scheme 0x0403).
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        Ok(self.key_pair.sign(&SystemRandom::new(), message)?.as_ref().to_vec())
    }

    /// A secret of this identity for another purpose, the same after every restart. `info` names the purpose.
    pub(crate) fn derive_secret(&self, info: &[u8]) -> Result<Zeroizing<[u8; 32]>, IdentityError> {
        let scalar = self.key_pair.private_key().as_be_bytes()?;
        let mut secret = Zeroizing::new([0; 32]);
        kdf::expand(scalar.as_ref(), info, &mut secret[..]).map_err(|_| IdentityError::Generate)?;
        Ok(secret)
    }

    fn from_key_pair(key_pair: EcdsaKeyPair) -> Result<Self, IdentityError> {
        let public_key = PublicKey::from_point(key_pair.public_key().as_ref()).map_err(|_| IdentityError::NotP256)?;
        let pkcs8 = key_pair.to_pkcs8v1()?;
        Ok(Identity { key_pair, pkcs8, public_key })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("public_key", &self.public_key).field("private_key", &"(hidden)").finish()
    }
}
