//! A description of what the daemon is doing, for SIGUSR1 and for `/debug/pprof/tasks`.

use std::fmt::Write;
use std::time::Duration;
use supervisor::Supervisor;
use tokio::runtime::Handle;

/// How long reading the state of the containers may take.
const LIMIT: Duration = Duration::from_secs(1);

/// Describes the tasks that are under way and the containers, one per line, and then the events and the event loop.
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
    // With a limit, so that the dump shows a hung file system instead of hanging, too.
    match tokio::time::timeout(LIMIT, supervisor.state(None)).await {
        Err(_) => lines.push(format!("containers: not read within {LIMIT:?}; threads wait for a file system")),
        Ok(Ok(containers)) => {
            for container in containers {
                let (id, state, pids) = (container.id, container.state.name(), container.pids.len());
                let names: Vec<String> =
                    container.processes.iter().map(|p| format!("{}={}", p.name(), p.pid)).collect();
                let waits = names.join(" ");
                lines.push(format!("container: {id} is {state}, {pids} pids; waits for the exit of {waits}"));
            }
        }
        Ok(Err(e)) => lines.push(format!("containers: cannot be read: {e}")),
    }
    let (events, subscribers) = (supervisor.event_count(), supervisor.subscriber_count());
    lines.push(format!("events: {events} recorded, {subscribers} subscribers"));
    let metrics = Handle::current().metrics();
    lines.push(format!(
        "event loop: {} tasks alive, {} in the queue, {} worker threads",
        metrics.num_alive_tasks(),
        metrics.global_queue_depth(),
        metrics.num_workers(),
    ));
    // A task begins before its id is checked, so ids can be any text from a client.
    lines.iter().map(|line| sys::shown::escape(line).into_owned()).collect()
}
