//! Why something on a stack does not work.

use std::net::{IpAddr, SocketAddr};

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    #[error("{0} cannot be connected to: a unicast address and a port other than 0 can")]
    BadRemote(SocketAddr),
    #[error("{0} is an address of this very stack, which does not connect to itself")]
    OwnAddress(SocketAddr),
    #[error("the stack has no {family} address to reach {remote} from", family = if remote.is_ipv4() { "IPv4" } else { "IPv6" })]
    NoAddress { remote: IpAddr },
    #[error("all ports towards {0} are in use: close connections first")]
    PortsExhausted(SocketAddr),
    #[error("there are {0} connections already, as many as the stack may have: close some first")]
    TooMany(usize),
    #[error("the stack is closed")]
    Closed,
}

/// Why a port cannot be listened on, or sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    #[error("port {0} is in use on this stack")]
    InUse(u16),
    #[error("{0} is no address of this stack")]
    NotOwn(IpAddr),
    #[error("all ports of this stack are in use")]
    PortsExhausted,
    #[error("the stack is closed")]
    Closed,
}

/// Why a connection does not carry anything any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    #[error("the peer refused the connection")]
    Refused,
    #[error("the peer did not answer in time")]
    TimedOut,
    #[error("the peer reset the connection")]
    Reset,
    #[error("the connection's sending side has been closed")]
    SendClosed,
    #[error("the connection has been closed on this side")]
    Closed,
    #[error("the stack has been closed")]
    StackClosed,
}

impl From<StreamError> for std::io::Error {
    fn from(error: StreamError) -> Self {
        use std::io::ErrorKind;
        let kind = match error {
            StreamError::Refused => ErrorKind::ConnectionRefused,
            StreamError::TimedOut => ErrorKind::TimedOut,
            StreamError::Reset => ErrorKind::ConnectionReset,
            StreamError::SendClosed => ErrorKind::BrokenPipe,
            StreamError::Closed => ErrorKind::NotConnected,
            StreamError::StackClosed => ErrorKind::ConnectionAborted,
        };
        std::io::Error::new(kind, error)
    }
}
