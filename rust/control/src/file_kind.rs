//! What a path leads to, where a file is needed.

use std::fs::Metadata;
use std::os::unix::fs::FileTypeExt;

/// What it is when it is no file: `None` for files, and for pipes, which stand in for one in `<(command)`.
pub(crate) fn other_than_file(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_fifo() {
        return None;
    }
    Some(if kind.is_dir() { "directory" } else { "device or socket" })
}
