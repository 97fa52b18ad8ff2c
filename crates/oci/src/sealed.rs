//! Copies of OCI runtimes in memory that nobody can change (memfd_create(2), sealed).
//!
//! crun and runc never run their own file near a container, which could write to it through `/proc/<pid>/exe`: each time
//! they first make such a copy, or a read-only mount of themselves, and begin again from there. From a sealed copy they
//! see that this has been done, and go on at once. One copy serves all.

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

/// The names of the programs that do so, a version or an architecture behind them or not: `crun-1.21`, `runc.amd64`. What
/// has such a name and is no ELF file is a wrapper, and is left alone.
const NAMES: [&str; 2] = ["crun", "runc"];

fn is_known(path: &Path) -> bool {
    let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
    let is_its = |known: &&str| {
        name.strip_prefix(known.as_bytes()).is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_punctuation))
    };
    NAMES.iter().any(is_its)
}

/// More than any host has of them, and the most that one may take.
const MOST: usize = 4;
const LARGEST: u64 = 32 << 20;

/// A program as it is now, by what changes when it is replaced: device, inode, size, and the time of its last change,
/// since a new file may have the inode of the one before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity(u64, u64, u64, (i64, i64));

impl Identity {
    pub(crate) fn of(metadata: &Metadata) -> Identity {
        Identity(metadata.dev(), metadata.ino(), metadata.len(), (metadata.ctime(), metadata.ctime_nsec()))
    }

    /// The same without waiting for any file system; `None` where the kernel does not know the path.
    fn at_once(path: &Path) -> Option<Identity> {
        // openat2(2): nothing that is not cached is looked up. statx(2): nothing is asked of a server.
        let handle = openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED).ok()?;
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(&handle, "", flags, StatxFlags::BASIC_STATS).ok()?;
        let changed = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec.into());
        Some(Identity(makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino, stat.stx_size, changed))
    }
}

/// The copy of a runtime.
#[derive(Debug)]
pub(crate) struct Sealed {
    file: OwnedFd,
    device: u64,
    inode: u64,
}

/// Where a child of this process finds a copy, and how it knows it: a descriptor's number may be another one's by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub struct RuntimeCopy {
    /// The descriptor's number, in its parent.
    pub descriptor: i32,
    /// The file's device.
    pub device: u64,
    /// The file's inode.
    pub inode: u64,
}

#[derive(Debug)]
struct Known {
    path: PathBuf,
    identity: Identity,
    /// Empty while it is made, and if it cannot be.
    copy: Arc<OnceLock<Arc<Sealed>>>,
}

/// The file of a program is the same for whoever starts it.
static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

impl Sealed {
    /// The copy of the runtime at `path`, if there is one by now. It is made in the background when it is first asked for,
    /// and again when the program has been replaced.
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
                // Nobody waits for it, and others have work to do: nice(2), which is a thread's own. So it takes no lock that
                // a start may wait for, unless there is nothing to be had.
                let _ = rustix::process::nice(19);
                match Sealed::make(&path, &identity) {
                    Ok(Some(made)) => drop(copy.set(Arc::new(made))),
                    Ok(None) => {}
                    // Tried again when it is asked for again.
                    Err(e) if is_exhausted(&e) => {
                        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
                        known.retain(|one| !Arc::ptr_eq(&one.copy, &copy));
                    }
                    Err(e) => tracing::debug!("no copy of {} in memory, it is run from its file: {e}", path.display()),
                }
            };
            if std::thread::Builder::new().name("copy".into()).spawn(make).is_err() {
                known.pop();
            }
        }
        None
    }

    /// None for what is no program of the kind.
    fn make(path: &Path, identity: &Identity) -> io::Result<Option<Sealed>> {
        let mut program = File::open(path)?;
        let mut magic = [0; 4];
        program.read_exact(&mut magic)?;
        // With the rights of its owner it must be run from its file.
        if magic != *b"\x7fELF" || program.metadata()?.mode() & 0o6000 != 0 {
            return Ok(None);
        }
        let name = path.file_name().unwrap_or_default();
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // An older kernel does not know the flag, nor forbids what it allows (Linux 6.3).
        let file = match memfd_create(name, flags | MemfdFlags::EXEC) {
            Err(Errno::INVAL) => memfd_create(name, flags),
            result => result,
        }?;
        let mut copy = File::from(file);
        io::copy(&mut io::Cursor::new(magic).chain(&mut program), &mut copy)?;
        // Neither one that has been written to meanwhile nor another one.
        if Identity::of(&program.metadata()?) != *identity || copy.metadata()?.len() != program.metadata()?.len() {
            return Ok(None);
        }
        // These, and no others, are what runc and crun look for (libcontainer/nsenter/cloned_binary.c).
        fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        let metadata = copy.metadata()?;
        // A tenth of what a call of runc takes is the mapping of its pages. Where this cannot be, they are as those of a file.
        if let Err(e) = sys::huge_pages::collapse(&copy, usize::try_from(metadata.len()).unwrap_or_default()) {
            tracing::debug!("no huge pages for the copy of {}: {e}", path.display());
        }
        Ok(Some(Sealed { file: copy.into(), device: metadata.dev(), inode: metadata.ino() }))
    }

    /// How a child finds it.
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
    fn a_copy_is_the_program_as_it_is_now() {
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
    fn names_may_have_a_version_and_may_not_be_others() {
        let all = ["/a/crun", "runc", "/b/crun-1.21", "runc.amd64", "crun_x", "/x/crunch", "runcvm", "xrunc", "/"];
        assert_eq!(all.map(|name| is_known(Path::new(name))).iter().filter(|known| **known).count(), 5);
        assert!(is_known(Path::new(all[4])) && !is_known(Path::new(all[5])));
    }

    #[test]
    fn wrappers_and_others_are_run_as_they_are() {
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
