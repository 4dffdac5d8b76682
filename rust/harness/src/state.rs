//! State machines against plain models of the same.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use arbitrary::{Arbitrary, Unstructured};
use icx_control::spi::{AnnounceError, AnnouncedSpis};
use icx_proto::counters::RxDrop;
use icx_proto::rate_limit::RateLimit;
use icx_proto::replay::{COUNTER_LIMIT, ReplayWindow};
use icx_proto::routes::{PeerRoutes, RouteError, RouteTable};
use icx_proto::wire::inner::Inner;
use icx_proto::{AllowedRoute, Instant, IpPrefix, Spi, Vni};

/// The operations that bytes stand for; what is left over, or too short, counts for nothing.
pub(crate) fn decode<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Vec<T> {
    let mut input = Unstructured::new(bytes);
    let mut operations = Vec::new();
    while !input.is_empty() && operations.len() < 4096 {
        match T::arbitrary(&mut input) {
            Ok(operation) => operations.push(operation),
            Err(_) => break,
        }
    }
    operations
}

#[derive(Arbitrary)]
enum Counter {
    /// From the last one.
    Step(i8),
    /// From the far edge of the window.
    Edge(i8),
    Leap(i16),
    Any(u64),
    /// From the first value that is never accepted.
    Limit(i8),
}

/// The replay window against a set of all that was accepted.
pub fn replay_window(input: &[u8]) {
    let operations: Vec<Counter> = decode(input);
    check_window::<128>(&operations);
    check_window::<2>(&operations);
}

fn check_window<const N: usize>(operations: &[Counter]) {
    let size = ReplayWindow::<N>::WINDOW;
    let window = ReplayWindow::<N>::new();
    let mut seen = HashSet::new();
    let mut last = 0u64;
    let mut at = 0u64;
    for operation in operations {
        at = match operation {
            Counter::Step(by) => at.saturating_add_signed((*by).into()),
            Counter::Edge(by) => last.saturating_sub(size).saturating_add_signed((*by).into()),
            Counter::Leap(by) => at.saturating_add_signed(i64::from(*by) * 64),
            Counter::Any(value) => *value,
            Counter::Limit(by) => COUNTER_LIMIT.saturating_add_signed((*by).into()),
        };
        let in_window = at < COUNTER_LIMIT && last.saturating_sub(at) <= size;
        let expected = in_window && seen.insert(at);
        assert_eq!(window.check_and_update(at), expected, "counter {at} after {last}");
        if expected {
            last = last.max(at);
        }
    }
}

#[derive(Arbitrary)]
enum RateStep {
    /// So many frames at once.
    Frames(u8),
    Milliseconds(u16),
    Nanoseconds(u32),
    Back(u32),
    Limit(u16),
}

/// The rate limit against a plain count of frames by period and tenth.
pub fn rate_limit(input: &[u8]) {
    const SECOND: u64 = 1_000_000_000;
    let limiter = RateLimit::new(None);
    let mut limit = 0u64;
    let mut now = 5 * SECOND;
    // When the period began, and the number of the next frame in it.
    let mut period: Option<(u64, u64)> = None;
    for step in decode::<RateStep>(input) {
        match step {
            RateStep::Milliseconds(by) => now += u64::from(by) * 1_000_000,
            RateStep::Nanoseconds(by) => now += u64::from(by),
            RateStep::Back(by) => now = now.saturating_sub(by.into()).max(1),
            RateStep::Limit(to) => {
                limit = to.into();
                limiter.set(Some(to.into()));
                assert_eq!(limiter.get(), (to != 0).then_some(to.into()));
            }
            RateStep::Frames(count) => {
                for _ in 0..count {
                    let expected = if limit == 0 {
                        true
                    } else {
                        let over = period.is_none_or(|(start, _)| now >= start + SECOND || now + SECOND <= start);
                        let (start, next) = if over { (now, 0) } else { period.unwrap_or_default() };
                        let tenth = now.saturating_sub(start) * 10 / SECOND;
                        let next = next.max((limit * tenth).div_ceil(10));
                        // A period always takes its first frame.
                        let passes = over || next < (limit * (tenth + 1)).div_ceil(10);
                        if passes {
                            period = Some((start, next + 1));
                        }
                        passes
                    };
                    assert_eq!(limiter.admit(Instant::from_nanos(now)), expected, "limit {limit} at {now}");
                }
            }
        }
    }
}

/// A prefix of one of few networks, so that they nest and meet.
#[derive(Arbitrary, Clone, Copy)]
struct Prefix {
    v6: bool,
    top: u8,
    low: u8,
    len: u8,
}

impl Prefix {
    fn addr(self) -> IpAddr {
        let (top, low) = (self.top & 0xf0, self.low & 3);
        if self.v6 {
            let mut octets = [0; 16];
            (octets[0], octets[15]) = (top, low);
            IpAddr::from(octets)
        } else {
            IpAddr::from([top, 0, 0, low])
        }
    }

    fn prefix(self) -> IpPrefix {
        let max = if self.v6 { 128 } else { 32 };
        let len = match self.len % 8 {
            len @ 0..=4 => len,
            5 => max - 2,
            6 => max - 1,
            _ => max,
        };
        match IpPrefix::new(self.addr(), len) {
            Ok(prefix) => prefix,
            Err(icx_proto::routes::PrefixError::HostBits { corrected, .. }) => corrected,
            Err(error) => panic!("{error}"),
        }
    }
}

#[derive(Arbitrary)]
enum RouteStep {
    Add { vni: u8, src: Prefix, dst: Prefix },
    Look { src: Prefix, dst: Prefix },
}

/// Routes against a plain search through all of them.
pub fn route_table(input: &[u8]) {
    let mut networks: BTreeMap<u32, Vec<AllowedRoute>> = BTreeMap::new();
    let mut owners: BTreeMap<AllowedRoute, u32> = BTreeMap::new();
    let mut table = RouteTable::<u32>::empty();
    for step in decode::<RouteStep>(input).into_iter().take(64) {
        match step {
            RouteStep::Add { vni, src, dst } => {
                let vni = u32::from(vni % 4);
                let route = AllowedRoute { src: src.prefix(), dst: dst.prefix() };
                let mut changed = networks.clone();
                changed.entry(vni).or_default().push(route);
                let built = build(&changed);
                let owner = owners.get(&route).copied();
                if src.v6 != dst.v6 {
                    assert_eq!(built.err(), Some(RouteError::MixedFamilies { route }));
                    assert!(PeerRoutes::build(&changed[&vni]).is_err());
                } else if owner.is_some_and(|owner| owner != vni) {
                    assert!(matches!(built, Err(RouteError::Taken { route: taken, .. }) if taken == route));
                } else {
                    table = built.expect("no conflict");
                    networks = changed;
                    owners.insert(route, vni);
                }
            }
            RouteStep::Look { src, dst } => {
                let (src, dst) = (src.addr(), dst.addr());
                let Some(packet) = Inner::from_addrs(src, dst) else { continue };
                let holds = |route: &&AllowedRoute, from, to| route.src.contains(from) && route.dst.contains(to);
                let best = owners
                    .keys()
                    .filter(|route| holds(route, src, dst))
                    .max_by_key(|route| (route.dst.prefix_len(), route.src.prefix_len()));
                assert_eq!(table.lookup(&packet), best.map(|route| &owners[route]));
                for routes in networks.values() {
                    let expected = if routes.iter().any(|route| holds(&route, dst, src)) {
                        Ok(())
                    } else if routes.iter().any(|route| route.dst.contains(src)) {
                        Err(RxDrop::InvalidDst)
                    } else {
                        Err(RxDrop::InvalidSrc)
                    };
                    assert_eq!(PeerRoutes::build(routes).expect("no mixture").check(&packet), expected);
                }
            }
        }
    }
}

fn build(networks: &BTreeMap<u32, Vec<AllowedRoute>>) -> Result<RouteTable<u32>, RouteError> {
    let vni = |number: u32| Vni::new(number).expect("small");
    RouteTable::build(networks.iter().map(|(number, routes)| (vni(*number), *number, &routes[..])))
}

#[derive(Arbitrary)]
enum Announcement {
    Next,
    Step(i8),
    Any(u32),
}

/// Announced SPIs against a set of them.
pub fn announced_spis(input: &[u8]) {
    let mut announced = AnnouncedSpis::default();
    let mut seen = HashSet::new();
    let mut at = 1u32;
    for announcement in decode(input) {
        at = match announcement {
            Announcement::Next => at.saturating_add(1),
            Announcement::Step(by) => at.saturating_add_signed(by.into()),
            Announcement::Any(number) => number,
        };
        let Some(spi) = Spi::new(at) else { continue };
        match announced.announce(spi) {
            Ok(()) => assert!(seen.insert(spi), "{spi} a second time"),
            Err(AnnounceError::Again(again)) => assert!(again == spi && seen.contains(&spi)),
            // Fewer announcements than ranges fit.
            Err(error) => assert!(seen.len() >= AnnouncedSpis::MAX_RANGES, "{error}"),
        }
    }
}
