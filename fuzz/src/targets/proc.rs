//! What `/proc` says of a process, which chooses its own name and the names of its interfaces.

use sys::procfs::unescape;

use crate::sections::text;

pub(crate) fn run(input: &[u8]) {
    let stat = text(input, "stat");
    if let Some(parsed) = sys::fuzzing::stat(&stat) {
        let state = stat[stat.rfind(')').expect("a name in parentheses") + 1..].trim_ascii_start().as_bytes()[0];
        assert_eq!(parsed.state, state, "the process's name is not taken for its fields");
    }
    let _ = sys::fuzzing::is_namespace_init(&text(input, "status"));
    for interface in supervisor::fuzzing::interfaces(&text(input, "net/dev")) {
        assert!(!interface.name.contains('\n'));
    }
    let _ = unescape(&text(input, "path"));
}
