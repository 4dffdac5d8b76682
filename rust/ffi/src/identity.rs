//! Identities and public keys. Private key bytes stay on this side.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use icx_control::{Identity, PublicKey, PublicKeyError, Role, WriteError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::code::Code;
use crate::error::{self, Failure, Outcome};
use crate::guard::Call;
use crate::handle;
use crate::json::{self, FromText, Text};

/// Stands for standard input or output in place of a file.
const STANDARD_STREAM: &str = "-";

/// No key file is longer; what is, is something else.
const MAX_PEM_BYTES: u64 = 64 * 1024;

pub(crate) struct IdentityHandle {
    pub(crate) identity: Arc<Identity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GenerateOptions {
    path: String,
    #[serde(default)]
    force: bool,
}

pub(crate) fn generate(_: &Call, text: &[u8]) -> Outcome<u32> {
    let GenerateOptions { path, force } = json::parse(text)?;
    let identity = Identity::generate().map_err(|error| Failure::of(Code::System, "make an identity key", &error))?;
    if path == STANDARD_STREAM {
        let pem = identity.to_pem();
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(pem.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
            Failure::of(error::code_of(&error, Code::System), "write the identity key to standard output", &error)
        })?;
    } else {
        identity.write_new(Path::new(&path), force).map_err(|error| {
            let code = match error {
                WriteError::Exists { .. } => Code::Exists,
                WriteError::NoFileName { .. } | WriteError::Directory { .. } => Code::Invalid,
                WriteError::NoDirectory { .. } => Code::NotFound,
                _ => error::code_of(&error, Code::System),
            };
            Failure::of(code, format_args!("write the identity key to '{path}'"), &error)
        })?;
    }
    handle::open(IdentityHandle { identity: Arc::new(identity) })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadOptions {
    path: String,
}

pub(crate) fn load(_: &Call, text: &[u8]) -> Outcome<u32> {
    let LoadOptions { path } = json::parse(text)?;
    let identity = if path == STANDARD_STREAM {
        let pem = read_standard_input()?;
        Identity::from_pem(&pem).map_err(|error| load_failure("from standard input", &error))?
    } else {
        Identity::load(Path::new(&path)).map_err(|error| load_failure(&format!("from '{path}'"), &error))?
    };
    handle::open(IdentityHandle { identity: Arc::new(identity) })
}

fn read_standard_input() -> Outcome<Zeroizing<Vec<u8>>> {
    // Room for all of it from the start: a buffer that grows leaves copies of the key behind.
    let mut pem = Zeroizing::new(Vec::with_capacity(MAX_PEM_BYTES as usize + 1));
    std::io::stdin().lock().take(MAX_PEM_BYTES + 1).read_to_end(&mut pem).map_err(|error| {
        Failure::of(error::code_of(&error, Code::System), "read the identity key from standard input", &error)
    })?;
    if pem.len() as u64 > MAX_PEM_BYTES {
        return Err(Failure::new(
            Code::Key,
            format!(
                "Cannot read the identity key from standard input: it has more than {MAX_PEM_BYTES} bytes, a key file has a few hundred"
            ),
        ));
    }
    Ok(pem)
}

/// A file that cannot be read is one thing, a key that cannot be taken another.
fn load_failure(from: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::of(error::code_of(error, Code::Key), format_args!("load the identity key {from}"), error)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyInfo {
    public_key: String,
    fingerprint: String,
}

impl From<&PublicKey> for KeyInfo {
    fn from(key: &PublicKey) -> Self {
        KeyInfo { public_key: key.to_string(), fingerprint: key.fingerprint() }
    }
}

pub(crate) fn info(call: &Call, identity: u32) -> Outcome<String> {
    json::text(&KeyInfo::from(call.get::<IdentityHandle>(identity)?.identity.public_key()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerKeyOptions {
    text: String,
    #[serde(default)]
    allow_file: bool,
}

pub(crate) fn parse_peer_key(_: &Call, text: &[u8]) -> Outcome<String> {
    let options: PeerKeyOptions = json::parse(text)?;
    let key =
        if options.allow_file { PublicKey::from_text_or_file(&options.text) } else { PublicKey::parse(&options.text) }
            .map_err(|error| key_failure(&error))?;
    json::text(&KeyInfo::from(&key))
}

fn key_failure(error: &PublicKeyError) -> Failure {
    Failure::of(error::code_of(error, Code::Key), "use the peer key", error)
}

impl FromText for PublicKey {
    const EXPECTED: &'static str = "a public key as base64 text";

    fn from_text(text: &str) -> Result<Self, String> {
        PublicKey::parse(text).map_err(|error| error::chain(&error))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleOptions {
    local: Text<PublicKey>,
    peer: Text<PublicKey>,
}

pub(crate) fn role(_: &Call, text: &[u8]) -> Outcome<i32> {
    let RoleOptions { local, peer } = json::parse(text)?;
    match local.0.role_against(&peer.0) {
        Ok(Role::Responder) => Ok(0),
        Ok(Role::Initiator) => Ok(1),
        Err(error) => Err(Failure::of(Code::Key, "tell the role of this node", &error)),
    }
}
