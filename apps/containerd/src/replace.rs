//! Making way for another version of this program, in the same process: execve(2) keeps the pid, the children and the
//! sockets, so that no client is refused and every shim keeps its parent.
//!
//! An execve cannot be undone, so that this program goes on until the next one has shown that it can serve:
//!
//! 1. [`Replacement::check`] runs the next program with `--version`.
//! 2. [`Replacement::rehearse`] starts it as a child with the same flags, but with a state directory and a socket of its own,
//!    and waits until it says that it serves (sd_notify(3)). That needs no flag that the next program would have to
//!    know, so that any version can be installed, and it fails for all that would make the real start fail: a flag that
//!    it does not know, a certificate, the format of the state directory, threads.
//! 3. [`take_over`](Replacement::take_over) executes it, and leaves to it the sockets and what has not been logged.
//! 4. If it fails before it serves all the same, it executes this program again ([`Previous`]).

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

/// How long a program may take to tell its version.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long a program may take to serve an empty state directory.
const REHEARSAL_LIMIT: Duration = Duration::from_secs(10);

/// The directory of a rehearsal, in the state directory.
const REHEARSAL: &str = ".rehearsal";

/// The state directory of a rehearsal, in its directory.
const STATE_DIR: &str = "state";

/// The files that say whose a state directory is, and by which format it was written.
const FORMAT: [&str; 2] = [".version", ".directory"];

/// How this program was started, and so how the next one will be.
#[derive(Debug)]
pub(crate) struct Replacement {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Replacement {
    /// Notes how this program was started.
    pub(crate) fn new() -> Result<Replacement> {
        // Now, as the kernel tells another name once the file has been replaced. It may have been before, if this is a
        // program that another one went back to.
        let program = std::env::current_exe().context("find this program's own file")?.into_os_string().into_vec();
        let program = program.strip_suffix(b" (deleted)").unwrap_or(&program);
        let program = PathBuf::from(OsString::from_vec(program.to_vec()));
        Ok(Replacement { program, arguments: std::env::args_os().collect() })
    }

    /// Makes sure that there is a program that runs; what it says of its version.
    pub(crate) async fn check(&self) -> Result<String> {
        let program = self.program.display();
        let mut command = Command::new(&self.program);
        command.arg("--version");
        let answer = oci::ask(command, ANSWER_LIMIT).await;
        let (status, version) = answer.with_context(|| format!("run {program} --version"))?;
        if status != 0 {
            bail!("{program} --version ended with status {status}: {}", version.trim());
        }
        Ok(version.trim().to_string())
    }

    /// Makes sure that the program serves when it is started with this one's flags.
    pub(crate) async fn rehearse(&self, flags: &Flags, state_dir: &Path) -> Result<()> {
        let directory = Directory::make(state_dir)?;
        let notify = directory.0.join("notify");
        let manager = SocketPath::to_bind(&notify).and_then(UnixDatagram::bind).context("make a socket")?;
        // Paths of any length are reached through it, by versions that do not know how, too.
        let held = open(&directory.0, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let held = held.with_context(|| format!("open {}", directory.0.display()))?;
        let short = format!("/proc/{}/fd/{}", std::process::id(), held.as_raw_fd());
        let log = directory.0.join("log");
        let writer = File::create(&log).with_context(|| format!("create {}", log.display()))?;

        let mut command = self.command(&self.program);
        // What the program makes beside its state directory goes with this one.
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
        // It must not outlive a daemon that is killed meanwhile.
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
        // It knows no container.
        child.kill();
        // An error means that it has been reaped above.
        let _ = child.wait().await;
        result.context("try the program that is installed now")
    }

    /// A program with this one's arguments.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((own, arguments)) = self.arguments.split_first() {
            // What would come behind it would not be flags.
            command.arg0(own).args(arguments.iter().filter(|argument| *argument != "--"));
        }
        command
    }

    /// Puts the program in this one's place. `left` are variables that tell it what this one leaves to it. Only returns if
    /// neither it nor this one itself can be started.
    pub(crate) fn take_over(&self, mut left: Vec<(&'static str, String)>) -> anyhow::Error {
        let own = open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        if let Ok(own) = &own {
            left.extend(hand_over(PREVIOUS, std::slice::from_ref(own)));
        }
        let failed = execute(self.command(&self.program), &left);
        tracing::error!(program = %self.program.display(), "cannot be started, this one goes on anew: {failed}");
        // The kernel keeps the file as long as the process.
        left.retain(|(name, _)| *name != PREVIOUS);
        let failed = execute(self.command(Path::new("/proc/self/exe")), &left);
        anyhow::Error::new(failed).context("start anew")
    }
}

/// Executes a program in this one's place, if it can.
fn execute(mut command: Command, left: &[(&'static str, String)]) -> std::io::Error {
    for name in [SOCKETS, PREVIOUS, sys::activation::LOG, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    command.envs(left.iter().map(|(name, value)| (name, value))).exec()
}

/// Waits until the program says that it serves.
async fn is_ready(manager: &UnixDatagram) -> std::io::Result<()> {
    let mut message = [0; 1024];
    loop {
        let length = manager.recv(&mut message).await?;
        if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
}

/// The last line that the program logged.
fn last_words(log: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    last.map_or_else(String::new, |line| format!(": {line}"))
}

/// The directory of a rehearsal, which is removed with this value.
struct Directory(PathBuf);

impl Directory {
    /// Makes it anew, of the same format as the state directory.
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
                tracing::warn!(path = %self.0.display(), "cannot be removed: {e}");
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

/// The program that was in this process before, until this one serves.
#[derive(Debug)]
pub(crate) struct Previous {
    program: OwnedFd,
    sockets: Vec<OwnedFd>,
}

impl Previous {
    /// Takes what that program has left. `sockets` are those that it listened on.
    pub(crate) fn take<'a>(sockets: impl Iterator<Item = &'a OwnedFd>) -> Option<Previous> {
        let program = take_handed_over(PREVIOUS).pop()?;
        rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::CLOEXEC).ok()?;
        let sockets = sockets.map(OwnedFd::try_clone).collect::<Result<_, _>>().ok()?;
        Some(Previous { program, sockets })
    }

    /// Goes back to it. Only returns if it cannot be started.
    pub(crate) fn take_over(self, log: Option<(&'static str, String)>) -> anyhow::Error {
        let replacement = match Replacement::new() {
            Ok(replacement) => replacement,
            Err(e) => return e,
        };
        let mut left: Vec<_> = log.into_iter().collect();
        left.extend(hand_over(SOCKETS, &self.sockets));
        let program = format!("/proc/self/fd/{}", self.program.as_raw_fd());
        anyhow::Error::new(execute(replacement.command(Path::new(&program)), &left))
            .context("go back to the program before")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_ready_is_ready() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("binds");
        let program = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        for message in ["STATUS=READY=1", "READY=0\nSTATUS=x", "", "MAINPID=1\nREADY=1\n"] {
            program.send_to(message.as_bytes(), &path).expect("sends");
        }
        is_ready(&manager).await.expect("receives");
        let mut rest = [0; 8];
        assert!(manager.try_recv(&mut rest).is_err(), "the last one was it");
    }
}
