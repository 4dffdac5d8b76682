//! What proxies count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes the figures, a plain struct, and the counters behind them.
macro_rules! counters {
    ($(#[$about:meta])* $figures:ident of $tally:ident: $($(#[$doc:meta])* $name:ident,)+) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $figures {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl $figures {
            /// In the order of `values`. Append only.
            pub const NAMES: [&str; [$(stringify!($name)),+].len()] = [$(stringify!($name)),+];

            pub fn values(&self) -> [u64; Self::NAMES.len()] {
                [$(self.$name),+]
            }
        }

        #[derive(Debug, Default)]
        pub(super) struct $tally {
            $(pub(super) $name: AtomicU64,)+
        }

        impl $tally {
            pub(super) fn figures(&self) -> $figures {
                $figures { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// What proxies have done since the start, all services together.
    ProxyCounters of Tally:
    /// Clients that are there now.
    clients,
    /// Clients that were let in.
    clients_total,
    /// Payload bytes of connections into the tunnel, and from it.
    bytes_to_tunnel,
    bytes_from_tunnel,
    /// Datagrams into the tunnel, and from it.
    datagrams_to_tunnel,
    datagrams_from_tunnel,
    /// Clients that were refused because there were as many as there may be.
    refused_full,
    /// Clients that took too long to say what they want.
    refused_slow,
    /// Clients that did not speak the protocol, or left in the middle of saying what they want.
    refused_malformed,
    /// Clients that asked for what is not offered: another method or command, or a kind of address.
    refused_unsupported,
    /// Clients that did not give a user and password that are known.
    auth_failures,
    /// Names without an address.
    names_failed,
    /// Connections that could not be made, to either side.
    connect_failures,
    /// Connections of which one side was reset, and so the other.
    resets,
    /// Times that a connection or datagram could not be accepted.
    accept_errors,
    /// UDP associations of SOCKS clients and flows of UDP forwards that are there now.
    associations,
    /// Those that were made.
    associations_total,
    /// Those that ended to make room for newer ones.
    associations_evicted,
    /// Datagrams dropped: from strangers, without a destination that can be reached, or without room on the way.
    datagrams_dropped,
    /// Fragments of SOCKS datagrams, which are dropped (RFC 1928 section 7).
    fragments_dropped,
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Something that counts as there until it is dropped.
#[derive(Debug)]
pub(super) struct Presence {
    tally: Arc<Tally>,
    gauge: fn(&Tally) -> &AtomicU64,
}

impl Presence {
    pub(super) fn new(tally: &Arc<Tally>, gauge: fn(&Tally) -> &AtomicU64) -> Self {
        count(gauge(tally), 1);
        Presence { tally: Arc::clone(tally), gauge }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        (self.gauge)(&self.tally).fetch_sub(1, Ordering::Relaxed);
    }
}
