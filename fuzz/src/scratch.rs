//! Files for parsers that read files. They are below `TMPDIR`, which `scripts/fuzz.sh` puts into memory.

use std::io;
use std::path::Path;
use tempfile::TempDir;

/// A new empty directory, removed when it is dropped.
///
/// # Panics
///
/// If the directory cannot be created.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Writes a file with its parent directories.
///
/// # Panics
///
/// If the file cannot be written.
pub(crate) fn write(path: &Path, content: &[u8]) {
    let write = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, content)
    };
    write().expect("a file in the temporary directory");
}
