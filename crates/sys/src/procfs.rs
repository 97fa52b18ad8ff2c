//! What `/proc` reports about a process (proc(5)).

use alloc::format;
use alloc::string::String;
use rustix::fs::CWD;
use rustix::io::{self, Errno};

use crate::child::ExitStatus;
use crate::small_file;

/// The fields of `/proc/<pid>/stat` that identify a process and tell whether it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Field 3: the state, for example `R`, `S` or `Z`.
    pub state: u8,
    /// Field 4: the parent's pid.
    pub parent: u32,
    /// Field 5: the process group.
    pub group: u32,
    /// Field 9: the `PF_` flags of include/linux/sched.h.
    flags: u64,
    /// Field 22: when the process started, in clock ticks after boot.
    pub starttime: u64,
    /// Field 52: the status as waitpid(2) returns it. Set only for a process that has ended, and only if root reads it.
    wait_status: i32,
}

impl Stat {
    /// Returns whether the process has ended and waits to be reaped.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Returns whether the process has begun to exit. It may still have to wait for other processes before it is dead.
    pub fn is_ending(&self) -> bool {
        const PF_EXITING: u64 = 4;
        self.flags & PF_EXITING != 0
    }

    /// Returns whether the process is stopped, by a signal such as SIGSTOP or by a tracer.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, b'T' | b't')
    }
}

/// Reads `/proc/<pid>/stat`. Returns `None` if the process does not exist. Fails with `EBADMSG` if the content is not
/// as proc(5) describes it.
pub fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let Some(text) = read(pid, "stat")? else { return Ok(None) };
    if is_released(&text) {
        return Ok(None);
    }
    parse_stat(&text).map(Some).ok_or(Errno::BADMSG)
}

/// Returns the exit status of a process that has ended and has not been reaped. Returns `None` if it runs or is gone.
pub fn exit_status(pid: u32, starttime: u64) -> io::Result<Option<ExitStatus>> {
    let ended = stat(pid)?.filter(|stat| stat.starttime == starttime && stat.is_dead());
    Ok(ended.map(|stat| match stat.wait_status & 0x7f {
        0 => (stat.wait_status >> 8 & 0xff) as u32,
        signal => 128 + signal as u32,
    }))
}

/// Reads the file `name` of a process. Returns `None` if the process is gone.
pub fn read(pid: u32, name: &str) -> io::Result<Option<String>> {
    match small_file::read_text(CWD, format!("/proc/{pid}/{name}")) {
        Ok(text) => Ok(Some(text)),
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Restores a path from `/proc/<pid>/mountinfo`, where the kernel writes blanks and backslashes as octal numbers.
pub fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Returns whether a process is the init of a PID namespace other than this one's. The kernel kills the rest of the
/// namespace when it ends. `NSpid` in `/proc/<pid>/status` then has more than one number, and the last one is 1.
pub fn is_namespace_init(pid: u32) -> io::Result<bool> {
    let Some(status) = read(pid, "status")? else { return Ok(false) };
    Ok(parse_nspid(&status))
}

/// Returns the pid of the process that traces `pid` (ptrace(2)), if there is one.
pub fn tracer(pid: u32) -> io::Result<Option<u32>> {
    let Some(status) = read(pid, "status")? else { return Ok(None) };
    let number = status.lines().find_map(|line| line.strip_prefix("TracerPid:")?.trim().parse().ok());
    Ok(number.filter(|tracer| *tracer != 0))
}

/// Returns whether a process has its descriptor `fd` (a name in `/proc/<pid>/fd`) open for writing, by the file status
/// flags in `/proc/<pid>/fdinfo/<fd>`.
pub fn is_open_for_writing(pid: u32, fd: &str) -> io::Result<bool> {
    const ACCESS_MODE: u32 = 3;
    let Some(text) = read(pid, &format!("fdinfo/{fd}"))? else { return Ok(false) };
    let flags = text.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    Ok(flags.is_some_and(|flags| flags & ACCESS_MODE != 0))
}

pub(crate) fn parse_nspid(status: &str) -> bool {
    let Some(line) = status.lines().find_map(|line| line.strip_prefix("NSpid:")) else { return false };
    let mut numbers = line.split_ascii_whitespace();
    numbers.next().is_some() && numbers.next_back() == Some("1")
}

/// Returns the fields from the third on. The second field, the command's name in parentheses, may itself contain spaces
/// and parentheses.
fn fields_of_stat(text: &str) -> Option<core::str::SplitAsciiWhitespace<'_>> {
    Some(text[text.rfind(')')? + 1..].split_ascii_whitespace())
}

/// Returns whether the process was reaped while the kernel wrote the text. The process group is then -1
/// (fs/proc/array.c, `do_task_stat`).
fn is_released(text: &str) -> bool {
    fields_of_stat(text).and_then(|mut fields| fields.nth(2)) == Some("-1")
}

pub(crate) fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = fields_of_stat(text)?;
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let flags = fields.nth(3)?.parse().ok()?;
    let starttime = fields.nth(12)?.parse().ok()?;
    let wait_status = fields.nth(29).and_then(|status| status.parse().ok()).unwrap_or_default();
    Some(Stat { state, parent, group, flags, starttime, wait_status })
}

/// Returns whether a process has a child that is not dead. Returns false on a kernel without lists of children
/// (`CONFIG_PROC_CHILDREN`).
#[cfg(feature = "std")]
pub fn has_children(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let is_alive = |child: &str| {
        let stat = child.parse().ok().and_then(|child| stat(child).ok().flatten());
        stat.is_some_and(|stat| !stat.is_dead())
    };
    lists.into_iter().any(|list| list.split_ascii_whitespace().any(is_alive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_name_with_parentheses_is_parsed() {
        let text = "42 (a) Z (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 7777 20";
        let stat = Stat { state: b'S', parent: 1, group: 2, flags: 6, starttime: 7777, wait_status: 0 };
        assert_eq!(parse_stat(text), Some(stat));
        assert!(stat.is_ending() && !Stat { flags: 3, ..stat }.is_ending());
        assert!(is_released("42 (a) X 0 -1 -1 0 -1 6 0") && !is_released(text) && !is_released("42 (a"));
        assert_eq!(parse_stat("42 (a"), None);
        assert_eq!(parse_stat("42 (a) S 1 2"), None);
    }

    #[test]
    fn namespace_init_is_recognised_by_its_last_pid() {
        assert!(parse_nspid("Name:\tx\nNSpid:\t4242\t1\nFoo: 1"));
        assert!(!parse_nspid("NSpid:\t4242\n"));
        assert!(!parse_nspid("NSpid:\t4242\t17\n"));
        assert!(!parse_nspid("NSpid:\t1\n"), "the host's own init is not a container's");
    }

    #[test]
    fn stat_of_a_name_that_is_not_utf8_is_read() {
        std::thread::spawn(|| {
            std::fs::write("/proc/thread-self/comm", b"\xff\xfe)").expect("renames this thread");
            let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
            assert!(stat(tid).expect("readable").is_some());
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn exit_status_of_a_zombie_is_read() {
        for (script, status) in [("exit 7", 7), ("kill -9 $$", 137)] {
            let mut child = std::process::Command::new("/bin/sh").args(["-c", script]).spawn().expect("sh starts");
            let started = stat(child.id()).expect("proc").expect("not reaped").starttime;
            let pid = rustix::process::Pid::from_child(&child);
            let ended = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("our child");
            rustix::event::poll(&mut [rustix::event::PollFd::new(&ended, rustix::event::PollFlags::IN)], None)
                .expect("poll");
            assert_eq!(exit_status(child.id(), started).expect("proc"), Some(status));
            assert_eq!(exit_status(child.id(), started + 1).expect("proc"), None);
            child.wait().expect("reaps");
            assert_eq!(exit_status(child.id(), started).expect("proc"), None);
        }
    }

    #[test]
    fn descriptor_is_open_for_writing_by_its_flags() {
        use std::os::fd::AsRawFd;
        let open = |read, write| std::fs::File::options().read(read).write(write).open("/dev/null").expect("opens");
        let (writing, both, reading) = (open(false, true), open(true, true), open(true, false));
        let of = |file: &std::fs::File| is_open_for_writing(std::process::id(), &format!("{}", file.as_raw_fd()));
        assert!(of(&writing).expect("proc") && of(&both).expect("proc") && !of(&reading).expect("proc"));
        assert!(!is_open_for_writing(std::process::id(), "99999").expect("no error"));
    }

    #[test]
    fn missing_process_has_no_stat() {
        assert_eq!(stat(u32::MAX).expect("no error"), None);
        assert!(stat(std::process::id()).expect("proc").is_some());
    }
}
