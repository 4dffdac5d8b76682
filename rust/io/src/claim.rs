//! Claims on interfaces: one living instance for each, and notes that outlive an instance that was killed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::link;

const DIRECTORY: &str = "/run/icx";

/// What the names of the files end with.
const SUFFIX: &str = ".lock";

/// A claim on an interface of the network namespace in which it was made. It ends with this value, or with the process.
///
/// It is an exclusive flock(2) on `/run/icx/<key>.lock`, where the key is `<inode of the network namespace>-<interface>`.
/// The file holds notes on what is to be put right again. It is removed with the claim, unless they are still those of an
/// owner that was killed.
#[derive(Debug)]
pub(crate) struct Claim {
    file: File,
    path: PathBuf,
    key: String,
    /// The notes of an owner that was killed have been replaced, or there were none.
    settled: bool,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    #[error(
        "interface {interface} is in use by another icx: stop that one first (`fuser {}` names its process), or choose another interface",
        .lock.display()
    )]
    Busy { interface: String, lock: PathBuf },
    #[error("cannot {action} {}: {source}; icx needs to write in {DIRECTORY}, as root or its owner", .path.display())]
    System { action: &'static str, path: PathBuf, source: io::Error },
}

impl ClaimError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            ClaimError::Busy { .. } => Some(libc::EBUSY),
            ClaimError::System { source, .. } => source.raw_os_error(),
        }
    }
}

impl Claim {
    /// Claims the interface with this name, which need not exist but must be valid, for the calling thread's network
    /// namespace.
    pub(crate) fn take(interface: &str) -> Result<Claim, ClaimError> {
        let key = format!("{}-{interface}", namespace_inode()?);
        let directory = Path::new(DIRECTORY);
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", directory, error));
            }
            _ => {}
        }
        let path = directory.join(format!("{key}{SUFFIX}"));
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = file.map_err(|source| failed("open", &path, source))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(ClaimError::Busy { interface: interface.to_owned(), lock: path });
                }
                Err(TryLockError::Error(source)) => return Err(failed("lock", &path, source)),
            }
            // An owner that ended between the two calls has removed the file, and somebody else may have made another.
            let locked = file.metadata().map_err(|source| failed("look at", &path, source))?;
            match fs::metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (locked.dev(), locked.ino()) => {
                    return Ok(Claim { file, path, key, settled: locked.len() == 0 });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed("look at", &path, source)),
            }
        }
    }

    /// What it is called among all claims of this machine.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The notes in the file: those of [`Claim::note`], or before that those of an owner that was killed.
    pub(crate) fn notes(&mut self) -> Result<String, ClaimError> {
        let mut notes = Vec::new();
        let read = self.file.rewind().and_then(|()| self.file.read_to_end(&mut notes));
        read.map_err(|source| failed("read", &self.path, source))?;
        Ok(String::from_utf8_lossy(&notes).into_owned())
    }

    /// Replaces the notes.
    pub(crate) fn note(&mut self, notes: &str) -> Result<(), ClaimError> {
        let written = self.file.set_len(0).and_then(|()| self.file.rewind());
        written
            .and_then(|()| self.file.write_all(notes.as_bytes()))
            .map_err(|source| failed("write", &self.path, source))?;
        self.settled = true;
        Ok(())
    }

    /// Ends the claim as the death of the process would, if the value is then forgotten.
    #[cfg(test)]
    pub(crate) fn abandon(&self) {
        self.file.unlock().unwrap();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Still locked: nobody else has the claim, and whoever has the file open looks again once it is unlocked.
        if self.settled {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The interface that a claim with this key is on, if it is one of the calling thread's network namespace.
pub(crate) fn interface_of(key: &str) -> Result<Option<&str>, ClaimError> {
    let Some((inode, interface)) = key.split_once('-').filter(|(_, interface)| link::is_valid_name(interface)) else {
        return Ok(None);
    };
    Ok((inode == namespace_inode()?.to_string()).then_some(interface))
}

fn namespace_inode() -> Result<u64, ClaimError> {
    let namespace = Path::new("/proc/thread-self/ns/net");
    Ok(fs::metadata(namespace).map_err(|source| failed("look at", namespace, source))?.ino())
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> ClaimError {
    ClaimError::System { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::{fs, thread};

    use super::{Claim, ClaimError, DIRECTORY, interface_of, namespace_inode};
    use crate::test_support::NetNs;

    #[test]
    fn one_interface_has_one_owner_in_each_namespace() {
        let Some((here, there)) = NetNs::new().zip(NetNs::new()) else { return };
        here.run(|| {
            let claim = Claim::take("eth0").unwrap();
            let error = Claim::take("eth0").unwrap_err();
            assert!(matches!(&error, ClaimError::Busy { interface, .. } if interface == "eth0"), "{error:?}");
            assert!(error.to_string().contains(claim.path.to_str().unwrap()), "{error}");
            Claim::take("eth1").expect("another interface");
            there.run(|| Claim::take("eth0").map(drop)).expect("another namespace");
            assert_eq!(fs::metadata(DIRECTORY).unwrap().permissions().mode() & 0o777, 0o700);
            assert_eq!(fs::metadata(&claim.path).unwrap().permissions().mode() & 0o777, 0o600);
            let path = claim.path.clone();
            drop(claim);
            assert!(!path.exists());
            Claim::take("eth0").expect("free again");
        });
    }

    #[test]
    fn a_key_tells_the_interface_where_it_is_of_this_namespace_and_could_be_one() {
        let inode = namespace_inode().unwrap();
        assert_eq!(interface_of(&format!("{inode}-icx-0")).unwrap(), Some("icx-0"));
        for other in
            [format!("{}-icx0", inode + 1), format!("{inode}-"), format!("{inode}-../../x"), format!("{inode}")]
        {
            assert_eq!(interface_of(&other).unwrap(), None, "{other}");
        }
    }

    #[test]
    fn notes_outlive_an_owner_that_was_killed_and_no_other() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let mut claim = Claim::take("eth0").unwrap();
            assert_eq!(claim.notes().unwrap(), "");
            claim.note("a longer first note").unwrap();
            claim.note("second").unwrap();
            claim.abandon();
            std::mem::forget(claim);
            let mut claim = Claim::take("eth0").unwrap();
            assert_eq!(claim.notes().unwrap(), "second");
            // Whoever could not make use of them leaves them to the next.
            drop(claim);
            let mut claim = Claim::take("eth0").unwrap();
            assert_eq!(claim.notes().unwrap(), "second");
            claim.note("third").unwrap();
            drop(claim);
            assert_eq!(Claim::take("eth0").unwrap().notes().unwrap(), "");
        });
    }

    #[test]
    fn a_file_that_its_owner_removes_meanwhile_is_no_claim() {
        let Some(namespace) = NetNs::new() else { return };
        let owners = AtomicU32::new(0);
        let contend = || {
            namespace.run(|| {
                for _ in 0..2000 {
                    if let Ok(_claim) = Claim::take("eth0") {
                        assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0, "two owners at once");
                        owners.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            });
        };
        thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(contend))));
    }
}
