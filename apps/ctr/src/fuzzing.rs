//! Private parsers of foreign bytes, for the targets in `fuzz/`.

use anyhow::{Result, anyhow};
use containerd_client::api;
use std::path::Path;

use crate::archive;
use crate::args::ImportCheckpoint;
use crate::user::{self, Files, Wanted};

/// Imports the checkpoint archive `file` into the directory `bundle`, without mounting anything.
pub fn import_archive(file: &Path, bundle: &Path) -> Result<()> {
    let bundle = Some(bundle.to_path_buf());
    archive::read_archive(&ImportCheckpoint { file: file.to_path_buf(), bundle, mount: false, lower: None }).map(drop)
}

/// Resolves `--user TEXT` by the files `etc/passwd` and `etc/group` in `root`.
pub fn resolve_user(text: &str, root: &Path) -> Result<api::User> {
    let wanted = Wanted::parse(text).map_err(|e| anyhow!(e))?;
    let files = Files::of(&user::open_directory(root)?);
    wanted.resolve(&files)
}
