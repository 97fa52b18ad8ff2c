//! Fuzz targets for the parsers of bytes that another program, another machine or a container decides.
//!
//! A [`Target`] is a function that takes any bytes and panics if the parser breaks a promise. The promises are more than
//! "does not panic": a target compares what the parser makes of the input with what must always hold. `docs/dev/fuzzing.md`
//! says how to run the targets, how to add one, and how coverage guidance works on the stable toolchain.
//!
//! Every target has a corpus in `fuzz/corpus/<name>/`. The unit test of this crate runs each target on its corpus, so that
//! an input that once failed is tested from then on in every `make check`.

mod scratch;
mod sections;
mod targets;

use targets::{archive, authority, bundle, cgroup, control, files, journal, log, message, proc, shown, update, user};

/// A parser with the promises that it must keep.
#[derive(Debug)]
pub struct Target {
    /// The name, which is also that of its directory in `fuzz/corpus/`.
    pub name: &'static str,
    /// What it parses.
    pub about: &'static str,
    run: fn(&[u8]),
}

impl Target {
    /// Runs the parser on `input`. Panics if the parser breaks a promise.
    pub fn run(&self, input: &[u8]) {
        (self.run)(input);
    }
}

/// All targets, by name.
pub const TARGETS: &[Target] = &[
    Target { name: "archive", about: "checkpoint archives: headers, paths, links, attributes", run: archive::entries },
    Target { name: "archive-bytes", about: "checkpoint archives: zstd frames and tar blocks", run: archive::bytes },
    Target { name: "authority", about: "the HTTP/2 frames that a connection begins with", run: authority::run },
    Target { name: "bundle", about: "a bundle's config.json", run: bundle::run },
    Target { name: "cgroup", about: "the files of a control group, v1 and v2", run: cgroup::files },
    Target {
        name: "checkpoint",
        about: "a checkpoint's config.json, CRIU's statistics and log",
        run: files::checkpoint,
    },
    Target { name: "control", about: "the commands on a shim's control FIFO", run: control::run },
    Target { name: "hierarchies", about: "mountinfo and /proc/<pid>/cgroup", run: cgroup::hierarchies },
    Target { name: "journal", about: "events.log", run: journal::run },
    Target { name: "log", about: "logs of runtimes and shims, and what runtimes write to stderr", run: log::run },
    Target { name: "message", about: "the grpc-message header", run: message::run },
    Target { name: "proc", about: "stat, status and net/dev of a process", run: proc::run },
    Target {
        name: "shown",
        about: "text from elsewhere that is shown on a terminal; names of containers",
        run: shown::run,
    },
    Target { name: "state", about: "the files of the state directory and of a runtime's root", run: files::state },
    Target { name: "update", about: "the limits that a client asks for", run: update::run },
    Target { name: "user", about: "a container's passwd and group files", run: user::run },
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    fn corpus() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
    }

    fn names_in(directory: &Path) -> BTreeSet<String> {
        let entries = std::fs::read_dir(directory).expect("lists").map(|entry| entry.expect("an entry").file_name());
        entries.map(|name| name.into_string().expect("UTF-8")).collect()
    }

    #[test]
    fn every_target_passes_its_corpus() {
        for target in TARGETS {
            let directory = corpus().join(target.name);
            for name in names_in(&directory) {
                let input = std::fs::read(directory.join(&name)).expect("reads");
                // Shown by the test harness if the target panics.
                println!("{}/{name}", target.name);
                target.run(&input);
            }
        }
    }

    #[test]
    fn targets_and_directories_of_the_corpus_agree() {
        let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_string()).collect();
        assert_eq!(names_in(&corpus()), targets);
        for target in TARGETS {
            assert!(!names_in(&corpus().join(target.name)).is_empty(), "{} has no corpus", target.name);
        }
    }

    #[test]
    fn every_target_takes_an_empty_input() {
        for target in TARGETS {
            target.run(&[]);
        }
    }
}
