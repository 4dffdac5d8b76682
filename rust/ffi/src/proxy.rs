//! Proxies and forwards on network stacks.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use icx_netstack::BindError;
use icx_netstack::proxy::{
    Address, Credentials, NameResolution, Protocol, Proxies, ProxyCounters, ProxyError, ProxyNotice, ProxyOptions,
    Service, Target,
};
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::error::{Failure, Outcome, code_of};
use crate::events::{self, Kind};
use crate::guard::Call;
use crate::handle;
use crate::json::{self, FromText, Text};
use crate::netstack::StackHandle;

/// The thread that serves proxies and forwards.
pub(crate) struct ProxyHandle {
    proxies: Proxies,
}

impl ProxyHandle {
    /// Stops the thread and waits for it.
    pub(crate) fn stop(&self) {
        self.proxies.stop();
        self.proxies.join();
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StartOptions {
    stack: u32,
    services: Vec<ServiceOptions>,
    #[serde(default)]
    name_resolution: ResolutionOptions,
    max_clients: Option<u32>,
    handshake_timeout_ms: Option<u32>,
    max_associations: Option<u32>,
    association_timeout_ms: Option<u32>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ResolutionOptions {
    #[default]
    Host,
    Tunnel,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProtocolOptions {
    Tcp,
    Udp,
}

impl From<ProtocolOptions> for Protocol {
    fn from(protocol: ProtocolOptions) -> Self {
        match protocol {
            ProtocolOptions::Tcp => Protocol::Tcp,
            ProtocolOptions::Udp => Protocol::Udp,
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase", deny_unknown_fields)]
enum ServiceOptions {
    Socks5 {
        listen: Text<SocketAddr>,
        users: Option<Text<Credentials>>,
        #[serde(default)]
        danger_open: bool,
    },
    HttpConnect {
        listen: Text<SocketAddr>,
        users: Option<Text<Credentials>>,
        #[serde(default)]
        danger_open: bool,
    },
    Forward {
        protocol: ProtocolOptions,
        listen: Text<SocketAddr>,
        remote: Text<Target>,
        #[serde(default)]
        danger_open: bool,
    },
    Reverse {
        protocol: ProtocolOptions,
        listen_port: u16,
        target: Text<Target>,
    },
}

impl FromText for Credentials {
    const EXPECTED: &'static str = "lines of the form user:password";

    fn from_text(text: &str) -> Result<Self, String> {
        Credentials::parse(text).map_err(|error| error.to_string())
    }
}

impl FromText for Target {
    const EXPECTED: &'static str = "a host and a port like \"example.org:80\"";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: icx_netstack::proxy::TargetError| error.to_string())
    }
}

impl From<ServiceOptions> for Service {
    fn from(given: ServiceOptions) -> Self {
        match given {
            ServiceOptions::Socks5 { listen, users, danger_open } => {
                Service::Socks5 { listen: listen.0, credentials: users.map(|users| users.0), danger_open }
            }
            ServiceOptions::HttpConnect { listen, users, danger_open } => {
                Service::HttpConnect { listen: listen.0, credentials: users.map(|users| users.0), danger_open }
            }
            ServiceOptions::Forward { protocol, listen, remote, danger_open } => {
                Service::Forward { protocol: protocol.into(), listen: listen.0, remote: remote.0, danger_open }
            }
            ServiceOptions::Reverse { protocol, listen_port, target } => {
                Service::Reverse { protocol: protocol.into(), listen_port, target: target.0 }
            }
        }
    }
}

impl From<StartOptions> for ProxyOptions {
    fn from(given: StartOptions) -> Self {
        let millis = |ms: u32| Duration::from_millis(ms.into());
        let mut options = ProxyOptions::new(given.services.into_iter().map(Service::from).collect());
        options.name_resolution = match given.name_resolution {
            ResolutionOptions::Host => NameResolution::Host,
            ResolutionOptions::Tunnel => NameResolution::Tunnel,
        };
        options.max_clients = given.max_clients.map_or(options.max_clients, |count| count as usize);
        options.max_associations = given.max_associations.map_or(options.max_associations, |count| count as usize);
        options.handshake_timeout = given.handshake_timeout_ms.map_or(options.handshake_timeout, millis);
        options.association_timeout = given.association_timeout_ms.map_or(options.association_timeout, millis);
        options
    }
}

/// Where a service listens.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Host(SocketAddr),
    Tunnel(u16),
}

impl From<Address> for Place {
    fn from(address: Address) -> Self {
        match address {
            Address::Host(address) => Place::Host(address),
            Address::Tunnel(port) => Place::Tunnel(port),
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "notice", rename_all = "kebab-case")]
enum Notice {
    AuthenticationFailed { service: SocketAddr, client: SocketAddr },
    AcceptFailing { service: Place, errno: Option<i32>, message: String },
    Omitted { count: u64 },
}

#[derive(Serialize)]
struct Ended {
    message: String,
    errno: Option<i32>,
}

pub(crate) fn start(call: &Call, text: &[u8]) -> Outcome<u32> {
    let given: StartOptions = json::parse(text)?;
    let stack = call.get::<StackHandle>(given.stack)?.stack();
    let reservation = handle::reserve()?;
    let id = reservation.id();
    let on_notice = Box::new(move |notice| {
        let notice = match notice {
            ProxyNotice::AuthenticationFailed { service, client } => Notice::AuthenticationFailed { service, client },
            ProxyNotice::AcceptFailing { service, errno, message } => {
                Notice::AcceptFailing { service: service.into(), errno, message }
            }
            ProxyNotice::Omitted { count } => Notice::Omitted { count },
            _ => return,
        };
        events::push(Kind::ProxyNotice, id, Code::Ok, json::text(&notice).unwrap_or_default());
    });
    let on_end = Box::new(move |result: Result<(), ProxyError>| {
        if let Err(error) = result {
            let failure = failure("serve proxies", &error);
            let ended = Ended { message: failure.message, errno: failure.errno };
            // A text and a number always become JSON.
            events::push(Kind::ProxyEnded, id, failure.code, json::text(&ended).unwrap_or_default());
        }
    });
    let proxies =
        Proxies::start(stack, given.into(), on_notice, on_end).map_err(|error| failure("start the proxies", &error))?;
    Ok(reservation.open(Arc::new(ProxyHandle { proxies })))
}

#[derive(Serialize)]
struct Info {
    services: Vec<Place>,
}

pub(crate) fn info(call: &Call, proxy: u32) -> Outcome<String> {
    let proxy = call.get::<ProxyHandle>(proxy)?;
    json::text(&Info { services: proxy.proxies.addresses().iter().map(|&address| address.into()).collect() })
}

pub(crate) fn stop(call: &Call, proxy: u32) -> Outcome<i32> {
    call.get::<ProxyHandle>(proxy)?.stop();
    Ok(0)
}

/// In the order of [`counter_names`].
pub(crate) fn counters(call: &Call, proxy: u32) -> Outcome<[u64; ProxyCounters::NAMES.len()]> {
    Ok(call.get::<ProxyHandle>(proxy)?.proxies.counters().values())
}

pub(crate) fn counter_names() -> Outcome<String> {
    json::text(&ProxyCounters::NAMES)
}

fn failure(what: &str, error: &ProxyError) -> Failure {
    let code = match error {
        ProxyError::StackClosed | ProxyError::ListenInTunnel { source: BindError::Closed, .. } => Code::Closed,
        ProxyError::ListenInTunnel { source: BindError::InUse(_), .. } => Code::AddressInUse,
        ProxyError::ListenInTunnel { .. } => Code::AddressNotAvailable,
        ProxyError::Panicked { .. } => Code::Panic,
        ProxyError::Listen { source, .. } => match source.kind() {
            ErrorKind::AddrInUse => Code::AddressInUse,
            ErrorKind::AddrNotAvailable => Code::AddressNotAvailable,
            _ => code_of(error, Code::System),
        },
        _ => code_of(error, Code::Invalid),
    };
    Failure::of(code, what, error)
}
