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

/// A set of signals in the kernel's form: bit 0 is signal 1.
pub(crate) type Mask = u64;

/// Makes a system call with up to five arguments (syscall(2)). Returns its result; a failed call returns the negative
/// error number.
///
/// # Safety
/// The arguments must be valid for the call that `number` names: pointers must point to what the kernel reads or
/// writes.
unsafe fn call<const N: usize>(number: u32, arguments: [usize; N]) -> isize {
    let [a, b, c, d, e] = core::array::from_fn(|at| arguments.get(at).copied().unwrap_or_default());
    let result;
    // SAFETY: the kernel preserves all registers except rax, rcx and r11, which are declared as outputs, and does not
    // use this thread's stack. The caller answers for the memory that the call accesses.
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

/// Returns the set of all signals.
pub(crate) fn full_mask() -> Mask {
    u64::MAX
}

/// Returns the set of `signals`.
pub(crate) fn mask_of(signals: &[i32]) -> Mask {
    let bits = signals.iter().filter(|signal| (1..=64).contains(*signal)).map(|signal| 1 << (signal - 1));
    bits.fold(0, |mask, bit: u64| mask | bit)
}

/// Changes which signals this thread blocks. Returns the set that it blocked before.
pub(crate) fn set_mask(how: How, mask: &Mask) -> Result<Mask, Errno> {
    let how = match how {
        How::Block => linux::SIG_BLOCK,
        How::Unblock => linux::SIG_UNBLOCK,
        How::Set => linux::SIG_SETMASK,
    };
    let mut before: Mask = 0;
    let sets = [(&raw const *mask) as usize, (&raw mut before) as usize];
    // SAFETY: the kernel reads `mask` and writes `before`. Both have the size that the last argument gives.
    let result = unsafe { call(linux::__NR_rt_sigprocmask, [how as usize, sets[0], sets[1], size_of::<Mask>()]) };
    checked(result).map(|_| before)
}

/// Returns a descriptor that reports which signals of a set are pending (signalfd(2)). It is non-blocking and
/// close-on-exec.
pub(crate) fn signalfd(mask: &Mask) -> Result<OwnedFd, Errno> {
    // SFD_NONBLOCK and SFD_CLOEXEC have these values (include/uapi/linux/signalfd.h).
    let flags = linux::O_NONBLOCK | linux::O_CLOEXEC;
    // SAFETY: the kernel reads `mask`, whose size the third argument gives. -1 requests a new descriptor, so that the
    // OwnedFd is its only owner.
    unsafe {
        let set = (&raw const *mask) as usize;
        let fd = checked(call(linux::__NR_signalfd4, [usize::MAX, set, size_of::<Mask>(), flags as usize]))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Reads the monotonic clock by a system call. rustix would look up the function that the kernel maps into each process
/// (vdso(7)), and a shim reads the clock too seldom for that to pay.
pub(crate) fn monotonic() -> Timespec {
    let mut now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: on x86-64 Timespec has the layout of the kernel's structure, which the call writes. It cannot fail, since
    // the pointer is valid and every kernel has this clock.
    unsafe { call(linux::__NR_clock_gettime, [linux::CLOCK_MONOTONIC as usize, (&raw mut now) as usize]) };
    now
}

/// Restores the default action of every signal.
pub(crate) fn restore_default_actions() {
    // A sigaction of the kernel: action, flags, restorer and mask. All zeros mean the default action.
    let default = [0_usize; 4];
    let action = (&raw const default) as usize;
    for signal in 1..=crate::signal::MAX {
        // SAFETY: the kernel reads one sigaction, which has the size of `default`, and writes none, as the pointer for
        // the old one is null. The default action needs no handler. The kernel refuses SIGKILL and SIGSTOP.
        unsafe { call(linux::__NR_rt_sigaction, [signal as usize, action, 0, size_of::<Mask>()]) };
    }
}

/// Runs `child` in a new process that shares this one's memory, on the stack that ends at `end`. Returns the new
/// process's pid when it has executed another program or has ended.
///
/// # Safety
/// Nothing else may use the stack or what `argument` points to until this function returns. The stack must be large
/// enough for `child`, and `end` must be aligned to 16 bytes. `child` must access nothing that another thread may
/// access, and must not return.
pub(crate) unsafe fn clone_vfork(
    child: extern "C" fn(*mut c_void) -> c_int,
    end: *mut c_void,
    argument: *mut c_void,
) -> Result<Pid, Errno> {
    let flags = linux::CLONE_VM | linux::CLONE_VFORK | linux::SIGCHLD;
    let pid: isize;
    // SAFETY: the new process continues behind the instruction with rax zero and the caller's stack, which is aligned
    // as the ABI demands of a call. It calls `child`, which does not return, so that it executes nothing else of this
    // function. In this process the kernel preserves all registers except rax, rcx and r11, which are declared as
    // outputs.
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

/// Executes another program in this process. Returns only if that fails, with the reason.
///
/// # Safety
/// Both lists must consist of C strings and end with a null pointer.
pub(crate) unsafe fn execve(
    program: &CStr,
    arguments: *const *const c_char,
    environment: *const *const c_char,
) -> Errno {
    let all = [program.as_ptr() as usize, arguments as usize, environment as usize];
    // SAFETY: `program` is a C string, and the caller promises that both lists end with a null pointer. All of them
    // outlive the call.
    checked(unsafe { call(linux::__NR_execve, all) }).err().unwrap_or(Errno::IO)
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
    let (fd, itself) = (program.as_raw_fd() as usize, c"".as_ptr() as usize);
    let all = [fd, itself, arguments as usize, environment as usize, linux::AT_EMPTY_PATH as usize];
    // SAFETY: the path is a C string; with AT_EMPTY_PATH an empty one means the file of the descriptor, which `program`
    // keeps open. The caller promises that both lists end with a null pointer.
    checked(unsafe { call(linux::__NR_execveat, all) }).err().unwrap_or(Errno::IO)
}

/// Ends this process at once.
pub(crate) fn exit(status: c_int) -> ! {
    // SAFETY: exit_group takes any number, accesses no memory of this process and does not return.
    unsafe {
        asm!("syscall", in("rax") linux::__NR_exit_group, in("rdi") status as usize, options(noreturn, nostack));
    }
}
