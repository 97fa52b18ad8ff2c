//! The command line.

use clap::{Args as Group, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

use crate::user::Wanted;

/// Starts, watches and enters containers that containerd supervises.
#[derive(Debug, Parser)]
#[command(name = "ctr", version, max_term_width = 100, args_override_self = true)]
pub(crate) struct Args {
    /// Where the daemon listens
    #[arg(long, global = true, value_name = "ADDRESS", default_value = "unix:///run/containerd/containerd.sock")]
    pub(crate) address: String,

    /// How long to wait for the daemon's first answer; 0 for no limit
    #[arg(long, global = true, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub(crate) conn_timeout: Duration,

    /// A certificate to show to the daemon on tcp://, PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The certificate's key, PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,

    /// The authority that the daemon's certificate is of, PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Show all that is known of a failure
    #[arg(long, global = true)]
    pub(crate) debug: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Containers: list them, start, enter, signal, pause and watch them
    Containers {
        #[command(subcommand)]
        command: Option<Containers>,
    },
    /// Checkpoints: list, make, remove and move them
    Checkpoints(Checkpoints),
    /// Show events, those that come or all since a moment
    Events(EventOptions),
    /// Show all containers, or one, their processes and the machine, as JSON
    State {
        /// The container
        id: Option<String>,
    },
    /// Show the daemon's version and revision
    Version(TableOptions),
    /// Write a completion script for a shell
    Completion { shell: clap_complete::Shell },
}

#[derive(Debug, Group)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Checkpoints {
    #[command(subcommand)]
    pub(crate) command: Option<CheckpointCommand>,

    #[command(flatten)]
    pub(crate) list: ListCheckpoints,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    /// List the checkpoints of a container (what `ctr checkpoints ID` does by itself)
    List(ListCheckpoints),
    /// Freeze a container to disk; it goes on afterwards unless --exit is given
    Create(CreateCheckpoint),
    /// Remove a checkpoint
    Delete(DeleteCheckpoint),
    /// Say what CRIU, the kernel and the runtime of this host can do
    Check {
        /// The OCI runtime, name or path
        #[arg(long, short, default_value = "runc")]
        runtime: String,
    },
    /// Write a checkpoint, with what its container needs, into one file
    Export(ExportCheckpoint),
    /// Unpack a checkpoint that was exported, into a bundle
    Import(ImportCheckpoint),
}

#[derive(Debug, Group)]
pub(crate) struct ListCheckpoints {
    /// The container
    pub(crate) id: Option<String>,

    /// Where they are, if not in checkpoints/ of the bundle
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) options: TableOptions,
}

#[derive(Debug, Group)]
pub(crate) struct CreateCheckpoint {
    /// The container
    pub(crate) id: String,

    /// The checkpoint's name
    pub(crate) name: String,

    /// Take established TCP connections along
    #[arg(long)]
    pub(crate) tcp: bool,

    /// Take Unix sockets along that have a peer outside
    #[arg(long)]
    pub(crate) unix_sockets: bool,

    /// Stop the container once the checkpoint is on disk
    #[arg(long)]
    pub(crate) exit: bool,

    /// Take a terminal along that comes from outside
    #[arg(long)]
    pub(crate) shell: bool,

    /// A namespace to leave empty, such as network; repeatable
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) empty_ns: Vec<String>,

    /// Where it goes, if not into checkpoints/ of the bundle
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint_dir: Option<PathBuf>,

    /// Show the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Group)]
pub(crate) struct DeleteCheckpoint {
    /// The container
    pub(crate) id: String,

    /// The checkpoint's name
    pub(crate) name: String,

    /// Where it is, if not in checkpoints/ of the bundle
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint_dir: Option<PathBuf>,
}

#[derive(Debug, Group)]
pub(crate) struct ExportCheckpoint {
    /// The container, which need not be there any more if --bundle is given
    pub(crate) id: String,

    /// The checkpoint's name
    pub(crate) name: String,

    /// The file to write
    pub(crate) file: PathBuf,

    /// Where the checkpoint is, if not in checkpoints/ of the bundle
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint_dir: Option<PathBuf>,

    /// The container's bundle, if it is gone
    #[arg(long, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,

    /// Take the whole root file system along, in place of what an overlay has changed
    #[arg(long)]
    pub(crate) rootfs: bool,

    /// Replace the file if it is there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Group)]
pub(crate) struct ImportCheckpoint {
    /// A file that `export` has written
    pub(crate) file: PathBuf,

    /// The bundle to make or to add to; a directory of the container's name if not given
    #[arg(long, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,

    /// Mount the overlay that was the container's root, over the same lower directories
    #[arg(long)]
    pub(crate) mount: bool,

    /// The lower directory, if it is elsewhere on this machine
    #[arg(long, value_name = "DIR")]
    pub(crate) lower: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Containers {
    /// List containers (what `ctr containers` does by itself)
    List(TableOptions),
    /// Start a container from a bundle
    Start(Start),
    /// Run a further process in a container
    Exec(Exec),
    /// Send a signal to a process of a container
    Kill(Kill),
    /// Freeze all processes of a container
    Pause { id: String },
    /// Let a paused container go on
    Resume { id: String },
    /// Show what a container uses, as JSON or as a table that is refreshed
    Stats(Stats),
    /// Change limits of a running container; those that are not named stay as they are
    Update(Update),
    /// Show events as they come, of one container or of all
    Watch {
        id: Option<String>,
        #[command(flatten)]
        options: TableOptions,
    },
    /// Show all containers, or one, their processes and the machine, as JSON
    State {
        /// The container
        id: Option<String>,
    },
}

impl Default for Containers {
    fn default() -> Containers {
        Containers::List(TableOptions { json: false })
    }
}

#[derive(Debug, Clone, Copy, Group)]
pub(crate) struct TableOptions {
    /// JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Group)]
pub(crate) struct EventOptions {
    /// Begin with the stored events that are newer than this (RFC 3339, as 2026-01-31T12:00:00Z)
    #[arg(long, short, value_name = "TIME")]
    pub(crate) timestamp: Option<jiff::Timestamp>,

    /// End after the stored events
    #[arg(long, requires = "timestamp")]
    pub(crate) stored_only: bool,

    #[command(flatten)]
    pub(crate) options: TableOptions,
}

#[derive(Debug, Group)]
pub(crate) struct Start {
    /// The container's name
    pub(crate) id: String,

    /// The OCI bundle: a directory with a config.json and a root file system
    pub(crate) bundle: String,

    /// Connect this terminal or pipe to the container, and exit as it does
    #[arg(long, short)]
    pub(crate) attach: bool,

    /// Keep a label with the container; repeatable
    #[arg(long, short, value_name = "LABEL")]
    pub(crate) label: Vec<String>,

    /// Go on where this checkpoint was made, instead of starting anew
    #[arg(long, short, value_name = "NAME")]
    pub(crate) checkpoint: Option<String>,

    /// Where it is, if not in checkpoints/ of the bundle
    #[arg(long, value_name = "DIR", requires = "checkpoint")]
    pub(crate) checkpoint_dir: Option<PathBuf>,

    /// Ask the runtime not to use pivot_root
    #[arg(long)]
    pub(crate) no_pivot: bool,

    /// OCI runtime in place of the daemon's, name or path
    #[arg(long, short, value_name = "RUNTIME")]
    pub(crate) runtime: Option<String>,

    /// Put in front of the runtime's subcommand; repeatable
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) runtime_args: Vec<String>,
}

#[derive(Debug, Group)]
pub(crate) struct Exec {
    /// The container
    #[arg(long)]
    pub(crate) id: String,

    /// A name for the process
    #[arg(long, value_name = "NAME")]
    pub(crate) pid: String,

    /// Connect this terminal or pipe to the process, and exit as it does
    #[arg(long, short)]
    pub(crate) attach: bool,

    /// Give the process a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,

    /// Its working directory; the container's own if not given
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,

    /// NAME=VALUE, beside the environment of the container; repeatable
    #[arg(long, short, value_name = "VARIABLE")]
    pub(crate) env: Vec<String>,

    /// User to run as, with the user's groups or with GROUP only: names of the container's /etc/passwd and /etc/group, or
    /// numbers; the container's own if not given
    #[arg(long, value_name = "NAME[:GROUP]", value_parser = Wanted::parse, conflicts_with_all = ["uid", "gid"])]
    pub(crate) user: Option<Wanted>,

    /// User id to run as
    #[arg(long, short)]
    pub(crate) uid: Option<u32>,

    /// Group id to run as
    #[arg(long, short)]
    pub(crate) gid: Option<u32>,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Group)]
pub(crate) struct Kill {
    /// The container
    pub(crate) id: String,

    /// The process's name
    #[arg(long, short, value_name = "NAME", default_value = "init")]
    pub(crate) pid: String,

    /// Signal number or name
    #[arg(long, short, default_value = "15", value_parser = signal)]
    pub(crate) signal: u32,
}

#[derive(Debug, Group)]
pub(crate) struct Stats {
    /// The container
    pub(crate) id: String,

    /// A table that is refreshed until Ctrl-C, instead of JSON once
    #[arg(long, short)]
    pub(crate) watch: bool,

    /// How often it is refreshed
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration, requires = "watch")]
    pub(crate) interval: Duration,
}

/// Sizes are in bytes, or end with K, M or G; -1 means no limit.
#[derive(Debug, Group)]
#[command(after_help = "Sizes are in bytes or end with K, M or G (of 1024). -1 means no limit.")]
pub(crate) struct Update {
    /// The container
    pub(crate) id: String,

    /// Memory
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) memory_limit: Option<u64>,

    /// Memory that is left to the container while others have too much
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<u64>,

    /// Memory and swap together
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<u64>,

    /// Relative share of CPU time (2 to 262144)
    #[arg(long, value_name = "N")]
    pub(crate) cpu_shares: Option<u64>,

    /// CPU time in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", value_parser = size, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<u64>,

    /// The period, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<u64>,

    /// The kernel's memory for the container
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) kernel_limit: Option<u64>,

    /// The kernel's memory for its TCP buffers
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) kernel_tcp_limit: Option<u64>,

    /// Relative share of block devices (10 to 1000)
    #[arg(long, value_name = "N")]
    pub(crate) blkio_weight: Option<u64>,

    /// CPUs it may use, as 0-2,4
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,

    /// Memory nodes it may use, as 0,1
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,

    /// Processes and threads
    #[arg(long, value_name = "N", value_parser = size, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<u64>,
}

/// A number, with K, M or G for powers of 1024; -1 is sent as the API wants it, as the two's complement.
fn size(text: &str) -> Result<u64, String> {
    if text == "-1" {
        return Ok(u64::MAX);
    }
    let wrong = || format!("{text:?} is no size: it is a number, or one with K, M or G at its end, or -1 for no limit");
    let (number, shift) = match text.char_indices().next_back() {
        Some((end, 'k' | 'K')) => (&text[..end], 10),
        Some((end, 'm' | 'M')) => (&text[..end], 20),
        Some((end, 'g' | 'G')) => (&text[..end], 30),
        _ => (text, 0),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes <= i64::MAX as u64).ok_or_else(wrong)
}

fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|e| format!("{e}; durations are written as 300ms, 15s or 1m30s"))
}

fn signal(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().or_else(|| sys::signal::by_name(text));
    number.ok_or_else(|| format!("there is no signal {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_command_keeps_its_own_flags() {
        let line = "ctr containers exec --id a --pid b -e X=1 sh -c -t";
        let args = Args::try_parse_from(line.split(' ')).expect("parses");
        let Command::Containers { command: Some(Containers::Exec(exec)) } = args.command else { panic!("not exec") };
        assert_eq!(exec.command, ["sh", "-c", "-t"]);
        assert!(!exec.tty);
        let line = "ctr containers exec --id a --pid b -- -x";
        assert!(Args::try_parse_from(line.split(' ')).is_ok());
    }

    #[test]
    fn unknown_flag_before_a_command_is_an_error() {
        for flag in ["--detach", "-x", "--usr=root", "-5"] {
            for rest in ["-- sh", "sh", "sh -c true"] {
                let line = format!("ctr containers exec --id a --pid b {flag} {rest}");
                let said = Args::try_parse_from(line.split(' ')).expect_err("is an error").to_string();
                assert!(said.contains("unexpected argument"), "{line}: {said}");
            }
        }
    }

    #[test]
    fn sizes_have_units() {
        let all = [("0", 0), ("4096", 4096), ("1k", 1024), ("50M", 50 << 20), ("2G", 2 << 30), ("-1", u64::MAX)];
        for (text, number) in all {
            assert_eq!(size(text), Ok(number));
        }
        for text in ["", "x", "-2", "1T", "k", "99999999999G", "1.5M", "ä"] {
            assert!(size(text).is_err(), "{text}");
        }
        let line = "ctr containers update c --memory-limit -1 --pids-limit 5";
        assert!(Args::try_parse_from(line.split(' ')).is_ok());
    }

    #[test]
    fn signals_have_numbers_and_names() {
        assert_eq!(signal("9"), Ok(9));
        assert_eq!(signal("SIGUSR1"), Ok(10));
        assert!(signal("NOPE").is_err());
    }
}
