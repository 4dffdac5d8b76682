//! Why proxies do not run.

use std::io;
use std::net::SocketAddr;

use super::options::ProxyOptions;
use crate::error::BindError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    #[error(
        "{service} would serve everybody who reaches {listen}: listen on a loopback address (127.0.0.1 or ::1), name the \
         users of a proxy (USER-FILE), or say that it shall be open (--open-proxy)"
    )]
    Exposed { service: String, listen: SocketAddr },
    #[error("there can be 1 to {most} {what} at a time, not {given}", most = ProxyOptions::MAX_CLIENTS)]
    Limit { what: &'static str, given: usize },
    #[error("no time is given for {what}: give more than 0")]
    NoTime { what: &'static str },
    #[error("{service} cannot listen on {listen}: {source}{}", advice(source))]
    Listen { service: String, listen: SocketAddr, source: io::Error },
    #[error("{service} cannot listen in the tunnel: {source}")]
    ListenInTunnel { service: String, source: BindError },
    #[error("cannot wait for the clients of proxies: {0}")]
    Runtime(#[source] io::Error),
    #[error(
        "cannot start the thread of the proxies: {0}: raise the limit on threads (`ulimit -u`, or `pids.max` of the control group)"
    )]
    Thread(#[source] io::Error),
    #[error("the network stack of the proxies has been closed")]
    StackClosed,
    #[error("a service panicked: {message}; this is a defect of icx, please report it")]
    Panicked { message: String },
}

impl ProxyError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            ProxyError::Listen { source, .. } | ProxyError::Runtime(source) | ProxyError::Thread(source) => {
                source.raw_os_error()
            }
            _ => None,
        }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; choose another port, or stop the process that holds it (`ss -lnp`)",
        io::ErrorKind::AddrNotAvailable => "; choose an address that `ip addr` shows",
        io::ErrorKind::PermissionDenied => "; choose port 1024 or higher, or give CAP_NET_BIND_SERVICE",
        _ => "",
    }
}
