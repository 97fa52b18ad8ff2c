//! A checkpoint as one file, to move it to another machine: a tar archive, compressed with zstd.
//!
//! ```text
//! checkpoint/     the checkpoint's config.json and CRIU's images
//! bundle/         the bundle's config.json
//! layer/          the upper directory, if the container's root is an overlay
//! rootfs/         or its whole root file system, with --rootfs
//! manifest.json   last: names, the kind of root, and the digests of the files
//! ```
//!
//! An overlay marks deleted files with devices and attributes. The archive has them in the form of OCI layers (OCI image
//! specification, layer.md, "Whiteouts"), so that an archive that contains a device can be refused.

mod extended;
mod read;
mod write;

use anyhow::{Context, Result, anyhow, bail};
use containerd_client::Client;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use sys::foreign_file;
use sys::shown::{escape, is_obeyed};

use crate::CONFIG_LIMIT;
use crate::args::{ExportCheckpoint, ImportCheckpoint};
use crate::checkpoints::in_words;
use crate::containers;
use crate::failure::Failure;
use crate::out;
use read::Reader;
use write::Writer;

/// The format that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;

const MANIFEST: &str = "manifest.json";
const CHECKPOINT: &str = "checkpoint";
const BUNDLE: &str = "bundle";
const LAYER: &str = "layer";
const ROOTFS: &str = "rootfs";

/// The prefix of an entry that hides the entry of that name in a lower directory.
const WHITEOUT: &str = ".wh.";
/// The name of an entry that hides everything that a lower directory has in the entry's directory.
const OPAQUE: &str = ".wh..wh..opq";
/// The attribute of such a directory in an overlay (Documentation/filesystems/overlayfs.rst).
const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";
/// The prefix of the PAX records for extended attributes.
const ATTRIBUTE: &str = "SCHILY.xattr.";

/// The description of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// The checkpoint's name.
    name: String,
    /// The container's id.
    id: String,
    root: Root,
    /// The digest of every regular file, by its path in the archive.
    files: BTreeMap<String, Digest>,
}

/// Which part of the container's root file system is in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Root {
    /// Nothing: the other machine must have it.
    Elsewhere,
    /// The changes above these lower directories.
    Overlay { lower: Vec<PathBuf> },
    /// All of it.
    Whole,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Digest {
    size: u64,
    sha256: String,
}

/// Writes a checkpoint, with the files that its container needs, into an archive.
pub(crate) async fn export(client: &Client, export: ExportCheckpoint) -> Result<ExitCode, Failure> {
    let bundle = match &export.bundle {
        Some(bundle) => bundle.clone(),
        None => {
            let container = containers::container_of(client, &export.id).await.map_err(|failure| match failure {
                Failure::Daemon(e) if e.is_not_found() => {
                    anyhow!("there is no container {}: name its bundle with --bundle", export.id).into()
                }
                failure => failure,
            })?;
            if container.status == "running" {
                let id = &export.id;
                out::say(format_args!(
                    "{id} is running: the archive gets its files as they are now, not as they were at the checkpoint"
                ));
            }
            PathBuf::from(container.bundle_path)
        }
    };
    let bytes = write_archive(&export, &bundle)?;
    out::write(format!("{}: {}\n", escape(&export.file.display().to_string()), in_words(bytes)))?;
    Ok(ExitCode::SUCCESS)
}

fn write_archive(export: &ExportCheckpoint, bundle: &Path) -> Result<u64> {
    oci::check_name(&export.name, &[]).map_err(|e| anyhow!("checkpoint {:?} {e}", export.name))?;
    let directory = export.checkpoint_dir.clone().unwrap_or_else(|| bundle.join("checkpoints"));
    let checkpoint = directory.join(&export.name);
    if !checkpoint.join("config.json").is_file() {
        bail!("there is no checkpoint {}", checkpoint.display());
    }
    let config = bundle.join("config.json");
    let rootfs = rootfs_of(&config)?;
    let overlay = if export.rootfs { None } else { Overlay::at(&rootfs)? };
    let root = match &overlay {
        _ if export.rootfs => Root::Whole,
        Some(overlay) => Root::Overlay { lower: overlay.lower.clone() },
        None => {
            out::say(format_args!(
                "{} is not an overlay, and the archive does not include it; --rootfs includes it",
                rootfs.display()
            ));
            Root::Elsewhere
        }
    };
    // Written under another name beside the file, so that the file is either complete or absent.
    let beside = export.file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(beside).with_context(|| format!("write into {}", beside.display()))?;
    let mut writer = Writer::new(file.as_file())?;
    writer.add_plain_tree(&checkpoint, CHECKPOINT)?;
    writer.add_file(&config, &format!("{BUNDLE}/config.json"))?;
    if export.rootfs {
        writer.add_root(&rootfs, ROOTFS)?;
    }
    if let Some(overlay) = &overlay {
        writer.add_root(&overlay.upper, LAYER)?;
    }
    writer.finish(Manifest {
        format: FORMAT,
        name: export.name.clone(),
        id: export.id.clone(),
        root,
        files: BTreeMap::new(),
    })?;
    let bytes = file.as_file().metadata()?.len();
    let kept = if export.force { file.persist(&export.file) } else { file.persist_noclobber(&export.file) };
    kept.map_err(|e| e.error).with_context(|| format!("write {}", export.file.display()))?;
    Ok(bytes)
}

/// Unpacks a checkpoint that [`export`] has written, into a bundle.
pub(crate) fn import(import: &ImportCheckpoint) -> Result<ExitCode, Failure> {
    let imported = read_archive(import)?;
    let Imported { bundle, id, name, mount } = &imported;
    let bundle = bundle.display().to_string();
    let (bundle, id, name) = (escape(&bundle), escape(id), escape(name));
    let mut text = format!("checkpoint {name} of {id} is in {bundle}\n");
    if let Some(mount) = mount {
        text += &format!("mount its root file system first:\n  {}\n", escape(mount));
    }
    text += &format!("restore it with:\n  ctr containers start --checkpoint {name} {id} {bundle}\n");
    out::write(text)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) struct Imported {
    bundle: PathBuf,
    id: String,
    name: String,
    /// The command that mounts the root file system, if it is left to the user.
    mount: Option<String>,
}

pub(crate) fn read_archive(import: &ImportCheckpoint) -> Result<Imported> {
    let shown = import.file.display();
    let file = std::fs::File::open(&import.file).with_context(|| format!("open {shown}"))?;
    // Without --bundle, the bundle is named after the container, whose name is at the end of the archive.
    let near = match &import.bundle {
        Some(bundle) => {
            std::fs::create_dir_all(bundle).with_context(|| format!("create {}", bundle.display()))?;
            bundle.clone()
        }
        None => PathBuf::from("."),
    };
    let made_bundle = import.bundle.as_ref().filter(|bundle| is_empty(bundle));
    let staged = tempfile::Builder::new().prefix(".import-").tempdir_in(&near);
    let staged = staged.with_context(|| format!("write into {}", near.display()))?;
    let result = Reader::new(staged.path(), file)
        .and_then(Reader::read)
        .with_context(|| format!("{shown} is refused"))
        .and_then(|manifest| place(import, manifest, staged.path()));
    drop(staged);
    if let (Err(_), Some(bundle)) = (&result, made_bundle) {
        // This program made it, and nothing is in it.
        let _ = std::fs::remove_dir(bundle);
    }
    result
}

/// Moves the unpacked and checked files into the bundle, all of them or none.
fn place(import: &ImportCheckpoint, manifest: Manifest, staged: &Path) -> Result<Imported> {
    let Manifest { name, id, root, .. } = manifest;
    let bundle = import.bundle.clone().unwrap_or_else(|| PathBuf::from(&id));
    let bundle = std::path::absolute(&bundle).with_context(|| format!("find {}", bundle.display()))?;
    std::fs::create_dir_all(&bundle).with_context(|| format!("create {}", bundle.display()))?;
    let config = foreign_file::read(&staged.join(BUNDLE).join("config.json"), CONFIG_LIMIT)
        .context("read the config.json in it")?;
    let has_config = match foreign_file::read(&bundle.join("config.json"), CONFIG_LIMIT) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Ok(there) if there == config => true,
        Err(e) => return Err(e).with_context(|| format!("read the config.json of {}", bundle.display())),
        Ok(_) => bail!("{} has another config.json: import into another --bundle", bundle.display()),
    };
    let mut moves = Moves::default();
    let mut overlay = None;
    match root {
        Root::Overlay { lower } => {
            moves.add(staged.join(LAYER), bundle.join("upper"));
            let lower = import.lower.clone().map_or(lower, |lower| vec![lower]);
            let rootfs = bundle.join(root_name(&config)?);
            let overlay = overlay.insert(Overlay { lower, upper: bundle.join("upper") });
            overlay.check(&bundle, &rootfs, import.mount)?;
        }
        Root::Whole => moves.add(staged.join(ROOTFS), bundle.join(root_name(&config)?)),
        Root::Elsewhere => {}
    }
    if !has_config {
        moves.add(staged.join(BUNDLE).join("config.json"), bundle.join("config.json"));
    }
    let checkpoints = bundle.join("checkpoints");
    std::fs::create_dir_all(&checkpoints).with_context(|| format!("create {}", checkpoints.display()))?;
    moves.add(staged.join(CHECKPOINT), checkpoints.join(&name));
    moves.carry_out()?;
    let mount = match overlay {
        Some(overlay) => overlay.prepare(&bundle, &bundle.join(root_name(&config)?), import.mount)?,
        None => None,
    };
    Ok(Imported { bundle, id, name, mount })
}

/// The name of the root file system in an imported bundle. An archive must not choose a place outside the bundle.
fn root_name(config: &[u8]) -> Result<String> {
    let value: serde_json::Value = serde_json::from_slice(config).context("read the config.json in it")?;
    let name = value["root"]["path"].as_str().unwrap_or("rootfs");
    let is_taken = ["upper", "work", "checkpoints", "config.json"].contains(&name);
    if is_taken || oci::check_name(name, &[]).is_err() {
        bail!(
            "its config.json has the root file system at {name:?}, and only a directory of the bundle can be imported"
        );
    }
    Ok(name.to_string())
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Files and directories to move, all of them or none.
#[derive(Default)]
struct Moves(Vec<(PathBuf, PathBuf)>);

impl Moves {
    fn add(&mut self, from: PathBuf, to: PathBuf) {
        self.0.push((from, to));
    }

    fn carry_out(&self) -> Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        for (n, (from, to)) in self.0.iter().enumerate() {
            // The user may have prepared an empty directory.
            if to.is_dir() && is_empty(to) {
                let _ = std::fs::remove_dir(to);
            }
            if let Err(e) = renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
                for (from, to) in &self.0[..n] {
                    let _ = std::fs::rename(to, from);
                }
                return Err(anyhow::Error::new(std::io::Error::from(e)).context(format!("make {}", to.display())));
            }
        }
        Ok(())
    }
}

/// The path of a bundle's root file system.
fn rootfs_of(config: &Path) -> Result<PathBuf> {
    let failed = || format!("read {}", config.display());
    let text = foreign_file::read(config, CONFIG_LIMIT).with_context(failed)?;
    let value: serde_json::Value = serde_json::from_slice(&text).with_context(failed)?;
    let path = value["root"]["path"].as_str().unwrap_or("rootfs");
    Ok(config.parent().unwrap_or(Path::new(".")).join(path))
}

/// An overlay that is mounted on a container's root.
#[derive(Debug, PartialEq, Eq)]
struct Overlay {
    lower: Vec<PathBuf>,
    upper: PathBuf,
}

impl Overlay {
    /// Finds the overlay that is mounted on `rootfs`. Returns `None` if another file system is.
    fn at(rootfs: &Path) -> Result<Option<Overlay>> {
        let rootfs = rootfs.canonicalize().with_context(|| format!("find {}", rootfs.display()))?;
        Ok(Overlay::find(&std::fs::read_to_string("/proc/self/mountinfo")?, &rootfs))
    }

    fn find(mountinfo: &str, rootfs: &Path) -> Option<Overlay> {
        // proc_pid_mountinfo(5): … mount point … - type, source, options of the file system. The last one is on top.
        let line = mountinfo.lines().rfind(|line| {
            let point = line.split(' ').nth(4).map(sys::procfs::unescape);
            point.is_some_and(|point| Path::new(&point) == rootfs)
        })?;
        let mut parts = line.split_once(" - ")?.1.split(' ');
        if parts.next()? != "overlay" {
            return None;
        }
        let options = sys::procfs::unescape(parts.nth(1)?);
        // Linux 6.8 and later show each lower directory as an option of its own.
        let value = |name: &'static str| {
            options.split(',').filter_map(move |option| option.strip_prefix(name)?.strip_prefix('='))
        };
        let lower = value("lowerdir").flat_map(|all| all.split(':')).chain(value("lowerdir+"));
        let lower = lower.filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        Some(Overlay { lower, upper: value("upperdir").next()?.into() })
    }

    /// Checks before anything is moved that this can be mounted. The lower directories may come from a hostile archive.
    fn check(&self, bundle: &Path, rootfs: &Path, now: bool) -> Result<()> {
        let has_meaning = |character: char| matches!(character, ',' | ':' | '\\' | '\'') || is_obeyed(character);
        for path in self.lower.iter().map(PathBuf::as_path).chain([bundle]) {
            let text = path.to_str().filter(|text| !text.contains(has_meaning) && path.is_absolute());
            text.with_context(|| format!("{:?} cannot be a directory of an overlay", path.display()))?;
        }
        if let Some(missing) = self.lower.iter().find(|lower| now && !lower.is_dir()) {
            bail!("there is no lower directory {}: name it with --lower", missing.display());
        }
        for directory in [bundle.join("work"), rootfs.to_path_buf()] {
            if directory.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
                bail!("{} exists and is not a directory", directory.display());
            }
        }
        Ok(())
    }

    /// Makes the directories that the overlay of an imported bundle needs. Mounts it if `now`, or else returns the command for
    /// it.
    fn prepare(&self, bundle: &Path, rootfs: &Path, now: bool) -> Result<Option<String>> {
        let work = bundle.join("work");
        for directory in [work.as_path(), rootfs] {
            std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        }
        let lower: Vec<String> = self.lower.iter().map(|path| path.display().to_string()).collect();
        let (lower, upper) = (lower.join(":"), self.upper.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={}", work.display());
        if !now {
            return Ok(Some(format!("mount -t overlay overlay -o '{options}' '{}'", rootfs.display())));
        }
        let data = std::ffi::CString::new(options.clone())?;
        rustix::mount::mount("overlay", rootfs, "overlay", rustix::mount::MountFlags::empty(), Some(data.as_c_str()))
            .map_err(std::io::Error::from)
            .with_context(|| {
                let rootfs = rootfs.display();
                format!("the checkpoint is imported, but its root cannot be mounted: mount -t overlay overlay -o '{options}' '{rootfs}'")
            })?;
        Ok(None)
    }
}

#[cfg(test)]
mod damage;
#[cfg(test)]
mod tests;
