//! "Too big" answers to senders on the inner side, at a bounded rate.

use std::time::Duration;

use icx_proto::Instant;
use icx_proto::wire::icmp::{MAX_LEN, too_big};

/// RFC 8200 section 5: what every IPv6 path carries.
const IPV6_LEAST_MTU: u32 = 1280;

/// How many messages may go out at once, and how often one more may. RFC 4443 section 2.4 (f) demands a limit; a sender
/// that has learned the size sends no more packets that need one.
const BURST: u32 = 32;
const INTERVAL: Duration = Duration::from_millis(10);

/// Makes ICMP "packet too big" (IPv6) and "fragmentation needed" (IPv4) messages, as many as the rate limit permits.
#[derive(Debug)]
pub(crate) struct TooBig {
    tokens: u32,
    refilled: Instant,
}

impl TooBig {
    /// The longest message.
    pub(crate) const MAX_BYTES: usize = MAX_LEN;

    pub(crate) fn new(now: Instant) -> Self {
        TooBig { tokens: BURST, refilled: now }
    }

    /// Writes the message that tells the sender of `packet` to keep to `mtu` bytes; returns its length. `None`: the limit
    /// is reached, or no message is due for such a packet.
    ///
    /// It comes from the packet's own destination: the kernel takes no packet from a device that claims to come from one
    /// of its own addresses.
    ///
    /// RFC 8201 section 4: no sender of IPv6 is told less than 1280 bytes, and none of a packet that is no larger.
    pub(crate) fn reply(&mut self, now: Instant, packet: &[u8], mtu: u32, out: &mut [u8]) -> Option<usize> {
        let is_ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
        if is_ipv6 && packet.len() <= IPV6_LEAST_MTU as usize {
            return None;
        }
        let mtu = if is_ipv6 { mtu.max(IPV6_LEAST_MTU) } else { mtu };
        self.refill(now);
        let left = self.tokens.checked_sub(1)?;
        let length = too_big(packet, mtu, None, out)?;
        self.tokens = left;
        Some(length)
    }

    fn refill(&mut self, now: Instant) {
        let intervals = now.saturating_since(self.refilled).as_nanos() / INTERVAL.as_nanos();
        if intervals > 0 {
            self.tokens = u32::try_from(intervals).unwrap_or(BURST).saturating_add(self.tokens).min(BURST);
            self.refilled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use icx_proto::Instant;

    use super::{BURST, INTERVAL, TooBig};

    /// 28 bytes of IPv4 and UDP with DF, from 10.0.0.1 to 10.0.0.2.
    const PACKET: [u8; 28] =
        [0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 8, 0, 0];

    #[test]
    fn answers_are_limited_and_come_again() {
        let start = Instant::from_nanos(1_000_000_000);
        let mut too_big = TooBig::new(start);
        let mut out = [0; TooBig::MAX_BYTES];
        for _ in 0..BURST {
            assert_eq!(too_big.reply(start, &PACKET, 1280, &mut out), Some(20 + 8 + 28));
        }
        assert_eq!(too_big.reply(start, &PACKET, 1280, &mut out), None);
        let later = start.saturating_add(INTERVAL);
        assert!(too_big.reply(later, &PACKET, 1280, &mut out).is_some());
        assert_eq!(too_big.reply(later, &PACKET, 1280, &mut out), None);
        let much_later = later.saturating_add(Duration::from_secs(3600));
        let answered = std::iter::repeat_with(|| too_big.reply(much_later, &PACKET, 1280, &mut out))
            .take(2 * BURST as usize)
            .flatten()
            .count();
        assert_eq!(answered, BURST as usize);
    }

    #[test]
    fn the_answer_goes_to_the_sender_from_its_destination() {
        let now = Instant::from_nanos(0);
        let mut out = [0; TooBig::MAX_BYTES];
        assert_eq!(TooBig::new(now).reply(now, &PACKET, 1280, &mut out), Some(56));
        assert_eq!((&out[12..16], &out[16..20]), (&[10, 0, 0, 2][..], &[10, 0, 0, 1][..]));
        // Type 3 code 4, the MTU in bytes 6 and 7 (RFC 1191 section 4).
        assert_eq!((out[20], out[21], &out[26..28]), (3, 4, &1280u16.to_be_bytes()[..]));
    }
}
