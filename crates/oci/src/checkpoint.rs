//! Checkpoints on disk: directories with CRIU's images, in a directory that is a bundle's or anybody's.
//!
//! One that is being made has a name that no checkpoint has, and is locked (flock(2)) by whoever makes it: by the
//! supervisor and by the runtime that it started, so that it is known to be at work even if the supervisor has died.

use prost::Message;
use rustix::fs::{
    CWD, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, fchmod, fchown, flock, fstat, open, openat,
    renameat_with,
};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use sys::pidfd::PidFd;

use crate::PathError;
use crate::container_dir::remove_all;
use crate::json::{null_as_default, write_whole};
use crate::leftovers::unmount_below;
use crate::names::check_name;

/// What a checkpoint was made with, as in its `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Checkpoint {
    /// When it was begun, as in RFC 3339.
    pub created: String,
    /// Its name, which is its directory's too.
    pub name: String,
    /// Established TCP connections are in it.
    pub tcp: bool,
    /// So are Unix sockets with a peer outside.
    pub unix_sockets: bool,
    /// So is a terminal that comes from outside.
    pub shell: bool,
    /// The container was stopped when it had been made.
    pub exit: bool,
    /// Namespaces that are not in it, and are made empty.
    #[serde(rename = "emptyNS", deserialize_with = "null_as_default")]
    pub empty_ns: Vec<String>,
    /// The sizes of its files, to see whether they are whole; none in one that an older daemon made.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, u64>,
}

impl Checkpoint {
    /// Those of the runtime's flags that not every runtime has.
    pub fn needs(&self) -> Vec<&'static str> {
        let flags = [
            (self.tcp, "--tcp-established"),
            (self.unix_sockets, "--ext-unix-sk"),
            (self.shell, "--shell-job"),
            (!self.empty_ns.is_empty(), "--empty-ns"),
        ];
        flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).collect()
    }

    /// The runtime's flags, for `checkpoint` and for `restore` alike.
    pub fn flags(&self) -> Vec<&str> {
        let mut flags = self.needs();
        flags.retain(|flag| *flag != "--empty-ns");
        for namespace in &self.empty_ns {
            flags.extend(["--empty-ns", namespace]);
        }
        flags
    }
}

const CONFIG: &str = "config.json";
const WORK: &str = "criu.work";

/// CRIU writes this when all else has been written, and before it lets the processes go on or kills them.
const LAST_IMAGE: &str = "inventory.img";

/// A directory that holds checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoints(PathBuf);

/// Why one cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// There is one of that name.
    #[error("checkpoint {0} already exists")]
    Exists(String),
    /// Somebody else is making one of that name, or has left it half-made where it may be whole.
    #[error("checkpoint {name} is being made, or was when its daemon died; if nothing works in {} any more, remove that", path.display())]
    UnderWay {
        /// The name.
        name: String,
        /// Its directory for the time being.
        path: PathBuf,
    },
    /// A file.
    #[error(transparent)]
    File(#[from] PathError),
}

impl Checkpoints {
    /// Those in `directory`, which need not be there; a bundle has its own if there is no other.
    pub fn new(directory: Option<&Path>, bundle: &Path) -> io::Result<Checkpoints> {
        match directory {
            Some(directory) => std::path::absolute(directory).map(Checkpoints),
            None => Ok(Checkpoints(bundle.join("checkpoints"))),
        }
    }

    /// The directory of the checkpoint `name`, which must have been checked.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where one is that is being removed: under a name that is no checkpoint's.
    fn removed(&self, name: &str) -> PathBuf {
        self.0.join(format!(".{name}.removed"))
    }

    /// All of them, by their names. What has no readable `config.json` is none.
    pub fn list(&self) -> Result<Vec<Checkpoint>, PathError> {
        let failed = || PathError::new("list", &self.0);
        let entries = match std::fs::read_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed())?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let Ok(name) = entry.map_err(failed())?.file_name().into_string() else { continue };
            match self.find(&name) {
                Ok(checkpoint) => found.extend(checkpoint),
                Err(e) => tracing::warn!("{e}; it is not listed"),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The checkpoint of that name, if it is there.
    pub fn find(&self, name: &str) -> Result<Option<Checkpoint>, PathError> {
        let directory = self.path(name);
        if check_name(name, &[]).is_err() || !directory.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            return Ok(None);
        }
        if is_bundle(&directory) {
            return Ok(None);
        }
        read_config(&directory).map(|found| found.map(|found| Checkpoint { name: name.to_string(), ..found }))
    }

    /// How much there is in the checkpoint of that name, in bytes; an error names a file that is not as it was written.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<u64, PathError> {
        let directory = self.path(&checkpoint.name);
        let found = sizes_in(&directory).map_err(PathError::new("list", &directory))?;
        for (name, size) in &checkpoint.files {
            let problem = match found.get(name) {
                Some(found) if found == size => continue,
                Some(found) => format!("it has {found} bytes and had {size}"),
                None => "it is missing".to_string(),
            };
            return Err(PathError::new("use", &directory.join(name))(io::Error::other(problem)));
        }
        Ok(found.values().sum())
    }

    /// Begins one: its directory is there afterwards, under a name that is no checkpoint's. The name must have been
    /// checked.
    pub fn begin(&self, checkpoint: &Checkpoint) -> Result<Partial, BeginError> {
        std::fs::create_dir_all(&self.0).map_err(PathError::new("create", &self.0))?;
        let name = &checkpoint.name;
        // Of one whose removal was cut off.
        remove_unmounted(&self.removed(name))?;
        let exists = |path: &Path| path.symlink_metadata().is_ok();
        if exists(&self.path(name)) {
            return Err(BeginError::Exists(name.clone()));
        }
        let partial = Partial::named(&self.0, name);
        loop {
            let made = std::fs::DirBuilder::new().mode(0o700).create(&partial);
            let is_new = match made {
                Ok(()) => true,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
                Err(e) => return Err(PathError::new("create", &partial)(e).into()),
            };
            let under_way = || BeginError::UnderWay { name: name.clone(), path: partial.clone() };
            let Some(lock) = lock(&partial, FlockOperation::NonBlockingLockExclusive)? else { return Err(under_way()) };
            if !is_same(&lock, &partial) {
                // Somebody has taken it away meanwhile.
                continue;
            }
            if !is_new {
                let left = Partial { path: partial.clone(), finally: self.path(name), lock };
                if left.is_dumped() {
                    return Err(under_way());
                }
                left.discard()?;
                continue;
            }
            let begun = Partial { path: partial, finally: self.path(name), lock };
            // Finished by somebody else since it was looked.
            if exists(&begun.finally) {
                begun.discard()?;
                return Err(BeginError::Exists(name.clone()));
            }
            if let Err(e) = begun.fill(checkpoint) {
                let _ = begun.discard();
                return Err(e.into());
            }
            return Ok(begun);
        }
    }

    /// Lets a group read the checkpoint of that name, and no other user who could not before: CRIU opens images as the root
    /// of the user namespace that it restores, which a directory of mode 0700 keeps out.
    pub fn share(&self, name: &str, group: u32) -> Result<(), PathError> {
        let directory = self.path(name);
        let share = |what: &OwnedFd, mode: u32| {
            let before = fstat(what)?.st_mode;
            fchown(what, None, Some(Gid::from_raw(group)))?;
            fchmod(what, Mode::from_raw_mode(before & 0o777 | mode))
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = open(&directory, flags | OFlags::DIRECTORY, Mode::empty()).and_then(|opened| {
            share(&opened, 0o010)?;
            Ok(opened)
        });
        let opened = opened.map_err(PathError::new("give to the container's root", &directory))?;
        for entry in std::fs::read_dir(&directory).map_err(PathError::new("list", &directory))? {
            let name = entry.map_err(PathError::new("list", &directory))?.file_name();
            let shared = match openat(&opened, &name, flags, Mode::empty()) {
                // A link to elsewhere.
                Err(Errno::LOOP) => Ok(()),
                Err(e) => Err(e),
                Ok(image) => fstat(&image).and_then(|stat| {
                    // What has another name as well may be anything.
                    let is_image = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1;
                    if is_image { share(&image, 0o040) } else { Ok(()) }
                }),
            };
            shared.map_err(PathError::new("give to the container's root", &directory.join(&name)))?;
        }
        Ok(())
    }

    /// Removes the checkpoint of that name; false if there is none.
    pub fn remove(&self, name: &str) -> Result<bool, PathError> {
        let directory = self.path(name);
        let is_there = || directory.symlink_metadata().is_ok_and(|found| found.is_dir());
        // One whose config is damaged is one all the same; a bundle never is.
        let is_one = || directory.join(WORK).exists() || directory.join(LAST_IMAGE).exists();
        if check_name(name, &[]).is_err() || !is_there() || !is_one() || is_bundle(&directory) {
            return Ok(false);
        }
        // At once no checkpoint any more, however long the rest takes.
        let removed = self.removed(name);
        remove_unmounted(&removed)?;
        std::fs::rename(&directory, &removed).map_err(PathError::new("remove", &directory))?;
        remove_unmounted(&removed)?;
        Ok(true)
    }
}

/// A checkpoint that is being made.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    finally: PathBuf,
    lock: OwnedFd,
}

impl Partial {
    fn named(directory: &Path, name: &str) -> PathBuf {
        // No checkpoint's name begins with a dot.
        directory.join(format!(".{name}.partial"))
    }

    fn fill(&self, checkpoint: &Checkpoint) -> Result<(), PathError> {
        let config = self.path.join(CONFIG);
        let text = serde_json::to_vec(checkpoint).map_err(PathError::new("write", &config))?;
        write_whole(&config, &text).map_err(PathError::new("write", &config))?;
        let work = self.work();
        std::fs::DirBuilder::new().mode(0o700).create(&work).map_err(PathError::new("create", &work))
    }

    /// Finds one again that is to become `finally`, and waits until nobody works on it; `None` if there is none.
    pub fn wait_for(finally: &Path) -> Result<Option<Partial>, PathError> {
        let (Some(directory), Some(name)) = (finally.parent(), finally.file_name().and_then(|name| name.to_str()))
        else {
            return Ok(None);
        };
        let path = Partial::named(directory, name);
        match lock(&path, FlockOperation::LockExclusive) {
            Ok(Some(lock)) if is_same(&lock, &path) => Ok(Some(Partial { path, finally: finally.to_path_buf(), lock })),
            Ok(_) => Ok(None),
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Where the images go.
    pub fn images(&self) -> &Path {
        &self.path
    }

    /// Where CRIU works and leaves its logs.
    pub fn work(&self) -> PathBuf {
        self.path.join(WORK)
    }

    /// What it will be called.
    pub fn finally(&self) -> &Path {
        &self.finally
    }

    /// What keeps others from it: held by the runtime as well.
    pub(crate) fn lock(&self) -> &OwnedFd {
        &self.lock
    }

    /// Whether all images were written.
    pub fn is_dumped(&self) -> bool {
        self.path.join(LAST_IMAGE).metadata().is_ok_and(|image| image.len() > 0)
    }

    /// Gives it its name: from now on it is a checkpoint.
    pub fn finish(&self) -> Result<(), PathError> {
        if let Some(checkpoint) = read_config(&self.path)? {
            // All that is lost if this cannot be written is a clear word about a damaged file.
            let files = sizes_in(&self.path).unwrap_or_default();
            let text = serde_json::to_vec(&Checkpoint { files, ..checkpoint }).unwrap_or_default();
            if let Err(e) = write_whole(&self.path.join(CONFIG), &text) {
                tracing::warn!(path = %self.path.display(), "cannot note the sizes of a checkpoint's files: {e}");
            }
        }
        let renamed = match renameat_with(CWD, &self.path, CWD, &self.finally, RenameFlags::NOREPLACE) {
            // Not every file system can. Nobody else gives it that name, as nobody else has the lock.
            Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(&self.path, &self.finally),
            result => result.map_err(Into::into),
        };
        renamed.map_err(PathError::new("name the checkpoint, which is whole, is in", &self.path))
    }

    /// Removes it.
    pub fn discard(&self) -> Result<(), PathError> {
        remove_unmounted(&self.path)
    }
}

/// The regular files beside a checkpoint's `config.json`.
fn sizes_in(directory: &Path) -> io::Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let (Ok(name), metadata) = (entry.file_name().into_string(), entry.metadata()?) else { continue };
        if metadata.is_file() && name != CONFIG {
            sizes.insert(name, metadata.len());
        }
    }
    Ok(sizes)
}

fn read_config(directory: &Path) -> Result<Option<Checkpoint>, PathError> {
    let path = directory.join(CONFIG);
    let text = match sys::foreign_file::read(&path, LARGEST_CONFIG) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(PathError::new("read", &path))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(PathError::new("read", &path))
}

/// Whether a directory is an OCI bundle, which has a `config.json` too (OCI runtime specification, config.md).
fn is_bundle(directory: &Path) -> bool {
    #[derive(Deserialize)]
    struct Config {
        #[serde(rename = "ociVersion")]
        _oci_version: serde::de::IgnoredAny,
    }
    sys::foreign_file::read(&directory.join(CONFIG), LARGEST_BUNDLE_CONFIG)
        .is_ok_and(|text| serde_json::from_slice::<Config>(&text).is_ok())
}

/// Locks a directory; `None` if somebody else has it.
fn lock(path: &Path, how: FlockOperation) -> Result<Option<OwnedFd>, PathError> {
    let failed = |e: Errno| PathError::new("lock", path)(e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = open(path, flags, Mode::empty()).map_err(failed)?;
    loop {
        match flock(&directory, how) {
            Ok(()) => return Ok(Some(directory)),
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Removes a directory in which a CRIU that failed may have mounted its own view of the control groups: to go into that
/// would remove those.
fn remove_unmounted(directory: &Path) -> Result<(), PathError> {
    unmount_below(directory).map_err(PathError::new("unmount what is in", directory))?;
    remove_all(directory)
}

/// Whether what is open is what has the path now.
fn is_same(directory: &OwnedFd, path: &Path) -> bool {
    match (rustix::fs::fstat(directory), rustix::fs::lstat(path)) {
        (Ok(open), Ok(there)) => (open.st_dev, open.st_ino) == (there.st_dev, there.st_ino),
        _ => false,
    }
}

/// Where the runtime and its CRIU work when they restore: in the process's own directory, so that any number of
/// containers can come from one checkpoint.
pub fn restore_work(process: &Path) -> PathBuf {
    process.join(WORK)
}

/// The CRIU that is at work on process `pid`, if one is.
pub fn criu_at(pid: u32) -> io::Result<Option<(Pid, PidFd)>> {
    let Some(tracer) = sys::procfs::tracer(pid)? else { return Ok(None) };
    let Some(stat) = sys::procfs::stat(tracer)? else { return Ok(None) };
    let Some(process) = PidFd::open(tracer, stat.starttime)? else { return Ok(None) };
    // Somebody may be looking at it with a debugger, and is left alone.
    let is_criu = sys::procfs::read(tracer, "comm")?.is_some_and(|name| name.trim() == "criu");
    let pid = i32::try_from(tracer).ok().and_then(Pid::from_raw);
    Ok(pid.filter(|_| is_criu).map(|pid| (pid, process)))
}

/// The largest `config.json` of a checkpoint, and the largest statistics of CRIU, that are read.
const LARGEST_CONFIG: u64 = 4 << 20;

/// The largest `config.json` of a bundle that is read.
const LARGEST_BUNDLE_CONFIG: u64 = 16 << 20;

/// How much of a log is looked at; CRIU's get long.
const LOG_TAIL: u64 = 256 << 10;

/// How many of its errors are repeated.
const MOST_ERRORS: usize = 5;

/// What CRIU's log gives as the reasons of a failure.
pub fn criu_errors(log: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = Vec::new();
    let read = sys::foreign_file::open_regular(log).and_then(|mut file| {
        let tail = file.metadata()?.len().saturating_sub(LOG_TAIL);
        file.seek(SeekFrom::Start(tail))?;
        file.take(LOG_TAIL).read_to_end(&mut text)
    });
    read.ok().and_then(|_| errors_in(&String::from_utf8_lossy(&text)))
}

fn errors_in(log: &str) -> Option<String> {
    let mut errors: Vec<&str> = Vec::new();
    for line in log.lines() {
        let Some((_, error)) = line.split_once("Error (") else { continue };
        // Behind the place in its source.
        let error = error.split_once("): ").map_or(error, |(_, error)| error).trim();
        // Of no consequence, or of the others.
        let says_nothing = ["Can't setup RLIMIT_NOFILE", "Dumping FAILED", "Restoring FAILED"];
        if error.starts_with("exited, status=") || says_nothing.iter().any(|words| error.contains(words)) {
            continue;
        }
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    let more = errors.len().saturating_sub(MOST_ERRORS);
    errors.truncate(MOST_ERRORS);
    let mut told = errors.join("; ");
    if more > 0 {
        told.push_str(&format!("; and {more} more"));
    }
    (!told.is_empty()).then_some(told)
}

/// CRIU's statistics (criu/images/stats.proto), as far as they matter here.
#[derive(Clone, PartialEq, Message)]
struct Statistics {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpStatistics>,
}

#[derive(Clone, PartialEq, Message)]
struct DumpStatistics {
    /// Microseconds.
    #[prost(uint32, tag = "2")]
    frozen_time: u32,
}

/// How long a container stood still for its checkpoint in `directory`, by CRIU's own account.
pub fn time_frozen(directory: &Path) -> Option<Duration> {
    frozen_in(&sys::foreign_file::read(&directory.join(WORK).join("stats-dump"), LARGEST_CONFIG).ok()?)
}

fn frozen_in(stats: &[u8]) -> Option<Duration> {
    // Two magic numbers and the length of the message, four bytes each (criu/include/magic.h, criu/protobuf.c).
    let (length, message) = stats.get(8..)?.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let statistics = Statistics::decode(message.get(..length)?).ok()?;
    Some(Duration::from_micros(statistics.dump?.frozen_time.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Checkpoint {
        Checkpoint { name: name.into(), tcp: true, empty_ns: vec!["network".into()], ..Checkpoint::default() }
    }

    #[test]
    fn one_is_there_when_it_is_finished_and_not_before() {
        let directory = tempfile::tempdir().expect("tempdir");
        let checkpoints = Checkpoints::new(None, directory.path()).expect("a path");
        assert_eq!(checkpoints.list().expect("no directory"), []);
        let begun = checkpoints.begin(&named("a")).expect("begins");
        assert_eq!(checkpoints.list().expect("lists"), []);
        assert!(matches!(checkpoints.begin(&named("a")), Err(BeginError::UnderWay { .. })));
        std::fs::write(begun.images().join("pages-1.img"), "x").expect("writes");
        begun.finish().expect("finishes");
        let listed = checkpoints.list().expect("lists");
        let files = BTreeMap::from([("pages-1.img".to_string(), 1)]);
        assert_eq!(listed, [Checkpoint { files, ..named("a") }]);
        assert_eq!(checkpoints.check(&listed[0]).expect("is whole"), 1);
        std::fs::write(checkpoints.path("a").join("pages-1.img"), "").expect("writes");
        assert!(checkpoints.check(&listed[0]).expect_err("is damaged").to_string().contains("pages-1.img"));
        assert!(matches!(checkpoints.begin(&named("a")), Err(BeginError::Exists(_))));
        assert!(checkpoints.remove("a").expect("removes"));
        assert!(!checkpoints.remove("a").expect("is gone"));
        assert_eq!(std::fs::read_dir(directory.path().join("checkpoints")).expect("lists").count(), 0);
    }

    #[test]
    fn what_was_left_half_made_is_replaced_and_what_may_be_whole_is_not() {
        let directory = tempfile::tempdir().expect("tempdir");
        let checkpoints = Checkpoints::new(Some(directory.path()), Path::new("/nonexistent")).expect("a path");
        // As when its daemon dies. A child that another test has just forked may hold it for a moment longer, and with it
        // the lock, which is therefore taken off first.
        let leave = |left: Partial| flock(left.lock(), FlockOperation::Unlock).expect("unlocks");
        let left = checkpoints.begin(&named("a")).expect("begins");
        std::fs::write(left.images().join("core-1.img"), "x").expect("writes");
        leave(left);
        let left = checkpoints.begin(&named("a")).expect("begins again");
        assert!(!left.images().join("core-1.img").exists());
        std::fs::write(left.images().join(LAST_IMAGE), "x").expect("writes");
        leave(left);
        assert!(matches!(checkpoints.begin(&named("a")), Err(BeginError::UnderWay { .. })));
        let found = Partial::wait_for(&checkpoints.path("a")).expect("looks").expect("is there");
        assert!(found.is_dumped());
        found.discard().expect("removes");
        assert!(Partial::wait_for(&checkpoints.path("a")).expect("looks").is_none());
    }

    #[test]
    fn nothing_outside_is_touched() {
        let directory = tempfile::tempdir().expect("tempdir");
        let outside = directory.path().join("outside");
        std::fs::create_dir(&outside).expect("makes");
        std::fs::write(outside.join(CONFIG), "{}").expect("writes");
        let inside = directory.path().join("inside");
        std::fs::create_dir(&inside).expect("makes");
        std::os::unix::fs::symlink(&outside, inside.join("link")).expect("links");
        std::fs::create_dir(inside.join("other")).expect("makes");
        std::fs::create_dir_all(inside.join("bundle/criu.work")).expect("makes");
        std::fs::write(inside.join("bundle").join(CONFIG), r#"{"ociVersion":"1.0.2"}"#).expect("writes");
        let checkpoints = Checkpoints::new(Some(&inside), Path::new("/")).expect("a path");
        for name in ["../outside", "link", "other", "bundle", "", "."] {
            assert!(!checkpoints.remove(name).expect("refuses"), "{name}");
            assert_eq!(checkpoints.find(name).expect("refuses"), None, "{name}");
        }
        assert!(outside.join(CONFIG).exists());
        assert!(inside.join("other").exists() && inside.join("bundle").join(CONFIG).exists());
        assert_eq!(checkpoints.list().expect("lists"), []);
    }

    #[test]
    fn the_reasons_in_a_log_are_found() {
        let log = "(00.06) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
            (00.09) Warn  (criu/seize.c:404): x\n(00.09) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.\n\
            Error (criu/util.c:641): execvp(\"iptables-restore\", ...) failed: No such file or directory\n\
            (00.17) Error (criu/util.c:656): exited, status=1\n(00.18) Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
        let told = errors_in(log).expect("some");
        let expected = "inet: Connected TCP socket, consider using --tcp-established option.; \
            execvp(\"iptables-restore\", ...) failed: No such file or directory";
        assert_eq!(told, expected);
        assert_eq!(errors_in("(00.1) all well\n"), None);
        assert_eq!(criu_errors(Path::new("/nonexistent")), None);
    }

    #[test]
    fn the_flags_are_those_of_the_runtime() {
        assert_eq!(named("a").flags(), ["--tcp-established", "--empty-ns", "network"]);
    }

    #[test]
    fn the_time_frozen_is_found_in_crius_statistics() {
        let dump = Some(DumpStatistics { frozen_time: 81_234 });
        let message = Statistics { dump }.encode_to_vec();
        let mut file = vec![0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57];
        file.extend_from_slice(&(message.len() as u32).to_le_bytes());
        file.extend_from_slice(&message);
        assert_eq!(frozen_in(&file), Some(Duration::from_micros(81_234)));
        for end in 0..file.len() {
            assert_eq!(frozen_in(&file[..end]), None);
        }
    }
}
