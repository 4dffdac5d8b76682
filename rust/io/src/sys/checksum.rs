/// Lets checksums of packets use the widest vectors that the processor has. It may be called again.
pub(crate) fn use_wide_checksums() {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        icx_proto::wire::checksum::set_long_sum(|data| {
            // SAFETY: the processor has AVX2, which is all that the function asks for.
            unsafe { icx_proto::wire::checksum::sum_words_avx2(data) }
        });
    }
}

#[cfg(test)]
mod tests {
    use icx_proto::wire::checksum::{checksum, sum_words};

    /// RFC 1071 section 4.1, word by word.
    fn reference(data: &[u8]) -> u16 {
        let pairs = data.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
        let sum = pairs.fold(0, |sum, pair| {
            let sum = sum + pair;
            (sum >> 16) + (sum & 0xffff)
        });
        !(sum as u16)
    }

    #[test]
    fn wide_sums_agree_with_the_reference_at_every_length_and_alignment() {
        super::use_wide_checksums();
        let data: Vec<u8> = (0..70_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for (from, len) in (0..64).flat_map(|from| [200, 255, 256, 257, 300, 1391, 1392].map(|len| (from, len))) {
            assert_eq!(checksum(&data[from..][..len]), reference(&data[from..][..len]), "{len} bytes from {from}");
        }
        for len in 256..1500 {
            assert_eq!(checksum(&data[..len]), reference(&data[..len]), "{len} bytes");
        }
        assert_eq!(checksum(&data), reference(&data));
        assert_eq!(checksum(&vec![0xff; 65_535]), reference(&vec![0xff; 65_535]));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_sum_itself_is_the_same_with_wide_vectors() {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return;
        }
        for len in 0..600 {
            let data: Vec<u8> = (0..len).map(|at| (at * 151 + len) as u8).collect();
            // SAFETY: the processor has AVX2.
            let wide = unsafe { icx_proto::wire::checksum::sum_words_avx2(&data) };
            assert_eq!(wide, sum_words(&data), "{len} bytes");
        }
    }
}
