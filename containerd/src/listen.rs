//! The socket that clients come to.

use anyhow::{Context, Result, bail};
use futures_util::Stream;
use rustix::fs::{Gid, Mode, chown};
use rustix::process::umask;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;

use crate::authority::Connection;

/// How long to wait when no connection can be taken, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket, whose file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    /// Device and inode, to tell the file from a successor's.
    file: (u64, u64),
}

/// Listens at `address`. A socket file that nobody listens on is replaced; one that somebody does is not.
pub(crate) fn listen(address: &str, group: Option<&str>) -> Result<(UnixListener, Socket)> {
    let path = match address.split_once("://") {
        Some(("unix", path)) if !path.is_empty() => std::path::absolute(path)?,
        Some((protocol @ ("tcp" | "fd"), _)) => bail!("cannot listen at {address}: {protocol}:// is not supported yet"),
        _ => bail!("cannot listen at {address:?}: an address is written as unix:///path/of/the/socket"),
    };
    listen_at(&path, group).with_context(|| format!("cannot listen at {}", path.display()))
}

fn listen_at(path: &Path, group: Option<&str>) -> Result<(UnixListener, Socket)> {
    let group = group.map(find_group).transpose()?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    remove_stale(path)?;
    // The file is born with its mode: there is no moment at which others could connect.
    let before = umask(Mode::from_raw_mode(0o117));
    let bound = std::os::unix::net::UnixListener::bind(path);
    umask(before);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    if let Some(group) = group {
        chown(path, None, Some(Gid::from_raw(group))).context("give the socket to its group")?;
    }
    let metadata = std::fs::symlink_metadata(path)?;
    let socket = Socket { path: path.to_path_buf(), file: (metadata.dev(), metadata.ino()) };
    Ok((UnixListener::from_std(listener)?, socket))
}

fn remove_stale(path: &Path) -> Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    if !metadata.file_type().is_socket() {
        bail!("there is something that is no socket");
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another process listens there"),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).context("remove the socket that nobody listens on")
        }
        Err(e) => Err(e).context("find out whether somebody listens there"),
    }
}

/// A group by its number, or by its name in `/etc/group` (group(5)).
fn find_group(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group").context("read /etc/group")?;
    let line = groups.lines().find(|line| line.split(':').next() == Some(name));
    line.and_then(|line| line.split(':').nth(2)?.parse().ok()).with_context(|| format!("there is no group {name}"))
}

impl Drop for Socket {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The connections that come, without end: one that cannot be taken is not the end of the others.
pub(crate) fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> {
    futures_util::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(Connection::new(stream)), listener)),
                Err(e) => {
                    tracing::warn!("cannot take a connection: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}
