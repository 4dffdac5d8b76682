//! The layout of SPIs, and handing them out.
//!
//! Bit 31 is the index of a master key, bit 30 the role of the allocator, bits 29..0 a counter that starts at 1 or above.

use icx_proto::Spi;

use crate::role::Role;

/// The largest counter of an SPI.
pub const MAX_COUNTER: u32 = (1 << 30) - 1;

/// Where [`SpiAllocator::random`] may start at the latest: half of the numbers stay usable.
const MAX_RANDOM_START: u32 = 1 << 29;

/// Bit 31 of an SPI. Only [`MasterIndex::Zero`] is in use today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MasterIndex {
    Zero,
    One,
}

/// The parts do not make an SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the counter of an SPI goes from 1 to {MAX_COUNTER}, got {0}")]
pub struct SpiCounterError(pub u32);

/// Every counter of this allocator has been handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this session has no SPIs left: a new session has")]
pub struct SpisExhausted;

/// Puts an SPI together.
pub fn make_spi(index: MasterIndex, role: Role, counter: u32) -> Result<Spi, SpiCounterError> {
    if counter > MAX_COUNTER || counter == 0 {
        return Err(SpiCounterError(counter));
    }
    let index = match index {
        MasterIndex::Zero => 0,
        MasterIndex::One => 1 << 31,
    };
    Spi::new(index | role.bit() << 30 | counter).ok_or(SpiCounterError(counter))
}

pub const fn master_index(spi: u32) -> MasterIndex {
    if spi >> 31 == 0 { MasterIndex::Zero } else { MasterIndex::One }
}

/// The role of the node that allocated `spi`.
pub const fn allocator_role(spi: u32) -> Role {
    if spi >> 30 & 1 == 0 { Role::Initiator } else { Role::Responder }
}

pub const fn counter(spi: u32) -> u32 {
    spi & MAX_COUNTER
}

/// Whether the low 31 bits are zero, which no SPI in use has.
pub const fn is_reserved(spi: u32) -> bool {
    spi & (u32::MAX >> 1) == 0
}

/// Hands out the SPIs on which one side of one session receives; never one twice.
#[derive(Debug)]
pub struct SpiAllocator {
    role: Role,
    /// The next counter for each master key; above [`MAX_COUNTER`] when there is none left.
    next: [u32; 2],
}

impl SpiAllocator {
    /// Starts at a random counter, so that the SPIs of a session rarely meet those of the one before.
    pub fn random(role: Role) -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut bytes = [0; 4];
        aws_lc_rs::rand::fill(&mut bytes)?;
        let start = 1 + u32::from_be_bytes(bytes) % MAX_RANDOM_START;
        Ok(SpiAllocator { role, next: [start; 2] })
    }

    /// Starts at `counter`.
    pub fn starting_at(role: Role, counter: u32) -> Result<Self, SpiCounterError> {
        make_spi(MasterIndex::Zero, role, counter)?;
        Ok(SpiAllocator { role, next: [counter; 2] })
    }

    /// The next SPI. Does not wrap: once all are used it fails for ever.
    pub fn allocate(&mut self, index: MasterIndex) -> Result<Spi, SpisExhausted> {
        let next = match index {
            MasterIndex::Zero => &mut self.next[0],
            MasterIndex::One => &mut self.next[1],
        };
        let spi = make_spi(index, self.role, *next).map_err(|_| SpisExhausted)?;
        *next += 1;
        Ok(spi)
    }
}

/// The SPIs a peer has announced on a session, kept as ranges because peers count up.
#[derive(Debug, Default)]
pub struct AnnouncedSpis {
    /// Ascending, disjoint and not adjacent; both ends inclusive.
    ranges: Vec<(u32, u32)>,
}

/// Why an announcement was not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    #[error("SPI {0} was announced before on this session")]
    Again(Spi),
    #[error("the peer announces SPIs in no order: this session remembers no more of them, a new one does")]
    TooScattered,
}

impl AnnouncedSpis {
    /// How many separate ranges are remembered: bounds what a peer can make us store (8 bytes each).
    pub const MAX_RANGES: usize = 4096;

    /// Records `spi`, or says that it was here before.
    pub fn announce(&mut self, spi: Spi) -> Result<(), AnnounceError> {
        let number = spi.get();
        let at = self.ranges.partition_point(|&(_, end)| end < number);
        if self.ranges.get(at).is_some_and(|&(start, _)| start <= number) {
            return Err(AnnounceError::Again(spi));
        }
        let extends_left = at > 0 && self.ranges[at - 1].1 + 1 == number;
        let extends_right = self.ranges.get(at).is_some_and(|&(start, _)| start - 1 == number);
        match (extends_left, extends_right) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = number,
            (false, true) => self.ranges[at].0 = number,
            (false, false) if self.ranges.len() < Self::MAX_RANGES => self.ranges.insert(at, (number, number)),
            (false, false) => return Err(AnnounceError::TooScattered),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_counter_is_handed_out_once_and_nothing_after_it() {
        let mut spis = SpiAllocator::starting_at(Role::Responder, MAX_COUNTER).unwrap();
        assert_eq!(spis.allocate(MasterIndex::Zero).unwrap().get(), 0x7fff_ffff);
        for _ in 0..3 {
            assert_eq!(spis.allocate(MasterIndex::Zero), Err(SpisExhausted));
        }
        assert_eq!(spis.allocate(MasterIndex::One).unwrap().get(), 0xffff_ffff);
    }

    #[test]
    fn random_starts_differ_and_leave_half_of_the_numbers() {
        let starts: std::collections::HashSet<u32> = (0..64)
            .map(|_| {
                let spi = SpiAllocator::random(Role::Initiator).unwrap().allocate(MasterIndex::Zero).unwrap();
                assert_eq!(allocator_role(spi.get()), Role::Initiator);
                assert!((1..=MAX_RANDOM_START).contains(&counter(spi.get())));
                spi.get()
            })
            .collect();
        assert!(starts.len() > 60, "{} distinct starts of 64", starts.len());
    }

    #[test]
    fn announcements_agree_with_a_set_in_any_order() {
        // A full cycle over 0..1024 in a scattered order, each number twice.
        let mut announced = AnnouncedSpis::default();
        let mut oracle = std::collections::HashSet::new();
        for step in 0..2048u32 {
            let spi = Spi::new(1 + (step * 389 + step / 1024) % 1024).unwrap();
            assert_eq!(announced.announce(spi).is_ok(), oracle.insert(spi), "{spi}");
        }
        assert_eq!(announced.ranges, [(1, 1024)]);
    }

    #[test]
    fn the_ends_of_the_number_range_are_remembered() {
        let mut announced = AnnouncedSpis::default();
        for number in [u32::MAX, 1, u32::MAX - 1, 2] {
            announced.announce(Spi::new(number).unwrap()).unwrap();
            assert!(announced.announce(Spi::new(number).unwrap()).is_err());
        }
        assert_eq!(announced.ranges, [(1, 2), (u32::MAX - 1, u32::MAX)]);
    }

    #[test]
    fn scattered_announcements_are_bounded() {
        let mut announced = AnnouncedSpis::default();
        for n in 0..AnnouncedSpis::MAX_RANGES as u32 {
            announced.announce(Spi::new(1 + 2 * n).unwrap()).unwrap();
        }
        let next = Spi::new(1 + 2 * AnnouncedSpis::MAX_RANGES as u32).unwrap();
        assert_eq!(announced.announce(next), Err(AnnounceError::TooScattered));
        assert!(announced.announce(Spi::new(2).unwrap()).is_ok(), "one that joins two ranges costs nothing");
        assert!(announced.announce(next).is_ok());
    }
}
