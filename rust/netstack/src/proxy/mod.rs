//! Proxies and forwards between this host and a stack: what comes to a port of the one side goes to the other.
//!
//! All of them run on one thread, which moves every byte itself. What a client can take of it is limited: a place, a buffer for
//! each direction, and a turn before others have theirs.

mod associations;
mod counters;
mod credentials;
mod datagrams;
mod dial;
mod error;
mod http;
mod listen;
mod notice;
mod options;
mod relay;
mod reverse;
mod serve;
mod shared;
mod socks;
mod target;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::runtime::{self, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use self::counters::Tally;
use self::listen::Listening;
use self::notice::{Notices, OnNotice};
use self::shared::Shared;
use crate::stack::Stack;

pub use self::counters::ProxyCounters;
pub use self::credentials::{Credentials, CredentialsError};
pub use self::error::ProxyError;
pub use self::listen::Address;
pub use self::notice::ProxyNotice;
pub use self::options::{NameResolution, Protocol, ProxyOptions, Service};
pub use self::target::{Host, Target, TargetError};

/// What proxies read from strangers, for those who try to break it.
#[doc(hidden)]
pub mod parsers {
    use super::http;
    use super::socks::wire;
    use super::target::Target;

    /// Where a request's head ends, and where the request wants to go; the texts of refusals otherwise.
    pub fn http_connect(bytes: &[u8]) -> Option<(usize, Result<Target, String>)> {
        let len = http::end_of_head(bytes, 0)?;
        Some((len, http::check(&bytes[..len], None).map_err(|refusal| refusal.response())))
    }

    /// The same of what has come in two pieces.
    pub fn http_head_of_pieces(bytes: &[u8], first: usize) -> Option<usize> {
        http::end_of_head(&bytes[..first], 0).or_else(|| http::end_of_head(bytes, first))
    }

    /// An address of SOCKS and its length.
    pub fn socks_address(bytes: &[u8]) -> Option<(Target, usize)> {
        wire::read_address(bytes)
    }

    /// A datagram's fragment number, its target and its payload.
    pub fn socks_datagram(bytes: &[u8]) -> Option<(u8, Target, &[u8])> {
        wire::read_datagram(bytes).map(|(header, payload)| (header.fragment, header.target, payload))
    }

    /// What [`socks_address`] reads, of an address.
    pub fn write_socks_address(address: std::net::SocketAddr) -> Vec<u8> {
        let mut bytes = Vec::new();
        wire::write_address(address, &mut bytes);
        bytes
    }
}

/// Called once, after everything is closed.
type OnEnd = Box<dyn FnOnce(Result<(), ProxyError>) + Send>;

/// Running proxies. Dropping them stops them and waits for their thread.
#[derive(Debug)]
pub struct Proxies {
    addresses: Vec<Address>,
    tally: Arc<Tally>,
    stop: Arc<Notify>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Proxies {
    /// Starts the services of `options`: all of them listen when this returns, or none does.
    ///
    /// `on_notice` may be called from the thread of the proxies while they run, and must not wait.
    ///
    /// `on_end` is called exactly once, from that thread, after everything is closed: with `Ok` after a stop. It must not stop, join or
    /// drop the proxies. When this returns an error, `on_end` is not called.
    pub fn start(
        stack: Stack,
        options: ProxyOptions,
        on_notice: Box<dyn Fn(ProxyNotice) + Send + Sync>,
        on_end: Box<dyn FnOnce(Result<(), ProxyError>) + Send>,
    ) -> Result<Proxies, ProxyError> {
        options.check()?;
        let runtime =
            runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(ProxyError::Runtime)?;
        let services = {
            let _context = runtime.enter();
            listen::open(&stack, &options.services)?
        };
        let addresses = services.iter().map(Listening::address).collect();
        let (tally, stop) = (Arc::new(Tally::default()), Arc::new(Notify::new()));
        let shared = shared(stack, &options, &tally, on_notice);
        let body = {
            let stop = Arc::clone(&stop);
            move || run(runtime, shared, services, &stop, on_end)
        };
        let thread = thread::Builder::new().name("icx-proxy".to_owned()).spawn(body).map_err(ProxyError::Thread)?;
        Ok(Proxies { addresses, tally, stop, thread: Mutex::new(Some(thread)) })
    }

    /// Where the services listen, in the order of the options.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The counters as they stand, also after the end.
    pub fn counters(&self) -> ProxyCounters {
        self.tally.figures()
    }

    /// Tells the proxies to end, and does not wait. Connections are cut. Harmless when they have ended.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// Waits until the proxies have ended, whoever told them to. A question to this host's resolver that is under way is waited for, as it
    /// cannot be taken back.
    pub fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            // A panic there has been reported by the panic hook; here nothing is left to do about it.
            let _ = thread.join();
        }
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}

fn shared(stack: Stack, options: &ProxyOptions, tally: &Arc<Tally>, on_notice: OnNotice) -> Arc<Shared> {
    Arc::new(Shared::new(stack, options, Arc::clone(tally), Notices::new(on_notice)))
}

/// The thread of the proxies.
fn run(runtime: Runtime, shared: Arc<Shared>, services: Vec<Listening>, stop: &Notify, on_end: OnEnd) {
    let outcome = runtime.block_on(async {
        let mut running = JoinSet::new();
        for service in services {
            running.spawn(service.serve(Arc::clone(&shared)));
        }
        tokio::select! {
            () = stop.notified() => Ok(()),
            () = shared.stack_closed.notified() => Err(ProxyError::StackClosed),
            // Nothing else ends a service.
            Some(ended) = running.join_next() => Err(match ended {
                Ok(()) => ProxyError::StackClosed,
                Err(error) => ProxyError::Panicked { message: error.to_string() },
            }),
        }
    });
    drop(runtime);
    drop(shared);
    on_end(outcome);
}
