//! Putting a secret into a file without ever letting others see it, or losing what was there.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why a key file was not written. What existed before is untouched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    #[error("{path} exists, and a key is not overwritten: choose another path, or ask for it to be replaced (--force)", path = path.display())]
    Exists { path: PathBuf },
    #[error("{path} names no file: give the path of the key file to write", path = path.display())]
    NoFileName { path: PathBuf },
    #[error("{path} is a directory: give the path of the key file to write, such as {}", path.join("icx.key").display(), path = path.display())]
    Directory { path: PathBuf },
    #[error("there is no directory {directory} for {path}: make it first (`mkdir -p {directory}`), or choose another path", path = path.display(), directory = directory_of(path).display())]
    NoDirectory { path: PathBuf },
    #[error("the file system of {path} knows no hard links, and so cannot make a key file in one step: choose another path", path = path.display())]
    NoLinks { path: PathBuf },
    #[error("cannot {operation} {path}: {source}{}", advice(source), path = path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the system gave no random number for the name of the temporary file")]
    Random,
}

/// Makes a new file of mode 0600: it is there whole or not at all, also when this process is killed meanwhile.
pub(crate) fn create(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    refuse_directory(path)?;
    let exists = || WriteError::Exists { path: path.into() };
    if path.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let temporary = Temporary::write(path, content)?;
    // Unlike a rename, a link never takes the place of another file.
    fs::hard_link(&temporary.path, path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => exists(),
        // Not the directory's doing, which took the other file.
        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => WriteError::NoLinks { path: path.into() },
        _ => WriteError::Io { operation: "create", path: path.into(), source },
    })?;
    drop(temporary);
    sync_directory(path)
}

/// Replaces `path`, whatever it was, by a file of mode 0600: a reader sees the old or the new one, never a part.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    refuse_directory(path)?;
    let temporary = Temporary::write(path, content)?;
    fs::rename(&temporary.path, path).map_err(|source| WriteError::Io {
        operation: "replace",
        path: path.into(),
        source,
    })?;
    sync_directory(path)
}

/// A file beside the one that is meant, under a name of its own; removed when dropped, unless it was renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn write(target: &Path, content: &[u8]) -> Result<Self, WriteError> {
        let name = target.file_name().ok_or_else(|| WriteError::NoFileName { path: target.into() })?;
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| WriteError::Random)?;
        let mut own_name = OsString::from(".");
        own_name.push(name);
        own_name.push(format!(".{:016x}", u64::from_be_bytes(random)));
        let path = target.with_file_name(own_name);
        let mut file = new_file(&path).map_err(|source| not_created(target, source))?;
        let temporary = Temporary { path };
        file.write_all(content).and_then(|()| file.sync_all()).map_err(|source| WriteError::Io {
            operation: "write",
            path: target.into(),
            source,
        })?;
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn refuse_directory(path: &Path) -> Result<(), WriteError> {
    if path.as_os_str().is_empty() {
        return Err(WriteError::NoFileName { path: path.into() });
    }
    if path.is_dir() { Err(WriteError::Directory { path: path.into() }) } else { Ok(()) }
}

fn not_created(path: &Path, source: io::Error) -> WriteError {
    match source.kind() {
        io::ErrorKind::NotFound if !directory_of(path).exists() => WriteError::NoDirectory { path: path.into() },
        _ => WriteError::Io { operation: "create", path: path.into(), source },
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose a directory that this user may write to, or run as its owner"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space, or choose another file system",
        _ => "",
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes the name itself survive a power failure.
fn sync_directory(path: &Path) -> Result<(), WriteError> {
    File::open(directory_of(path)).and_then(|d| d.sync_all()).map_err(|source| WriteError::Io {
        operation: "sync the directory of",
        path: path.into(),
        source,
    })
}
