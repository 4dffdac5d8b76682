//! The traffic class of an IP header: six bits of DSCP (RFC 2474) and two of ECN (RFC 3168), and how the ECN fields of an
//! inner and an outer header become one where a tunnel ends (RFC 6040).

use crate::wire::checksum::updated;

/// Where the header checksum is in an IPv4 header (RFC 791 section 3.1).
const IPV4_CHECKSUM: usize = 10;

/// Where the ECN field is in the second byte of an IPv6 header (RFC 8200 section 3): the flow label begins behind it.
const IPV6_ECN_SHIFT: u32 = 4;

/// The TOS byte of IPv4, or the traffic class of IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TrafficClass(u8);

impl TrafficClass {
    /// Best effort, and not ECN-capable.
    pub const ZERO: TrafficClass = TrafficClass(0);

    pub const fn new(value: u8) -> Self {
        TrafficClass(value)
    }

    /// That of a packet; zero where it is no IP packet.
    #[inline]
    pub fn of(packet: &[u8]) -> Self {
        TrafficClass(match *packet {
            [first, second, ..] if first >> 4 == 4 => second,
            [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
            _ => 0,
        })
    }

    pub const fn get(self) -> u8 {
        self.0
    }

    #[inline]
    pub const fn ecn(self) -> Ecn {
        Ecn::from_bits(self.0)
    }
}

/// The ECN field (RFC 3168 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ecn {
    /// Not ECN-capable: congestion is told by dropping it.
    #[default]
    NotEct = 0b00,
    Ect1 = 0b01,
    Ect0 = 0b10,
    /// Congestion experienced.
    Ce = 0b11,
}

/// A packet that is not ECN-capable was marked on the way, so that it has to be dropped (RFC 6040 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("congestion was marked on a packet that is not ECN-capable")]
pub struct NotEctMarked;

impl Ecn {
    /// From the two low bits.
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0b11 {
            0b00 => Ecn::NotEct,
            0b01 => Ecn::Ect1,
            0b10 => Ecn::Ect0,
            _ => Ecn::Ce,
        }
    }

    /// The field with which a packet leaves the tunnel, which it travelled with `outer`: RFC 6040 section 4.2, figure 4.
    #[inline]
    pub const fn decapsulated(self, outer: Ecn) -> Result<Ecn, NotEctMarked> {
        match (self, outer) {
            (Ecn::NotEct, Ecn::Ce) => Err(NotEctMarked),
            (Ecn::NotEct, _) => Ok(Ecn::NotEct),
            (Ecn::Ect0, Ecn::NotEct | Ecn::Ect0) => Ok(Ecn::Ect0),
            (Ecn::Ect0, Ecn::Ect1) => Ok(Ecn::Ect1),
            (Ecn::Ect1, Ecn::NotEct | Ecn::Ect0 | Ecn::Ect1) => Ok(Ecn::Ect1),
            (Ecn::Ect0 | Ecn::Ect1, Ecn::Ce) | (Ecn::Ce, _) => Ok(Ecn::Ce),
        }
    }
}

/// Gives an inner IP packet the ECN field with which it leaves the tunnel. What is no IP packet stays as it is.
#[inline]
pub fn decapsulate(packet: &mut [u8], outer: Ecn) -> Result<(), NotEctMarked> {
    let inner = TrafficClass::of(packet).ecn();
    let ecn = inner.decapsulated(outer)?;
    if ecn != inner {
        set_ecn(packet, ecn);
    }
    Ok(())
}

fn set_ecn(packet: &mut [u8], ecn: Ecn) {
    match packet {
        [first, second, rest @ ..] if *first >> 4 == 4 => {
            let before = u16::from_be_bytes([*first, *second]);
            *second = *second & !0b11 | ecn as u8;
            let after = u16::from_be_bytes([*first, *second]);
            let Some(checksum) = rest.get_mut(IPV4_CHECKSUM - 2..).and_then(<[u8]>::first_chunk_mut) else { return };
            *checksum = updated(u16::from_be_bytes(*checksum), before, after).to_be_bytes();
        }
        [first, second, ..] if *first >> 4 == 6 => {
            *second = *second & !(0b11 << IPV6_ECN_SHIFT) | (ecn as u8) << IPV6_ECN_SHIFT;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum::checksum;
    use proptest::prelude::*;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

    /// RFC 6040 section 4.2, figure 4: rows by the inner field, columns by the outer one, both in the order of [`ALL`].
    const FIGURE_4: [[Result<Ecn, NotEctMarked>; 4]; 4] = [
        [Ok(Ecn::NotEct), Ok(Ecn::NotEct), Ok(Ecn::NotEct), Err(NotEctMarked)],
        [Ok(Ecn::Ect0), Ok(Ecn::Ect0), Ok(Ecn::Ect1), Ok(Ecn::Ce)],
        [Ok(Ecn::Ect1), Ok(Ecn::Ect1), Ok(Ecn::Ect1), Ok(Ecn::Ce)],
        [Ok(Ecn::Ce), Ok(Ecn::Ce), Ok(Ecn::Ce), Ok(Ecn::Ce)],
    ];

    fn ipv4(tos: u8, id: u16) -> Vec<u8> {
        let [i0, i1] = id.to_be_bytes();
        let mut packet = vec![0x45, tos, 0, 28, i0, i1, 0, 0, 9, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2];
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        [packet, vec![0xab; 8]].concat()
    }

    fn ipv6(class: u8, flow_label: u32) -> Vec<u8> {
        let first = 6 << 28 | u32::from(class) << 20 | flow_label & 0xf_ffff;
        [first.to_be_bytes().as_slice(), &[0, 8, 17, 9], &[0xfd; 32], &[0xab; 8]].concat()
    }

    #[test]
    fn every_cell_of_figure_4() {
        for (inner, row) in ALL.into_iter().zip(FIGURE_4) {
            for (outer, expected) in ALL.into_iter().zip(row) {
                assert_eq!(inner.decapsulated(outer), expected, "{inner:?} in {outer:?}");
                for dscp in [0, 46, 63] {
                    let before = dscp << 2 | inner as u8;
                    let after = dscp << 2 | expected.unwrap_or(inner) as u8;
                    for (mut packet, changed) in
                        [(ipv4(before, 7), ipv4(after, 7)), (ipv6(before, 0xf_abcd), ipv6(after, 0xf_abcd))]
                    {
                        assert_eq!(decapsulate(&mut packet, outer), expected.map(drop), "{inner:?} in {outer:?}");
                        assert_eq!(packet, changed, "{inner:?} in {outer:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn codepoints_have_their_bits() {
        for (ecn, bits) in [(Ecn::NotEct, 0b00), (Ecn::Ect1, 0b01), (Ecn::Ect0, 0b10), (Ecn::Ce, 0b11)] {
            assert_eq!((ecn as u8, Ecn::from_bits(bits), TrafficClass::new(0xb8 | bits).ecn()), (bits, ecn, ecn));
        }
    }

    #[test]
    fn a_wrong_checksum_stays_wrong() {
        let mut packet = ipv4(Ecn::Ect0 as u8, 7);
        packet[11] ^= 0x10;
        decapsulate(&mut packet, Ecn::Ce).unwrap();
        assert_ne!(checksum(&packet[..20]), 0);
        packet[11] ^= 0x10;
        assert_eq!(TrafficClass::of(&packet).ecn(), Ecn::Ce);
    }

    fn ecn() -> impl Strategy<Value = Ecn> {
        any::<u8>().prop_map(Ecn::from_bits)
    }

    proptest! {
        #[test]
        fn checksums_stay_right(tos: u8, id: u16, outer in ecn()) {
            let mut packet = ipv4(tos, id);
            let _ = decapsulate(&mut packet, outer);
            prop_assert_eq!(checksum(&packet[..20]), 0);
            prop_assert_eq!(&packet, &ipv4(packet[1], id));
        }

        #[test]
        fn congestion_is_never_hidden_and_twice_is_as_once(inner in ecn(), outer in ecn()) {
            match inner.decapsulated(outer) {
                Ok(ecn) => {
                    prop_assert_eq!(ecn == Ecn::Ce, inner == Ecn::Ce || outer == Ecn::Ce);
                    prop_assert_eq!(ecn.decapsulated(outer), Ok(ecn));
                }
                Err(NotEctMarked) => prop_assert_eq!((inner, outer), (Ecn::NotEct, Ecn::Ce)),
            }
        }

        #[test]
        fn classes_come_out_as_they_lie_in_the_packet(class: u8, label: u32) {
            prop_assert_eq!(TrafficClass::of(&ipv4(class, 0)).get(), class);
            prop_assert_eq!(TrafficClass::of(&ipv6(class, label)).get(), class);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(
            packet in proptest::collection::vec(any::<u8>(), 0..64),
            first in 0x40..0x70u8,
            outer in ecn(),
        ) {
            let mut packet = packet;
            if let Some(byte) = packet.first_mut() {
                *byte = first;
            }
            let _ = decapsulate(&mut packet, outer);
        }
    }
}
