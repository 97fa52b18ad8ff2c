//! What the daemon is doing: for SIGUSR1, and for who asks over HTTP.

use std::fmt::Write;
use std::time::Duration;
use supervisor::Supervisor;
use tokio::runtime::Handle;

/// How long the containers may take to be looked at.
const LIMIT: Duration = Duration::from_secs(1);

/// One line each for the tasks that are under way, the containers, and the event loop.
pub(crate) async fn lines(supervisor: &Supervisor) -> Vec<String> {
    let mut lines = Vec::new();
    for task in supervisor.tasks().running() {
        let mut line = format!("task: {}", task.what);
        for (name, value) in [("container", &task.container), ("process", &task.process)] {
            if !value.is_empty() {
                // Writing into a string does not fail.
                let _ = write!(line, " {name}={value}");
            }
        }
        let _ = write!(line, ", for {:.3} s", task.since.elapsed().as_secs_f64());
        lines.push(line);
    }
    // Whatever hangs must not hide itself.
    match tokio::time::timeout(LIMIT, supervisor.state(None)).await {
        Err(_) => lines.push(format!("the containers cannot be looked at within {LIMIT:?}: threads wait for files")),
        Ok(Ok(containers)) => {
            for container in containers {
                let (id, state, pids) = (container.id, container.state.name(), container.pids.len());
                let names: Vec<String> =
                    container.processes.iter().map(|p| format!("{}={}", p.name(), p.pid)).collect();
                let waits = names.join(" ");
                lines.push(format!("container: {id} is {state}, {pids} pids; waits for the exit of {waits}"));
            }
        }
        Ok(Err(e)) => lines.push(format!("cannot look at the containers: {e}")),
    }
    let (events, subscribers) = (supervisor.event_count(), supervisor.subscriber_count());
    lines.push(format!("events: {events} written, {subscribers} subscribers"));
    let metrics = Handle::current().metrics();
    lines.push(format!(
        "event loop: {} tasks alive, {} in the queue, {} worker threads",
        metrics.num_alive_tasks(),
        metrics.global_queue_depth(),
        metrics.num_workers(),
    ));
    // Ids are as clients sent them, until they have been looked at.
    lines.iter().map(|line| sys::shown::escape(line).into_owned()).collect()
}
