//! Structured input as typed values: one place that turns JSON text into them, with messages for people.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};

use icx_proto::{AllowedRoute, IpPrefix, MacAddr, SaKey, Spi, Vni};
use serde::de::{DeserializeOwned, Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::error::{Failure, Outcome};

/// Reads one JSON value. A failure names the field, what is wrong with its value, and what is allowed.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Outcome<T> {
    let mut input = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut input).map_err(|error| {
        let path = error.path().to_string();
        let cause = without_position(&error.into_inner());
        match path.as_str() {
            "." => Failure::invalid(format!("Cannot use the options: {cause}")),
            path => Failure::invalid(format!("Cannot use option '{path}': {cause}")),
        }
    })?;
    input.end().map_err(|error| Failure::invalid(format!("Cannot use the options: {}", without_position(&error))))?;
    Ok(value)
}

/// The text of a value that the library made itself.
pub(crate) fn text<T: Serialize>(value: &T) -> Outcome<String> {
    serde_json::to_string(value)
        .map_err(|error| Failure::new(Code::Invalid, format!("Cannot write the result as JSON: {error}")))
}

/// Users never see the text that they did not write, so neither its lines and columns.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    for_people(text.rfind(" at line ").map_or(&*text, |at| &text[..at]))
}

/// Says what is expected in terms of values instead of types.
fn for_people(text: &str) -> String {
    const KINDS: [(&str, &str); 3] = [
        ("u16", "a whole number from 0 to 65535"),
        ("u32", "a whole number from 0 to 4294967295"),
        ("a sequence", "a list"),
    ];
    match text.rsplit_once(", expected ") {
        Some((given, kind)) if kind.starts_with("struct ") => format!("{given}, expected an object"),
        Some((given, kind)) => match KINDS.iter().find(|(name, _)| *name == kind) {
            Some((_, meaning)) => format!("{given}, expected {meaning}"),
            None => text.to_owned(),
        },
        None => text.to_owned(),
    }
}

/// A value that JSON carries as text.
pub(crate) trait FromText: Sized {
    /// What is allowed, for messages.
    const EXPECTED: &'static str;

    fn from_text(text: &str) -> Result<Self, String>;
}

/// Field of a value that JSON carries as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text<T>(pub(crate) T);

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct TextVisitor<T>(PhantomData<T>);

        impl<T: FromText> Visitor<'_> for TextVisitor<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<T>, E> {
                T::from_text(text).map(Text).map_err(E::custom)
            }
        }

        input.deserialize_str(TextVisitor(PhantomData))
    }
}

impl FromText for IpAddr {
    const EXPECTED: &'static str = "an IP address such as 192.0.2.1 or 2001:db8::1";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("'{text}' is not an IP address: write one such as 192.0.2.1 or 2001:db8::1"))
    }
}

impl FromText for SocketAddr {
    const EXPECTED: &'static str = "an address and a port such as 192.0.2.1:6081 or [2001:db8::1]:6081";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            format!("'{text}' is not an address with a port: write one such as 192.0.2.1:6081 or [2001:db8::1]:6081")
        })
    }
}

impl FromText for IpPrefix {
    const EXPECTED: &'static str = "an IP prefix such as 10.0.0.0/8 or fd00::/64";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: icx_proto::routes::PrefixError| error.to_string())
    }
}

/// An address of a device with the length of its network, host bits allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceAddress {
    pub(crate) addr: IpAddr,
    pub(crate) prefix_len: u8,
}

impl FromText for InterfaceAddress {
    const EXPECTED: &'static str = "an address with its prefix length such as 10.9.0.1/24";

    fn from_text(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is not an address with a prefix length: write one such as 10.9.0.1/24 or fd00::1/64");
        let (addr, len) = text.split_once('/').ok_or_else(wrong)?;
        let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
        let max = if addr.is_ipv4() { 32 } else { 128 };
        match len.parse() {
            Ok(prefix_len) if prefix_len <= max && len.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(InterfaceAddress { addr, prefix_len })
            }
            _ => Err(format!("prefix length '{len}' of '{text}' is not a number from 0 to {max}")),
        }
    }
}

impl FromText for MacAddr {
    const EXPECTED: &'static str = "a hardware address such as 02:00:00:00:00:01";

    fn from_text(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        let all = bytes.iter_mut().all(|byte| {
            parts.next().is_some_and(|part| match decode_hex::<1>(part) {
                Some(value) => {
                    *byte = value[0];
                    true
                }
                None => false,
            })
        });
        if all && parts.next().is_none() {
            Ok(MacAddr(bytes))
        } else {
            Err(format!("'{text}' is not a hardware address: write six hexadecimal bytes such as 02:00:00:00:00:01"))
        }
    }
}

/// A decimal 64-bit number: JSON numbers of JavaScript end at 2^53.
impl FromText for u64 {
    const EXPECTED: &'static str = "a decimal number from 0 to 18446744073709551615 as text";

    fn from_text(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(value) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(value),
            _ => Err(format!("'{text}' is not a decimal number from 0 to 18446744073709551615")),
        }
    }
}

/// 64 bits as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hex64(pub(crate) u64);

impl FromText for Hex64 {
    const EXPECTED: &'static str = "16 hexadecimal digits";

    fn from_text(text: &str) -> Result<Self, String> {
        match decode_hex::<8>(text) {
            Some(bytes) => Ok(Hex64(u64::from_be_bytes(bytes))),
            None => Err("it takes exactly 16 hexadecimal digits".into()),
        }
    }
}

impl FromText for SaKey {
    const EXPECTED: &'static str = "32 or 64 hexadecimal digits";

    fn from_text(text: &str) -> Result<Self, String> {
        use zeroize::Zeroizing;
        let key = match text.len() {
            32 => decode_hex::<16>(text).map(Zeroizing::new).map(|bytes| SaKey::from_slice(&*bytes)),
            64 => decode_hex::<32>(text).map(Zeroizing::new).map(|bytes| SaKey::from_slice(&*bytes)),
            _ => None,
        };
        match key {
            Some(Ok(key)) => Ok(key),
            // The text may be a key: it is not repeated.
            _ => Err("it takes exactly 32 or 64 hexadecimal digits (the value is not shown)".into()),
        }
    }
}

fn decode_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        // Two digits of four bits each.
        *byte = (high << 4 | low) as u8;
    }
    Some(bytes)
}

/// A number of a checked range.
pub(crate) trait FromNumber: Sized {
    const EXPECTED: &'static str;

    fn from_number(number: u32) -> Option<Self>;
}

/// Field of a value that JSON carries as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number<T>(pub(crate) T);

impl<'de, T: FromNumber> Deserialize<'de> for Number<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct NumberVisitor<T>(PhantomData<T>);

        impl<T: FromNumber> Visitor<'_> for NumberVisitor<T> {
            type Value = Number<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Number<T>, E> {
                u32::try_from(number)
                    .ok()
                    .and_then(T::from_number)
                    .map(Number)
                    .ok_or_else(|| E::custom(format!("{number} is out of range: it takes {}", T::EXPECTED)))
            }
        }

        input.deserialize_u64(NumberVisitor(PhantomData))
    }
}

impl FromNumber for Vni {
    const EXPECTED: &'static str = "a whole number from 0 to 16777215";

    fn from_number(number: u32) -> Option<Self> {
        Vni::new(number).ok()
    }
}

impl FromNumber for Spi {
    const EXPECTED: &'static str = "a whole number from 1 to 4294967295";

    fn from_number(number: u32) -> Option<Self> {
        Spi::new(number)
    }
}

/// An allowed route as JSON carries it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RouteOptions {
    src: Text<IpPrefix>,
    dst: Text<IpPrefix>,
}

impl From<RouteOptions> for AllowedRoute {
    fn from(route: RouteOptions) -> Self {
        AllowedRoute { src: route.src.0, dst: route.dst.0 }
    }
}

/// A VNI from a bare argument.
pub(crate) fn vni(number: u32) -> Outcome<Vni> {
    Vni::new(number).map_err(|error| Failure::invalid(format!("Cannot use VNI {number}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Sample {
        vni: Number<Vni>,
        port: Option<u16>,
        peer_addr: Option<Text<SocketAddr>>,
        macs: Option<Vec<Text<MacAddr>>>,
        address: Option<Text<InterfaceAddress>>,
        after: Option<Text<u64>>,
        key: Option<Text<SaKey>>,
    }

    fn failure(text: &str) -> String {
        let failure = parse::<Sample>(text.as_bytes()).unwrap_err();
        assert_eq!(failure.code, Code::Invalid);
        failure.message
    }

    #[test]
    fn good_text_gives_typed_values() {
        let sample: Sample = parse(
            br#" {"vni": 16777215, "peerAddr": "[::1]:5", "macs": ["02:00:00:00:00:Fe"], "address": "fd00::1/64", "port": 65535, "after": "18446744073709551615", "key": "ABababababababababababababababab"} "#,
        )
        .unwrap();
        assert_eq!(sample.vni.0.get(), 0x00ff_ffff);
        assert_eq!(sample.port, Some(u16::MAX));
        assert_eq!(sample.peer_addr.unwrap().0, "[::1]:5".parse().unwrap());
        assert_eq!(sample.macs.unwrap()[0].0, MacAddr([2, 0, 0, 0, 0, 0xfe]));
        assert_eq!(sample.address.unwrap().0.prefix_len, 64);
        assert_eq!(sample.after.unwrap().0, u64::MAX);
        assert_eq!(sample.key.unwrap().0.as_bytes(), [0xab; 16]);
    }

    #[test]
    fn bad_text_names_the_field_the_value_and_what_is_allowed() {
        let cases = [
            ("", "Cannot use the options: EOF while parsing a value"),
            ("\u{0}", "Cannot use the options: expected value"),
            ("[]", "Cannot use the options: invalid length 0, expected an object"),
            ("{}", "Cannot use the options: missing field `vni`"),
            (r#"{"vni":1} x"#, "Cannot use the options: trailing characters"),
            (
                r#"{"vni":16777216}"#,
                "Cannot use option 'vni': 16777216 is out of range: it takes a whole number from 0 to 16777215",
            ),
            (
                r#"{"vni":4294967296}"#,
                "Cannot use option 'vni': 4294967296 is out of range: it takes a whole number from 0 to 16777215",
            ),
            (
                r#"{"vni":-1}"#,
                "Cannot use option 'vni': invalid type: integer `-1`, expected a whole number from 0 to 16777215",
            ),
            (
                r#"{"vni":"1"}"#,
                "Cannot use option 'vni': invalid type: string \"1\", expected a whole number from 0 to 16777215",
            ),
            (
                r#"{"vni":1,"port":65536}"#,
                "Cannot use option 'port': invalid value: integer `65536`, expected a whole number from 0 to 65535",
            ),
            (r#"{"vni":1,"macs":7}"#, "Cannot use option 'macs': invalid type: integer `7`, expected a list"),
            (
                r#"{"vni":1,"peerAddr":"example.org:1"}"#,
                "Cannot use option 'peerAddr': 'example.org:1' is not an address with a port: write one such as 192.0.2.1:6081 or [2001:db8::1]:6081",
            ),
            (
                r#"{"vni":1,"macs":["02:00:00:00:00:01","02:00:00:00:00"]}"#,
                "Cannot use option 'macs[1]': '02:00:00:00:00' is not a hardware address: write six hexadecimal bytes such as 02:00:00:00:00:01",
            ),
            (
                r#"{"vni":1,"address":"10.0.0.1/33"}"#,
                "Cannot use option 'address': prefix length '33' of '10.0.0.1/33' is not a number from 0 to 32",
            ),
            (
                r#"{"vni":1,"address":"10.0.0.1/+8"}"#,
                "Cannot use option 'address': prefix length '+8' of '10.0.0.1/+8' is not a number from 0 to 32",
            ),
            (
                r#"{"vni":1,"after":"+1"}"#,
                "Cannot use option 'after': '+1' is not a decimal number from 0 to 18446744073709551615",
            ),
            (
                r#"{"vni":1,"key":"00ff"}"#,
                "Cannot use option 'key': it takes exactly 32 or 64 hexadecimal digits (the value is not shown)",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(failure(text), message, "{text}");
        }
        let unknown = failure(r#"{"vni":1,"vnis":2}"#);
        assert!(
            unknown.starts_with("Cannot use option 'vnis': unknown field `vnis`, expected one of `vni`, "),
            "{unknown}"
        );
    }

    #[test]
    fn a_bad_key_is_not_repeated_in_the_message() {
        let message = failure(r#"{"vni":1,"key":"0123456789abcdef0123456789abcdeg"}"#);
        assert!(!message.contains("0123456789"), "{message}");
        assert!(!format!("{:?}", Text::<SaKey>(SaKey::from_slice(&[7; 16]).unwrap())).contains('7'));
    }
}
