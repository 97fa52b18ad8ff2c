//! `ctr`, the client.

mod archive;
mod args;
mod attach;
mod checkpoints;
mod client;
mod containers;
mod dashes;
mod events;
mod failure;
mod out;
mod session;
mod signals;
mod stats;
mod subscription;
mod table;
mod terminal;
mod tls;
mod user;

use clap::{CommandFactory, Parser};
use std::io::IsTerminal;
use std::process::ExitCode;

use args::{Args, Command};
use failure::Failure;

/// The size of a `config.json` that is read.
pub(crate) const CONFIG_LIMIT: u64 = 16 << 20;

fn main() -> ExitCode {
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

/// A mistake in the command line, or help that it asks for.
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
    // A read of stdin that is under way does not keep the program.
    runtime.shutdown_background();
    result
}

async fn execute(args: Args) -> Result<ExitCode, Failure> {
    let tls = tls::Files { cert: args.tls_cert, key: args.tls_key, ca: args.tls_ca };
    let target = client::Target { address: args.address, timeout: args.conn_timeout, tls };
    match args.command {
        Command::Containers { command } => containers::execute(&target, command.unwrap_or_default()).await,
        Command::Checkpoints(checkpoints) => checkpoints::execute(&target, checkpoints).await,
        Command::Events(options) => events::execute(&target, None, options).await,
        Command::State { id } => containers::state(&target, id).await,
        Command::Version(options) => containers::version(&target, options.json).await,
        Command::Completion { .. } => Ok(ExitCode::SUCCESS),
    }
}
