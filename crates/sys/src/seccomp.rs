//! System calls that fail on purpose (seccomp(2)), so that tests can play an older kernel or an exhausted machine.

use std::io;

/// The system calls that can be refused, by name.
const CALLS: [(&str, libc::c_long); 4] = [
    ("pidfd_open", libc::SYS_pidfd_open),
    ("inotify_init1", libc::SYS_inotify_init1),
    ("inotify_add_watch", libc::SYS_inotify_add_watch),
    ("memfd_create", libc::SYS_memfd_create),
];

/// Makes a system call fail with `errno` from now on, in this thread and in all threads and processes that it starts.
/// The filter cannot be removed again.
pub fn refuse(call: &str, errno: i32) -> io::Result<()> {
    let number = CALLS.iter().find(|(name, _)| *name == call).map(|(_, number)| *number);
    let (Some(number), Ok(errno)) = (number.and_then(|number| u32::try_from(number).ok()), u32::try_from(errno)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{call} cannot be refused")));
    };
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, jump, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let mut program = [
        // The number of the system call is the first member of struct seccomp_data.
        instruction(load, 0, 0, 0),
        instruction(jump, 0, 1, number),
        instruction(answer, 0, 0, libc::SECCOMP_RET_ERRNO | errno),
        instruction(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the filter and its instructions, which are alive and initialised, during the second
    // call. Both calls write no memory of this process and affect this thread alone.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter, 0, 0) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
