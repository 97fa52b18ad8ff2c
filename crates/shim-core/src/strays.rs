//! The processes that a failed runtime leaves in a container.
//!
//! The shim is a subreaper, so they become its children. A zombie in the container's PID namespace would keep the container from
//! ending until the zombie's parent has reaped it (pid_namespaces(7)). After the shim's own end the parent would be PID 1, which
//! may reap late or never. So the shim kills them, and its event loop reaps them, before it gives up.

use alloc::format;
use alloc::vec::Vec;
use rustix::fs::{CWD, readlink};
use rustix::process::{Pid, Signal, kill_process};

/// The children of this thread.
pub fn children() -> Vec<Pid> {
    let text = sys::small_file::read_text(CWD, "/proc/thread-self/children").unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// Kills those of `children` that are in another PID namespace than the shim. Returns whether there were any. `children` must be
/// children of this process that it has not reaped, so that their numbers cannot be reused. A process that a hook has left
/// outside the container is in the shim's own namespace and lives on.
pub fn kill_in_other_namespaces(children: &[Pid]) -> bool {
    let own = readlink("/proc/self/ns/pid", Vec::new()).ok();
    let mut some = false;
    for child in children {
        let path = format!("/proc/{}/ns/pid", child.as_raw_nonzero());
        if readlink(path, Vec::new()).is_ok_and(|namespace| Some(namespace) != own) {
            some = true;
            // A child that has become a zombie since takes the signal without effect.
            let _ = kill_process(*child, Signal::KILL);
        }
    }
    some
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn child_in_the_shims_own_namespace_is_spared() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("starts");
        let pid = Pid::from_raw(child.id() as i32).expect("not zero");
        assert!(children().contains(&pid));
        assert!(!kill_in_other_namespaces(&[pid]));
        assert!(child.try_wait().expect("a child").is_none());
        child.kill().expect("kills");
        child.wait().expect("reaps");
    }
}
