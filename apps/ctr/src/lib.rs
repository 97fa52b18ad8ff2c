//! `ctr`, the command-line client of the daemon. `src/main.rs` is the program; the code is a library so that `fuzz/` can reach its
//! parsers.
//!
//! It parses flags, calls the daemon through the library `containerd-client`, and prints the answers.

mod archive;
mod args;
mod attach;
mod checkpoints;
mod containers;
mod daemon;
mod dashes;
mod events;
mod failure;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod out;
mod signals;
mod stats;
mod table;
mod terminal;
mod user;

use clap::{CommandFactory, Parser};
use std::io::IsTerminal;
use std::process::ExitCode;

use args::{Args, Command};
use failure::Failure;

/// The most bytes of a `config.json` that are read.
pub(crate) const CONFIG_LIMIT: u64 = 16 << 20;

/// Runs the command that the arguments of this process name.
pub fn main() -> ExitCode {
    let words = dashes::doubled(Args::command(), std::env::args_os());
    let args = match Args::try_parse_from(words) {
        Ok(args) => args,
        Err(e) => return not_run(&e),
    };
    let debug = args.debug;
    match run(args) {
        Ok(code) => code,
        Err(failure) => {
            out::say(&failure);
            if debug {
                out::say_lines(&format!("{failure:#?}"));
            }
            failure.exit_code()
        }
    }
}

/// Reports a mistake in the command line, or prints the help that it asks for.
fn not_run(e: &clap::Error) -> ExitCode {
    if e.use_stderr() {
        let text = e.render().to_string();
        out::say_lines(text.strip_prefix("error: ").unwrap_or(&text));
        return ExitCode::FAILURE;
    }
    let text = if std::io::stdout().is_terminal() { e.render().ansi().to_string() } else { e.render().to_string() };
    match out::write(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out::say(&failure);
            failure.exit_code()
        }
    }
}

fn run(args: Args) -> Result<ExitCode, Failure> {
    if let Command::Completion { shell } = args.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Args::command(), "ctr", &mut script);
        out::write(script)?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(execute(args));
    // Does not wait for blocking work, such as a look into a container's files that hangs.
    runtime.shutdown_background();
    result
}

async fn execute(args: Args) -> Result<ExitCode, Failure> {
    let client = daemon::client(&args)?;
    match args.command {
        Command::Containers { command } => containers::execute(&client, command.unwrap_or_default()).await,
        Command::Checkpoints(checkpoints) => checkpoints::execute(&client, checkpoints).await,
        Command::Events(options) => events::execute(&client, None, options).await,
        Command::State { id } => containers::state(&client, id).await,
        Command::Version(options) => containers::version(&client, options.json).await,
        Command::Completion { .. } => Ok(ExitCode::SUCCESS),
    }
}
