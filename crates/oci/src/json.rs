//! JSON files as Go programs write and read them: `null` is the same as absent.

use failpoint::Point;
use serde::{Deserialize, Deserializer};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The version of the state directory's files that this program writes. A file of a later one is not read: what it
/// says may mean something else.
pub const FORMAT: u32 = 1;

/// For `deserialize_with`: `null` gives the default.
pub(crate) fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

/// Writes a new file that only its owner can read, whole: under a temporary name, then renamed.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}"));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(content).and_then(|()| {
        failpoint::reach(Point::TemporaryWritten);
        std::fs::rename(&temporary, path)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Writes a file that is not there yet and that only its owner can read.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}

/// Reads an object of one of our files, unless a later program wrote it or it is damaged.
pub(crate) fn read_object<T: serde::de::DeserializeOwned>(text: &[u8]) -> io::Result<T> {
    if !crate::checksum::is_intact(text) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged: its checksum is wrong"));
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(text)?;
    check_format(version)?;
    Ok(serde_json::from_slice(text)?)
}

/// Refuses what a later program wrote.
pub(crate) fn check_format(version: u32) -> io::Result<()> {
    if version <= FORMAT {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "a newer containerd wrote it (format {version}, and this one knows {FORMAT}); only one as new can read it"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_newer_is_refused_and_what_is_older_is_read() {
        let read = |text: &str| read_object::<serde_json::Value>(text.as_bytes());
        assert!(read(r#"{"a":1}"#).is_ok() && read(r#"{"version":1}"#).is_ok());
        assert!(read(r#"{"version":2}"#).expect_err("newer").to_string().contains("a newer containerd"));
        assert!(read("").is_err());
    }
}
