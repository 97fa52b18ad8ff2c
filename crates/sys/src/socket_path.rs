//! Paths of unix sockets of any length.
//!
//! `sockaddr_un` has room for 108 bytes (unix(7)). A longer path is reached through `/proc/self/fd`: the directory, or the
//! socket itself, is opened with `O_PATH`, and the kernel resolves the short path to the descriptor.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The bytes of `sun_path`, with the zero that ends it.
const SUN_PATH: usize = 108;

/// A path that fits into a socket address. It is valid in this process, for as long as this value lives: pass it by
/// reference to functions that may drop it before they use it, as tokio's do.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// What a path below `/proc/self/fd` leads through.
    _held: Option<OwnedFd>,
}

impl SocketPath {
    /// Returns a path by which the socket at `path` can be connected to.
    pub fn to_connect(path: &Path) -> io::Result<SocketPath> {
        if fits(path) {
            return Ok(SocketPath { path: path.to_path_buf(), _held: None });
        }
        let socket = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(SocketPath { path: through(&socket), _held: Some(socket) })
    }

    /// Returns a path at which a socket can be bound, so that it appears at `path`. Its directory must exist, and
    /// of a path that is too long by itself the last part has at most 80 bytes.
    pub fn to_bind(path: &Path) -> io::Result<SocketPath> {
        if fits(path) {
            return Ok(SocketPath { path: path.to_path_buf(), _held: None });
        }
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = through(&directory).join(name);
        if !fits(&path) {
            return Err(Errno::NAMETOOLONG.into());
        }
        Ok(SocketPath { path, _held: Some(directory) })
    }
}

impl AsRef<Path> for SocketPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

fn fits(path: &Path) -> bool {
    path.as_os_str().as_bytes().len() < SUN_PATH
}

fn through(held: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    /// A directory whose path has more bytes than a socket address.
    fn deep(name: &str) -> (PathBuf, PathBuf) {
        let top = std::env::temp_dir().join(format!("socket-path-{name}-{}", std::process::id()));
        let deep = top.join("d".repeat(100)).join("e".repeat(200));
        std::fs::create_dir_all(&deep).expect("makes");
        (top, deep)
    }

    #[test]
    fn socket_with_a_long_path_is_bound_and_connected_to() {
        let (top, deep) = deep("long");
        let path = deep.join("containerd.sock");
        assert!(UnixListener::bind(&path).is_err(), "std takes no path of that length");
        let listener = UnixListener::bind(SocketPath::to_bind(&path).expect("a path")).expect("binds");
        assert!(path.exists());
        let _client = UnixStream::connect(SocketPath::to_connect(&path).expect("a path")).expect("connects");
        listener.accept().expect("accepts");
        std::fs::remove_dir_all(&top).expect("removes");
    }

    #[test]
    fn socket_with_a_long_name_is_connected_to() {
        let (top, deep) = deep("name");
        let path = deep.join("s".repeat(150));
        let error = SocketPath::to_bind(&path).expect_err("is refused");
        assert_eq!(error.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
        let listener = UnixListener::bind(SocketPath::to_bind(&deep.join("s")).expect("a path")).expect("binds");
        std::fs::rename(deep.join("s"), &path).expect("renames");
        let _client = UnixStream::connect(SocketPath::to_connect(&path).expect("a path")).expect("connects");
        listener.accept().expect("accepts");
        std::fs::remove_dir_all(&top).expect("removes");
    }

    #[test]
    fn short_path_is_used_as_it_is() {
        let short = Path::new("/run/containerd/containerd.sock");
        assert_eq!(SocketPath::to_bind(short).expect("fits").as_ref(), short);
        assert_eq!(SocketPath::to_connect(short).expect("fits").as_ref(), short);
        let missing = Path::new("/nowhere").join("m".repeat(200));
        let error = SocketPath::to_connect(&missing).expect_err("is missing");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
