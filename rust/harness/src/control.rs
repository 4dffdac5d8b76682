//! What the control plane reads: frames, messages, keys, certificates, and whole key-plane streams.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::LazyLock;

use icx_control::codec::{
    FRAME_HEADER_LEN, FrameError, KeyGrant, KeyRequest, MAX_PAYLOAD, Message, Refusal, ReleaseAck, SaOffer, Status,
    VniRelease, frame_len, kind_of, read_frame, write_frame,
};
use icx_control::kdf::{MasterKeys, RootSecret};
use icx_control::key_plane::{GrantError, GrantPolicy, ResponderSession, check_grant};
use icx_control::sa::{self, SaKeys};
use icx_control::spi::{AnnouncedSpis, SpiAllocator};
use icx_control::{Identity, PublicKey, Role, Suite, certificate as cert};
use icx_proto::{Spi, Vni};
use rustls::pki_types::CertificateDer;

/// The first frame of a stream, and each message that its payload may be.
pub fn frame(stream: &[u8]) {
    let expected = match stream {
        [high, low, rest @ ..] => {
            let len = usize::from(*high) << 8 | usize::from(*low);
            assert_eq!(frame_len([*high, *low]).is_ok(), len <= MAX_PAYLOAD);
            (len <= MAX_PAYLOAD && len <= rest.len()).then(|| rest.split_at(len))
        }
        _ => None,
    };
    assert_eq!(read_frame(stream).ok(), expected);
    let Some((payload, rest)) = expected else {
        assert!(matches!(read_frame(stream), Err(FrameError::TooLarge(_) | FrameError::UnexpectedEof)));
        return;
    };
    let mut again = Vec::new();
    assert_eq!(write_frame(&mut again, payload), Ok(()));
    assert_eq!([&again, rest].concat(), stream);
    message::<SaOffer>(payload);
    message::<KeyRequest>(payload);
    message::<KeyGrant>(payload);
    message::<VniRelease>(payload);
    message::<ReleaseAck>(payload);
}

/// Every payload with the right size, version and type is a message, and is written as it was read.
fn message<M: Message>(payload: &[u8]) {
    let expected = payload.len() == M::LEN && kind_of(payload) == Some((1, M::TYPE));
    match M::decode(payload) {
        Ok(message) => {
            assert!(expected);
            assert_eq!(message.encode(), payload);
            assert_eq!(message.encode_framed()[FRAME_HEADER_LEN..], *payload);
        }
        Err(_) => assert!(!expected),
    }
}

/// The text of a public key, and its DER.
pub fn public_key(input: &[u8]) {
    if let Ok(key) = PublicKey::from_der(input) {
        assert_eq!(key.as_der(), input);
        check_key(&key);
    }
    if let Ok(key) = core::str::from_utf8(input).map_err(|_| ()).and_then(|text| PublicKey::parse(text).map_err(|_| ()))
    {
        let digits: Vec<u8> = input.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
        assert_eq!(key.to_string().as_bytes(), digits, "there is one text for a key");
        check_key(&key);
    }
}

fn check_key(key: &PublicKey) {
    assert_eq!(PublicKey::parse(&key.to_string()).as_ref().ok(), Some(key));
    assert_eq!(PublicKey::from_der(key.as_der()).as_ref().ok(), Some(key));
    assert_eq!(key.fingerprint().len(), 43);
    assert!(key.role_against(key).is_err());
}

/// A private key file. What is read is written again as the same key.
pub fn identity_pem(pem: &[u8]) {
    match Identity::from_pem(pem) {
        Ok(identity) => {
            let again = Identity::from_pem(identity.to_pem().as_bytes()).expect("we wrote it");
            assert_eq!(again.public_key(), identity.public_key());
            check_key(identity.public_key());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The certificate of a peer.
pub fn certificate(der: &[u8]) {
    if let Ok(Some(key)) = cert::public_key(&CertificateDer::from(der)) {
        assert!(der.windows(key.as_der().len()).any(|window| window == key.as_der()));
        check_key(&key);
    }
}

fn masters() -> MasterKeys {
    let root = RootSecret::from_slice(&[7; 32]).expect("32 bytes");
    MasterKeys::derive(root).expect("a root secret derives")
}

static MASTERS: LazyLock<MasterKeys> = LazyLock::new(masters);

/// What the responder has decided: VNIs from 1 up, refused for addresses and VNIs of some kinds.
#[derive(Default)]
struct Policy {
    granted: BTreeSet<Vni>,
    rx_spis: BTreeSet<Spi>,
    tx_spis: BTreeSet<Spi>,
    last_keys: Option<SaKeys>,
    last: u32,
}

impl GrantPolicy for Policy {
    fn grant(&mut self, addr: IpAddr, rx_spi: Spi, keys: SaKeys) -> Result<Vni, Refusal> {
        if let IpAddr::V4(addr) = addr {
            match addr.octets()[0] {
                0 => return Err(Refusal::Rejected),
                1 => return Err(Refusal::VnisExhausted),
                _ => {}
            }
        }
        self.last += 1;
        let vni = Vni::new(self.last).expect("few");
        assert!(self.rx_spis.insert(rx_spi), "a receive SPI was used twice");
        assert!(self.tx_spis.insert(keys.tx_spi), "a transmit SPI, and so its nonces, was used twice");
        self.granted.insert(vni);
        self.last_keys = Some(keys);
        Ok(vni)
    }

    fn release(&mut self, vni: Vni) -> Result<(), Refusal> {
        if vni.get() % 4 == 3 {
            return Err(Refusal::Rejected);
        }
        assert!(self.granted.remove(&vni), "a VNI was released that is not granted");
        Ok(())
    }
}

/// Streams of one session, each behind its length of one byte: first as requests to a responder, then as replies.
pub fn key_plane(mut input: &[u8]) {
    let mut policy = Policy::default();
    // Near the end of the numbers, so that they run out.
    let spis = SpiAllocator::starting_at(Role::Responder, icx_control::spi::MAX_COUNTER - 5).expect("in range");
    let mut session = ResponderSession::new(masters(), spis);
    let mut theirs = AnnouncedSpis::default();
    let mut granted = AnnouncedSpis::default();
    while let [len, rest @ ..] = input {
        let (stream, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        input = rest;
        let before = policy.granted.clone();
        let reply = session.serve(stream, &mut policy);
        let kind =
            read_frame(stream).ok().and_then(|(payload, _)| kind_of(payload)).filter(|(version, _)| *version == 1);
        match kind {
            Some((_, KeyRequest::TYPE)) => {
                let reply = reply.expect("a request is answered");
                let (payload, _) = read_frame(&reply).expect("we wrote it");
                let grant = KeyGrant::decode(payload).expect("a grant");
                let request = KeyRequest::decode(read_frame(stream).expect("read before").0);
                if grant.status == Status::OK {
                    let request = request.expect("only a whole request is granted");
                    assert_eq!(policy.granted.len(), before.len() + 1);
                    let rx_spi = sa::check_peer_spi(Role::Responder, request.rx_spi).expect("only such are granted");
                    assert_eq!(theirs.announce(rx_spi), Ok(()));
                    let suite = Suite::try_from(request.suite).expect("only such are granted");
                    let got = check_grant(&MASTERS, suite, rx_spi, &mut granted, &reply).expect("a good grant");
                    assert!(policy.granted.contains(&got.vni));
                    let keys = policy.last_keys.take().expect("just granted");
                    assert!(keys.rx_key.same_as(&got.keys.tx_key) && keys.tx_key.same_as(&got.keys.rx_key));
                } else {
                    assert_eq!(grant, KeyGrant::refused(grant.status));
                    assert_eq!(policy.granted, before);
                }
            }
            Some((_, VniRelease::TYPE)) => {
                let reply = reply.expect("a release is answered");
                let ack = ReleaseAck::decode(read_frame(&reply).expect("we wrote it").0).expect("an answer");
                let gone = usize::from(ack.status == Status::OK);
                assert_eq!(policy.granted.len() + gone, before.len());
            }
            _ => {
                assert_eq!(reply, None);
                assert_eq!(policy.granted, before);
            }
        }
        as_reply(stream);
    }
    session.end(&mut policy);
    assert!(policy.granted.iter().all(|vni| vni.get() % 4 == 3), "the end of a session releases what it can");
}

fn as_reply(reply: &[u8]) {
    let rx_spi = Spi::new(1).expect("not zero");
    for suite in [Suite::Aes128Gcm, Suite::Aes256Gcm] {
        let mut announced = AnnouncedSpis::default();
        match check_grant(&MASTERS, suite, rx_spi, &mut announced, reply) {
            Ok(granted) => {
                assert!(granted.vni.get() != 0);
                assert_eq!(sa::check_peer_spi(Role::Initiator, granted.keys.tx_spi.get()), Ok(granted.keys.tx_spi));
                assert!(!granted.keys.rx_key.same_as(&granted.keys.tx_key));
                let again = check_grant(&MASTERS, suite, rx_spi, &mut announced, reply);
                assert!(matches!(again, Err(GrantError::Unusable { .. })), "an SPI is granted once");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
