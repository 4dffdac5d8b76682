//! The stack as programs hold it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use icx_io::{Wakeup, clock};
use icx_proto::Instant;

use crate::core::{Core, StackCounters};
use crate::device::StackDevice;
use crate::echo::Echo;
use crate::error::{BindError, ConnectError};
use crate::options::{OptionsError, StackOptions};
use crate::tcp::{TcpListener, TcpStream};
use crate::udp::UdpSocket;

/// A TCP/IP stack, which any number of threads may hold and use. Sockets keep it; [`Stack::close`] ends it for all of them.
#[derive(Clone)]
pub struct Stack(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    core: Mutex<Guarded>,
    /// Readable when somebody has given the stack something to do since the pump last looked.
    pub(crate) wakeup: Wakeup,
}

struct Guarded {
    core: Core,
    is_woken: bool,
}

/// The stack while one thread works on it.
pub(crate) struct Locked<'a>(MutexGuard<'a, Guarded>);

impl std::ops::Deref for Locked<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.0.core
    }
}

impl std::ops::DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.0.core
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> Locked<'_> {
        Locked(self.core.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the pump look at the stack.
    pub(crate) fn wake(&self, mut locked: Locked<'_>) {
        if !locked.0.is_woken {
            locked.0.is_woken = true;
            self.wakeup.set();
        }
    }

    /// The pump looks: whoever has something for it from now on has to wake it.
    pub(crate) fn look(&self, locked: &mut Locked<'_>) {
        if locked.0.is_woken {
            locked.0.is_woken = false;
            self.wakeup.clear();
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why there is no stack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("cannot make an eventfd: {0}")]
    Wakeup(#[source] io::Error),
}

impl Stack {
    /// Makes a stack, and the device through which its packets move.
    pub fn open(options: StackOptions) -> Result<(Stack, StackDevice), OpenError> {
        options.check()?;
        let wakeup = Wakeup::new().map_err(OpenError::Wakeup)?;
        let never = Wakeup::new().map_err(OpenError::Wakeup)?;
        let queues = options.queues.get().into();
        let guarded = Guarded { core: Core::new(options, clock::now()), is_woken: false };
        let shared = Arc::new(Shared { core: Mutex::new(guarded), wakeup });
        Ok((Stack(Arc::clone(&shared)), StackDevice { shared, queues, never }))
    }

    /// Begins a connection; the stream says when it is there, or why not.
    pub fn connect(&self, remote: SocketAddr) -> Result<TcpStream, ConnectError> {
        let mut core = self.0.lock();
        let (id, flow) = core.connect(remote)?;
        self.0.wake(core);
        Ok(TcpStream::new(Arc::clone(&self.0), id, flow.local, flow.remote))
    }

    /// Listens on a port of all its addresses; 0: on one that is free.
    pub fn listen(&self, port: u16) -> Result<TcpListener, BindError> {
        let port = self.0.lock().listen(port)?;
        Ok(TcpListener::new(Arc::clone(&self.0), port))
    }

    /// Opens a datagram socket on a port of all its addresses; 0: on one that is free.
    pub fn bind_datagram(&self, port: u16) -> Result<UdpSocket, BindError> {
        UdpSocket::bind(Arc::clone(&self.0), port)
    }

    /// Opens what sends echo requests and hears the replies.
    pub fn echo(&self) -> Result<Echo, BindError> {
        Echo::open(Arc::clone(&self.0))
    }

    /// Its addresses with the prefix lengths of their networks.
    pub fn addresses(&self) -> Vec<(IpAddr, u8)> {
        self.0.lock().addresses().to_vec()
    }

    /// The own address to reach `remote` from, if there is one.
    pub fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        self.0.lock().source_for(remote)
    }

    pub fn mtu(&self) -> u32 {
        self.0.lock().mtu()
    }

    pub fn counters(&self) -> StackCounters {
        self.0.lock().counters()
    }

    /// Ends all connections and listeners at once. May be called again.
    pub fn close(&self) {
        self.0.lock().close();
    }

    pub(crate) fn now() -> Instant {
        clock::now()
    }
}
