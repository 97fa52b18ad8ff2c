//! Signals as events: a mask, and a descriptor that tells which have come (signalfd(2)).

#[cfg(feature = "std")]
pub use hosted::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno};

use crate::raw::{self, How, Mask};

/// The largest signal number that the kernel knows.
pub const MAX: u32 = 64;

/// Blocks every signal in this thread, the threads it starts later, and its children
/// ([`crate::spawn`] frees these).
pub fn block_all() -> io::Result<()> {
    raw::set_mask(How::Set, &raw::full_mask()).map(drop)
}

/// Blocks every signal in this thread until [`restore`] is given the result.
pub(crate) fn block_all_for_now() -> io::Result<Mask> {
    raw::set_mask(How::Set, &raw::full_mask())
}

/// Gives this thread the mask back that it had.
pub(crate) fn restore(before: &Mask) -> io::Result<()> {
    raw::set_mask(How::Set, before).map(drop)
}

/// Blocks no signal in this thread any more.
pub fn unblock_all() -> io::Result<()> {
    raw::set_mask(How::Set, &raw::mask_of(&[])).map(drop)
}

/// A descriptor that is readable while one of its signals is pending. The signals must be blocked.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Watches `signals`.
    pub fn new(signals: &[i32]) -> io::Result<SignalFd> {
        raw::signalfd(&raw::mask_of(signals)).map(SignalFd)
    }

    /// Takes one pending signal's number; `None` if there is none.
    pub fn take(&self) -> io::Result<Option<u32>> {
        take_from(&self.0)
    }
}

/// As [`SignalFd::take`], from the descriptor of one.
pub fn take_from(fd: impl AsFd) -> io::Result<Option<u32>> {
    // The kernel writes whole structures or nothing (signalfd(2)); the signal's number is its first member.
    let mut info = [0_u8; 128];
    match rustix::io::read(fd, &mut info) {
        Ok(128) => Ok(info.first_chunk().copied().map(u32::from_ne_bytes)),
        Ok(_) => Err(Errno::IO),
        Err(Errno::AGAIN) => Ok(None),
        Err(e) => Err(e),
    }
}

impl From<SignalFd> for OwnedFd {
    fn from(fd: SignalFd) -> OwnedFd {
        fd.0
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(feature = "std")]
mod hosted {
    use std::io;

    use crate::raw::{self, How};

    /// Blocks some signals in this thread and the threads it starts later.
    pub fn block(signals: &[i32]) -> io::Result<()> {
        Ok(raw::set_mask(How::Block, &raw::mask_of(signals)).map(drop)?)
    }

    /// The signal of the CPU time profiler (setitimer(2), `ITIMER_PROF`).
    pub const PROF: i32 = libc::SIGPROF;

    /// Stops the CPU time profiler's timer, which execve(2) keeps, where it would end the next program.
    pub fn stop_profile_timer() {
        let none = libc::itimerval {
            it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
            it_value: libc::timeval { tv_sec: 0, tv_usec: 0 },
        };
        // SAFETY: the value is initialised, and the old one is not asked for; a valid timer cannot be refused.
        unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const none, std::ptr::null_mut()) };
    }

    /// Ignores a signal. That is inherited by children and kept over execve(2).
    pub fn ignore(signal: i32) -> io::Result<()> {
        // SAFETY: no handler of ours goes away by this, and SIG_IGN needs none.
        let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
        if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether this process ignores `signal`, as nohup(1) has a program ignore SIGHUP.
    pub fn is_ignored(signal: i32) -> bool {
        let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: nothing is set, and there is room for the answer, of which all zeros is a valid value too.
        unsafe {
            libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
                && now.assume_init().sa_sigaction == libc::SIG_IGN
        }
    }

    /// Gives a signal its default action back. What is ignored is inherited by children, what is handled is not.
    pub fn restore_default(signal: i32) -> io::Result<()> {
        // SAFETY: no handler of ours goes away by this, and SIG_DFL needs none.
        let before = unsafe { libc::signal(signal, libc::SIG_DFL) };
        if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Gives each signal that this process's starter ignored its default action back, but for `kept`. Handlers stay.
    pub fn restore_ignored(kept: &[i32]) {
        for signal in (1..=super::MAX as i32).filter(|signal| !kept.contains(signal)) {
            let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: no action is set, and the present one is written to a structure of its own, which is valid when all
            // of it is zero. A signal that cannot be asked for is refused.
            let now = unsafe {
                libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr());
                now.assume_init()
            };
            if now.sa_sigaction == libc::SIG_IGN {
                let _ = restore_default(signal);
            }
        }
    }

    /// Lets a write beyond the limit of file sizes fail with `EFBIG` and do nothing else (setrlimit(2)). The signal is
    /// handled rather than ignored, as children would inherit the latter.
    pub fn survive_file_size_limit() -> io::Result<()> {
        extern "C" fn nothing(_: libc::c_int) {}
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a structure that is all zero is valid: no flags and an empty mask. The handler does nothing, which is
        // async-signal-safe, and no other handler of ours goes away.
        let result = unsafe {
            (*action.as_mut_ptr()).sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            (*action.as_mut_ptr()).sa_flags = libc::SA_RESTART;
            libc::sigaction(libc::SIGXFSZ, action.as_ptr(), std::ptr::null_mut())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The signals that end a process unless it handles them, and that can be handled (signal(7)). Those that tell of a
    /// fault of the process's own are not among them.
    pub fn deadly() -> Vec<i32> {
        let faults =
            [libc::SIGKILL, libc::SIGSTOP, libc::SIGILL, libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGTRAP];
        let harmless = [
            libc::SIGCHLD,
            libc::SIGCONT,
            libc::SIGTSTP,
            libc::SIGTTIN,
            libc::SIGTTOU,
            libc::SIGURG,
            libc::SIGWINCH,
            libc::SIGPIPE,
        ];
        let standard = (1..32).filter(|signal| !faults.contains(signal) && !harmless.contains(signal));
        standard.chain(libc::SIGRTMIN()..=libc::SIGRTMAX()).collect()
    }

    /// Lets `signal` reach this thread again.
    pub fn unblock(signal: i32) -> io::Result<()> {
        Ok(raw::set_mask(How::Unblock, &raw::mask_of(&[signal])).map(drop)?)
    }

    /// Ends this process by `signal`, with the signal's default action, as if it had never been handled.
    pub fn die_by(signal: i32) -> ! {
        // SAFETY: the default action needs no handler; raise and _exit are async-signal-safe.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            let _ = unblock(signal);
            libc::raise(signal);
            libc::_exit(128 + signal)
        }
    }

    /// The number of a signal by its name, with or without `SIG`, in any case; real-time ones as `RTMIN+n`, `RTMAX-n`.
    pub fn by_name(name: &str) -> Option<u32> {
        let upper = name.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(rest) = name.strip_prefix("RTMIN") {
            let n: i32 = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
            let number = libc::SIGRTMIN().checked_add(n)?;
            return (n >= 0 && number <= libc::SIGRTMAX()).then_some(number as u32);
        }
        if let Some(rest) = name.strip_prefix("RTMAX") {
            let n: i32 = if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse().ok()? };
            let number = libc::SIGRTMAX().checked_sub(n)?;
            return (n >= 0 && number >= libc::SIGRTMIN()).then_some(number as u32);
        }
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number as u32)
    }

    /// signal(7), and the two names that `kill -l` has beside them.
    const NAMES: &[(&str, i32)] = &[
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ILL", libc::SIGILL),
        ("TRAP", libc::SIGTRAP),
        ("ABRT", libc::SIGABRT),
        ("IOT", libc::SIGIOT),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("SEGV", libc::SIGSEGV),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("STKFLT", libc::SIGSTKFLT),
        ("CHLD", libc::SIGCHLD),
        ("CLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("POLL", libc::SIGPOLL),
        ("PWR", libc::SIGPWR),
        ("SYS", libc::SIGSYS),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_as_people_write_them() {
        assert_eq!(by_name("KILL"), Some(9));
        assert_eq!(by_name("SIGKILL"), Some(9));
        assert_eq!(by_name("sigterm"), Some(15));
        assert_eq!(by_name("RTMIN+1"), Some(35));
        assert_eq!(by_name("SIGRTMAX"), Some(64));
        assert_eq!(by_name("RTMAX-1"), Some(63));
        for bad in ["", "SIG", "NOPE", "RTMIN+99", "RTMIN-1", "RTMAX+1", "9x"] {
            assert_eq!(by_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_blocked_signal_comes_through_the_descriptor() {
        std::thread::spawn(|| {
            block(&[libc::SIGUSR2]).expect("blocks");
            let fd = SignalFd::new(&[libc::SIGUSR2]).expect("signalfd");
            assert_eq!(fd.take().expect("reads"), None);
            // SAFETY: the signal is blocked in this thread and sent to this thread.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            assert_eq!(fd.take().expect("reads"), Some(libc::SIGUSR2 as u32));
            assert_eq!(fd.take().expect("reads"), None);
        })
        .join()
        .expect("no panic");
    }
}
