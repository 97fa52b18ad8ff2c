//! The command lines of the OCI runtime, as pure functions: no process is started here.
//!
//! The shim calls the subcommands that make a process ([`make`]) and `kill`. The daemon calls all others. A builder returns the
//! arguments without the program's own name. They borrow their text, so that a command line costs one allocation.

use alloc::string::String;
use alloc::vec::Vec;

use crate::checkpoint::CheckpointOptions;
use crate::process_files;
use crate::process_record::Way;

/// Starts a container without pivot_root(2).
pub const NO_PIVOT: &str = "--no-pivot";
/// Names the file with an `update`'s limits.
pub const RESOURCES: &str = "--resources";
/// Names the directory of a checkpoint's images.
pub const IMAGE_PATH: &str = "--image-path";
const WORK_PATH: &str = "--work-path";
const DETACH: &str = "--detach";
const LOG: &str = "--log";
const DELETE: &str = "delete";

/// The options in front of every subcommand.
#[derive(Debug, Clone, Copy)]
pub struct Front<'a> {
    /// The arguments that the client, or the daemon's configuration, has for the runtime.
    pub arguments: &'a [String],
    /// The file to which the runtime appends its log.
    pub log: &'a [u8],
}

/// A call that makes a process.
#[derive(Debug, Clone, Copy)]
pub struct Make<'a> {
    /// The container's id.
    pub id: &'a [u8],
    /// The subcommand. [`Way::Restore`] needs `restore`.
    pub way: Way,
    /// The path of the OCI bundle. `exec` ignores it.
    pub bundle: &'a [u8],
    /// Whether to pass [`NO_PIVOT`]. `exec` ignores it.
    pub no_pivot: bool,
    /// What `restore` needs.
    pub restore: Option<Restore<'a>>,
    /// Where the runtime finds the console socket, for a process with a terminal.
    pub console_socket: Option<&'a [u8]>,
    /// The absolute path to which the runtime writes the pid. Runtimes change into the bundle before they write it.
    pub pid_file: &'a [u8],
}

/// From what a container is restored.
#[derive(Debug, Clone, Copy)]
pub struct Restore<'a> {
    /// The directory of the checkpoint.
    pub images: &'a [u8],
    /// The directory in which CRIU works.
    pub work: &'a [u8],
    /// The options of the checkpoint.
    pub options: &'a CheckpointOptions,
}

/// The call of the shim that makes a process, in a process's directory as the working directory.
pub fn make<'a>(front: Front<'a>, make: &Make<'a>) -> Vec<&'a [u8]> {
    let mut line = CommandLine::beginning_with(front);
    line.word(make.way.name());
    if make.way != Way::Create {
        line.word(DETACH);
    }
    if make.way == Way::Exec {
        line.option("--process", process_files::REQUEST.as_bytes());
    } else {
        if let Some(restore) = make.restore {
            line.images(restore.images, restore.work);
            line.words(restore.options.flags());
        }
        line.option("--bundle", make.bundle);
        if make.no_pivot {
            line.word(NO_PIVOT);
        }
    }
    if let Some(socket) = make.console_socket {
        line.option("--console-socket", socket);
    }
    line.option("--pid-file", make.pid_file);
    line.ending_with(make.id)
}

/// The call of the shim that kills everything in a container.
pub fn kill_all<'a>(front: Front<'a>, id: &'a [u8]) -> Vec<&'a [u8]> {
    let mut line = CommandLine::beginning_with(front);
    line.word("kill");
    line.option("--all", id);
    line.ending_with(b"KILL")
}

/// A call of the daemon for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Runs the user's program in a created container.
    Start,
    /// Freezes all processes of the container.
    Pause,
    /// Thaws them.
    Resume,
    /// Changes the container's limits to those in this file.
    Update(&'a [u8]),
    /// Removes what the runtime keeps of a stopped container.
    Delete,
    /// Removes what the runtime keeps of a container, and kills the container first if it runs. Succeeds if the runtime
    /// does not know the container.
    ForceDelete,
}

impl Operation<'_> {
    /// The runtime's subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Start => "start",
            Operation::Pause => "pause",
            Operation::Resume => "resume",
            Operation::Update(_) => "update",
            Operation::Delete | Operation::ForceDelete => DELETE,
        }
    }
}

/// The call of the daemon that carries out `operation` on the container `id`.
pub fn operate<'a>(front: Front<'a>, operation: Operation<'a>, id: &'a [u8]) -> Vec<&'a [u8]> {
    let mut line = CommandLine::beginning_with(front);
    line.word(operation.name());
    match operation {
        Operation::ForceDelete => line.word("--force"),
        Operation::Update(resources) => line.option(RESOURCES, resources),
        _ => {}
    }
    line.ending_with(id)
}

/// A call that makes a checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct MakeCheckpoint<'a> {
    /// The container's id.
    pub id: &'a [u8],
    /// Whether the container is to stop afterwards.
    pub exit: bool,
    /// The other options.
    pub options: &'a CheckpointOptions,
    /// The directory that the checkpoint is written into.
    pub images: &'a [u8],
    /// The directory in which CRIU works.
    pub work: &'a [u8],
}

/// The call of the daemon that makes a checkpoint.
pub fn checkpoint<'a>(front: Front<'a>, make: &MakeCheckpoint<'a>) -> Vec<&'a [u8]> {
    let mut line = CommandLine::beginning_with(front);
    line.word("checkpoint");
    line.images(make.images, make.work);
    if !make.exit {
        line.word("--leave-running");
    }
    line.words(make.options.flags());
    line.ending_with(make.id)
}

/// The call of the daemon that asks the runtime for help, with a subcommand or in general. It shows what the runtime can do.
pub fn help<'a>(arguments: &'a [String], subcommand: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    arguments.iter().map(String::as_str).chain(subcommand).chain(["--help"])
}

/// The log of a running `delete`, found in the process's `/proc/<pid>/cmdline`. `None` for any other command line.
pub fn log_of_delete(cmdline: &[u8]) -> Option<&[u8]> {
    let mut words = cmdline.split(|byte| *byte == 0);
    words.find(|word| *word == LOG.as_bytes())?;
    let log = words.next()?;
    words.any(|word| word == DELETE.as_bytes()).then_some(log)
}

/// A command line that grows.
struct CommandLine<'a>(Vec<&'a [u8]>);

/// More arguments than nearly every call has, so that the list is allocated once.
const ROOM: usize = 24;

impl<'a> CommandLine<'a> {
    fn beginning_with(front: Front<'a>) -> CommandLine<'a> {
        let mut line = CommandLine(Vec::with_capacity(ROOM));
        line.words(front.arguments.iter().map(String::as_str));
        line.option(LOG, front.log);
        line.option("--log-format", b"json");
        line
    }

    fn word(&mut self, word: &'a str) {
        self.0.push(word.as_bytes());
    }

    fn words(&mut self, words: impl IntoIterator<Item = &'a str>) {
        words.into_iter().for_each(|word| self.word(word));
    }

    fn option(&mut self, name: &'static str, value: &'a [u8]) {
        self.word(name);
        self.0.push(value);
    }

    fn images(&mut self, images: &'a [u8], work: &'a [u8]) {
        self.option(IMAGE_PATH, images);
        self.option(WORK_PATH, work);
    }

    fn ending_with(mut self, last: &'a [u8]) -> Vec<&'a [u8]> {
        self.0.push(last);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::borrow::ToOwned;
    use alloc::string::ToString;
    use alloc::vec;

    fn text(line: Vec<&[u8]>) -> String {
        let words: Vec<&str> = line.into_iter().map(|word| core::str::from_utf8(word).expect("text")).collect();
        words.join(" ")
    }

    fn with_front(test: impl FnOnce(Front<'_>)) {
        test(Front { arguments: &["--root".to_string(), "/r".to_string()], log: b"/d/log.json" });
    }

    const FRONT: &str = "--root /r --log /d/log.json --log-format json";

    fn call(way: Way) -> Make<'static> {
        Make {
            id: b"c",
            way,
            bundle: b"/b",
            no_pivot: false,
            restore: None,
            console_socket: None,
            pid_file: b"/d/.runtime-pid",
        }
    }

    #[test]
    fn process_is_made_by_the_subcommand_of_its_way() {
        with_front(|front| {
            let line = |call| text(make(front, &call)).strip_prefix(FRONT).expect("its front").to_owned();
            assert_eq!(line(call(Way::Create)), " create --bundle /b --pid-file /d/.runtime-pid c");
            assert_eq!(line(call(Way::Run)), " run --detach --bundle /b --pid-file /d/.runtime-pid c");
            let exec = Make { no_pivot: true, console_socket: Some(b"/s"), ..call(Way::Exec) };
            let expected = " exec --detach --process process.json --console-socket /s --pid-file /d/.runtime-pid c";
            assert_eq!(line(exec), expected);
            let create = Make { no_pivot: true, console_socket: Some(b"/s"), ..call(Way::Create) };
            let expected = " create --bundle /b --no-pivot --console-socket /s --pid-file /d/.runtime-pid c";
            assert_eq!(line(create), expected);
            let options =
                CheckpointOptions { tcp: true, empty_ns: vec!["network".into()], ..CheckpointOptions::default() };
            let restore = Some(Restore { images: b"/i", work: b"/d/criu.work", options: &options });
            let expected = " restore --detach --image-path /i --work-path /d/criu.work --tcp-established \
                            --empty-ns network --bundle /b --pid-file /d/.runtime-pid c";
            assert_eq!(line(Make { restore, ..call(Way::Restore) }), expected);
        });
    }

    #[test]
    fn operation_has_its_own_options() {
        with_front(|front| {
            let line = |operation| text(operate(front, operation, b"c")).strip_prefix(FRONT).expect("front").to_owned();
            assert_eq!(line(Operation::Start), " start c");
            assert_eq!(line(Operation::Pause), " pause c");
            assert_eq!(line(Operation::Resume), " resume c");
            assert_eq!(line(Operation::Update(b"/f")), " update --resources /f c");
            assert_eq!(line(Operation::Delete), " delete c");
            assert_eq!(line(Operation::ForceDelete), " delete --force c");
            assert_eq!(text(kill_all(front, b"c")), FRONT.to_owned() + " kill --all c KILL");
        });
    }

    #[test]
    fn checkpoint_leaves_the_container_running_unless_exit_is_asked_for() {
        with_front(|front| {
            let options = CheckpointOptions { shell: true, ..CheckpointOptions::default() };
            let line = |exit| {
                let make = MakeCheckpoint { id: b"c", exit, options: &options, images: b"/i", work: b"/i/criu.work" };
                text(checkpoint(front, &make)).strip_prefix(FRONT).expect("its front").to_owned()
            };
            let begin = " checkpoint --image-path /i --work-path /i/criu.work";
            assert_eq!(line(false), begin.to_owned() + " --leave-running --shell-job c");
            assert_eq!(line(true), begin.to_owned() + " --shell-job c");
        });
    }

    #[test]
    fn help_follows_the_runtimes_own_arguments() {
        let arguments = ["--root=/r".to_string()];
        assert!(help(&arguments, None).eq(["--root=/r", "--help"]));
        assert!(help(&arguments, Some("update")).eq(["--root=/r", "update", "--help"]));
    }

    #[test]
    fn running_delete_is_recognised_by_its_command_line() {
        with_front(|front| {
            let cmdline = |operation| {
                let line = operate(front, operation, b"c");
                line.iter().fold(b"runc\0".to_vec(), |text, word| [&text, *word, b"\0"].concat())
            };
            for delete in [Operation::Delete, Operation::ForceDelete] {
                assert_eq!(log_of_delete(&cmdline(delete)), Some(&b"/d/log.json"[..]));
            }
            assert_eq!(log_of_delete(&cmdline(Operation::Start)), None);
            assert_eq!(log_of_delete(b"sh\0-c\0delete\0"), None);
        });
    }
}
