//! Sealed copies of OCI runtimes in memory, which no process can change (memfd_create(2)).
//!
//! A container could write to the runtime's file through `/proc/<pid>/exe`. crun and runc prevent that: each time they
//! start, they make a sealed copy or a read-only mount of their own file and execute that. If they are started from a
//! sealed copy, they recognise it and skip this step. The daemon therefore makes one copy and starts all runtimes from
//! it.

use contract::RuntimeCopy;
use rustix::fs::{
    AtFlags, CWD, MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags, StatxFlags, fcntl_add_seals, makedev,
    memfd_create, openat2, statx,
};
use rustix::io::Errno;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use sys::exhausted::is_exhausted;

/// The names of the programs that do so. A version or an architecture may follow, as in `crun-1.21` and `runc.amd64`. A
/// file with such a name that is not ELF is a wrapper and is not copied.
const NAMES: [&str; 2] = ["crun", "runc"];

/// Returns whether a program has one of the names.
fn is_known(path: &Path) -> bool {
    let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
    let is_its = |known: &&str| {
        name.strip_prefix(known.as_bytes()).is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_punctuation))
    };
    NAMES.iter().any(is_its)
}

/// How many copies are kept at most: more than any host has such runtimes.
const MOST: usize = 4;

/// The largest program that is copied.
const LARGEST: u64 = 32 << 20;

/// Identifies a version of a program: device, inode, size, and the time of the last change, since a new file may have
/// the inode of the file that it replaced.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity(u64, u64, u64, (i64, i64));

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Identity {
        Identity(metadata.dev(), metadata.ino(), metadata.len(), (metadata.ctime(), metadata.ctime_nsec()))
    }

    /// Identifies the program at `path` without waiting for any file system. Returns `None` if the kernel does not have
    /// the path in its cache.
    fn at_once(path: &Path) -> Option<Identity> {
        // RESOLVE_CACHED prevents lookups on the file system (openat2(2)), and AT_STATX_DONT_SYNC requests to its
        // server (statx(2)).
        let handle = openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED).ok()?;
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(&handle, "", flags, StatxFlags::BASIC_STATS).ok()?;
        let changed = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec.into());
        Some(Identity(makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino, stat.stx_size, changed))
    }
}

/// A sealed copy of a runtime.
#[derive(Debug)]
pub(crate) struct Sealed {
    file: OwnedFd,
    device: u64,
    inode: u64,
}

#[derive(Debug)]
struct Known {
    path: PathBuf,
    identity: Identity,
    /// Empty while the copy is being made, and if it could not be made.
    copy: Arc<OnceLock<Arc<Sealed>>>,
}

/// The copies of this process. They are shared by all parts of the program, since each starts the same file.
static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

impl Sealed {
    /// Returns the copy of the runtime at `path`, if it exists yet. The first call starts to make it in the background,
    /// as does the first call after the program has been replaced.
    pub(crate) fn of(path: &Path) -> Option<Arc<Sealed>> {
        if !is_known(path) {
            return None;
        }
        let identity = Identity::at_once(path)?;
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|one| one.path != path || one.identity == identity);
        if let Some(one) = known.iter().find(|one| one.path == path) {
            return one.copy.get().cloned();
        }
        if known.len() < MOST && identity.2 <= LARGEST {
            let copy = Arc::new(OnceLock::new());
            known.push(Known { path: path.to_path_buf(), identity: identity.clone(), copy: copy.clone() });
            let path = path.to_path_buf();
            let make = move || {
                // No caller waits for the copy, so this thread, whose priority is its own (nice(2)), yields to others.
                // It must therefore not hold a lock for which a container's start might wait, except when resources run
                // out.
                let _ = rustix::process::nice(19);
                match Sealed::make(&path, &identity) {
                    Ok(Some(made)) => drop(copy.set(Arc::new(made))),
                    Ok(None) => {}
                    // Forget the attempt, so that the next call tries again.
                    Err(e) if is_exhausted(&e) => {
                        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
                        known.retain(|one| !Arc::ptr_eq(&one.copy, &copy));
                    }
                    Err(e) => tracing::debug!(
                        "cannot copy {} into memory, so that its file is run instead: {e}",
                        path.display()
                    ),
                }
            };
            if std::thread::Builder::new().name("copy".into()).spawn(make).is_err() {
                known.pop();
            }
        }
        None
    }

    /// Makes the copy. Returns `None` if the file is not such a program, or has changed meanwhile.
    fn make(path: &Path, identity: &Identity) -> io::Result<Option<Sealed>> {
        let mut program = File::open(path)?;
        let mut magic = [0; 4];
        program.read_exact(&mut magic)?;
        // A setuid or setgid program has its owner's rights only when it is run from its file.
        if magic != *b"\x7fELF" || program.metadata()?.mode() & 0o6000 != 0 {
            return Ok(None);
        }
        let name = path.file_name().unwrap_or_default();
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before Linux 6.3 do not know MFD_EXEC, and allow to execute the file without it.
        let file = match memfd_create(name, flags | MemfdFlags::EXEC) {
            Err(Errno::INVAL) => memfd_create(name, flags),
            result => result,
        }?;
        let mut copy = File::from(file);
        io::copy(&mut io::Cursor::new(magic).chain(&mut program), &mut copy)?;
        // The program must not have been written to or replaced meanwhile.
        if Identity::of(&program.metadata()?) != *identity || copy.metadata()?.len() != program.metadata()?.len() {
            return Ok(None);
        }
        // runc and crun check for exactly these seals (libcontainer/nsenter/cloned_binary.c).
        fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        let metadata = copy.metadata()?;
        // Mapping the program's pages takes a tenth of the time of a call of runc. If huge pages are not possible, the
        // copy works as a file does.
        if let Err(e) = sys::huge_pages::collapse(&copy, usize::try_from(metadata.len()).unwrap_or_default()) {
            tracing::debug!("cannot put the copy of {} into huge pages: {e}", path.display());
        }
        Ok(Some(Sealed { file: copy.into(), device: metadata.dev(), inode: metadata.ino() }))
    }

    /// Returns how a child finds the copy.
    pub(crate) fn named(&self) -> RuntimeCopy {
        RuntimeCopy { descriptor: self.file.as_raw_fd(), device: self.device, inode: self.inode }
    }
}

impl AsFd for Sealed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for(path: &Path) -> Arc<Sealed> {
        let begun = std::time::Instant::now();
        loop {
            if let Some(copy) = Sealed::of(path) {
                return copy;
            }
            assert!(begun.elapsed().as_secs() < 20, "no copy of {}", path.display());
            std::thread::yield_now();
        }
    }

    #[test]
    fn copy_follows_the_program_and_is_read_only() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let path = directory.path().join("crun");
        for program in ["/bin/true", "/bin/sh"] {
            let _ = std::fs::remove_file(&path);
            std::fs::copy(program, &path).expect("copies");
            let copy = wait_for(&path);
            let through = format!("/proc/self/fd/{}", copy.named().descriptor);
            assert!(std::fs::read(&through).expect("reads") == std::fs::read(program).expect("reads"));
            assert!(
                File::options()
                    .write(true)
                    .open(&through)
                    .and_then(|mut file| io::Write::write(&mut file, b"x"))
                    .is_err()
            );
            assert!(Arc::ptr_eq(&copy, &wait_for(&path)), "it is not made again");
        }
        std::fs::remove_file(&path).expect("removes");
        assert!(Sealed::of(&path).is_none());
    }

    #[test]
    fn runtime_names_may_have_a_suffix_after_punctuation() {
        let all = ["/a/crun", "runc", "/b/crun-1.21", "runc.amd64", "crun_x", "/x/crunch", "runcvm", "xrunc", "/"];
        assert_eq!(all.map(|name| is_known(Path::new(name))).iter().filter(|known| **known).count(), 5);
        assert!(is_known(Path::new(all[4])) && !is_known(Path::new(all[5])));
    }

    #[test]
    fn wrappers_and_other_programs_are_not_copied() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let script = directory.path().join("runc");
        std::fs::write(&script, "#!/bin/sh\nexec true\n").expect("writes");
        let identity = Identity::of(&script.metadata().expect("is there"));
        assert!(Sealed::make(&script, &identity).expect("reads").is_none());
        assert!(Sealed::of(Path::new("/bin/true")).is_none());
        let other = Identity::of(&Path::new("/bin/sh").metadata().expect("is there"));
        assert!(Sealed::make(Path::new("/bin/true"), &other).expect("reads").is_none(), "it was replaced meanwhile");
    }
}
