//! From the TLS exporter to the keys of security associations.

use core::fmt;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{cmac, hkdf};
use icx_proto::{SaKey, Spi};
use zeroize::Zeroizing;

use crate::spi::{MasterIndex, is_reserved, master_index};
use crate::suite::Suite;

/// The TLS exporter's label and context for [`RootSecret`].
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-icx-master-v1";
pub const EXPORTER_CONTEXT: &[u8] = b"icx control plane master seed v1";
const MASTER_INFO: &[u8] = b"icx psp master keys v1";

pub const ROOT_SECRET_LEN: usize = 32;
pub const MASTER_KEY_LEN: usize = 32;

/// A key could not be derived. Nothing about the inputs is in the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KdfError {
    #[error("the root secret has at least {ROOT_SECRET_LEN} bytes, got {0}")]
    RootLength(usize),
    #[error("a master key has {MASTER_KEY_LEN} bytes, got {0}")]
    MasterLength(usize),
    #[error("SPI {0} is reserved: its low 31 bits are zero")]
    ReservedSpi(Spi),
    #[error("a CMAC key has 16 bytes (AES-128) or 32 bytes (AES-256), got {0}")]
    CmacKeyLength(usize),
    #[error("the cryptography library refused the derivation")]
    Library,
}

impl From<Unspecified> for KdfError {
    fn from(_: Unspecified) -> Self {
        KdfError::Library
    }
}

/// What both ends export from the TLS session. Erased when dropped, which is right after [`MasterKeys`] exist.
pub struct RootSecret(Zeroizing<Vec<u8>>);

impl RootSecret {
    /// [`ROOT_SECRET_LEN`] bytes or more.
    pub fn from_slice(secret: &[u8]) -> Result<Self, KdfError> {
        if secret.len() < ROOT_SECRET_LEN {
            return Err(KdfError::RootLength(secret.len()));
        }
        Ok(RootSecret(Zeroizing::new(secret.to_vec())))
    }

    /// The secret of `connection`.
    pub(crate) fn export(connection: &quinn::Connection) -> Result<Self, KdfError> {
        let mut root = RootSecret(Zeroizing::new(vec![0; ROOT_SECRET_LEN]));
        connection
            .export_keying_material(&mut root.0[..], EXPORTER_LABEL, EXPORTER_CONTEXT)
            .map_err(|_| KdfError::Library)?;
        Ok(root)
    }
}

impl fmt::Debug for RootSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootSecret(hidden)")
    }
}

/// One AES-256 key from which SA keys are derived. Erased when dropped.
pub struct MasterKey(Zeroizing<[u8; MASTER_KEY_LEN]>);

impl MasterKey {
    pub fn from_slice(key: &[u8]) -> Result<Self, KdfError> {
        let mut master = MasterKey(Zeroizing::new([0; MASTER_KEY_LEN]));
        if key.len() != MASTER_KEY_LEN {
            return Err(KdfError::MasterLength(key.len()));
        }
        master.0.copy_from_slice(key);
        Ok(master)
    }

    pub fn as_bytes(&self) -> &[u8; MASTER_KEY_LEN] {
        &self.0
    }

    /// SP 800-108 section 4.1 (counter mode), PRF AES-256-CMAC: block i is
    /// `u32 i ‖ label ‖ u32 SPI ‖ u32 length in bits`. Whether the number is an SPI in use is for the caller to check.
    pub fn sa_key(&self, spi: u32, suite: Suite) -> Result<SaKey, KdfError> {
        let label = match suite {
            Suite::Aes128Gcm => *b"Pv0\0",
            Suite::Aes256Gcm => *b"Pv1\0",
        };
        let len = suite.key_len();
        let bits = (len * 8) as u32;
        let prf = cmac::Key::new(cmac::AES_256, &self.0[..])?;
        let mut key = Zeroizing::new([0; 32]);
        for (counter, block) in (1u32..).zip(key[..len].chunks_mut(16)) {
            let mut input = [0; 16];
            input[..4].copy_from_slice(&counter.to_be_bytes());
            input[4..8].copy_from_slice(&label);
            input[8..12].copy_from_slice(&spi.to_be_bytes());
            input[12..].copy_from_slice(&bits.to_be_bytes());
            block.copy_from_slice(cmac::sign(&prf, &input)?.as_ref());
        }
        SaKey::from_slice(&key[..len]).map_err(|_| KdfError::Library)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(hidden)")
    }
}

/// The two master keys of a session; bit 31 of an SPI chooses between them.
#[derive(Debug)]
pub struct MasterKeys([MasterKey; 2]);

impl MasterKeys {
    /// HKDF-SHA-256 without salt (RFC 5869). Takes the root secret, so that it is gone afterwards.
    pub fn derive(root: RootSecret) -> Result<Self, KdfError> {
        let mut okm = Zeroizing::new([0; 2 * MASTER_KEY_LEN]);
        expand(&root.0[..], MASTER_INFO, &mut okm[..])?;
        let (first, second) = okm.split_at(MASTER_KEY_LEN);
        Ok(MasterKeys([MasterKey::from_slice(first)?, MasterKey::from_slice(second)?]))
    }

    pub fn get(&self, index: MasterIndex) -> &MasterKey {
        match index {
            MasterIndex::Zero => &self.0[0],
            MasterIndex::One => &self.0[1],
        }
    }

    /// The key of `spi` under the master key that its top bit chooses.
    pub fn sa_key(&self, spi: Spi, suite: Suite) -> Result<SaKey, KdfError> {
        if is_reserved(spi.get()) {
            return Err(KdfError::ReservedSpi(spi));
        }
        self.get(master_index(spi.get())).sa_key(spi.get(), suite)
    }
}

/// AES-CMAC (RFC 4493) with a key of 16 or 32 bytes.
pub fn aes_cmac(key: &[u8], message: &[u8]) -> Result<[u8; 16], KdfError> {
    let algorithm = match key.len() {
        16 => cmac::AES_128,
        24 => cmac::AES_192,
        32 => cmac::AES_256,
        other => return Err(KdfError::CmacKeyLength(other)),
    };
    let tag = cmac::sign(&cmac::Key::new(algorithm, key)?, message)?;
    tag.as_ref().try_into().map_err(|_| KdfError::Library)
}

/// HKDF-SHA-256 with no salt; fills `out`.
pub(crate) fn expand(secret: &[u8], info: &[u8], out: &mut [u8]) -> Result<(), KdfError> {
    struct OutputLen(usize);
    impl hkdf::KeyType for OutputLen {
        fn len(&self) -> usize {
            self.0
        }
    }
    let prk = hkdf::Salt::none(hkdf::HKDF_SHA256).extract(secret);
    prk.expand(&[info], OutputLen(out.len()))?.fill(out)?;
    Ok(())
}
