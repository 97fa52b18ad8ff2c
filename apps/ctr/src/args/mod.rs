//! The command line: commands, flags and their help.

mod values;

use clap::{Args as Group, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

use crate::user::Wanted;
use values::{duration, signal, size};

/// Start, enter and watch the containers that containerd supervises
#[derive(Debug, Parser)]
#[command(name = "ctr", version, max_term_width = 100, args_override_self = true)]
pub(crate) struct Args {
    /// Where the daemon listens
    #[arg(long, global = true, value_name = "ADDRESS", default_value = "unix:///run/containerd/containerd.sock")]
    pub(crate) address: String,

    /// How long to wait for the daemon's first answer; 0 for no limit
    #[arg(long, global = true, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub(crate) conn_timeout: Duration,

    /// This client's certificate for tcp://, in PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The certificate's private key, in PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,

    /// The authority that signed the daemon's certificate, in PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// Show the details of a failure
    #[arg(long, global = true)]
    pub(crate) debug: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List, start, enter, signal, pause and watch containers
    Containers {
        #[command(subcommand)]
        command: Option<Containers>,
    },
    /// List, create, delete, export and import checkpoints
    Checkpoints(Checkpoints),
    /// Show events as they come, or all events since a point in time
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
    /// List the checkpoints of a container; `ctr checkpoints ID` does the same
    List(ListCheckpoints),
    /// Write a container's state to disk; the container goes on running unless --exit is given
    Create(CreateCheckpoint),
    /// Delete a checkpoint
    Delete(DeleteCheckpoint),
    /// Check what CRIU, the kernel and the runtime of this host can do
    Check {
        /// The OCI runtime, name or path
        #[arg(long, short, default_value = "runc")]
        runtime: String,
    },
    /// Write a checkpoint and the files of its container into one archive
    Export(ExportCheckpoint),
    /// Unpack an exported checkpoint into a bundle
    Import(ImportCheckpoint),
}

#[derive(Debug, Group)]
pub(crate) struct ListCheckpoints {
    /// The container
    pub(crate) id: Option<String>,

    /// The directory of the checkpoints [default: checkpoints/ in the bundle]
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

    /// Include established TCP connections
    #[arg(long)]
    pub(crate) tcp: bool,

    /// Include unix sockets whose peer is outside the container
    #[arg(long)]
    pub(crate) unix_sockets: bool,

    /// Stop the container once the checkpoint is on disk
    #[arg(long)]
    pub(crate) exit: bool,

    /// Include a terminal that comes from outside the container
    #[arg(long)]
    pub(crate) shell: bool,

    /// A namespace to leave empty, such as network; repeatable
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) empty_ns: Vec<String>,

    /// The directory of the checkpoints [default: checkpoints/ in the bundle]
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

    /// The directory of the checkpoints [default: checkpoints/ in the bundle]
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint_dir: Option<PathBuf>,
}

#[derive(Debug, Group)]
pub(crate) struct ExportCheckpoint {
    /// The container; it need not exist any more if --bundle is given
    pub(crate) id: String,

    /// The checkpoint's name
    pub(crate) name: String,

    /// The file to write
    pub(crate) file: PathBuf,

    /// The directory of the checkpoints [default: checkpoints/ in the bundle]
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint_dir: Option<PathBuf>,

    /// The container's bundle, if the container no longer exists
    #[arg(long, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,

    /// Include the whole root file system, and not only the changes in an overlay
    #[arg(long)]
    pub(crate) rootfs: bool,

    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Group)]
pub(crate) struct ImportCheckpoint {
    /// An archive that `export` has written
    pub(crate) file: PathBuf,

    /// The bundle to create or to add to [default: a directory named after the container]
    #[arg(long, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,

    /// Mount the container's root as an overlay over the same lower directories
    #[arg(long)]
    pub(crate) mount: bool,

    /// The lower directory, if it has another path on this machine
    #[arg(long, value_name = "DIR")]
    pub(crate) lower: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Containers {
    /// List containers; `ctr containers` does the same
    List(TableOptions),
    /// Start a container from a bundle
    Start(Start),
    /// Run another process in a container
    Exec(Exec),
    /// Send a signal to a process of a container
    Kill(Kill),
    /// Freeze all processes of a container
    Pause { id: String },
    /// Let a paused container continue
    Resume { id: String },
    /// Show the resource usage of a container, as JSON or as a table that is refreshed
    Stats(Stats),
    /// Change limits of a running container; other limits stay unchanged
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
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Group)]
pub(crate) struct EventOptions {
    /// Begin with the recorded events that are newer than this (RFC 3339, such as 2026-01-31T12:00:00Z)
    #[arg(long, short, value_name = "TIME")]
    pub(crate) timestamp: Option<jiff::Timestamp>,

    /// End after the recorded events
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

    /// Attach this terminal or pipe to the container, and exit with its status
    #[arg(long, short)]
    pub(crate) attach: bool,

    /// Attach a label to the container; repeatable
    #[arg(long, short, value_name = "LABEL")]
    pub(crate) label: Vec<String>,

    /// Restore the container from this checkpoint
    #[arg(long, short, value_name = "NAME")]
    pub(crate) checkpoint: Option<String>,

    /// The directory of the checkpoints [default: checkpoints/ in the bundle]
    #[arg(long, value_name = "DIR", requires = "checkpoint")]
    pub(crate) checkpoint_dir: Option<PathBuf>,

    /// Ask the runtime not to use pivot_root
    #[arg(long)]
    pub(crate) no_pivot: bool,

    /// Use this OCI runtime instead of the daemon's; a name or a path
    #[arg(long, short, value_name = "RUNTIME")]
    pub(crate) runtime: Option<String>,

    /// An argument to put in front of the runtime's subcommand; repeatable
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

    /// Attach this terminal or pipe to the process, and exit with its status
    #[arg(long, short)]
    pub(crate) attach: bool,

    /// Give the process a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,

    /// The working directory [default: the container's]
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,

    /// A variable to add to the container's environment, as NAME=VALUE; repeatable
    #[arg(long, short, value_name = "VARIABLE")]
    pub(crate) env: Vec<String>,

    /// The user to run as, with all groups of the user or with GROUP only. Names are looked up in the container's /etc/passwd
    /// and /etc/group; numbers are ids [default: the container's]
    #[arg(long, value_name = "NAME[:GROUP]", value_parser = Wanted::parse, conflicts_with_all = ["uid", "gid"])]
    pub(crate) user: Option<Wanted>,

    /// The user id to run as
    #[arg(long, short)]
    pub(crate) uid: Option<u32>,

    /// The group id to run as
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

    /// The number or name of the signal
    #[arg(long, short, default_value = "15", value_parser = signal)]
    pub(crate) signal: u32,
}

#[derive(Debug, Group)]
pub(crate) struct Stats {
    /// The container
    pub(crate) id: String,

    /// Show a table that is refreshed until Ctrl-C, instead of JSON once
    #[arg(long, short)]
    pub(crate) watch: bool,

    /// How often to refresh the table
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration, requires = "watch")]
    pub(crate) interval: Duration,
}

#[derive(Debug, Group)]
#[command(after_help = "Sizes are in bytes, or end with K, M or G (powers of 1024). -1 means no limit.")]
pub(crate) struct Update {
    /// The container
    pub(crate) id: String,

    /// The most memory
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) memory_limit: Option<u64>,

    /// The memory that is left to the container when the machine runs short of it
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<u64>,

    /// The most memory and swap together
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<u64>,

    /// The relative share of CPU time (2 to 262144)
    #[arg(long, value_name = "N")]
    pub(crate) cpu_shares: Option<u64>,

    /// The CPU time in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", value_parser = size, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<u64>,

    /// The period of the CPU quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<u64>,

    /// The most memory that the kernel uses for the container
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) kernel_limit: Option<u64>,

    /// The most memory that the kernel uses for the container's TCP buffers
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub(crate) kernel_tcp_limit: Option<u64>,

    /// The relative share of block device time (10 to 1000)
    #[arg(long, value_name = "N")]
    pub(crate) blkio_weight: Option<u64>,

    /// The CPUs that the container may use, such as 0-2,4
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,

    /// The memory nodes that the container may use, such as 0,1
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,

    /// The most processes and threads
    #[arg(long, value_name = "N", value_parser = size, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_of_the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_after_the_program_to_run_belong_to_it() {
        let line = "ctr containers exec --id a --pid b -e X=1 sh -c -t";
        let args = Args::try_parse_from(line.split(' ')).expect("parses");
        let Command::Containers { command: Some(Containers::Exec(exec)) } = args.command else { panic!("not exec") };
        assert_eq!(exec.command, ["sh", "-c", "-t"]);
        assert!(!exec.tty);
        let line = "ctr containers exec --id a --pid b -- -x";
        assert!(Args::try_parse_from(line.split(' ')).is_ok());
    }

    #[test]
    fn minus_one_is_a_size_and_not_a_flag() {
        let line = "ctr containers update c --memory-limit -1 --pids-limit 5";
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
}
