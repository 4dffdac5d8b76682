//! The maximum segment size that the ends of a TCP connection announce (RFC 9293 section 3.7.1).
//!
//! ```text
//!    |    Kind (2)   |   Length (4)  |     Maximum Segment Size      |
//! ```

use core::ops::Range;

use crate::wire::checksum::updated;
use crate::wire::inner::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, Inner};
use crate::wire::ipv6::{self, TCP};

const TCP_HEADER_LEN: usize = 20;

mod field {
    use core::ops::Range;

    pub(super) const IPV4_LENGTH: Range<usize> = 2..4;
    pub(super) const IPV4_FRAGMENT: Range<usize> = 6..8;
    pub(super) const IPV4_PROTOCOL: usize = 9;
    pub(super) const IPV6_LENGTH: Range<usize> = 4..6;
    pub(super) const IPV6_NEXT: usize = 6;
    pub(super) const TCP_OFFSET: usize = 12;
    pub(super) const TCP_FLAGS: usize = 13;
    pub(super) const TCP_CHECKSUM: Range<usize> = 16..18;
}

const IPV4_OFFSET_MASK: u16 = 0x1fff;
const SYN: u8 = 0x02;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_MSS_LEN: usize = 4;

/// A TCP segment that opens a connection, in an IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syn {
    /// The TCP header with its options, in the packet.
    header: Range<usize>,
    /// RFC 6691 section 2: of the fixed IP and TCP headers, whatever options either has.
    fixed: u32,
}

impl Syn {
    /// Finds the TCP header of an inner packet with SYN, with or without ACK. `None` for all else: other segments, fragments
    /// but the first, and what is cut short.
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<Syn> {
        let (at, end, fixed) = match Inner::parse(packet).ok()? {
            Inner::V4 { .. } => {
                if packet[field::IPV4_PROTOCOL] != TCP || read(packet, field::IPV4_FRAGMENT)? & IPV4_OFFSET_MASK != 0 {
                    return None;
                }
                // RFC 791 section 3.1: the header has five words at least.
                let at = Some(usize::from(packet[0] & 0x0f) * 4).filter(|at| *at >= IPV4_HEADER_LEN)?;
                (at, usize::from(read(packet, field::IPV4_LENGTH)?), IPV4_HEADER_LEN)
            }
            Inner::V6 { .. } => {
                let upper = ipv6::walk(packet[field::IPV6_NEXT], &packet[IPV6_HEADER_LEN..]);
                if upper.protocol != TCP || upper.later_fragment {
                    return None;
                }
                let end = IPV6_HEADER_LEN + usize::from(read(packet, field::IPV6_LENGTH)?);
                (packet.len() - upper.payload.len(), end, IPV6_HEADER_LEN)
            }
        };
        let tcp = packet.get(at..end)?;
        let len = usize::from(tcp.get(field::TCP_OFFSET)? >> 4) * 4;
        let is_whole = (TCP_HEADER_LEN..=tcp.len()).contains(&len);
        let is_syn = tcp.get(field::TCP_FLAGS)? & SYN != 0;
        (is_whole && is_syn).then_some(Syn { header: at..at + len, fixed: (fixed + TCP_HEADER_LEN) as u32 })
    }

    /// Lowers the segment size that the packet announces to what fits an IP packet of `mtu` bytes, and adapts the
    /// checksum, which is as right or wrong as before. `true`: it was larger. It is never raised and, where there is none,
    /// not added. `packet` is the one that was parsed.
    ///
    /// Options are read up to the first that contradicts itself; an announcement of another length than it has is one.
    pub fn clamp(&self, packet: &mut [u8], mtu: u32) -> bool {
        let Some(header) = packet.get_mut(self.header.clone()) else { return false };
        let most = u16::try_from(mtu.saturating_sub(self.fixed).max(1)).unwrap_or(u16::MAX);
        let mut lowered = false;
        let mut at = TCP_HEADER_LEN;
        while let Some(&kind) = header.get(at) {
            let len = match (kind, header.get(at + 1)) {
                (OPTION_END, _) => break,
                (OPTION_NOP, _) => 1,
                (_, Some(&len)) if len >= 2 => usize::from(len),
                _ => break,
            };
            if at + len > header.len() || (kind == OPTION_MSS && len != OPTION_MSS_LEN) {
                break;
            }
            if kind == OPTION_MSS {
                lowered |= lower(header, at + 2, most);
            }
            at += len;
        }
        lowered
    }
}

/// Lowers the 16-bit number at `at` of a TCP header to `most`.
fn lower(header: &mut [u8], at: usize, most: u16) -> bool {
    let (Some(old), Some(checksum)) = (read(header, at..at + 2), read(header, field::TCP_CHECKSUM)) else {
        return false;
    };
    if old <= most {
        return false;
    }
    // RFC 1071 section 2 (B): at an odd offset a number counts with its bytes swapped.
    let word = |number: u16| if at.is_multiple_of(2) { number } else { number.swap_bytes() };
    let checksum = updated(checksum, word(old), word(most));
    header[at..at + 2].copy_from_slice(&most.to_be_bytes());
    header[field::TCP_CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
    true
}

fn read(bytes: &[u8], at: Range<usize>) -> Option<u16> {
    bytes.get(at.start..)?.first_chunk().map(|number| u16::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum::Sum;
    use proptest::prelude::*;

    const MTU: u32 = 1296;
    const NOP: &[u8] = &[1];
    const WINDOW: &[u8] = &[3, 3, 7];
    const SACK: &[u8] = &[4, 2];

    fn mss(value: u16) -> Vec<u8> {
        [&[2, 4], &value.to_be_bytes()[..]].concat()
    }

    /// A TCP segment with these options, which are filled up with end-of-list, and the right checksum.
    fn segment(v6: bool, flags: u8, options: &[u8]) -> Vec<u8> {
        let options = [options, &vec![0; options.len().next_multiple_of(4) - options.len()]].concat();
        let len = TCP_HEADER_LEN + options.len();
        let mut packet = if v6 {
            let mut ip = vec![0x60, 0, 0, 0, 0, len as u8, TCP, 64];
            ip.resize(IPV6_HEADER_LEN, 7);
            ip
        } else {
            vec![0x45, 0, 0, (IPV4_HEADER_LEN + len) as u8, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
        };
        let at = packet.len();
        packet.extend([0x30, 0x39, 0, 80, 0, 0, 1, 0, 0, 0, 0, 0, (len / 4) as u8 * 16, flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet.extend(&options);
        let sum = sum(&packet, at);
        packet[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn sum(packet: &[u8], at: usize) -> u16 {
        let inner = Inner::parse(packet).unwrap();
        let tcp = &packet[at..];
        Sum::new().add_pseudo_header(inner.src(), inner.dst(), TCP, tcp.len() as u32).add_bytes(tcp).finish()
    }

    fn clamp(packet: &mut [u8]) -> bool {
        Syn::parse(packet).is_some_and(|syn| syn.clamp(packet, MTU))
    }

    #[test]
    fn announcements_are_lowered_and_nothing_else_is() {
        let large = mss(1460);
        type Case = (&'static str, u8, Vec<u8>, Option<Vec<u8>>);
        let cases: [Case; 15] = [
            ("the size of an opening", SYN, large.clone(), Some(mss(1256))),
            ("the size of its answer", SYN | 0x10, large.clone(), Some(mss(1256))),
            (
                "a size among other options",
                SYN,
                [SACK, WINDOW, NOP, &large].concat(),
                Some([SACK, WINDOW, NOP, &mss(1256)].concat()),
            ),
            ("a size at an odd offset", SYN, [NOP, &large, WINDOW].concat(), Some([NOP, &mss(1256), WINDOW].concat())),
            ("both of two", SYN, [&large[..], &mss(1300)].concat(), Some([mss(1256), mss(1256)].concat())),
            ("the larger of two", SYN, [&large[..], &mss(9)].concat(), Some([mss(1256), mss(9)].concat())),
            ("a size that fits", SYN, mss(1256), None),
            ("a small size", SYN, mss(0), None),
            ("no size", SYN, WINDOW.to_vec(), None),
            ("no option", SYN, Vec::new(), None),
            ("what is behind the end of the list", SYN, [&[0], &large[..]].concat(), None),
            ("a size of three bytes", SYN, [&[2, 3, 0xff][..], NOP].concat(), None),
            ("a size of six bytes, and what follows it", SYN, [&[2, 6, 0xff, 0xff, 0, 0], &large[..]].concat(), None),
            ("what is behind an option of no length", SYN, [&[9, 0], &large[..]].concat(), None),
            ("a size that runs past the header", SYN, vec![1, 1, 2, 4], None),
        ];
        for (name, flags, options, expected) in cases {
            for v6 in [false, true] {
                let mut packet = segment(v6, flags, &options);
                let given = packet.clone();
                // IPv6 leaves 20 bytes less.
                let expected = expected.clone().map(|options| {
                    let options: Vec<u8> = if v6 { with_v6_size(&options) } else { options };
                    segment(v6, flags, &options)
                });
                let is_smaller = v6 && given == segment(v6, flags, &mss(1256));
                let expected = if is_smaller { Some(segment(v6, flags, &mss(1236))) } else { expected };
                assert_eq!(clamp(&mut packet), expected.is_some(), "{name}, IPv6 {v6}");
                assert_eq!(packet, expected.unwrap_or(given), "{name}, IPv6 {v6}");
            }
        }
    }

    /// The options with the size for IPv6 in place of that for IPv4.
    fn with_v6_size(options: &[u8]) -> Vec<u8> {
        let (v4, v6) = (1256_u16.to_be_bytes(), 1236_u16.to_be_bytes());
        let mut options = options.to_vec();
        for at in 0..options.len() - 1 {
            if options[at..at + 2] == v4 {
                options[at..at + 2].copy_from_slice(&v6);
            }
        }
        options
    }

    #[test]
    fn other_packets_are_left_alone() {
        let syn = segment(false, SYN, &mss(1460));
        type Change = fn(&mut Vec<u8>);
        let cases: [(&str, Change); 11] = [
            ("a segment without SYN", |packet| packet[33] = 0x10),
            ("another protocol", |packet| packet[9] = 17),
            ("a later fragment", |packet| packet[7] = 1),
            ("a packet that says it is longer", |packet| packet[3] = 45),
            ("a packet that ends in the TCP header", |packet| packet[3] = 43),
            ("a TCP header of less than its fixed part", |packet| packet[32] = 0x40),
            ("a TCP header that runs past the packet", |packet| packet[32] = 0x70),
            ("a packet cut short", |packet| packet.truncate(30)),
            ("IP options in the place of TCP", |packet| packet[0] = 0x4f),
            ("an IP header of less than its fixed part", |packet| packet[0] = 0x44),
            ("nothing", Vec::clear),
        ];
        for (name, change) in cases {
            let mut packet = syn.clone();
            change(&mut packet);
            let given = packet.clone();
            assert!(!clamp(&mut packet), "{name}");
            assert_eq!(packet, given, "{name}");
        }
        let mut first = syn.clone();
        first[6] = 0x20;
        assert!(clamp(&mut first), "the first fragment has the TCP header");
    }

    #[test]
    fn ipv6_extension_headers_are_walked() {
        let plain = segment(true, SYN, &mss(1460));
        for (name, kind, header, found) in [
            ("hop by hop", 0, [TCP, 0, 1, 4, 0, 0, 0, 0], true),
            ("a first fragment", 44, [TCP, 0, 0, 1, 0, 0, 0, 9], true),
            ("a later fragment", 44, [TCP, 0, 0, 9, 0, 0, 0, 9], false),
        ] {
            let mut packet = [&plain[..40], &header, &plain[40..]].concat();
            packet[5] += 8;
            packet[6] = kind;
            assert_eq!(clamp(&mut packet), found, "{name}");
            let expected = if found { segment(true, SYN, &mss(1236))[40..].to_vec() } else { plain[40..].to_vec() };
            assert_eq!(packet[48..], expected, "{name}");
        }
    }

    #[test]
    fn tiny_and_huge_mtus_leave_a_size() {
        let mut packet = segment(false, SYN, &mss(1460));
        let syn = Syn::parse(&packet).unwrap();
        assert!(!syn.clamp(&mut packet, u32::MAX));
        assert!(syn.clamp(&mut packet, 0));
        assert_eq!(packet, segment(false, SYN, &mss(1)));
    }

    proptest! {
        #[test]
        fn a_checksum_stays_as_right_as_it_was(
            options in proptest::collection::vec(any::<u8>(), 0..40),
            before in proptest::collection::vec(0..2_u8, 0..3),
            mtu in 0..3000_u32,
            v6: bool,
        ) {
            let mut options: Vec<u8> = before.iter().map(|_| 1).chain(mss(1460)).chain(options).collect();
            options.truncate(40);
            let mut packet = segment(v6, SYN, &options);
            let syn = Syn::parse(&packet).unwrap();
            syn.clamp(&mut packet, mtu);
            prop_assert_eq!(sum(&packet, if v6 { 40 } else { 20 }), 0);
            prop_assert!(!syn.clamp(&mut packet, mtu), "once is enough");
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(
            mut packet in proptest::collection::vec(any::<u8>(), 0..120),
            mtu: u32,
            v6: bool,
        ) {
            if let Some(first) = packet.first_mut() {
                *first = (if v6 { 0x60 } else { 0x40 }) | *first & 0x0f;
            }
            if let Some(syn) = Syn::parse(&packet) {
                let len = packet.len();
                syn.clamp(&mut packet, mtu);
                prop_assert_eq!(packet.len(), len);
            }
        }
    }
}
