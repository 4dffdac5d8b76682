//! How many incoming handshakes are under way, and what a newcomer meets therefore.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// From this many handshakes under way on, a client first has to prove its address (RFC 9000 section 8.1.2).
const RETRY_FROM: usize = 64;
/// From this many on, none is taken.
pub(crate) const REFUSE_FROM: usize = 512;
/// From this many of one proven address on, none is taken from it: nobody fills all the places alone. Addresses that are
/// not proven do not count, lest a forger fill the share of another.
const REFUSE_ADDRESS_FROM: usize = 128;

/// The handshakes that are under way.
#[derive(Debug, Default)]
pub(crate) struct Load {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: usize,
    /// Of proven addresses only; none is zero.
    by_address: HashMap<IpAddr, usize>,
}

/// What to do with a connection attempt.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Handshake, and drop the place when it is over.
    Accept(Place),
    /// Let it come again from an address that it can prove.
    Retry,
    Refuse(Overload),
}

/// Why a connection attempt was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Overload {
    #[error("{REFUSE_FROM} handshakes are under way, the most there may be")]
    All,
    #[error("{REFUSE_ADDRESS_FROM} handshakes with its address are under way, the most there may be")]
    Address,
}

/// One handshake that is under way.
#[derive(Debug)]
pub(crate) struct Place {
    load: Arc<Load>,
    address: Option<IpAddr>,
}

impl Load {
    /// Decides about a handshake with `remote`, whose address is `proven` or might be forged.
    pub(crate) fn decide(self: &Arc<Self>, remote: IpAddr, proven: bool) -> Decision {
        let mut state = self.lock();
        if state.all >= REFUSE_FROM {
            return Decision::Refuse(Overload::All);
        }
        if state.all >= RETRY_FROM && !proven {
            return Decision::Retry;
        }
        let address = proven.then(|| holder(remote));
        if let Some(address) = address {
            let count = state.by_address.entry(address).or_default();
            if *count >= REFUSE_ADDRESS_FROM {
                return Decision::Refuse(Overload::Address);
            }
            *count += 1;
        }
        state.all += 1;
        Decision::Accept(Place { load: Arc::clone(self), address })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.load.lock();
        state.all -= 1;
        if let Some(address) = self.address
            && let Some(count) = state.by_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                state.by_address.remove(&address);
            }
        }
    }
}

/// What one party holds at least: an IPv4 address, or 64 bits of an IPv6 one.
fn holder(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() >> 64 << 64).into(),
        addr => addr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(load: &Arc<Load>, count: usize, remote: &str, proven: bool) -> Vec<Place> {
        let remote = remote.parse().unwrap();
        let place = |n| match load.decide(remote, proven) {
            Decision::Accept(place) => place,
            other => panic!("{remote}, number {n}: {other:?}"),
        };
        (0..count).map(place).collect()
    }

    fn decide(load: &Arc<Load>, remote: &str, proven: bool) -> Decision {
        load.decide(remote.parse().unwrap(), proven)
    }

    #[test]
    fn unproven_addresses_fill_no_more_than_their_share() {
        let load = Arc::new(Load::default());
        let mut places = take(&load, RETRY_FROM, "192.0.2.1", false);
        assert!(matches!(decide(&load, "192.0.2.2", false), Decision::Retry));
        assert!(matches!(decide(&load, "192.0.2.1", true), Decision::Accept(_)));
        places.pop();
        assert!(matches!(decide(&load, "192.0.2.2", false), Decision::Accept(_)));
    }

    #[test]
    fn one_address_cannot_keep_the_others_out_and_four_can() {
        let load = Arc::new(Load::default());
        let mut places = Vec::new();
        for remote in ["192.0.2.1", "::ffff:192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"] {
            assert_eq!(load.lock().all, places.len());
            places.extend(take(&load, REFUSE_ADDRESS_FROM, remote, true));
            if places.len() < REFUSE_FROM {
                assert!(matches!(decide(&load, remote, true), Decision::Refuse(Overload::Address)));
            }
        }
        assert!(matches!(decide(&load, "192.0.2.9", true), Decision::Refuse(Overload::All)));
        assert!(matches!(decide(&load, "192.0.2.9", false), Decision::Refuse(Overload::All)));
        places.truncate(2 * REFUSE_ADDRESS_FROM + 1);
        assert!(matches!(decide(&load, "192.0.2.2", true), Decision::Refuse(Overload::Address)), "IPv4-mapped is IPv4");
        assert!(matches!(decide(&load, "2001:db8::ffff", true), Decision::Accept(_)));
        drop(places);
        let state = load.lock();
        assert_eq!((state.all, state.by_address.len()), (0, 0), "nothing is remembered of those that are over");
    }
}
