//! What the daemon is doing at the moment: each call of a client and each use of a runtime, with the time when it began.
//!
//! A container that only runs is not among them, as nothing is being done about it.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::Instrument;

use crate::error::Error;

tokio::task_local! {
    /// The call that is being carried out.
    static CALL: Arc<Call>;
}

/// A call of a client. Operations that outlive their client hold it as well ([`carried_through`]).
struct Call {
    /// Nanoseconds that it has spent in runtimes.
    runtime_time: AtomicU64,
    _token: Box<dyn Send + Sync>,
}

/// One thing that the daemon is doing.
#[derive(Debug, Clone)]
pub struct Task {
    /// What it is.
    pub what: &'static str,
    /// The container it is about; may be empty.
    pub container: String,
    /// The process it is about; may be empty.
    pub process: String,
    /// When it began.
    pub since: Instant,
    /// A client waits for the answer.
    pub is_call: bool,
}

/// Everything that the daemon is doing.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    begun: AtomicU64,
    running: Mutex<BTreeMap<u64, Task>>,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct TaskGuard {
    tasks: Arc<Inner>,
    number: u64,
    in_runtime: Option<Instant>,
}

impl Tasks {
    /// Begins a call of a client.
    pub fn begin_call(&self, what: &'static str, container: &str, process: &str) -> TaskGuard {
        self.begin_one(what, container, process, true)
    }

    /// Begins a task.
    pub fn begin(&self, what: &'static str, container: &str, process: &str) -> TaskGuard {
        self.begin_one(what, container, process, false)
    }

    fn begin_one(&self, what: &'static str, container: &str, process: &str, is_call: bool) -> TaskGuard {
        let number = self.0.begun.fetch_add(1, Ordering::Relaxed);
        let task = Task { what, container: container.into(), process: process.into(), since: Instant::now(), is_call };
        self.0.lock().insert(number, task);
        TaskGuard { tasks: self.0.clone(), number, in_runtime: None }
    }

    /// Begins a task whose time is spent in a runtime.
    pub(crate) fn begin_runtime(&self, what: &'static str, container: &str, process: &str) -> TaskGuard {
        let mut guard = self.begin(what, container, process);
        guard.in_runtime = Some(Instant::now());
        guard
    }

    /// How many tasks have begun so far.
    pub fn begun(&self) -> u64 {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// The tasks that are under way, the oldest first.
    pub fn running(&self) -> Vec<Task> {
        self.0.lock().values().cloned().collect()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Task>> {
        // Held for an insertion, a removal or a copy.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TaskGuard {
    /// The time since it began, if it is spent in a runtime.
    fn spent(&self) -> Option<Duration> {
        self.in_runtime.map(|since| since.elapsed())
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        let task = self.tasks.lock().remove(&self.number);
        if let (Some(spent), Some(task)) = (self.spent(), task) {
            let (what, ms) = (task.what, spent.as_secs_f64() * 1e3);
            tracing::debug!(container = %task.container, process = %task.process, what, ms, "runtime call done");
            let nanoseconds = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
            // The recovery, for example, is part of no call.
            let _ = CALL.try_with(|call| call.runtime_time.fetch_add(nanoseconds, Ordering::Relaxed));
        }
    }
}

/// Carries out a call, and returns how long runtimes took for it. `token` is dropped when the call has been answered and everything
/// that it has begun has ended, also if its client goes away.
pub async fn in_call<T>(token: impl Send + Sync + 'static, work: impl Future<Output = T>) -> (T, Duration) {
    let call = Arc::new(Call { runtime_time: AtomicU64::new(0), _token: Box::new(token) });
    let result = CALL.scope(call.clone(), work).await;
    (result, Duration::from_nanos(call.runtime_time.load(Ordering::Relaxed)))
}

/// Runs an operation to its end, also if its caller goes away.
pub(crate) async fn carried_through<T: Send + 'static>(
    operation: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let operation = operation.in_current_span();
    let task = match CALL.try_with(Arc::clone) {
        Ok(call) => tokio::spawn(CALL.scope(call, operation)),
        Err(_) => tokio::spawn(operation),
    };
    match task.await {
        Ok(result) => result,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(e) => Err(Error::System { operation: "carry out an operation", source: io::Error::other(e) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn task_is_listed_while_it_lasts_and_its_runtime_time_is_counted() {
        let tasks = Tasks::default();
        let (result, spent) = in_call((), async {
            let _call = tasks.begin_call("call", "c", "");
            let inner = tasks.clone();
            carried_through(async move {
                let _task = inner.begin_runtime("runtime start", "c", "init");
                assert_eq!(inner.running().iter().map(|task| task.what).collect::<Vec<_>>(), ["call", "runtime start"]);
                std::thread::sleep(Duration::from_millis(20));
                Ok(())
            })
            .await
        })
        .await;
        result.expect("succeeds");
        assert!(spent >= Duration::from_millis(20) && spent < Duration::from_secs(10), "{spent:?}");
        assert!(tasks.running().is_empty());
        assert_eq!(tasks.begun(), 2);
    }

    #[tokio::test]
    async fn call_lasts_until_what_it_has_begun_has_ended() {
        let (token, (release, released)) = (Arc::new(()), tokio::sync::oneshot::channel::<()>());
        let operation = async move {
            let _ = released.await;
            Ok(())
        };
        let call = in_call(token.clone(), carried_through(operation));
        let client = tokio::time::timeout(Duration::from_millis(10), call).await;
        assert!(client.is_err(), "the client goes away");
        assert_eq!(Arc::strong_count(&token), 2, "the operation goes on");
        release.send(()).expect("the operation waits");
        while Arc::strong_count(&token) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
