//! Writing and reading the JSON files of a state directory.

use contract::NewerFormat;
use failpoint::Point;
use serde::Deserialize;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a file that only its owner can read. The file appears whole: it is written under a temporary name and renamed.
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

/// Writes a file that only its owner can read. Fails if the file exists.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}

/// Reads the object in a file of the state directory. Fails if a later version wrote the file, or if it is damaged.
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

/// Refuses a format that is later than this version's.
pub(crate) fn check_format(version: u32) -> io::Result<()> {
    contract::check_format(version).map_err(|NewerFormat(version)| {
        let known = contract::FORMAT;
        io::Error::other(format!(
            "a newer containerd wrote it (format {version}, and this one knows {known}); only one as new can read it"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_of_a_newer_format_is_refused_and_of_an_older_one_read() {
        let read = |text: &str| read_object::<serde_json::Value>(text.as_bytes());
        assert!(read(r#"{"a":1}"#).is_ok() && read(r#"{"version":1}"#).is_ok());
        assert!(read(r#"{"version":2}"#).expect_err("newer").to_string().contains("a newer containerd"));
        assert!(read("").is_err());
    }
}
