//! The recorded answers of `kdf.json` and `control_frames.json`. Where ours goes another way, the case says why.

mod common;

use std::net::IpAddr;

use common::Case;
use icx_control::codec::{
    self, DecodeError, FrameError, KeyGrant, KeyRequest, Message, Refusal, ReleaseAck, SaOffer, Status, VniRelease,
};
use icx_control::kdf::{self, MasterKey, MasterKeys, RootSecret};
use icx_control::key_plane::{self, GrantError, GrantFlaw, GrantPolicy, ResponderSession};
use icx_control::sa::{self, PairError, SaKeys};
use icx_control::spi::{AnnouncedSpis, MasterIndex, SpiAllocator, allocator_role, make_spi, master_index};
use icx_control::{PublicKey, Role, Suite};
use icx_proto::{Spi, Vni};
use serde_json::{Value, json};

#[test]
fn kdf() {
    for case in common::cases("kdf.json") {
        assert!(!case.quirk || case.op == "pair_sas", "{case}: a quirk that no test decides on");
        match case.op.as_str() {
            "aes_cmac" => aes_cmac(&case),
            "derive_sa_key" => derive_sa_key(&case),
            "derive_master_keys" => derive_master_keys(&case),
            "derive_sa" => derive_sa(&case),
            "make_spi" => make(&case),
            "split_spi" => split(&case),
            "allocate" => allocate(&case),
            "pair_sas" => pair_sas(&case),
            "canonical_initiator" => canonical_initiator(&case),
            "parse_peer_key" => parse_peer_key(&case),
            other => panic!("{case}: unknown op {other}"),
        }
    }
}

#[test]
fn control_frames() {
    for case in common::cases("control_frames.json") {
        assert!(!case.quirk || case.op == "responder_serve", "{case}: a quirk that no test decides on");
        match (case.op.as_str(), case.kind.as_str()) {
            ("encode", "sa_offer") => encode(&case, sa_offer(&case)),
            ("encode", "key_request") => encode(&case, key_request(&case)),
            ("encode", "key_grant") => encode(&case, key_grant(&case)),
            ("encode", "vni_release") => encode(&case, VniRelease { vni: field(&case, "vni") }),
            ("encode", "release_ack") => encode(&case, ReleaseAck { status: Status(field(&case, "status")) }),
            ("decode", "sa_offer") => decode(&case, sa_offer),
            ("decode", "key_request") => decode(&case, |case| key_request_with(case, "decoded_addr")),
            ("decode", "key_grant") => decode(&case, key_grant),
            ("decode", "vni_release") => decode(&case, |case| VniRelease { vni: field(case, "vni") }),
            ("decode", "release_ack") => decode(&case, |case| ReleaseAck { status: Status(field(case, "status")) }),
            ("read_frame", _) => read_frame(&case),
            ("write_frame", _) => write_frame(&case),
            ("status_meaning", _) => status_meaning(&case),
            ("initiator_request", _) => initiator_request(&case),
            ("responder_serve", _) => responder_serve(&case),
            ("negotiate", _) => negotiate(&case),
            other => panic!("{case}: unknown {other:?}"),
        }
    }
}

// ---- kdf.json ----

fn aes_cmac(case: &Case) {
    let tag = kdf::aes_cmac(&case.bytes("key"), &case.bytes("message"));
    assert_eq!(tag.ok().map(Vec::from), case.find_bytes("tag"), "{case}");
    assert_eq!(case.is_ok(), case.fields.contains_key("tag"), "{case}");
}

fn derive_sa_key(case: &Case) {
    let derived = (|| {
        let suite = Suite::try_from(case.get::<u8>("suite")).ok()?;
        let master = MasterKey::from_slice(&case.bytes("master_key")).ok()?;
        master.sa_key(case.get("spi"), suite).ok()
    })();
    assert_eq!(derived.is_some(), case.is_ok(), "{case}");
    assert_eq!(derived.map(|key| key.as_bytes().to_vec()), case.find_bytes("key"), "{case}");
}

fn derive_master_keys(case: &Case) {
    let root = case.bytes("root_secret");
    let masters = RootSecret::from_slice(&root).and_then(MasterKeys::derive);
    assert_eq!(masters.is_ok(), case.is_ok(), "{case}");
    if let Ok(masters) = masters {
        let keys = [MasterIndex::Zero, MasterIndex::One].map(|index| hex::encode(masters.get(index).as_bytes()));
        assert_eq!(keys.to_vec(), case.get::<Vec<String>>("master_keys"), "{case}");
    }
}

fn masters_of(case: &Case) -> MasterKeys {
    MasterKeys::derive(RootSecret::from_slice(&case.bytes("root_secret")).unwrap()).unwrap()
}

fn derive_sa(case: &Case) {
    let masters = masters_of(case);
    let derived = (|| {
        let suite = Suite::try_from(case.get::<u8>("suite")).ok()?;
        masters.sa_key(Spi::new(case.get("spi"))?, suite).ok()
    })();
    assert_eq!(derived.is_some(), case.is_ok(), "{case}");
    assert_eq!(derived.map(|key| key.as_bytes().to_vec()), case.find_bytes("key"), "{case}");
    if let Some(index) = case.find::<u8>("master_key_index") {
        assert_eq!(master_index(case.get("spi")), index_of(index.into()).unwrap(), "{case}");
    }
}

fn index_of(number: i64) -> Option<MasterIndex> {
    match number {
        0 => Some(MasterIndex::Zero),
        1 => Some(MasterIndex::One),
        _ => None,
    }
}

fn role_of(number: u8) -> Option<Role> {
    match number {
        0 => Some(Role::Initiator),
        1 => Some(Role::Responder),
        _ => None,
    }
}

fn make(case: &Case) {
    let made = (|| {
        let (index, role) = (index_of(case.get("master_key_index"))?, role_of(case.get("role"))?);
        make_spi(index, role, case.get("counter")).ok()
    })();
    assert_eq!(made.is_some(), case.is_ok(), "{case}");
    assert_eq!(made.map(Spi::get), case.find("spi"), "{case}");
}

fn split(case: &Case) {
    let spi: u32 = case.get("spi");
    assert_eq!(Some(master_index(spi)), index_of(case.get("master_key_index")), "{case}");
    assert_eq!(Some(allocator_role(spi)), role_of(case.get("role")), "{case}");
}

fn allocate(case: &Case) {
    let mut spis = SpiAllocator::starting_at(role_of(case.get("role")).unwrap(), 1).unwrap();
    let indexes: Vec<i64> = case.get("indexes");
    let allocated: Vec<u32> =
        indexes.iter().map(|&index| spis.allocate(index_of(index).unwrap()).unwrap().get()).collect();
    assert_eq!(allocated, case.get::<Vec<u32>>("spis"), "{case}");
}

fn pair_sas(case: &Case) {
    let role = role_of(case.get("role")).unwrap();
    let suite = Suite::try_from(case.get::<u8>("suite")).unwrap();
    let rx_spi = Spi::new(case.get("local_rx_spi")).unwrap();
    let peer_spi: u32 = case.get("peer_rx_spi");
    let paired = sa::pair(&masters_of(case), role, suite, rx_spi, case.get("peer_suite"), peer_spi);
    if case.quirk {
        // Recorded as accepted. Counters start at 1, so a zero counter is nobody's SPI: refused (protocol.md section 4).
        assert_eq!(peer_spi, 0x4000_0000, "{case}: a quirk that no test decides on");
        assert_eq!(paired.unwrap_err(), PairError::ReservedSpi(peer_spi), "{case}");
        return;
    }
    match paired {
        Ok(keys) => {
            assert!(case.is_ok(), "{case}");
            assert_eq!(keys.tx_spi.get(), peer_spi, "{case}");
            assert_eq!(keys.rx_key.as_bytes(), case.bytes("rx_key"), "{case}");
            assert_eq!(keys.tx_key.as_bytes(), case.bytes("tx_key"), "{case}");
        }
        Err(error) => {
            assert!(!case.is_ok(), "{case}: {error}");
            assert_eq!(pair_word(&error), case.get::<String>("error"), "{case}");
        }
    }
}

fn pair_word(error: &PairError) -> &'static str {
    match error {
        PairError::Suite { .. } => "suite_mismatch",
        PairError::InactiveMasterKey(_) => "inactive_master_key",
        PairError::RoleCollision(_) => "role_collision",
        PairError::ReservedSpi(_) => "reserved_spi",
        other => panic!("{other}"),
    }
}

fn canonical_initiator(case: &Case) {
    let local = PublicKey::parse(&case.get::<String>("local_spki_b64")).unwrap();
    let peer = PublicKey::parse(&case.get::<String>("peer_spki_b64")).unwrap();
    let role = local.role_against(&peer);
    assert_eq!(role.is_ok(), case.is_ok(), "{case}");
    if let Ok(role) = role {
        assert_eq!(role == Role::Initiator, case.get::<bool>("local_is_initiator"), "{case}");
    }
}

fn parse_peer_key(case: &Case) {
    let key = PublicKey::parse(&case.get::<String>("input"));
    assert_eq!(key.is_ok(), case.is_ok(), "{case}: {key:?}");
    assert_eq!(key.ok().map(|key| key.to_string()), case.find("spki_b64"), "{case}");
}

// ---- control_frames.json: messages and frames ----

fn field<T: serde::de::DeserializeOwned>(case: &Case, key: &str) -> T {
    let fields: Value = case.get("fields");
    serde_json::from_value(fields[key].clone()).unwrap_or_else(|e| panic!("{case}: {key}: {e}"))
}

fn sa_offer(case: &Case) -> SaOffer {
    SaOffer { suite: field(case, "suite"), rx_spi: field(case, "rx_spi") }
}

fn key_request(case: &Case) -> KeyRequest {
    key_request_with(case, "addr")
}

fn key_request_with(case: &Case, addr: &str) -> KeyRequest {
    let text: String = field(case, addr);
    // The zone of a scoped address names an interface of one host; the wire has no room for it.
    let addr: IpAddr = text.split('%').next().unwrap().parse().unwrap();
    KeyRequest { suite: field(case, "suite"), rx_spi: field(case, "rx_spi"), addr }
}

fn key_grant(case: &Case) -> KeyGrant {
    KeyGrant {
        status: Status(field(case, "status")),
        suite: field(case, "suite"),
        rx_spi: field(case, "rx_spi"),
        vni: field(case, "vni"),
    }
}

fn encode<M: Message + std::fmt::Debug + PartialEq>(case: &Case, message: M) {
    assert_eq!(message.encode(), case.bytes("payload"), "{case}");
    assert_eq!(message.encode_framed(), case.bytes("framed"), "{case}");
    assert_eq!(M::decode(&message.encode()).unwrap().encode(), case.bytes("payload"), "{case}");
    if case.kind == "key_request" {
        let seen: String = field(case, "decoded_addr");
        assert_eq!(KeyRequest::decode(&message.encode()).unwrap().addr, seen.parse::<IpAddr>().unwrap(), "{case}");
    }
}

fn decode<M: Message + std::fmt::Debug + PartialEq>(case: &Case, expected: impl Fn(&Case) -> M) {
    match (M::decode(&case.bytes("payload")), case.find::<String>("error")) {
        (Ok(message), None) => assert_eq!(message, expected(case), "{case}"),
        (Err(error), Some(word)) => assert_eq!(decode_word(&error), word, "{case}"),
        (outcome, word) => panic!("{case}: {outcome:?}, recorded {word:?}"),
    }
}

fn decode_word(error: &DecodeError) -> &'static str {
    match error {
        DecodeError::WrongSize { .. } => "wrong_size",
        DecodeError::ProtocolVersion(_) => "bad_protocol_version",
        DecodeError::WrongType { .. } => "wrong_type",
        other => panic!("{other}"),
    }
}

fn read_frame(case: &Case) {
    let input = case.find_bytes("input").unwrap_or_else(|| {
        let mut input = case.bytes("input_prefix");
        let fill = case.bytes("input_fill");
        let len: usize = case.get("input_len");
        input.extend(fill.iter().cycle().copied().take(len - input.len()));
        input
    });
    match codec::read_frame(&input) {
        Ok((payload, rest)) => {
            assert!(case.is_ok(), "{case}");
            assert_eq!(rest.len(), case.get::<usize>("left"), "{case}");
            match case.find_bytes("payload") {
                Some(expected) => assert_eq!(payload, expected, "{case}"),
                None => assert_eq!(payload, vec![case.bytes("input_fill")[0]; case.get("payload_len")], "{case}"),
            }
        }
        Err(error) => {
            let word = match error {
                FrameError::TooLarge(_) => "too_large",
                FrameError::UnexpectedEof => "unexpected_eof",
                other => panic!("{case}: {other}"),
            };
            assert_eq!(word, case.get::<String>("error"), "{case}");
        }
    }
}

fn write_frame(case: &Case) {
    let payload = vec![0x5a; case.get("payload_len")];
    let mut out = Vec::new();
    assert_eq!(codec::write_frame(&mut out, &payload).is_ok(), case.is_ok(), "{case}");
    if case.is_ok() {
        assert_eq!(codec::read_frame(&out), Ok((&payload[..], &[][..])), "{case}");
    } else {
        assert!(out.is_empty(), "{case}: a refused frame leaves nothing behind");
    }
}

fn refusal_word(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Rejected => "rejected",
        Refusal::VnisExhausted => "vni_exhausted",
        Refusal::SpisExhausted => "spi_exhausted",
        other => panic!("{other}"),
    }
}

fn status_meaning(case: &Case) {
    let refusal = Status(case.get("status")).refusal();
    assert_eq!(refusal.map_or("ok", refusal_word), case.get::<String>("meaning"), "{case}");
}

// ---- control_frames.json: exchanges ----

/// Any root secret does: what these cases compare does not depend on it.
fn some_masters() -> MasterKeys {
    MasterKeys::derive(RootSecret::from_slice(&[7; kdf::ROOT_SECRET_LEN]).unwrap()).unwrap()
}

fn initiator_request(case: &Case) {
    let suite = Suite::try_from(case.get::<u8>("suite")).unwrap();
    let rx_spi = SpiAllocator::starting_at(Role::Initiator, 1).unwrap().allocate(MasterIndex::Zero).unwrap();
    let addr = case.get::<String>("addr").parse().unwrap();
    let request = KeyRequest { suite: suite.number(), rx_spi: rx_spi.get(), addr };
    assert_eq!(request.encode(), case.bytes("request_payload"), "{case}");

    let reply = case.bytes("reply_stream");
    let outcome = key_plane::check_grant(&some_masters(), suite, rx_spi, &mut AnnouncedSpis::default(), &reply);
    match outcome {
        Ok(granted) => {
            assert!(case.is_ok(), "{case}");
            assert_eq!(granted.vni.get(), case.get::<u32>("vni"), "{case}");
            assert_eq!(granted.rx_spi.get(), case.get::<u32>("rx_spi"), "{case}");
            assert_eq!(granted.keys.tx_spi.get(), case.get::<u32>("tx_spi"), "{case}");
        }
        Err(error) => {
            let (word, released) = match &error {
                GrantError::Read(_) => ("read_failed", vec![]),
                GrantError::Decode(error) => (decode_word(error), vec![]),
                GrantError::Refused(refusal) => (refusal_word(*refusal), vec![]),
                GrantError::Unusable { vni, flaw: GrantFlaw::VniOutOfRange } => ("vni_out_of_range", vec![*vni]),
                GrantError::Unusable { vni, flaw: GrantFlaw::Pair(error) } => (pair_word(error), vec![*vni]),
                other => panic!("{case}: {other}"),
            };
            assert_eq!(word, case.get::<String>("error"), "{case}");
            assert_eq!(released, case.find::<Vec<u32>>("released_afterwards").unwrap_or_default(), "{case}");
        }
    }
}

/// Grants as a case says, and notes what it is asked.
struct RecordedPolicy {
    answer: Result<Vni, Refusal>,
    release_fails: bool,
    addresses: Vec<String>,
    released: Vec<u32>,
}

impl GrantPolicy for RecordedPolicy {
    fn grant(&mut self, addr: IpAddr, rx_spi: Spi, keys: SaKeys) -> Result<Vni, Refusal> {
        assert_eq!(allocator_role(rx_spi.get()), Role::Responder);
        assert_eq!(allocator_role(keys.tx_spi.get()), Role::Initiator);
        self.addresses.push(addr.to_string());
        self.answer
    }

    fn release(&mut self, vni: Vni) -> Result<(), Refusal> {
        self.released.push(vni.get());
        if self.release_fails { Err(Refusal::Rejected) } else { Ok(()) }
    }
}

fn responder_serve(case: &Case) {
    let answer = match case.get::<String>("granter_error").as_str() {
        // A VNI above 24 bits is no `Vni`, so a policy that came to one can only refuse.
        "" => Vni::new(case.get("granter_vni")).map_err(|_| Refusal::Rejected),
        "vni_exhausted" => Err(Refusal::VnisExhausted),
        _ => Err(Refusal::Rejected),
    };
    let release_fails = case.get("release_fails");
    let mut policy = RecordedPolicy { answer, release_fails, addresses: vec![], released: vec![] };
    let spis = SpiAllocator::starting_at(Role::Responder, 1).unwrap();
    let mut session = ResponderSession::new(some_masters(), spis);

    let streams: Vec<Value> = case.get("streams");
    let mut replies = Vec::new();
    for stream in &streams {
        let mut request = hex::decode(stream["request_stream"].as_str().unwrap()).unwrap();
        if stream["note"] == json!("followed by 4097 bytes 5a") {
            request.extend([0x5a; 4097]);
        } else {
            assert!(stream.get("note").is_none(), "{case}: a note that no test reads");
        }
        replies.push(session.serve(&request, &mut policy).map(hex::encode).unwrap_or_default());
    }
    let released = std::mem::take(&mut policy.released);
    session.end(&mut policy);
    let released_at_end = policy.released;

    let mut expected_replies: Vec<String> =
        streams.iter().map(|stream| stream["reply_stream"].as_str().unwrap().to_owned()).collect();
    let mut expected_addresses: Vec<String> = case.get("addresses_seen");
    let mut expected_released: Vec<u32> = case.get("released");
    let mut expected_at_end: Vec<u32> = case.get("released_at_teardown");
    match (case.quirk, case.name.as_str()) {
        (false, _) => {}
        // protocol.md 2.7: when a session ends, everything granted on it is released. A release that failed left it granted.
        (true, "release fails on the responder: not retried at teardown") => expected_at_end = vec![7],
        // The number is refused before anything is allocated, so there is nothing to release.
        (true, "granter returns VNI above 24 bits") => expected_released = vec![],
        // protocol.md section 4: two VNIs would share a transmit key and its nonces, so the second request is refused.
        (true, "the same SPI announced twice: both granted") => {
            expected_replies[1] = hex::encode(KeyGrant::refused(Status::REJECTED).encode_framed());
            expected_addresses.truncate(1);
        }
        (true, other) => panic!("{other}: a quirk that no test decides on"),
    }
    assert_eq!(replies, expected_replies, "{case}");
    assert_eq!(policy.addresses, expected_addresses, "{case}");
    assert_eq!(released, expected_released, "{case}");
    assert_eq!(released_at_end, expected_at_end, "{case}");
}

/// Both ends of a session, from the first exchange to the round of the case.
fn negotiate(case: &Case) {
    let suite = Suite::try_from(case.get::<u8>("suite")).unwrap();
    let round: usize = case.name.rsplit(' ').next().unwrap().parse().unwrap();
    let masters = some_masters();
    let mut spis = [Role::Initiator, Role::Responder].map(|role| SpiAllocator::starting_at(role, 1).unwrap());
    for current in 1..=round {
        let [initiator, responder] = &mut spis;
        let offer = initiator.allocate(MasterIndex::Zero).unwrap();
        let answer = responder.allocate(MasterIndex::Zero).unwrap();
        let initiated = sa::pair(&masters, Role::Initiator, suite, offer, suite.number(), answer.get()).unwrap();
        let responded = sa::pair(&masters, Role::Responder, suite, answer, suite.number(), offer.get()).unwrap();
        assert!(initiated.tx_key.same_as(&responded.rx_key) && initiated.rx_key.same_as(&responded.tx_key), "{case}");
        if current == round {
            let ends = [("initiator", offer, initiated.tx_spi), ("responder", answer, responded.tx_spi)];
            for (end, rx, tx) in ends {
                assert_eq!(case.get::<Value>(end), json!({"rx_spi": rx.get(), "tx_spi": tx.get()}), "{case}: {end}");
            }
        }
    }
}
