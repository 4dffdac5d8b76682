//! Which side of a session a node is on.

use core::fmt;

/// The two sides of a session. Point-to-point, the node whose public key sorts lower initiates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Dials, and starts every exchange. Bit 30 of the SPIs it allocates is 0.
    Initiator,
    /// Listens. Bit 30 of the SPIs it allocates is 1.
    Responder,
}

impl Role {
    /// The other side.
    pub const fn peer(self) -> Self {
        match self {
            Role::Initiator => Role::Responder,
            Role::Responder => Role::Initiator,
        }
    }

    /// The role bit of an SPI.
    pub const fn bit(self) -> u32 {
        match self {
            Role::Initiator => 0,
            Role::Responder => 1,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Initiator => "initiator",
            Role::Responder => "responder",
        })
    }
}

/// Both nodes have the same public key, so neither sorts lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the peer's public key is this node's own: give the one that `icx pubkey` prints on the peer, and each node its own identity key"
)]
pub struct EqualKeysError;
