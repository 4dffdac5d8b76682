//! The process itself.

use crate::code::Code;
use crate::error::{Failure, Outcome};

pub(crate) fn set_parent_death_signal(signal: u32) -> Outcome<i32> {
    icx_io::process::set_parent_death_signal(signal)
        .map_err(|error| Failure::of(Code::Invalid, "set the signal for the parent's end", &error))?;
    Ok(0)
}
