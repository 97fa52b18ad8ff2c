//! What the daemon asks for, from `process.json`: the OCI process object with members of ours beside it.
//! Only what the shim itself needs is kept; the runtime reads the rest from the same file.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, fstat, open};
use rustix::process::getppid;

use crate::error::{Context, Failure};

/// The latest format of `process.json` that is understood.
const FORMAT: u32 = 1;

/// The members of `process.json` that concern the shim.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Request {
    pub(crate) terminal: bool,
    /// False for a container's init, true for an added process.
    pub(crate) exec: bool,
    pub(crate) containerd_stdin: String,
    pub(crate) containerd_stdout: String,
    pub(crate) containerd_stderr: String,
    /// Put in front of the runtime's subcommand.
    pub(crate) runtime_args: Vec<String>,
    pub(crate) no_pivot_root: bool,
    /// Create and start it by one call.
    pub(crate) run: bool,
    /// Directory of the checkpoint to restore from; empty for a fresh start.
    pub(crate) checkpoint: String,
    /// Host ids that the container's root maps to.
    #[serde(rename = "rootUID")]
    pub(crate) root_uid: u32,
    #[serde(rename = "rootGID")]
    pub(crate) root_gid: u32,
    /// The size of the terminal, if there is one.
    pub(crate) console_size: Option<ConsoleSize>,
    /// The format of the file.
    version: u32,
    /// Where the daemon has a copy of the runtime.
    runtime_copy: Option<RuntimeCopy>,
    /// Where the kills for memory are counted; empty where nothing is to be counted.
    pub(crate) memory_mount: String,
}

/// The size of a terminal, in characters.
#[derive(Debug, Default, Clone, Copy, serde::Deserialize)]
#[serde(default)]
pub(crate) struct ConsoleSize {
    pub(crate) width: u16,
    pub(crate) height: u16,
}

/// A copy of the runtime that runc and crun need not make again of themselves.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
pub(crate) struct RuntimeCopy {
    /// A descriptor of the daemon's.
    descriptor: i32,
    /// Which file it must be.
    device: u64,
    inode: u64,
}

/// What a checkpoint was made with, in its own `config.json`, and is to be restored with.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Checkpoint {
    tcp: bool,
    unix_sockets: bool,
    shell: bool,
    #[serde(rename = "emptyNS")]
    empty_ns: Option<Vec<String>>,
}

/// The largest `config.json` of a checkpoint that is read. A client names the directory; the daemon has the same limit.
const LARGEST_CONFIG: usize = 4 << 20;

impl Checkpoint {
    /// Reads the `config.json` of the checkpoint in `directory`.
    pub(crate) fn read(directory: &str) -> Result<Checkpoint, Failure> {
        let path = format!("{directory}/config.json");
        let text = sys::small_file::read_at_most(CWD, &path[..], LARGEST_CONFIG).context(|| format!("read {path}"))?;
        serde_json::from_slice(&text).map_err(|e| Failure::Request(format!("{path}: {e}")))
    }

    /// The runtime's flags.
    pub(crate) fn flags(&self) -> Vec<&str> {
        let flags =
            [(self.tcp, "--tcp-established"), (self.unix_sockets, "--ext-unix-sk"), (self.shell, "--shell-job")];
        let mut flags: Vec<&str> = flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).collect();
        for namespace in self.empty_ns.iter().flatten() {
            flags.extend(["--empty-ns", namespace]);
        }
        flags
    }
}

impl Request {
    /// Reads `process.json` in the working directory.
    pub(crate) fn read() -> Result<Request, Failure> {
        let text = sys::small_file::read(CWD, "process.json").context(|| "read process.json".into())?;
        Request::parse(&text)
    }

    /// The copy of the runtime, if the daemon is still there and has it.
    pub(crate) fn runtime_copy(&self) -> Option<OwnedFd> {
        let copy = self.runtime_copy?;
        let path = format!("/proc/{}/fd/{}", getppid()?.as_raw_nonzero(), copy.descriptor);
        // The parent may be another process by now, and the number another file's: so it is not opened before it is known.
        let file = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let is_it = fstat(&file).is_ok_and(|stat| stat.st_dev == copy.device && stat.st_ino == copy.inode);
        is_it.then_some(file)
    }

    fn parse(text: &[u8]) -> Result<Request, Failure> {
        let request: Request =
            serde_json::from_slice(text).map_err(|e| Failure::Request(format!("process.json: {e}")))?;
        if request.version > FORMAT {
            let version = request.version;
            return Err(Failure::Request(format!(
                "process.json: a newer containerd wrote it (format {version}, and this shim knows {FORMAT}): install its shim"
            )));
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_restored_with_its_own_flags() {
        let text = r#"{"name":"a","tcp":true,"unixSockets":true,"shell":true,"exit":true,"emptyNS":["network"]}"#;
        let checkpoint: Checkpoint = serde_json::from_str(text).expect("valid");
        let all = ["--tcp-established", "--ext-unix-sk", "--shell-job", "--empty-ns", "network"];
        assert_eq!(checkpoint.flags(), all);
        let checkpoint: Checkpoint = serde_json::from_str(r#"{"emptyNS":null}"#).expect("valid");
        assert!(checkpoint.flags().is_empty());
    }

    #[test]
    fn a_copy_of_the_runtime_is_the_one_that_is_meant() {
        let of = |text: &str| Request::parse(text.as_bytes()).expect("valid").runtime_copy();
        assert!(of("{}").is_none() && of(r#"{"runtimeCopy":null}"#).is_none());
        for descriptor in ["-1", "0", "1", "2", "99999"] {
            let copy = format!(r#"{{"runtimeCopy":{{"descriptor":{descriptor},"device":1,"inode":1}}}}"#);
            assert!(of(&copy).is_none());
        }
    }

    #[test]
    fn a_later_format_is_refused() {
        assert!(Request::parse(br#"{"version":1}"#).is_ok());
        let refused = Request::parse(br#"{"version":2}"#).expect_err("refused").to_string();
        assert!(refused.contains("a newer containerd wrote it (format 2, and this shim knows 1)"), "{refused}");
    }

    #[test]
    fn members_of_the_oci_process_are_passed_over() {
        let text = r#"{"args":["sh"],"user":{"uid":0},"terminal":true,"exec":true,"rootUID":7,"rootGID":8,
            "containerdStdin":"/a","runtimeArgs":["--root","/r"],"noPivotRoot":true,"rlimits":[{"type":"x"}]}"#;
        let request: Request = serde_json::from_str(text).expect("valid");
        assert!(request.terminal && request.exec && request.no_pivot_root);
        assert_eq!((request.root_uid, request.root_gid), (7, 8));
        assert_eq!(request.containerd_stdin, "/a");
        assert_eq!(request.containerd_stdout, "");
        assert_eq!(request.runtime_args, ["--root", "/r"]);
    }
}
