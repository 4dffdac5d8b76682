//! Names, asked for on the inner side.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use smoltcp::socket::dns::{GetQueryResultError, QueryHandle, StartQueryError};
use smoltcp::wire::DnsQueryType;

use crate::stack::{Shared, Stack};

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    #[error("there is no name server to ask for {0}: give one")]
    NoServer(String),
    #[error("{0:?} is no name: labels have 1 to 63 bytes, and a name 253")]
    BadName(String),
    #[error("no name server has an address for {0}, or none has answered")]
    NotFound(String),
    #[error("the stack has been closed")]
    StackClosed,
}

/// A name that is being asked for. It is ready with its addresses, IPv4 ones if `AAAA` is not asked for.
#[must_use = "nothing is asked for until it is polled"]
pub struct Resolution {
    shared: Arc<Shared>,
    name: String,
    kind: DnsQueryType,
    query: Option<QueryHandle>,
}

impl std::fmt::Debug for Resolution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolution").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Stack {
    /// Asks the name servers for the addresses of a name: of IPv6 if `v6`, else of IPv4.
    pub fn resolve(&self, name: &str, v6: bool) -> Resolution {
        let kind = if v6 { DnsQueryType::Aaaa } else { DnsQueryType::A };
        Resolution { shared: Arc::clone(&self.0), name: name.trim_end_matches('.').to_owned(), kind, query: None }
    }
}

impl Future for Resolution {
    type Output = Result<Vec<IpAddr>, ResolveError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let not_found = || Poll::Ready(Err(ResolveError::NotFound(this.name.clone())));
        let mut core = this.shared.lock();
        if core.is_closed() {
            return Poll::Ready(Err(ResolveError::StackClosed));
        }
        if core.name_servers().is_empty() {
            return Poll::Ready(Err(ResolveError::NoServer(this.name.clone())));
        }
        let (resolver, interface) = core.resolver();
        let query = match this.query {
            Some(query) => query,
            None => match resolver.start_query(interface, &this.name, this.kind) {
                Ok(query) => {
                    this.query = Some(query);
                    resolver.register_query_waker(query, context.waker());
                    core.stir_datagrams(Stack::now());
                    this.shared.wake(core);
                    return Poll::Pending;
                }
                Err(StartQueryError::InvalidName | StartQueryError::NameTooLong) => {
                    return Poll::Ready(Err(ResolveError::BadName(this.name.clone())));
                }
                Err(StartQueryError::NoFreeSlot) => return not_found(),
            },
        };
        match resolver.get_query_result(query) {
            Ok(addresses) => {
                this.query = None;
                Poll::Ready(Ok(addresses.into_iter().map(IpAddr::from).collect()))
            }
            Err(GetQueryResultError::Pending) => {
                resolver.register_query_waker(query, context.waker());
                Poll::Pending
            }
            Err(GetQueryResultError::Failed) => {
                this.query = None;
                not_found()
            }
        }
    }
}

impl Drop for Resolution {
    fn drop(&mut self) {
        if let Some(query) = self.query {
            self.shared.lock().resolver().0.cancel_query(query);
        }
    }
}
