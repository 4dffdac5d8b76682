//! What proxies are to do.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::credentials::Credentials;
use super::error::ProxyError;
use super::target::Target;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Who is asked for the addresses of names that clients give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameResolution {
    /// This host's resolver.
    #[default]
    Host,
    /// The stack's name servers, through the tunnel.
    Tunnel,
}

/// Something that listens. On this host it does so beyond loopback only with credentials, or if `danger_open` says so.
#[derive(Clone, Debug)]
pub enum Service {
    /// CONNECT and UDP ASSOCIATE of RFC 1928 into the tunnel, with users of RFC 1929 if there are credentials. Passwords
    /// pass in clear.
    Socks5 { listen: SocketAddr, credentials: Option<Credentials>, danger_open: bool },
    /// CONNECT of RFC 9110 into the tunnel, with Basic authentication (RFC 7617) if there are credentials. Passwords pass in clear.
    HttpConnect { listen: SocketAddr, credentials: Option<Credentials>, danger_open: bool },
    /// What comes to `listen` on this host goes to `remote` through the tunnel.
    Forward { protocol: Protocol, listen: SocketAddr, remote: Target, danger_open: bool },
    /// What comes to a port of the stack goes to `target`, as this host reaches and resolves it.
    Reverse { protocol: Protocol, listen_port: u16, target: Target },
}

impl Service {
    /// For messages.
    pub(super) fn name(&self) -> String {
        let protocol = |protocol: &Protocol| match protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        match self {
            Service::Socks5 { .. } => "the SOCKS5 proxy".to_owned(),
            Service::HttpConnect { .. } => "the HTTP proxy".to_owned(),
            Service::Forward { protocol: of, remote, .. } => format!("the {} forward to {remote}", protocol(of)),
            Service::Reverse { protocol: of, target, .. } => {
                format!("the reverse {} forward to {target}", protocol(of))
            }
        }
    }

    /// Whether everybody whom the network lets through could use it, which nobody has asked for.
    fn is_exposed(&self) -> Option<SocketAddr> {
        let (listen, is_guarded, danger_open) = match self {
            Service::Socks5 { listen, credentials, danger_open }
            | Service::HttpConnect { listen, credentials, danger_open } => (listen, credentials.is_some(), danger_open),
            Service::Forward { listen, danger_open, .. } => (listen, false, danger_open),
            Service::Reverse { .. } => return None,
        };
        (!listen.ip().to_canonical().is_loopback() && !is_guarded && !danger_open).then_some(*listen)
    }
}

#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProxyOptions {
    pub services: Vec<Service>,
    pub name_resolution: NameResolution,
    /// Clients with a connection at the same time: 1 to 65536. More are refused.
    pub max_clients: usize,
    /// How long a client may take to say what it wants.
    pub handshake_timeout: Duration,
    /// UDP associations of SOCKS clients, and flows of each UDP forward, at the same time. The one that was silent longest makes
    /// room for a new one.
    pub max_associations: usize,
    /// How long one may be silent.
    pub association_timeout: Duration,
}

impl ProxyOptions {
    pub const MAX_CLIENTS: usize = 65_536;

    /// Names are resolved by the host; 1024 clients, 10 s for a handshake, 256 associations, each silent for at most 60 s.
    pub fn new(services: Vec<Service>) -> Self {
        ProxyOptions {
            services,
            name_resolution: NameResolution::default(),
            max_clients: 1024,
            handshake_timeout: Duration::from_secs(10),
            max_associations: 256,
            association_timeout: Duration::from_secs(60),
        }
    }

    pub(super) fn check(&self) -> Result<(), ProxyError> {
        for (what, given) in [("clients", self.max_clients), ("UDP associations", self.max_associations)] {
            if !(1..=Self::MAX_CLIENTS).contains(&given) {
                return Err(ProxyError::Limit { what, given });
            }
        }
        for (what, given) in [("a handshake", self.handshake_timeout), ("silence", self.association_timeout)] {
            if given.is_zero() {
                return Err(ProxyError::NoTime { what });
            }
        }
        for service in &self.services {
            if let Some(listen) = service.is_exposed() {
                return Err(ProxyError::Exposed { service: service.name(), listen });
            }
        }
        Ok(())
    }
}

/// Families of addresses that can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

impl Families {
    pub(super) fn of(addresses: &[(IpAddr, u8)]) -> Self {
        Families {
            v4: addresses.iter().any(|(address, _)| address.is_ipv4()),
            v6: addresses.iter().any(|(address, _)| address.is_ipv6()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_a_service_wants_credentials_or_to_be_told() {
        let users = || Some(Credentials::parse("a:b").unwrap());
        let remote = || "host:1".parse::<Target>().unwrap();
        for (listen, is_loopback) in [
            ("127.0.0.1:0", true),
            ("127.9.9.9:1080", true),
            ("[::1]:1080", true),
            ("[::ffff:127.0.0.1]:1080", true),
            ("0.0.0.0:1080", false),
            ("[::]:1080", false),
            ("192.0.2.1:1080", false),
            ("[::ffff:192.0.2.1]:1080", false),
        ] {
            let listen: SocketAddr = listen.parse().unwrap();
            let make = |credentials: Option<Credentials>, danger_open| {
                let forward = |protocol| Service::Forward { protocol, listen, remote: remote(), danger_open };
                [
                    Service::Socks5 { listen, credentials: credentials.clone(), danger_open },
                    Service::HttpConnect { listen, credentials, danger_open },
                    forward(Protocol::Tcp),
                    forward(Protocol::Udp),
                ]
            };
            let allowed =
                |services: [Service; 4]| services.map(|service| ProxyOptions::new(vec![service]).check().is_ok());
            assert_eq!(allowed(make(None, false)), [is_loopback; 4], "{listen}");
            assert_eq!(allowed(make(users(), false)), [true, true, is_loopback, is_loopback], "{listen}");
            assert_eq!(allowed(make(None, true)), [true; 4], "{listen}");
        }
        let target = remote();
        let reverse = Service::Reverse { protocol: Protocol::Tcp, listen_port: 1, target };
        assert!(ProxyOptions::new(vec![reverse]).check().is_ok());
    }

    #[test]
    fn limits_are_limited() {
        let change: [fn(&mut ProxyOptions); 5] = [
            |options| options.max_clients = 0,
            |options| options.max_clients = ProxyOptions::MAX_CLIENTS + 1,
            |options| options.max_associations = 0,
            |options| options.handshake_timeout = Duration::ZERO,
            |options| options.association_timeout = Duration::ZERO,
        ];
        for change in change {
            let mut options = ProxyOptions::new(Vec::new());
            change(&mut options);
            let error = options.check().unwrap_err();
            assert!(matches!(error, ProxyError::Limit { .. } | ProxyError::NoTime { .. }), "{error:?}");
        }
    }
}
