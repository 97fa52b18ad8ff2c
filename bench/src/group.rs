//! Control groups of the bench's own: the kernel counts in them whatever detaches from whom.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A group that is removed with this value.
#[derive(Debug)]
pub(crate) struct Group(PathBuf);

impl Group {
    /// One that counts CPU time: v1's cpuacct, or any of v2.
    pub(crate) fn cpu(name: &str) -> Result<Group> {
        Group::new("cpuacct", name)
    }

    /// One that counts memory, on v1.
    pub(crate) fn memory(name: &str) -> Result<Group> {
        Group::new("memory", name)
    }

    fn new(controller: &str, name: &str) -> Result<Group> {
        let root = Path::new("/sys/fs/cgroup");
        let v1 = root.join(controller);
        let path = if v1.exists() { v1 } else { root.to_path_buf() }.join(name);
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Group(path))
    }

    /// Moves a process into it.
    pub(crate) fn add(&self, pid: u32) -> Result<()> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("move {pid} into {}", self.0.display()))
    }

    /// The CPU time that it has used.
    pub(crate) fn cpu_used(&self) -> Result<Duration> {
        if let Ok(text) = std::fs::read_to_string(self.0.join("cpuacct.usage")) {
            return Ok(Duration::from_nanos(text.trim().parse()?));
        }
        let text = std::fs::read_to_string(self.0.join("cpu.stat"))?;
        let used = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(used.context("cpu.stat has no usage_usec")?.parse()?))
    }

    /// The bytes that are charged to it when what can be had again from files has been given back.
    pub(crate) fn memory_charged(&self) -> Result<u64> {
        std::fs::write(self.0.join("memory.force_empty"), "0").context("memory.force_empty, which only v1 has")?;
        Ok(std::fs::read_to_string(self.0.join("memory.usage_in_bytes"))?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let parent = self.0.with_file_name("cgroup.procs");
        for pid in std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = std::fs::write(&parent, pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}
