//! Starting an OCI runtime.

use alloc::ffi::CString;
use core::ffi::CStr;
use rustix::fd::BorrowedFd;
use rustix::io::{self, Errno};
use rustix::process::Pid;
use sys::spawn::Spawn;

/// One call of a runtime.
#[derive(Debug)]
pub struct Call<'a> {
    /// The runtime, as a path or as a name that is looked up in `PATH`.
    pub program: &'a CStr,
    /// An open copy of the runtime that is run instead, if the kernel can execute it.
    pub copy: Option<BorrowedFd<'a>>,
    /// The environment, as `NAME=value`.
    pub environment: &'a [CString],
    /// The descriptors 0, 1 and 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Whether the kernel kills the runtime when the thread that starts it ends.
    pub dies_with_parent: bool,
}

/// Why a runtime was not started.
#[derive(Debug)]
pub enum StartError {
    /// There is no program under its name: nothing, a directory, or a file that is not executable.
    Missing,
    /// The kernel's error.
    Failed(Errno),
}

impl Call<'_> {
    /// Starts the runtime. The caller reaps the child.
    pub fn start<'b>(&self, arguments: impl IntoIterator<Item = &'b [u8]>) -> Result<Pid, StartError> {
        self.spawn(arguments).map_err(|e| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::ISDIR => StartError::Missing,
            e => StartError::Failed(e),
        })
    }

    fn spawn<'b>(&self, arguments: impl IntoIterator<Item = &'b [u8]>) -> io::Result<Pid> {
        let mut spawn = Spawn::new(self.program, self.environment, self.stdio)?;
        spawn.arguments(arguments)?;
        spawn.file = self.copy;
        spawn.dies_with_parent = self.dies_with_parent;
        spawn.start()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::process::{WaitOptions, waitpid};

    fn start(program: &CStr, arguments: &[&[u8]]) -> Result<Pid, StartError> {
        let null = std::fs::File::open("/dev/null").expect("opens");
        let stdio = [null.as_fd(); 3];
        let call = Call { program, copy: None, environment: &[], stdio, dies_with_parent: false };
        call.start(arguments.iter().copied())
    }

    #[test]
    fn runtime_gets_its_arguments() {
        let pid = start(c"/bin/sh", &[b"-c", b"exit 7"]).expect("starts");
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).expect("a child").expect("has ended");
        assert_eq!(status.exit_status(), Some(7));
    }

    #[test]
    fn missing_runtime_is_told_from_other_errors() {
        for missing in [c"/nonexistent/runc", c"/etc", c"/etc/passwd", c"/etc/passwd/runc"] {
            assert!(matches!(start(missing, &[]), Err(StartError::Missing)), "{missing:?}");
        }
        assert!(matches!(start(c"/bin/sh", &[b"a\0b"]), Err(StartError::Failed(Errno::INVAL))));
    }
}
