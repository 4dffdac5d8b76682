//! Allowed routes: which inner addresses belong to which VNI.

use core::fmt;
use core::str::FromStr;
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::counters::RxDrop;
use crate::id::Vni;
use crate::wire::inner::Inner;

/// An IP prefix without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpPrefix {
    addr: IpAddr,
    len: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrefixError {
    #[error("'{0}' is not an IP prefix: write ADDRESS/LENGTH, such as 10.0.0.0/8 or fd00::/64")]
    Syntax(String),
    #[error("prefix length {given} is above {max}")]
    Length { given: u32, max: u8 },
    #[error("{given} has host bits set: did you mean {corrected}?")]
    HostBits { given: String, corrected: IpPrefix },
}

impl IpPrefix {
    /// Every IPv4 address.
    pub const ALL_V4: IpPrefix = IpPrefix { addr: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), len: 0 };
    /// Every IPv6 address, the IPv4-mapped ones among them.
    pub const ALL_V6: IpPrefix = IpPrefix { addr: IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), len: 0 };

    pub fn new(addr: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let max = max_len(addr);
        if len > max {
            return Err(PrefixError::Length { given: len.into(), max });
        }
        let network = match addr {
            IpAddr::V4(addr) => IpAddr::from((addr.to_bits() & u32::mask(len)).to_be_bytes()),
            IpAddr::V6(addr) => IpAddr::from((addr.to_bits() & u128::mask(len)).to_be_bytes()),
        };
        let prefix = IpPrefix { addr: network, len };
        if network != addr {
            return Err(PrefixError::HostBits { given: format!("{addr}/{len}"), corrected: prefix });
        }
        Ok(prefix)
    }

    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Whether the address lies within. Families never mix.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(network), IpAddr::V4(addr)) => addr.to_bits() & u32::mask(self.len) == network.to_bits(),
            (IpAddr::V6(network), IpAddr::V6(addr)) => addr.to_bits() & u128::mask(self.len) == network.to_bits(),
            _ => false,
        }
    }
}

const fn max_len(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

impl FromStr for IpPrefix {
    type Err = PrefixError;

    /// `ADDRESS/LENGTH`, or a bare address for that one address.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let syntax = || PrefixError::Syntax(text.to_owned());
        let (addr, len) = match text.split_once('/') {
            Some((addr, len)) => (addr, Some(len)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| syntax())?;
        let max = max_len(addr);
        let len = match len {
            None => max,
            Some(digits) => {
                // The number parser would take a sign.
                if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
                    return Err(syntax());
                }
                let given = digits.parse().map_err(|_| syntax())?;
                u8::try_from(given).ok().filter(|len| *len <= max).ok_or(PrefixError::Length { given, max })?
            }
        };
        IpPrefix::new(addr, len)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// A pair of prefixes as seen from this node: sending needs the inner source in `src` and the destination in `dst`;
/// receiving the reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowedRoute {
    pub src: IpPrefix,
    pub dst: IpPrefix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    #[error("route {}={} belongs to VNI {owner} already", route.src, route.dst)]
    Taken { route: AllowedRoute, owner: Vni },
    #[error("route {}={} mixes IPv4 and IPv6", route.src, route.dst)]
    MixedFamilies { route: AllowedRoute },
}

/// All routes of all VNIs, for sending. A value never changes: an update builds another one.
#[derive(Clone, Debug)]
pub struct RouteTable<T> {
    v4: PrefixMap<u32, PrefixMap<u32, T>>,
    v6: PrefixMap<u128, PrefixMap<u128, T>>,
}

impl<T: Clone> RouteTable<T> {
    /// Builds the table of `(vni, what a lookup gives, routes)`. The same pair twice in one VNI is fine; in two it
    /// is an error.
    pub fn build<'a>(networks: impl IntoIterator<Item = (Vni, T, &'a [AllowedRoute])>) -> Result<Self, RouteError> {
        let mut v4 = Pairs::new();
        let mut v6 = Pairs::new();
        for (vni, value, routes) in networks {
            for route in routes {
                let key = route.key()?;
                let previous = match key {
                    RouteKey::V4 { src, dst } => insert(&mut v4, dst, src, (vni, value.clone())),
                    RouteKey::V6 { src, dst } => insert(&mut v6, dst, src, (vni, value.clone())),
                };
                if let Some((owner, _)) = previous.filter(|(owner, _)| *owner != vni) {
                    return Err(RouteError::Taken { route: *route, owner });
                }
            }
        }
        Ok(RouteTable { v4: nested(v4, |(_, value)| value), v6: nested(v6, |(_, value)| value) })
    }

    /// A table without routes.
    pub fn empty() -> Self {
        RouteTable { v4: PrefixMap::default(), v6: PrefixMap::default() }
    }

    /// The entry with the longest destination prefix that has any entry for the source, and of those the one with the
    /// longest source prefix.
    #[inline]
    pub fn lookup(&self, packet: &Inner) -> Option<&T> {
        match *packet {
            Inner::V4 { src, dst } => self.v4.matches(dst).find_map(|sources| sources.matches(src).next()),
            Inner::V6 { src, dst } => self.v6.matches(dst).find_map(|sources| sources.matches(src).next()),
        }
    }
}

/// The routes of one VNI, for checking what its peer sent.
#[derive(Clone, Debug, Default)]
pub struct PeerRoutes {
    v4: PrefixMap<u32, PrefixMap<u32, ()>>,
    v6: PrefixMap<u128, PrefixMap<u128, ()>>,
}

impl PeerRoutes {
    pub fn build(routes: &[AllowedRoute]) -> Result<Self, RouteError> {
        let mut v4 = Pairs::new();
        let mut v6 = Pairs::new();
        for route in routes {
            match route.key()? {
                RouteKey::V4 { src, dst } => insert(&mut v4, dst, src, ()),
                RouteKey::V6 { src, dst } => insert(&mut v6, dst, src, ()),
            };
        }
        Ok(PeerRoutes { v4: nested(v4, |()| ()), v6: nested(v6, |()| ()) })
    }

    /// Accepts a packet with its source in the destination prefix and its destination in the source prefix of one
    /// route. [`RxDrop::InvalidSrc`]: no destination prefix holds the source; [`RxDrop::InvalidDst`]: some do, but none
    /// goes with the destination.
    #[inline]
    pub fn check(&self, packet: &Inner) -> Result<(), RxDrop> {
        match *packet {
            Inner::V4 { src, dst } => check(&self.v4, src, dst),
            Inner::V6 { src, dst } => check(&self.v6, src, dst),
        }
    }
}

#[inline]
fn check<A: Bits>(routes: &PrefixMap<A, PrefixMap<A, ()>>, src: A, dst: A) -> Result<(), RxDrop> {
    let mut verdict = Err(RxDrop::InvalidSrc);
    for sources in routes.matches(src) {
        if sources.matches(dst).next().is_some() {
            return Ok(());
        }
        verdict = Err(RxDrop::InvalidDst);
    }
    verdict
}

/// A prefix as its length and network number.
type Key<A> = (u8, A);

enum RouteKey {
    V4 { src: Key<u32>, dst: Key<u32> },
    V6 { src: Key<u128>, dst: Key<u128> },
}

impl AllowedRoute {
    fn key(&self) -> Result<RouteKey, RouteError> {
        match (self.src.addr, self.dst.addr) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                Ok(RouteKey::V4 { src: (self.src.len, src.to_bits()), dst: (self.dst.len, dst.to_bits()) })
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                Ok(RouteKey::V6 { src: (self.src.len, src.to_bits()), dst: (self.dst.len, dst.to_bits()) })
            }
            _ => Err(RouteError::MixedFamilies { route: *self }),
        }
    }
}

/// Entries by destination, then by source.
type Pairs<A, T> = BTreeMap<Key<A>, BTreeMap<Key<A>, T>>;

/// Puts an entry in, and returns the one that was there.
fn insert<A: Bits, T>(pairs: &mut Pairs<A, T>, dst: Key<A>, src: Key<A>, value: T) -> Option<T> {
    pairs.entry(dst).or_default().insert(src, value)
}

fn nested<A: Bits, T, U>(pairs: Pairs<A, T>, value_of: impl Fn(T) -> U + Copy) -> PrefixMap<A, PrefixMap<A, U>> {
    let sources = |entries: BTreeMap<Key<A>, T>| entries.into_iter().map(|(key, value)| (key, value_of(value)));
    PrefixMap::from_sorted(pairs.into_iter().map(|(key, entries)| (key, PrefixMap::from_sorted(sources(entries)))))
}

/// An address as a number.
trait Bits: Copy + Ord + core::ops::BitAnd<Output = Self> {
    /// The number with the first `len` bits set.
    fn mask(len: u8) -> Self;
}

impl Bits for u32 {
    #[inline]
    fn mask(len: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0)
    }
}

impl Bits for u128 {
    #[inline]
    fn mask(len: u8) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0)
    }
}

/// Values by prefix: one level for each length in use, the longest first, the networks of each in order.
#[derive(Clone, Debug)]
struct PrefixMap<A, V> {
    levels: Box<[Level<A, V>]>,
}

#[derive(Clone, Debug)]
struct Level<A, V> {
    mask: A,
    /// In ascending order; as many as `values`.
    networks: Box<[A]>,
    values: Box<[V]>,
}

impl<A, V> Default for PrefixMap<A, V> {
    fn default() -> Self {
        PrefixMap { levels: Box::default() }
    }
}

impl<A: Bits, V> PrefixMap<A, V> {
    /// From entries in ascending order of length, then of network, none twice.
    fn from_sorted(entries: impl Iterator<Item = (Key<A>, V)>) -> Self {
        let mut levels: Vec<(u8, Vec<A>, Vec<V>)> = Vec::new();
        for ((len, network), value) in entries {
            match levels.last_mut() {
                Some((last, networks, values)) if *last == len => {
                    networks.push(network);
                    values.push(value);
                }
                _ => levels.push((len, vec![network], vec![value])),
            }
        }
        let level = |(len, networks, values): (u8, Vec<A>, Vec<V>)| Level {
            mask: A::mask(len),
            networks: networks.into(),
            values: values.into(),
        };
        PrefixMap { levels: levels.into_iter().rev().map(level).collect() }
    }

    /// The values of all prefixes that hold the address, the longest prefix first.
    #[inline]
    fn matches(&self, addr: A) -> impl Iterator<Item = &V> {
        self.levels.iter().filter_map(move |level| {
            let index = level.networks.binary_search(&(addr & level.mask)).ok()?;
            level.values.get(index)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> IpPrefix {
        text.parse().unwrap()
    }

    fn route(src: &str, dst: &str) -> AllowedRoute {
        AllowedRoute { src: prefix(src), dst: prefix(dst) }
    }

    fn packet(src: &str, dst: &str) -> Inner {
        Inner::from_addrs(src.parse().unwrap(), dst.parse().unwrap()).unwrap()
    }

    fn table(networks: &[(u32, &[AllowedRoute])]) -> Result<RouteTable<u32>, RouteError> {
        RouteTable::build(networks.iter().map(|(vni, routes)| (Vni::new(*vni).unwrap(), *vni, *routes)))
    }

    #[test]
    fn prefixes_parse_and_print() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "::/0", "fd00::/64", "::1/128", "::ffff:10.0.0.0/104"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("10.1.2.3"), prefix("10.1.2.3/32"));
        assert_eq!(prefix("fd00::1"), prefix("fd00::1/128"));
        assert_eq!((prefix("0.0.0.0/0"), prefix("::/0")), (IpPrefix::ALL_V4, IpPrefix::ALL_V6));
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in
            ["", "/", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/-8", "10.0.0.0/8/8", "ten/8", "10.0.0/8", "10.0.0.0/ 8"]
        {
            assert_eq!(text.parse::<IpPrefix>(), Err(PrefixError::Syntax(text.to_owned())));
        }
        assert_eq!("10.0.0.0/33".parse::<IpPrefix>(), Err(PrefixError::Length { given: 33, max: 32 }));
        assert_eq!("fd00::/129".parse::<IpPrefix>(), Err(PrefixError::Length { given: 129, max: 128 }));
        assert_eq!("fd00::/264".parse::<IpPrefix>(), Err(PrefixError::Length { given: 264, max: 128 }));
        assert!("10.0.0.0/99999999999".parse::<IpPrefix>().is_err());
    }

    #[test]
    fn host_bits_are_refused_with_the_corrected_prefix() {
        let error = "10.1.2.3/8".parse::<IpPrefix>().unwrap_err();
        assert_eq!(error.to_string(), "10.1.2.3/8 has host bits set: did you mean 10.0.0.0/8?");
        let error = "fd00::1/64".parse::<IpPrefix>().unwrap_err();
        assert_eq!(error.to_string(), "fd00::1/64 has host bits set: did you mean fd00::/64?");
        assert!("0.0.0.1/0".parse::<IpPrefix>().is_err());
    }

    #[test]
    fn shorter_destinations_are_tried_when_the_longest_has_no_entry_for_the_source() {
        let table = table(&[
            (1, &[route("10.1.0.0/16", "10.0.0.0/8")]),
            (2, &[route("10.9.0.0/16", "10.2.0.0/16")]),
            (3, &[route("10.9.1.0/24", "10.2.0.0/16")]),
        ])
        .unwrap();
        assert_eq!(table.lookup(&packet("10.1.0.1", "10.2.0.1")), Some(&1));
        assert_eq!(table.lookup(&packet("10.9.0.1", "10.2.0.1")), Some(&2));
        assert_eq!(table.lookup(&packet("10.9.1.1", "10.2.0.1")), Some(&3));
        assert_eq!(table.lookup(&packet("10.8.0.1", "10.2.0.1")), None);
        assert_eq!(RouteTable::<u32>::empty().lookup(&packet("10.8.0.1", "10.2.0.1")), None);
    }

    #[test]
    fn families_never_match_one_another() {
        let mapped = packet("::ffff:10.0.0.1", "::ffff:10.0.0.2");
        let v4 = table(&[(1, &[route("0.0.0.0/0", "0.0.0.0/0")])]).unwrap();
        let v6 = table(&[(1, &[route("::/0", "::/0")])]).unwrap();
        assert_eq!(v4.lookup(&mapped), None);
        assert_eq!(v6.lookup(&mapped), Some(&1));
        assert_eq!(v6.lookup(&packet("10.0.0.1", "10.0.0.2")), None);
        let mixed = route("::/0", "10.0.0.0/8");
        assert_eq!(table(&[(1, &[mixed])]).unwrap_err(), RouteError::MixedFamilies { route: mixed });
        assert_eq!(PeerRoutes::build(&[mixed]).unwrap_err(), RouteError::MixedFamilies { route: mixed });
    }

    #[test]
    fn a_pair_belongs_to_one_vni() {
        let pair = route("10.1.0.0/16", "10.2.0.0/16");
        let owner = Vni::new(1).unwrap();
        assert_eq!(table(&[(1, &[pair]), (2, &[pair])]).unwrap_err(), RouteError::Taken { route: pair, owner });
        assert!(table(&[(1, &[pair, pair])]).is_ok());
        assert!(table(&[(1, &[pair]), (2, &[route("10.1.0.0/17", "10.2.0.0/16")])]).is_ok());
        let error = RouteError::Taken { route: pair, owner };
        assert_eq!(error.to_string(), "route 10.1.0.0/16=10.2.0.0/16 belongs to VNI 1 already");
    }

    #[test]
    fn receiving_needs_source_and_destination_of_one_route() {
        let routes = [route("10.1.0.0/16", "10.2.0.0/16"), route("10.3.0.0/16", "10.4.0.0/16")];
        let routes = PeerRoutes::build(&routes).unwrap();
        assert_eq!(routes.check(&packet("10.2.0.1", "10.1.0.1")), Ok(()));
        assert_eq!(routes.check(&packet("10.4.0.1", "10.3.0.1")), Ok(()));
        assert_eq!(routes.check(&packet("10.2.0.1", "10.3.0.1")), Err(RxDrop::InvalidDst));
        assert_eq!(routes.check(&packet("10.1.0.1", "10.2.0.1")), Err(RxDrop::InvalidSrc));
        assert_eq!(routes.check(&packet("fd00::1", "fd00::2")), Err(RxDrop::InvalidSrc));
        assert_eq!(PeerRoutes::default().check(&packet("10.2.0.1", "10.1.0.1")), Err(RxDrop::InvalidSrc));
    }

    /// Prefixes of a few bits' variety, so that they nest and collide.
    fn prefixes() -> impl Strategy<Value = IpPrefix> {
        (any::<bool>(), 0u8..=4, 0u8..16, any::<bool>()).prop_map(|(v6, len, bits, long)| {
            let top = bits & !(0xfu8 >> len);
            let (addr, tail) = match v6 {
                false => (IpAddr::from([top << 4 | if long { 5 } else { 0 }, 0, 0, 0]), 8),
                true => {
                    (IpAddr::from(u128::from(top << 4 | if long { 5 } else { 0 }).wrapping_shl(120).to_be_bytes()), 8)
                }
            };
            IpPrefix::new(addr, if long { tail } else { len }).unwrap()
        })
    }

    fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        let low = prop_oneof![Just(0u8), Just(5), Just(9)];
        (any::<bool>(), 0u8..16, 0u8..16, low.clone(), low).prop_map(|(v6, a, b, c, d)| {
            let (a, b) = (a << 4 | c, b << 4 | d);
            match v6 {
                false => (IpAddr::from([a, 0, 0, 0]), IpAddr::from([b, 0, 0, 0])),
                true => {
                    let addr = |byte: u8| IpAddr::from((u128::from(byte) << 120).to_be_bytes());
                    (addr(a), addr(b))
                }
            }
        })
    }

    proptest! {
        #[test]
        fn lookups_and_checks_agree_with_a_plain_search(
            pairs in proptest::collection::vec((prefixes(), prefixes(), 1u32..5), 0..40),
            probes in proptest::collection::vec(addresses(), 1..40),
        ) {
            let mut owners = BTreeMap::new();
            for (src, dst, vni) in pairs {
                if src.addr.is_ipv4() == dst.addr.is_ipv4() {
                    owners.entry(AllowedRoute { src, dst }).or_insert(vni);
                }
            }
            let of = |vni: u32| -> Vec<AllowedRoute> {
                owners.iter().filter(|(_, owner)| **owner == vni).map(|(route, _)| *route).collect()
            };
            let networks: Vec<(u32, Vec<AllowedRoute>)> = (1..5).map(|vni| (vni, of(vni))).collect();
            let views: Vec<(u32, &[AllowedRoute])> = networks.iter().map(|(vni, routes)| (*vni, &routes[..])).collect();
            let table = table(&views).unwrap();
            for (src, dst) in probes {
                let packet = Inner::from_addrs(src, dst).unwrap();
                let best = owners
                    .iter()
                    .filter(|(route, _)| route.dst.contains(dst) && route.src.contains(src))
                    .max_by_key(|(route, _)| (route.dst.len, route.src.len));
                prop_assert_eq!(table.lookup(&packet), best.map(|(_, vni)| vni));
                for (vni, routes) in &networks {
                    let expected = if routes.iter().any(|r| r.dst.contains(src) && r.src.contains(dst)) {
                        Ok(())
                    } else if routes.iter().any(|r| r.dst.contains(src)) {
                        Err(RxDrop::InvalidDst)
                    } else {
                        Err(RxDrop::InvalidSrc)
                    };
                    prop_assert_eq!(PeerRoutes::build(routes).unwrap().check(&packet), expected, "VNI {}", vni);
                }
            }
        }

        #[test]
        fn prefixes_print_as_they_parse(addr: [u8; 16], len in 0u8..=128, v4: bool) {
            let addr = if v4 { IpAddr::from([addr[0], addr[1], addr[2], addr[3]]) } else { IpAddr::from(addr) };
            let len = len.min(max_len(addr));
            let prefix = match IpPrefix::new(addr, len) {
                Ok(prefix) => prefix,
                Err(PrefixError::HostBits { corrected, .. }) => corrected,
                Err(other) => panic!("{other}"),
            };
            prop_assert!(prefix.contains(addr));
            prop_assert_eq!(prefix.to_string().parse::<IpPrefix>(), Ok(prefix));
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in "[0-9a-f.:/+]{0,24}") {
            let _ = text.parse::<IpPrefix>();
        }
    }
}
