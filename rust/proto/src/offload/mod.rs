//! Segmentation offload: large packets that stay whole for as long as they can.
//!
//! A device with vnet headers hands over what TCP and UDP would have cut up ([`outgoing`]); the engine cuts and seals
//! it in one pass ([`Segments`]). In the other direction the engine opens into a [`Coalescer`], which lets the packets
//! of one flow grow together again before the device takes them.

mod coalesce;
mod headers;
mod segment;
mod vnet;

pub use coalesce::{CoalesceOptions, Coalesced, Coalescer};
pub use segment::Segments;
pub use vnet::VnetHeader;

use crate::engine::BatchPacket;
use crate::wire::checksum::Sum;
use crate::wire::inner::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, Inner};

/// What a device with vnet headers handed over, as an element of a batch. A checksum that the device left to be
/// completed is completed in place. What contradicts its header becomes [`BatchPacket::Malformed`].
pub fn outgoing<'a>(header: &VnetHeader, packet: &'a mut [u8]) -> BatchPacket<'a> {
    outgoing_with(header, packet, |_| {})
}

/// The same, with `change` seeing each packet that is not to be cut, its checksum completed, before it goes on.
pub fn outgoing_with<'a>(header: &VnetHeader, packet: &'a mut [u8], change: impl FnOnce(&mut [u8])) -> BatchPacket<'a> {
    if header.is_segmented() {
        return Segments::new(header, packet).map_or(BatchPacket::Malformed, BatchPacket::Segmented);
    }
    if header.flags & VnetHeader::NEEDS_CSUM != 0 && complete_checksum(header, packet).is_none() {
        return BatchPacket::Malformed;
    }
    change(packet);
    BatchPacket::Whole(packet)
}

/// Sums from `csum_start` to the end, with the pseudo-header's sum that is in the checksum field already. `None`: that
/// would not be behind the IP header, or beyond the end.
fn complete_checksum(header: &VnetHeader, packet: &mut [u8]) -> Option<()> {
    let ip_len = match Inner::parse(packet).ok()? {
        Inner::V4 { .. } => IPV4_HEADER_LEN,
        Inner::V6 { .. } => IPV6_HEADER_LEN,
    };
    let start = Some(usize::from(header.csum_start)).filter(|start| *start >= ip_len)?;
    let data = packet.get_mut(start..)?;
    let at = usize::from(header.csum_offset);
    let checksum = match Sum::new().add_bytes(data).finish() {
        // Zero would say that there is no checksum in UDP, and is the same number to TCP.
        0 => 0xffff,
        checksum => checksum,
    };
    data.get_mut(at..)?.first_chunk_mut::<2>()?.copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests;
