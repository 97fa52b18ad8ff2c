//! Starting a shim.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::child::Child;
use crate::oci::{Oci, find_program};
use crate::process_dir::ProcessDir;

/// The shim program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shim(PathBuf);

impl Shim {
    /// Looks the shim up: a path as it is; a name beside this program first, then in `PATH`.
    pub fn find(name: &str) -> io::Result<Shim> {
        let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
        let beside = beside.filter(|path| !name.contains('/') && path.is_file());
        beside
            .or_else(|| find_program(name))
            .map(Shim)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no shim {name}")))
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Starts a shim for the process in `directory`, in which everything must be ready for it.
    pub fn start(&self, id: &str, bundle: &str, oci: &Oci, directory: &ProcessDir) -> io::Result<Child> {
        let mut command = Command::new(&self.0);
        command.args([id, bundle]).arg(oci.binary()).current_dir(directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Child::spawn(&mut command)
    }
}
