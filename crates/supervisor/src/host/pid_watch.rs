//! Waiting until a shim has written `pid`, without polling. One inotify instance watches all process directories (inotify(7)); it is
//! made when it is first needed. The file appears whole, by a rename.
//!
//! Instances and watches are limited for each user (`fs.inotify.max_user_instances`, `max_user_watches`), and other programs
//! may have used them up. Then the daemon makes a FIFO `.ready` in the process directory, to which the shim writes.

use oci::process_files::{PID, READY};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

type Waiting = Arc<Mutex<HashMap<i32, oneshot::Sender<()>>>>;

/// Watches process directories.
#[derive(Debug, Default)]
pub(crate) struct PidWatcher {
    instance: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    waiting: Waiting,
}

/// The watch of one directory, which ends when this is dropped.
#[derive(Debug)]
pub(crate) enum PidWatch<'a> {
    /// The kernel reports the file by inotify.
    Watched {
        watcher: &'a PidWatcher,
        instance: Arc<AsyncFd<OwnedFd>>,
        descriptor: i32,
        written: oneshot::Receiver<()>,
    },
    /// The shim reports the file through a FIFO, of which this is the reading end.
    Reported(AsyncFd<OwnedFd>),
}

impl PidWatcher {
    /// Watches `directory`. A file that was written before is not reported. Must be called within a tokio runtime.
    pub(crate) fn watch(&self, directory: &Path) -> io::Result<PidWatch<'_>> {
        match self.watch_by_inotify(directory) {
            Err(Errno::MFILE | Errno::NFILE | Errno::NOSPC | Errno::NOMEM) => {
                tracing::debug!("no inotify watch is left (fs.inotify in sysctl): the shim reports through a FIFO");
                Ok(PidWatch::Reported(listen(directory)?))
            }
            result => Ok(result?),
        }
    }

    fn watch_by_inotify(&self, directory: &Path) -> Result<PidWatch<'_>, Errno> {
        let instance = self.instance()?;
        let (sender, written) = oneshot::channel();
        // Held over both steps, so that the event finds its receiver.
        let mut waiting = self.lock();
        let descriptor = inotify::add_watch(&*instance, directory, WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
        waiting.insert(descriptor, sender);
        drop(waiting);
        Ok(PidWatch::Watched { watcher: self, instance, descriptor, written })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<()>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn instance(&self) -> Result<Arc<AsyncFd<OwnedFd>>, Errno> {
        let mut kept = self.instance.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = &*kept {
            return Ok(instance.clone());
        }
        let instance = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let watched = sys::watched::readable(instance).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        let instance = Arc::new(watched);
        *kept = Some(instance.clone());
        tokio::spawn(dispatch_all(instance.clone(), self.waiting.clone()));
        Ok(instance)
    }
}

/// Dispatches all events, as long as the tokio runtime lives.
async fn dispatch_all(instance: Arc<AsyncFd<OwnedFd>>, waiting: Waiting) {
    while let Ok(mut ready) = instance.readable().await {
        if let Err(e) = dispatch(&instance, &waiting) {
            tracing::error!("cannot read inotify events: {e}");
        }
        ready.clear_ready();
    }
}

/// Makes the FIFO, and opens its reading end.
fn listen(directory: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let path = directory.join(READY);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    sys::watched::readable(open(&path, flags, Mode::empty())?)
}

impl PidWatch<'_> {
    /// Waits until `pid` is written.
    pub(crate) async fn written(&mut self) {
        let written = match self {
            PidWatch::Watched { written, .. } => written.await.is_ok(),
            PidWatch::Reported(fifo) => fifo.readable().await.is_ok(),
        };
        if !written {
            // The task that dispatches events has gone, which happens only when the tokio runtime ends.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for PidWatch<'_> {
    fn drop(&mut self) {
        if let PidWatch::Watched { watcher, instance, descriptor, .. } = self {
            watcher.lock().remove(descriptor);
            // This fails if the directory is gone, and the watch with it.
            let _ = inotify::remove_watch(&**instance, *descriptor);
        }
    }
}

fn dispatch(inotify: &AsyncFd<OwnedFd>, waiting: &Waiting) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify.get_ref(), &mut buffer);
    loop {
        let event = match reader.next() {
            Ok(event) => event,
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            // Nobody knows which events were lost: wake all, so that each looks for its file.
            for (_, sender) in waiting.drain() {
                let _ = sender.send(());
            }
        } else if event.file_name().is_some_and(|name| name.to_bytes() == PID.as_bytes()) {
            if let Some(sender) = waiting.remove(&event.wd()) {
                let _ = sender.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rename_to_pid_wakes_and_other_files_do_not() {
        let directory = tempfile::tempdir().expect("tempdir");
        let watcher = PidWatcher::default();
        let mut watch = watcher.watch(directory.path()).expect("watches");
        std::fs::write(directory.path().join(".pid"), "1").expect("writes");
        std::fs::write(directory.path().join("starttime"), "1").expect("writes");
        tokio::task::yield_now().await;
        let PidWatch::Watched { written, .. } = &mut watch else { panic!("there are instances here") };
        assert!(written.try_recv().is_err());
        std::fs::rename(directory.path().join(".pid"), directory.path().join("pid")).expect("renames");
        watch.written().await;
        drop(watch);
        assert!(watcher.waiting.lock().expect("lock").is_empty());
    }

    #[tokio::test]
    async fn fifo_reports_as_soon_as_it_is_written_to() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut watch = PidWatch::Reported(listen(directory.path()).expect("makes a FIFO"));
        let silent = tokio::time::timeout(std::time::Duration::from_millis(20), watch.written()).await;
        assert!(silent.is_err(), "nothing has been written");
        std::fs::write(directory.path().join(READY), "\n").expect("writes");
        watch.written().await;
    }
}
