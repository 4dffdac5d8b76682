//! What services listen on.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net;

use super::error::ProxyError;
use super::options::{Protocol, Service};
use super::serve::{self, Offer};
use super::shared::Shared;
use super::target::Target;
use super::{datagrams, reverse};
use crate::stack::Stack;
use crate::tcp::TcpListener;
use crate::udp::UdpSocket;

/// Where a service listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// On this host.
    Host(SocketAddr),
    /// On a port of all addresses of the stack.
    Tunnel(u16),
}

/// A service that listens, and is yet to serve.
pub(super) enum Listening {
    Clients { listener: net::TcpListener, address: SocketAddr, offer: Offer },
    Datagrams { socket: net::UdpSocket, address: SocketAddr, remote: Target },
    Reverse { listener: TcpListener, target: Target },
    ReverseDatagrams { socket: UdpSocket, target: Target },
}

/// Has all services listen, or none. It is called in the runtime that is to serve them.
pub(super) fn open(stack: &Stack, services: &[Service]) -> Result<Vec<Listening>, ProxyError> {
    services.iter().map(|service| Listening::open(stack, service)).collect()
}

impl Listening {
    fn open(stack: &Stack, service: &Service) -> Result<Self, ProxyError> {
        let on_host = |listen: &SocketAddr, offer| {
            let bound = bind(*listen).map_err(|source| failed(service, *listen, source));
            bound.map(|(listener, address)| Listening::Clients { listener, address, offer })
        };
        let in_tunnel = |source| ProxyError::ListenInTunnel { service: service.name(), source };
        match service {
            Service::Socks5 { listen, credentials, .. } => on_host(listen, Offer::Socks5(credentials.clone())),
            Service::HttpConnect { listen, credentials, .. } => {
                on_host(listen, Offer::HttpConnect(credentials.clone()))
            }
            Service::Forward { protocol: Protocol::Tcp, listen, remote, .. } => {
                on_host(listen, Offer::Forward(remote.clone()))
            }
            Service::Forward { protocol: Protocol::Udp, listen, remote, .. } => {
                let (socket, address) = bind_datagrams(*listen).map_err(|source| failed(service, *listen, source))?;
                Ok(Listening::Datagrams { socket, address, remote: remote.clone() })
            }
            Service::Reverse { protocol: Protocol::Tcp, listen_port, target } => {
                let listener = stack.listen(*listen_port).map_err(in_tunnel)?;
                Ok(Listening::Reverse { listener, target: target.clone() })
            }
            Service::Reverse { protocol: Protocol::Udp, listen_port, target } => {
                let socket = stack.bind_datagram(*listen_port).map_err(in_tunnel)?;
                Ok(Listening::ReverseDatagrams { socket, target: target.clone() })
            }
        }
    }

    pub(super) fn address(&self) -> Address {
        match self {
            Listening::Clients { address, .. } | Listening::Datagrams { address, .. } => Address::Host(*address),
            Listening::Reverse { listener, .. } => Address::Tunnel(listener.port()),
            Listening::ReverseDatagrams { socket, .. } => Address::Tunnel(socket.port()),
        }
    }

    /// Serves until the stack is closed.
    pub(super) async fn serve(self, shared: Arc<Shared>) {
        let address = self.address();
        match self {
            Listening::Clients { listener, address, offer } => serve::serve(shared, listener, address, offer).await,
            Listening::Datagrams { socket, remote, .. } => datagrams::forward(shared, socket, address, remote).await,
            Listening::Reverse { listener, target } => reverse::serve(shared, listener, target).await,
            Listening::ReverseDatagrams { socket, target } => datagrams::reverse(shared, socket, address, target).await,
        }
    }
}

fn failed(service: &Service, listen: SocketAddr, source: io::Error) -> ProxyError {
    ProxyError::Listen { service: service.name(), listen, source }
}

fn bind(listen: SocketAddr) -> io::Result<(net::TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((net::TcpListener::from_std(listener)?, address))
}

fn bind_datagrams(listen: SocketAddr) -> io::Result<(net::UdpSocket, SocketAddr)> {
    let socket = std::net::UdpSocket::bind(listen)?;
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    Ok((net::UdpSocket::from_std(socket)?, address))
}
