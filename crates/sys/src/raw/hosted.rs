use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::MaybeUninit;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::time::Timespec;

use super::How;

/// A set of signals.
pub(crate) type Mask = libc::sigset_t;

fn last_error() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// All signals, but for those that the C library keeps for itself.
pub(crate) fn full_mask() -> Mask {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the whole set and cannot fail on a valid pointer.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// These signals.
pub(crate) fn mask_of(signals: &[i32]) -> Mask {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set; sigaddset only writes into it, and refuses bad numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Changes which signals this thread blocks; those that it blocked before.
pub(crate) fn set_mask(how: How, mask: &Mask) -> Result<Mask, Errno> {
    let how = match how {
        How::Block => libc::SIG_BLOCK,
        How::Unblock => libc::SIG_UNBLOCK,
        How::Set => libc::SIG_SETMASK,
    };
    let mut before = mask_of(&[]);
    // SAFETY: both sets are initialised.
    let result = unsafe { libc::pthread_sigmask(how, mask, &raw mut before) };
    if result == 0 { Ok(before) } else { Err(Errno::from_raw_os_error(result)) }
}

/// A descriptor of the pending ones of some signals (signalfd(2)); it does not block, and an exec closes it.
pub(crate) fn signalfd(mask: &Mask) -> Result<OwnedFd, Errno> {
    // SAFETY: the set is initialised; -1 asks for a new descriptor, which nobody else owns.
    unsafe {
        let fd = libc::signalfd(-1, mask, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        if fd < 0 { Err(last_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// The time that only goes forward.
pub(crate) fn monotonic() -> Timespec {
    rustix::time::clock_gettime(rustix::time::ClockId::Monotonic)
}

/// Gives every signal its default action back.
pub(crate) fn restore_default_actions() {
    // The kernel's sigaction, of which all is zero for the default. It has no more than these words on any architecture.
    let default = [0_usize; 8];
    for signal in 1..=crate::signal::MAX {
        // SAFETY: the structure is as large as the kernel's, the old one is not asked for, and SIG_DFL needs no handler.
        // By the system call, as the C library keeps two signals for itself. SIGKILL and SIGSTOP are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<usize>(),
                crate::signal::MAX as usize / 8,
            )
        };
    }
}

/// Runs `child` in a new process, in this one's memory, on the stack that ends at `end`; returns when it has begun another
/// program or has ended.
///
/// # Safety
/// The stack and what `argument` points to must be nobody else's, and large enough; `child` must touch nothing else that
/// another thread could, and must not return.
pub(crate) unsafe fn clone_vfork(
    child: extern "C" fn(*mut c_void) -> c_int,
    end: *mut c_void,
    argument: *mut c_void,
) -> Result<Pid, Errno> {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: as above.
    let pid = unsafe { libc::clone(child, end, flags, argument) };
    if pid < 0 {
        return Err(last_error());
    }
    Pid::from_raw(pid).ok_or(Errno::INVAL)
}

/// Begins another program; returns why it could not.
///
/// # Safety
/// Both lists must end with a null pointer.
pub(crate) unsafe fn execve(
    program: &CStr,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> Errno {
    // SAFETY: as above.
    unsafe { libc::execve(program.as_ptr(), arguments, environment) };
    last_error()
}

/// As [`execve`], of a program that is open.
///
/// # Safety
/// Both lists must end with a null pointer.
pub(crate) unsafe fn execveat(
    program: BorrowedFd<'_>,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> Errno {
    // SAFETY: as above, and the empty path says that the descriptor itself is meant.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments,
            environment,
            libc::AT_EMPTY_PATH,
        );
    }
    last_error()
}

/// Ends this process, and runs nothing more of it.
pub(crate) fn exit(status: c_int) -> ! {
    // SAFETY: it takes any number.
    unsafe { libc::_exit(status) }
}
