//! One TCP connection: its socket, and who has it.

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::Instant as SmolInstant;

use icx_proto::Instant;

use super::acknowledgements::Acknowledgements;
use super::wire::Flow;
use crate::error::StreamError;
use crate::options::{Congestion, StackOptions};

/// Names a connection for its life; never used again.
pub(crate) type Id = u64;

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// It is to be accepted on the listener of this number.
    Listener(u64),
    /// Somebody holds its stream.
    Stream,
    /// Nobody does: it ends by itself, at the latest then.
    None { until: Instant },
}

pub(super) struct Connection {
    /// Of one socket: smoltcp looks through sets from the front each time, which would be neither quick nor fair.
    set: SocketSet<'static>,
    handle: SocketHandle,
    pub(super) flow: Flow,
    pub(super) owner: Owner,
    /// The state when it was last looked at.
    pub(super) state: State,
    pub(super) established: bool,
    pub(super) failure: Option<StreamError>,
    pub(super) acknowledgements: Acknowledgements,
    /// It waits for its turn to send.
    pub(super) queued: bool,
    /// The earliest timer that will look at it.
    pub(super) armed: Option<Instant>,
    /// When it has something to do.
    pub(super) due: Option<Instant>,
}

impl Connection {
    pub(super) fn new(flow: Flow, owner: Owner, options: &StackOptions) -> Self {
        let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
        let mut socket = tcp::Socket::new(buffer(options.receive_buffer), buffer(options.send_buffer));
        socket.set_congestion_control(match options.congestion {
            Congestion::Cubic => tcp::CongestionControl::Cubic,
            Congestion::Reno => tcp::CongestionControl::Reno,
            Congestion::None => tcp::CongestionControl::None,
        });
        // What is written together is sent together; what is written alone has somebody waiting for it.
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(duration(options.connect_timeout)));
        // Of a connection that is there already smoltcp would ask at once.
        socket.set_keep_alive(options.keep_alive.map(duration));
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Connection {
            set,
            handle,
            flow,
            owner,
            state: State::Closed,
            established: false,
            failure: None,
            acknowledgements: Acknowledgements::default(),
            queued: false,
            armed: None,
            due: None,
        }
    }

    pub(super) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    pub(super) fn set(&mut self) -> &mut SocketSet<'static> {
        &mut self.set
    }

    /// The handshake is over.
    pub(super) fn establish(&mut self, options: &StackOptions) {
        self.established = true;
        self.socket().set_timeout(Some(duration(options.user_timeout)));
    }
}

fn duration(duration: std::time::Duration) -> smoltcp::time::Duration {
    smoltcp::time::Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

pub(super) fn to_smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

/// Rounded up, so that nothing is looked at before it is due.
pub(super) fn from_smol(at: SmolInstant) -> Instant {
    Instant::from_nanos(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000))
}
