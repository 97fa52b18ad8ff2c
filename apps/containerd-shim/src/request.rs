//! Reading what the daemon asks for: `process.json`, and the `config.json` of a checkpoint to restore from.

use alloc::format;
use contract::{BadRequest, CheckpointOptions, FORMAT, NewerFormat, Request, RuntimeCopy, process_files};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, fstat, open};
use rustix::process::getppid;
use shim_core::Context;

use crate::error::Failure;

/// Reads `process.json` in the working directory.
pub(crate) fn read() -> Result<Request, Failure> {
    let text = sys::small_file::read(CWD, process_files::REQUEST).context(|| "read process.json".into())?;
    Request::parse(&text).map_err(|bad| {
        Failure::Request(match bad {
            BadRequest::Malformed(e) => format!("process.json: {e}"),
            BadRequest::Newer(NewerFormat(version)) => format!(
                "process.json: a newer containerd wrote it (format {version}, and this shim knows {FORMAT}): install its shim"
            ),
        })
    })
}

/// The largest `config.json` of a checkpoint that is read. A client names the directory; the daemon has the same limit.
const LARGEST_CONFIG: usize = 4 << 20;

/// Reads the `config.json` of the checkpoint in `directory`.
pub(crate) fn read_checkpoint(directory: &str) -> Result<CheckpointOptions, Failure> {
    let path = format!("{directory}/config.json");
    let text = sys::small_file::read_at_most(CWD, &path[..], LARGEST_CONFIG).context(|| format!("read {path}"))?;
    serde_json::from_slice(&text).map_err(|e| Failure::Request(format!("{path}: {e}")))
}

/// Opens the daemon's copy of the runtime. `None` if the daemon that wrote the request has ended or has closed the copy.
pub(crate) fn open_copy(copy: RuntimeCopy) -> Option<OwnedFd> {
    let path = format!("/proc/{}/fd/{}", getppid()?.as_raw_nonzero(), copy.descriptor);
    // The parent may be another process by now, and the number may name another file. O_PATH looks at the file without
    // opening it.
    let file = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let is_copy = fstat(&file).is_ok_and(|stat| stat.st_dev == copy.device && stat.st_ino == copy.inode);
    is_copy.then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_not_taken_for_the_copy() {
        for descriptor in [-1, 0, 1, 2, 99999] {
            assert!(open_copy(RuntimeCopy { descriptor, device: 1, inode: 1 }).is_none());
        }
    }
}
