//! Starting a program without a copy of this one's memory (clone(2), `CLONE_VM | CLONE_VFORK`): the child runs on a
//! stack of its own beside this program's memory until its exec, and the thread that starts it waits for that.
//!
//! std's `Command` copies the page tables as soon as something is to be done between fork and exec, and glibc's
//! posix_spawn(3), which does not, cannot have the child die with its parent.

use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::process::Pid;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A program to be started.
#[derive(Debug)]
pub struct Spawn<'a> {
    program: CString,
    arguments: Vec<CString>,
    environment: &'a [CString],
    directory: Option<CString>,
    stdio: [BorrowedFd<'a>; 3],
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
struct Prepared {
    program: *const libc::c_char,
    arguments: *const *const libc::c_char,
    environment: *const *const libc::c_char,
    directory: *const libc::c_char,
    stdio: [libc::c_int; 3],
    own_group: bool,
    dies_with_parent: bool,
    blocks_signals: bool,
    parent: libc::pid_t,
    error: libc::c_int,
}

fn text(text: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(text.as_ref().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The environment of this program but for some variables.
pub fn environment_without(names: &[&str]) -> Vec<CString> {
    let kept = std::env::vars_os().filter(|(name, _)| !names.iter().any(|other| name == other));
    kept.filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()).collect()
}

impl<'a> Spawn<'a> {
    /// `program` is a path, or a name that is looked up in this program's `PATH`. `stdio` is what it gets as 0, 1 and 2.
    pub fn new(program: &Path, environment: &'a [CString], stdio: [BorrowedFd<'a>; 3]) -> io::Result<Spawn<'a>> {
        let program = text(program)?;
        Ok(Spawn {
            arguments: vec![program.clone()],
            program,
            environment,
            directory: None,
            stdio,
            own_group: false,
            dies_with_parent: false,
            blocks_signals: false,
        })
    }

    /// Adds an argument.
    pub fn argument(&mut self, argument: impl AsRef<OsStr>) -> io::Result<()> {
        self.arguments.push(text(argument)?);
        Ok(())
    }

    /// Adds arguments.
    pub fn arguments(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> io::Result<()> {
        arguments.into_iter().try_for_each(|argument| self.argument(argument))
    }

    /// Sets its working directory.
    pub fn directory(&mut self, directory: &Path) -> io::Result<()> {
        self.directory = Some(text(directory)?);
        Ok(())
    }

    /// Starts it; the pid of a child that is the caller's to reap. Like [`crate::child::spawn`] this waits for ever once no
    /// child may be started any more.
    pub fn start(&self) -> io::Result<Pid> {
        // What becomes 0, 1 and 2 must not be among them, or one would be overwritten before it is used.
        let above = |fd: &BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let mut moved: Vec<OwnedFd> = Vec::new();
        let mut stdio = self.stdio.map(|fd| fd.as_raw_fd());
        for (number, fd) in stdio.iter_mut().zip(&self.stdio) {
            if *number < 3 {
                moved.push(above(fd)?);
                *number = moved[moved.len() - 1].as_raw_fd();
            }
        }
        let pointers = |all: &[CString]| -> Vec<*const libc::c_char> {
            all.iter().map(|one| one.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (arguments, environment) = (pointers(&self.arguments), pointers(self.environment));
        let mut prepared = Prepared {
            program: self.program.as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            directory: self.directory.as_deref().map_or(std::ptr::null(), CStr::as_ptr),
            stdio,
            own_group: self.own_group,
            dies_with_parent: self.dies_with_parent,
            blocks_signals: self.blocks_signals,
            parent: rustix::process::getpid().as_raw_nonzero().get(),
            error: 0,
        };
        let _starting = crate::child::starting();
        // No handler of this program's may run in the child, in the memory of both.
        let before = crate::signal::block_all_for_now()?;
        let pid = begin(&mut prepared);
        crate::signal::restore(&before)?;
        let pid = pid?;
        if prepared.error != 0 {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            return Err(io::Error::from_raw_os_error(prepared.error));
        }
        Ok(pid)
    }
}

/// Returns when the child has begun its program, or ended.
fn begin(prepared: &mut Prepared) -> io::Result<Pid> {
    #[repr(align(16))]
    struct Stack([std::mem::MaybeUninit<u8>; STACK]);
    let mut stack = Stack([const { std::mem::MaybeUninit::uninit() }; STACK]);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack grows down from its aligned end, which is within the array or just behind it. This thread is
    // suspended until the child has done with both stack and `prepared` (CLONE_VFORK), and no other thread knows of them.
    let pid = unsafe {
        let end = stack.0.as_mut_ptr().add(STACK).cast();
        libc::clone(child, end, flags, std::ptr::from_mut(prepared).cast())
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

extern "C" fn child(prepared: *mut libc::c_void) -> libc::c_int {
    // SAFETY: it is what `begin` was given, which waits, so that nobody else uses it.
    let prepared = unsafe { &mut *prepared.cast::<Prepared>() };
    if let Err(error) = become_program(prepared) {
        prepared.error = error;
    }
    // SAFETY: ends this process alone, without running what belongs to its parent.
    unsafe { libc::_exit(127) }
}

/// Returns only if something failed; the error's number.
fn become_program(prepared: &Prepared) -> Result<(), libc::c_int> {
    let checked = |result: libc::c_int| match result {
        // Of the parent's thread, which waits.
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)),
        _ => Ok(()),
    };
    // SAFETY: all of these are system calls that change only this process, on pointers that are valid as long as the
    // parent waits. None allocates or takes a lock that another thread may hold: execvpe(3) of the GNU library puts paths
    // together on the stack.
    unsafe {
        if prepared.own_group {
            checked(libc::setpgid(0, 0))?;
        }
        if prepared.dies_with_parent {
            checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0))?;
            // It may have died before that took hold.
            if libc::getppid() != prepared.parent {
                return Err(libc::ESRCH);
            }
        }
        for (number, fd) in (0..).zip(prepared.stdio) {
            checked(libc::dup2(fd, number))?;
        }
        if !prepared.directory.is_null() {
            checked(libc::chdir(prepared.directory))?;
        }
        // Rust programs ignore it, which an exec would keep.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        if !prepared.blocks_signals {
            let mut none = std::mem::MaybeUninit::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            checked(libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()))?;
        }
        checked(libc::execvpe(prepared.program, prepared.arguments, prepared.environment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::process::{WaitOptions, waitpid};
    use std::io::Read;

    /// What a shell script writes, and its status.
    fn run(script: &str, change: impl FnOnce(&mut Spawn<'_>)) -> (String, i32) {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
        let null = std::fs::File::open("/dev/null").expect("opens");
        let environment = environment_without(&["PATH"]);
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
        assert_eq!(error.expect_err("there is none").kind(), io::ErrorKind::NotFound);
        let mut spawn = Spawn::new(Path::new("/bin/sh"), &[], stdio).expect("a path");
        spawn.directory(Path::new("/nonexistent")).expect("a path");
        assert_eq!(spawn.start().expect_err("there is none").kind(), io::ErrorKind::NotFound);
        assert!(spawn.argument("a\0b").is_err());
    }
}
