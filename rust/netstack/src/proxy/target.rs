//! What clients want to reach: a host and a port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    Address(IpAddr),
    /// A name that follows the rules of [`Host::name`].
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub host: Host,
    pub port: u16,
}

/// Why a text is no host and port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    #[error("{0:?} has no port: write host:port, with an IPv6 address in brackets")]
    NoPort(String),
    #[error("{0:?} is no port: a number from 1 to 65535 is")]
    BadPort(String),
    #[error(
        "{0:?} is neither an IP address nor a name: a name has letters, digits, - and _ in labels of 1 to 63 bytes, 253 in all"
    )]
    BadHost(String),
}

impl Host {
    /// A name, or an address that is written as one.
    pub fn name(text: &str) -> Result<Self, TargetError> {
        if let Ok(address) = text.parse() {
            return Ok(Host::Address(address));
        }
        let bare = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        // What ends in a number is an address to getaddrinfo(3), in one of its older notations.
        let last = bare.rsplit('.').next().unwrap_or_default();
        let is_number = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") || last.starts_with("0X");
        if bare.len() > 253 || is_number || !bare.split('.').all(is_label) {
            return Err(TargetError::BadHost(text.to_owned()));
        }
        Ok(Host::Name(bare.to_owned()))
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| TargetError::NoPort(text.to_owned()))?;
        let bad_host = || TargetError::BadHost(host.to_owned());
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let address = rest.strip_suffix(']').ok_or_else(bad_host)?;
                Host::Address(IpAddr::V6(address.parse().map_err(|_| bad_host())?))
            }
            None if host.contains(':') => return Err(TargetError::NoPort(text.to_owned())),
            None => Host::name(host)?,
        };
        let bad_port = || TargetError::BadPort(port.to_owned());
        // from_str takes a sign.
        let digits = Some(port).filter(|port| port.bytes().all(|b| b.is_ascii_digit())).ok_or_else(bad_port)?;
        let port = digits.parse().ok().filter(|&port| port != 0).ok_or_else(bad_port)?;
        Ok(Target { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Target { host: Host::Address(address.ip()), port: address.port() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_told_apart() {
        for (text, shown) in [
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("host:1", "host:1"),
            ("a-b_c.Example.:65535", "a-b_c.Example:65535"),
            ("1host.2x:080", "1host.2x:80"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), shown);
            assert_eq!(
                matches!(target.host, Host::Name(_)),
                text.contains(|c: char| c.is_ascii_alphabetic() && c > 'f')
            );
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        let long = format!("{}:80", vec!["x".repeat(63); 4].join("."));
        let long_label = format!("{}:80", "x".repeat(64));
        for text in ["", "host", "2001:db8::1", "2001:db8::1:80"] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(matches!(error, TargetError::NoPort(_)), "{text}: {error:?}");
        }
        for text in ["host:", "host:0", "host:65536", "host:+80", "host:8x", "[::1]:"] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(matches!(error, TargetError::BadPort(_)), "{text}: {error:?}");
        }
        let names = [
            ":80",
            ".:80",
            "a..b:80",
            "a b:80",
            "a/b:80",
            "é:80",
            "127.1:80",
            "0x7f000001:80",
            "1:80",
            &long,
            &long_label,
        ];
        for text in names.into_iter().chain(["[::1:80", "[host]:80", "[192.0.2.1]:80", "[]:80", "::1]:80\0:1"]) {
            let error = text.parse::<Target>().unwrap_err();
            assert!(matches!(error, TargetError::BadHost(_) | TargetError::NoPort(_)), "{text}: {error:?}");
        }
    }
}
