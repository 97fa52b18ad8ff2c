//! Headers that extend the next entry of an archive: PAX records and long names of GNU tar.
//!
//! A compressed archive of a few kilobytes can hold gigabytes of them, and the tar crate would read each into memory. This
//! module reads them with a limit.

use anyhow::{Context, Result, bail};
use std::io::Read;
use tar::{Entry, EntryType};

/// The most bytes of one such header: more than most file systems allow for extended attributes, and more than any path has.
pub(super) const LIMIT: u64 = 1 << 20;

/// The headers in front of an entry.
#[derive(Debug, Default)]
pub(super) struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Vec<(String, Vec<u8>)>,
}

impl Extended {
    /// Adds an entry if it is such a header. Returns false for any other entry.
    pub(super) fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool> {
        match entry.header().entry_type() {
            EntryType::GNULongName => put(&mut self.path, long_name(entry)?),
            EntryType::GNULongLink => put(&mut self.link, long_name(entry)?),
            EntryType::XHeader => {
                if !self.records.is_empty() {
                    bail!("it has two extended headers for one entry");
                }
                self.records = records(&content(entry)?)?;
                // The next header would then be at two different places, depending on who reads the archive.
                if self.records.iter().any(|(key, _)| key == "size") {
                    bail!("it has the size of an entry in an extended header");
                }
                Ok(())
            }
            _ => return Ok(false),
        }?;
        Ok(true)
    }

    /// The path that replaces the one in the entry's own header.
    pub(super) fn path(&self) -> Option<&[u8]> {
        self.path.as_deref().or_else(|| self.value("path"))
    }

    /// The target of a link that replaces the one in the entry's own header.
    pub(super) fn link(&self) -> Option<&[u8]> {
        self.link.as_deref().or_else(|| self.value("linkpath"))
    }

    pub(super) fn records(&self) -> &[(String, Vec<u8>)] {
        &self.records
    }

    fn value(&self, key: &str) -> Option<&[u8]> {
        self.records.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_slice())
    }
}

fn put(place: &mut Option<Vec<u8>>, name: Vec<u8>) -> Result<()> {
    if place.replace(name).is_some() {
        bail!("it has two long names for one entry");
    }
    Ok(())
}

fn content(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(LIMIT + 1).read_to_end(&mut bytes).context("it is damaged")?;
    if bytes.len() as u64 > LIMIT {
        bail!("it has an extended header of more than {LIMIT} bytes");
    }
    Ok(bytes)
}

fn long_name(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>> {
    let mut name = content(entry)?;
    if name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn records(text: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let record = |record: std::io::Result<tar::PaxExtension<'_>>| {
        let record = record.context("its extended header is damaged")?;
        let key = record.key().ok().context("its extended header is damaged")?;
        Ok((key.to_string(), record.value_bytes().to_vec()))
    };
    tar::PaxExtensions::new(text).map(record).collect()
}
