//! What fits through the tunnel.

use crate::wire::geneve;

/// IPv6 and UDP headers, the Geneve header and the tag. IPv6's 40 bytes also for an IPv4 underlay, so that a node
/// may change family without changing its devices.
pub const OVERHEAD: u32 = 40 + 8 + geneve::HEADER_LEN as u32 + geneve::TAG_LEN as u32;

/// Inner MTUs are multiples of this, the AES block length.
pub const GRANULE: u32 = 16;

/// The smallest path MTU that leaves room for anything, one granule.
pub const MIN_PATH_MTU: u32 = OVERHEAD + GRANULE;

/// The path cannot carry even the smallest inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a path MTU of {0} leaves no room for an inner packet: at least {MIN_PATH_MTU} are needed")]
pub struct PathMtuError(pub u32);

/// The largest inner packet, in bytes, that fits a path MTU: what the overhead leaves, rounded down to 16.
pub const fn inner_mtu(path_mtu: u32) -> Result<u32, PathMtuError> {
    if path_mtu < MIN_PATH_MTU {
        return Err(PathMtuError(path_mtu));
    }
    Ok((path_mtu - OVERHEAD) / GRANULE * GRANULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_leaves_1392() {
        assert_eq!(inner_mtu(1500), Ok(1392));
    }

    #[test]
    fn too_small_a_path_is_refused_with_the_smallest_allowed() {
        assert_eq!(inner_mtu(112), Ok(16));
        assert_eq!(inner_mtu(111), Err(PathMtuError(111)));
        assert_eq!(inner_mtu(0), Err(PathMtuError(0)));
        assert!(PathMtuError(96).to_string().contains("112"));
    }

    #[test]
    fn the_largest_number_does_not_overflow() {
        assert_eq!(inner_mtu(u32::MAX), Ok((u32::MAX - 96) / 16 * 16));
    }
}
