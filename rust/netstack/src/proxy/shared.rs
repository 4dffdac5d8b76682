//! What all services and clients of one runtime share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::associations::Associations;
use super::counters::{Presence, Tally, count};
use super::notice::{Notices, ProxyNotice};
use super::options::{Families, NameResolution, ProxyOptions};
use crate::stack::Stack;

/// Questions to this host's resolver under way at a time, each of which takes a thread.
const LOOKUPS: usize = 8;

pub(super) struct Shared {
    pub(super) stack: Stack,
    /// Of the stack's addresses, and so what can be reached through it.
    pub(super) families: Families,
    pub(super) name_resolution: NameResolution,
    pub(super) handshake_timeout: Duration,
    pub(super) association_timeout: Duration,
    pub(super) max_associations: usize,
    pub(super) tally: Arc<Tally>,
    pub(super) notices: Notices,
    pub(super) lookups: Arc<Semaphore>,
    /// Of SOCKS clients.
    pub(super) associations: Associations,
    slots: Arc<Semaphore>,
    /// Somebody has found the stack closed.
    pub(super) stack_closed: Notify,
}

/// A client's place among those that there may be.
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
    _presence: Presence,
}

impl Shared {
    pub(super) fn new(stack: Stack, options: &ProxyOptions, tally: Arc<Tally>, notices: Notices) -> Self {
        Shared {
            families: Families::of(&stack.addresses()),
            stack,
            name_resolution: options.name_resolution,
            handshake_timeout: options.handshake_timeout,
            association_timeout: options.association_timeout,
            max_associations: options.max_associations,
            associations: Associations::new(options.max_associations, &tally),
            tally,
            notices,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            slots: Arc::new(Semaphore::new(options.max_clients)),
            stack_closed: Notify::new(),
        }
    }

    /// Lets a client in, if there is room for it.
    pub(super) fn admit(&self) -> Option<Slot> {
        let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() else {
            count(&self.tally.refused_full, 1);
            return None;
        };
        count(&self.tally.clients_total, 1);
        Some(Slot { _permit: permit, _presence: Presence::new(&self.tally, |tally| &tally.clients) })
    }

    /// A client did not give a user and password that are known.
    pub(super) fn authentication_failed(&self, service: SocketAddr, client: SocketAddr) {
        count(&self.tally.auth_failures, 1);
        self.notices.tell(|| ProxyNotice::AuthenticationFailed { service, client });
    }
}
