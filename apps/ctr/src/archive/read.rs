//! Reading an archive. Its author may be hostile: whatever it contains, the reader touches nothing outside the directory that
//! it unpacks into.

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, mkdirat, mknodat, open, openat2, symlinkat,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use tar::{Entry, EntryType};

use super::extended::Extended;
use super::write::{Hashed, is_kept, shown};
use super::{
    ATTRIBUTE, BUNDLE, CHECKPOINT, Digest, FORMAT, LAYER, MANIFEST, Manifest, OPAQUE, OPAQUE_ATTRIBUTE, ROOTFS, Root,
    WHITEOUT,
};

type Source = zstd::Decoder<'static, BufReader<BufReader<File>>>;

/// The most bytes of a manifest: far more than that of a whole root file system.
const LARGEST_MANIFEST: u64 = 256 << 20;

/// The most memory that decompression may take, as a power of two: what RFC 8878 (3.1.1.1.2) recommends that every decoder
/// supports, and more than an export needs.
const LARGEST_WINDOW: u32 = 23;

/// The most bytes after the end of the archive: more than any program adds as padding.
const LARGEST_END: u64 = 1 << 20;

pub(super) struct Reader {
    directory: OwnedFd,
    source: BufReader<File>,
    found: BTreeMap<String, Digest>,
    /// The trees that the archive has.
    trees: BTreeSet<String>,
}

impl Reader {
    /// Reads `file` into `directory`, which must be empty and used by nothing else.
    pub(super) fn new(directory: &Path, file: File) -> Result<Reader> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(directory, flags, Mode::empty()).map_err(io::Error::from)?;
        Ok(Reader { directory, source: BufReader::new(file), found: BTreeMap::new(), trees: BTreeSet::new() })
    }

    /// Unpacks everything, and checks it against the manifest.
    pub(super) fn read(mut self) -> Result<Manifest> {
        let empty = File::open("/dev/null")?;
        let source = std::mem::replace(&mut self.source, BufReader::new(empty));
        let mut decoder: Source = zstd::Decoder::new(source).context("it is not compressed with zstd")?;
        decoder.window_log_max(LARGEST_WINDOW)?;
        let mut archive = tar::Archive::new(decoder);
        let mut manifest = None;
        let mut extended = Extended::default();
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry.context("it is damaged, or not an archive")?;
            if extended.take(&mut entry)? {
                continue;
            }
            let extended = std::mem::take(&mut extended);
            let path = extended.path().map_or_else(|| entry.path_bytes().into_owned(), <[u8]>::to_vec);
            if manifest.is_some() {
                bail!("{} comes after the manifest", shown(&path));
            }
            if path == MANIFEST.as_bytes() {
                manifest = Some(read_manifest(&mut entry)?);
            } else {
                self.unpack(&mut entry, &extended, &path).with_context(|| shown(&path))?;
            }
        }
        // Reads to the end, where the checksum is.
        let mut rest = archive.into_inner().take(LARGEST_END);
        io::copy(&mut rest, &mut io::sink()).context("it is damaged")?;
        if rest.limit() == 0 {
            bail!("it goes on after its end");
        }
        let manifest = manifest.ok_or_else(|| anyhow!("it has no manifest: it was cut off, or is something else"))?;
        self.check(&manifest)?;
        Ok(manifest)
    }

    fn check(&self, manifest: &Manifest) -> Result<()> {
        for (field, name) in [("name", &manifest.name), ("id", &manifest.id)] {
            oci::check_name(name, &[]).map_err(|e| anyhow!("its {field} {name:?} {e}"))?;
        }
        for (path, digest) in &manifest.files {
            match self.found.get(path) {
                Some(found) if found == digest => {}
                Some(_) => bail!("{path} is not what was exported: its digest differs"),
                None => bail!("{path} is missing"),
            }
        }
        if let Some(path) = self.found.keys().find(|path| !manifest.files.contains_key(*path)) {
            bail!("{path} is not in the manifest");
        }
        let root = match manifest.root {
            Root::Elsewhere => None,
            Root::Overlay { .. } => Some(LAYER),
            Root::Whole => Some(ROOTFS),
        };
        let wanted: BTreeSet<&str> = [CHECKPOINT, BUNDLE].into_iter().chain(root).collect();
        let found: BTreeSet<&str> = self.trees.iter().map(String::as_str).collect();
        if wanted != found {
            bail!("it holds {found:?} in place of {wanted:?}");
        }
        for path in [format!("{CHECKPOINT}/config.json"), format!("{BUNDLE}/config.json")] {
            if !self.found.contains_key(&path) {
                bail!("{path} is missing");
            }
        }
        Ok(())
    }

    fn unpack(&mut self, entry: &mut Entry<'_, Source>, extended: &Extended, path: &[u8]) -> Result<()> {
        let place = Place::parse(path)?;
        let plain = matches!(place.tree(), CHECKPOINT | BUNDLE);
        let kind = entry.header().entry_type();
        if self.trees.insert(place.tree().to_string()) {
            mkdirat(&self.directory, place.tree(), Mode::RWXU).map_err(io::Error::from)?;
        }
        let owner = Owner::of(entry, extended)?;
        let Some(name) = place.name() else {
            // The tree itself.
            if kind != EntryType::Directory {
                bail!("is not a directory");
            }
            let tree = self.open_directory(place.tree())?;
            return if plain { Ok(()) } else { owner.give_to(&tree) };
        };
        let parent = self.open_directory(&place.parent())?;
        if let (LAYER, Some(hidden)) = (place.tree(), name.strip_prefix(WHITEOUT)) {
            return hide(&parent, name, hidden);
        }
        match kind {
            EntryType::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file =
                    rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(io::Error::from)?;
                let mut file = File::from(file);
                let size = entry.header().entry_size()?;
                let mut hashed = Hashed::new(&mut *entry);
                io::copy(&mut hashed, &mut file).context("cannot be unpacked")?;
                let digest = hashed.digest();
                if digest.size != size {
                    bail!("is cut off");
                }
                self.found.insert(place.text(), digest);
                // The owner of the checkpoint on the other machine does not matter here.
                if plain { Ok(()) } else { owner.give_to(&OwnedFd::from(file)) }
            }
            EntryType::Directory if !plain => {
                mkdirat(&parent, name, Mode::RWXU).map_err(io::Error::from)?;
                let directory = self.open_directory(&place.text())?;
                owner.give_to(&directory)
            }
            EntryType::Symlink if !plain => {
                let target = target_of(entry, extended)?;
                if leads_out(&target, place.depth()) {
                    bail!("is a link out of its tree, to {}", shown(&target));
                }
                symlinkat(&target[..], &parent, name).map_err(io::Error::from)?;
                let (uid, gid) = owner.ids();
                Ok(chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from)?)
            }
            EntryType::Link if !plain => {
                let target = target_of(entry, extended)?;
                let first = Place::parse(&target).context("is a link out of its tree")?;
                if first.tree() != place.tree() {
                    bail!("is a link out of its tree, to {}", shown(&target));
                }
                let from = self.open_directory(&first.parent())?;
                let target = first.name().context("is a link to a directory")?;
                Ok(linkat(&from, target, &parent, name, AtFlags::empty()).map_err(io::Error::from)?)
            }
            EntryType::Fifo if !plain => {
                mknodat(&parent, name, FileType::Fifo, owner.mode(), 0).map_err(io::Error::from)?;
                let (uid, gid) = owner.ids();
                Ok(chownat(&parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from)?)
            }
            EntryType::Block | EntryType::Char => bail!("is a device"),
            _ => bail!("is neither a file nor a directory"),
        }
    }

    /// Opens a directory that was unpacked before. Follows no links.
    fn open_directory(&self, path: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = openat2(&self.directory, path, flags, Mode::empty(), resolve).map_err(io::Error::from);
        opened.with_context(|| format!("{path} is no directory of the archive"))
    }
}

/// The target of a link.
fn target_of(entry: &Entry<'_, Source>, extended: &Extended) -> Result<Vec<u8>> {
    let target = extended.link().map(<[u8]>::to_vec).or_else(|| Some(entry.link_name_bytes()?.into_owned()));
    target.context("is a link to nothing")
}

fn read_manifest(entry: &mut Entry<'_, Source>) -> Result<Manifest> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        format: u32,
    }
    let mut text = Vec::new();
    entry.take(LARGEST_MANIFEST).read_to_end(&mut text)?;
    let Versioned { format } = serde_json::from_slice(&text).context("its manifest cannot be read")?;
    if format > FORMAT {
        bail!("a newer ctr wrote it (format {format}, and this one knows {FORMAT})");
    }
    serde_json::from_slice(&text).context("its manifest cannot be read")
}

/// Makes the device or attribute with which an overlay hides an entry of a lower directory.
fn hide(parent: &OwnedFd, name: &str, hidden: &str) -> Result<()> {
    if name == OPAQUE {
        return Ok(fsetxattr(parent, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty()).map_err(io::Error::from)?);
    }
    if hidden.is_empty() || matches!(hidden, "." | "..") || hidden.starts_with(WHITEOUT) {
        bail!("hides nothing");
    }
    // A character device with the number 0, which no driver has.
    Ok(mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0).map_err(io::Error::from)?)
}

/// A path in the archive, which cannot lead out of it.
struct Place(Vec<String>);

impl Place {
    fn parse(path: &[u8]) -> Result<Place> {
        let text = std::str::from_utf8(path).context("is not UTF-8")?;
        let text = text.strip_suffix('/').unwrap_or(text);
        let parts: Vec<String> = text.split('/').map(str::to_string).collect();
        if parts.iter().any(|part| matches!(part.as_str(), "" | "." | "..") || part.contains('\0')) {
            bail!("is no path in an archive");
        }
        if ![CHECKPOINT, BUNDLE, LAYER, ROOTFS].contains(&parts[0].as_str()) {
            bail!("does not belong here");
        }
        Ok(Place(parts))
    }

    fn tree(&self) -> &str {
        &self.0[0]
    }

    /// The last part of the path. `None` for the tree itself.
    fn name(&self) -> Option<&str> {
        self.0[1..].last().map(String::as_str)
    }

    fn parent(&self) -> String {
        self.0[..self.0.len() - 1].join("/")
    }

    fn text(&self) -> String {
        self.0.join("/")
    }

    /// The number of directories of its tree above it.
    fn depth(&self) -> usize {
        self.0.len() - 2
    }
}

/// Whether a link leads above its tree. An absolute link is resolved with the tree as the root directory.
fn leads_out(target: &[u8], depth: usize) -> bool {
    let mut depth = if target.starts_with(b"/") { 0 } else { depth };
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

/// A file's owner, mode, time and extended attributes.
struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: i64,
    attributes: Vec<(String, Vec<u8>)>,
}

impl Owner {
    fn of(entry: &Entry<'_, Source>, extended: &Extended) -> Result<Owner> {
        let mut attributes = Vec::new();
        for (key, value) in extended.records() {
            if let Some(name) = key.strip_prefix(ATTRIBUTE).filter(|name| is_kept(name)) {
                attributes.push((name.to_string(), value.clone()));
            }
        }
        let header = entry.header();
        Ok(Owner {
            uid: u32::try_from(header.uid()?)?,
            gid: u32::try_from(header.gid()?)?,
            mode: header.mode()? & 0o7777,
            mtime: i64::try_from(header.mtime()?)?,
            attributes,
        })
    }

    fn ids(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.mode)
    }

    fn give_to(&self, file: &OwnedFd) -> Result<()> {
        let (uid, gid) = self.ids();
        let give = || -> rustix::io::Result<()> {
            // The owner first: changing it removes capabilities and set-user-ID bits (chown(2)).
            fchown(file, uid, gid)?;
            fchmod(file, self.mode())?;
            for (name, value) in &self.attributes {
                fsetxattr(file, &**name, value, XattrFlags::empty())?;
            }
            let time = Timespec { tv_sec: self.mtime, tv_nsec: 0 };
            futimens(file, &Timestamps { last_access: time, last_modification: time })
        };
        give().map_err(io::Error::from).context("its owner, mode and attributes cannot be set")
    }
}
