//! The OCI runtimes: looking them up, where they keep their containers, and what they can do.

use oci::{Abilities, Ability, Oci, OciError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::config::Config;
use crate::error::{Error, shorten};

/// All runtimes of one supervisor.
#[derive(Debug)]
pub(crate) struct Runtimes {
    /// The runtime of containers that name none, and its arguments.
    default: (String, Vec<String>),
    /// Where runtimes keep the containers that name no root of their own.
    root: PathBuf,
    call_timeout: Duration,
    abilities: Abilities,
    /// The runtime that was looked up last.
    last: Mutex<Option<Oci>>,
}

impl Runtimes {
    pub(crate) fn new(config: &Config) -> Runtimes {
        Runtimes {
            default: (config.runtime.clone(), config.runtime_args.clone()),
            root: own_root(&config.state_dir),
            call_timeout: config.call_timeout,
            abilities: Abilities::default(),
            last: Mutex::default(),
        }
    }

    /// Looks up the runtime of a new container.
    pub(crate) fn find(&self, runtime: Option<&str>, arguments: &[String]) -> Result<Oci, Error> {
        let (name, arguments) = match runtime {
            Some(runtime) => (runtime, arguments.to_vec()),
            None => (self.default.0.as_str(), self.default.1.iter().chain(arguments).cloned().collect()),
        };
        if name.contains('/') && !name.starts_with('/') && runtime.is_some() {
            // It would be relative to the daemon's working directory, which the client does not know.
            let (field, value) = ("runtime", shorten(name));
            return Err(Error::Argument { field, value, reason: "must be a name or an absolute path" });
        }
        // Runtimes that share a root do not understand each other's containers there.
        let directory = Path::new(name).file_name().unwrap_or_default();
        let found = Oci::find(name, oci::with_root(arguments, &self.root.join(directory)))?;
        if self.has_own_root(&found) {
            self.make_own_root()?;
        }
        // Containers with the same runtime share one copy of it.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = last.as_ref().filter(|last| **last == found) {
            return Ok(same.clone());
        }
        *last = Some(found.clone());
        Ok(found)
    }

    /// Whether a runtime keeps its containers where no other program has any.
    pub(crate) fn has_own_root(&self, oci: &Oci) -> bool {
        oci.root().is_some_and(|root| root.starts_with(&self.root))
    }

    /// Makes the runtimes' own root, if it is not there. A directory of another user is refused.
    fn make_own_root(&self) -> Result<(), Error> {
        let failed = || Error::system("make the runtimes' root beside the state directory");
        match std::fs::DirBuilder::new().mode(0o700).create(&self.root) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => return result.map_err(failed()),
        }
        let found = std::fs::symlink_metadata(&self.root).map_err(failed())?;
        if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        let odd = format!("{} is not a directory of this user's", self.root.display());
        Err(failed()(std::io::Error::other(odd)))
    }

    /// Refuses what a runtime cannot do. The runtime is asked once for each ability.
    pub(crate) async fn check_ability(&self, oci: &Oci, ability: Ability) -> Result<(), Error> {
        match self.abilities.has(oci, ability, self.call_timeout).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Inability { runtime: oci.name().to_string(), ability }),
            Err(e) if OciError::means_missing(&e) => Err(Error::RuntimeMissing(oci.name().to_string())),
            Err(e) => Err(Error::Runtime(format!("{} cannot be asked what it can do: {e}", oci.name()))),
        }
    }
}

/// Where runtimes keep the containers that name no root. It is beside the state directory, where an older daemon would take
/// each directory for a container, and no other daemon uses it.
fn own_root(state_dir: &Path) -> PathBuf {
    let mut name = state_dir.file_name().unwrap_or_default().to_os_string();
    name.push("-runtime");
    state_dir.with_file_name(name)
}
