//! P-256 public keys as people hand them around: base64 of the SubjectPublicKeyInfo DER.

use core::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};

use crate::file_kind;
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
        "a public key is standard padded base64 of {SPKI_LEN} bytes (124 characters, as `icx pubkey` prints it): {}",
        base64_fault(.0)
    )]
    Base64(base64::DecodeError),
    #[error("a public key is 124 characters, as `icx pubkey` prints it: there is nothing")]
    Empty,
    #[error(
        "a public key is the uncompressed P-256 SubjectPublicKeyInfo DER ({SPKI_LEN} bytes), as `icx pubkey` prints it, got \
         {0} bytes of something else: P-384, Ed25519 and compressed keys are not accepted"
    )]
    NotP256(usize),
    #[error("it is a private key, which stays with its owner: `icx pubkey` prints the public one")]
    Private,
    #[error("the point of the public key is not on the curve P-256")]
    NotOnCurve,
    #[error("it is binary: `icx pubkey` prints a public key as text")]
    Binary,
    #[error("{path} is a {kind}, not a file with a public key: name a file that holds what `icx pubkey` prints", path = path.display())]
    NotAFile { path: PathBuf, kind: &'static str },
    #[error("cannot read the public key file {path}: {source}{}", read_advice(source), path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the file {path} is longer than {MAX_FILE_LEN} bytes and so no public key: name a file that holds what `icx pubkey` \
         prints", path = path.display()
    )]
    FileTooLong { path: PathBuf },
    #[error("the file {path} holds no public key: {source}", path = path.display())]
    File { path: PathBuf, source: Box<PublicKeyError> },
    /// `given` is the text as far as it may be shown.
    #[error("{given} is neither a file that exists nor a public key; {source}")]
    NeitherFileNorKey { given: String, source: Box<PublicKeyError> },
    #[error(
        "the text is a private key (not shown): it belongs into a file of its owner alone, and whoever saw it here holds it \
         now: make a new one with `icx genkey`, and give the peer's public key, as `icx pubkey` prints it"
    )]
    PrivateText,
}

impl PublicKey {
    /// Reads the text form. Line breaks anywhere are skipped; other white space, missing padding and the URL-safe
    /// alphabet are refused.
    pub fn parse(text: &str) -> Result<Self, PublicKeyError> {
        if is_private(text) {
            return Err(PublicKeyError::Private);
        }
        let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        if text.is_empty() {
            return Err(PublicKeyError::Empty);
        }
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
            Err(e) if path_is_absent(&e) => {
                return Self::parse(text).map_err(|error| match error {
                    PublicKeyError::Private => PublicKeyError::PrivateText,
                    error => PublicKeyError::NeitherFileNorKey { given: shown(text), source: Box::new(error) },
                });
            }
            Err(source) => return Err(PublicKeyError::Read { path: path.into(), source }),
        };
        let read_error = |source| PublicKeyError::Read { path: path.into(), source };
        if let Some(kind) = file_kind::other_than_file(&file.metadata().map_err(read_error)?) {
            return Err(PublicKeyError::NotAFile { path: path.into(), kind });
        }
        let mut content = Vec::new();
        file.take(MAX_FILE_LEN + 1).read_to_end(&mut content).map_err(read_error)?;
        if content.len() as u64 > MAX_FILE_LEN {
            return Err(PublicKeyError::FileTooLong { path: path.into() });
        }
        str::from_utf8(&content)
            .map_err(|_| PublicKeyError::Binary)
            .and_then(|text| Self::parse(text.trim()))
            .map_err(|e| PublicKeyError::File { path: path.into(), source: Box::new(e) })
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

/// Whether the text is, or begins like, a private key: PEM, or the base64 of a PKCS#8 or SEC1 structure, which start with
/// a version (RFC 5958 section 2, RFC 5915 section 3) where a public key has a sequence.
fn is_private(text: &str) -> bool {
    const INTEGER: u8 = 0x02;
    if text.contains("PRIVATE KEY") {
        return true;
    }
    let head: String = text.chars().filter(|c| !c.is_whitespace()).take(8).collect();
    match BASE64_STANDARD.decode(head).as_deref() {
        // SEQUENCE, its length in one byte or after 0x81 or 0x82, INTEGER of one byte.
        Ok([0x30, 0x81, _, INTEGER, 1, _] | [0x30, 0x82, _, _, INTEGER, 1]) => true,
        Ok([0x30, length, INTEGER, 1, ..]) => *length < 0x80,
        _ => false,
    }
}

/// What was given, at a length that fits into a message; not what could be a private key, or a part of one.
fn shown(text: &str) -> String {
    const MOST: usize = 64;
    if may_be_secret(text) {
        return format!("the text of {} characters (not shown, as it could be a private key)", text.chars().count());
    }
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}… ({} characters)", &text[..end], text.chars().count()),
        None => format!("{text:?}"),
    }
}

/// Whether there is a run of characters in the text that could be a key of any encoding: long, of those of base64 or
/// hexadecimal digits, and neither the beginning of a P-256 public key nor a path.
fn may_be_secret(text: &str) -> bool {
    /// Shorter runs leave too much of a key to guess.
    const LEAST: usize = 24;
    const PUBLIC: &str = "MFkwEwYHKoZIzj0C";
    let long = |run: &str| run.len() >= LEAST;
    let in_run = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_');
    if !text.split(|c| !in_run(c)).any(|run| long(run) && !run.starts_with(PUBLIC)) {
        return false;
    }
    let parent = Path::new(text).parent();
    if parent.is_some_and(|parent| parent.parent().is_some() && parent.is_dir()) {
        return false;
    }
    let from_somewhere = ["/", "./", "../"].iter().any(|start| text.starts_with(start));
    !from_somewhere || text.split('/').any(long)
}

fn read_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as a user who may read it, or give the key itself",
        _ => "",
    }
}

fn base64_fault(error: &base64::DecodeError) -> String {
    match error {
        base64::DecodeError::InvalidByte(at, _) => format!("character {} is none of that alphabet", at + 1),
        base64::DecodeError::InvalidLength(characters) => format!("the text has {characters}"),
        base64::DecodeError::InvalidLastSymbol(..) | base64::DecodeError::InvalidPadding => {
            "the end is missing or damaged".to_owned()
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
