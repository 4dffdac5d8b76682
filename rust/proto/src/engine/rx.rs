//! Inbound: a datagram or frame from the underlay becomes a virtual-side frame.
//!
//! The order of the checks is that of the protocol: what is cheap comes first, and the replay window moves only for
//! packets that are authentic.

use core::ops::Range;
use std::net::IpAddr;

use super::sa::{AeadKey, NONCE_LEN, RxSa};
use super::table::{Entry, Table};
use super::{Engine, Mode, Underlay};
use crate::counters::RxDrop;
use crate::id::Vni;
use crate::time::Instant;
use crate::wire::ethernet;
use crate::wire::geneve::{self, PROTOCOL_OUT_OF_BAND};
use crate::wire::inner::Inner;
use crate::wire::outer;
use crate::wire::traffic_class::{self, Ecn};

/// What a datagram's outer headers said, as far as the engine goes by it. Raw underlays read them in the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The source address; `None` where it is not known.
    pub src: Option<IpAddr>,
    pub ecn: Ecn,
}

/// One that came Not-ECT, as from an underlay that has no ECN field.
impl From<Option<IpAddr>> for Arrival {
    fn from(src: Option<IpAddr>) -> Self {
        Arrival { src, ecn: Ecn::NotEct }
    }
}

/// What became of an inbound frame or datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RxVerdict {
    /// A virtual-side frame (L2: with its Ethernet header).
    Deliver {
        range: Range<usize>,
        vni: Vni,
    },
    /// Authentic, and nothing to deliver: a keepalive or another out-of-band message.
    Consumed {
        vni: Vni,
    },
    Drop(RxDrop),
}

/// A reason, and the network it is counted for if that is known.
pub(super) type RxRefusal<'t> = (Option<&'t Entry>, RxDrop);

/// A datagram that has passed every check before the AEAD.
pub(super) struct Inbound<'t> {
    pub(super) entry: &'t Entry,
    sa: &'t RxSa,
    key: &'t AeadKey,
    protocol: u16,
    /// The outer ECN field.
    ecn: Ecn,
    nonce: [u8; NONCE_LEN],
    /// The Geneve header and the ciphertext; the tag follows. Places in the buffer that was given.
    header: Range<usize>,
    text: Range<usize>,
}

impl Inbound<'_> {
    pub(super) fn text_len(&self) -> usize {
        self.text.len()
    }
}

impl Engine {
    /// Opens a frame into `out`. Raw underlay: a whole Ethernet frame, `arrival` is ignored. UDP underlay: a datagram that
    /// came as `arrival` says. A buffer of the frame's own length is always large enough; one that is too small makes the
    /// frame [`RxDrop::Malformed`] before anything is opened.
    pub fn phy_to_virt(&self, now: Instant, arrival: impl Into<Arrival>, frame: &[u8], out: &mut [u8]) -> RxVerdict {
        let table = self.table.load();
        let inbound = match self.admit(&table, now, arrival.into(), frame) {
            Ok(inbound) => inbound,
            Err(refusal) => return self.rx_drop(refusal),
        };
        let opened = self.open_into(now, &inbound, frame, out);
        self.rx_verdict(now, &inbound, opened.map(|len| len.map(|len| 0..len)))
    }

    /// Opens `buf[frame]` within `buf`; the result starts at or after `frame.start`. When a frame is dropped its bytes
    /// are undefined.
    pub fn phy_to_virt_in_place(
        &self,
        now: Instant,
        arrival: impl Into<Arrival>,
        buf: &mut [u8],
        frame: Range<usize>,
    ) -> RxVerdict {
        let Some(frame) = buf.get_mut(frame.clone()).map(|bytes| (frame.start, bytes)) else {
            return self.rx_drop((None, RxDrop::Malformed));
        };
        let (offset, frame) = frame;
        let table = self.table.load();
        let inbound = match self.admit(&table, now, arrival.into(), frame) {
            Ok(inbound) => inbound,
            Err(refusal) => return self.rx_drop(refusal),
        };
        let opened = self.open_in_place(now, &inbound, frame);
        let opened = opened.map(|range| range.map(|range| offset + range.start..offset + range.end));
        self.rx_verdict(now, &inbound, opened)
    }

    /// Steps 1 to 7 of the receive order: all that comes before the AEAD.
    #[inline]
    pub(super) fn admit<'t>(
        &self,
        table: &'t Table,
        now: Instant,
        arrival: Arrival,
        frame: &[u8],
    ) -> Result<Inbound<'t>, RxRefusal<'t>> {
        let unknown = |reason| (None, reason);
        let (Arrival { src, ecn }, datagram) = match &self.underlay {
            Underlay::Udp => (Arrival { src: arrival.src.map(|src| src.to_canonical()), ..arrival }, 0..frame.len()),
            Underlay::Raw { local, .. } => {
                let outer = outer::parse(frame).map_err(|_| unknown(RxDrop::Malformed))?;
                if !local.iter().any(|endpoint| endpoint.addr.port() == outer.dst.port()) {
                    return Err(unknown(RxDrop::Malformed));
                }
                (Arrival { src: Some(outer.src.ip()), ecn: outer.traffic_class.ecn() }, outer.payload)
            }
        };
        let geneve = geneve::parse(&frame[datagram.clone()]).map_err(|_| unknown(RxDrop::Malformed))?;
        let entry = table.find(geneve.vni).ok_or(unknown(RxDrop::UnknownVni))?;
        let known = |reason| (Some(entry), reason);
        if self.peer_filter && src != Some(entry.peer_ip) {
            return Err(known(RxDrop::BadPeer));
        }
        let nonce = geneve.nonce.ok_or(known(RxDrop::Malformed))?;
        let sa = entry.keys.find_rx(geneve.key_epoch).ok_or(known(RxDrop::NoKey))?;
        let key = sa.usable(now).map_err(known)?;
        let [s0, s1, s2, s3, ..] = *nonce;
        if u32::from_be_bytes([s0, s1, s2, s3]) != geneve.key_epoch {
            return Err(known(RxDrop::SpiMismatch));
        }
        if !entry.network.limit.admit(now) {
            return Err(known(RxDrop::RateLimited));
        }
        let start = datagram.start + geneve.payload_offset;
        // Too short for a tag is not authentic.
        let end = datagram.end.checked_sub(geneve::TAG_LEN).filter(|&end| end >= start);
        let text = start..end.ok_or(known(RxDrop::AuthFailed))?;
        let (protocol, nonce, header) = (geneve.protocol, *nonce, datagram.start..start);
        Ok(Inbound { entry, sa, key, protocol, ecn, nonce, header, text })
    }

    /// Opens into the start of `out`. `None`: there is nothing to deliver.
    #[inline]
    pub(super) fn open_into(
        &self,
        now: Instant,
        inbound: &Inbound<'_>,
        frame: &[u8],
        out: &mut [u8],
    ) -> Result<Option<usize>, RxDrop> {
        let front = self.link_header_len();
        let out = out.get_mut(..front + inbound.text.len()).ok_or(RxDrop::Malformed)?;
        let (link, plain) = out.split_at_mut(front);
        let tag = &frame[inbound.text.end..][..geneve::TAG_LEN];
        inbound
            .key
            .open(inbound.nonce, &frame[inbound.header.clone()], &frame[inbound.text.clone()], tag, plain)
            .map_err(|_| RxDrop::AuthFailed)?;
        let deliver = accept(now, inbound, plain)?;
        if deliver {
            self.write_link_header(link, inbound.protocol);
        }
        Ok(deliver.then_some(front + plain.len()))
    }

    /// Opens within `frame`. `None`: there is nothing to deliver.
    #[inline]
    fn open_in_place(
        &self,
        now: Instant,
        inbound: &Inbound<'_>,
        frame: &mut [u8],
    ) -> Result<Option<Range<usize>>, RxDrop> {
        let Range { start, end } = inbound.text;
        let (head, rest) = frame.split_at_mut(start);
        let (text, tag) = rest.split_at_mut(end - start);
        inbound
            .key
            .open_in_place(inbound.nonce, &head[inbound.header.clone()], text, &tag[..geneve::TAG_LEN])
            .map_err(|_| RxDrop::AuthFailed)?;
        let deliver = accept(now, inbound, text)?;
        // The Geneve header in front is longer than an Ethernet header.
        let at = start - self.link_header_len();
        if deliver {
            self.write_link_header(&mut head[at..], inbound.protocol);
        }
        Ok(deliver.then_some(at..end))
    }

    /// Fills the bytes in front of a delivered packet: an Ethernet header, or none.
    #[inline]
    fn write_link_header(&self, link: &mut [u8], ethertype: u16) {
        if let Mode::L2 { host_mac, gateway_mac } = self.mode
            && let Some(link) = link.first_chunk_mut()
        {
            ethernet::Header { destination: host_mac, source: gateway_mac, ethertype }.emit(link);
        }
    }

    #[inline]
    fn rx_verdict(
        &self,
        now: Instant,
        inbound: &Inbound<'_>,
        opened: Result<Option<Range<usize>>, RxDrop>,
    ) -> RxVerdict {
        let network = &inbound.entry.network;
        match opened {
            Ok(delivered) => {
                network.counters.received(now, 1, inbound.text.len() as u64);
                match delivered {
                    Some(range) => RxVerdict::Deliver { range, vni: network.vni },
                    None => RxVerdict::Consumed { vni: network.vni },
                }
            }
            Err(reason) => self.rx_drop((Some(inbound.entry), reason)),
        }
    }

    #[cold]
    pub(super) fn rx_drop(&self, (entry, reason): RxRefusal<'_>) -> RxVerdict {
        entry.map_or(&self.counters, |entry| &entry.network.counters).rx_dropped(reason);
        RxVerdict::Drop(reason)
    }
}

/// Steps 9 to 11: the packet is authentic. Moves the replay window, looks at what came out, and takes over what happened to
/// the outer ECN field. `false`: there is nothing to deliver. What is to be delivered is an IP packet of the kind that the
/// protocol type says.
#[inline]
fn accept(now: Instant, inbound: &Inbound<'_>, plain: &mut [u8]) -> Result<bool, RxDrop> {
    let [_, _, _, _, counter @ ..] = inbound.nonce;
    let counter = u64::from_be_bytes(counter);
    // Senders start at 1.
    if counter == 0 || !inbound.sa.window.check_and_update(counter) {
        return Err(RxDrop::Replayed);
    }
    if inbound.sa.is_unproven() {
        inbound.entry.keys.rx_proven(now, inbound.sa);
    }
    if inbound.protocol == PROTOCOL_OUT_OF_BAND {
        return Ok(false);
    }
    let inner = Inner::parse(plain).map_err(|_| RxDrop::BadInner)?;
    if inner.protocol_type() != inbound.protocol {
        return Err(RxDrop::BadInner);
    }
    inbound.entry.receive.check(&inner)?;
    // RFC 6040 section 4.2.
    traffic_class::decapsulate(plain, inbound.ecn).map_err(|_| RxDrop::BadEcn)?;
    Ok(true)
}
