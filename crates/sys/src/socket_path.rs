//! Paths of unix sockets of any length.
//!
//! `sockaddr_un` has room for 108 bytes (unix(7)). [`SocketPath`] reaches a longer path through `/proc/self/fd`: it
//! opens the directory, or the socket itself, with `O_PATH` and uses the short path of that descriptor.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The size of `sun_path`, including the zero byte that ends it.
const SUN_PATH: usize = 108;

/// A path that fits into a socket address. It is valid in this process only, as long as this value lives. Pass it by
/// reference to functions that might drop it before they use it, such as tokio's.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// The descriptor that a path below `/proc/self/fd` refers to.
    _held: Option<OwnedFd>,
}

impl SocketPath {
    /// Returns a path for connecting to the socket at `path`.
    pub fn to_connect(path: &Path) -> io::Result<SocketPath> {
        if fits(path) {
            return Ok(SocketPath { path: path.to_path_buf(), _held: None });
        }
        let socket = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(SocketPath { path: through(&socket), _held: Some(socket) })
    }

    /// Returns a path for binding a socket that then appears at `path`. The directory must exist. If `path` does not
    /// fit into a socket address, its last component may have at most 80 bytes.
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

    /// Creates a directory whose path does not fit into a socket address.
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
