//! What `/proc` tells of processes under test.

use std::time::{Duration, Instant};

/// Asks until the answer is yes. For what has no event to wait for.
///
/// # Panics
/// When it is not so after [`crate::LIMIT`].
pub fn eventually(what: &str, mut question: impl FnMut() -> bool) {
    let deadline = Instant::now() + crate::LIMIT;
    while !question() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Proportional set size, kB.
    pub pss: u64,
    /// Memory of its own, kB: what no other process maps at the moment.
    pub private: u64,
    /// Resident set size, kB.
    pub rss: u64,
    /// Memory that is no file's, kB: heap and stacks.
    pub anonymous: u64,
}

/// Looks at process `pid`.
///
/// # Panics
/// When there is none.
pub fn usage(pid: u32) -> Usage {
    let count = |name: &str| std::fs::read_dir(format!("/proc/{pid}/{name}")).expect("the process is there").count();
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process is there");
    let field = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).expect("the field is there");
        line.split_ascii_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number")
    };
    Usage {
        descriptors: count("fd"),
        threads: count("task"),
        pss: field("Pss:"),
        rss: field("Rss:"),
        anonymous: field("Anonymous:"),
        private: field("Private_Clean:") + field("Private_Dirty:"),
    }
}

/// The processes whose parent is `pid`.
pub fn children_of(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    children.flat_map(|text| text.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<_>>()).collect()
}
