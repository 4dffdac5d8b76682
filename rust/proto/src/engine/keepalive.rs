//! Keepalives: authenticated packets without contents, one per VNI and interval.

use core::ops::Range;

use super::Engine;
use super::table::Entry;
use super::tx::{Followed, Plain, TxVerdict};
use crate::counters::TxDrop;
use crate::time::Instant;
use crate::wire::geneve::PROTOCOL_OUT_OF_BAND;

impl Engine {
    /// A frame that is due of itself, i.e. a keepalive; `None` when none is. Call again until `None`. A keepalive
    /// that cannot be sent is a counted drop, and is due again after the interval.
    pub fn to_phy(&self, now: Instant, out: &mut [u8]) -> Option<TxVerdict> {
        let interval = self.keepalive?;
        let table = self.table.load();
        for entry in table.entries().iter().filter(|entry| entry.network.claim_keepalive(now, interval)) {
            if entry.keys.usable_tx(now).is_err() {
                self.pause_keepalives(now, entry);
                continue;
            }
            return Some(match self.seal_keepalive(now, entry, out) {
                Ok(range) => {
                    entry.network.counters.sent_keepalive(now);
                    let Followed { source_port, traffic_class } = Followed::default();
                    TxVerdict::Send { range, vni: entry.network.vni, peer: entry.peer, source_port, traffic_class }
                }
                Err(reason) => self.tx_drop(Some(entry), reason),
            });
        }
        None
    }

    /// No keepalives until there is a key, which may have come since `entry` was read.
    fn pause_keepalives(&self, now: Instant, entry: &Entry) {
        entry.network.stop_keepalives();
        let table = self.table.load();
        if table.find(entry.network.vni).is_some_and(|entry| entry.keys.usable_tx(now).is_ok()) {
            entry.network.start_keepalives();
        }
    }

    /// When [`Engine::to_phy`] has something next. The first keepalive of a VNI is due as soon as it has a transmit
    /// key; a VNI without one has none due.
    pub fn next_keepalive(&self) -> Option<Instant> {
        self.keepalive?;
        self.table.load().entries().iter().filter_map(|entry| entry.network.keepalive_due()).min()
    }

    fn seal_keepalive(&self, now: Instant, entry: &Entry, out: &mut [u8]) -> Result<Range<usize>, TxDrop> {
        let (tx, len) = self.ready(now, entry, 0)?;
        let out = out.get_mut(..len).ok_or(TxDrop::TooBig)?;
        self.seal_next(entry, tx, PROTOCOL_OUT_OF_BAND, Followed::default(), Plain::At(&[]), out)?;
        Ok(0..len)
    }
}
