//! Host names to socket addresses.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use crate::udp::Family;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    #[error("cannot resolve \"{host}\": {source}; check the spelling, or give an IP address")]
    Failed { host: String, source: io::Error },
    #[error(
        "\"{host}\" has no {family} address ({found} of the other family): choose the other family or another name"
    )]
    NoneOfFamily { host: String, family: Family, found: usize },
}

/// The addresses of `host`, in the resolver's order and without repetition, each with `port`. At least one.
///
/// `host`: a name, or an address (IPv6 also in brackets). [`Family::Dual`] takes both families. Asks the system's
/// resolver (`getaddrinfo(3)`), which may block for as long as its configuration lets it.
pub fn lookup(host: &str, port: u16, family: Family) -> Result<Vec<SocketAddr>, ResolveError> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let found =
        (bare, port).to_socket_addrs().map_err(|source| ResolveError::Failed { host: host.to_owned(), source })?;
    let mut others = 0;
    let mut addresses = Vec::new();
    for address in found {
        if !family.includes(address.ip()) {
            others += 1;
        } else if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(ResolveError::NoneOfFamily { host: host.to_owned(), family, found: others });
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::{ResolveError, lookup};
    use crate::udp::Family;

    #[test]
    fn addresses_need_no_resolver() {
        for (host, family, expected) in [
            ("192.0.2.1", Family::Dual, "192.0.2.1:6081"),
            ("192.0.2.1", Family::Ipv4, "192.0.2.1:6081"),
            ("2001:db8::1", Family::Ipv6, "[2001:db8::1]:6081"),
            ("[2001:db8::1]", Family::Dual, "[2001:db8::1]:6081"),
        ] {
            assert_eq!(lookup(host, 6081, family).unwrap(), [expected.parse().unwrap()], "{host} {family}");
        }
    }

    #[test]
    fn the_wrong_family_and_an_unknown_name_are_told_apart() {
        let error = lookup("192.0.2.1", 1, Family::Ipv6).unwrap_err();
        assert!(matches!(error, ResolveError::NoneOfFamily { found: 1, .. }), "{error:?}");
        assert!(error.to_string().contains("no IPv6 address"), "{error}");
        let error = lookup("host.invalid", 1, Family::Dual).unwrap_err();
        assert!(matches!(error, ResolveError::Failed { .. }), "{error:?}");
        assert!(matches!(lookup("", 1, Family::Dual), Err(ResolveError::Failed { .. })));
    }
}
