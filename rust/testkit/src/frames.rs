//! The frames that an adversary can make of captured ones, and which counter each must cost.

use std::str::FromStr;

use crate::random::Random;

/// The tunnel's Geneve header (RFC 8926) with its two options.
const HEADER_LEN: usize = 32;
const TAG_LEN: usize = 16;

const FIRST_BYTE: usize = 0;
const VNI: usize = 4;
const KEY_EPOCH_TYPE: usize = 10;
const KEY_EPOCH_LEN: usize = 11;
const KEY_EPOCH: usize = 12;
const TX_COUNTER_TYPE: usize = 18;
const TX_COUNTER_LEN: usize = 19;
const NONCE_SPI: usize = 20;
const NONCE_COUNTER: usize = 24;

/// The bit of an SPI that names the role of its allocator.
const ROLE_BIT: u32 = 1 << 30;

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// No Geneve header of the tunnel's: version, lengths, options.
    Malformed,
    /// Cut within its header.
    Truncated,
    /// Cut behind its header.
    Shortened,
    /// A true header with another counter, and noise for ciphertext and tag.
    Forged,
    /// One bit changed in what is authenticated.
    Tampered,
    /// Sent a second time.
    Replayed,
    /// Sent back to who sent it.
    Reflected,
    UnknownVni,
    UnknownSpi,
    /// Nonce and KeyEpoch option name different keys.
    SpiMismatch,
    /// A true frame from an address that is not the peer's.
    Stranger,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of frame: the kinds are {names}", names = Kind::ALL.map(Kind::name).join(", "))]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// Captured frames of one VNI and, in each direction, of one key; the receiver has had them all.
#[derive(Clone, Debug, Default)]
pub struct Material {
    /// Those that the victim received.
    pub received: Vec<Vec<u8>>,
    /// Those that the victim sent.
    pub sent: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MaterialError {
    #[error("no frame towards the victim was captured, and everything is made of those")]
    NothingReceived,
    #[error("no frame of the victim was captured, so none can be reflected")]
    NothingSent,
}

impl Material {
    /// Keeps the whole tunnel frames among `received` and `sent`.
    pub fn new(received: Vec<Vec<u8>>, sent: Vec<Vec<u8>>) -> Result<Self, MaterialError> {
        let whole = |mut frames: Vec<Vec<u8>>| {
            frames.retain(|frame| frame.len() >= HEADER_LEN + TAG_LEN);
            frames
        };
        let material = Material { received: whole(received), sent: whole(sent) };
        if material.received.is_empty() {
            return Err(MaterialError::NothingReceived);
        }
        if material.sent.is_empty() {
            return Err(MaterialError::NothingSent);
        }
        Ok(material)
    }
}

impl Kind {
    pub const ALL: [Kind; 11] = [
        Kind::Malformed,
        Kind::Truncated,
        Kind::Shortened,
        Kind::Forged,
        Kind::Tampered,
        Kind::Replayed,
        Kind::Reflected,
        Kind::UnknownVni,
        Kind::UnknownSpi,
        Kind::SpiMismatch,
        Kind::Stranger,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Malformed => "malformed",
            Kind::Truncated => "truncated",
            Kind::Shortened => "shortened",
            Kind::Forged => "forged",
            Kind::Tampered => "tampered",
            Kind::Replayed => "replayed",
            Kind::Reflected => "reflected",
            Kind::UnknownVni => "unknown-vni",
            Kind::UnknownSpi => "unknown-spi",
            Kind::SpiMismatch => "spi-mismatch",
            Kind::Stranger => "stranger",
        }
    }

    /// The counter that each frame of this kind must raise by one.
    pub fn counter(self) -> &'static str {
        match self {
            Kind::Malformed | Kind::Truncated => "rx_malformed",
            Kind::Shortened | Kind::Forged | Kind::Tampered => "rx_auth_failed",
            Kind::Replayed => "rx_replayed",
            Kind::Reflected | Kind::UnknownSpi => "rx_no_key",
            Kind::UnknownVni => "rx_unknown_vni",
            Kind::SpiMismatch => "rx_spi_mismatch",
            Kind::Stranger => "rx_bad_peer",
        }
    }

    /// Writes a frame of this kind over `out`.
    pub fn write(self, material: &Material, random: &mut Random, out: &mut Vec<u8>) {
        let frames = if self == Kind::Reflected { &material.sent } else { &material.received };
        out.clear();
        out.extend_from_slice(&frames[random.below(frames.len())]);
        match self {
            Kind::Malformed => malform(random, out),
            Kind::Truncated => out.truncate(1 + random.below(HEADER_LEN - 1)),
            Kind::Shortened => out.truncate(HEADER_LEN + random.below(out.len() - HEADER_LEN)),
            Kind::Forged => random.fill(&mut out[NONCE_COUNTER..]),
            Kind::Tampered => {
                // Flags, protocol type, the reserved byte, and all from the nonce's counter on: elsewhere a change would
                // make another kind.
                let places = [1, 2, 3, 7];
                let at = random.below(places.len() + out.len() - NONCE_COUNTER);
                let at = places.get(at).copied().unwrap_or_else(|| at - places.len() + NONCE_COUNTER);
                out[at] ^= 1 << random.below(8);
            }
            Kind::Replayed | Kind::Reflected | Kind::Stranger => {}
            Kind::UnknownVni => change(random, &mut out[VNI..VNI + 3]),
            Kind::UnknownSpi => {
                // The role bit of a key that the victim itself sends under: it never receives under such a one.
                let known = out[KEY_EPOCH..].first_chunk().map_or(0, |spi| u32::from_be_bytes(*spi));
                let noise = random.next_u64() as u32;
                let spi = ((known ^ ROLE_BIT) & ROLE_BIT) | (noise & !ROLE_BIT);
                for at in [KEY_EPOCH, NONCE_SPI] {
                    out[at..at + 4].copy_from_slice(&spi.to_be_bytes());
                }
            }
            Kind::SpiMismatch => change(random, &mut out[NONCE_SPI..NONCE_SPI + 4]),
        }
    }
}

/// Whether a filter for Geneve datagrams takes the frame: one of version 0 with IP packets in it, or nothing, by its fixed header
/// (RFC 8926 section 3.4). A filter leaves all else to the host.
pub fn is_geneve(frame: &[u8]) -> bool {
    let Some([version, _, protocol @ .., _, _, _, _]) = frame.first_chunk::<8>() else { return false };
    *version & 0xc0 == 0 && [0x0800, 0x86dd, 0].contains(&u16::from_be_bytes(*protocol))
}

/// Makes a frame that is no tunnel frame.
fn malform(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(8) {
        0 => frame.clear(),
        // RFC 8926 section 3.4: a version that is not 0.
        1 => frame[FIRST_BYTE] |= 0x40 << random.below(2),
        // Options of 63 words, and no room for them.
        2 => {
            frame[FIRST_BYTE] = 0x3f;
            frame.truncate(100);
        }
        // An option that runs past the header.
        3 => frame[KEY_EPOCH_LEN] = 31,
        // An unknown option with the critical bit.
        4 => frame[KEY_EPOCH_TYPE] = 0xf0,
        // The counter's option is missing: an unknown one that may be skipped has its place.
        5 => frame[TX_COUNTER_TYPE] = 0x02,
        // A nonce that is too short, and behind it what reads as one option too many.
        6 => frame[TX_COUNTER_LEN] = 2,
        // Noise of an unknown version.
        _ => {
            random.fill(frame);
            frame[FIRST_BYTE] |= 0x80;
        }
    }
}

/// Changes the bytes to others.
fn change(random: &mut Random, bytes: &mut [u8]) {
    let at = random.below(bytes.len());
    bytes[at] ^= 1 + random.below(255) as u8;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{IpAddr, SocketAddr};
    use std::sync::Arc;

    use icx_proto::engine::{
        Engine, EngineConfig, Mode, NetworkConfig, OuterTrafficClass, RxVerdict, SaPair, TxVerdict, Underlay,
    };
    use icx_proto::{AllowedRoute, Instant, MacAddr, SaKey, Spi, TxKeyHistory, Vni};

    use super::*;

    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    struct Node {
        engine: Engine,
        address: IpAddr,
    }

    /// Two engines with each other's keys.
    fn pair() -> [Node; 2] {
        let [a, b] = ["192.0.2.1:6081", "192.0.2.2:6081"].map(|text| text.parse::<SocketAddr>().unwrap());
        let spi = |role: u32| Spi::new(0x1234 | role).unwrap();
        let key = |byte| SaKey::from_slice(&[byte; 16]).unwrap();
        [(a, b, 0, ROLE_BIT), (b, a, ROLE_BIT, 0)].map(|(own, peer, own_role, peer_role)| {
            let engine = Engine::new(EngineConfig {
                mode: Mode::L3,
                underlay: Underlay::Udp,
                peer_filter: true,
                source_port_hashing: None,
                outer_traffic_class: OuterTrafficClass::default(),
                keepalive: None,
                inner_mtu: None,
                tx_key_history: Arc::new(TxKeyHistory::new(&[7; 32])),
            });
            let vni = Vni::new(1).unwrap();
            let everything = AllowedRoute { src: "0.0.0.0/0".parse().unwrap(), dst: "0.0.0.0/0".parse().unwrap() };
            let network =
                NetworkConfig { vni, peer, peer_mac: MacAddr([0; 6]), routes: vec![everything], rx_rate_limit: None };
            engine.add_network(network).unwrap();
            let sa = SaPair {
                rx_spi: spi(own_role),
                tx_spi: spi(peer_role),
                rx_key: key(1 + (own_role != 0) as u8),
                tx_key: key(1 + (peer_role != 0) as u8),
                expires_at: Instant::FAR_FUTURE,
            };
            engine.install(NOW, vni, sa).unwrap();
            Node { engine, address: own.ip() }
        })
    }

    /// Seals packets of several sizes and lets the other side open them.
    fn exchange(from: &Node, to: &Node) -> Vec<Vec<u8>> {
        let (mut sealed, mut opened) = ([0; 2048], [0; 2048]);
        let frames = (0..40).map(|n| {
            let mut packet = vec![0; 20 + n * 31];
            packet[0] = 0x45;
            let length = packet.len() as u16;
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            let TxVerdict::Send { range, .. } = from.engine.virt_to_phy(NOW, &packet, &mut sealed) else {
                panic!("not sealed")
            };
            let frame = sealed[range].to_vec();
            let verdict = to.engine.phy_to_virt(NOW, Some(from.address), &frame, &mut opened);
            assert!(matches!(verdict, RxVerdict::Deliver { .. }), "{verdict:?}");
            frame
        });
        frames.collect()
    }

    fn counters(engine: &Engine) -> BTreeMap<&'static str, u64> {
        let of_network = engine.network_counters(Vni::new(1).unwrap()).unwrap();
        let values = engine.counters().values.into_iter().zip(of_network.values);
        let names = icx_proto::counters::COUNTER_NAMES;
        names.into_iter().zip(values.map(|(engine, network)| engine + network)).collect()
    }

    #[test]
    fn each_kind_costs_exactly_its_counter() {
        let [a, b] = pair();
        let material = Material::new(exchange(&a, &b), exchange(&b, &a)).unwrap();
        let stranger: IpAddr = "192.0.2.9".parse().unwrap();
        let mut random = Random::new(1);
        let (mut frame, mut opened) = (Vec::new(), [0; 2048]);
        for kind in Kind::ALL {
            let before = counters(&b.engine);
            let source = if kind == Kind::Stranger { stranger } else { a.address };
            for _ in 0..5000 {
                kind.write(&material, &mut random, &mut frame);
                let _ = b.engine.phy_to_virt(NOW, Some(source), &frame, &mut opened);
            }
            let moved: Vec<_> = counters(&b.engine)
                .into_iter()
                .filter_map(|(name, value)| Some((name, value - before[name])).filter(|(_, by)| *by != 0))
                .collect();
            assert_eq!(moved, [(kind.counter(), 5000)], "{}", kind.name());
        }
    }

    #[test]
    fn only_what_is_malformed_or_tampered_with_is_no_geneve() {
        let [a, b] = pair();
        let material = Material::new(exchange(&a, &b), exchange(&b, &a)).unwrap();
        let mut random = Random::new(1);
        let mut frame = Vec::new();
        for kind in Kind::ALL {
            let taken = (0..5000)
                .filter(|_| {
                    kind.write(&material, &mut random, &mut frame);
                    is_geneve(&frame)
                })
                .count();
            let partly = matches!(kind, Kind::Malformed | Kind::Truncated | Kind::Tampered);
            assert!(if partly { taken > 0 && taken < 5000 } else { taken == 5000 }, "{}: {taken}", kind.name());
        }
        assert!(!is_geneve(&[0; 7]));
        assert!(is_geneve(&[0; 8]));
        assert!(!is_geneve(&[0x40, 0, 0x08, 0, 0, 0, 0, 0]));
        assert!(!is_geneve(&[0, 0, 0x65, 0x58, 0, 0, 0, 0]), "Ethernet frames in it");
    }

    #[test]
    fn names_are_read_back_and_others_are_refused() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("forget".parse::<Kind>().is_err());
    }

    #[test]
    fn material_needs_frames_of_both_directions() {
        assert_eq!(Material::new(vec![vec![0; 47]], vec![]).unwrap_err(), MaterialError::NothingReceived);
        assert_eq!(Material::new(vec![vec![0; 48]], vec![]).unwrap_err(), MaterialError::NothingSent);
    }
}
