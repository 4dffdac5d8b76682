//! IPv6 extension headers (RFC 8200 section 4).

pub const HOP_BY_HOP: u8 = 0;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const ICMPV6: u8 = 58;
pub const DESTINATION_OPTIONS: u8 = 60;

/// The header behind the extension headers, or where the walk had to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper<'a> {
    /// The next-header value that leads to `payload`.
    pub protocol: u8,
    /// From the upper-layer header on. Starts in the middle of it in a fragment other than the first.
    pub payload: &'a [u8],
    /// The next-header value of the fragment header when the packet is one of several fragments: all of them share
    /// it, whatever the walk found behind it.
    pub fragment_of: Option<u8>,
    /// `payload` lacks the upper-layer header because the packet is a fragment other than the first.
    pub later_fragment: bool,
}

/// Walks extension headers. `protocol` and `payload` are the fixed header's next-header field and what follows it.
/// A header that is cut short ends the walk there.
#[inline]
pub fn walk(protocol: u8, payload: &[u8]) -> Upper<'_> {
    let mut upper = Upper { protocol, payload, fragment_of: None, later_fragment: false };
    loop {
        let len = match (upper.protocol, upper.payload) {
            (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS, [_, words, ..]) => 8 + usize::from(*words) * 8,
            // RFC 4302 section 2.2: in words of 4 bytes, less 2.
            (AUTHENTICATION, [_, words, ..]) => 8 + usize::from(*words) * 4,
            (FRAGMENT, [next, _, offset, flags, _, _, _, _, ..]) => {
                let field = u16::from_be_bytes([*offset, *flags]);
                let (offset, more) = (field >> 3, field & 1 != 0);
                // RFC 6946: a fragment header on a whole packet means nothing.
                if (offset, more) != (0, false) {
                    upper.fragment_of = Some(*next);
                }
                upper.later_fragment = offset != 0;
                8
            }
            _ => return upper,
        };
        let (Some(&next), Some(rest)) = (upper.payload.first(), upper.payload.get(len..)) else { return upper };
        upper.protocol = next;
        upper.payload = rest;
        if upper.later_fragment {
            return upper;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UDP_START: [u8; 4] = [1, 2, 3, 4];

    fn chain(headers: &[&[u8]]) -> Vec<u8> {
        [&headers.concat(), &UDP_START[..]].concat()
    }

    #[test]
    fn headers_of_every_kind_are_walked() {
        let hop_by_hop = [ROUTING, 0, 0, 0, 0, 0, 0, 0];
        let mut routing = [0; 16];
        routing[..2].copy_from_slice(&[DESTINATION_OPTIONS, 1]);
        let options = [AUTHENTICATION, 0, 0, 0, 0, 0, 0, 0];
        let mut authentication = [0; 12];
        authentication[..2].copy_from_slice(&[UDP, 1]);
        let payload = chain(&[&hop_by_hop, &routing, &options, &authentication]);
        let upper = walk(HOP_BY_HOP, &payload);
        assert_eq!((upper.protocol, upper.payload), (UDP, &UDP_START[..]));
        assert_eq!((upper.fragment_of, upper.later_fragment), (None, false));
    }

    #[test]
    fn a_first_fragment_shows_its_upper_header_and_a_later_one_does_not() {
        let first = chain(&[&[UDP, 0, 0, 1, 0, 0, 0, 9]]);
        let upper = walk(FRAGMENT, &first);
        assert_eq!((upper.protocol, upper.fragment_of, upper.later_fragment), (UDP, Some(UDP), false));
        // What follows a later fragment header is data, though it be called an extension header.
        let later = chain(&[&[DESTINATION_OPTIONS, 0, 0, 8, 0, 0, 0, 9]]);
        let upper = walk(FRAGMENT, &later);
        assert_eq!(upper.fragment_of, Some(DESTINATION_OPTIONS));
        assert_eq!((upper.payload, upper.later_fragment), (&UDP_START[..], true));
    }

    #[test]
    fn a_fragment_header_on_a_whole_packet_means_nothing() {
        let atomic = chain(&[&[UDP, 0, 0, 0, 0, 0, 0, 9]]);
        assert_eq!(walk(FRAGMENT, &atomic).fragment_of, None);
    }

    #[test]
    fn a_cut_header_ends_the_walk() {
        let cut = [UDP, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(walk(HOP_BY_HOP, &cut).protocol, HOP_BY_HOP);
        assert_eq!(walk(FRAGMENT, &cut[..7]).protocol, FRAGMENT);
        assert_eq!(walk(DESTINATION_OPTIONS, &[]).protocol, DESTINATION_OPTIONS);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(protocol: u8, payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let upper = walk(protocol, &payload);
            prop_assert!(payload.ends_with(upper.payload));
        }
    }
}
