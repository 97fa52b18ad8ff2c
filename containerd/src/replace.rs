//! Making way for another version of this program, in the same process: execve(2) keeps the pid, the children and the
//! sockets, so that no client is refused and every shim keeps its parent.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How long a program may take to tell its version.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How this program was started, and so how the next one will be.
#[derive(Debug)]
pub(crate) struct Replacement {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Replacement {
    /// Notes how this program was started.
    pub(crate) fn new() -> Result<Replacement> {
        // Now, as the kernel tells another name once the file has been replaced.
        let program = std::env::current_exe().context("find this program's own file")?;
        Ok(Replacement { program, arguments: std::env::args_os().collect() })
    }

    /// Makes sure that there is a program that runs; what it says of its version.
    pub(crate) async fn check(&self) -> Result<String> {
        let program = self.program.display();
        let mut command = Command::new(&self.program);
        command.arg("--version");
        let answer = runtime::ask(command, ANSWER_LIMIT).await;
        let (status, version) = answer.with_context(|| format!("run {program} --version"))?;
        if status != 0 {
            bail!("{program} --version ended with status {status}: {}", version.trim());
        }
        Ok(version.trim().to_string())
    }

    /// Puts the program in this one's place. Only returns if neither it nor this one itself can be started.
    /// `left` are variables that tell it what this one leaves to it.
    pub(crate) fn take_over(&self, left: Vec<(&'static str, String)>) -> anyhow::Error {
        let exec = |program: &std::path::Path| {
            let mut command = Command::new(program);
            if let Some((own, arguments)) = self.arguments.split_first() {
                command.arg0(own).args(arguments);
            }
            command
                .envs(left.iter().map(|(name, value)| (name, value)))
                .env_remove("LISTEN_FDS")
                .env_remove("LISTEN_PID")
                .env_remove("LISTEN_FDNAMES")
                .exec()
        };
        let failed = exec(&self.program);
        tracing::error!(program = %self.program.display(), "cannot be started, this one goes on anew: {failed}");
        // The kernel keeps the file as long as the process.
        let failed = exec(std::path::Path::new("/proc/self/exe"));
        anyhow::Error::new(failed).context("start anew")
    }
}
