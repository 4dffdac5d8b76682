//! From two announced SPIs to a pair of keys.

use icx_proto::{SaKey, Spi};

use crate::kdf::{KdfError, MasterKeys};
use crate::role::Role;
use crate::spi::{MasterIndex, allocator_role, counter, is_reserved, master_index};
use crate::suite::Suite;

/// Why a peer's announcement is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PairError {
    #[error("the peer announced suite {given}, this exchange needs suite {expected}", expected = expected.number())]
    Suite { given: u8, expected: Suite },
    #[error("the peer's SPI {0:#010x} belongs to master key 1, which is not in use")]
    InactiveMasterKey(u32),
    #[error("the peer's SPI {0:#010x} has this node's role bit")]
    RoleCollision(u32),
    #[error("the peer's SPI {0:#010x} is reserved: its counter is zero")]
    ReservedSpi(u32),
    #[error("both directions would have the same key")]
    EqualKeys,
    #[error(transparent)]
    Kdf(#[from] KdfError),
}

/// The keys of both directions.
#[derive(Debug)]
pub struct SaKeys {
    pub tx_spi: Spi,
    pub rx_key: SaKey,
    pub tx_key: SaKey,
}

/// Checks the SPI that the peer of a node with `role` announced.
pub fn check_peer_spi(role: Role, spi: u32) -> Result<Spi, PairError> {
    if master_index(spi) != MasterIndex::Zero {
        return Err(PairError::InactiveMasterKey(spi));
    }
    if allocator_role(spi) == role {
        return Err(PairError::RoleCollision(spi));
    }
    if is_reserved(spi) || counter(spi) == 0 {
        return Err(PairError::ReservedSpi(spi));
    }
    Spi::new(spi).ok_or(PairError::ReservedSpi(spi))
}

/// Checks what the peer announced against what this node did, and derives both keys.
pub fn pair(
    masters: &MasterKeys,
    role: Role,
    suite: Suite,
    rx_spi: Spi,
    peer_suite: u8,
    peer_spi: u32,
) -> Result<SaKeys, PairError> {
    if peer_suite != suite.number() {
        return Err(PairError::Suite { given: peer_suite, expected: suite });
    }
    let tx_spi = check_peer_spi(role, peer_spi)?;
    let rx_key = masters.sa_key(rx_spi, suite)?;
    let tx_key = masters.sa_key(tx_spi, suite)?;
    if rx_key.same_as(&tx_key) {
        return Err(PairError::EqualKeys);
    }
    Ok(SaKeys { tx_spi, rx_key, tx_key })
}
