//! Random inputs and random changes to committed ones. `ICX_TEST_SEED` repeats a run; a failure prints the seed.

mod corpus;

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use icx_harness::{Check, TARGETS};

/// Cases for each target, unless the time for it is over before; a model test has more in one case than a parser.
const CASES: u64 = 5_000;
const TIME: Duration = Duration::from_millis(1_200);
const LONGEST: usize = 1_500;

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// One of the committed inputs, changed in a few places.
    fn changed(&mut self, corpus: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].1.clone();
        for _ in 0..=self.below(6) {
            let at = self.below(input.len() + 1);
            let end = at + self.below(input.len() - at + 1).min(16);
            match self.below(7) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.next() as u8,
                2 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                3 => input.truncate(at),
                4 => drop(input.drain(at..end)),
                5 => {
                    let len = self.below(16);
                    let inserted = self.bytes(len);
                    drop(input.splice(at..at, inserted));
                }
                _ => {
                    let other = &corpus[self.below(corpus.len())].1;
                    let from = self.below(other.len() + 1);
                    drop(input.splice(at..end, other[from..].iter().take(64).copied()));
                }
            }
        }
        input
    }
}

fn seed() -> u64 {
    match std::env::var("ICX_TEST_SEED") {
        Ok(text) => text.parse().expect("ICX_TEST_SEED is a decimal number"),
        Err(_) => RandomState::new().hash_one(0),
    }
}

fn run(target: &str, check: Check) {
    let seed = seed();
    let corpus = corpus::of(target);
    let start = Instant::now();
    for case in 0..CASES {
        let mut random = Random(seed ^ case.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let input = if case % 4 == 0 {
            let len = random.below(LONGEST);
            random.bytes(len)
        } else {
            random.changed(&corpus)
        };
        let what = format!("ICX_TEST_SEED={seed}, case {case}");
        let _blame = corpus::Blame { target, what: &what, input: &input };
        check(&input);
        if start.elapsed() > TIME {
            break;
        }
    }
}

macro_rules! targets {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            let (target, check) = TARGETS.into_iter().find(|(name, _)| *name == stringify!($name)).unwrap();
            run(target, check);
        })+

        #[test]
        fn all_of_them_are_here() {
            assert_eq!([$(stringify!($name)),+], TARGETS.map(|(name, _)| name));
        }
    };
}

targets! {
    announced_spis authentic_packet certificate control_frame engine_frame engine_model ffi_batch ffi_handles ffi_json
    geneve geneve_header http_connect icmp_too_big identity_pem inner ip_prefix key_plane mss_clamp neighbor offload_cut offload_merge outer
    proxy_users public_key rate_limit replay_window route_table socks_address stack_packets
}
