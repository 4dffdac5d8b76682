//! What happens to a packet between the two sides.

use std::ops::Range;

use icx_proto::Instant;
use icx_proto::engine::{Engine, RxVerdict, TxVerdict};

/// Turns virtual-side frames into frames of the underlay, and back: the engine, or what a benchmark puts in its place to see what the
/// way there and back costs by itself.
pub trait Transform: Send + Sync {
    /// Encapsulates `buffer[frame]` within `buffer`, as [`Engine::virt_to_phy_in_place`].
    fn encapsulate(&self, now: Instant, buffer: &mut [u8], frame: Range<usize>) -> TxVerdict;

    /// Decapsulates a frame into `out`, as [`Engine::phy_to_virt`].
    fn decapsulate(&self, now: Instant, frame: &[u8], out: &mut [u8]) -> RxVerdict;
}

impl Transform for Engine {
    #[inline]
    fn encapsulate(&self, now: Instant, buffer: &mut [u8], frame: Range<usize>) -> TxVerdict {
        self.virt_to_phy_in_place(now, buffer, frame)
    }

    #[inline]
    fn decapsulate(&self, now: Instant, frame: &[u8], out: &mut [u8]) -> RxVerdict {
        self.phy_to_virt(now, None, frame, out)
    }
}
