//! Opening what the client named for a process's stdio, and making the process's own ends.
//!
//! The shim opens both ends of a FIFO. So the process never sees an end of file or a broken pipe because a client went away,
//! another client may open the FIFO later, and opening does not wait for the other side (fifo(7)).

use alloc::format;
use alloc::string::ToString;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl, fstat, open};
use rustix::io;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Context, Error};

/// A stdio path of a client, opened.
#[derive(Debug)]
pub struct Opened {
    /// The end that the shim reads from or writes to.
    pub fd: OwnedFd,
    /// The other end, if it is a FIFO.
    pub keeper: Option<OwnedFd>,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the process.
    FromClient,
    /// From the process to the client.
    ToClient,
}

/// Opens a client's path. `None` for an empty path and for `/dev/null`.
pub fn open_client(path: &str, direction: Direction) -> io::Result<Option<Opened>> {
    if path.is_empty() {
        return Ok(None);
    }
    let handle = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&handle)?;
    // Through the handle, so that the file that was examined is the one that is opened, even if the path has changed since.
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let reopen = |flags: OFlags| open(path.as_str(), flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty());
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => {
            let read = reopen(OFlags::RDONLY | OFlags::NONBLOCK)?;
            let write = reopen(OFlags::WRONLY | OFlags::NONBLOCK)?;
            let (fd, keeper) = if direction == Direction::FromClient { (read, write) } else { (write, read) };
            Ok(Some(Opened { fd, keeper: Some(keeper) }))
        }
        FileType::CharacterDevice if stat.st_rdev == rustix::fs::makedev(1, 3) => Ok(None),
        _ => {
            let flags = match direction {
                Direction::FromClient => OFlags::RDONLY | OFlags::NONBLOCK,
                Direction::ToClient => OFlags::WRONLY | OFlags::NONBLOCK | OFlags::APPEND,
            };
            Ok(Some(Opened { fd: reopen(flags)?, keeper: None }))
        }
    }
}

/// Opens the reading end of the FIFO whose writing end is `sink`. Works after the FIFO's name was removed.
pub(crate) fn reading_end(sink: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", sink.as_raw_fd());
    open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// The user and the group to which a process's pipes belong: the ids on the host of the container's root.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Makes a pipe for a process. Returns the process's end and the shim's end.
pub(crate) fn process_pipe(owner: Owner, direction: Direction) -> Result<(OwnedFd, OwnedFd), Error> {
    let operation = || "make a stdio pipe".to_string();
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context(operation)?;
    // The shim is root, and so is the owner of a new pipe.
    if owner != Owner::default() {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        fchown(&read, Some(uid), Some(gid)).context(|| "give a stdio pipe to the container's root".into())?;
    }
    let (theirs, ours) = if direction == Direction::FromClient { (read, write) } else { (write, read) };
    set_nonblocking(&ours).context(operation)?;
    Ok((theirs, ours))
}

/// Makes reads and writes through this open file return at once.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
}

/// The ends that a new process gets as its stdio.
#[derive(Debug, Default)]
pub struct ProcessStdio {
    /// The reading end of stdin's pipe.
    pub stdin: Option<OwnedFd>,
    /// The writing end of stdout's pipe.
    pub stdout: Option<OwnedFd>,
    /// The writing end of stderr's pipe.
    pub stderr: Option<OwnedFd>,
}

impl ProcessStdio {
    /// The descriptors 0, 1 and 2 of the process, taken from `null` where it has no pipe.
    pub fn with<'a>(&'a self, null: [BorrowedFd<'a>; 3]) -> [BorrowedFd<'a>; 3] {
        let [stdin, stdout, stderr] = null;
        [
            self.stdin.as_ref().map_or(stdin, AsFd::as_fd),
            self.stdout.as_ref().map_or(stdout, AsFd::as_fd),
            self.stderr.as_ref().map_or(stderr, AsFd::as_fd),
        ]
    }
}
