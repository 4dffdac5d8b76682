//! The Internet checksum (RFC 1071), summed in wide words.

use std::net::IpAddr;
use std::sync::OnceLock;

/// From how many bytes on a sum is worth a call.
const LONG: usize = 256;

/// Sums long data, as [`sum_words`] does. Not set: that itself.
static LONG_SUM: OnceLock<fn(&[u8]) -> u64> = OnceLock::new();

/// Lets `sum`, which must agree with [`sum_words`], add up long data from now on. The first call counts.
///
/// Which instructions a processor has is found out at run time, and to call what uses them is unsafe code, of which there is
/// none in this crate: whoever may have some calls this once, with [`sum_words_avx2`] for instance.
pub fn set_long_sum(sum: fn(&[u8]) -> u64) {
    // Another one that was set before is as good.
    let _ = LONG_SUM.set(sum);
}

/// The sum of data in words of 32 bits, in memory byte order; a last piece is padded with zeros. For up to 2^34 bytes.
#[inline(always)]
pub fn sum_words(data: &[u8]) -> u64 {
    // Each half of a word adds less than 2^32, so packets of any size stay far from the 64-bit limit.
    let mut sum = 0u64;
    let (words, tail) = data.as_chunks::<8>();
    for &word in words {
        let word = u64::from_ne_bytes(word);
        sum += (word >> 32) + (word & 0xffff_ffff);
    }
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    let word = u64::from_ne_bytes(last);
    sum + (word >> 32) + (word & 0xffff_ffff)
}

/// [`sum_words`] in vectors of 32 bytes.
///
/// # Safety
/// To whoever calls it from code that is not for AVX2 only: the processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub fn sum_words_avx2(data: &[u8]) -> u64 {
    sum_words(data)
}

/// A one's complement sum in progress. Pieces may be added in any order as long as each starts at an even offset
/// of the data it stands for.
///
/// The sum is kept in memory byte order: RFC 1071 section 2 (B), the result comes out swapped like its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Sum(u64);

impl Sum {
    pub const fn new() -> Self {
        Sum(0)
    }

    /// Adds bytes as they lie in the packet. A last odd byte is padded with zero, so only a piece that ends the
    /// data may have an odd length.
    #[inline]
    pub fn add_bytes(self, data: &[u8]) -> Self {
        let sum = match LONG_SUM.get() {
            Some(long_sum) if data.len() >= LONG => long_sum(data),
            _ => sum_words(data),
        };
        Sum(fold32(self.0) + fold32(sum))
    }

    #[inline]
    pub fn add_u16(self, value: u16) -> Self {
        Sum(fold32(self.0) + u64::from(value.to_be()))
    }

    #[inline]
    pub fn add_u32(self, value: u32) -> Self {
        Sum(fold32(self.0) + u64::from(value.to_be()))
    }

    /// Adds another sum, of a piece that starts at an even offset too.
    #[inline]
    pub fn add_sum(self, other: Sum) -> Self {
        Sum(fold32(self.0) + fold32(other.0))
    }

    /// Adds a pseudo-header: RFC 768 for IPv4, RFC 8200 section 8.1 for IPv6. `length` is that of the upper-layer
    /// packet, header included. Both addresses are of one family.
    #[inline]
    pub fn add_pseudo_header(self, src: IpAddr, dst: IpAddr, protocol: u8, length: u32) -> Self {
        self.add_ip(src).add_ip(dst).add_u32(u32::from(protocol)).add_u32(length)
    }

    #[inline]
    fn add_ip(self, addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => self.add_bytes(&addr.octets()),
            IpAddr::V6(addr) => self.add_bytes(&addr.octets()),
        }
    }

    /// The checksum as a number: the complement of the sum. Over data that includes a correct checksum it is zero.
    #[inline]
    pub fn finish(self) -> u16 {
        let sum = fold32(self.0);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        !u16::from_be(sum as u16)
    }
}

/// Brings a sum to at most 33 bits without changing its value modulo 2^16 - 1.
#[inline]
const fn fold32(sum: u64) -> u64 {
    (sum >> 32) + (sum & 0xffff_ffff)
}

/// What becomes of a checksum when one 16-bit word of its data changes (RFC 1624 section 3, equation 3). A wrong one stays as
/// wrong as it was.
#[inline]
pub fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::new().add_u16(!checksum).add_u16(!old).add_u16(new).finish()
}

/// The checksum of `data`.
pub fn checksum(data: &[u8]) -> u16 {
    Sum::new().add_bytes(data).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, word by word.
    fn reference(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071_section_3() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn all_ones_do_not_overflow() {
        let data = vec![0xff; 70_000];
        assert_eq!(checksum(&data), reference(&data));
    }

    proptest! {
        #[test]
        fn wide_sums_agree_with_the_reference(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(checksum(&data), reference(&data));
        }

        #[test]
        fn pieces_add_up(data in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..150) {
            let cut = (cut * 2).min(data.len() & !1);
            let (head, tail) = data.split_at(cut);
            prop_assert_eq!(Sum::new().add_bytes(head).add_bytes(tail).finish(), reference(&data));
            prop_assert_eq!(Sum::new().add_bytes(tail).add_bytes(head).finish(), reference(&data));
        }

        #[test]
        fn numbers_count_like_their_bytes(a: u16, b: u32) {
            let data = [a.to_be_bytes().as_slice(), &b.to_be_bytes()].concat();
            prop_assert_eq!(Sum::new().add_u16(a).add_u32(b).finish(), reference(&data));
        }
    }
}
