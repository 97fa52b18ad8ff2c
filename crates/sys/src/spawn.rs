//! Starting a program without a copy of this one's memory (clone(2), `CLONE_VM | CLONE_VFORK`): the child runs on a
//! stack of its own beside this program's memory until its exec, and the thread that starts it waits for that.
//!
//! std's `Command` copies the page tables as soon as something is to be done between fork and exec, and glibc's
//! posix_spawn(3), which does not, cannot have the child die with its parent.

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
    /// Where it may be, in this order.
    programs: Vec<CString>,
    arguments: Vec<CString>,
    environment: &'a [CString],
    directory: Option<CString>,
    stdio: [BorrowedFd<'a>; 3],
    /// The program as it is open here; if it cannot be begun so, it is by its path.
    pub file: Option<BorrowedFd<'a>>,
    /// A process group of its own.
    pub own_group: bool,
    /// Killed when the thread that starts it dies (prctl(2), `PR_SET_PDEATHSIG`). Outlives the exec, and is not passed on to
    /// the child's own children.
    pub dies_with_parent: bool,
    /// It begins with all signals blocked. Otherwise with none.
    pub blocks_signals: bool,
}

/// The child makes a handful of system calls.
const STACK: usize = 16 << 10;

/// What the child reads, and where it says what failed.
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

/// The paths under which execvp(3) would look for `program`.
fn candidates(program: CString) -> Vec<CString> {
    if program.as_bytes().contains(&b'/') {
        return vec![program];
    }
    let variables = environment::variables();
    let path = variables.iter().find_map(|variable| environment::value_of(variable.as_bytes(), "PATH"));
    let directories = path.unwrap_or(b"/bin:/usr/bin").split(|byte| *byte == b':');
    let below = |directory: &[u8]| match directory {
        b"" => program.clone(),
        // None has a zero byte: all are parts of strings.
        directory => CString::new([directory, b"/", program.as_bytes()].concat()).unwrap_or_default(),
    };
    directories.map(below).collect()
}

impl<'a> Spawn<'a> {
    /// `program` is a path, or a name that is looked up in this program's `PATH`. `stdio` is what it gets as 0, 1 and 2.
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

    /// Sets its working directory.
    pub fn directory(&mut self, directory: impl Arg) -> io::Result<()> {
        self.directory = Some(text(directory)?);
        Ok(())
    }

    /// Starts it; the pid of a child that is the caller's to reap. Like [`crate::child::spawn`] this waits for ever once no
    /// child may be started any more.
    pub fn start(&self) -> io::Result<Pid> {
        // What becomes 0, 1 and 2 must not be among them, or one would be overwritten before it is used.
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
        // No handler of this program's may run in the child, in the memory of both.
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

/// Returns when the child has begun its program, or ended.
fn begin(prepared: &mut Prepared<'_>) -> io::Result<Pid> {
    #[repr(align(16))]
    struct Stack([core::mem::MaybeUninit<u8>; STACK]);
    let mut stack = Stack([const { core::mem::MaybeUninit::uninit() }; STACK]);
    // SAFETY: the stack grows down from its aligned end, which is within the array or just behind it. This thread is
    // suspended until the child has done with both stack and `prepared` (CLONE_VFORK), and no other thread knows of them.
    // The child makes system calls and ends.
    unsafe {
        let end = stack.0.as_mut_ptr().add(STACK).cast();
        raw::clone_vfork(child, end, core::ptr::from_mut(prepared).cast())
    }
}

extern "C" fn child(prepared: *mut c_void) -> c_int {
    // SAFETY: it is what `begin` was given, which waits, so that nobody else uses it.
    let prepared = unsafe { &mut *prepared.cast::<Prepared<'_>>() };
    let Err(error) = become_program(prepared);
    prepared.error = Some(error);
    raw::exit(127)
}

/// Returns only if something failed. All of it are system calls that change only this process; nothing allocates or takes
/// a lock that another thread may hold.
fn become_program(prepared: &Prepared<'_>) -> io::Result<core::convert::Infallible> {
    if prepared.own_group {
        rustix::process::setpgid(None, None)?;
    }
    if prepared.dies_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // It may have died before that took hold.
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
    // What is ignored stays so over an exec: SIGPIPE, which Rust programs ignore, and what this program's starter ignored.
    raw::restore_default_actions();
    if !prepared.blocks_signals {
        crate::signal::unblock_all()?;
    }
    if let Some(file) = prepared.file {
        // SAFETY: `start` has put a null pointer at the end of both lists, which are there as long as it waits.
        let _ = unsafe { raw::execveat(file, prepared.arguments, prepared.environment) };
    }
    let mut failed = Errno::NOENT;
    for program in prepared.programs {
        // SAFETY: as above.
        match unsafe { raw::execve(program, prepared.arguments, prepared.environment) } {
            // The next one may be there.
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

    /// What a shell script writes, and its status.
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
    fn it_gets_what_it_was_given() {
        let (said, status) = run("pwd; echo $0; readlink /proc/$$/fd/0; exit 7", |spawn| {
            spawn.directory(Path::new("/proc")).expect("a path");
            spawn.argument("zero").expect("an argument");
        });
        assert_eq!((said.as_str(), status), ("/proc\nzero\n/dev/null", 7));
        assert_eq!(run("grep SigBlk /proc/self/status", |_| {}).0, "SigBlk:\t0000000000000000");
        // This program ignores SIGPIPE, which is number 13.
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
        // SAFETY: no handler goes away by this, and SIG_IGN needs none. The signals are none that a test depends on.
        let ignore = |signal: i32| unsafe { libc::signal(signal, libc::SIG_IGN) };
        for signal in [libc::SIGQUIT, libc::SIGUSR2, libc::SIGRTMIN() + 1] {
            ignore(signal);
        }
        assert_eq!(run("grep SigIgn /proc/self/status", |_| {}).0, "SigIgn:\t0000000000000000");
    }

    #[test]
    fn what_is_open_is_begun_and_otherwise_what_has_the_name() {
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
    fn a_name_is_looked_up() {
        let null = std::fs::File::open("/dev/null").expect("opens");
        let spawn = Spawn::new(Path::new("true"), &[], [null.as_fd(), null.as_fd(), null.as_fd()]).expect("a name");
        let pid = spawn.start().expect("starts");
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).expect("our child").expect("it has ended");
        assert_eq!(status.exit_status(), Some(0));
    }

    #[test]
    fn signals_stay_blocked_where_that_is_asked_for() {
        let (said, _) =
            run("while read name value; do [ $name = SigBlk: ] && echo $value; done </proc/$$/status", |spawn| {
                spawn.blocks_signals = true;
            });
        // All but SIGKILL and SIGSTOP (signal(7)); bit 0 is signal 1.
        assert_eq!(u64::from_str_radix(&said, 16).expect("a mask") & 0x7fff_ffff, 0x7ffb_feff, "{said}");
    }

    #[test]
    fn what_cannot_be_started_is_an_error_and_no_child() {
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
