//! The paths that a client gives for a process's stdio, looked at without touching them: opening a FIFO would
//! wake whoever waits for its other side.

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, fstat, open};
use std::path::{Path, PathBuf};

/// Where a process's stdio goes; empty means `/dev/null`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Read from.
    pub stdin: String,
    /// Appended to, or written into if it is a FIFO.
    pub stdout: String,
    /// As `stdout`; unused with a terminal.
    pub stderr: String,
}

/// A stdio path that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{name} {}: {reason}", path.display())]
pub struct StdioError {
    /// `stdin`, `stdout` or `stderr`.
    pub name: &'static str,
    /// The path that was given.
    pub path: PathBuf,
    /// Why it cannot be opened.
    pub reason: std::io::Error,
}

impl Stdio {
    /// Checks that each path can be opened, and makes it absolute.
    pub fn resolve(&self) -> Result<Stdio, StdioError> {
        Ok(Stdio {
            stdin: resolve("stdin", &self.stdin, Access::READ_OK)?,
            stdout: resolve("stdout", &self.stdout, Access::WRITE_OK)?,
            stderr: resolve("stderr", &self.stderr, Access::WRITE_OK)?,
        })
    }
}

fn resolve(name: &'static str, path: &str, access: Access) -> Result<String, StdioError> {
    if path.is_empty() {
        return Ok(String::new());
    }
    look(Path::new(path), access).map_err(|reason| StdioError { name, path: path.into(), reason })
}

fn look(path: &Path, access: Access) -> std::io::Result<String> {
    let absolute = std::path::absolute(path)?;
    let handle = open(&absolute, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    match FileType::from_raw_mode(fstat(&handle)?.st_mode) {
        FileType::Directory => return Err(std::io::ErrorKind::IsADirectory.into()),
        FileType::Socket => return Err(std::io::Error::other("is a socket, which cannot be opened as a file")),
        _ => {}
    }
    // For root this finds read-only file systems and immutable files.
    accessat(CWD, &absolute, access, AtFlags::EACCESS)?;
    absolute.into_os_string().into_string().map_err(|_| std::io::Error::other("is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> Result<Stdio, String> {
        Stdio { stdout: path.into(), ..Stdio::default() }.resolve().map_err(|e| e.to_string())
    }

    #[test]
    fn paths_are_refused_with_the_reason() {
        assert!(check("/nonexistent/x").expect_err("missing").contains("stdout /nonexistent/x: No such file"));
        assert!(check("/tmp").expect_err("a directory").contains("directory"));
        assert!(check("/tmp/a\0b").is_err());
        assert!(check(&format!("/tmp/{}", "x".repeat(5000))).expect_err("long").contains("too long"));
        assert_eq!(check("").expect("null"), Stdio::default());
        assert_eq!(check("/dev/null").expect("null").stdout, "/dev/null");
    }
}
