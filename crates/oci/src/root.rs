//! The root of an OCI runtime: the directory with the state of its containers, and to whom a state in it belongs.
//!
//! All runtimes with runc's command line have the option `--root`. The daemon passes it for each new container: the
//! client's root, the root in the daemon's own options, or a root of the daemon. So the daemon knows where the state
//! is, and everything in a root of its own belongs to it.

use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};

/// The largest state file of a runtime that is read.
const LARGEST: u64 = 16 << 20;

/// Returns the value of the last `--root` among a runtime's arguments, unchanged. runc and crun use the last one, and
/// runc accepts one dash as well as two.
fn named(arguments: &[String]) -> Option<&str> {
    let mut root = None;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix('-').map(|rest| rest.strip_prefix('-').unwrap_or(rest)) {
            Some("root") => root = arguments.next().map(String::as_str).or(root),
            Some(option) => root = option.strip_prefix("root=").or(root),
            None => {}
        }
    }
    root
}

/// Returns the root that a runtime's arguments name, as an absolute path. Returns `None` if they name none.
pub(crate) fn of(arguments: &[String]) -> Option<PathBuf> {
    named(arguments).and_then(|root| std::path::absolute(root).ok())
}

/// Returns the default root of runc and crun, whose name may be followed by a version or an architecture. This is only
/// for containers of older daemons, which did not pass `--root`.
pub(crate) fn usual(binary: &Path) -> Option<PathBuf> {
    let name = binary.file_name()?.to_str()?;
    let is = |known: &str| name.strip_prefix(known).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
    ["crun", "runc"].into_iter().find(|known| is(known)).map(|known| Path::new("/run").join(known))
}

/// Returns a runtime's arguments with an absolute root, which does not depend on the runtime's working directory. Makes
/// a relative root absolute, and adds `own` if the arguments name none.
///
/// ```
/// use std::path::Path;
///
/// let own = Path::new("/run/containerd-runtime/runc");
/// let arguments = |words: &[&str]| words.iter().map(ToString::to_string).collect();
/// assert_eq!(oci::with_root(arguments(&["--debug"]), own), ["--debug", "--root=/run/containerd-runtime/runc"]);
/// assert_eq!(oci::with_root(arguments(&["--root", "/run/runc"]), own), ["--root", "/run/runc"]);
/// ```
pub fn with_root(arguments: Vec<String>, own: &Path) -> Vec<String> {
    let absolute = match named(&arguments) {
        Some(root) if root.starts_with('/') => return arguments,
        Some(root) => std::path::absolute(root).unwrap_or_else(|_| PathBuf::from(root)),
        None => own.to_path_buf(),
    };
    // The last `--root` counts.
    let mut arguments = arguments;
    arguments.push(format!("--root={}", absolute.display()));
    arguments
}

/// What a runtime's state says about a container.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The bundle, if the state names it.
    pub bundle: Option<String>,
    /// The pid and start time of init, if the state has them.
    pub init: Option<(u32, u64)>,
}

/// The members of runc's `state.json` (libcontainer/container_linux.go, `State`) and of crun's `status`
/// (libcrun/status.c) that identify a container.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    init_process_pid: Option<u32>,
    init_process_start: Option<u64>,
    pid: Option<u32>,
    #[serde(rename = "process-start-time")]
    process_start_time: Option<u64>,
    bundle: Option<String>,
    config: Config,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    labels: Option<Vec<String>>,
}

/// Reads what the runtime's state says about container `id`. Returns an empty result if there is no readable state.
pub fn kept(root: &Path, id: &str) -> io::Result<Kept> {
    for name in ["state.json", "status"] {
        match sys::foreign_file::read(&root.join(id).join(name), LARGEST) {
            Ok(text) => return Ok(parse(&text)),
            Err(e) if sys::exhausted::is_exhausted(&e) => return Err(e),
            Err(_) => {}
        }
    }
    Ok(Kept::default())
}

fn parse(text: &[u8]) -> Kept {
    let status: Status = serde_json::from_slice(text).unwrap_or_default();
    let label =
        || status.config.labels.iter().flatten().find_map(|label| Some(label.strip_prefix("bundle=")?.to_string()));
    let pid = status.init_process_pid.or(status.pid);
    let start = status.init_process_start.or(status.process_start_time);
    Kept { init: pid.zip(start), bundle: status.bundle.clone().or_else(label) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(arguments: &[&str]) -> Vec<String> {
        arguments.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn last_root_argument_counts_in_either_form() {
        let root = |arguments: &[&str]| of(&list(arguments)).map(|root| root.display().to_string());
        assert_eq!(root(&[]), None);
        assert_eq!(root(&["--debug", "--root", "/a", "--root=/b", "--rootless=true"]).as_deref(), Some("/b"));
        assert_eq!(root(&["-root=/c", "--log"]).as_deref(), Some("/c"));
        assert_eq!(root(&["-root", "/d", "root=/e"]).as_deref(), Some("/d"));
        assert!(root(&["--root", "relative"]).is_some_and(|root| root.starts_with('/') && root.ends_with("/relative")));
    }

    #[test]
    fn arguments_get_an_absolute_root() {
        let with = |arguments: &[&str]| with_root(list(arguments), Path::new("/own"));
        assert_eq!(with(&["--debug"]), ["--debug", "--root=/own"]);
        assert_eq!(with(&["--root", "/a", "--debug"]), ["--root", "/a", "--debug"]);
        let here = std::env::current_dir().expect("there is one");
        assert_eq!(with(&["--root=r"]), ["--root=r".to_string(), format!("--root={}/r", here.display())]);
    }

    #[test]
    fn default_root_does_not_depend_on_a_version_in_the_name() {
        let root = |binary: &str| usual(Path::new(binary)).map(|root| root.display().to_string());
        for (binary, usual) in [("/usr/bin/crun-1.28", "/run/crun"), ("runc-1.1.5", "/run/runc"), ("runc", "/run/runc")]
        {
            assert_eq!(root(binary).as_deref(), Some(usual));
        }
        assert_eq!(root("/usr/bin/runcvm"), None);
        assert_eq!(root("/usr/bin/youki"), None);
    }

    #[test]
    fn states_of_both_runtimes_are_parsed() {
        let runc = br#"{"id":"c","init_process_pid":7,"init_process_start":9,"config":{"labels":["a=b","bundle=/b"]}}"#;
        let crun = br#"{"pid":7,"process-start-time":9,"bundle":"/b","rootfs":"/r"}"#;
        for text in [&runc[..], &crun[..]] {
            assert_eq!(parse(text), Kept { bundle: Some("/b".into()), init: Some((7, 9)) });
        }
        assert_eq!(parse(b"garbage"), Kept::default());
    }
}
