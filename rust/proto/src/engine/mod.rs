//! The engine: inner packets to sealed Geneve datagrams and back, for many VNIs and from many threads at once.
//!
//! Packets read their surroundings through one atomically swapped pointer and never wait: the table of networks, routes
//! and keys is replaced whole. Counters, replay windows and the other things that packets change hang off it and are
//! shared by old and new tables. Control calls are serialised among themselves by one lock that no packet takes. The packet path allocates nothing and writes no log; what happens to
//! a packet is a verdict, and every drop has its counter.

mod batch;
mod config;
mod install;
mod keepalive;
mod keys;
mod network;
mod path_mtu;
mod rx;
mod sa;
mod table;
mod tx;

use core::time::Duration;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

pub use batch::{BatchPacket, Destination, OpenSink, RunBuffer, RunLimits, SealSink, SealedBatch, SealedRun, Stop};
pub use config::{EngineConfig, LocalEndpoint, Mode, NetworkConfig, NetworkError, OuterTrafficClass, Underlay};
pub use install::{InstallError, RxSaStatus, SaPair, SaStatus, TxSaStatus, TxSwitch};
pub use path_mtu::{PathMtu, PathMtuChange, PathMtuReason, PathMtuVerdict};
pub use rx::{Arrival, RxVerdict};
pub use tx::{LocalReply, TxVerdict};

use crate::counters::{CounterSnapshot, Counters, TxDrop};
use crate::id::Vni;
use crate::key::TxKeyHistory;
use crate::wire::ethernet;
use table::Table;

/// The inner MTU of an engine that has none.
const UNLIMITED: u32 = u32::MAX;

/// Seals and opens for any number of VNIs. `&self` everywhere: threads share it without locks on the packet path.
pub struct Engine {
    mode: Mode,
    underlay: Underlay,
    peer_filter: bool,
    flow_hash_key: Option<u64>,
    /// The bits of an inner packet's traffic class that the outer header takes over.
    traffic_class_mask: u8,
    keepalive: Option<Duration>,
    inner_mtu: AtomicU32,
    /// A network's path MTU has changed, and nobody has been told.
    path_mtu_changed: AtomicBool,
    tx_key_history: Arc<TxKeyHistory>,
    table: ArcSwap<Table>,
    /// Serialises the control path.
    control: Mutex<Control>,
    /// What belongs to no VNI.
    counters: Counters,
}

/// What only control calls touch.
#[derive(Default)]
struct Control {
    /// Orders every install of this engine.
    last_seq: u64,
}

impl Control {
    fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }
}

impl Engine {
    pub fn new(config: EngineConfig) -> Self {
        Engine {
            mode: config.mode,
            underlay: config.underlay,
            peer_filter: config.peer_filter,
            flow_hash_key: config.source_port_hashing,
            traffic_class_mask: config.outer_traffic_class.mask(),
            keepalive: config.keepalive,
            inner_mtu: AtomicU32::new(config.inner_mtu.unwrap_or(UNLIMITED)),
            path_mtu_changed: AtomicBool::new(false),
            tx_key_history: config.tx_key_history,
            table: ArcSwap::from_pointee(Table::empty()),
            control: Mutex::default(),
            counters: Counters::default(),
        }
    }

    /// What the virtual side carries.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What the physical side carries.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    pub fn set_inner_mtu(&self, mtu: Option<u32>) {
        self.inner_mtu.store(mtu.unwrap_or(UNLIMITED), Ordering::Relaxed);
    }

    /// The virtual device's MTU in bytes of inner packet, if there is one.
    pub fn inner_mtu(&self) -> Option<u32> {
        Some(self.inner_mtu.load(Ordering::Relaxed)).filter(|mtu| *mtu != UNLIMITED)
    }

    /// What belongs to no VNI.
    pub fn counters(&self) -> CounterSnapshot {
        self.counters.snapshot()
    }

    pub fn network_counters(&self, vni: Vni) -> Option<CounterSnapshot> {
        self.table.load().find(vni).map(|entry| entry.network.counters.snapshot())
    }

    /// Counts sealed packets that the operating system then refused.
    pub fn count_tx_errors(&self, vni: Vni, packets: u64) {
        let table = self.table.load();
        let counters = table.find(vni).map_or(&self.counters, |entry| &entry.network.counters);
        counters.tx_dropped(TxDrop::Errors, packets);
    }

    /// Bytes of Ethernet header in front of each packet of the virtual side.
    fn link_header_len(&self) -> usize {
        match self.mode {
            Mode::L2 { .. } => ethernet::HEADER_LEN,
            Mode::L3 => 0,
        }
    }

    /// A poisoned lock is still good: every control call changes state in steps that each leave it valid.
    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl core::fmt::Debug for Engine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Engine").field("mode", &self.mode).field("underlay", &self.underlay).finish_non_exhaustive()
    }
}
