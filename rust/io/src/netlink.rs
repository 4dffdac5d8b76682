//! Requests to the kernel's netlink, one at a time and synchronous.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// A system call on the netlink socket failed.
    #[error("{call} on a netlink socket: {source}")]
    Socket { call: &'static str, source: io::Error },
    /// The kernel refused the request.
    #[error("{0}")]
    Refused(io::Error),
    /// The kernel's answer is not what its documentation says.
    #[error("the kernel's netlink answer cannot be read: {0}")]
    Malformed(String),
}

impl NetlinkError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Socket { source, .. } | NetlinkError::Refused(source) => source.raw_os_error(),
            NetlinkError::Malformed(_) => None,
        }
    }
}

/// A socket to the netlink of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// To routing netlink, whose messages are `RouteNetlinkMessage`s.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        Self::open_protocol(NETLINK_ROUTE)
    }

    /// To one of `netlink_sys::protocols`.
    pub(crate) fn open_protocol(protocol: isize) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol).map_err(|source| NetlinkError::Socket { call: "socket", source })?;
        socket.bind_auto().map_err(|source| NetlinkError::Socket { call: "bind", source })?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends one request with `flags` (`NLM_F_REQUEST | NLM_F_ACK` are added) and returns the messages with which the
    /// kernel answered before it acknowledged.
    pub(crate) fn request<M>(&mut self, message: M, flags: u16) -> Result<Vec<M>, NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        retry(|| self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0))
            .map_err(|source| NetlinkError::Socket { call: "send", source })?;

        let mut answers = Vec::new();
        loop {
            let (bytes, from) = retry(|| self.socket.recv_from_full())
                .map_err(|source| NetlinkError::Socket { call: "recv", source })?;
            // Any process may send to this socket; the kernel is port 0.
            if from.port_number() != 0 {
                continue;
            }
            if self.read(&bytes, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Takes the messages of one datagram; true when the request is answered in full.
    fn read<M: NetlinkDeserializable>(&self, mut bytes: &[u8], answers: &mut Vec<M>) -> Result<bool, NetlinkError> {
        while !bytes.is_empty() {
            let message =
                NetlinkMessage::<M>::deserialize(bytes).map_err(|error| NetlinkError::Malformed(error.to_string()))?;
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            // Messages are aligned to 4 bytes (RFC 3549 section 2.3.2).
            let next = length.max(1).next_multiple_of(4).min(bytes.len());
            bytes = &bytes[next..];
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        Some(_) => Err(NetlinkError::Refused(error.to_io())),
                        None => Ok(true),
                    };
                }
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                _ => {}
            }
        }
        Ok(false)
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
