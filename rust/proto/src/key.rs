//! Key material, and the memory of which transmit keys have already sealed.

use core::fmt;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::hmac;
use zeroize::Zeroize;

use crate::id::Spi;

/// The key of one security association. It cannot be printed or copied, and is erased when dropped.
pub struct SaKey {
    bytes: [u8; 32],
    len: usize,
}

/// The key is neither 16 nor 32 bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an SA key has 16 bytes (AES-128-GCM) or 32 bytes (AES-256-GCM), got {0}")]
pub struct SaKeyLengthError(pub usize);

impl SaKey {
    pub fn from_slice(key: &[u8]) -> Result<Self, SaKeyLengthError> {
        if key.len() != 16 && key.len() != 32 {
            return Err(SaKeyLengthError(key.len()));
        }
        let mut bytes = [0; 32];
        bytes[..key.len()].copy_from_slice(key);
        Ok(SaKey { bytes, len: key.len() })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether both keys have the same bytes, in time that does not depend on where they differ.
    pub fn same_as(&self, other: &SaKey) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.as_bytes(), other.as_bytes()).is_ok()
    }
}

impl Drop for SaKey {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for SaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SaKey(hidden)")
    }
}

/// Remembers, as keyed digests, every transmit (SPI, key) pair that has been installed, so that none starts
/// its counter a second time. One per process: every engine shares it.
pub struct TxKeyHistory {
    digest_key: hmac::Key,
    seen: Mutex<HashSet<[u8; 16]>>,
}

impl TxKeyHistory {
    /// `digest_key` is random, made by the caller for this process alone.
    pub fn new(digest_key: &[u8; 32]) -> Self {
        TxKeyHistory { digest_key: hmac::Key::new(hmac::HMAC_SHA256, digest_key), seen: Mutex::default() }
    }

    /// Records the pair. `false`: it was there already and must not seal again.
    #[must_use]
    pub fn record(&self, spi: Spi, key: &SaKey) -> bool {
        let mut context = hmac::Context::with_key(&self.digest_key);
        context.update(&spi.get().to_be_bytes());
        context.update(key.as_bytes());
        let tag = context.sign();
        let mut digest = [0; 16];
        digest.copy_from_slice(&tag.as_ref()[..16]);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(digest)
    }
}

impl fmt::Debug for TxKeyHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TxKeyHistory(hidden)")
    }
}
