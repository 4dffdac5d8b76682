//! What a process asks the kernel about itself.

use std::io;

use crate::sys;

/// Why the signal could not be set.
#[derive(Debug, thiserror::Error)]
#[error("prctl(PR_SET_PDEATHSIG, {signal}): {source}; a signal is a number from 1 to 64, or 0 for none")]
pub struct ParentDeathSignalError {
    pub signal: u32,
    pub source: io::Error,
}

/// Lets the kernel send `signal` to this process when the thread that started it ends; 0 cancels that. A parent that has
/// ended before the call is not noticed: compare the parent's process id afterwards.
pub fn set_parent_death_signal(signal: u32) -> Result<(), ParentDeathSignalError> {
    let result = match i32::try_from(signal) {
        Ok(number) => sys::set_parent_death_signal(number),
        Err(_) => Err(io::ErrorKind::InvalidInput.into()),
    };
    result.map_err(|source| ParentDeathSignalError { signal, source })
}

#[cfg(test)]
mod tests {
    use super::set_parent_death_signal;

    #[test]
    fn signals_are_taken_and_other_numbers_refused() {
        set_parent_death_signal(15).unwrap();
        set_parent_death_signal(0).unwrap();
        for wrong in [65, 1 << 20, u32::MAX] {
            let error = set_parent_death_signal(wrong).unwrap_err();
            assert!(error.to_string().contains(&wrong.to_string()), "{error}");
        }
    }
}
