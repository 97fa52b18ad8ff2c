//! Writing an archive.

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use tar::{EntryType, Header};

use super::extended;
use super::{ATTRIBUTE, Digest, MANIFEST, Manifest, OPAQUE, OPAQUE_ATTRIBUTE, WHITEOUT};
use crate::out;

/// CRIU's images compress well and fast at this level.
const LEVEL: i32 = 3;

pub(super) struct Writer<'a> {
    tar: tar::Builder<zstd::Encoder<'static, &'a File>>,
    files: BTreeMap<String, Digest>,
    /// The first path of each file with several names, by device and inode.
    links: HashMap<(u64, u64), String>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(file: &'a File) -> Result<Writer<'a>> {
        let mut encoder = zstd::Encoder::new(file, LEVEL)?;
        encoder.include_checksum(true)?;
        Ok(Writer { tar: tar::Builder::new(encoder), files: BTreeMap::new(), links: HashMap::new() })
    }

    /// Adds a checkpoint: a directory of regular files. Its subdirectory, where CRIU worked, is left out.
    pub(super) fn add_plain_tree(&mut self, directory: &Path, to: &str) -> Result<()> {
        self.add_directory(&directory.symlink_metadata()?, to)?;
        for name in names_in(directory)? {
            let path = directory.join(&name);
            let metadata = path.symlink_metadata().with_context(|| format!("read {}", path.display()))?;
            if metadata.is_dir() {
                continue;
            }
            if !metadata.is_file() {
                bail!("{} is no regular file: this is no checkpoint", path.display());
            }
            self.add_file(&path, &format!("{to}/{name}"))?;
        }
        Ok(())
    }

    /// Adds a root file system, or the upper directory of an overlay.
    pub(super) fn add_root(&mut self, directory: &Path, to: &str) -> Result<()> {
        let metadata = directory.symlink_metadata().with_context(|| format!("read {}", directory.display()))?;
        let attributes = attributes_of(directory)?;
        self.add_attributes(&attributes)?;
        self.add_directory(&metadata, to)?;
        if attributes.iter().any(|(name, value)| name == OPAQUE_ATTRIBUTE && value == b"y") {
            self.add_empty(&metadata, EntryType::Regular, &format!("{to}/{OPAQUE}"))?;
        }
        for name in names_in(directory)? {
            let path = directory.join(&name);
            let metadata = path.symlink_metadata().with_context(|| format!("read {}", path.display()))?;
            let to = format!("{to}/{name}");
            if name.starts_with(WHITEOUT) {
                bail!("{}: names that begin with {WHITEOUT:?} cannot be in an archive", path.display());
            }
            if metadata.is_dir() {
                self.add_root(&path, &to)?;
            } else {
                self.add_other(&path, &metadata, &to)?;
            }
        }
        Ok(())
    }

    fn add_other(&mut self, path: &Path, metadata: &Metadata, to: &str) -> Result<()> {
        let kind = metadata.file_type();
        if kind.is_char_device() && metadata.rdev() == 0 {
            // An overlay hides an entry of a lower directory by this device.
            let (parent, name) = to.rsplit_once('/').unwrap_or(("", to));
            return self.add_empty(metadata, EntryType::Regular, &format!("{parent}/{WHITEOUT}{name}"));
        }
        if kind.is_block_device() || kind.is_char_device() || kind.is_socket() {
            out::say(format_args!("{} is not exported: it is a device or a socket", path.display()));
            return Ok(());
        }
        if metadata.nlink() > 1 {
            match self.links.get(&(metadata.dev(), metadata.ino())) {
                Some(first) => {
                    let (mut header, first) = (header(metadata, EntryType::Link), first.clone());
                    return Ok(self.tar.append_link(&mut header, to, first)?);
                }
                None => drop(self.links.insert((metadata.dev(), metadata.ino()), to.to_string())),
            }
        }
        self.add_attributes(&attributes_of(path)?)?;
        if kind.is_symlink() {
            let target = std::fs::read_link(path).with_context(|| format!("read {}", path.display()))?;
            return Ok(self.tar.append_link(&mut header(metadata, EntryType::Symlink), to, target)?);
        }
        if kind.is_fifo() {
            return self.add_empty(metadata, EntryType::Fifo, to);
        }
        self.add_file(path, to)
    }

    /// Adds a regular file.
    pub(super) fn add_file(&mut self, path: &Path, to: &str) -> Result<()> {
        let failed = || format!("read {}", path.display());
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let file = File::options().read(true).custom_flags(nofollow).open(path).with_context(failed)?;
        let metadata = file.metadata().with_context(failed)?;
        let mut header = header(&metadata, EntryType::Regular);
        header.set_size(metadata.len());
        let mut hashed = Hashed::new(file.take(metadata.len()));
        self.tar.append_data(&mut header, to, &mut hashed).with_context(failed)?;
        let digest = hashed.digest();
        if digest.size != metadata.len() {
            bail!("{} became shorter while it was read", path.display());
        }
        self.files.insert(to.to_string(), digest);
        Ok(())
    }

    fn add_directory(&mut self, metadata: &Metadata, to: &str) -> Result<()> {
        self.add_empty(metadata, EntryType::Directory, to)
    }

    fn add_empty(&mut self, metadata: &Metadata, kind: EntryType, to: &str) -> Result<()> {
        Ok(self.tar.append_data(&mut header(metadata, kind), to, io::empty())?)
    }

    /// Adds those extended attributes of the next entry that are kept on another machine.
    fn add_attributes(&mut self, attributes: &[(String, Vec<u8>)]) -> Result<()> {
        let kept = attributes.iter().filter(|(name, _)| is_kept(name));
        let headers: Vec<(String, &[u8])> =
            kept.map(|(name, value)| (format!("{ATTRIBUTE}{name}"), &value[..])).collect();
        if headers.is_empty() {
            return Ok(());
        }
        let size: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        if size as u64 > extended::LIMIT {
            bail!("its extended attributes are too large for an archive");
        }
        Ok(self.tar.append_pax_extensions(headers.iter().map(|(name, value)| (name.as_str(), *value)))?)
    }

    /// Writes the manifest, and ends the archive.
    pub(super) fn finish(mut self, manifest: Manifest) -> Result<()> {
        let manifest = Manifest { files: std::mem::take(&mut self.files), ..manifest };
        let text = serde_json::to_vec(&manifest)?;
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(text.len() as u64);
        self.tar.append_data(&mut header, MANIFEST, &text[..])?;
        self.tar.into_inner()?.finish()?;
        Ok(())
    }
}

/// Whether the archive has an extended attribute of this name.
pub(super) fn is_kept(name: &str) -> bool {
    // An overlay that is mounted with `userxattr` keeps its own attributes under `user.overlay.`.
    let of_user = name.starts_with("user.") && !name.starts_with("user.overlay.");
    of_user || name == "security.capability" || name.starts_with("system.posix_acl_")
}

fn header(metadata: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
    header.set_size(0);
    header
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let failed = || format!("read {}", directory.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(failed)? {
        let name = entry.with_context(failed)?.file_name();
        match name.into_string() {
            Ok(name) => names.push(name),
            Err(name) => bail!("{}: a name that is not UTF-8 cannot be in an archive", directory.join(name).display()),
        }
    }
    names.sort();
    Ok(names)
}

/// A file's extended attributes. Fails for an attribute by which an overlay refers to another layer.
fn attributes_of(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let failed = || format!("read the attributes of {}", path.display());
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        length => length.map_err(io::Error::from).with_context(failed)?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        if ["trusted.overlay.redirect", "trusted.overlay.metacopy"].contains(&name.as_str()) {
            bail!(
                "{} is only a reference to another layer ({name}): mount the overlay with redirect_dir=off,metacopy=off",
                path.display()
            );
        }
        if !is_kept(&name) && name != OPAQUE_ATTRIBUTE {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length =
            rustix::fs::lgetxattr(path, &*name, &mut value[..]).map_err(io::Error::from).with_context(failed)?;
        value.truncate(length);
        found.push((name, value));
    }
    Ok(found)
}

/// Computes the digest of everything that is read through it.
pub(super) struct Hashed<R> {
    inner: R,
    hash: Sha256,
    size: u64,
}

impl<R: Read> Hashed<R> {
    pub(super) fn new(inner: R) -> Hashed<R> {
        Hashed { inner, hash: Sha256::new(), size: 0 }
    }

    pub(super) fn digest(self) -> Digest {
        let sha256 = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Digest { size: self.size, sha256 }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.size += n as u64;
        Ok(n)
    }
}

/// Formats a path of bytes for a message.
pub(super) fn shown(bytes: &[u8]) -> String {
    Path::new(std::ffi::OsStr::from_bytes(bytes)).display().to_string()
}
