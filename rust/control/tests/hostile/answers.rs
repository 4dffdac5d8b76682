//! Answers that are no handshakes. Each test has the process to itself, so that it can measure.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use icx_control::{ControlEventKind, DialFailure, Identity};

use crate::floods::junk;
use crate::memory::{Memory, alone};
use crate::node::{Node, SOON, identities};
use crate::raw;
use crate::responders::{Answerer, PATIENCE, dial_failure, listener, padded_certificate};

/// What a Retry packet asks to have repeated.
const TOKEN: &[u8] = b"token";

/// Destination and source connection ID of a long header (RFC 9000 section 17.2).
fn connection_ids(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let (dcid_len, rest) = datagram.get(5..)?.split_first()?;
    let (dcid, rest) = rest.split_at_checked(usize::from(*dcid_len))?;
    let (scid_len, rest) = rest.split_first()?;
    Some((dcid, rest.get(..usize::from(*scid_len))?))
}

/// A Retry packet with a valid integrity tag (RFC 9000 section 17.2.5, RFC 9001 section 5.8).
fn retry(hello: &[u8], scid: &[u8]) -> Option<Vec<u8>> {
    const KEY: [u8; 16] = *b"\xbe\x0c\x69\x0b\x9f\x66\x57\x5a\x1d\x76\x6b\x54\xe3\x68\xc8\x4e";
    const NONCE: [u8; 12] = *b"\x46\x15\x99\xd3\x5d\x63\x2b\xf2\x23\x98\x25\xbb";
    let (original, client) = connection_ids(hello)?;
    let mut packet = vec![0xf0, 0, 0, 0, 1, client.len() as u8];
    packet.extend_from_slice(client);
    packet.push(scid.len() as u8);
    packet.extend_from_slice(scid);
    packet.extend_from_slice(TOKEN);
    let pseudo = [&[original.len() as u8], original, &packet].concat();
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &KEY).unwrap());
    let mut nothing = [];
    let nonce = Nonce::assume_unique_for_key(NONCE);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(pseudo), &mut nothing).unwrap();
    packet.extend_from_slice(tag.as_ref());
    Some(packet)
}

/// A Version Negotiation packet (RFC 9000 section 17.2.1).
fn version_negotiation(hello: &[u8], versions: &[u32]) -> Option<Vec<u8>> {
    let (original, client) = connection_ids(hello)?;
    let mut packet = vec![0x80, 0, 0, 0, 0, client.len() as u8];
    packet.extend_from_slice(client);
    packet.push(original.len() as u8);
    packet.extend_from_slice(original);
    packet.extend(versions.iter().flat_map(|version| version.to_be_bytes()));
    Some(packet)
}

#[test]
fn no_answer_of_a_responder_makes_a_dial_hang_or_grow() {
    let _alone = alone();
    let (a, b) = identities();
    let node = Node::start(&a, &b);
    let junk = junk();
    let scid = [7; 8];
    let mut number = 0u64;
    let followed = Arc::new(AtomicUsize::new(0));
    let answerers = [
        ("junk", DialFailure::Timeout, Answerer::start(move |_| junk.clone())),
        (
            "a Retry for everything",
            DialFailure::Timeout,
            Answerer::start({
                let followed = Arc::clone(&followed);
                move |hello| {
                    // The token comes back in the clear, once for each dial.
                    followed.fetch_add(usize::from(hello.windows(5).any(|bytes| bytes == TOKEN)), Ordering::Relaxed);
                    number += 1;
                    (0..20).filter_map(|n| retry(hello, &(number * 20 + n).to_be_bytes())).collect()
                }
            }),
        ),
        (
            "a Retry with a wrong tag",
            DialFailure::Timeout,
            Answerer::start(move |hello| {
                let mut packet = retry(hello, &scid).unwrap_or_default();
                if let Some(last) = packet.last_mut() {
                    *last ^= 1;
                }
                vec![packet]
            }),
        ),
        (
            "other versions only",
            DialFailure::Protocol,
            Answerer::start(|hello| version_negotiation(hello, &[2, 0xff00_001d, 0xbaba_baba]).into_iter().collect()),
        ),
        (
            "version 1 among others, again and again",
            DialFailure::Timeout,
            Answerer::start(|hello| {
                std::iter::repeat_n(version_negotiation(hello, &[1, 2]).unwrap_or_default(), 50).collect()
            }),
        ),
        // Sent back in time, they make the endpoint meet itself.
        ("its own words", DialFailure::Auth, Answerer::start(|hello| vec![hello.to_vec(); 20])),
        (
            "its own words with the IDs exchanged",
            DialFailure::Timeout,
            Answerer::start(|hello| {
                let Some((dcid, scid)) = connection_ids(hello) else { return Vec::new() };
                let ids = [&[scid.len() as u8], scid, &[dcid.len() as u8], dcid].concat();
                vec![[&hello[..5], &ids, &hello[5 + ids.len()..]].concat(); 20]
            }),
        ),
        (
            "what looks like a reset",
            DialFailure::Timeout,
            Answerer::start(|hello| {
                (21..100).map(|len| [&[0x40 | hello[9] & 0x3f], &hello[10..][..len - 1]].concat()).collect()
            }),
        ),
        ("the largest datagrams there are", DialFailure::Timeout, Answerer::start(|_| vec![vec![0x5a; 65_000]; 5])),
    ];
    // Twice, so that what is kept once is there before it is measured.
    for (_, _, answerer) in &answerers {
        dial_failure(&node, answerer.addr);
    }
    let before = Memory::now();
    for (name, expected, answerer) in &answerers {
        let (kind, reason, after) = dial_failure(&node, answerer.addr);
        println!("{name}: {kind} after {after:?}: {reason}");
        assert!(kind == *expected || kind == DialFailure::Timeout, "{name}: {kind}: {reason}");
        assert!(after < 2 * PATIENCE + Duration::from_secs(2), "{name}: {after:?}");
    }
    assert!(followed.load(Ordering::Relaxed) > 0, "the first Retry of a dial is followed");
    before.assert_growth("nine strange responders", 2);
    drop(answerers);

    let peer = Node::start(&b, &a);
    node.dial(peer.addr());
    node.exchange();
}

#[test]
fn certificates_of_any_size_and_number_are_refused_in_time() {
    let _alone = alone();
    let (a, b) = identities();
    let node = Node::start(&a, &b);
    let mut many = raw::chain(&Identity::generate().unwrap());
    many.0.extend(vec![many.0[0].clone(); 100]);
    let none = (vec![vec![0x30, 0x03, 1, 1, 0].into()], raw::chain(&b).1);
    let stolen = (raw::chain(&b).0, raw::chain(&Identity::generate().unwrap()).1);
    let cases = [
        ("8 KiB", padded_certificate(8 << 10)),
        ("60 KiB", padded_certificate(60 << 10)),
        ("1 MiB", padded_certificate(1 << 20)),
        ("a chain of 101", many),
        ("no certificate at all", none),
        ("the right certificate without its key", stolen),
    ];
    let before = Memory::now();
    for (name, chain) in cases {
        let (addr, _listening) = listener(chain);
        let start = Instant::now();
        node.endpoint.dial(node.peer, addr, SOON).unwrap();
        match node.next() {
            ControlEventKind::DialFailed { kind, reason } => {
                println!("{name}: {kind}: {reason}");
                assert!(matches!(kind, DialFailure::Auth | DialFailure::Protocol), "{name}: {kind}: {reason}");
                assert!(reason.len() < 400, "{name}: {reason}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert!(start.elapsed() < SOON, "{name}: {:?}", start.elapsed());
    }
    before.assert_growth("certificates of any size", 16);
}
