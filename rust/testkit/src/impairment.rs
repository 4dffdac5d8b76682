//! What a bad network does to a datagram.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::random::Random;

/// How likely something is, in parts of a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percent(u32);

impl FromStr for Percent {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let value: f64 = text.parse().map_err(|_| "give a number from 0 to 100")?;
        if !(0.0..=100.0).contains(&value) {
            return Err("give a number from 0 to 100");
        }
        Ok(Percent((value * 10_000.0).round() as u32))
    }
}

impl Percent {
    fn draw(self, random: &mut Random) -> bool {
        random.below(1_000_000) < self.0 as usize
    }
}

/// The state of the network. The default is a perfect one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Impairments {
    /// Datagrams that vanish.
    pub loss: Percent,
    /// Datagrams that arrive twice.
    pub duplicate: Percent,
    /// Datagrams that arrive with one bit changed.
    pub corrupt: Percent,
    /// Datagrams that are held back for [`Impairments::hold`], so that later ones overtake them.
    pub reorder: Percent,
    pub hold: Duration,
    /// How long every datagram takes.
    pub delay: Duration,
    /// IP packets that are larger vanish, without a word to the sender; `None`: none do.
    pub mtu: Option<u32>,
    /// A link that is down lets nothing through.
    pub up: bool,
}

impl Default for Impairments {
    fn default() -> Self {
        Impairments {
            loss: Percent(0),
            duplicate: Percent(0),
            corrupt: Percent(0),
            reorder: Percent(0),
            hold: Duration::from_millis(5),
            delay: Duration::ZERO,
            mtu: None,
            up: true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    #[error("{0:?} is not of the form name=value")]
    Form(String),
    #[error("there is no setting {0:?}: there are loss, duplicate, corrupt, reorder, hold, delay, mtu and link")]
    Unknown(String),
    #[error("{name} cannot be {value:?}: {allowed}")]
    Value { name: String, value: String, allowed: &'static str },
}

impl Impairments {
    /// These, with the changes that a line of `name=value` words names; `clear` among them starts from a perfect network.
    ///
    /// Percentages: loss, duplicate, corrupt, reorder. Milliseconds: hold, delay. Bytes of IP packet, 0 for any: mtu.
    /// up or down: link.
    pub fn changed(mut self, line: &str) -> Result<Self, SettingError> {
        for word in line.split_whitespace() {
            if word == "clear" {
                self = Impairments::default();
                continue;
            }
            let (name, value) = word.split_once('=').ok_or_else(|| SettingError::Form(word.to_owned()))?;
            let invalid = |allowed| SettingError::Value { name: name.to_owned(), value: value.to_owned(), allowed };
            let percent = || value.parse().map_err(invalid);
            let whole = || value.parse::<u32>().map_err(|_| invalid("give a whole number"));
            match name {
                "loss" => self.loss = percent()?,
                "duplicate" => self.duplicate = percent()?,
                "corrupt" => self.corrupt = percent()?,
                "reorder" => self.reorder = percent()?,
                "hold" => self.hold = Duration::from_millis(whole()?.into()),
                "delay" => self.delay = Duration::from_millis(whole()?.into()),
                "mtu" => self.mtu = Some(whole()?).filter(|bytes| *bytes != 0),
                "link" => {
                    self.up = match value {
                        "up" => true,
                        "down" => false,
                        _ => return Err(invalid("give up or down")),
                    }
                }
                _ => return Err(SettingError::Unknown(name.to_owned())),
            }
        }
        Ok(self)
    }

    /// What becomes of a datagram of `payload` bytes between nodes at addresses of the family of `address`.
    pub fn fate(&self, random: &mut Random, payload: usize, address: IpAddr) -> Fate {
        let headers = if address.is_ipv4() { 28 } else { 48 };
        if !self.up {
            return Fate::LinkDown;
        }
        if self.mtu.is_some_and(|mtu| payload + headers > mtu as usize) {
            return Fate::TooBig;
        }
        if self.loss.draw(random) {
            return Fate::Lost;
        }
        let corrupt = (self.corrupt.draw(random) && payload > 0).then(|| random.below(payload * 8));
        let duplicate = self.duplicate.draw(random);
        let reorder = self.reorder.draw(random);
        let delay = if reorder { self.delay + self.hold } else { self.delay };
        Fate::Passed { corrupt, duplicate, reorder, delay }
    }
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    LinkDown,
    TooBig,
    Lost,
    Passed {
        /// The bit that changes.
        corrupt: Option<usize>,
        duplicate: bool,
        reorder: bool,
        delay: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    fn network(line: &str) -> Impairments {
        Impairments::default().changed(line).unwrap()
    }

    const UNTOUCHED: Fate = Fate::Passed { corrupt: None, duplicate: false, reorder: false, delay: Duration::ZERO };

    #[test]
    fn a_perfect_network_changes_nothing() {
        let mut random = Random::new(3);
        for payload in 0..2000 {
            assert_eq!(network("").fate(&mut random, payload, V4), UNTOUCHED);
        }
    }

    #[test]
    fn each_setting_does_what_it_says_as_often_as_it_says() {
        let of = |line: &str| {
            let (network, mut random) = (network(line), Random::new(5));
            (0..100_000).map(|_| network.fate(&mut random, 100, V4)).collect::<Vec<_>>()
        };
        let share = |fates: &[Fate], found: fn(&Fate) -> bool| fates.iter().filter(|fate| found(fate)).count();
        let lost = share(&of("loss=1"), |fate| *fate == Fate::Lost);
        assert!((900..1100).contains(&lost), "{lost}");
        let doubled = share(&of("duplicate=20"), |fate| matches!(fate, Fate::Passed { duplicate: true, .. }));
        assert!((19_000..21_000).contains(&doubled), "{doubled}");
        let changed = share(&of("corrupt=0.5"), |fate| matches!(fate, Fate::Passed { corrupt: Some(0..800), .. }));
        assert!((400..600).contains(&changed), "{changed}");
        let held = share(
            &of("reorder=5 hold=7 delay=20"),
            |fate| matches!(fate, Fate::Passed { reorder: true, delay, .. } if delay.as_millis() == 27),
        );
        assert!((4500..5500).contains(&held), "{held}");
        assert_eq!(share(&of("loss=100"), |fate| *fate == Fate::Lost), 100_000);
    }

    #[test]
    fn a_small_path_swallows_what_is_larger_and_a_link_that_is_down_everything() {
        let mut random = Random::new(3);
        let mut fate = |line, payload, address| network(line).fate(&mut random, payload, address);
        assert_eq!(fate("mtu=1300", 1272, V4), UNTOUCHED);
        assert_eq!(fate("mtu=1300", 1273, V4), Fate::TooBig);
        assert_eq!(fate("mtu=1300", 1252, V6), UNTOUCHED);
        assert_eq!(fate("mtu=1300", 1253, V6), Fate::TooBig);
        assert_eq!(fate("mtu=1300 mtu=0", 9000, V4), UNTOUCHED);
        assert_eq!(fate("link=down", 10, V4), Fate::LinkDown);
        assert_eq!(fate("link=down loss=9 clear", 10, V4), UNTOUCHED);
    }

    #[test]
    fn equal_seeds_give_equal_networks() {
        let of = |seed| {
            let (network, mut random) = (network("loss=10 reorder=10 duplicate=10 corrupt=10"), Random::new(seed));
            (0..1000).map(|_| network.fate(&mut random, 100, V4)).collect::<Vec<_>>()
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        let refused = |line| Impairments::default().changed(line).unwrap_err();
        assert!(matches!(refused("loss"), SettingError::Form(_)));
        assert!(matches!(refused("los=1"), SettingError::Unknown(_)));
        for line in ["loss=101", "loss=-1", "loss=NaN", "delay=x", "mtu=-1", "link=left"] {
            assert!(matches!(refused(line), SettingError::Value { .. }), "{line}");
        }
    }
}
