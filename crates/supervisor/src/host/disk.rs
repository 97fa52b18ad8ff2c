//! Threads for work that may wait for a file system, so that it delays no other work. Work on paths of clients, which may be on
//! any file system, has threads of its own: if they all hang, the rest of the daemon goes on.
//!
//! One thread of each kind always exists, so that no work waits for ever on a machine that cannot start another thread. More
//! threads are started when they are needed, and end when they have been idle for a while. tokio's own pool cannot do that: where
//! it cannot start a thread, work waits until more work is given to it (tokio::runtime::blocking).

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

use crate::error::Error;

/// The largest number of threads of each kind.
const MOST: usize = 64;

/// How long an idle thread stays.
const KEEP: Duration = Duration::from_secs(1);

/// The size of a thread's stack, in bytes. The threads do little: they read small files.
const STACK: usize = 512 << 10;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

#[derive(Default)]
struct Pool {
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// For files of the daemon and of the kernel.
static OWN: OnceLock<Pool> = OnceLock::new();

/// For paths that clients name.
static CLIENTS: OnceLock<Pool> = OnceLock::new();

/// Starts the first threads, if they do not run.
pub(crate) fn begin() -> io::Result<()> {
    begin_in(&OWN)?;
    begin_in(&CLIENTS)
}

fn begin_in(pool: &'static OnceLock<Pool>) -> io::Result<()> {
    let pool = pool.get_or_init(Pool::default);
    let mut queue = pool.lock();
    if queue.threads == 0 {
        pool.start_thread(true)?;
        queue.threads = 1;
    }
    Ok(())
}

/// Number of threads for reading the files of many containers. Cached, because `available_parallelism` reads cgroup files.
pub(crate) fn bulk_threads() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Runs `work`, which looks at files of the daemon or of the kernel, in a thread for such files.
pub(crate) async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    run(&OWN, work).await
}

/// Runs `work`, which looks at paths that a client has named, in a thread for such paths.
pub(crate) async fn on_clients_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    run(&CLIENTS, work).await
}

async fn run<T: Send + 'static>(
    pool: &'static OnceLock<Pool>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let (sender, result) = oneshot::channel();
    let runtime = tokio::runtime::Handle::try_current().ok();
    let job = move || {
        let _runtime = runtime.as_ref().map(tokio::runtime::Handle::enter);
        // The caller may have gone away.
        let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
    };
    begin_in(pool).map_err(Error::system("start a thread"))?;
    pool.get_or_init(Pool::default).push(Box::new(job));
    match result.await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(e) => Err(Error::System { operation: "read files", source: io::Error::other(e) }),
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Held for plain assignments only.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&'static self, job: Job) {
        let mut queue = self.lock();
        queue.jobs.push_back(job);
        if queue.idle >= queue.jobs.len() {
            // The woken thread would only wait for the lock.
            drop(queue);
            self.wake.notify_one();
        } else if queue.threads < MOST {
            // If no thread can be started, the threads that exist take up the work in their turn.
            if self.start_thread(false).is_ok() {
                queue.threads += 1;
            }
        }
    }

    fn start_thread(&'static self, stays: bool) -> io::Result<()> {
        let builder = std::thread::Builder::new().name("disk".into()).stack_size(STACK);
        builder.spawn(move || self.work(stays)).map(drop)
    }

    fn work(&self, stays: bool) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.lock();
                continue;
            }
            queue.idle += 1;
            let waited = if stays {
                (self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner), false)
            } else {
                let (queue, timeout) = self.wake.wait_timeout(queue, KEEP).unwrap_or_else(PoisonError::into_inner);
                (queue, timeout.timed_out())
            };
            queue = waited.0;
            queue.idle -= 1;
            if waited.1 && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_hangs_delays_no_other() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Arc::new(Mutex::new(held));
        let hanging: Vec<_> = (0..10)
            .map(|_| {
                let held = held.clone();
                tokio::spawn(on_disk(move || held.lock().expect("lock").recv().is_ok()))
            })
            .collect();
        for n in 0..100 {
            assert_eq!(on_disk(move || n).await.expect("runs"), n);
        }
        for _ in &hanging {
            release.send(()).expect("the work waits");
        }
        for one in hanging {
            assert!(one.await.expect("no panic").expect("runs"));
        }
    }

    #[tokio::test]
    async fn clients_file_systems_that_hang_delay_only_their_like() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Arc::new(Mutex::new(held));
        let hanging: Vec<_> = (0..MOST * 2)
            .map(|_| {
                let held = held.clone();
                tokio::spawn(on_clients_disk(move || held.lock().expect("lock").recv().is_ok()))
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(on_disk(|| 1).await.expect("runs"), 1);
        for _ in &hanging {
            release.send(()).expect("the work waits");
        }
        for one in hanging {
            assert!(one.await.expect("no panic").expect("runs"));
        }
    }

    #[tokio::test]
    async fn panic_is_passed_on_and_threads_go_on() {
        let failed = tokio::spawn(on_disk(|| panic!("on purpose"))).await;
        assert!(failed.expect_err("panics").is_panic());
        assert_eq!(on_disk(|| 1).await.expect("runs"), 1);
    }
}
