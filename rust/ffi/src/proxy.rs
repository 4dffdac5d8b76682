//! Proxies and forwards on network stacks.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
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
        users_file: Option<PathBuf>,
        #[serde(default)]
        danger_open: bool,
    },
    HttpConnect {
        listen: Text<SocketAddr>,
        users: Option<Text<Credentials>>,
        users_file: Option<PathBuf>,
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

/// Larger ones are something else.
const MOST_USERS_BYTES: u64 = 1 << 20;

/// Who may use a proxy: what was given, or what is in the file. Passwords do not go beyond its owner.
fn credentials(given: Option<Text<Credentials>>, file: Option<PathBuf>) -> Outcome<Option<Credentials>> {
    let Some(file) = file else { return Ok(given.map(|users| users.0)) };
    let name = file.display();
    let invalid = |text: String| Failure::new(Code::Invalid, format!("Cannot use the file of users '{name}': {text}"));
    if given.is_some() {
        return Err(invalid("the service has users besides: give one of the two".to_owned()));
    }
    let unreadable = |error: io::Error| {
        let mut failure =
            Failure::of(code_of(&error, Code::System), format_args!("use the file of users '{name}'"), &error);
        failure.message.push_str(match error.kind() {
            ErrorKind::NotFound => "; name a file with user:password in each line, or an address and port to listen on",
            ErrorKind::PermissionDenied => "; it must belong to the user that runs this (chown)",
            _ => "",
        });
        failure
    };
    let about = std::fs::metadata(&file).map_err(unreadable)?;
    if !about.is_file() || about.len() > MOST_USERS_BYTES {
        return Err(invalid(format!("it must be a file of at most {MOST_USERS_BYTES} bytes")));
    }
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(invalid(format!("it has mode {mode:o}, and others may get at the passwords: chmod 600 it")));
    }
    let text = std::fs::read_to_string(&file).map_err(unreadable)?;
    Credentials::parse(&text).map(Some).map_err(|error| invalid(error.to_string()))
}

impl TryFrom<ServiceOptions> for Service {
    type Error = Failure;

    fn try_from(given: ServiceOptions) -> Outcome<Self> {
        Ok(match given {
            ServiceOptions::Socks5 { listen, users, users_file, danger_open } => {
                Service::Socks5 { listen: listen.0, credentials: credentials(users, users_file)?, danger_open }
            }
            ServiceOptions::HttpConnect { listen, users, users_file, danger_open } => {
                Service::HttpConnect { listen: listen.0, credentials: credentials(users, users_file)?, danger_open }
            }
            ServiceOptions::Forward { protocol, listen, remote, danger_open } => {
                Service::Forward { protocol: protocol.into(), listen: listen.0, remote: remote.0, danger_open }
            }
            ServiceOptions::Reverse { protocol, listen_port, target } => {
                Service::Reverse { protocol: protocol.into(), listen_port, target: target.0 }
            }
        })
    }
}

impl TryFrom<StartOptions> for ProxyOptions {
    type Error = Failure;

    fn try_from(given: StartOptions) -> Outcome<Self> {
        let millis = |ms: u32| Duration::from_millis(ms.into());
        let services: Outcome<Vec<Service>> = given.services.into_iter().map(Service::try_from).collect();
        let mut options = ProxyOptions::new(services?);
        options.name_resolution = match given.name_resolution {
            ResolutionOptions::Host => NameResolution::Host,
            ResolutionOptions::Tunnel => NameResolution::Tunnel,
        };
        options.max_clients = given.max_clients.map_or(options.max_clients, |count| count as usize);
        options.max_associations = given.max_associations.map_or(options.max_associations, |count| count as usize);
        options.handshake_timeout = given.handshake_timeout_ms.map_or(options.handshake_timeout, millis);
        options.association_timeout = given.association_timeout_ms.map_or(options.association_timeout, millis);
        Ok(options)
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
    let proxies = Proxies::start(stack, given.try_into()?, on_notice, on_end)
        .map_err(|error| failure("start the proxies", &error))?;
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
