//! P-256 public keys as people hand them around: base64 of the SubjectPublicKeyInfo DER.

use core::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};

use crate::role::{EqualKeysError, Role};

/// What precedes the point in the SPKI of every P-256 key (RFC 5480 section 2): SEQUENCE { SEQUENCE { id-ecPublicKey,
/// secp256r1 }, BIT STRING }.
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point (RFC 5480 section 2.2): 4, X, Y.
const POINT_LEN: usize = 65;
const SPKI_LEN: usize = SPKI_PREFIX.len() + POINT_LEN;
/// No key file is longer; what is, is something else.
const MAX_FILE_LEN: u64 = 4096;

/// An ECDSA P-256 public key, held as its SubjectPublicKeyInfo DER. Keys order as their DER does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey {
    der: [u8; SPKI_LEN],
}

/// The text is no P-256 public key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublicKeyError {
    #[error(
        "a public key is standard padded base64 of {SPKI_LEN} bytes (124 characters, as `icx pubkey` prints it): {0}"
    )]
    Base64(base64::DecodeError),
    #[error(
        "a public key is the uncompressed P-256 SubjectPublicKeyInfo DER ({SPKI_LEN} bytes), got {0} bytes of something \
         else: P-384, Ed25519 and compressed keys are not accepted"
    )]
    NotP256(usize),
    #[error("the point of the public key is not on the curve P-256")]
    NotOnCurve,
    #[error("cannot read the public key file {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the file {path} is longer than {MAX_FILE_LEN} bytes and so no public key", path = path.display())]
    FileTooLong { path: PathBuf },
    #[error("the file {path} holds no public key: {source}", path = path.display())]
    File { path: PathBuf, source: Box<PublicKeyError> },
}

impl PublicKey {
    /// Reads the text form. Line breaks anywhere are skipped; other white space, missing padding and the URL-safe
    /// alphabet are refused.
    pub fn parse(text: &str) -> Result<Self, PublicKeyError> {
        let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        let der = BASE64_STANDARD.decode(text).map_err(PublicKeyError::Base64)?;
        Self::from_der(&der)
    }

    /// Reads the key from the file called `text` when there is one, from `text` itself otherwise. White space around
    /// the content of a file is ignored.
    pub fn from_text_or_file(text: &str) -> Result<Self, PublicKeyError> {
        let path = Path::new(text);
        let file = match File::open(path) {
            Ok(file) => file,
            // Base64 may be too long for a file name or hold a '/', and so look like a path to nowhere.
            Err(e) if path_is_absent(&e) => return Self::parse(text),
            Err(source) => return Err(PublicKeyError::Read { path: path.into(), source }),
        };
        let mut content = String::new();
        file.take(MAX_FILE_LEN + 1)
            .read_to_string(&mut content)
            .map_err(|source| PublicKeyError::Read { path: path.into(), source })?;
        if content.len() as u64 > MAX_FILE_LEN {
            return Err(PublicKeyError::FileTooLong { path: path.into() });
        }
        Self::parse(content.trim()).map_err(|e| PublicKeyError::File { path: path.into(), source: Box::new(e) })
    }

    /// Checks a SubjectPublicKeyInfo.
    pub fn from_der(der: &[u8]) -> Result<Self, PublicKeyError> {
        let der: [u8; SPKI_LEN] = der.try_into().map_err(|_| PublicKeyError::NotP256(der.len()))?;
        let (prefix, point) = der.split_at(SPKI_PREFIX.len());
        if prefix != SPKI_PREFIX || point[0] != 4 {
            return Err(PublicKeyError::NotP256(der.len()));
        }
        ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).map_err(|_| PublicKeyError::NotOnCurve)?;
        Ok(PublicKey { der })
    }

    /// The SubjectPublicKeyInfo DER.
    pub fn as_der(&self) -> &[u8] {
        &self.der
    }

    /// The uncompressed point, 65 bytes.
    pub(crate) fn point(&self) -> &[u8] {
        &self.der[SPKI_PREFIX.len()..]
    }

    pub(crate) fn from_point(point: &[u8]) -> Result<Self, PublicKeyError> {
        Self::from_der(&[&SPKI_PREFIX, point].concat())
    }

    /// Base64 (standard, unpadded) of the SHA-256 of the DER.
    pub fn fingerprint(&self) -> String {
        BASE64_STANDARD_NO_PAD.encode(digest::digest(&digest::SHA256, &self.der))
    }

    /// The role of the node with this key towards `peer`: the lower DER initiates.
    pub fn role_against(&self, peer: &PublicKey) -> Result<Role, EqualKeysError> {
        match self.der.cmp(&peer.der) {
            core::cmp::Ordering::Less => Ok(Role::Initiator),
            core::cmp::Ordering::Greater => Ok(Role::Responder),
            core::cmp::Ordering::Equal => Err(EqualKeysError),
        }
    }
}

fn path_is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput
    )
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.der))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}
