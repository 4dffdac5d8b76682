//! Connections to what clients ask for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use icx_io::Family;
use tokio::io::Interest;
use tokio::net;
use tokio::time::timeout;

use super::counters::count;
use super::options::{Families, NameResolution};
use super::shared::Shared;
use super::target::{Host, Target};
use crate::dns::ResolveError;
use crate::error::{ConnectError, StreamError};
use crate::tcp::TcpStream;

/// How long a name may take to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses of one name that are tried, one after another.
const MAX_ATTEMPTS: usize = 4;

/// How long this host may take to connect to the target of a reverse forward.
const HOST_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a target cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no address was found for {0}")]
    Unresolved(String),
    #[error("{0} was not resolved in time")]
    ResolveTimedOut(String),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the client has gone")]
    ClientGone,
}

impl Shared {
    /// Connects through the tunnel, on behalf of a client which may leave meanwhile.
    pub(super) async fn dial(&self, client: &net::TcpStream, target: &Target) -> Result<TcpStream, DialError> {
        let outcome = tokio::select! {
            outcome = self.connect(target) => outcome,
            _ = client.ready(Interest::ERROR) => Err(DialError::ClientGone),
        };
        match &outcome {
            Err(DialError::Unresolved(_) | DialError::ResolveTimedOut(_)) => count(&self.tally.names_failed, 1),
            Err(_) => count(&self.tally.connect_failures, 1),
            Ok(_) => {}
        }
        outcome
    }

    async fn connect(&self, target: &Target) -> Result<TcpStream, DialError> {
        let mut last = None;
        for remote in self.addresses(target).await?.into_iter().take(MAX_ATTEMPTS) {
            match self.attempt(remote).await {
                // Another address does not help.
                Err(error @ DialError::Connect(ConnectError::TooMany(_) | ConnectError::Closed)) => return Err(error),
                Err(error) => last = Some(error),
                connected => return connected,
            }
        }
        Err(last.unwrap_or_else(|| DialError::Unresolved(target.to_string())))
    }

    async fn attempt(&self, remote: SocketAddr) -> Result<TcpStream, DialError> {
        let stream = self.stack.connect(remote).inspect_err(|error| {
            if *error == ConnectError::Closed {
                self.stack_closed.notify_one();
            }
        })?;
        stream.connected().await?;
        Ok(stream)
    }

    /// Where a target is, as seen through the tunnel: one address or more.
    pub(super) async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, DialError> {
        let name = match &target.host {
            Host::Address(address) => return Ok(vec![SocketAddr::new(*address, target.port)]),
            Host::Name(name) => name,
        };
        let lookup = async {
            match (self.name_resolution, self.families.family()) {
                (NameResolution::Host, Some(family)) => self.ask_host(name, target.port, family).await,
                (NameResolution::Tunnel, _) => self.ask_in_tunnel(name, target.port).await,
                (NameResolution::Host, None) => Err(DialError::Unresolved(name.clone())),
            }
        };
        timeout(RESOLVE_TIMEOUT, lookup).await.unwrap_or_else(|_| Err(DialError::ResolveTimedOut(name.clone())))
    }

    /// IPv6 addresses only where there are none of IPv4: one question in most cases.
    async fn ask_in_tunnel(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        for (is_asked, v6) in [(self.families.v4, false), (self.families.v6, true)] {
            if !is_asked {
                continue;
            }
            match self.stack.resolve(name, v6).await {
                Ok(found) if !found.is_empty() => return Ok(with_port(found, port)),
                Err(ResolveError::StackClosed) => {
                    self.stack_closed.notify_one();
                    return Err(ConnectError::Closed.into());
                }
                _ => {}
            }
        }
        Err(DialError::Unresolved(name.to_owned()))
    }

    async fn ask_host(&self, name: &str, port: u16, family: Family) -> Result<Vec<SocketAddr>, DialError> {
        let unresolved = || DialError::Unresolved(name.to_owned());
        // The place is taken until the resolver has answered, whether or not somebody still waits for that.
        let place = Arc::clone(&self.lookups).acquire_owned().await.map_err(|_| unresolved())?;
        let asked = name.to_owned();
        let lookup = tokio::task::spawn_blocking(move || {
            let found = icx_io::resolve::lookup(&asked, port, family);
            drop(place);
            found
        });
        lookup.await.ok().and_then(Result::ok).ok_or_else(unresolved)
    }

    /// Connects to a target as this host reaches it.
    pub(super) async fn dial_host(&self, target: &Target) -> Option<net::TcpStream> {
        let connect = async {
            for remote in self.host_addresses(target).await.into_iter().take(MAX_ATTEMPTS) {
                if let Ok(stream) = net::TcpStream::connect(remote).await {
                    return Some(stream);
                }
            }
            None
        };
        let outcome = timeout(HOST_CONNECT_TIMEOUT, connect).await.ok().flatten();
        if outcome.is_none() {
            count(&self.tally.connect_failures, 1);
        }
        outcome
    }

    /// Where a target is, as this host sees it. None: it has no address.
    pub(super) async fn host_addresses(&self, target: &Target) -> Vec<SocketAddr> {
        match &target.host {
            Host::Address(address) => vec![SocketAddr::new(*address, target.port)],
            Host::Name(name) => {
                let found = self.ask_host(name, target.port, Family::Dual).await;
                found.inspect_err(|_| count(&self.tally.names_failed, 1)).unwrap_or_default()
            }
        }
    }
}

impl Families {
    fn family(self) -> Option<Family> {
        match (self.v4, self.v6) {
            (true, true) => Some(Family::Dual),
            (true, false) => Some(Family::Ipv4),
            (false, true) => Some(Family::Ipv6),
            (false, false) => None,
        }
    }
}

fn with_port(addresses: Vec<IpAddr>, port: u16) -> Vec<SocketAddr> {
    addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}
