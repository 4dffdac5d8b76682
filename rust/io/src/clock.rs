//! The clock that keys expire by.

use icx_proto::Instant;

use crate::sys;

/// The time since boot, including time spent suspended, so that a key that expired during a suspend has expired.
/// A step of the wall clock does not move it.
pub fn now() -> Instant {
    Instant::from_nanos(sys::clock_boottime())
}

#[cfg(test)]
mod tests {
    use super::now;

    #[test]
    fn does_not_go_back() {
        let mut last = now();
        assert!(last.as_nanos() > 0);
        for _ in 0..1000 {
            let next = now();
            assert!(next >= last);
            last = next;
        }
    }
}
