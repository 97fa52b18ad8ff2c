//! The daemon's calls of an OCI runtime. The shim makes the other ones: those that make a process (`contract::runtime`).

use contract::runtime::{self, Front, MakeCheckpoint, Operation};
use contract::{Checkpoint, RuntimeCopy, status};
use rustix::process::Pid;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use sys::environment::variables_without;
use sys::pidfd::PidFd;
use sys::spawn::Spawn;

use crate::checkpoint::Partial;
use crate::child::{Child, NOT_FOR_CHILDREN};
use crate::log;
use crate::root;
use crate::sealed::Sealed;
use crate::words::Words;

/// An OCI runtime with the arguments that go in front of every subcommand. A copy is the same one: most containers have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oci(Arc<Program>);

#[derive(Debug, PartialEq, Eq)]
struct Program {
    /// As it was named.
    name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    /// Where it keeps its containers, if that is known.
    root: Option<PathBuf>,
}

/// Why a call of the runtime failed.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// No such program.
    #[error("{0} not installed on system")]
    NotInstalled(String),
    /// It ran and failed; its own last words.
    #[error("{0}")]
    Failed(String),
    /// It crashed: it was killed by a signal, or ended without a word in its log. Its last words on stderr, if any.
    #[error("{0}")]
    Crashed(String),
    /// It did not end in time and was killed.
    #[error("{runtime} {operation} did not end within {limit:?}")]
    Timeout {
        /// The runtime.
        runtime: String,
        /// Its subcommand.
        operation: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It could not be started or waited for.
    #[error("run {runtime}: {source}")]
    Spawn {
        /// The runtime.
        runtime: String,
        /// Why.
        source: io::Error,
    },
}

impl OciError {
    /// Whether a program could not be begun because there is none under its path: nothing, a directory, or a file that is
    /// not executable, which [`Oci::find`] passes over as well.
    pub fn means_missing(error: &io::Error) -> bool {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
        matches!(error.kind(), NotFound | NotADirectory | IsADirectory | PermissionDenied)
    }
}

impl Oci {
    /// Looks the runtime up: a path as it is, a name in `PATH`.
    pub fn find(name: &str, arguments: Vec<String>) -> Result<Oci, OciError> {
        let binary = find_program(name).ok_or_else(|| OciError::NotInstalled(name.to_string()))?;
        Ok(Oci::new(name.to_string(), binary, arguments))
    }

    /// One that is known by its path, whether or not it is there now.
    pub fn at(name: String, arguments: Vec<String>) -> Oci {
        // A path is not looked at, as it may be on a file system that hangs.
        let known = if name.contains('/') { std::path::absolute(&name).ok() } else { find_program(&name) };
        let binary = known.unwrap_or_else(|| PathBuf::from(&name));
        Oci::new(name, binary, arguments)
    }

    fn new(name: String, binary: PathBuf, arguments: Vec<String>) -> Oci {
        let root = root::of(&arguments).or_else(|| root::usual(&binary));
        Oci(Arc::new(Program { name, binary, arguments, root }))
    }

    /// As it was named.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its absolute path.
    pub fn binary(&self) -> &Path {
        &self.0.binary
    }

    /// A copy in memory that shims can run in its place, if it is of the kind that would make one itself. It is made in the
    /// background when this is first asked.
    pub fn copy(&self) -> Option<RuntimeCopy> {
        Sealed::of(&self.0.binary).map(|copy| copy.named())
    }

    /// What goes in front of the subcommand.
    pub fn arguments(&self) -> &[String] {
        &self.0.arguments
    }

    /// Where it keeps the state of its containers: the last `--root` among its arguments. Without one, which only containers
    /// of older daemons have, it is what runc and crun do; of other programs nothing is known then.
    pub fn root(&self) -> Option<&Path> {
        self.0.root.as_deref()
    }

    /// Runs `operation` on container `id` and waits for its end, `limit` at most; then it is killed with all that
    /// it has started. `log` is where the runtime writes its own log.
    pub async fn run(&self, operation: Operation<'_>, id: &str, log: &Path, limit: Duration) -> Result<(), OciError> {
        self.start(operation, id, log)?.finish(limit).await
    }

    /// Starts `operation` on container `id`. See [`Oci::run`].
    pub fn start(&self, operation: Operation<'_>, id: &str, log: &Path) -> Result<Call, OciError> {
        let arguments = runtime::operate(self.front(log), operation, id.as_bytes());
        self.call(operation.name(), log, |stderr| self.start_copy(&arguments, stderr))
    }

    /// Asks the runtime for help with these arguments, and returns its message if it cannot even do that: it may not know an option,
    /// or lack a library. A runtime that makes a process writes such a message to the process's stderr alone, where it cannot
    /// be told from the process's output.
    pub async fn complaint(&self, limit: Duration) -> Option<String> {
        let mut command = Command::new(&self.0.binary);
        command.args(runtime::help(&self.0.arguments, None));
        match ask(command, limit).await {
            Ok((0, _)) | Err(_) => None,
            Ok((_, words)) => Some(log::reason_in_words(&words)).filter(|reason| !reason.is_empty()),
        }
    }

    /// Freezes container `id` to disk and, unless `exit` is wanted, lets it go on. However long that takes: a CRIU that
    /// is killed at its work leaves the processes as they are, which may be in the middle of what it has them do. For
    /// the same reason neither the runtime nor CRIU ends with this program.
    pub async fn checkpoint(&self, id: &str, log: &Path, wanted: &Checkpoint, to: &Partial) -> Result<(), OciError> {
        let (work, options) = (to.work(), wanted.options());
        let make = MakeCheckpoint {
            id: id.as_bytes(),
            exit: wanted.exit,
            options: &options,
            images: to.images().as_os_str().as_bytes(),
            work: work.as_os_str().as_bytes(),
        };
        let arguments = runtime::checkpoint(self.front(log), &make);
        let mut call = self.call("checkpoint", log, |stderr| {
            // The runtime's file is run, not the copy in memory: the copy saves nothing beside the time that CRIU takes, and
            // only `Command` can leave the lock open for the child.
            let mut command = Command::new(&self.0.binary);
            command.args(arguments.into_iter().map(OsStr::from_bytes));
            sys::child::keep_open(&mut command, to.lock().as_raw_fd());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone_to_owned()?);
            Child::spawn(&mut command)
        })?;
        call.child.set_free();
        call.finish(Duration::MAX).await
    }

    fn front<'a>(&'a self, log: &'a Path) -> Front<'a> {
        Front { arguments: &self.0.arguments, log: log.as_os_str().as_bytes() }
    }

    /// Starts the runtime, from its copy in memory if there is one.
    fn start_copy(&self, arguments: &[&[u8]], stderr: BorrowedFd<'_>) -> io::Result<Child> {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        let (environment, copy) = (variables_without(&NOT_FOR_CHILDREN), Sealed::of(&self.0.binary));
        let mut runtime = Spawn::new(&self.0.binary, &environment, [null.as_fd(), null.as_fd(), stderr])?;
        runtime.arguments(arguments.iter().copied())?;
        runtime.file = copy.as_ref().map(|copy| copy.as_fd());
        runtime.own_group = true;
        Ok(Child::started(runtime.start()?))
    }

    fn call(
        &self,
        operation: &'static str,
        log: &Path,
        start: impl FnOnce(BorrowedFd<'_>) -> io::Result<Child>,
    ) -> Result<Call, OciError> {
        let log_start = std::fs::metadata(log).map_or(0, |metadata| metadata.len());
        let spawn_error = |source| OciError::Spawn { runtime: self.0.name.clone(), source };
        let words = Words::new().map_err(spawn_error)?;
        let child = start(words.as_fd()).map_err(|e| {
            if OciError::means_missing(&e) { OciError::NotInstalled(self.0.name.clone()) } else { spawn_error(e) }
        })?;
        Ok(Call { oci: self.clone(), operation, child, words, log: log.to_path_buf(), log_start })
    }
}

/// A call of the runtime that is under way. Dropped before it has ended, it is killed with all that it has started, unless
/// it has been set free.
#[derive(Debug)]
pub struct Call {
    oci: Oci,
    operation: &'static str,
    child: Child,
    words: Words,
    log: PathBuf,
    /// Where its part of the log begins.
    log_start: u64,
}

impl Call {
    /// Lets it outlive this value and this program.
    pub fn set_free(&mut self) {
        self.child.set_free();
    }

    /// Its pid and start time; `None` if it has ended.
    pub fn identity(&self) -> Option<(u32, u64)> {
        let pid = self.child.pid().as_raw_nonzero().get().unsigned_abs();
        Some((pid, sys::procfs::stat(pid).ok()??.starttime))
    }

    /// Whether it has started another program that still runs, such as a hook.
    pub fn has_children(&self) -> bool {
        sys::procfs::has_children(self.child.pid().as_raw_nonzero().get().unsigned_abs())
    }

    /// Kills it with all that it has started.
    pub fn kill(&self) {
        self.child.kill();
    }

    /// Waits for its end, `limit` at most; then it is killed.
    pub async fn finish(mut self, limit: Duration) -> Result<(), OciError> {
        match tokio::time::timeout(limit, self.ended()).await {
            Ok(result) => result,
            Err(_) => {
                self.kill();
                Err(self.timed_out(limit))
            }
        }
    }

    /// The error of a call that was killed because it did not end within `limit`.
    pub fn timed_out(&self, limit: Duration) -> OciError {
        OciError::Timeout { runtime: self.oci.0.name.clone(), operation: self.operation, limit }
    }

    /// Waits for its end. May be given up and called again.
    pub async fn ended(&mut self) -> Result<(), OciError> {
        let name = &self.oci.0.name;
        let status = self.child.wait().await.map_err(|source| OciError::Spawn { runtime: name.clone(), source })?;
        let entries = log::read(&self.log, self.log_start);
        for warning in entries.iter().filter(|entry| entry.is_warning()) {
            tracing::warn!(runtime = %name, operation = self.operation, "the runtime warns: {}", warning.msg.trim());
        }
        if status == 0 {
            return Ok(());
        }
        if let Some(reason) = log::reason(&entries) {
            return Err(OciError::Failed(reason));
        }
        let (what, words) = (self.operation, self.words.reason());
        let how = status::describe(status);
        Err(OciError::Crashed(if words.is_empty() {
            format!("{name} {what} ended with {how} and said nothing")
        } else if status > 128 {
            format!("{name} {what} ended with {how}: {words}")
        } else {
            words
        }))
    }
}

/// The runtimes that delete a container at the moment, by the logs that they write to: those that a daemon has started which
/// has ended since. Goes through all of `/proc`.
pub fn deletes_under_way() -> HashMap<PathBuf, (Pid, PidFd)> {
    let own = rustix::process::geteuid().as_raw();
    let log_of = |pid: u32| {
        // Any program can have such a command line.
        std::fs::metadata(format!("/proc/{pid}")).ok().filter(|process| process.uid() == own)?;
        let text = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        runtime::log_of_delete(&text).map(|log| PathBuf::from(OsStr::from_bytes(log)))
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let open = |pid| {
        let log = log_of(pid)?;
        let process = PidFd::open(pid, sys::procfs::stat(pid).ok()??.starttime).ok()??;
        // Looked at again, now that the number cannot be another process's.
        let is_same = log_of(pid).as_ref() == Some(&log);
        Some((log, (Pid::from_raw(i32::try_from(pid).ok()?)?, process))).filter(|_| is_same)
    };
    pids.filter_map(open).collect()
}

/// Runs a program that is to answer within `limit` and is killed otherwise: its status, and the end of what it wrote to
/// stdout and stderr.
pub async fn ask(mut command: Command, limit: Duration) -> io::Result<(sys::child::ExitStatus, String)> {
    let words = Words::new()?;
    let writer = || words.as_fd().try_clone_to_owned();
    command.stdin(Stdio::null()).stdout(writer()?).stderr(writer()?);
    let mut child = Child::spawn(&mut command)?;
    let timed_out = || io::Error::new(io::ErrorKind::TimedOut, format!("it did not answer within {limit:?}"));
    let status = tokio::time::timeout(limit, child.wait()).await.map_err(|_| timed_out())??;
    Ok((status, words.read()))
}

/// A program by path, or by name in `PATH`; absolute.
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.is_empty() || name.contains('\0') {
        return None;
    }
    if name.contains('/') {
        return std::path::absolute(name).ok().filter(|path| is_program(path));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path)
        .filter_map(|directory| std::path::absolute(directory.join(name)).ok())
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use rustix::fs::{Access, access};
    std::fs::metadata(path).is_ok_and(|m| m.is_file()) && access(path, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes a program. Another process does it: a child that another test has just forked would have the file open for
    /// writing for a moment, in which it cannot be run (execve(2), `ETXTBSY`).
    pub(crate) fn write_program(path: &Path, text: &str) {
        use std::io::Write;
        let mut command = Command::new("sh");
        command.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
        let mut writer = command.spawn().expect("sh starts");
        writer.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("writes");
        assert!(writer.wait().expect("is ours").success());
    }

    fn fake(script: &str) -> (tempfile::TempDir, Oci) {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("fake");
        write_program(&path, &format!("#!/bin/sh\n{script}\n"));
        let oci = Oci::find(path.to_str().expect("utf-8"), vec!["--root=/r".into()]).expect("found");
        (directory, oci)
    }

    async fn run(script: &str, limit: Duration) -> Result<(), OciError> {
        let (directory, oci) = fake(script);
        oci.run(Operation::Start, "c", &directory.path().join("log.json"), limit).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn arguments_are_in_front_of_the_subcommand() {
        let said = run("echo \"$@\" >&2; exit 1", LONG).await.expect_err("fails").to_string();
        assert!(said.starts_with("--root=/r --log /"), "{said}");
        assert!(said.ends_with("/log.json --log-format json start c"), "{said}");
    }

    #[tokio::test]
    async fn the_log_goes_before_stderr() {
        let script = "echo '{\"level\":\"error\",\"msg\":\"in the log\"}' > $3; echo on stderr >&2; exit 3";
        assert_eq!(run(script, LONG).await.expect_err("fails").to_string(), "in the log");
        let said = run("exit 3", LONG).await.expect_err("fails").to_string();
        assert!(said.contains("start ended with status 3 and said nothing"), "{said}");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_its_children() {
        let script = "sleep 1000 & echo $! > $(dirname $0)/child; wait";
        let (directory, oci) = fake(script);
        let limit = Duration::from_millis(300);
        let log = directory.path().join("log.json");
        assert!(matches!(oci.run(Operation::Pause, "c", &log, limit).await, Err(OciError::Timeout { .. })));
        let child: u32 =
            std::fs::read_to_string(directory.path().join("child")).expect("written").trim().parse().expect("a pid");
        let deadline = std::time::Instant::now() + LONG;
        while sys::procfs::stat(child).expect("proc").is_some_and(|stat| !stat.is_dead()) {
            assert!(std::time::Instant::now() < deadline, "the child of a killed runtime lives");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn endless_words_cost_no_memory_and_a_held_stderr_no_time() {
        let script = "sleep 1000 & echo $! > $(dirname $0)/child; head -c 1000000 /dev/zero | tr '\\0' x >&2";
        let (directory, oci) = fake(&format!("{script}; echo >&2; echo end >&2; exit 1"));
        let said = oci.run(Operation::Start, "c", &directory.path().join("log.json"), LONG).await;
        assert_eq!(said.expect_err("fails").to_string(), "end");
        let child = std::fs::read_to_string(directory.path().join("child")).expect("written");
        let child = child.trim().parse().ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(child, rustix::process::Signal::KILL).expect("it holds stderr, and lives");
    }

    #[test]
    fn one_that_is_known_by_its_path_needs_no_working_directory() {
        let here = std::env::current_dir().expect("there is one");
        assert_eq!(Oci::at("bin/runc".into(), Vec::new()).binary(), here.join("bin/runc"));
    }

    #[test]
    fn a_missing_runtime_is_named() {
        let error = Oci::find("no-such-runtime", Vec::new()).expect_err("missing");
        assert_eq!(error.to_string(), "no-such-runtime not installed on system");
        assert!(Oci::find("/etc/passwd", Vec::new()).is_err());
        assert!(Oci::find("", Vec::new()).is_err());
    }
}
