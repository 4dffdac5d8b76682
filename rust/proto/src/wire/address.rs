//! The choice of a local underlay address.

use std::net::IpAddr;

/// Index of the local address to send from: of the remote's family, with the longest common prefix, the first of
/// equals. `None` when no address has that family. An IPv4-mapped IPv6 address is IPv6.
pub fn select_local(local: impl IntoIterator<Item = IpAddr>, remote: IpAddr) -> Option<usize> {
    let mut best: Option<(usize, u32)> = None;
    for (index, local) in local.into_iter().enumerate() {
        if let Some(common) = common_prefix(local, remote)
            && best.is_none_or(|(_, length)| common > length)
        {
            best = Some((index, common));
        }
    }
    best.map(|(index, _)| index)
}

/// The number of leading bits that both share; `None` across families.
fn common_prefix(a: IpAddr, b: IpAddr) -> Option<u32> {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => Some((a.to_bits() ^ b.to_bits()).leading_zeros()),
        (IpAddr::V6(a), IpAddr::V6(b)) => Some((a.to_bits() ^ b.to_bits()).leading_zeros()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(local: &[&str], remote: &str) -> Option<usize> {
        select_local(local.iter().map(|addr| addr.parse().unwrap()), remote.parse().unwrap())
    }

    #[test]
    fn the_longest_common_prefix_wins_and_the_first_of_equals() {
        assert_eq!(select(&["192.168.0.1", "10.1.200.200", "10.1.9.9"], "10.1.2.3"), Some(2));
        assert_eq!(select(&["10.1.9.9", "10.1.9.9"], "10.1.2.3"), Some(0));
    }

    #[test]
    fn families_never_mix() {
        assert_eq!(select(&["192.168.0.1"], "2001:db8::1"), None);
        assert_eq!(select(&["10.0.0.1", "fd00::1"], "::ffff:10.0.0.1"), Some(1));
        assert_eq!(select(&[], "10.0.0.1"), None);
    }
}
