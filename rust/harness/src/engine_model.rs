//! Two engines and a network between them against a plain model: which counter a packet gets, what becomes of it on the
//! other side, and that no nonce ever comes twice under one key.
//!
//! The model keeps windows and nonces as sets, keys as numbers and time as one number. It knows no threads and no buffers.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Arbitrary;
use icx_proto::counters::{RxDrop, TxDrop};
use icx_proto::engine::{
    InstallError, OuterTrafficClass, RxSaStatus, RxVerdict, SaPair, SaStatus, TxSaStatus, TxSwitch, TxVerdict,
};
use icx_proto::replay::{COUNTER_LIMIT, ReplayWindow};
use icx_proto::{
    AllowedRoute, Engine, EngineConfig, Instant, MacAddr, Mode, NetworkConfig, SaKey, Spi, TxKeyHistory, Underlay, Vni,
};

use crate::authentic::{moved, totals};
use crate::state::decode;

const VNI: u32 = 5;
const GRACE: u64 = 30_000_000_000;
const KEEPALIVE: u64 = 25_000_000_000;
const START: u64 = 1_000_000_000_000;
/// The last counter of a transmit key.
const LAST_COUNTER: u64 = 1 << 60;
/// So few SPIs for each direction that an engine never has to give one up for room.
const SPIS: u8 = 8;

/// One of the two nodes.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    A,
    B,
}

impl Side {
    fn peer(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }

    fn ip(self) -> IpAddr {
        IpAddr::from([192, 0, 2, 1 + self as u8])
    }
}

/// How long a key lasts, from short to for ever.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Life {
    Over,
    Milliseconds(u16),
    Minutes(u8),
    Ever,
}

/// A key: of a direction unless `crossed`, one of few, in AES-128 or AES-256.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct KeyChoice {
    number: u8,
    crossed: bool,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    InstallPair {
        side: Side,
        spi: u8,
        key: KeyChoice,
        life: Life,
    },
    InstallRx {
        side: Side,
        spi: u8,
        key: KeyChoice,
        life: Life,
    },
    InstallTx {
        side: Side,
        spi: u8,
        key: KeyChoice,
        life: Life,
    },
    InstallTxLater {
        side: Side,
        spi: u8,
        key: KeyChoice,
        life: Life,
        rx_spi: u8,
        wait_ms: u16,
    },
    ConfirmRx {
        side: Side,
        spi: u8,
    },
    Rekey {
        initiator: Side,
        number: u8,
    },
    Seal {
        side: Side,
    },
    /// What was sealed so many packets ago arrives, for the first time or again.
    Deliver {
        back: u8,
    },
    /// The same comes back to whoever sent it.
    Reflect {
        back: u8,
    },
    /// It arrives with one bit flipped.
    Damage {
        back: u8,
        byte: u8,
        bit: u8,
    },
    Milliseconds(u16),
    Minutes(u8),
    /// To the instant at which something is due.
    NextTimeout {
        side: Side,
        late: bool,
    },
    Sweep {
        side: Side,
    },
    Keepalive {
        side: Side,
    },
    SkipCounter {
        side: Side,
        to: Skip,
    },
    Replace {
        side: Side,
    },
}

#[derive(Arbitrary, Debug)]
enum Skip {
    By(u16),
    /// That many before the last counter there is.
    NearTheEnd(u8),
}

type KeyId = u8;

/// A sealed packet on its way.
struct Datagram {
    from: Side,
    spi: u32,
    key: KeyId,
    counter: u64,
    keepalive: bool,
    plain: Vec<u8>,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Tx {
    spi: u32,
    key: KeyId,
    expires: u64,
    last: u64,
    erased: bool,
}

#[derive(Debug)]
struct Pending {
    rx_spi: u32,
    /// The receive association that it waits for, by its number.
    rx: Option<u64>,
    deadline: u64,
    tx: Tx,
}

#[derive(Debug)]
struct Rx {
    id: u64,
    spi: u32,
    key: KeyId,
    /// Order of installs.
    seq: u64,
    expires: u64,
    grace_ends: u64,
    erased: bool,
    reported: bool,
    accepted: HashSet<u64>,
    highest: u64,
}

impl Rx {
    fn valid_until(&self) -> u64 {
        self.expires.min(self.grace_ends)
    }

    fn opens(&self, now: u64) -> bool {
        !self.erased && now <= self.valid_until()
    }
}

/// What one engine is to do.
#[derive(Debug, Default)]
struct Model {
    tx: Option<Tx>,
    pending: Option<Pending>,
    rx: Vec<Rx>,
    /// Receive associations under which something has opened.
    proven: HashSet<u64>,
    next_id: u64,
    next_seq: u64,
    keepalive_at: Option<u64>,
    counters: BTreeMap<&'static str, u64>,
}

impl Model {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn count(&mut self, name: &'static str, by: u64) {
        if by > 0 {
            *self.counters.entry(name).or_default() += by;
        }
    }

    fn switched(&self, now: u64) -> bool {
        let ready =
            |pending: &Pending| now >= pending.deadline || pending.rx.is_some_and(|rx| self.proven.contains(&rx));
        self.pending.as_ref().is_some_and(ready)
    }

    fn tx(&mut self, now: u64) -> Option<&mut Tx> {
        if self.switched(now) { self.pending.as_mut().map(|pending| &mut pending.tx) } else { self.tx.as_mut() }
    }

    /// The counter that the next packet takes, with the SPI and the key it goes under.
    fn seal(&mut self, now: u64) -> Result<(u32, KeyId, u64), TxDrop> {
        let tx = self.tx(now).ok_or(TxDrop::NoKey)?;
        if tx.erased || now > tx.expires {
            return Err(TxDrop::ExpiredKey);
        }
        if tx.last >= LAST_COUNTER {
            return Err(TxDrop::Exhausted);
        }
        tx.last += 1;
        Ok((tx.spi, tx.key, tx.last))
    }

    fn supersede_before(&mut self, now: u64, seq: u64) {
        for rx in self.rx.iter_mut().filter(|rx| rx.seq < seq) {
            rx.grace_ends = rx.grace_ends.min(now.saturating_add(GRACE));
        }
    }

    fn prove(&mut self, now: u64, at: usize) {
        let (id, seq) = (self.rx[at].id, self.rx[at].seq);
        if self.proven.insert(id) {
            self.supersede_before(now, seq);
        }
    }

    fn find(&self, spi: u32) -> Option<usize> {
        self.rx.iter().position(|rx| rx.spi == spi)
    }

    /// A receive key, renewed where it is there already. `supersede`: as half of a pair.
    fn set_rx(&mut self, now: u64, spi: u32, key: KeyId, expires: u64, supersede: bool) {
        let again = self.find(spi).filter(|at| !self.rx[*at].erased && self.rx[*at].key == key);
        match again {
            Some(at) if supersede => {
                self.next_seq += 1;
                let rx = &mut self.rx[at];
                (rx.seq, rx.expires, rx.grace_ends) = (self.next_seq, expires, u64::MAX);
            }
            Some(at) => self.rx[at].expires = expires,
            None => {
                self.next_seq += 1;
                let id = self.id();
                self.rx.retain(|rx| rx.spi != spi);
                if let Some(pending) = self.pending.as_mut().filter(|pending| pending.rx_spi == spi) {
                    pending.rx = Some(id);
                }
                self.rx.push(Rx {
                    id,
                    spi,
                    key,
                    seq: self.next_seq,
                    expires,
                    grace_ends: u64::MAX,
                    erased: false,
                    reported: false,
                    accepted: HashSet::new(),
                    highest: 0,
                });
            }
        }
        if let Some(at) = again {
            self.rx[at].reported = false;
        }
        if supersede {
            self.supersede_before(now, self.next_seq);
        }
    }

    fn set_tx(&mut self, tx: Tx) {
        self.tx = Some(tx);
        self.pending = None;
    }

    fn sends_with(&self, key: KeyId) -> bool {
        let uses = |tx: &Tx| !tx.erased && tx.key == key;
        self.tx.as_ref().is_some_and(uses) || self.pending.as_ref().is_some_and(|pending| uses(&pending.tx))
    }

    fn opens_with(&self, key: KeyId) -> bool {
        self.rx.iter().any(|rx| !rx.erased && rx.key == key)
    }

    /// The verdict on what claims to be under `epoch` and `nonce`; `genuine` is the packet it really is.
    fn open(&mut self, now: u64, epoch: u32, nonce: (u32, u64), genuine: Option<&Datagram>) -> Result<(), RxDrop> {
        let at = self.find(epoch).ok_or(RxDrop::NoKey)?;
        let rx = &mut self.rx[at];
        if !rx.opens(now) {
            let told = std::mem::replace(&mut rx.reported, true);
            return Err(if told { RxDrop::NoKey } else { RxDrop::ExpiredKey });
        }
        if nonce.0 != epoch {
            return Err(RxDrop::SpiMismatch);
        }
        if genuine.is_none_or(|genuine| genuine.key != rx.key) {
            return Err(RxDrop::AuthFailed);
        }
        let counter = nonce.1;
        let behind = rx.highest.saturating_sub(counter);
        if counter == 0
            || counter >= COUNTER_LIMIT
            || behind > ReplayWindow::<128>::WINDOW
            || !rx.accepted.insert(counter)
        {
            return Err(RxDrop::Replayed);
        }
        rx.highest = rx.highest.max(counter);
        self.prove(now, at);
        Ok(())
    }

    fn timeouts(&self) -> impl Iterator<Item = u64> {
        let after = |last: u64| (last < u64::MAX).then(|| last + 1);
        let rx = self.rx.iter().filter(|rx| !rx.erased).filter_map(move |rx| after(rx.valid_until()));
        let tx = self.tx.iter().filter(|tx| !tx.erased).filter_map(move |tx| after(tx.expires));
        rx.chain(tx).chain(self.pending.iter().map(|pending| pending.deadline))
    }

    fn sweep(&mut self, now: u64) {
        if self.timeouts().all(|due| now < due) {
            return;
        }
        if self.switched(now)
            && let Some(pending) = self.pending.take()
        {
            self.tx = Some(pending.tx);
        }
        if let Some(tx) = self.tx.as_mut().filter(|tx| now > tx.expires) {
            tx.erased = true;
        }
        self.rx.retain(|rx| rx.opens(now) || !rx.reported);
        for at in 0..self.rx.len() {
            if !self.rx[at].opens(now) && !self.rx[at].erased {
                // What is left of it is another one to whatever waits for it.
                let id = self.id();
                let rx = &mut self.rx[at];
                if self.proven.contains(&rx.id) {
                    self.proven.insert(id);
                }
                (rx.id, rx.erased, rx.expires, rx.grace_ends) = (id, true, rx.valid_until(), u64::MAX);
            }
        }
    }

    fn status(&mut self, now: u64) -> SaStatus {
        let instant = Instant::from_nanos;
        let mut rx: Vec<&Rx> = self.rx.iter().filter(|rx| rx.opens(now)).collect();
        rx.sort_by_key(|rx| rx.seq);
        let rx = rx.iter().map(|rx| RxSaStatus {
            spi: spi(rx.spi),
            expires_at: instant(rx.valid_until()),
            superseded: rx.grace_ends != u64::MAX,
        });
        let rx = rx.collect();
        let pending_tx = if self.switched(now) { None } else { self.pending.as_ref().map(|p| spi(p.tx.spi)) };
        let tx = |tx: &mut Tx| TxSaStatus { spi: spi(tx.spi), expires_at: instant(tx.expires), sealed: tx.last };
        SaStatus { rx, tx: self.tx(now).map(tx), pending_tx }
    }
}

fn spi(number: u32) -> Spi {
    Spi::new(number).expect("not zero")
}

fn vni() -> Vni {
    Vni::new(VNI).expect("in range")
}

/// The SPI number `choice` on which `side` receives.
fn rx_spi_of(side: Side, choice: u8) -> u32 {
    (side as u32) << 30 | (1 + u32::from(choice % SPIS))
}

/// The key number `choice` under which `side` receives.
fn rx_key_of(side: Side, choice: KeyChoice) -> KeyId {
    (choice.number % 16) << 1 | u8::from((side == Side::A) != choice.crossed)
}

/// Odd halves of the numbers are AES-256 keys.
fn key(id: KeyId) -> SaKey {
    let len = if id & 2 == 0 { 16 } else { 32 };
    SaKey::from_slice(&[id.wrapping_add(0x40); 32][..len]).expect("16 or 32 bytes")
}

/// An inner packet from `side`, different each time.
fn packet(side: Side, number: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 253, 0, 0, 10, side as u8, 0, 1, 10, side.peer() as u8, 0, 1];
    packet.extend_from_slice(&number.to_be_bytes());
    packet
}

/// A node: the engine under test and what it is to do.
struct Node {
    side: Side,
    engine: Engine,
    model: Model,
    /// Of the networks that were replaced, whose counters went with them.
    networks: u32,
}

impl Node {
    fn new(side: Side, history: &Arc<TxKeyHistory>) -> Self {
        let engine = Engine::new(EngineConfig {
            mode: Mode::L3,
            underlay: Underlay::Udp,
            peer_filter: true,
            source_port_hashing: None,
            outer_traffic_class: OuterTrafficClass::default(),
            keepalive: Some(Duration::from_nanos(KEEPALIVE)),
            inner_mtu: None,
            tx_key_history: history.clone(),
        });
        let node = Node { side, engine, model: Model::default(), networks: 0 };
        node.add_network();
        node
    }

    fn add_network(&self) {
        let prefix = |side: Side| format!("10.{}.0.0/16", side as u8).parse().expect("ours");
        let network = NetworkConfig {
            vni: vni(),
            peer: SocketAddr::new(self.side.peer().ip(), 6081),
            peer_mac: MacAddr::default(),
            routes: vec![AllowedRoute { src: prefix(self.side), dst: prefix(self.side.peer()) }],
            rx_rate_limit: None,
        };
        self.engine.add_network(network).expect("the only one");
    }
}

struct World {
    now: u64,
    nodes: [Node; 2],
    sent: Vec<Datagram>,
    /// Every (key, SPI, counter) that has sealed.
    nonces: HashSet<(KeyId, u32, u64)>,
    /// Every transmit (SPI, key) that has been installed anywhere.
    used: HashSet<(u32, KeyId)>,
}

/// Runs the operations that the bytes stand for.
pub fn operations(input: &[u8]) {
    let history = Arc::new(TxKeyHistory::new(&[1; 32]));
    let nodes = [Side::A, Side::B].map(|side| Node::new(side, &history));
    let mut world = World { now: START, nodes, sent: Vec::new(), nonces: HashSet::new(), used: HashSet::new() };
    for operation in decode::<Operation>(input).into_iter().take(512) {
        world.step(&operation);
        world.compare(&operation);
    }
}

impl World {
    fn node(&mut self, side: Side) -> &mut Node {
        &mut self.nodes[side as usize]
    }

    fn expiry(&self, life: Life) -> u64 {
        match life {
            Life::Over => self.now - 1,
            Life::Milliseconds(by) => self.now + u64::from(by) * 1_000_000,
            Life::Minutes(by) => self.now + u64::from(by) * 60_000_000_000,
            Life::Ever => u64::MAX,
        }
    }

    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::InstallPair { side, spi, key, life } => self.install_pair(side, spi, key, key, life),
            Operation::InstallRx { side, spi, key, life } => {
                self.install_rx(side, spi, rx_key_of(side, key), life);
            }
            Operation::InstallTx { side, spi, key, life } => {
                self.install_tx(side, spi, rx_key_of(side.peer(), key), life, None);
            }
            Operation::InstallTxLater { side, spi, key, life, rx_spi, wait_ms } => {
                let deadline = self.now + u64::from(wait_ms) * 1_000_000;
                let later = Some((rx_spi_of(side, rx_spi), deadline));
                self.install_tx(side, spi, rx_key_of(side.peer(), key), life, later);
            }
            Operation::ConfirmRx { side, spi: choice } => {
                let now = self.now;
                let number = rx_spi_of(side, choice);
                let node = self.node(side);
                node.engine.confirm_rx(Instant::from_nanos(now), vni(), spi(number));
                if let Some(at) = node.model.find(number) {
                    node.model.prove(now, at);
                }
            }
            Operation::Rekey { initiator, number } => self.rekey(initiator, number),
            Operation::Seal { side } => self.seal(side),
            Operation::Deliver { back } => self.deliver(back, |datagram| datagram.from.peer(), None),
            Operation::Reflect { back } => self.deliver(back, |datagram| datagram.from, None),
            Operation::Damage { back, byte, bit } => {
                self.deliver(back, |datagram| datagram.from.peer(), Some((byte, bit % 8)));
            }
            Operation::Milliseconds(by) => self.now += u64::from(by) * 1_000_000,
            Operation::Minutes(by) => self.now += u64::from(by) * 60_000_000_000,
            Operation::NextTimeout { side, late } => {
                if let Some(due) = self.node(side).engine.poll_timeout() {
                    self.now = self.now.max(due.as_nanos() - u64::from(!late));
                }
            }
            Operation::Sweep { side } => {
                let now = self.now;
                let node = self.node(side);
                node.engine.handle_timeout(Instant::from_nanos(now));
                node.model.sweep(now);
                let next = node.engine.poll_timeout();
                assert!(next.is_none_or(|next| next.as_nanos() > now), "still due: {next:?}");
            }
            Operation::Keepalive { side } => self.keepalive(side),
            Operation::SkipCounter { side, ref to } => {
                let node = self.node(side);
                let tx = node.model.tx(0);
                let to = match to {
                    Skip::By(by) => tx.as_ref().map_or(0, |tx| tx.last) + u64::from(*by),
                    Skip::NearTheEnd(before) => LAST_COUNTER + 2 - u64::from(*before),
                };
                let target = to.min(LAST_COUNTER);
                let expected = tx.is_some_and(|tx| {
                    let forward = target > tx.last;
                    tx.last = tx.last.max(target);
                    forward
                });
                assert_eq!(node.engine.skip_tx_counter_to(vni(), to), expected);
            }
            Operation::Replace { side } => {
                let node = self.node(side);
                node.engine.remove_network(vni()).expect("it is there");
                node.add_network();
                node.model = Model { next_id: node.model.next_id, next_seq: node.model.next_seq, ..Model::default() };
                node.networks += 1;
            }
        }
    }

    fn install_pair(&mut self, side: Side, choice: u8, rx: KeyChoice, tx: KeyChoice, life: Life) {
        let (rx_spi, tx_spi) = (rx_spi_of(side, choice), rx_spi_of(side.peer(), choice));
        let (rx_key, tx_key) = (rx_key_of(side, rx), rx_key_of(side.peer(), tx));
        let (now, expires) = (self.now, self.expiry(life));
        let sa = SaPair {
            rx_spi: spi(rx_spi),
            tx_spi: spi(tx_spi),
            rx_key: key(rx_key),
            tx_key: key(tx_key),
            expires_at: Instant::from_nanos(expires),
        };
        let result = self.node(side).engine.install(Instant::from_nanos(now), vni(), sa);
        let expected = if expires < now {
            Err(InstallError::Expired)
        } else if rx_key == tx_key {
            Err(InstallError::EqualKeys)
        } else if !self.used.insert((tx_spi, tx_key)) {
            Err(InstallError::TxKeyReused(spi(tx_spi)))
        } else {
            Ok(())
        };
        assert_eq!(result, expected);
        if result.is_ok() {
            let model = &mut self.node(side).model;
            model.set_rx(now, rx_spi, rx_key, expires, true);
            model.set_tx(Tx { spi: tx_spi, key: tx_key, expires, last: 0, erased: false });
            model.keepalive_at.get_or_insert(0);
        }
    }

    fn install_rx(&mut self, side: Side, choice: u8, rx_key: KeyId, life: Life) {
        let (now, expires) = (self.now, self.expiry(life));
        let number = rx_spi_of(side, choice);
        let node = self.node(side);
        let expires_at = Instant::from_nanos(expires);
        let result = node.engine.install_rx(Instant::from_nanos(now), vni(), spi(number), key(rx_key), expires_at);
        let expected = if expires < now {
            Err(InstallError::Expired)
        } else if node.model.sends_with(rx_key) {
            Err(InstallError::EqualKeys)
        } else {
            Ok(())
        };
        assert_eq!(result, expected);
        if result.is_ok() {
            node.model.set_rx(now, number, rx_key, expires, false);
        }
    }

    fn install_tx(&mut self, side: Side, choice: u8, tx_key: KeyId, life: Life, later: Option<(u32, u64)>) {
        let (now, expires) = (self.now, self.expiry(life));
        let number = rx_spi_of(side.peer(), choice);
        let switch = match later {
            None => TxSwitch::Now,
            Some((rx_spi, deadline)) => {
                TxSwitch::OnFirstOpen { rx_spi: spi(rx_spi), deadline: Instant::from_nanos(deadline) }
            }
        };
        let (at, expires_at) = (Instant::from_nanos(now), Instant::from_nanos(expires));
        let result = self.node(side).engine.install_tx(at, vni(), spi(number), key(tx_key), expires_at, switch);
        let expected = if expires < now {
            Err(InstallError::Expired)
        } else if self.node(side).model.opens_with(tx_key) {
            Err(InstallError::EqualKeys)
        } else if !self.used.insert((number, tx_key)) {
            Err(InstallError::TxKeyReused(spi(number)))
        } else {
            Ok(())
        };
        assert_eq!(result, expected);
        if result.is_ok() {
            let model = &mut self.node(side).model;
            let tx = Tx { spi: number, key: tx_key, expires, last: 0, erased: false };
            match later {
                None => model.set_tx(tx),
                Some((rx_spi, deadline)) => {
                    let rx = model.find(rx_spi).map(|at| model.rx[at].id);
                    model.pending = Some(Pending { rx_spi, rx, deadline, tx });
                }
            }
            model.keepalive_at.get_or_insert(0);
        }
    }

    /// As an SA exchange installs its keys: the initiator can receive before it offers, the responder before it answers
    /// and sends with the new key once it heard something under it.
    fn rekey(&mut self, initiator: Side, number: u8) {
        let responder = initiator.peer();
        let choice = KeyChoice { number, crossed: false };
        let (to_initiator, to_responder) = (rx_key_of(initiator, choice), rx_key_of(responder, choice));
        let later = Some((rx_spi_of(responder, number), self.now + 500_000_000));
        self.install_rx(initiator, number, to_initiator, Life::Minutes(60));
        self.install_rx(responder, number, to_responder, Life::Minutes(60));
        self.install_tx(responder, number, to_initiator, Life::Minutes(60), later);
        self.install_tx(initiator, number, to_responder, Life::Minutes(60), None);
    }

    fn seal(&mut self, side: Side) {
        let now = self.now;
        let plain = packet(side, self.sent.len() as u32);
        let node = self.node(side);
        let mut out = vec![0; plain.len() + 48];
        let verdict = node.engine.virt_to_phy(Instant::from_nanos(now), &plain, &mut out);
        let expected = node.model.seal(now);
        match (verdict, expected) {
            (TxVerdict::Send { range, .. }, Ok((spi, key, counter))) => {
                node.model.count("tx_packets", 1);
                node.model.count("tx_bytes", plain.len() as u64);
                let bytes = out[range].to_vec();
                self.record(Datagram { from: side, spi, key, counter, keepalive: false, plain, bytes });
            }
            (TxVerdict::Drop(reason), Err(expected)) => {
                assert_eq!(reason, expected);
                node.model.count(reason.counter_name(), 1);
            }
            (verdict, expected) => panic!("{verdict:?} where the model says {expected:?}"),
        }
    }

    fn keepalive(&mut self, side: Side) {
        let now = self.now;
        let node = self.node(side);
        let mut out = [0; 48];
        let verdict = node.engine.to_phy(Instant::from_nanos(now), &mut out);
        if node.model.keepalive_at.is_none_or(|due| due > now) {
            assert_eq!(verdict, None);
            return;
        }
        node.model.keepalive_at = Some(now + KEEPALIVE);
        match (verdict, node.model.seal(now)) {
            (Some(TxVerdict::Send { range, .. }), Ok((spi, key, counter))) => {
                node.model.count("tx_packets", 1);
                let (plain, bytes) = (Vec::new(), out[range].to_vec());
                self.record(Datagram { from: side, spi, key, counter, keepalive: true, plain, bytes });
            }
            (Some(TxVerdict::Drop(TxDrop::Exhausted)), Err(TxDrop::Exhausted)) => {
                node.model.count(TxDrop::Exhausted.counter_name(), 1);
            }
            (None, Err(TxDrop::NoKey | TxDrop::ExpiredKey)) => node.model.keepalive_at = None,
            (verdict, expected) => panic!("{verdict:?} where the model says {expected:?}"),
        }
    }

    /// What has been sealed carries the counter that the model gave it, which no other packet has.
    fn record(&mut self, datagram: Datagram) {
        let word = |at: usize| u32::from_be_bytes(datagram.bytes[at..at + 4].try_into().expect("four bytes"));
        assert_eq!((word(12), word(20)), (datagram.spi, datagram.spi));
        assert_eq!(u64::from(word(24)) << 32 | u64::from(word(28)), datagram.counter);
        assert!(datagram.counter >= 1);
        assert!(self.nonces.insert((datagram.key, datagram.spi, datagram.counter)), "a nonce was used twice");
        self.sent.push(datagram);
    }

    fn deliver(&mut self, back: u8, to: impl FnOnce(&Datagram) -> Side, flip: Option<(u8, u8)>) {
        let Some(at) = self.sent.len().checked_sub(1 + usize::from(back)) else { return };
        let now = self.now;
        let datagram = &self.sent[at];
        let side = to(datagram);
        let mut bytes = datagram.bytes.clone();
        if let Some((byte, bit)) = flip {
            // Flags, protocol, VNI, SPI, nonce, text, tag; the shape of the header is the business of its parser.
            let places = (1..8).chain(12..16).chain(20..bytes.len());
            let place = places.cycle().nth(byte.into()).expect("it cycles");
            bytes[place] ^= 1 << bit;
        }
        let node = &mut self.nodes[side as usize];
        let mut out = vec![0; bytes.len()];
        let src = Some(side.peer().ip());
        let verdict = node.engine.phy_to_virt(Instant::from_nanos(now), src, &bytes, &mut out);
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let expected = if word(4) >> 8 == VNI {
            let nonce = (word(20), u64::from(word(24)) << 32 | u64::from(word(28)));
            let genuine = Some(datagram).filter(|_| flip.is_none());
            node.model.open(now, word(12), nonce, genuine).and_then(|()| {
                if side == datagram.from && !datagram.keepalive { Err(RxDrop::InvalidSrc) } else { Ok(()) }
            })
        } else {
            Err(RxDrop::UnknownVni)
        };
        match (verdict, expected) {
            (RxVerdict::Deliver { range, .. }, Ok(())) => {
                assert!(!datagram.keepalive);
                assert_eq!(out[range], datagram.plain);
                node.model.count("rx_packets", 1);
                node.model.count("rx_bytes", datagram.plain.len() as u64);
            }
            (RxVerdict::Consumed { .. }, Ok(())) => {
                assert!(datagram.keepalive);
                node.model.count("rx_packets", 1);
            }
            (RxVerdict::Drop(reason), Err(expected)) => {
                assert_eq!(reason, expected);
                node.model.count(reason.counter_name(), 1);
            }
            (verdict, expected) => panic!("{verdict:?} where the model says {expected:?}"),
        }
    }

    fn compare(&mut self, operation: &Operation) {
        let now = self.now;
        for node in &mut self.nodes {
            let status = node.engine.sa_status(Instant::from_nanos(now), vni());
            assert_eq!(status, Some(node.model.status(now)), "after {operation:?} at {}", node.side as u8);
            assert_eq!(
                node.engine.poll_timeout().map(Instant::as_nanos),
                node.model.timeouts().min(),
                "after {operation:?}"
            );
            assert_eq!(node.engine.next_keepalive().map(Instant::as_nanos), node.model.keepalive_at);
            if node.networks == 0 {
                let counters = moved(&Default::default(), &totals(&node.engine));
                assert_eq!(counters.into_iter().collect::<BTreeMap<_, _>>(), node.model.counters);
            }
        }
    }
}
