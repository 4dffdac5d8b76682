//! Acknowledgements as smoltcp takes them.
//!
//! Its congestion control counts acknowledgements rather than bytes, and it takes three that say the same for a loss, whatever they acknowledge
//! selectively. Where packets are merged on their way there is one acknowledgement for many segments: that is taken for as many as there
//! would be without, and for three of the same where what has arrived beyond shows that something is missing.

use super::wire::Acknowledgement;

/// A receiver acknowledges every other segment (RFC 9293 section 3.8.6.3).
const SEGMENTS: u32 = 2;

/// The most that one is taken for.
const MOST: u32 = 64;

/// How many segments have to arrive behind one that is missing before it is taken to be lost (RFC 6675 section 2, DupThresh).
const LOSS_SEGMENTS: u32 = 3;

/// What has been acknowledged on a connection.
#[derive(Debug, Default)]
pub(super) struct Acknowledgements {
    last: Option<u32>,
    /// End of the last bytes that have arrived out of order, as long as it is beyond `last`.
    highest: Option<u32>,
    loss: Option<Loss>,
}

#[derive(Debug)]
struct Loss {
    /// What comes after this is missing.
    at: u32,
    /// What had arrived out of order when it was found. Whatever is missing before that is lost too (RFC 6582 section 3.2).
    until: u32,
}

impl Acknowledgements {
    /// What numbers an acknowledgement is taken for, in order, where segments have at most `segment` bytes.
    pub(super) fn read(&mut self, given: Acknowledgement, segment: u32) -> impl Iterator<Item = u32> + use<> {
        let number = given.number;
        // Nothing is known before the first one.
        let last = self.last.unwrap_or(number);
        let new = ahead(number, last);
        let is_old = ahead(last, number) > 0;
        if !is_old {
            self.last = Some(number);
        }
        let same = if !is_old && self.finds_loss(given, segment) { 1 + LOSS_SEGMENTS } else { 1 };
        let step = (SEGMENTS * segment).max(new / MOST + 1);
        let before = (1..new.div_ceil(step)).map(move |count| last.wrapping_add(count * step));
        before.chain((0..same).map(move |_| number))
    }

    /// Whether what comes after the number is lost, and has not been found to be so before.
    fn finds_loss(&mut self, Acknowledgement { number, beyond }: Acknowledgement, segment: u32) -> bool {
        let end = number.wrapping_add(beyond);
        self.highest = self.highest.filter(|highest| ahead(*highest, end) > 0).or((beyond > 0).then_some(end));
        let highest = self.highest.filter(|highest| ahead(*highest, number) > LOSS_SEGMENTS * segment);
        let earlier = self.loss.as_ref().filter(|loss| ahead(loss.until, number) > 0);
        if earlier.is_some_and(|loss| loss.at == number) {
            return false;
        }
        let until = highest.or(earlier.map(|loss| loss.until));
        self.loss = until.map(|until| Loss { at: number, until });
        self.loss.is_some()
    }
}

/// How far `to` comes after `from` in sequence space; 0: it does not.
fn ahead(to: u32, from: u32) -> u32 {
    u32::try_from(to.wrapping_sub(from) as i32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u32 = 1000;

    fn read(acknowledgements: &mut Acknowledgements, number: u32, beyond: u32) -> Vec<u32> {
        acknowledgements.read(Acknowledgement { number, beyond }, SEGMENT).collect()
    }

    #[test]
    fn one_for_many_segments_is_taken_for_every_other_one_of_them() {
        let mut acknowledgements = Acknowledgements::default();
        let start = u32::MAX - 2500;
        for (bytes, expected) in [
            (0, vec![0]),
            (0, vec![0]),
            (2000, vec![2000]),
            (6000, vec![4000, 6000]),
            (9001, vec![8000, 9001]),
            (8000, vec![8000]),
            (9001, vec![9001]),
            (13_002, vec![11_001, 13_001, 13_002]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|bytes| start.wrapping_add(bytes)).collect();
            assert_eq!(read(&mut acknowledgements, start.wrapping_add(bytes), 0), expected, "{bytes}");
        }
    }

    #[test]
    fn there_is_a_bound_on_what_one_is_taken_for() {
        for bytes in [1 << 20, i32::MAX as u32] {
            let mut acknowledgements = Acknowledgements::default();
            read(&mut acknowledgements, 0, 0);
            let numbers = read(&mut acknowledgements, bytes, 0);
            assert!(numbers.len() <= MOST as usize && numbers.is_sorted(), "{bytes}: {}", numbers.len());
            assert_eq!(numbers.last(), Some(&bytes));
        }
    }

    #[test]
    fn what_has_arrived_beyond_tells_each_loss_once() {
        let mut acknowledgements = Acknowledgements::default();
        for (number, beyond, expected) in [
            (1000, 2000, vec![1000]),
            (1000, 3000, vec![1000]),
            (1000, 3001, vec![1000; 4]),
            (1000, 9000, vec![1000]),
            // Also where a receiver does not say again what has arrived, and up to what had when the first was found.
            (4000, 0, vec![3000, 4000, 4000, 4000, 4000]),
            (3000, 9000, vec![3000]),
            (4000, 0, vec![4000]),
            (8000, 0, vec![6000, 8000, 8000, 8000, 8000]),
            (10_000, 3000, vec![10_000]),
            (10_000, 4000, vec![10_000; 4]),
            (14_000, 0, vec![12_000, 14_000]),
        ] {
            assert_eq!(read(&mut acknowledgements, number, beyond), expected, "{number}, {beyond}");
        }
    }
}
