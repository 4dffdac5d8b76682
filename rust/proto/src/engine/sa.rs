//! Security associations: the AEAD key of one direction, and what limits its use.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::counters::RxDrop;
use crate::id::Spi;
use crate::key::SaKey;
use crate::replay::ReplayWindow;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::Instant;

/// Bytes of an AES-GCM nonce: SPI (4) and counter (8).
pub(super) const NONCE_LEN: usize = 12;

/// An expanded AES-GCM key with its raw bytes, which later installs are compared with.
///
/// Both are erased when dropped: `SaKey` zeroizes itself, and the library frees its context through
/// `OPENSSL_free`, which overwrites the memory before it gives it back.
pub(super) struct AeadKey {
    cipher: LessSafeKey,
    bytes: SaKey,
}

/// Authentication failed, or the lengths do not belong to one sealed packet.
#[derive(Debug)]
pub(super) struct AeadError;

impl AeadKey {
    /// `Err` holds a length that belongs to no suite.
    pub(super) fn new(bytes: SaKey) -> Result<Self, usize> {
        let len = bytes.as_bytes().len();
        let algorithm = match len {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            _ => return Err(len),
        };
        let cipher = UnboundKey::new(algorithm, bytes.as_bytes()).map_err(|_| len)?;
        Ok(AeadKey { cipher: LessSafeKey::new(cipher), bytes })
    }

    pub(super) fn bytes(&self) -> &SaKey {
        &self.bytes
    }

    pub(super) fn same_as(&self, other: &SaKey) -> bool {
        self.bytes.same_as(other)
    }

    /// Seals `plain` into `sealed`, of the same length, and writes the 16 bytes of `tag`.
    #[inline]
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        plain: &[u8],
        sealed: &mut [u8],
        tag: &mut [u8],
    ) -> Result<(), AeadError> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.cipher.seal_out_of_place_scatter(nonce, Aad::from(aad), plain, sealed, &[], tag).map_err(|_| AeadError)
    }

    #[inline]
    pub(super) fn seal_in_place(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8],
    ) -> Result<(), AeadError> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.cipher.seal_in_place_scatter(nonce, Aad::from(aad), text, &[], tag).map_err(|_| AeadError)
    }

    /// Opens `sealed` into `plain`, of the same length.
    #[inline]
    pub(super) fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
        tag: &[u8],
        plain: &mut [u8],
    ) -> Result<(), AeadError> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.cipher.open_separate_gather(nonce, Aad::from(aad), sealed, tag, plain).map_err(|_| AeadError)
    }

    #[inline]
    pub(super) fn open_in_place(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8],
    ) -> Result<(), AeadError> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.cipher.open_in_place_separate_tag(nonce, Aad::from(aad), tag, text).map(|_| ()).map_err(|_| AeadError)
    }
}

/// Hands out each counter value of one transmit key once, from 1 to [`TxCounter::LIMIT`].
#[derive(Default)]
pub(super) struct TxCounter {
    /// The highest value handed out. At the limit, threads that race past the check push it beyond by what each of
    /// them asks for, once: far from wrapping.
    last: AtomicU64,
}

impl TxCounter {
    /// The last value ever sent under one key.
    pub(super) const LIMIT: u64 = 1 << 60;

    /// Takes `count` consecutive values; fewer, or none, where the limit comes first. Returns the first value and
    /// how many there are.
    #[inline]
    pub(super) fn take(&self, count: u16) -> (u64, u16) {
        // Which thread gets which value carries no other data along: the atomicity of the addition is all it takes.
        if self.last.load(Ordering::Relaxed) >= Self::LIMIT {
            return (0, 0);
        }
        let last = self.last.fetch_add(u64::from(count), Ordering::Relaxed);
        let left = Self::LIMIT.saturating_sub(last);
        (last + 1, if left < u64::from(count) { left as u16 } else { count })
    }

    /// Continues after `last`, at most the limit. `false`: that would be no step forward.
    pub(super) fn skip_to(&self, last: u64) -> bool {
        let last = last.min(Self::LIMIT);
        self.last.fetch_max(last, Ordering::Relaxed) < last
    }

    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed).min(Self::LIMIT)
    }
}

/// A transmit key.
pub(super) struct TxSa {
    pub(super) spi: Spi,
    pub(super) expires_at: Instant,
    pub(super) counter: TxCounter,
    /// `None` once it has expired and been erased; what remains says why nothing is sent.
    pub(super) key: Option<AeadKey>,
}

impl TxSa {
    /// The key, unless its time is over. At its expiry it still seals.
    #[inline]
    pub(super) fn usable(&self, now: Instant) -> Option<&AeadKey> {
        self.key.as_ref().filter(|_| now <= self.expires_at)
    }

    /// What is left of an expired association.
    pub(super) fn erased(&self) -> TxSa {
        let counter = TxCounter::default();
        counter.skip_to(self.counter.last());
        TxSa { spi: self.spi, expires_at: self.expires_at, counter, key: None }
    }
}

/// A transmit key that waits for the peer to be ready for it.
pub(super) struct PendingTx {
    pub(super) rx_spi: Spi,
    /// The association of `rx_spi`, once there is one.
    pub(super) rx: Option<Arc<RxSa>>,
    pub(super) deadline: Instant,
    pub(super) sa: Arc<TxSa>,
}

impl PendingTx {
    #[inline]
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        now >= self.deadline || self.rx.as_ref().is_some_and(|rx| !rx.is_unproven())
    }
}

/// A receive key with its replay window.
pub(super) struct RxSa {
    pub(super) spi: Spi,
    /// `None` once it has expired and been erased.
    pub(super) key: Option<AeadKey>,
    pub(super) window: ReplayWindow,
    /// Orders the installs of one engine.
    seq: AtomicU64,
    /// Nanoseconds; the last instants at which the key opens, by itself and since it was superseded.
    expires_at: AtomicU64,
    grace_ends: AtomicU64,
    /// Nothing has opened under it yet.
    unproven: AtomicBool,
    /// A packet has been told that it has expired.
    reported: AtomicBool,
}

impl RxSa {
    pub(super) fn new(spi: Spi, key: AeadKey, seq: u64, expires_at: Instant) -> Self {
        RxSa {
            spi,
            key: Some(key),
            window: ReplayWindow::new(),
            seq: AtomicU64::new(seq),
            expires_at: AtomicU64::new(expires_at.as_nanos()),
            grace_ends: AtomicU64::new(u64::MAX),
            unproven: AtomicBool::new(true),
            reported: AtomicBool::new(false),
        }
    }

    /// What is left of an expired association.
    pub(super) fn erased(&self) -> RxSa {
        RxSa {
            spi: self.spi,
            key: None,
            window: ReplayWindow::new(),
            seq: AtomicU64::new(self.seq()),
            expires_at: AtomicU64::new(self.valid_until().as_nanos()),
            grace_ends: AtomicU64::new(u64::MAX),
            unproven: AtomicBool::new(self.is_unproven()),
            reported: AtomicBool::new(false),
        }
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq.load(Ordering::Relaxed)
    }

    /// The last instant at which it opens.
    #[inline]
    pub(super) fn valid_until(&self) -> Instant {
        let expires_at = self.expires_at.load(Ordering::Relaxed);
        Instant::from_nanos(expires_at.min(self.grace_ends.load(Ordering::Relaxed)))
    }

    pub(super) fn opens_at(&self, now: Instant) -> bool {
        self.key.is_some() && now <= self.valid_until()
    }

    /// The key, unless its time is over. The first packet that comes too late hears that it has expired; for those
    /// after it there is no key.
    #[inline]
    pub(super) fn usable(&self, now: Instant) -> Result<&AeadKey, RxDrop> {
        match &self.key {
            Some(key) if now <= self.valid_until() => Ok(key),
            _ if self.reported.swap(true, Ordering::Relaxed) => Err(RxDrop::NoKey),
            _ => Err(RxDrop::ExpiredKey),
        }
    }

    pub(super) fn is_reported(&self) -> bool {
        self.reported.load(Ordering::Relaxed)
    }

    /// The end of its new time has yet to be told.
    pub(super) fn set_expiry(&self, expires_at: Instant) {
        self.expires_at.store(expires_at.as_nanos(), Ordering::Relaxed);
        self.reported.store(false, Ordering::Relaxed);
    }

    /// Makes it the newest again, as if it had just been installed; the replay window stays.
    pub(super) fn renew(&self, seq: u64, expires_at: Instant) {
        self.seq.store(seq, Ordering::Relaxed);
        self.set_expiry(expires_at);
        self.grace_ends.store(u64::MAX, Ordering::Relaxed);
    }

    /// A newer key has taken over. Only the first call counts.
    pub(super) fn supersede(&self, grace_ends: Instant) {
        self.grace_ends.fetch_min(grace_ends.as_nanos(), Ordering::Relaxed);
    }

    pub(super) fn is_superseded(&self) -> bool {
        self.grace_ends.load(Ordering::Relaxed) != u64::MAX
    }

    #[inline]
    pub(super) fn is_unproven(&self) -> bool {
        self.unproven.load(Ordering::Relaxed)
    }

    /// `true` for the one caller that finds it unproven.
    pub(super) fn prove(&self) -> bool {
        self.unproven.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn counters_run_from_one_to_the_limit_and_stop() {
        let counter = TxCounter::default();
        assert_eq!(counter.take(1), (1, 1));
        assert_eq!(counter.take(3), (2, 3));
        assert!(!counter.skip_to(4), "4 is used already");
        assert!(counter.skip_to(TxCounter::LIMIT - 3));
        assert!(!counter.skip_to(7), "never backwards");
        assert_eq!(counter.take(2), (TxCounter::LIMIT - 2, 2));
        assert_eq!(counter.take(5), (TxCounter::LIMIT, 1), "the limit itself is the last value");
        for _ in 0..3 {
            assert_eq!(counter.take(5).1, 0);
        }
        assert_eq!(counter.last(), TxCounter::LIMIT);
        assert!(!counter.skip_to(u64::MAX), "no value beyond the limit can be asked for");
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn threads_never_share_a_counter_value_even_at_the_limit() {
        loom::model(|| {
            let counter = Arc::new(TxCounter { last: AtomicU64::new(TxCounter::LIMIT - 3) });
            let takers: Vec<_> = [2, 1]
                .map(|count| {
                    let counter = counter.clone();
                    thread::spawn(move || [counter.take(count), counter.take(count)])
                })
                .into_iter()
                .collect();
            let mut seen: Vec<u64> = takers
                .into_iter()
                .flat_map(|t| t.join().unwrap())
                .flat_map(|(first, n)| first..first + u64::from(n))
                .collect();
            seen.sort_unstable();
            assert_eq!(seen, [TxCounter::LIMIT - 2, TxCounter::LIMIT - 1, TxCounter::LIMIT]);
        });
    }

    #[test]
    fn a_skip_never_lets_a_value_come_twice() {
        loom::model(|| {
            let counter = Arc::new(TxCounter { last: AtomicU64::new(0) });
            let taker = {
                let counter = counter.clone();
                thread::spawn(move || [counter.take(1).0, counter.take(1).0])
            };
            let skipped = counter.skip_to(1);
            let mine = counter.take(1).0;
            let theirs = taker.join().unwrap();
            assert!(mine != theirs[0] && mine != theirs[1] && theirs[0] < theirs[1]);
            assert!(!skipped || mine > 1 && theirs[0] > 1);
        });
    }
}
