//! What runtimes and shims write down when they fail.

use oci::ContainerDir;

use crate::scratch;

pub(crate) fn run(input: &[u8]) {
    let directory = scratch::directory();
    let process = ContainerDir::new(directory.path(), "c").process("p");
    for name in ["log.json", "shim-log.json"] {
        scratch::write(&process.path().join(name), input);
    }
    for warning in process.runtime_warnings() {
        assert!(warning.is_warning() && !warning.msg.trim().is_empty());
    }
    if let Some(reason) = process.runtime_error() {
        assert!(!reason.trim().is_empty(), "a reason says something");
    }
    if let Some(entry) = process.shim_error() {
        assert_eq!(entry.level, "error");
    }
    let stderr = String::from_utf8_lossy(input);
    let _ = oci::fuzzing::reason_in_words(&stderr);
}
