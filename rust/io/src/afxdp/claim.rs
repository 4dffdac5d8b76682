//! Who uses an interface, also where that somebody was killed: a locked file for each.
//!
//! The lock goes with the process. What the file says stays: what was changed and is to be set right, by whoever claims the interface
//! next.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

const FOLDER: &str = "/run/icx";

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    #[error("another icx uses {0}: end that one, or use another interface")]
    Busy(String),
    #[error(
        "cannot note in {path} what is done to {name}: {source}; the folder has to be there and writable (`mkdir -p {FOLDER}`)"
    )]
    System { name: String, path: PathBuf, source: io::Error },
}

impl ClaimError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            ClaimError::Busy(_) => Some(libc::EBUSY),
            ClaimError::System { source, .. } => source.raw_os_error(),
        }
    }
}

/// A claim on an interface of the calling thread's network namespace. Dropping it gives it up and removes the file.
#[derive(Debug)]
pub(super) struct Claim {
    name: String,
    path: PathBuf,
    file: File,
}

impl Claim {
    /// Claims `name`; the text is what a former owner left, which was killed, or is empty.
    pub(super) fn take(name: &str) -> Result<(Claim, String), ClaimError> {
        let failed = |path: &PathBuf, source| ClaimError::System { name: name.to_owned(), path: path.clone(), source };
        let folder = PathBuf::from(FOLDER);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|source| failed(&folder, source))?;
        let namespace = PathBuf::from("/proc/thread-self/ns/net");
        let inode = fs::metadata(&namespace).map_err(|source| failed(&namespace, source))?.ino();
        let path = folder.join(format!("{inode}-{name}.lock"));
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(|source| failed(&path, source))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(ClaimError::Busy(name.to_owned())),
                Err(TryLockError::Error(source)) => return Err(failed(&path, source)),
            }
            // Its former owner may have removed it before it let go.
            let held = file.metadata().map_err(|source| failed(&path, source))?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == held) {
                let mut left = String::new();
                file.read_to_string(&mut left).map_err(|source| failed(&path, source))?;
                return Ok((Claim { name: name.to_owned(), path, file }, left));
            }
        }
    }

    /// Notes what is to be set right when this process does not come to it.
    pub(super) fn note(&mut self, text: &str) -> Result<(), ClaimError> {
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(text.as_bytes())
        };
        let (name, path) = (self.name.clone(), self.path.clone());
        write(&mut self.file).map_err(|source| ClaimError::System { name, path, source })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Before the lock goes with the file: nobody else's is removed.
        let _ = fs::remove_file(&self.path);
    }
}
