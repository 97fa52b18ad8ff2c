//! Opening what the client named, so that neither side's closing breaks the other.
//!
//! Of a FIFO both ends are opened here: nobody's coming or going is ever seen as an end of file or a broken
//! pipe, and nothing waits for the other side (fifo(7)).

use alloc::format;
use alloc::string::ToString;
use contract::Request;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl, fstat, open};
use rustix::io;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Context, Failure};

/// A descriptor of the client's, opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    /// The other end, if it is a FIFO.
    pub(crate) keeper: Option<OwnedFd>,
}

/// Which way bytes go through a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    FromClient,
    ToClient,
}

/// Opens `path`; `None` for an empty one and for `/dev/null`.
pub(crate) fn open_client(name: &str, path: &str, direction: Direction) -> Result<Option<Opened>, Failure> {
    if path.is_empty() {
        return Ok(None);
    }
    open_path(path, direction).map_err(|e| Failure::Stdio(format!("open {name} {path}"), e))
}

fn open_path(path: &str, direction: Direction) -> io::Result<Option<Opened>> {
    let handle = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&handle)?;
    // What was looked at is what is opened, whatever is under the path by now.
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

/// Opens the reading end of a FIFO again, of which the writing end is open. It need not have a name any more.
pub(crate) fn reading_end(sink: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", sink.as_raw_fd());
    open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

/// A pipe for the process, owned by the container's root: (the process's end, ours).
pub(crate) fn process_pipe(request: &Request, direction: Direction) -> Result<(OwnedFd, OwnedFd), Failure> {
    let what = || "make a stdio pipe".to_string();
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context(what)?;
    if request.root_uid != 0 || request.root_gid != 0 {
        let (uid, gid) = (Uid::from_raw(request.root_uid), Gid::from_raw(request.root_gid));
        fchown(&read, Some(uid), Some(gid)).context(|| "give a stdio pipe to the container's root".into())?;
    }
    let (theirs, ours) = if direction == Direction::FromClient { (read, write) } else { (write, read) };
    set_nonblocking(&ours).context(what)?;
    Ok((theirs, ours))
}

/// Makes reads and writes through this open file return at once.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
}
