//! The paths that a client gives for a process's stdio. The daemon checks them without opening the files, since opening
//! a FIFO would wake a program that waits for its other end.

use contract::ProcessRecord;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::fs::{accessat, fstat, open, openat2, statx};
use std::path::{Path, PathBuf};

/// The paths of a process's stdio. An empty path means `/dev/null`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// The file that the process reads as stdin.
    pub stdin: String,
    /// The file that stdout is appended to, or the FIFO that it is written to.
    pub stdout: String,
    /// The file or FIFO for stderr. With a terminal, nothing is written there and the path is not checked.
    pub stderr: String,
}

/// A stdio path that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{name} {}: {reason}", path.display())]
pub struct StdioError {
    /// `stdin`, `stdout` or `stderr`.
    pub name: &'static str,
    /// The client's path.
    pub path: PathBuf,
    /// Why it cannot be opened.
    pub reason: std::io::Error,
}

impl Stdio {
    /// The paths in a process's record.
    pub fn of(record: &ProcessRecord) -> Stdio {
        Stdio {
            stdin: record.containerd_stdin.clone(),
            stdout: record.containerd_stdout.clone(),
            stderr: record.containerd_stderr.clone(),
        }
    }

    /// Does what [`Stdio::resolve`] does if that certainly does not wait for a file system: the kernel has each path in
    /// its cache, and each path is a FIFO or a device, which root may open on any file system. Returns `None`
    /// otherwise.
    pub fn resolve_at_once(&self, terminal: bool) -> Option<Stdio> {
        let stderr = if terminal { self.stderr.clone() } else { at_once(&self.stderr)? };
        Some(Stdio { stdin: at_once(&self.stdin)?, stdout: at_once(&self.stdout)?, stderr })
    }

    /// Checks that each path can be opened, and makes it absolute. With a terminal, the path of stderr stays as the
    /// client gave it: clients such as docker name a FIFO there that they never create.
    pub fn resolve(&self, terminal: bool) -> Result<Stdio, StdioError> {
        let stderr = if terminal { self.stderr.clone() } else { resolve("stderr", &self.stderr, Access::WRITE_OK)? };
        Ok(Stdio {
            stdin: resolve("stdin", &self.stdin, Access::READ_OK)?,
            stdout: resolve("stdout", &self.stdout, Access::WRITE_OK)?,
            stderr,
        })
    }
}

fn resolve(name: &'static str, path: &str, access: Access) -> Result<String, StdioError> {
    if path.is_empty() {
        return Ok(String::new());
    }
    look(Path::new(path), access).map_err(|reason| StdioError { name, path: path.into(), reason })
}

fn at_once(path: &str) -> Option<String> {
    if path.is_empty() {
        return Some(String::new());
    }
    let absolute = std::path::absolute(path).ok()?;
    // With RESOLVE_CACHED the kernel neither looks up nor revalidates a path on the file system (openat2(2)).
    let handle = openat2(CWD, &absolute, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED).ok()?;
    // With AT_STATX_DONT_SYNC the kernel does not ask the file system's server (statx(2)). The type of a file never
    // changes.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let mode = statx(&handle, "", flags, StatxFlags::empty()).ok()?.stx_mode;
    let is_meant = matches!(FileType::from_raw_mode(mode.into()), FileType::Fifo | FileType::CharacterDevice);
    is_meant.then(|| absolute.into_os_string().into_string().ok())?
}

fn look(path: &Path, access: Access) -> std::io::Result<String> {
    let absolute = std::path::absolute(path)?;
    let handle = open(&absolute, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    match FileType::from_raw_mode(fstat(&handle)?.st_mode) {
        FileType::Directory => return Err(std::io::ErrorKind::IsADirectory.into()),
        FileType::Socket => return Err(std::io::Error::other("is a socket, which cannot be opened as a file")),
        _ => {}
    }
    // For root this fails on read-only file systems and for immutable files.
    accessat(CWD, &absolute, access, AtFlags::EACCESS)?;
    absolute.into_os_string().into_string().map_err(|_| std::io::Error::other("is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> Result<Stdio, String> {
        Stdio { stdout: path.into(), ..Stdio::default() }.resolve(false).map_err(|e| e.to_string())
    }

    #[test]
    fn unusable_path_is_refused_with_the_reason() {
        assert!(check("/nonexistent/x").expect_err("missing").contains("stdout /nonexistent/x: No such file"));
        assert!(check("/tmp").expect_err("a directory").contains("directory"));
        assert!(check("/tmp/a\0b").is_err());
        assert!(check(&format!("/tmp/{}", "x".repeat(5000))).expect_err("long").contains("too long"));
        assert_eq!(check("").expect("null"), Stdio::default());
        assert_eq!(check("/dev/null").expect("null").stdout, "/dev/null");
    }

    #[test]
    fn stderr_path_of_a_terminal_is_not_checked() {
        let stdio = Stdio { stderr: "/nonexistent/x".into(), ..Stdio::default() };
        assert_eq!(stdio.resolve(true).expect("not looked at"), stdio);
        assert_eq!(stdio.resolve_at_once(true), Some(stdio.clone()));
        assert!(stdio.resolve(false).is_err() && stdio.resolve_at_once(false).is_none());
    }

    #[test]
    fn only_fifos_and_devices_are_resolved_at_once() {
        let at_once = |path: &str| Stdio { stdin: path.into(), ..Stdio::default() }.resolve_at_once(false);
        let directory = std::env::temp_dir().join(format!("stdio-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("creates");
        let (fifo, file) = (directory.join("fifo"), directory.join("file"));
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("makes");
        std::fs::write(&file, "").expect("writes");
        let (fifo, file) = (fifo.to_str().expect("UTF-8"), file.to_str().expect("UTF-8"));
        assert_eq!(at_once(fifo).expect("just made").stdin, fifo);
        assert_eq!(at_once("/dev/null").map(|stdio| stdio.stdin).as_deref(), Some("/dev/null"));
        assert_eq!(at_once(""), Some(Stdio::default()));
        for other in [file, "/nonexistent/x", "/tmp", "/tmp/a\0b"] {
            assert_eq!(at_once(other), None, "{other}");
        }
        std::fs::remove_dir_all(&directory).expect("removes");
    }
}
