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
    #[error("cannot {operation} {path}: {source}", path = path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the system gave no random number for the name of the temporary file")]
    Random,
}

/// Makes a new file of mode 0600.
pub(crate) fn create(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    let file = new_file(path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => WriteError::Exists { path: path.into() },
        _ => WriteError::Io { operation: "create", path: path.into(), source },
    })?;
    fill(file, path, content)?;
    sync_directory(path)
}

/// Replaces `path`, whatever it was, by a file of mode 0600: a reader sees the old or the new one, never a part.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    let name = path.file_name().ok_or_else(|| WriteError::NoFileName { path: path.into() })?;
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| WriteError::Random)?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{:016x}", u64::from_be_bytes(random)));
    let temporary = path.with_file_name(temporary);

    let file = new_file(&temporary).map_err(|source| WriteError::Io {
        operation: "create",
        path: temporary.clone(),
        source,
    })?;
    fill(file, &temporary, content)?;
    fs::rename(&temporary, path).map_err(|source| {
        let _ = fs::remove_file(&temporary);
        WriteError::Io { operation: "replace", path: path.into(), source }
    })?;
    sync_directory(path)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn fill(mut file: File, path: &Path, content: &[u8]) -> Result<(), WriteError> {
    file.write_all(content).and_then(|()| file.sync_all()).map_err(|source| {
        let _ = fs::remove_file(path);
        WriteError::Io { operation: "write", path: path.into(), source }
    })
}

/// Makes the name itself survive a power failure.
fn sync_directory(path: &Path) -> Result<(), WriteError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|d| d.sync_all()).map_err(|source| WriteError::Io {
        operation: "sync the directory of",
        path: path.into(),
        source,
    })
}
