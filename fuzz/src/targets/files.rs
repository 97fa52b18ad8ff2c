//! Files that an earlier daemon, a shim, a runtime or CRIU has written, and that may have been damaged since.
//!
//! The inputs are sections: `@state.json`, `@process.json` and so on.

use contract::Request;
use oci::{Checkpoints, ContainerDir, FORMAT, ProcessDir, check_state_dir, checksum, claim_state_dir, kept};
use std::path::Path;

use crate::scratch;
use crate::sections::sections;

/// Files in the directory of a container.
const OF_CONTAINER: &[&str] = &["state.json", ".cgroup", ".oom", ".creating", ".checkpoint"];

/// Files in the directory of a process.
const OF_PROCESS: &[&str] =
    &["process.json", "pid", "starttime", "exitStatus", ".deleting", ".oomKills", ".runtime-pid"];

/// Files in the state directory itself.
const OF_DIRECTORY: &[&str] = &[".version", ".directory"];

pub(crate) fn state(input: &[u8]) {
    let directory = scratch::directory();
    let (state_dir, root) = (directory.path().join("state"), directory.path().join("root"));
    std::fs::create_dir(&state_dir).expect("a directory");
    let container = ContainerDir::new(&state_dir, "c");
    let process = container.process("p");
    for (name, content) in sections(input) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        let path = match name {
            name if OF_CONTAINER.contains(&name) => container.path().join(name),
            name if OF_PROCESS.contains(&name) => process.path().join(name),
            name if OF_DIRECTORY.contains(&name) => state_dir.join(name),
            "runtime/state.json" => root.join("c/state.json"),
            "runtime/status" => root.join("c/status"),
            _ => continue,
        };
        scratch::write(&path, &content);
    }
    read_container(&container);
    read_process(&process);
    let _ = kept(&root, "c");
    if check_state_dir(&state_dir).is_ok() && claim_state_dir(&state_dir).is_ok() {
        check_state_dir(&state_dir).expect("a directory that was claimed stays usable");
    }
}

/// Whether the file is absent or carries no wrong checksum.
fn is_intact(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|text| checksum::is_intact(&text))
}

fn read_container(container: &ContainerDir) {
    if let Ok(record) = container.read() {
        assert!(record.version <= FORMAT, "the format of a later daemon is refused");
        assert!(is_intact(&container.path().join("state.json")), "a wrong checksum is noticed");
    }
    let _ = (container.is_being_made(), container.creation_began(), container.oom_kills(), container.dump());
    if let Some(places) = container.cgroup() {
        container.write_cgroup(&places).expect("writes");
        assert_eq!(container.cgroup(), Some(places), "what was written is read back");
    }
}

fn read_process(process: &ProcessDir) {
    if process.read().is_ok() {
        assert!(is_intact(&process.path().join("process.json")), "a wrong checksum is noticed");
        // The members that the daemon does not know may still be malformed.
        let _ = process.read_object();
    }
    // What the shim reads of the same file.
    if let Ok(request) = std::fs::read(process.path().join("process.json")).map(|text| Request::parse(&text)) {
        let _ = request.map(|request| request.way());
    }
    let (pid, starttime) = process.legible();
    if let Ok(Some(both)) = process.process() {
        assert_eq!((Some(both.0), Some(both.1)), (pid, starttime));
    }
    let _ = (process.exit_status(), process.deleting(), process.oom_kills(), process.unrecorded_pid());
}

pub(crate) fn checkpoint(input: &[u8]) {
    let directory = scratch::directory();
    let images = directory.path().join("checkpoints/one");
    let log = directory.path().join("dump.log");
    for (name, content) in sections(input) {
        let path = match name {
            b"config.json" => images.join("config.json"),
            b"inventory.img" => images.join("inventory.img"),
            b"stats-dump" => images.join("criu.work/stats-dump"),
            b"dump.log" => log.clone(),
            _ => continue,
        };
        scratch::write(&path, &content);
    }
    let checkpoints = Checkpoints::new(None, directory.path()).expect("an absolute path");
    let listed = checkpoints.list().expect("a damaged checkpoint does not hide the others");
    let found = checkpoints.find("one").ok().flatten();
    assert_eq!(listed.first(), found.as_ref(), "what is listed can be found");
    if let Some(checkpoint) = found {
        assert_eq!(checkpoint.name, "one", "the directory's name counts, not the file's");
        let _ = checkpoints.check(&checkpoint);
        let _ = checkpoint.options().flags();
    }
    let _ = oci::time_frozen(&images);
    if let Some(errors) = oci::criu_errors(&log) {
        assert!(!errors.is_empty());
    }
}
