//! Cipher suites of security associations.

/// A cipher suite. Point-to-point sessions use [`Suite::Aes128Gcm`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    Aes128Gcm,
    Aes256Gcm,
}

/// The number names no suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("suite {0} is unknown: 0 is AES-128-GCM, 1 is AES-256-GCM")]
pub struct UnknownSuiteError(pub u8);

impl Suite {
    /// The number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Suite::Aes128Gcm => 0,
            Suite::Aes256Gcm => 1,
        }
    }

    /// Bytes of key.
    pub const fn key_len(self) -> usize {
        match self {
            Suite::Aes128Gcm => 16,
            Suite::Aes256Gcm => 32,
        }
    }
}

impl TryFrom<u8> for Suite {
    type Error = UnknownSuiteError;

    fn try_from(number: u8) -> Result<Self, UnknownSuiteError> {
        match number {
            0 => Ok(Suite::Aes128Gcm),
            1 => Ok(Suite::Aes256Gcm),
            other => Err(UnknownSuiteError(other)),
        }
    }
}
