//! Geneve (RFC 8926): the tunnel's own 32-byte header, and the general one behind it.
//!
//! ```text
//!  0 |Ver|  Opt Len  |O|C|    Rsvd.  |          Protocol Type        |
//!  4 |        Virtual Network Identifier (VNI)       |    Reserved   |
//!  8 |          Option Class         |      Type     |R|R|R| Length  |
//!    |                      Variable Option Data                     |
//! ```

use crate::id::Vni;

/// The tunnel header: base header, KeyEpoch and TxCounter options.
pub const HEADER_LEN: usize = 32;
/// The authentication tag behind the ciphertext.
pub const TAG_LEN: usize = 16;
/// SPI and counter.
pub const NONCE_LEN: usize = 12;
/// The header without options.
pub const BASE_LEN: usize = 8;
/// How many options a header may carry here.
pub const MAX_OPTIONS: usize = 2;
/// The longest value of one option: 31 words.
pub const MAX_OPTION_VALUE: usize = 31 * 4;

/// The class of both our options, from RFC 8926's experimental range.
pub const OPTION_CLASS: u16 = 0xff00;
pub const OPTION_KEY_EPOCH: u8 = 0x81;
pub const OPTION_TX_COUNTER: u8 = 0x82;

/// An authenticated message for the peer itself: a keepalive.
pub const PROTOCOL_OUT_OF_BAND: u16 = 0;

mod field {
    use core::ops::Range;

    pub(super) const VERSION_AND_OPTIONS_LEN: usize = 0;
    pub(super) const FLAGS: usize = 1;
    pub(super) const PROTOCOL: Range<usize> = 2..4;
    pub(super) const VNI_AND_RESERVED: Range<usize> = 4..8;
    pub(super) const KEY_EPOCH_HEADER: Range<usize> = 8..12;
    pub(super) const KEY_EPOCH: Range<usize> = 12..16;
    pub(super) const TX_COUNTER_HEADER: Range<usize> = 16..20;
    pub(super) const NONCE_SPI: Range<usize> = 20..24;
    pub(super) const NONCE_COUNTER: Range<usize> = 24..32;
}

const VERSION_SHIFT: u32 = 6;
const OPTIONS_LEN_MASK: u8 = 0x3f;
const FLAG_OAM: u8 = 0x80;
const FLAG_CRITICAL: u8 = 0x40;
const OPTION_HEADER_LEN: usize = 4;
const OPTION_CRITICAL: u8 = 0x80;
const OPTION_LEN_MASK: u8 = 0x1f;

const STANDARD_FIRST_BYTE: u8 = ((HEADER_LEN - BASE_LEN) / 4) as u8;
const KEY_EPOCH_HEADER: [u8; 4] = [0xff, 0x00, OPTION_KEY_EPOCH, 1];
const TX_COUNTER_HEADER: [u8; 4] = [0xff, 0x00, OPTION_TX_COUNTER, 3];

/// What the sender of a tunnel packet fills in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelHeader {
    /// Protocol type: [`PROTOCOL_OUT_OF_BAND`] or an EtherType.
    pub protocol: u16,
    pub vni: Vni,
    /// The sender's transmit SPI.
    pub spi: u32,
    pub counter: u64,
}

/// Writes the header, all 32 bytes of it.
#[inline]
pub fn emit(header: &TunnelHeader, out: &mut [u8; HEADER_LEN]) {
    out[field::VERSION_AND_OPTIONS_LEN] = STANDARD_FIRST_BYTE;
    out[field::FLAGS] = FLAG_CRITICAL;
    out[field::PROTOCOL].copy_from_slice(&header.protocol.to_be_bytes());
    out[field::VNI_AND_RESERVED].copy_from_slice(&(header.vni.get() << 8).to_be_bytes());
    out[field::KEY_EPOCH_HEADER].copy_from_slice(&KEY_EPOCH_HEADER);
    out[field::KEY_EPOCH].copy_from_slice(&header.spi.to_be_bytes());
    out[field::TX_COUNTER_HEADER].copy_from_slice(&TX_COUNTER_HEADER);
    out[field::NONCE_SPI].copy_from_slice(&header.spi.to_be_bytes());
    out[field::NONCE_COUNTER].copy_from_slice(&header.counter.to_be_bytes());
}

/// What the receiver of a tunnel packet needs of its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    pub protocol: u16,
    pub vni: Vni,
    /// The first word of the KeyEpoch option; 0 when that is missing or empty.
    pub key_epoch: u32,
    /// The value of the TxCounter option; `None` when there is none of exactly three words.
    pub nonce: Option<&'a [u8; NONCE_LEN]>,
    /// Where the ciphertext begins, which is where the additional authenticated data ends.
    pub payload_offset: usize,
}

/// Why a datagram is not Geneve as we accept it. All of it counts as malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeneveError {
    #[error("the datagram is shorter than the base header")]
    Truncated,
    #[error("geneve version {0} is not 0")]
    Version(u8),
    #[error("the header runs past the datagram")]
    HeaderOverrun,
    #[error("an option runs past the header")]
    OptionOverrun,
    #[error("an unknown option has the critical bit")]
    UnknownCritical,
    #[error("there are more than {MAX_OPTIONS} options")]
    TooManyOptions,
}

/// Reads the header of a tunnel packet. O, C and the reserved bits are ignored; of two options of one kind the
/// first counts.
#[inline]
pub fn parse(datagram: &[u8]) -> Result<Parsed<'_>, GeneveError> {
    match datagram.first_chunk::<HEADER_LEN>() {
        Some(header) if is_standard(header) => Ok(parse_standard(header)),
        _ => parse_any(datagram),
    }
}

/// Exactly the shape that [`emit`] writes, but for flags and reserved byte.
#[inline]
fn is_standard(header: &[u8; HEADER_LEN]) -> bool {
    header[field::VERSION_AND_OPTIONS_LEN] == STANDARD_FIRST_BYTE
        && header[field::KEY_EPOCH_HEADER] == KEY_EPOCH_HEADER
        && header[field::TX_COUNTER_HEADER] == TX_COUNTER_HEADER
}

#[inline]
fn parse_standard(header: &[u8; HEADER_LEN]) -> Parsed<'_> {
    let [_, _, p0, p1, v0, v1, v2, _, _, _, _, _, e0, e1, e2, e3, _, _, _, _, ref nonce @ ..] = *header;
    Parsed {
        protocol: u16::from_be_bytes([p0, p1]),
        vni: Vni::from_be_bytes([v0, v1, v2]),
        key_epoch: u32::from_be_bytes([e0, e1, e2, e3]),
        nonce: Some(nonce),
        payload_offset: HEADER_LEN,
    }
}

#[cold]
fn parse_any(datagram: &[u8]) -> Result<Parsed<'_>, GeneveError> {
    let (header, payload_offset) = Header::parse(datagram)?;
    let value_of = |kind| header.options.iter().find(|o| o.class == OPTION_CLASS && o.kind == kind).map(|o| o.value);
    Ok(Parsed {
        protocol: header.protocol,
        vni: header.vni,
        key_epoch: value_of(OPTION_KEY_EPOCH).and_then(|v| v.first_chunk()).map_or(0, |v| u32::from_be_bytes(*v)),
        nonce: value_of(OPTION_TX_COUNTER).and_then(|value| value.try_into().ok()),
        payload_offset,
    })
}

/// One option (RFC 8926 section 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneveOption<'a> {
    pub class: u16,
    /// The type, critical bit included.
    pub kind: u8,
    /// Whole words, at most 31.
    pub value: &'a [u8],
}

/// Up to two options, in their order on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options<'a> {
    items: [Option<GeneveOption<'a>>; MAX_OPTIONS],
}

impl<'a> Options<'a> {
    /// `None`: more than two.
    pub fn from_slice(options: &[GeneveOption<'a>]) -> Option<Self> {
        let mut items = [None; MAX_OPTIONS];
        for (index, option) in options.iter().enumerate() {
            *items.get_mut(index)? = Some(*option);
        }
        Some(Options { items })
    }

    pub fn iter(&self) -> impl Iterator<Item = GeneveOption<'a>> + '_ {
        self.items.iter().map_while(|option| *option)
    }
}

/// A Geneve header in general.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// 0 in everything that [`Header::parse`] accepts.
    pub version: u8,
    pub oam: bool,
    pub critical: bool,
    pub protocol: u16,
    pub vni: Vni,
    pub options: Options<'a>,
}

/// Why a header cannot be written. Nothing has been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    #[error("the header needs {needed} bytes, the buffer has {given}")]
    BufferTooSmall { needed: usize, given: usize },
    #[error("a version is a number from 0 to 3, got {0}")]
    Version(u8),
    #[error("an option value has up to 31 words of 4 bytes, got {0} bytes")]
    OptionValue(usize),
    #[error("all options together have up to 63 words of 4 bytes, got {0} bytes")]
    OptionsLength(usize),
}

impl<'a> Header<'a> {
    /// The header and its length, where the payload begins.
    pub fn parse(datagram: &'a [u8]) -> Result<(Header<'a>, usize), GeneveError> {
        let base = datagram.first_chunk::<BASE_LEN>().ok_or(GeneveError::Truncated)?;
        let [version_and_len, flags, p0, p1, v0, v1, v2, _] = *base;
        let version = version_and_len >> VERSION_SHIFT;
        // RFC 8926 section 3.4: a packet of an unknown version is dropped.
        if version != 0 {
            return Err(GeneveError::Version(version));
        }
        let len = BASE_LEN + usize::from(version_and_len & OPTIONS_LEN_MASK) * 4;
        let mut rest = datagram.get(BASE_LEN..len).ok_or(GeneveError::HeaderOverrun)?;
        let mut items = [None; MAX_OPTIONS];
        let mut free = items.iter_mut();
        while !rest.is_empty() {
            let (option, after) = parse_option(rest)?;
            *free.next().ok_or(GeneveError::TooManyOptions)? = Some(option);
            rest = after;
        }
        let header = Header {
            version,
            oam: flags & FLAG_OAM != 0,
            critical: flags & FLAG_CRITICAL != 0,
            protocol: u16::from_be_bytes([p0, p1]),
            vni: Vni::from_be_bytes([v0, v1, v2]),
            options: Options { items },
        };
        Ok((header, len))
    }

    /// Writes the header to the start of `out` and returns its length.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, EmitError> {
        if self.version > 3 {
            return Err(EmitError::Version(self.version));
        }
        let mut needed = BASE_LEN;
        for option in self.options.iter() {
            if option.value.len() % 4 != 0 || option.value.len() > MAX_OPTION_VALUE {
                return Err(EmitError::OptionValue(option.value.len()));
            }
            needed += OPTION_HEADER_LEN + option.value.len();
        }
        let options_len = needed - BASE_LEN;
        // Two options of 31 words and their headers are one word more than the 6 bits of the length field hold.
        if options_len > usize::from(OPTIONS_LEN_MASK) * 4 {
            return Err(EmitError::OptionsLength(options_len));
        }
        let given = out.len();
        let out = out.get_mut(..needed).ok_or(EmitError::BufferTooSmall { needed, given })?;
        out[field::VERSION_AND_OPTIONS_LEN] = self.version << VERSION_SHIFT | (options_len / 4) as u8;
        out[field::FLAGS] = (u8::from(self.oam) * FLAG_OAM) | (u8::from(self.critical) * FLAG_CRITICAL);
        out[field::PROTOCOL].copy_from_slice(&self.protocol.to_be_bytes());
        out[field::VNI_AND_RESERVED].copy_from_slice(&(self.vni.get() << 8).to_be_bytes());
        let mut at = BASE_LEN;
        for option in self.options.iter() {
            let [c0, c1] = option.class.to_be_bytes();
            out[at..][..OPTION_HEADER_LEN].copy_from_slice(&[c0, c1, option.kind, (option.value.len() / 4) as u8]);
            at += OPTION_HEADER_LEN;
            out[at..][..option.value.len()].copy_from_slice(option.value);
            at += option.value.len();
        }
        Ok(needed)
    }
}

/// The option that `rest` starts with, and what follows it.
fn parse_option(rest: &[u8]) -> Result<(GeneveOption<'_>, &[u8]), GeneveError> {
    let (header, rest) = rest.split_first_chunk::<OPTION_HEADER_LEN>().ok_or(GeneveError::OptionOverrun)?;
    let [c0, c1, kind, len] = *header;
    let class = u16::from_be_bytes([c0, c1]);
    // RFC 8926 section 3.5: the length has 5 bits, the three reserved ones before it are ignored.
    let len = usize::from(len & OPTION_LEN_MASK) * 4;
    let (value, rest) = rest.split_at_checked(len).ok_or(GeneveError::OptionOverrun)?;
    // RFC 8926 section 3.5.1: an unknown option with the critical bit, drop.
    let known = class == OPTION_CLASS && matches!(kind, OPTION_KEY_EPOCH | OPTION_TX_COUNTER);
    if !known && kind & OPTION_CRITICAL != 0 {
        return Err(GeneveError::UnknownCritical);
    }
    Ok((GeneveOption { class, kind, value }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STANDARD: TunnelHeader = TunnelHeader {
        protocol: 0x86dd,
        vni: match Vni::new(0xabcdef) {
            Ok(vni) => vni,
            Err(_) => panic!(),
        },
        spi: 0x4000_0001,
        counter: 7,
    };

    fn standard() -> [u8; HEADER_LEN] {
        let mut header = [0xee; HEADER_LEN];
        emit(&STANDARD, &mut header);
        header
    }

    /// A base header with the options, 4 bytes of payload behind it.
    fn with_options(options: &[u8]) -> Vec<u8> {
        let mut datagram = vec![(options.len() / 4) as u8, 0x40, 0x08, 0, 0, 0, 1, 0];
        datagram.extend_from_slice(options);
        datagram.extend_from_slice(&[0xaa; 4]);
        datagram
    }

    #[test]
    fn the_tunnel_header_is_laid_out_as_the_protocol_says() {
        assert_eq!(hex::encode(standard()), "064086ddabcdef00ff00810140000001ff008203400000010000000000000007");
    }

    #[test]
    fn flags_and_reserved_bits_are_ignored() {
        let plain = standard();
        let expected = parse(&plain).unwrap();
        let mut header = plain;
        header[1] = 0xff;
        header[7] = 0xff;
        assert_eq!(parse(&header), Ok(expected));
        header[11] |= 0xe0;
        header[19] |= 0xe0;
        assert_eq!(parse(&header), Ok(expected));
    }

    #[test]
    fn options_may_come_in_either_order() {
        let mut options = [0u8; 24];
        options[..16].copy_from_slice(&standard()[16..]);
        options[16..].copy_from_slice(&standard()[8..16]);
        let datagram = with_options(&options);
        let parsed = parse(&datagram).unwrap();
        assert_eq!((parsed.key_epoch, parsed.payload_offset), (STANDARD.spi, HEADER_LEN));
        assert_eq!(parsed.nonce.unwrap()[..], standard()[20..]);
    }

    #[test]
    fn a_missing_or_empty_key_epoch_is_zero_and_of_a_longer_one_the_first_word_counts() {
        let epoch = |options: &[u8]| parse(&with_options(options)).unwrap().key_epoch;
        assert_eq!(epoch(&[]), 0);
        assert_eq!(epoch(&[0xff, 0, 0x81, 0]), 0);
        assert_eq!(epoch(&[0xff, 0, 0x81, 2, 0, 0, 0, 9, 0, 0, 0, 8]), 9);
    }

    #[test]
    fn a_tx_counter_has_three_words_or_there_is_no_nonce() {
        for words in [0u8, 1, 2, 4, 31] {
            let mut options = vec![0xff, 0, 0x82, words];
            options.resize(4 + usize::from(words) * 4, 5);
            assert_eq!(parse(&with_options(&options)).unwrap().nonce, None, "{words} words");
        }
        let mut options = vec![0xff, 0, 0x82, 3];
        options.resize(16, 5);
        assert_eq!(parse(&with_options(&options)).unwrap().nonce, Some(&[5; 12]));
    }

    #[test]
    fn unknown_options_are_skipped_unless_critical_and_never_more_than_two() {
        let unknown = [0x01, 0x02, 0x7f, 0];
        assert_eq!(parse(&with_options(&unknown)).unwrap().payload_offset, 12);
        assert_eq!(parse(&with_options(&[unknown, unknown].concat())).unwrap().payload_offset, 16);
        assert_eq!(parse(&with_options(&[unknown; 3].concat())), Err(GeneveError::TooManyOptions));
        let three = [&standard()[8..], &unknown].concat();
        assert_eq!(parse(&with_options(&three)), Err(GeneveError::TooManyOptions));
        for (class, kind) in [(0x01, 0x81), (0xff, 0x83), (0xfe, 0x82)] {
            assert_eq!(parse(&with_options(&[class, 0, kind, 0])), Err(GeneveError::UnknownCritical));
        }
    }

    #[test]
    fn options_end_where_the_header_says() {
        // One word of options, which promises three more.
        assert_eq!(parse(&with_options(&[0xff, 0, 0x82, 3])), Err(GeneveError::OptionOverrun));
        let mut header = standard();
        header[0] = 0x05;
        assert_eq!(parse(&header), Err(GeneveError::OptionOverrun));
        header[0] = 0x07;
        assert_eq!(parse(&header), Err(GeneveError::HeaderOverrun));
        assert_eq!(parse(&[&header[..], &[0; 4]].concat()), Err(GeneveError::TooManyOptions));
    }

    #[test]
    fn other_versions_are_refused() {
        for version in 1..4 {
            let mut header = standard();
            header[0] |= version << 6;
            assert_eq!(parse(&header), Err(GeneveError::Version(version)));
        }
    }

    #[test]
    fn a_header_that_cannot_be_expressed_is_not_written() {
        let long = [0; MAX_OPTION_VALUE];
        let option = |value| GeneveOption { class: 1, kind: 1, value };
        let header = |options: &[GeneveOption<'static>]| Header {
            version: 0,
            oam: false,
            critical: false,
            protocol: 0,
            vni: STANDARD.vni,
            options: Options::from_slice(options).unwrap(),
        };
        let mut out = [0xee; 300];
        let long: &'static [u8] = Box::leak(Box::new(long));
        assert_eq!(header(&[option(long)]).emit(&mut out), Ok(8 + 4 + 124));
        out.fill(0xee);
        // 64 words of options, and the field counts to 63.
        assert_eq!(header(&[option(long), option(long)]).emit(&mut out), Err(EmitError::OptionsLength(256)));
        assert_eq!(header(&[option(&[0; 3])]).emit(&mut out), Err(EmitError::OptionValue(3)));
        assert_eq!(header(&[option(&[0; 128])]).emit(&mut out), Err(EmitError::OptionValue(128)));
        assert_eq!(header(&[]).emit(&mut out[..7]), Err(EmitError::BufferTooSmall { needed: 8, given: 7 }));
        assert_eq!(out, [0xee; 300]);
        let four = GeneveOption { class: 0, kind: 0, value: &[] };
        assert_eq!(Options::from_slice(&[four; 3]), None);
    }

    fn words(max: usize) -> impl Strategy<Value = Vec<u8>> {
        (0..=max).prop_flat_map(|words| proptest::collection::vec(any::<u8>(), words * 4))
    }

    proptest! {
        #[test]
        fn the_tunnel_header_parses_back(protocol: u16, vni in 0..=Vni::MAX, spi: u32, counter: u64, tail: Vec<u8>) {
            let vni = Vni::new(vni).unwrap();
            let mut header = [0xee; HEADER_LEN];
            emit(&TunnelHeader { protocol, vni, spi, counter }, &mut header);
            let mut nonce = [0; NONCE_LEN];
            nonce[..4].copy_from_slice(&spi.to_be_bytes());
            nonce[4..].copy_from_slice(&counter.to_be_bytes());
            let expected = Parsed { protocol, vni, key_epoch: spi, nonce: Some(&nonce), payload_offset: HEADER_LEN };
            prop_assert_eq!(parse(&header), Ok(expected));
            prop_assert_eq!(parse_any(&header), Ok(expected));
            let datagram = [&header[..], &tail].concat();
            prop_assert_eq!(parse(&datagram), Ok(expected));
        }

        #[test]
        fn general_headers_parse_back(
            oam: bool,
            critical: bool,
            protocol: u16,
            vni in 0..=Vni::MAX,
            options in proptest::collection::vec((any::<u16>(), 0u8..0x80, words(31)), 0..=2),
        ) {
            prop_assume!(options.iter().map(|(_, _, value)| 1 + value.len() / 4).sum::<usize>() <= 63);
            let options: Vec<_> =
                options.iter().map(|(class, kind, value)| GeneveOption { class: *class, kind: *kind, value }).collect();
            let options = Options::from_slice(&options).unwrap();
            let header = Header { version: 0, oam, critical, protocol, vni: Vni::new(vni).unwrap(), options };
            let mut out = [0xee; 300];
            let len = header.emit(&mut out).unwrap();
            prop_assert_eq!(Header::parse(&out), Ok((header, len)));
        }

        /// The quick form for the standard shape hides nothing from the general one.
        #[test]
        fn both_forms_agree_after_any_change(at in 0..HEADER_LEN, bits: u8, cut in 0..=HEADER_LEN) {
            let mut header = standard();
            header[at] ^= bits;
            prop_assert_eq!(parse(&header), parse_any(&header));
            prop_assert_eq!(parse(&header[..cut]), parse_any(&header[..cut]));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(datagram in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(parsed) = parse(&datagram) {
                prop_assert!(parsed.payload_offset <= datagram.len());
            }
        }
    }
}
