//! CRIU at work on a container: thawing a container that is killed during a dump, ending a CRIU that hangs, and CRIU's logs.

use oci::criu_errors;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::container::Container;
use crate::container::condition::Thaw;
use crate::container::killing::kill_all;
use crate::error::Error;
use crate::host::disk::on_clients_disk;

/// The largest part of CRIU's log that is kept, in bytes.
const LARGEST_LOG: u64 = 64 << 20;

/// Says that CRIU works on a container, until this is dropped. If init was killed meanwhile, the container is thawed then, since a
/// frozen process may not die.
pub(crate) struct Dumping<'a>(&'a Container);

impl Dumping<'_> {
    pub(crate) fn begin(container: &Container) -> Dumping<'_> {
        container.condition(|condition| condition.dump_begins());
        Dumping(container)
    }
}

impl Drop for Dumping<'_> {
    fn drop(&mut self) {
        let Dumping(container) = self;
        if container.condition(|condition| condition.dump_has_ended()) == Thaw::Now {
            container.thaw_for_kill();
        }
    }
}

/// Refuses checkpoints where CRIU is missing, which makes them for all runtimes.
pub(crate) fn require_criu() -> Result<(), Error> {
    if oci::find_program("criu").is_some() { Ok(()) } else { Err(Error::CriuMissing) }
}

/// Waits for work that does not end before CRIU does, and kills a CRIU that will never end.
///
/// CRIU never ends if the container's init is killed while it works: CRIU waits for what it has init do, and init does not die before
/// the other processes of its PID namespace, which CRIU traces (pid_namespaces(7): the end of its init ends them all). Nothing
/// tells when that begins, so the daemon looks at init from time to time.
pub(crate) async fn while_dumping<T>(id: &str, init: Option<(u32, u64)>, work: impl Future<Output = T>) -> T {
    const LOOK: Duration = Duration::from_millis(500);
    let mut work = std::pin::pin!(work);
    let mut was_ending = false;
    loop {
        if let Ok(done) = tokio::time::timeout(LOOK, &mut work).await {
            return done;
        }
        let Some((pid, starttime)) = init else { continue };
        let stat = sys::procfs::stat(pid).ok().flatten();
        let is_ending = stat.is_some_and(|stat| stat.starttime == starttime && stat.is_ending());
        // A CRIU that stops the container kills init itself, last of all, and ends soon after.
        if !std::mem::replace(&mut was_ending, is_ending) || !is_ending {
            continue;
        }
        match oci::criu_at(pid) {
            Ok(Some(criu)) => {
                tracing::warn!(container = %id, "it is killed; so is the CRIU that makes its checkpoint");
                kill_all([criu]).await;
            }
            Ok(None) => {}
            Err(e) => tracing::warn!(container = %id, "cannot look for its CRIU: {e}"),
        }
    }
}

/// Adds CRIU's reasons to the runtime's message, and keeps CRIU's log.
pub(crate) async fn explain(failed: Error, log: PathBuf, kept: PathBuf) -> Error {
    let Error::Runtime(words) = failed else { return failed };
    let own = words.clone();
    on_clients_disk(move || Error::Runtime(explained(words, &log, &kept))).await.unwrap_or(Error::Runtime(own))
}

fn explained(words: String, log: &Path, kept: &Path) -> String {
    let Some(reasons) = criu_errors(log) else { return words };
    // The runtime names a log that is about to be removed.
    let words = words.lines().filter(|line| !line.contains(&log.display().to_string())).collect::<Vec<_>>().join("; ");
    match keep(log, kept) {
        Ok(()) => format!("{words}: {reasons} (CRIU's log: {})", kept.display()),
        Err(e) => format!("{words}: {reasons} (CRIU's log cannot be kept in {}: {e})", kept.display()),
    }
}

fn keep(log: &Path, kept: &Path) -> std::io::Result<()> {
    let new = kept.with_extension("log.new");
    // An imported checkpoint has no such directory.
    match kept.parent().map(std::fs::create_dir) {
        Some(Err(e)) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let copied = sys::foreign_file::open_regular(log).and_then(|log| {
        // Of a log without end, the beginning is kept.
        std::io::copy(&mut log.take(LARGEST_LOG), &mut File::create(&new)?)?;
        std::fs::rename(&new, kept)
    });
    copied.inspect_err(|_| drop(std::fs::remove_file(&new)))
}
