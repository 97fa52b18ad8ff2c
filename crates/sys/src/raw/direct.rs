use core::arch::asm;
use core::ffi::{CStr, c_char, c_int, c_void};
use linux_raw_sys::general as linux;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::time::Timespec;

use super::How;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("without std the shim can be built for x86-64 only: leave its default features as they are");

/// A set of signals, as the kernel has it: bit 0 is signal 1.
pub(crate) type Mask = u64;

/// A system call (syscall(2)): what it returns, which is an error's number below zero.
///
/// # Safety
/// As the call demands.
unsafe fn call<const N: usize>(number: u32, arguments: [usize; N]) -> isize {
    let [a, b, c, d, e] = core::array::from_fn(|at| arguments.get(at).copied().unwrap_or_default());
    let result;
    // SAFETY: the kernel keeps all registers but these, and what it writes to is the caller's to allow.
    unsafe {
        asm!("syscall", inlateout("rax") number as usize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, out("rcx") _, out("r11") _, options(nostack));
    }
    result
}

fn checked(result: isize) -> Result<isize, Errno> {
    match i32::try_from(result) {
        Ok(error @ -4095..=-1) => Err(Errno::from_raw_os_error(-error)),
        _ => Ok(result),
    }
}

/// All signals.
pub(crate) fn full_mask() -> Mask {
    u64::MAX
}

/// These signals.
pub(crate) fn mask_of(signals: &[i32]) -> Mask {
    let bits = signals.iter().filter(|signal| (1..=64).contains(*signal)).map(|signal| 1 << (signal - 1));
    bits.fold(0, |mask, bit: u64| mask | bit)
}

/// Changes which signals this thread blocks; those that it blocked before.
pub(crate) fn set_mask(how: How, mask: &Mask) -> Result<Mask, Errno> {
    let how = match how {
        How::Block => linux::SIG_BLOCK,
        How::Unblock => linux::SIG_UNBLOCK,
        How::Set => linux::SIG_SETMASK,
    };
    let mut before: Mask = 0;
    let sets = [(&raw const *mask) as usize, (&raw mut before) as usize];
    // SAFETY: both sets are as large as said.
    let result = unsafe { call(linux::__NR_rt_sigprocmask, [how as usize, sets[0], sets[1], size_of::<Mask>()]) };
    checked(result).map(|_| before)
}

/// A descriptor of the pending ones of some signals (signalfd(2)); it does not block, and an exec closes it.
pub(crate) fn signalfd(mask: &Mask) -> Result<OwnedFd, Errno> {
    // SFD_NONBLOCK and SFD_CLOEXEC are these (include/uapi/linux/signalfd.h).
    let flags = linux::O_NONBLOCK | linux::O_CLOEXEC;
    // SAFETY: the set is as large as said; -1 asks for a new descriptor, which nobody else owns.
    unsafe {
        let set = (&raw const *mask) as usize;
        let fd = checked(call(linux::__NR_signalfd4, [usize::MAX, set, size_of::<Mask>(), flags as usize]))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// The time that only goes forward. For the few times that a shim asks, it takes longer to find what the kernel has mapped
/// for it (vdso(7)), which is rustix's way.
pub(crate) fn monotonic() -> Timespec {
    let mut now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: on this architecture the structure is the kernel's. It cannot fail: there is room, and the clock is there.
    unsafe { call(linux::__NR_clock_gettime, [linux::CLOCK_MONOTONIC as usize, (&raw mut now) as usize]) };
    now
}

/// Gives every signal its default action back.
pub(crate) fn restore_default_actions() {
    // The kernel's sigaction, of which all is zero for the default: action, flags, restorer, mask.
    let default = [0_usize; 4];
    let action = (&raw const default) as usize;
    for signal in 1..=crate::signal::MAX {
        // SAFETY: the structure is as large as the kernel's, the old one is not asked for, and the default needs no handler.
        // SIGKILL and SIGSTOP are refused.
        unsafe { call(linux::__NR_rt_sigaction, [signal as usize, action, 0, size_of::<Mask>()]) };
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
    let flags = linux::CLONE_VM | linux::CLONE_VFORK | linux::SIGCHLD;
    let pid: isize;
    // SAFETY: the new process goes on behind the call with a stack of its own, which is aligned as the ABI demands of a
    // call; it never comes back from there. Of this one the kernel keeps all registers but the two.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {child}",
            "ud2",
            "2:",
            inlateout("rax") linux::__NR_clone as usize => pid,
            in("rdi") flags as usize,
            in("rsi") end,
            in("rdx") 0,
            in("r10") 0,
            in("r8") 0,
            argument = in(reg) argument,
            child = in(reg) child,
            out("rcx") _,
            out("r11") _,
        );
    }
    Pid::from_raw(checked(pid)? as i32).ok_or(Errno::INVAL)
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
    let all = [program.as_ptr() as usize, arguments as usize, environment as usize];
    // SAFETY: as above.
    checked(unsafe { call(linux::__NR_execve, all) }).err().unwrap_or(Errno::IO)
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
    let (fd, itself) = (program.as_raw_fd() as usize, c"".as_ptr() as usize);
    let all = [fd, itself, arguments as usize, environment as usize, linux::AT_EMPTY_PATH as usize];
    // SAFETY: as above, and the empty path says that the descriptor itself is meant.
    checked(unsafe { call(linux::__NR_execveat, all) }).err().unwrap_or(Errno::IO)
}

/// Ends this process, and runs nothing more of it.
pub(crate) fn exit(status: c_int) -> ! {
    // SAFETY: it takes any number, and does not return.
    unsafe {
        asm!("syscall", in("rax") linux::__NR_exit_group, in("rdi") status as usize, options(noreturn, nostack));
    }
}
