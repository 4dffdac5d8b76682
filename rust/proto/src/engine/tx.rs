//! Outbound: a virtual-side frame becomes a sealed datagram or frame.

use core::ops::Range;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use super::sa::{AeadKey, TxSa};
use super::table::{Entry, Table};
use super::{Engine, Mode, Underlay};
use crate::counters::TxDrop;
use crate::id::Vni;
use crate::time::Instant;
use crate::wire::ethernet::{self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::wire::geneve::{self, TunnelHeader};
use crate::wire::inner::Inner;
use crate::wire::neighbor::{self, Neighbor};
use crate::wire::traffic_class::TrafficClass;
use crate::wire::{flow_hash, outer};

/// What sealing adds to an inner packet.
pub(super) const SEAL_OVERHEAD: usize = geneve::HEADER_LEN + geneve::TAG_LEN;

/// What became of an outbound packet. Ranges are within the buffer that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxVerdict {
    /// A sealed frame (raw underlay) or datagram (UDP underlay) to `peer`. `source_port` is `None` for the unhashed
    /// port; `traffic_class` is that of the outer header.
    Send {
        range: Range<usize>,
        vni: Vni,
        peer: SocketAddr,
        source_port: Option<u16>,
        traffic_class: TrafficClass,
    },
    /// A local reply (ARP, neighbour advertisement) that goes back to the virtual side.
    Reply {
        range: Range<usize>,
    },
    Drop(TxDrop),
}

/// A frame from the virtual side, as far as its contents and the routes decide.
pub(super) enum Outbound<'t> {
    /// `inner` is the inner packet's place in the frame.
    Seal {
        entry: &'t Entry,
        inner: Range<usize>,
        protocol: u16,
    },
    Reply(LocalReply),
}

/// A frame that answers one from the virtual side.
#[derive(Clone, Debug)]
pub struct LocalReply {
    bytes: [u8; neighbor::MAX_REPLY_LEN],
    len: usize,
}

impl LocalReply {
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Writes the reply to the start of `out`, or nothing where that is too short.
    pub(super) fn write(&self, out: &mut [u8]) -> Option<usize> {
        out.get_mut(..self.len)?.copy_from_slice(self.as_bytes());
        Some(self.len)
    }
}

/// What in the outer headers follows the inner packet.
#[derive(Clone, Copy, Default)]
pub(super) struct Followed {
    /// `None` for the unhashed port.
    pub(super) source_port: Option<u16>,
    pub(super) traffic_class: TrafficClass,
}

/// Where the inner packet of a frame to be sealed is.
pub(super) enum Plain<'a> {
    /// Elsewhere.
    At(&'a [u8]),
    /// In its place within the frame.
    InPlace,
}

/// An association and its key, found to seal now.
pub(super) type UsableTx<'t> = (&'t TxSa, &'t AeadKey);

impl Engine {
    /// Seals a virtual-side frame into `out`.
    pub fn virt_to_phy(&self, now: Instant, frame: &[u8], out: &mut [u8]) -> TxVerdict {
        let table = self.table.load();
        match self.classify(&table, frame) {
            Ok(Outbound::Seal { entry, inner, protocol }) => {
                let packet = &frame[inner];
                let sealed = self.ready(now, entry, packet.len()).and_then(|(tx, len)| {
                    let out = out.get_mut(..len).ok_or(TxDrop::TooBig)?;
                    let followed = self.followed(packet);
                    self.seal_next(entry, tx, protocol, followed, Plain::At(packet), out)?;
                    Ok((0..len, followed))
                });
                self.tx_verdict(now, entry, packet.len(), sealed)
            }
            Ok(Outbound::Reply(reply)) => match reply.write(out) {
                Some(len) => TxVerdict::Reply { range: 0..len },
                None => self.tx_drop(None, TxDrop::TooBig),
            },
            Err(reason) => self.tx_drop(None, reason),
        }
    }

    /// Seals `buf[frame]` within `buf`; headers grow to the left, the tag to the right. A packet for which there is
    /// not enough room on either side is [`TxDrop::TooBig`].
    pub fn virt_to_phy_in_place(&self, now: Instant, buf: &mut [u8], frame: Range<usize>) -> TxVerdict {
        let Some(bytes) = buf.get(frame.clone()) else { return self.tx_drop(None, TxDrop::Malformed) };
        let table = self.table.load();
        match self.classify(&table, bytes) {
            Ok(Outbound::Seal { entry, inner, protocol }) => {
                let inner = frame.start + inner.start..frame.start + inner.end;
                let inner_len = inner.len();
                let sealed = self.ready(now, entry, inner_len).and_then(|(tx, len)| {
                    let followed = self.followed(&buf[inner.clone()]);
                    let headers = entry.outer_len + geneve::HEADER_LEN;
                    let start = inner.start.checked_sub(headers).ok_or(TxDrop::TooBig)?;
                    let out = buf.get_mut(start..start + len).ok_or(TxDrop::TooBig)?;
                    self.seal_next(entry, tx, protocol, followed, Plain::InPlace, out)?;
                    Ok((start..start + len, followed))
                });
                self.tx_verdict(now, entry, inner_len, sealed)
            }
            Ok(Outbound::Reply(reply)) => {
                // In the frame's own place if it fits there, else from the start of the buffer.
                let start = if buf.len() - frame.start >= reply.len { frame.start } else { 0 };
                match reply.write(&mut buf[start..]) {
                    Some(len) => TxVerdict::Reply { range: start..start + len },
                    None => self.tx_drop(None, TxDrop::TooBig),
                }
            }
            Err(reason) => self.tx_drop(None, reason),
        }
    }

    /// What a frame from the virtual side is, and which network it goes to.
    #[inline]
    pub(super) fn classify<'t>(&self, table: &'t Table, frame: &[u8]) -> Result<Outbound<'t>, TxDrop> {
        let at = match self.mode {
            Mode::L3 => 0,
            Mode::L2 { gateway_mac, .. } => {
                let (header, packet) = ethernet::Header::parse(frame).ok_or(TxDrop::Malformed)?;
                match (header.ethertype, packet.first().map(|first| first >> 4)) {
                    // The packet says what it is: IPv4 behind the EtherType of IPv6 travels as IPv4.
                    (ETHERTYPE_IPV4 | ETHERTYPE_IPV6, Some(4)) => {}
                    (ETHERTYPE_ARP, _) | (ETHERTYPE_IPV6, Some(6)) => {
                        let mut bytes = [0; neighbor::MAX_REPLY_LEN];
                        match neighbor::handle(frame, gateway_mac, &mut bytes) {
                            Neighbor::NotForUs => {}
                            Neighbor::Reply(len) => return Ok(Outbound::Reply(LocalReply { bytes, len })),
                            Neighbor::Drop(reason) => return Err(reason),
                        }
                    }
                    (ETHERTYPE_IPV4 | ETHERTYPE_IPV6, _) => return Err(TxDrop::Malformed),
                    _ => return Err(TxDrop::NotIp),
                }
                ethernet::HEADER_LEN
            }
        };
        let inner = Inner::parse(&frame[at..]).map_err(|_| TxDrop::Malformed)?;
        let entry = table.route(&inner).ok_or(TxDrop::NoRoute)?;
        Ok(Outbound::Seal { entry, inner: at..frame.len(), protocol: inner.protocol_type() })
    }

    /// Finds the transmit key, and the sealed length of a packet of `inner_len` bytes, or what refuses it. What may
    /// refuse it still is the room in its buffer, and the counter limit.
    #[inline]
    pub(super) fn ready<'t>(
        &self,
        now: Instant,
        entry: &'t Entry,
        inner_len: usize,
    ) -> Result<(UsableTx<'t>, usize), TxDrop> {
        let tx = entry.keys.usable_tx(now)?;
        let len = self.sealed_len(entry, inner_len).ok_or(TxDrop::TooBig)?;
        if entry.local.is_none() && !matches!(self.underlay, Underlay::Udp) {
            return Err(TxDrop::NoLocal);
        }
        Ok((tx, len))
    }

    /// Bytes of a whole datagram or frame; `None`: the inner packet is too large, whatever the buffer.
    #[inline]
    pub(super) fn sealed_len(&self, entry: &Entry, inner_len: usize) -> Option<usize> {
        let mtu = self.inner_mtu.load(Ordering::Relaxed).min(entry.network.path_mtu.inner());
        let len = entry.outer_len + SEAL_OVERHEAD + inner_len;
        (inner_len as u64 <= u64::from(mtu) && len <= entry.max_len).then_some(len)
    }

    #[inline]
    pub(super) fn followed(&self, packet: &[u8]) -> Followed {
        Followed {
            source_port: self.flow_hash_key.map(|key| flow_hash::source_port(flow_hash::flow_hash(key, packet))),
            traffic_class: TrafficClass::new(TrafficClass::of(packet).get() & self.traffic_class_mask),
        }
    }

    /// Takes the next counter value, which nothing refuses any more but the limit, and seals with it.
    #[inline]
    pub(super) fn seal_next(
        &self,
        entry: &Entry,
        (sa, key): UsableTx<'_>,
        protocol: u16,
        followed: Followed,
        plain: Plain<'_>,
        out: &mut [u8],
    ) -> Result<(), TxDrop> {
        let (counter, 1..) = sa.counter.take(1) else { return Err(TxDrop::Exhausted) };
        let header = TunnelHeader { protocol, vni: entry.network.vni, spi: sa.spi.get(), counter };
        self.seal_frame(entry, key, &header, followed, plain, out)
    }

    /// Writes the frame of `header`, whose counter belongs to this packet alone. `out` has the sealed length.
    #[inline]
    pub(super) fn seal_frame(
        &self,
        entry: &Entry,
        key: &AeadKey,
        header: &TunnelHeader,
        followed: Followed,
        plain: Plain<'_>,
        out: &mut [u8],
    ) -> Result<(), TxDrop> {
        let geneve = out.get_mut(entry.outer_len..).and_then(|geneve| geneve.split_first_chunk_mut());
        let (head, body) = geneve.ok_or(TxDrop::TooBig)?;
        geneve::emit(header, head);
        let [.., n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11] = *head;
        let nonce = [n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11];
        let (text, tag) = body.split_last_chunk_mut::<{ geneve::TAG_LEN }>().ok_or(TxDrop::TooBig)?;
        match plain {
            Plain::At(packet) => key.seal(nonce, head, packet, text, tag),
            Plain::InPlace => key.seal_in_place(nonce, head, text, tag),
        }
        .map_err(|_| TxDrop::Errors)?;
        if let Underlay::Raw { outer_udp_checksum, dont_fragment, .. } = self.underlay {
            let local = entry.local.ok_or(TxDrop::NoLocal)?;
            let Followed { source_port, traffic_class } = followed;
            let source = SocketAddr::new(local.addr.ip(), source_port.unwrap_or(local.addr.port()));
            let src = outer::Endpoint { addr: source, mac: local.mac };
            let dst = outer::Endpoint { addr: entry.peer, mac: entry.peer_mac };
            outer::emit(out, &src, &dst, traffic_class, outer_udp_checksum, dont_fragment)
                .map_err(|_| TxDrop::Errors)?;
        }
        Ok(())
    }

    fn tx_verdict(
        &self,
        now: Instant,
        entry: &Entry,
        inner_len: usize,
        sealed: Result<(Range<usize>, Followed), TxDrop>,
    ) -> TxVerdict {
        match sealed {
            Ok((range, Followed { source_port, traffic_class })) => {
                entry.network.counters.sent(now, 1, inner_len as u64);
                TxVerdict::Send { range, vni: entry.network.vni, peer: entry.peer, source_port, traffic_class }
            }
            Err(reason) => self.tx_drop(Some(entry), reason),
        }
    }

    #[cold]
    pub(super) fn tx_drop(&self, entry: Option<&Entry>, reason: TxDrop) -> TxVerdict {
        self.tx_drops(entry, reason, 1);
        TxVerdict::Drop(reason)
    }

    #[cold]
    pub(super) fn tx_drops(&self, entry: Option<&Entry>, reason: TxDrop, packets: u64) {
        entry.map_or(&self.counters, |entry| &entry.network.counters).tx_dropped(reason, packets);
    }
}
