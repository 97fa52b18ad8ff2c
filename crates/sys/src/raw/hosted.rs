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

/// Returns the set of all signals except those that the C library reserves for itself.
pub(crate) fn full_mask() -> Mask {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset writes to the whole set, so that it is initialised afterwards. It cannot fail on a valid
    // pointer.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Returns the set of `signals`.
pub(crate) fn mask_of(signals: &[i32]) -> Mask {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset writes to the whole set, so that it is initialised afterwards. sigaddset changes bits within
    // the set and refuses numbers that are no signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Changes which signals this thread blocks. Returns the set that it blocked before.
pub(crate) fn set_mask(how: How, mask: &Mask) -> Result<Mask, Errno> {
    let how = match how {
        How::Block => libc::SIG_BLOCK,
        How::Unblock => libc::SIG_UNBLOCK,
        How::Set => libc::SIG_SETMASK,
    };
    let mut before = mask_of(&[]);
    // SAFETY: both pointers are to initialised sets that outlive the call, and `before` is written to by nothing else.
    let result = unsafe { libc::pthread_sigmask(how, mask, &raw mut before) };
    if result == 0 { Ok(before) } else { Err(Errno::from_raw_os_error(result)) }
}

/// Returns a descriptor that reports which signals of a set are pending (signalfd(2)). It is non-blocking and
/// close-on-exec.
pub(crate) fn signalfd(mask: &Mask) -> Result<OwnedFd, Errno> {
    // SAFETY: the set is initialised. -1 requests a new descriptor, so that the OwnedFd is its only owner.
    unsafe {
        let fd = libc::signalfd(-1, mask, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
        if fd < 0 { Err(last_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Reads the monotonic clock.
pub(crate) fn monotonic() -> Timespec {
    rustix::time::clock_gettime(rustix::time::ClockId::Monotonic)
}

/// Restores the default action of every signal.
pub(crate) fn restore_default_actions() {
    // A sigaction of the kernel. All zeros mean the default action, and on no architecture has it more words than this.
    let default = [0_usize; 8];
    for signal in 1..=crate::signal::MAX {
        // SAFETY: the kernel reads one sigaction, which `default` has room for, and writes none, as the pointer for the
        // old one is null. SIG_DFL needs no handler. The kernel refuses SIGKILL and SIGSTOP. (The C library's function
        // refuses two more signals, which it reserves for itself.)
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

/// Runs `child` in a new process that shares this one's memory, on the stack that ends at `end`. Returns the new
/// process's pid when it has executed another program or has ended.
///
/// # Safety
/// Nothing else may use the stack or what `argument` points to until this function returns. The stack must be large
/// enough for `child`. `child` must access nothing that another thread may access, and must not return.
pub(crate) unsafe fn clone_vfork(
    child: extern "C" fn(*mut c_void) -> c_int,
    end: *mut c_void,
    argument: *mut c_void,
) -> Result<Pid, Errno> {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the caller provides a stack and an argument that the child alone uses while it shares this memory.
    // CLONE_VFORK suspends this thread until the child no longer does.
    let pid = unsafe { libc::clone(child, end, flags, argument) };
    if pid < 0 {
        return Err(last_error());
    }
    Pid::from_raw(pid).ok_or(Errno::INVAL)
}

/// Executes another program in this process. Returns only if that fails, with the reason.
///
/// # Safety
/// Both lists must consist of C strings and end with a null pointer.
pub(crate) unsafe fn execve(
    program: &CStr,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> Errno {
    // SAFETY: `program` is a C string, and the caller promises that both lists end with a null pointer. All of them
    // outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments, environment) };
    last_error()
}

/// Does what [`execve`] does for a program that is open.
///
/// # Safety
/// Both lists must consist of C strings and end with a null pointer.
pub(crate) unsafe fn execveat(
    program: BorrowedFd<'_>,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> Errno {
    // SAFETY: the path is a C string; with AT_EMPTY_PATH an empty one means the file of the descriptor, which `program`
    // keeps open. The caller promises that both lists end with a null pointer.
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

/// Ends this process without running any exit handler.
pub(crate) fn exit(status: c_int) -> ! {
    // SAFETY: _exit takes any number and does not return.
    unsafe { libc::_exit(status) }
}
