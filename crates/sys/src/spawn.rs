//! Starting a program without copying this one's memory (clone(2), `CLONE_VM | CLONE_VFORK`). Until its exec the child
//! shares this program's memory and runs on a stack of its own. The thread that starts it waits until then.
//!
//! std's `Command` copies the page tables as soon as it has to run code between fork and exec. glibc's posix_spawn(3)
//! does not copy them, but cannot make the child die with its parent.

use alloc::ffi::CString;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_int, c_void};
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno};
use rustix::path::Arg;
use rustix::process::Pid;

use crate::{environment, raw};

/// A program to be started.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The paths at which it may be, in the order in which they are tried.
    programs: Vec<CString>,
    arguments: Vec<CString>,
    environment: &'a [CString],
    directory: Option<CString>,
    stdio: [BorrowedFd<'a>; 3],
    /// The program as an open file. It is tried first, and the paths are tried only if it cannot be executed.
    pub file: Option<BorrowedFd<'a>>,
    /// Whether the child gets a process group of its own.
    pub own_group: bool,
    /// Whether the kernel kills the child when the thread that starts it dies (prctl(2), `PR_SET_PDEATHSIG`). The
    /// setting survives the exec, and the child's own children do not inherit it.
    pub dies_with_parent: bool,
    /// Whether the child starts with all signals blocked. Otherwise it starts with none blocked.
    pub blocks_signals: bool,
}

/// The size of the child's stack, on which it makes a handful of system calls.
const STACK: usize = 16 << 10;

/// What the child reads, and where it writes the error if it fails.
struct Prepared<'a> {
    programs: &'a [CString],
    file: Option<BorrowedFd<'a>>,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    directory: Option<&'a CStr>,
    stdio: [BorrowedFd<'a>; 3],
    own_group: bool,
    dies_with_parent: bool,
    blocks_signals: bool,
    parent: Pid,
    error: Option<Errno>,
}

fn text(text: impl Arg) -> io::Result<CString> {
    text.into_c_str().map(|text| text.into_owned())
}

/// Returns the paths at which execvp(3) would look for `program`.
fn candidates(program: CString) -> Vec<CString> {
    if program.as_bytes().contains(&b'/') {
        return vec![program];
    }
    let variables = environment::variables();
    let path = variables.iter().find_map(|variable| environment::value_of(variable.as_bytes(), "PATH"));
    let directories = path.unwrap_or(b"/bin:/usr/bin").split(|byte| *byte == b':');
    let below = |directory: &[u8]| match directory {
        b"" => program.clone(),
        // No zero byte is possible, since all are parts of C strings.
        directory => CString::new([directory, b"/", program.as_bytes()].concat()).unwrap_or_default(),
    };
    directories.map(below).collect()
}

impl<'a> Spawn<'a> {
    /// Prepares to start `program`, a path or a name that is looked up in this program's `PATH`. The child gets `stdio`
    /// as its descriptors 0, 1 and 2.
    pub fn new(program: impl Arg, environment: &'a [CString], stdio: [BorrowedFd<'a>; 3]) -> io::Result<Spawn<'a>> {
        let program = text(program)?;
        Ok(Spawn {
            arguments: vec![program.clone()],
            programs: candidates(program),
            environment,
            directory: None,
            stdio,
            file: None,
            own_group: false,
            dies_with_parent: false,
            blocks_signals: false,
        })
    }

    /// Adds an argument.
    pub fn argument(&mut self, argument: impl Arg) -> io::Result<()> {
        self.arguments.push(text(argument)?);
        Ok(())
    }

    /// Adds arguments.
    pub fn arguments(&mut self, arguments: impl IntoIterator<Item = impl Arg>) -> io::Result<()> {
        arguments.into_iter().try_for_each(|argument| self.argument(argument))
    }

    /// Sets the child's working directory.
    pub fn directory(&mut self, directory: impl Arg) -> io::Result<()> {
        self.directory = Some(text(directory)?);
        Ok(())
    }

    /// Starts the program and returns the child's pid. The caller must reap the child. Like [`crate::child::spawn`]
    /// this never returns once no child may be started any more.
    pub fn start(&self) -> io::Result<Pid> {
        // The child puts these descriptors at 0, 1 and 2 one by one. One that is itself 0, 1 or 2 might be overwritten
        // before it is used, so move it.
        let moved = |fd: &BorrowedFd<'_>| match fd.as_raw_fd() {
            ..3 => rustix::io::fcntl_dupfd_cloexec(fd, 3).map(Some),
            _ => Ok(None),
        };
        let [a, b, c] = &self.stdio;
        let moved: [Option<OwnedFd>; 3] = [moved(a)?, moved(b)?, moved(c)?];
        let stdio = core::array::from_fn(|at| moved[at].as_ref().map_or(self.stdio[at], rustix::fd::AsFd::as_fd));
        let pointers = |all: &[CString]| -> Vec<*const c_char> {
            all.iter().map(|one| one.as_ptr()).chain([core::ptr::null()]).collect()
        };
        let (arguments, environment) = (pointers(&self.arguments), pointers(self.environment));
        let mut prepared = Prepared {
            programs: &self.programs,
            file: self.file,
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            directory: self.directory.as_deref(),
            stdio,
            own_group: self.own_group,
            dies_with_parent: self.dies_with_parent,
            blocks_signals: self.blocks_signals,
            parent: rustix::process::getpid(),
            error: None,
        };
        #[cfg(feature = "std")]
        let _starting = crate::child::starting();
        // A signal handler of this program must not run in the child, which shares its memory.
        let before = crate::signal::block_all_for_now()?;
        let pid = begin(&mut prepared);
        crate::signal::restore(&before)?;
        let pid = pid?;
        if let Some(error) = prepared.error {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            return Err(error);
        }
        Ok(pid)
    }
}

/// Creates the child and returns when it has executed its program or has ended.
fn begin(prepared: &mut Prepared<'_>) -> io::Result<Pid> {
    #[repr(align(16))]
    struct Stack([core::mem::MaybeUninit<u8>; STACK]);
    let mut stack = Stack([const { core::mem::MaybeUninit::uninit() }; STACK]);
    // SAFETY: `end` is the end of the array, which is aligned to 16 bytes as its beginning and its size are. `stack`
    // and `prepared` are reachable by this thread alone, which waits until the child no longer uses them (CLONE_VFORK).
    // `child` reads nothing else but what `prepared` refers to, makes system calls, and ends with `exit`.
    unsafe {
        let end = stack.0.as_mut_ptr().add(STACK).cast();
        raw::clone_vfork(child, end, core::ptr::from_mut(prepared).cast())
    }
}

extern "C" fn child(prepared: *mut c_void) -> c_int {
    // SAFETY: `begin` passes a pointer to its `Prepared`, to which it has the only reference. `begin` waits until this
    // process no longer shares its memory.
    let prepared = unsafe { &mut *prepared.cast::<Prepared<'_>>() };
    let Err(error) = become_program(prepared);
    prepared.error = Some(error);
    raw::exit(127)
}

/// Sets up this process and executes the program. Returns only if that fails.
///
/// Since this process shares its parent's memory, the function only makes system calls that change this process. It
/// does not allocate, and takes no lock that another thread of the parent may hold.
fn become_program(prepared: &Prepared<'_>) -> io::Result<core::convert::Infallible> {
    if prepared.own_group {
        rustix::process::setpgid(None, None)?;
    }
    if prepared.dies_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have died before the setting took effect.
        if rustix::process::getppid() != Some(prepared.parent) {
            return Err(Errno::SRCH);
        }
    }
    rustix::stdio::dup2_stdin(prepared.stdio[0])?;
    rustix::stdio::dup2_stdout(prepared.stdio[1])?;
    rustix::stdio::dup2_stderr(prepared.stdio[2])?;
    if let Some(directory) = prepared.directory {
        rustix::process::chdir(directory)?;
    }
    // An exec keeps ignored signals ignored: SIGPIPE, which Rust programs ignore, and those that this program was
    // started with.
    raw::restore_default_actions();
    if !prepared.blocks_signals {
        crate::signal::unblock_all()?;
    }
    if let Some(file) = prepared.file {
        // SAFETY: `start` has built both lists of C strings that it owns, with a null pointer at the end, and keeps
        // them until this process has ended or executed a program.
        let _ = unsafe { raw::execveat(file, prepared.arguments, prepared.environment) };
    }
    let mut failed = Errno::NOENT;
    for program in prepared.programs {
        // SAFETY: both lists are the same as for `execveat`: C strings and a null pointer, which `start` keeps alive.
        match unsafe { raw::execve(program, prepared.arguments, prepared.environment) } {
            // The program may be at the next path.
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => failed = Errno::ACCESS,
            error => return Err(error),
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::process::{WaitOptions, waitpid};
    use std::io::Read;
    use std::path::Path;

    /// Runs a shell script and returns its output and exit status.
    fn run(script: &str, change: impl FnOnce(&mut Spawn<'_>)) -> (String, i32) {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
        let null = std::fs::File::open("/dev/null").expect("opens");
        let environment = environment::variables_without(&["PATH"]);
        let stdio = [null.as_fd(), writer.as_fd(), writer.as_fd()];
        let mut spawn = Spawn::new(Path::new("/bin/sh"), &environment, stdio).expect("a program");
        spawn.arguments(["-c", script]).expect("no zero bytes");
        change(&mut spawn);
        let pid = spawn.start().expect("starts");
        drop(writer);
        let mut said = String::new();
        std::fs::File::from(reader).read_to_string(&mut said).expect("reads");
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).expect("our child").expect("it has ended");
        (said.trim().to_string(), status.exit_status().unwrap_or(-1))
    }

    #[test]
    fn child_gets_its_directory_arguments_and_stdio() {
        let (said, status) = run("pwd; echo $0; readlink /proc/$$/fd/0; exit 7", |spawn| {
            spawn.directory(Path::new("/proc")).expect("a path");
            spawn.argument("zero").expect("an argument");
        });
        assert_eq!((said.as_str(), status), ("/proc\nzero\n/dev/null", 7));
        assert_eq!(run("grep SigBlk /proc/self/status", |_| {}).0, "SigBlk:\t0000000000000000");
        // This program ignores SIGPIPE, signal 13.
        assert_eq!(run("kill -PIPE $$; echo survived", |_| {}).0, "");
        let (said, _) =
            run("read pid rest </proc/self/stat; ps -o pgid= -p $$ 2>/dev/null || echo $$; echo $$", |spawn| {
                spawn.own_group = true;
                spawn.dies_with_parent = true;
            });
        let mut lines = said.lines().map(str::trim);
        assert_eq!(lines.next(), lines.next());
    }

    #[test]
    fn child_begins_with_every_signal_at_its_default() {
        // SAFETY: SIG_IGN runs no code of this program, and the call accesses no memory of it.
        let ignore = |signal: i32| unsafe { libc::signal(signal, libc::SIG_IGN) };
        // No other test depends on these signals.
        for signal in [libc::SIGQUIT, libc::SIGUSR2, libc::SIGRTMIN() + 1] {
            ignore(signal);
        }
        assert_eq!(run("grep SigIgn /proc/self/status", |_| {}).0, "SigIgn:\t0000000000000000");
    }

    #[test]
    fn open_file_is_executed_and_otherwise_the_path() {
        let open = |path: &str| std::fs::File::open(path).expect("opens");
        let (other, none) = (open("/bin/echo"), open("/dev/null"));
        for (file, said) in [(&other, "-c echo shell"), (&none, "shell")] {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
            let stdio = [none.as_fd(), writer.as_fd(), writer.as_fd()];
            let mut spawn = Spawn::new("/bin/sh", &[], stdio).expect("a path");
            spawn.arguments(["-c", "echo shell"]).expect("arguments");
            spawn.file = Some(file.as_fd());
            let pid = spawn.start().expect("starts");
            drop(writer);
            let mut text = String::new();
            std::fs::File::from(reader).read_to_string(&mut text).expect("reads");
            waitpid(Some(pid), WaitOptions::empty()).expect("our child");
            assert_eq!(text.trim(), said);
        }
    }

    #[test]
    fn program_name_is_looked_up_in_path() {
        let null = std::fs::File::open("/dev/null").expect("opens");
        let spawn = Spawn::new(Path::new("true"), &[], [null.as_fd(), null.as_fd(), null.as_fd()]).expect("a name");
        let pid = spawn.start().expect("starts");
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).expect("our child").expect("it has ended");
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    fn child_starts_with_signals_blocked_on_request() {
        let (said, _) =
            run("while read name value; do [ $name = SigBlk: ] && echo $value; done </proc/$$/status", |spawn| {
                spawn.blocks_signals = true;
            });
        // SIGKILL and SIGSTOP cannot be blocked (signal(7)). Bit 0 is signal 1.
        assert_eq!(u64::from_str_radix(&said, 16).expect("a mask") & 0x7fff_ffff, 0x7ffb_feff, "{said}");
    }

    #[test]
    fn failed_start_is_an_error_and_leaves_no_child() {
        let null = std::fs::File::open("/dev/null").expect("opens");
        let stdio = [null.as_fd(), null.as_fd(), null.as_fd()];
        let error = Spawn::new(Path::new("/nonexistent/program"), &[], stdio).expect("a path").start();
        assert_eq!(error.expect_err("there is none"), Errno::NOENT);
        let mut spawn = Spawn::new(Path::new("/bin/sh"), &[], stdio).expect("a path");
        spawn.directory(Path::new("/nonexistent")).expect("a path");
        assert_eq!(spawn.start().expect_err("there is none"), Errno::NOENT);
        assert!(spawn.argument("a\0b").is_err());
    }
}
