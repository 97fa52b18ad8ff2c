//! Replacing this program by the installed one, in the same process. execve(2) keeps the pid, the children and the sockets,
//! so that no client is refused and every shim keeps its parent.
//!
//! An execve(2) cannot be undone. This program therefore serves until the next one has shown that it can:
//!
//! 1. [`Replacement::check`] runs the next program with `--version`.
//! 2. [`Replacement::rehearse`] starts it as a child with the same flags, but with a state directory and a socket of its own,
//!    and waits for its readiness notification (sd_notify(3)). There is no flag for a rehearsal that the next program would have
//!    to know, so any version can be installed. A rehearsal finds what would make the real start fail, such as an unknown flag,
//!    a bad certificate or another format of the state directory.
//! 3. [`Replacement::take_over`] executes the next program, and hands the sockets and the unwritten log lines over to it.
//! 4. If the next program fails before it serves, it executes this program again ([`Previous`]).

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, open};
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use sys::activation::{PREVIOUS, SOCKETS, hand_over, take_handed_over};
use sys::socket_path::SocketPath;
use tokio::net::UnixDatagram;

use crate::flags::Flags;

/// How long the next program may take to print its version.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// How long the next program may take to serve an empty state directory.
const REHEARSAL_LIMIT: Duration = Duration::from_secs(10);

/// The rehearsal's directory within the state directory.
const REHEARSAL: &str = ".rehearsal";

/// The state directory within the rehearsal's directory.
const STATE_DIR: &str = "state";

/// The files that identify a state directory and its format.
const FORMAT: [&str; 2] = [".version", ".directory"];

/// The program and the arguments with which this process was started. The next program is started with the same.
#[derive(Debug)]
pub(crate) struct Replacement {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Replacement {
    /// Notes how this process was started. Call it early: once the program's file has been replaced, the kernel reports its name
    /// with " (deleted)" at the end.
    pub(crate) fn new() -> Result<Replacement> {
        // If a failed replacement went back to this program, its file has been replaced already.
        let program = std::env::current_exe().context("find this program's own file")?.into_os_string().into_vec();
        let program = program.strip_suffix(b" (deleted)").unwrap_or(&program);
        let program = PathBuf::from(OsString::from_vec(program.to_vec()));
        Ok(Replacement { program, arguments: std::env::args_os().collect() })
    }

    /// Checks that the installed program runs. Returns the version that it prints.
    pub(crate) async fn check(&self) -> Result<String> {
        let program = self.program.display();
        let mut command = Command::new(&self.program);
        command.arg("--version");
        let answer = oci::ask(command, VERSION_LIMIT).await;
        let (status, version) = answer.with_context(|| format!("run {program} --version"))?;
        if status != 0 {
            bail!("{program} --version ended with status {status}: {}", version.trim());
        }
        Ok(version.trim().to_string())
    }

    /// Checks that the installed program serves when it is started with this one's flags.
    pub(crate) async fn rehearse(&self, flags: &Flags, state_dir: &Path) -> Result<()> {
        let directory = Directory::make(state_dir)?;
        let notify = directory.0.join("notify");
        let manager = SocketPath::to_bind(&notify).and_then(UnixDatagram::bind).context("make a socket")?;
        // A path through this descriptor is short enough for a socket's address, wherever the state directory is. Old versions
        // cannot bind longer paths.
        let held = open(&directory.0, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let held = held.with_context(|| format!("open {}", directory.0.display()))?;
        let short = format!("/proc/{}/fd/{}", std::process::id(), held.as_raw_fd());
        let log = directory.0.join("log");
        let writer = File::create(&log).with_context(|| format!("create {}", log.display()))?;

        let mut command = self.command(&self.program);
        // Whatever the program creates beside its state directory is removed with the rehearsal's directory.
        command
            .arg("--state-dir")
            .arg(directory.0.join(STATE_DIR))
            .args(["--listen", &format!("unix://{short}/socket")]);
        command.args(["--log-format", "text", "--metrics-interval", "0"]);
        for (flag, address) in
            [("--metrics-address", &flags.metrics_address), ("--pprof-address", &flags.pprof_address)]
        {
            if address.is_some() {
                command.args([flag, "127.0.0.1:0"]);
            }
        }
        // If this daemon is killed during the rehearsal, the kernel kills the child.
        sys::child::die_with_parent(&mut command);
        command.env("NOTIFY_SOCKET", format!("{short}/notify"));
        command.env_remove("JOURNAL_STREAM").env_remove(failpoint::VARIABLE);
        command.stdin(std::process::Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let program = self.program.display();
        let mut child = oci::Child::spawn(&mut command).with_context(|| format!("start {program}"))?;
        drop(command);
        let result = tokio::select! {
            result = is_ready(&manager) => result.context("receive from the program"),
            status = child.wait() => match status {
                Ok(status) => Err(anyhow::anyhow!("{program} ended with status {status}{}", last_words(&log))),
                Err(e) => Err(e).context("wait for the program"),
            },
            () = tokio::time::sleep(REHEARSAL_LIMIT) => {
                Err(anyhow::anyhow!("{program} does not serve after {REHEARSAL_LIMIT:?}{}", last_words(&log)))
            }
        };
        // It has no containers, so nothing is lost.
        child.kill();
        // An error means that the child has been reaped above.
        let _ = child.wait().await;
        result.context("rehearse with the installed program")
    }

    /// A command that runs a program with this one's arguments.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((own, arguments)) = self.arguments.split_first() {
            // Without `--`, which would end the flags: `rehearse` appends some.
            command.arg0(own).args(arguments.iter().filter(|argument| *argument != "--"));
        }
        command
    }

    /// Executes the next program in this process. `handed_over` has the variables that tell it what this program leaves. If the
    /// next program cannot be executed, this one is executed anew. Returns only if that fails, too.
    pub(crate) fn take_over(&self, mut handed_over: Vec<(&'static str, String)>) -> anyhow::Error {
        let own = open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        if let Ok(own) = &own {
            handed_over.extend(hand_over(PREVIOUS, std::slice::from_ref(own)));
        }
        let failed = execute(self.command(&self.program), &handed_over);
        tracing::error!(program = %self.program.display(), "cannot execute the program, starting this one anew: {failed}");
        // This link works even if the file has been removed: the kernel keeps it as long as the process runs it.
        handed_over.retain(|(name, _)| *name != PREVIOUS);
        let failed = execute(self.command(Path::new("/proc/self/exe")), &handed_over);
        anyhow::Error::new(failed).context("start this program anew")
    }
}

/// Executes a program in this process. Returns only if it cannot.
fn execute(mut command: Command, handed_over: &[(&'static str, String)]) -> std::io::Error {
    for name in [SOCKETS, PREVIOUS, sys::activation::LOG, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    command.envs(handed_over.iter().map(|(name, value)| (name, value))).exec()
}

/// Waits for the program's readiness notification.
async fn is_ready(manager: &UnixDatagram) -> std::io::Result<()> {
    let mut message = [0; 1024];
    loop {
        let length = manager.recv(&mut message).await?;
        if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
}

/// The last line that the program logged, as the end of an error message.
fn last_words(log: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    last.map_or_else(String::new, |line| format!(": {line}"))
}

/// The rehearsal's directory. Dropping this value removes it.
struct Directory(PathBuf);

impl Directory {
    /// Creates the directory, with an empty state directory of the same format as the real one.
    fn make(state_dir: &Path) -> Result<Directory> {
        let directory = Directory(state_dir.join(REHEARSAL));
        directory.remove();
        let made = DirBuilder::new().mode(0o700).create(&directory.0);
        made.with_context(|| format!("create {}", directory.0.display()))?;
        let own = directory.0.join(STATE_DIR);
        let made = DirBuilder::new().mode(0o700).create(&own);
        made.with_context(|| format!("create {}", own.display()))?;
        for name in FORMAT {
            let file = state_dir.join(name);
            if file.exists() {
                std::fs::copy(&file, own.join(name)).with_context(|| format!("copy {}", file.display()))?;
            }
        }
        Ok(directory)
    }

    fn remove(&self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), "cannot remove the rehearsal's directory: {e}");
            }
            _ => {}
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The previous program in this process. It is kept until this program serves.
#[derive(Debug)]
pub(crate) struct Previous {
    program: OwnedFd,
    sockets: Vec<OwnedFd>,
}

impl Previous {
    /// Takes what the previous program handed over. `sockets` are the sockets on which it listened.
    pub(crate) fn take<'a>(sockets: impl Iterator<Item = &'a OwnedFd>) -> Option<Previous> {
        let program = take_handed_over(PREVIOUS).pop()?;
        rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::CLOEXEC).ok()?;
        let sockets = sockets.map(OwnedFd::try_clone).collect::<Result<_, _>>().ok()?;
        Some(Previous { program, sockets })
    }

    /// Executes the previous program again. Returns only if it cannot be executed.
    pub(crate) fn take_over(self, log: Option<(&'static str, String)>) -> anyhow::Error {
        let replacement = match Replacement::new() {
            Ok(replacement) => replacement,
            Err(e) => return e,
        };
        let mut handed_over: Vec<_> = log.into_iter().collect();
        handed_over.extend(hand_over(SOCKETS, &self.sockets));
        let program = format!("/proc/self/fd/{}", self.program.as_raw_fd());
        anyhow::Error::new(execute(replacement.command(Path::new(&program)), &handed_over))
            .context("go back to the previous program")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn other_notifications_do_not_mean_ready() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("binds");
        let program = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        for message in ["STATUS=READY=1", "READY=0\nSTATUS=x", "", "MAINPID=1\nREADY=1\n"] {
            program.send_to(message.as_bytes(), &path).expect("sends");
        }
        is_ready(&manager).await.expect("receives");
        let mut rest = [0; 8];
        assert!(manager.try_recv(&mut rest).is_err(), "the last message was the one that meant ready");
    }
}
