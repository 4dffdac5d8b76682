//! Identity files: what is accepted, what is refused and how that is said, and what is written.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use icx_control::{Identity, IdentityError, PublicKey, PublicKeyError, WriteError, certificate};
use rustls::server::ParsedCertificate;

/// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`
const OPENSSL_P256: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg3gJh8rtPqedK18qt\n\
cTlvFUCiCLMOoeVBy/fhVvR5BeGhRANCAARNLPP6vClsEgc8u4QjpElkzTqwyUI3\n\
OS5q4kEBY1wS1vvum2ZoUd/AEloanNVQ+mo9w/vzBzMcHU5jYQoIBIKc\n\
-----END PRIVATE KEY-----\n";
/// The public half of the same key, `openssl pkey -pubout -outform DER | base64 -w0`.
const OPENSSL_P256_PUBLIC: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAETSzz+rwpbBIHPLuEI6RJZM06sMlCNzkuauJBAWNcEtb77ptmaFHfwBJaGpzVUPpqPcP78wczHB1OY2EKCASCnA==";
/// `openssl ecparam -name prime256v1 -genkey -noout`
const SEC1: &str = "\
-----BEGIN EC PRIVATE KEY-----\n\
MHcCAQEEIGkfAoqiSj4v65LMGC1sk/XPbNIMyO4wAmwqDrjOn1qToAoGCCqGSM49\n\
AwEHoUQDQgAEm326ZAiXsrC3eqdRbWGCjDzyafikcZqRQ8r8yz22OBrrfQyxkBvA\n\
iutNuqsIdUkEvlDc/9sffeZw0LOUfucgbQ==\n\
-----END EC PRIVATE KEY-----\n";
/// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384`
const P384: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGbAgEBBDBus+LEbFXn4alJ33lL\n\
PNmdcnxdFXaoWH0hF97s869YV1R5IDa1CCArsSTGIGWoQsGhZANiAASyu2ia0TFx\n\
K4ZLRnJkr5Hxkn7koYQG6nIEfqJjZCkop3+RNbymO0NqiWh6m40qGQtd8bTfSpnh\n\
4ucFHDAgYZL39puDzG9GAiW4fy96IlNqZIAahN5lppOVo0Nve8w/BiM=\n\
-----END PRIVATE KEY-----\n";
/// `openssl genpkey -algorithm ED25519`
const ED25519: &str = "\
-----BEGIN PRIVATE KEY-----\n\
MC4CAQAwBQYDK2VwBCIEIDSL2dhzEIiEeO1XKUgi7mlfV4EhhY2X7vW0zwPuPctz\n\
-----END PRIVATE KEY-----\n";
/// `openssl genpkey … -aes256 -pass pass:x`
const ENCRYPTED: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----\n\
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAjw7Ec7TA3hwQICCAAw\n\
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEH0zonHyDVy2eW342TyRa54EgZAf\n\
4ntW7OVZyyZQCR3ejaHuJ3vBZKRDLSrUEI7O2E7Zryd1oTBFuW+oVaF2rZgU3Xp8\n\
oMxHpnmlmUGmO62OEF0pamB/q+4AzcvXBmIY9Ny/DiaaV/OGgjE0tb5/UMtDqsWO\n\
BxwUyqacmnIGNQ89XCFWMOuJVjSFRZVrtNBMcglqqW4e9PzyF5g7olnS/wyoAPY=\n\
-----END ENCRYPTED PRIVATE KEY-----\n";

/// A folder of one test's own, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("icx-identity-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_written_key_is_for_its_owner_alone_and_loads_again() {
    let folder = Folder::new("written");
    let path = folder.0.join("key");
    let identity = Identity::generate().unwrap();
    identity.write_new(&path, false).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let loaded = Identity::load(&path).unwrap();
    assert_eq!(loaded.public_key(), identity.public_key());
    assert_eq!(*loaded.to_pem(), *identity.to_pem());
    assert_eq!(loaded.public_key().fingerprint().len(), 43);
    assert_eq!(folder.names(), ["key"]);
}

#[test]
fn a_key_is_replaced_only_when_asked_and_then_in_one_step() {
    let folder = Folder::new("replaced");
    let path = folder.0.join("key");
    let (first, second) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    first.write_new(&path, false).unwrap();
    let refused = second.write_new(&path, false).unwrap_err();
    assert!(matches!(refused, WriteError::Exists { .. }) && refused.to_string().contains("--force"), "{refused}");
    assert_eq!(Identity::load(&path).unwrap().public_key(), first.public_key());

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    second.write_new(&path, true).unwrap();
    assert_eq!(Identity::load(&path).unwrap().public_key(), second.public_key());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(folder.names(), ["key"], "no temporary file stays");

    let nowhere = folder.0.join("no/such/key");
    for force in [false, true] {
        let error = second.write_new(&nowhere, force).unwrap_err();
        assert!(matches!(error, WriteError::NoDirectory { .. }), "{error}");
    }
}

/// A process that is killed while it writes leaves what a reader would have seen at that moment.
#[test]
fn a_new_key_file_is_whole_as_soon_as_it_is_there() {
    let folder = Folder::new("whole");
    let path = folder.0.join("key");
    let identity = Identity::generate().unwrap();
    let pem = identity.to_pem();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0_u32;
            while !done.load(Ordering::Relaxed) {
                let Ok(content) = fs::read_to_string(&path) else { continue };
                assert_eq!(content, *pem);
                seen += 1;
            }
            seen
        });
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline && !reader.is_finished() {
            identity.write_new(&path, false).unwrap();
            fs::remove_file(&path).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0, "the reader saw nothing");
    });
    assert!(folder.names().is_empty());
}

#[test]
fn a_key_that_others_can_reach_is_refused() {
    let folder = Folder::new("mode");
    let path = folder.0.join("key");
    Identity::generate().unwrap().write_new(&path, false).unwrap();
    for (mode, allowed) in
        [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o610, false), (0o602, false)]
    {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        match Identity::load(&path) {
            Ok(_) => assert!(allowed, "{mode:o}"),
            Err(IdentityError::Mode { mode: found, .. }) => assert!(!allowed && found == mode, "{mode:o}"),
            Err(other) => panic!("{mode:o}: {other}"),
        }
    }
    let message = Identity::load(&path).unwrap_err().to_string();
    assert!(message.contains("0602") && message.contains(&format!("chmod 600 {}", path.display())), "{message}");
}

#[test]
fn only_p256_as_pkcs8_is_accepted_and_the_message_says_so() {
    let loaded = Identity::from_pem(OPENSSL_P256.as_bytes()).unwrap();
    assert_eq!(loaded.public_key().to_string(), OPENSSL_P256_PUBLIC);
    let with_text = format!("a comment\n{OPENSSL_P256}\nanother\n");
    assert_eq!(Identity::from_pem(with_text.as_bytes()).unwrap().public_key(), loaded.public_key());

    let cut = OPENSSL_P256.replace("-----END PRIVATE KEY-----", "");
    let damaged = OPENSSL_P256.replacen("MI", "MX", 1);
    let two = format!("{OPENSSL_P256}\n{OPENSSL_P256}");
    for (name, pem) in [
        ("SEC1", SEC1),
        ("P-384", P384),
        ("Ed25519", ED25519),
        ("encrypted", ENCRYPTED),
        ("cut short", &cut),
        ("damaged", &damaged),
        ("two keys", &two),
        ("no PEM", "not a key"),
        ("empty", ""),
    ] {
        let error = Identity::from_pem(pem.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("P-256") && error.contains("PKCS#8"), "{name}: {error}");
    }
    assert!(matches!(Identity::from_pem(SEC1.as_bytes()), Err(IdentityError::Encoding(_))));
    assert!(matches!(Identity::from_pem(P384.as_bytes()), Err(IdentityError::NotP256)));
}

#[test]
fn the_private_half_cannot_be_printed() {
    let identity = Identity::from_pem(OPENSSL_P256.as_bytes()).unwrap();
    let secret = OPENSSL_P256.lines().nth(2).unwrap();
    let printed = format!("{identity:?}");
    assert!(printed.contains("(hidden)") && !printed.contains(secret), "{printed}");
}

#[test]
fn a_public_key_is_read_from_a_file_when_there_is_one_of_that_name() {
    let folder = Folder::new("public");
    let key = Identity::generate().unwrap().public_key().clone();
    let path = folder.0.join("peer.pub");
    fs::write(&path, format!("  {key}\n\n")).unwrap();
    assert_eq!(PublicKey::from_text_or_file(path.to_str().unwrap()).unwrap(), key);
    assert_eq!(PublicKey::from_text_or_file(&key.to_string()).unwrap(), key);

    fs::write(&path, "nonsense").unwrap();
    let error = PublicKey::from_text_or_file(path.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, PublicKeyError::File { .. }) && error.to_string().contains("peer.pub"), "{error}");
    fs::write(&path, vec![b'A'; 5000]).unwrap();
    assert!(matches!(PublicKey::from_text_or_file(path.to_str().unwrap()), Err(PublicKeyError::FileTooLong { .. })));
    let folder_itself = PublicKey::from_text_or_file(folder.0.to_str().unwrap()).unwrap_err();
    assert!(matches!(folder_itself, PublicKeyError::NotAFile { kind: "directory", .. }), "{folder_itself}");
    fs::write(&path, [0x80, 0xff, 0]).unwrap();
    let binary = PublicKey::from_text_or_file(path.to_str().unwrap()).unwrap_err();
    let PublicKeyError::File { source, .. } = &binary else { panic!("{binary:?}") };
    assert!(matches!(**source, PublicKeyError::Binary), "{source:?}");

    let absent = folder.0.join("absent.pub");
    let error = PublicKey::from_text_or_file(absent.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, PublicKeyError::NeitherFileNorKey { .. }), "{error}");
    assert!(error.to_string().contains("absent.pub"), "{error}");
}

#[test]
fn a_point_off_the_curve_is_no_public_key() {
    let mut der = Identity::generate().unwrap().public_key().as_der().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    assert!(matches!(PublicKey::from_der(&der), Err(PublicKeyError::NotOnCurve)));
}

/// RFC 5280 section 4.1, as far as the protocol asks for something.
#[test]
fn the_certificate_carries_what_the_protocol_asks_for() {
    let identity = Identity::generate().unwrap();
    let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
    let certificate = certificate::self_signed(&identity, now).unwrap();
    let parsed = ParsedCertificate::try_from(&certificate).unwrap();
    assert_eq!(parsed.subject_public_key_info().as_ref(), identity.public_key().as_der());
    let holds = |needle: &[u8]| certificate.windows(needle.len()).any(|window| window == needle);
    assert!(holds(format!("icx:{}", identity.public_key().fingerprint()).as_bytes()), "common name");
    assert!(holds(&[0xa0, 0x03, 0x02, 0x01, 0x02, 0x02, 0x01, 0x01]), "version 3, serial 1");
    // 2027-01-15T08:00:00Z less an hour, and 36500 days after that.
    assert!(holds(b"270115070000Z") && holds(b"21261222070000Z"), "validity");
    assert!(holds(&[0x03, 0x02, 0x07, 0x80]), "key usage digitalSignature alone");
    for purpose in [1u8, 2] {
        assert!(holds(&[0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 3, purpose]), "extended key usage {purpose}");
    }
}

/// A private key where a public one belongs is told apart, whole or cut off, and never repeated.
#[test]
fn a_private_key_in_place_of_a_public_one_is_not_shown() {
    let folder = Folder::new("private-text");
    let identity = Identity::from_pem(OPENSSL_P256.as_bytes()).unwrap();
    let pem = identity.to_pem();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    for text in [pem.as_str(), body.as_str(), &body[..40], pem.trim_start_matches('-')] {
        let error = PublicKey::from_text_or_file(text).unwrap_err();
        assert!(matches!(error, PublicKeyError::PrivateText), "{error:?}");
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(!shown.contains(&body[8..24]), "{shown}");
        }
    }

    // A part that cannot be told from anything else is not shown either: lines of the PEM, the bare number, its hexadecimal.
    let number = "8f2a55949038a9610f50fb23b5883af3b4ecb3c3bb792cbcefbd1542c692be63";
    let marked = format!("key={}", &body[64..104]);
    for text in [&body[64..128], &body[36..80], &body[70..94], number, &marked] {
        let error = PublicKey::from_text_or_file(text).unwrap_err();
        let secret = text.trim_start_matches("key=");
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(shown.contains("not shown") && !shown.contains(&secret[..12]), "{shown}");
        }
    }
    // What cannot be a key is: short texts, paths, and the beginning of a public key.
    let here = folder.0.join("a-long-name-without-a-dot-in-it");
    let public = &identity.public_key().to_string()[..60];
    for text in ["frankfurt", "/etc/icx/peers/frankfurt-gateway.pub", "./frankfurt", here.to_str().unwrap(), public] {
        let error = PublicKey::from_text_or_file(text).unwrap_err().to_string();
        assert!(error.contains(&text[..text.len().min(64)]), "{error}");
    }

    let path = folder.0.join("node.key");
    identity.write_new(&path, false).unwrap();
    let error = PublicKey::from_text_or_file(path.to_str().unwrap()).unwrap_err();
    let PublicKeyError::File { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**source, PublicKeyError::Private), "{source:?}");
    assert!(!error.to_string().contains(&body[8..24]), "{error}");

    // A public key begins like one, too, and is none.
    assert!(PublicKey::parse(&identity.public_key().to_string()).is_ok());
}

#[test]
fn what_is_no_file_is_neither_read_nor_written() {
    let folder = Folder::new("no-file");
    assert!(matches!(Identity::load(&folder.0), Err(IdentityError::NotAFile { .. })));
    assert!(matches!(Identity::load("/dev/null".as_ref()), Err(IdentityError::NotAFile { .. })));

    let identity = Identity::generate().unwrap();
    for force in [false, true] {
        assert!(matches!(identity.write_new(&folder.0, force), Err(WriteError::Directory { .. })));
        let orphan = folder.0.join("absent").join("node.key");
        assert!(matches!(identity.write_new(&orphan, force), Err(WriteError::NoDirectory { .. })));
        assert!(matches!(identity.write_new("".as_ref(), force), Err(WriteError::NoFileName { .. })));
    }
    assert!(folder.names().is_empty());
}
