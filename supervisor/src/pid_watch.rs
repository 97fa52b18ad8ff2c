//! Tells when a shim has written `pid`, without polling: one inotify instance for all process directories
//! (inotify(7)). The file appears whole, by a rename.

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

type Waiting = Arc<Mutex<HashMap<i32, oneshot::Sender<()>>>>;

/// Watches process directories.
#[derive(Debug)]
pub(crate) struct PidWatcher {
    inotify: Arc<AsyncFd<OwnedFd>>,
    waiting: Waiting,
}

/// The watch of one directory, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct PidWatch<'a> {
    watcher: &'a PidWatcher,
    descriptor: i32,
    written: oneshot::Receiver<()>,
}

impl PidWatcher {
    /// Begins to watch; must be called within the runtime.
    pub(crate) fn new() -> io::Result<PidWatcher> {
        let inotify = Arc::new(sys::watched::readable(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)?);
        let waiting = Waiting::default();
        let watcher = PidWatcher { inotify: inotify.clone(), waiting: waiting.clone() };
        tokio::spawn(async move {
            while let Ok(mut ready) = inotify.readable().await {
                if let Err(e) = dispatch(&inotify, &waiting) {
                    tracing::error!("cannot read inotify events: {e}");
                }
                ready.clear_ready();
            }
        });
        Ok(watcher)
    }

    /// Watches `directory`. What was written before is not seen.
    pub(crate) fn watch(&self, directory: &Path) -> io::Result<PidWatch<'_>> {
        let (sender, written) = oneshot::channel();
        // Held over both steps, so that the event finds whom to tell.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let flags = WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let descriptor = inotify::add_watch(&*self.inotify, directory, flags)?;
        waiting.insert(descriptor, sender);
        Ok(PidWatch { watcher: self, descriptor, written })
    }
}

impl PidWatch<'_> {
    /// Waits until `pid` is written.
    pub(crate) async fn written(&mut self) {
        if (&mut self.written).await.is_err() {
            // The inotify task is gone, which it never is before the runtime.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for PidWatch<'_> {
    fn drop(&mut self) {
        self.watcher.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.descriptor);
        // Fails if the directory is gone, and the watch with it.
        let _ = inotify::remove_watch(&*self.watcher.inotify, self.descriptor);
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
            // Which were lost is not known: all look for themselves.
            for (_, sender) in waiting.drain() {
                let _ = sender.send(());
            }
        } else if event.file_name().is_some_and(|name| name == c"pid") {
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
    async fn only_the_renamed_file_wakes() {
        let directory = tempfile::tempdir().expect("tempdir");
        let watcher = PidWatcher::new().expect("inotify");
        let mut watch = watcher.watch(directory.path()).expect("watches");
        std::fs::write(directory.path().join(".pid"), "1").expect("writes");
        std::fs::write(directory.path().join("starttime"), "1").expect("writes");
        tokio::task::yield_now().await;
        assert!(watch.written.try_recv().is_err());
        std::fs::rename(directory.path().join(".pid"), directory.path().join("pid")).expect("renames");
        watch.written().await;
        drop(watch);
        assert!(watcher.waiting.lock().expect("lock").is_empty());
    }
}
