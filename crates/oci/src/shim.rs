//! Starting a shim.

use contract::process_files::{CRIU_WORK, DIRECTORY_VARIABLE, RUNTIME_LOG};
use rustix::process::Pid;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use sys::environment::variables_without;
use sys::pidfd::PidFd;
use sys::spawn::Spawn;

use crate::child::{Child, NOT_FOR_CHILDREN};
use crate::oci::{Oci, find_program};
use crate::process_dir::ProcessDir;

/// The shim program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shim {
    path: PathBuf,
    environment: Arc<[CString]>,
}

impl Shim {
    /// Looks the shim up: a path as it is; a name beside this program first, then in `PATH`.
    pub fn find(name: &str) -> io::Result<Shim> {
        let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
        let beside = beside.filter(|path| !name.contains('/') && path.is_file());
        beside
            .or_else(|| find_program(name))
            .map(|path| Shim { path, environment: variables_without(&NOT_FOR_CHILDREN).into() })
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no shim {name}")))
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a shim for the process in `directory`, in which everything must be ready for it.
    pub fn start(&self, id: &str, bundle: &str, oci: &Oci, directory: &ProcessDir) -> io::Result<Child> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let mut shim = Spawn::new(&self.path, &self.environment, [null.as_fd(), null.as_fd(), null.as_fd()])?;
        shim.arguments([id, bundle])?;
        shim.argument(oci.binary())?;
        shim.directory(directory.path())?;
        shim.own_group = true;
        // As it has them from its first step on.
        shim.blocks_signals = true;
        Ok(Child::started(shim.start()?))
    }

    /// The shims that have `directory` as their working directory: how one is found again that another supervisor
    /// started. Goes through all of `/proc`, so only for what rarely happens.
    pub fn running_in(directory: &ProcessDir) -> Vec<(Pid, PidFd)> {
        Shim::in_state(directory, |_| true)
    }

    /// Pid and start time of the process that a shim is for, found as the eldest child of the shim that works in
    /// `directory`. The runtime's child becomes the shim's when the runtime has ended; what else becomes the shim's, which is
    /// a subreaper, was started by that process. Goes through all of `/proc`.
    pub fn process_of(directory: &ProcessDir) -> Option<(u32, u64)> {
        let [(shim, _)] = &Shim::running_in(directory)[..] else { return None };
        let shim = shim.as_raw_nonzero().get().unsigned_abs();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let stats = pids.filter_map(|pid| Some((pid, sys::procfs::stat(pid).ok()??)));
        let children = stats.filter(|(_, stat)| stat.parent == shim && !stat.is_dead());
        children.map(|(pid, stat)| (pid, stat.starttime)).min_by_key(|(_, starttime)| *starttime)
    }

    /// The shims that work in a process's directory and that another program has stopped (SIGSTOP).
    pub fn stopped_in(directory: &ProcessDir) -> Vec<(Pid, PidFd)> {
        Shim::in_state(directory, sys::procfs::Stat::is_stopped)
    }

    fn in_state(directory: &ProcessDir, is_meant: impl Fn(&sys::procfs::Stat) -> bool) -> Vec<(Pid, PidFd)> {
        let Ok(directory) = std::fs::canonicalize(directory.path()) else { return Vec::new() };
        let is_shim = |pid: u32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory);
        find_processes(is_shim, is_meant)
    }

    /// All living descendants of a shim. A process that loses its parent becomes the shim's child, because the shim is a subreaper.
    /// The shim must be stopped, or be a child of this process that has not been reaped.
    pub fn descendants(shim: Pid) -> Vec<(Pid, PidFd)> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let all: Vec<(u32, sys::procfs::Stat)> =
            pids.filter_map(|pid| Some((pid, sys::procfs::stat(pid).ok()??))).collect();
        let mut family = vec![shim.as_raw_nonzero().get().unsigned_abs()];
        let mut found = Vec::new();
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            next += 1;
            for (pid, stat) in all.iter().filter(|(_, stat)| stat.parent == parent) {
                family.push(*pid);
                let opened = PidFd::open(*pid, stat.starttime).ok().flatten();
                let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
                found.extend(pid.zip(opened));
            }
        }
        found
    }

    /// Processes that an OCI runtime may have left if it was killed while it made the process in `directory`. One kind is a child with a
    /// session of its own that has not become that process yet: the runtime's `delete` does not know it, and it still has the
    /// runtime's command line. The other kind is CRIU and what CRIU restores. Once these have given up their first memory, neither
    /// their command line nor their environment tells what they are, but they keep CRIU's log open until all are ready to go on.
    pub fn runtimes_of(directory: &ProcessDir) -> Vec<(Pid, PidFd)> {
        // As the shim finds its working directory.
        let Ok(directory) = std::fs::canonicalize(directory.path()) else { return Vec::new() };
        let log = directory.join(RUNTIME_LOG);
        let (work, restores) = (directory.join(CRIU_WORK), directory.join(CRIU_WORK).exists());
        let variable = [DIRECTORY_VARIABLE.as_bytes(), b"=", directory.as_os_str().as_encoded_bytes()].concat();
        let has = |pid: u32, file: &str, word: &[u8]| {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            text.split(|byte| *byte == 0).any(|one| one == word)
        };
        // A process that only reads the log is no CRIU: a person looks at the log.
        let logs = |pid: u32| {
            let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let is_its = |path: PathBuf| path.parent() == Some(work.as_path());
            descriptors
                .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(is_its))
                .filter_map(|entry| entry.file_name().into_string().ok())
                .any(|fd| sys::procfs::is_open_for_writing(pid, &fd).unwrap_or(false))
        };
        let is_one = |pid| {
            let is_named = has(pid, "cmdline", log.as_os_str().as_encoded_bytes());
            is_named || has(pid, "environ", &variable) || (restores && logs(pid))
        };
        find_processes(is_one, |stat| !stat.is_dead())
    }

    /// Process `pid`, if runc was making it into a container's process and another program has stopped it; it does not stop itself. Its
    /// name tells what it is (libcontainer/nsenter/nsexec.c), so ask only about the groups of a container that is being removed.
    pub fn stopped_half_made(pid: u32) -> Option<(Pid, PidFd)> {
        let is_half_made = || {
            let name = sys::procfs::read(pid, "comm").ok().flatten().unwrap_or_default();
            let stat = sys::procfs::stat(pid).ok().flatten();
            stat.filter(|stat| name.starts_with("runc:[") && stat.is_stopped()).map(|stat| stat.starttime)
        };
        let process = PidFd::open(pid, is_half_made()?).ok()??;
        // Looked at again, now that it cannot be another one.
        is_half_made()?;
        Some((Pid::from_raw(i32::try_from(pid).ok()?)?, process))
    }

    /// What a shim has started and has not let go: the OCI runtime, mostly. The group must be held, by a shim that lives
    /// or has not been reaped.
    pub fn others_in_group(shim: Pid) -> Vec<(Pid, PidFd)> {
        let group = shim.as_raw_nonzero().get().unsigned_abs();
        find_processes(|pid| pid != group, |stat| stat.group == group)
    }

    /// The shims among this process's own children, by the directory that they work in: those that it started before
    /// it replaced itself by another program. All children that have ended are reaped, so that only a process
    /// may ask that is a supervisor and nothing else, and only before it starts others.
    pub fn kept_children() -> HashMap<PathBuf, Child> {
        let mut found = HashMap::new();
        while let Ok(Some(_)) = sys::child::try_reap_any() {}
        for tasks in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(tasks.path().join("children")).unwrap_or_default();
            for pid in children.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
                let child = Child::kept(pid);
                match std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())) {
                    Ok(directory) => drop(found.insert(directory, child)),
                    // It has ended just now; the drop reaps it.
                    Err(_) => drop(child),
                }
            }
        }
        found
    }
}

/// The processes of this host that are meant. Goes through all of `/proc`.
fn find_processes(is_it: impl Fn(u32) -> bool, is_meant: impl Fn(&sys::procfs::Stat) -> bool) -> Vec<(Pid, PidFd)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let open = |pid| {
        let stat = sys::procfs::stat(pid).ok()??;
        if !is_meant(&stat) {
            return None;
        }
        let process = PidFd::open(pid, stat.starttime).ok()??;
        // Looked at again, now that it cannot be another one.
        Some((Pid::from_raw(i32::try_from(pid).ok()?)?, process)).filter(|_| is_it(pid))
    };
    pids.filter(|pid| is_it(*pid)).filter_map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container_dir::ContainerDir;
    use std::process::{Command, Stdio};

    #[test]
    fn who_writes_a_log_of_criu_is_found_and_who_looks_at_it_is_not() {
        let directory = tempfile::tempdir().expect("tempdir");
        let work = directory.path().join("c/init/criu.work");
        std::fs::create_dir_all(work.join("yard")).expect("creates");
        let log = work.join("restore.log");
        let writer = File::options().create(true).append(true).open(&log).expect("opens");
        let sleep = |stdio: File| Command::new("sleep").arg("1000").stdin(Stdio::from(stdio)).spawn().expect("sleeps");
        let mut written = sleep(writer);
        let mut others =
            [sleep(File::open(&log).expect("opens")), sleep(File::open(work.join("yard")).expect("opens"))];
        let process = ContainerDir::new(directory.path(), "c").process("init");
        let found: Vec<i32> = Shim::runtimes_of(&process).iter().map(|(pid, _)| pid.as_raw_nonzero().get()).collect();
        assert_eq!(found, [written.id() as i32]);
        for child in std::iter::once(&mut written).chain(&mut others) {
            child.kill().expect("kills");
            child.wait().expect("reaps");
        }
    }
}
