//! Signals as events: masks, and descriptors that report pending signals (signalfd(2)).

#[cfg(feature = "std")]
pub use hosted::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno};

use crate::raw::{self, How, Mask};

/// The largest signal number that the kernel knows.
pub const MAX: u32 = 64;

/// Blocks every signal in this thread and in the threads and children that it starts later. [`crate::spawn`] unblocks
/// them again in the children that it starts.
pub fn block_all() -> io::Result<()> {
    raw::set_mask(How::Set, &raw::full_mask()).map(drop)
}

/// Blocks every signal in this thread. Returns the previous mask, for [`restore`].
pub(crate) fn block_all_for_now() -> io::Result<Mask> {
    raw::set_mask(How::Set, &raw::full_mask())
}

/// Restores the mask of this thread that [`block_all_for_now`] returned.
pub(crate) fn restore(before: &Mask) -> io::Result<()> {
    raw::set_mask(How::Set, before).map(drop)
}

/// Unblocks every signal in this thread.
pub fn unblock_all() -> io::Result<()> {
    raw::set_mask(How::Set, &raw::mask_of(&[])).map(drop)
}

/// A descriptor that is readable while one of its signals is pending. The thread must block these signals.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Creates a descriptor for `signals`.
    pub fn new(signals: &[i32]) -> io::Result<SignalFd> {
        raw::signalfd(&raw::mask_of(signals)).map(SignalFd)
    }

    /// Takes one pending signal and returns its number. Returns `None` if none is pending.
    pub fn take(&self) -> io::Result<Option<u32>> {
        take_from(&self.0)
    }
}

/// Does what [`SignalFd::take`] does, given the descriptor of a [`SignalFd`].
pub fn take_from(fd: impl AsFd) -> io::Result<Option<u32>> {
    // The kernel writes whole structures or nothing (signalfd(2)). Their first member is the signal's number.
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

    /// Blocks `signals` in this thread and in the threads that it starts later.
    pub fn block(signals: &[i32]) -> io::Result<()> {
        Ok(raw::set_mask(How::Block, &raw::mask_of(signals)).map(drop)?)
    }

    /// The signal that the CPU time profiler uses (setitimer(2), `ITIMER_PROF`).
    pub const PROF: i32 = libc::SIGPROF;

    /// Stops the timer of the CPU time profiler. execve(2) keeps the timer, and its signal would end the next program.
    pub fn stop_profile_timer() {
        let none = libc::itimerval {
            it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
            it_value: libc::timeval { tv_sec: 0, tv_usec: 0 },
        };
        // SAFETY: the call reads the initialised `none` and writes nothing, as the pointer for the old value is null.
        unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const none, std::ptr::null_mut()) };
    }

    /// Ignores a signal. Children inherit that, and execve(2) keeps it.
    pub fn ignore(signal: i32) -> io::Result<()> {
        // SAFETY: SIG_IGN runs no code of this program, and the call accesses no memory of it.
        let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
        if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Returns whether this process ignores `signal`. For example, nohup(1) starts programs that ignore SIGHUP.
    pub fn is_ignored(signal: i32) -> bool {
        let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: with a null pointer for the new action the call only writes the present one to `now`, which has room
        // for it. `now` is initialised even if the call fails, since a sigaction of zeros is valid.
        unsafe {
            libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
                && now.assume_init().sa_sigaction == libc::SIG_IGN
        }
    }

    /// Restores the default action of a signal. Children inherit which signals are ignored, but no handlers.
    pub fn restore_default(signal: i32) -> io::Result<()> {
        // SAFETY: SIG_DFL runs no code of this program, and the call accesses no memory of it.
        let before = unsafe { libc::signal(signal, libc::SIG_DFL) };
        if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Restores the default action of each ignored signal except those in `kept`. Handlers stay.
    pub fn restore_ignored(kept: &[i32]) {
        for signal in (1..=super::MAX as i32).filter(|signal| !kept.contains(signal)) {
            let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: with a null pointer for the new action the call only writes the present one to `now`, which has
            // room for it. `now` is initialised even if the call refuses the signal, since a sigaction of zeros is
            // valid.
            let now = unsafe {
                libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr());
                now.assume_init()
            };
            if now.sa_sigaction == libc::SIG_IGN {
                let _ = restore_default(signal);
            }
        }
    }

    /// Makes a write beyond the limit of file size only fail with `EFBIG`, instead of also ending the process by
    /// SIGXFSZ (setrlimit(2)). The signal gets a handler and is not ignored, since children would inherit the latter.
    pub fn survive_file_size_limit() -> io::Result<()> {
        extern "C" fn nothing(_: libc::c_int) {}
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: a sigaction of zeros is valid: no flags and an empty mask. The call reads it and writes nothing, as
        // the pointer for the old action is null. The handler does nothing, so that it may run at any moment.
        let result = unsafe {
            (*action.as_mut_ptr()).sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            (*action.as_mut_ptr()).sa_flags = libc::SA_RESTART;
            libc::sigaction(libc::SIGXFSZ, action.as_ptr(), std::ptr::null_mut())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns the signals that end a process by default and that it can handle (signal(7)), except those by which the
    /// kernel reports a fault of the process itself.
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

    /// Unblocks `signal` in this thread.
    pub fn unblock(signal: i32) -> io::Result<()> {
        Ok(raw::set_mask(How::Unblock, &raw::mask_of(&[signal])).map(drop)?)
    }

    /// Ends this process by the default action of `signal`, as if the signal had no handler.
    pub fn die_by(signal: i32) -> ! {
        // SAFETY: the calls take plain numbers, and the default action runs no code of this program.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            let _ = unblock(signal);
            libc::raise(signal);
            libc::_exit(128 + signal)
        }
    }

    /// Returns the number of the signal `name`, in upper or lower case, with or without `SIG`. Real-time signals are
    /// called `RTMIN+n` and `RTMAX-n`.
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

    /// The names that signal(7) lists, with the synonyms `IOT`, `CLD` and `POLL`.
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
    fn signal_names_are_understood_in_every_usual_form() {
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
    fn blocked_signal_is_read_from_the_descriptor() {
        std::thread::spawn(|| {
            block(&[libc::SIGUSR2]).expect("blocks");
            let fd = SignalFd::new(&[libc::SIGUSR2]).expect("signalfd");
            assert_eq!(fd.take().expect("reads"), None);
            // SAFETY: the thread sends the signal to itself, so that the thread id is valid. It blocks the signal,
            // which therefore stays pending.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            assert_eq!(fd.take().expect("reads"), Some(libc::SIGUSR2 as u32));
            assert_eq!(fd.take().expect("reads"), None);
        })
        .join()
        .expect("no panic");
    }
}
