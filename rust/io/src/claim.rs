//! Claims on interfaces: one living instance for each, and notes that outlive an instance that was killed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::link;

const DIRECTORY: &str = "/run/icx";

/// Of the files.
const EXTENSION: &str = "lock";

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
    /// namespace. Files of claims that ended without their owner are removed where they are of no use.
    pub(crate) fn take(interface: &str) -> Result<Claim, ClaimError> {
        let key = format!("{}-{interface}", namespace_inode()?);
        let directory = Path::new(DIRECTORY);
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", directory, error));
            }
            _ => {}
        }
        sweep();
        let path = directory.join(format!("{key}.{EXTENSION}"));
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = file.map_err(|source| failed("open", &path, source))?;
            if !try_lock(&file, &path)? && !try_lock_after_sweep(&file, &path)? {
                return Err(ClaimError::Busy { interface: interface.to_owned(), lock: path });
            }
            // An owner that ended between the two calls has removed the file, and somebody else may have made another.
            let locked = file.metadata().map_err(|source| failed("look at", &path, source))?;
            match fs::metadata(&path) {
                Ok(there) if is_same(&there, &locked) => {
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

    /// Replaces the notes. Whoever is killed meanwhile has lost none of them: the end of older ones may stand behind the new ones.
    pub(crate) fn note(&mut self, notes: &str) -> Result<(), ClaimError> {
        let written = self.file.write_all_at(notes.as_bytes(), 0);
        written
            .and_then(|()| self.file.set_len(notes.len() as u64))
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

/// Removes the files of claims whose owner was killed and left no notes, of any network namespace: nobody misses them.
///
/// Files with notes stay. Their namespace may be gone, which would make the notes void, but nothing tells: descriptors, sockets
/// and mounts that no process here can see keep it as well as processes do, and what an owner noted of a namespace that is
/// there is still to be put right.
fn sweep() {
    // Where somebody else is at it, or this process must not, there is nothing to do.
    if let Ok(directory) = File::open(DIRECTORY)
        && directory.try_lock().is_ok()
    {
        remove_void_files();
    }
}

/// For who holds the lock on the directory.
fn remove_void_files() {
    for entry in fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            // What cannot be removed stays until the next time.
            let _ = remove_if_void(&path);
        }
    }
}

fn remove_if_void(path: &Path) -> io::Result<()> {
    let is_void = |file: &fs::Metadata| file.is_file() && file.len() == 0;
    if !is_void(&fs::symlink_metadata(path)?) {
        return Ok(());
    }
    let file = File::open(path)?;
    file.try_lock()?;
    // It may have become another one, or have been noted in, before it was locked.
    let (locked, there) = (file.metadata()?, fs::symlink_metadata(path)?);
    if is_void(&locked) && is_same(&there, &locked) { fs::remove_file(path) } else { Ok(()) }
}

fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

fn try_lock(file: &File, path: &Path) -> Result<bool, ClaimError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(failed("lock", path, source)),
    }
}

/// Tries it again while nobody sweeps: a sweep locks files too, for a moment each.
fn try_lock_after_sweep(file: &File, path: &Path) -> Result<bool, ClaimError> {
    let _directory = lock_directory()?;
    try_lock(file, path)
}

fn lock_directory() -> Result<File, ClaimError> {
    let path = Path::new(DIRECTORY);
    let directory = File::open(path).map_err(|source| failed("open", path, source))?;
    loop {
        match directory.lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(failed("lock", path, source)),
            Ok(()) => return Ok(directory),
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
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;
    use std::{fs, thread};

    use super::{Claim, ClaimError, DIRECTORY, interface_of, lock_directory, namespace_inode, remove_void_files};
    use crate::test_support::{NetNs, never_drop};

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
            never_drop(claim);
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
    fn a_sweep_removes_what_was_left_without_notes_and_nothing_else() {
        let Some((here, gone)) = NetNs::new().zip(NetNs::new()) else { return };
        let abandoned = |interface: &str, notes: &[&str]| {
            let mut claim = Claim::take(interface).unwrap();
            notes.iter().for_each(|notes| claim.note(notes).unwrap());
            claim.abandon();
            let path = claim.path.clone();
            never_drop(claim);
            path
        };
        let void = gone.run(|| [abandoned("void0", &[]), abandoned("void1", &["done", ""])]);
        drop(gone);
        here.run(|| {
            let (noted, void_here) = (abandoned("noted", &["to be put right"]), abandoned("void2", &[]));
            let held = Claim::take("held").unwrap();
            let other = Path::new(DIRECTORY).join(format!("{}-other", namespace_inode().unwrap()));
            fs::write(&other, "").unwrap();
            let directory = lock_directory().unwrap();
            remove_void_files();
            drop(directory);
            assert!(noted.exists() && held.path.exists() && other.exists());
            for path in void.iter().chain([&void_here]) {
                assert!(!path.exists(), "{}", path.display());
            }
            fs::remove_file(other).unwrap();
            Claim::take("noted").unwrap().note("").unwrap();
            assert!(!noted.exists());
        });
    }

    #[test]
    fn a_sweep_is_not_taken_for_an_owner() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let path = Claim::take("eth0").unwrap().path.clone();
            let directory = lock_directory().unwrap();
            let swept = File::create(&path).unwrap();
            swept.lock().unwrap();
            thread::scope(|scope| {
                let taken = scope.spawn(|| Claim::take("eth0").map(drop));
                thread::sleep(Duration::from_millis(50));
                drop((swept, directory));
                taken.join().unwrap().unwrap();
            });
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
