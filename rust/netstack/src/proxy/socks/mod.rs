//! SOCKS5 (RFC 1928), with users and passwords (RFC 1929).

mod associate;
pub(super) mod wire;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::wire::{Command, Method, Reply};
use super::counters::count;
use super::credentials::Credentials;
use super::dial::DialError;
use super::relay::relay;
use super::serve::{Client, part};
use super::shared::Shared;
use super::target::Target;
use crate::error::{ConnectError, StreamError};

/// A reply that names no address.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Why a client gets nothing.
#[derive(Debug)]
enum Refusal {
    /// It has left, or what it sent is not of the protocol.
    Malformed,
    /// It asks for what is not offered.
    Unsupported,
    Authentication,
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Refusal::Malformed
    }
}

pub(super) async fn serve(shared: &Arc<Shared>, credentials: Option<&Credentials>, mut client: Client) {
    let tally = &shared.tally;
    let (command, target) = match timeout(shared.handshake_timeout, negotiate(&mut client.stream, credentials)).await {
        Ok(Ok(request)) => request,
        Ok(Err(refusal)) => {
            match refusal {
                Refusal::Malformed => count(&tally.refused_malformed, 1),
                Refusal::Unsupported => count(&tally.refused_unsupported, 1),
                Refusal::Authentication => shared.authentication_failed(client.service, client.address),
            }
            return part(&client.stream).await;
        }
        Err(_) => return count(&tally.refused_slow, 1),
    };
    match command {
        Command::Connect => connect(shared, client.stream, &target).await,
        Command::Associate => associate::serve(shared, client, target.port).await,
    }
}

/// Takes a client's request, and answers what is to be answered before.
async fn negotiate(stream: &mut TcpStream, credentials: Option<&Credentials>) -> Result<(Command, Target), Refusal> {
    let [version, methods] = read(stream).await?;
    if version != wire::VERSION {
        return Err(Refusal::Malformed);
    }
    let mut offered = [0; 255];
    let offered = &mut offered[..usize::from(methods)];
    stream.read_exact(offered).await?;
    let method = if credentials.is_some() { Method::UserPassword } else { Method::None };
    if !offered.contains(&(method as u8)) {
        stream.write_all(&[wire::VERSION, Method::NoneAcceptable as u8]).await?;
        return Err(if credentials.is_some() { Refusal::Authentication } else { Refusal::Unsupported });
    }
    stream.write_all(&[wire::VERSION, method as u8]).await?;
    if let Some(credentials) = credentials {
        authenticate(stream, credentials).await?;
    }

    let mut request = [0; 3 + wire::MAX_ADDRESS];
    let (head, address) = request.split_at_mut(3);
    stream.read_exact(head).await?;
    if head[0] != wire::VERSION {
        return Err(Refusal::Malformed);
    }
    let (start, rest) = address.split_at_mut(2);
    stream.read_exact(start).await?;
    let Some(len) = wire::address_len(start[0], start[1]) else {
        return refuse(stream, Reply::AddressTypeNotSupported, Refusal::Unsupported).await;
    };
    stream.read_exact(&mut rest[..len - 2]).await?;
    let Some(command) = Command::from_number(head[1]) else {
        return refuse(stream, Reply::CommandNotSupported, Refusal::Unsupported).await;
    };
    match wire::read_address(&address[..len]) {
        Some((target, _)) => Ok((command, target)),
        None => refuse(stream, Reply::GeneralFailure, Refusal::Malformed).await,
    }
}

/// RFC 1929 section 2.
async fn authenticate(stream: &mut TcpStream, credentials: &Credentials) -> Result<(), Refusal> {
    const VERSION: u8 = 1;
    let [version, user_len] = read(stream).await?;
    if version != VERSION {
        return Err(Refusal::Malformed);
    }
    let (mut user, mut password) = ([0; 255], [0; 255]);
    let user = &mut user[..usize::from(user_len)];
    stream.read_exact(user).await?;
    let [password_len] = read(stream).await?;
    let password = &mut password[..usize::from(password_len)];
    stream.read_exact(password).await?;
    let is_admitted = credentials.admit(user, password);
    stream.write_all(&[VERSION, u8::from(!is_admitted)]).await?;
    if is_admitted { Ok(()) } else { Err(Refusal::Authentication) }
}

async fn read<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn refuse<T>(stream: &mut TcpStream, code: Reply, refusal: Refusal) -> Result<T, Refusal> {
    reply(stream, code, NOWHERE).await?;
    Err(refusal)
}

/// RFC 1928 section 6.
async fn reply(stream: &mut TcpStream, code: Reply, bound: SocketAddr) -> io::Result<()> {
    let mut message = vec![wire::VERSION, code as u8, 0];
    wire::write_address(bound, &mut message);
    stream.write_all(&message).await
}

async fn connect(shared: &Shared, mut stream: TcpStream, target: &Target) {
    match shared.dial(&stream, target).await {
        Ok(tunnel) => {
            if reply(&mut stream, Reply::Succeeded, tunnel.local_addr()).await.is_ok() {
                relay(stream, tunnel, &[], &shared.tally).await;
            }
        }
        Err(error) => {
            // Whoever has left hears nothing.
            if reply(&mut stream, reply_for(&error), NOWHERE).await.is_ok() {
                part(&stream).await;
            }
        }
    }
}

fn reply_for(error: &DialError) -> Reply {
    match error {
        DialError::Unresolved(_) | DialError::ResolveTimedOut(_) => Reply::HostUnreachable,
        DialError::Connect(ConnectError::NoAddress { .. }) => Reply::NetworkUnreachable,
        DialError::Connect(ConnectError::OwnAddress(_)) => Reply::NotAllowed,
        DialError::Connect(_) => Reply::GeneralFailure,
        DialError::Stream(StreamError::Refused) => Reply::ConnectionRefused,
        DialError::Stream(StreamError::TimedOut) => Reply::HostUnreachable,
        DialError::Stream(_) | DialError::ClientGone => Reply::GeneralFailure,
    }
}
