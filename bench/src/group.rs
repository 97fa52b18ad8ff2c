//! Control groups of the bench's own: the kernel counts in them whatever detaches from whom.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// A group that is removed with this value; who is in it goes to where the first one came from.
#[derive(Debug)]
pub(crate) struct Group {
    hierarchy: PathBuf,
    path: PathBuf,
    origin: OnceLock<PathBuf>,
}

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
        let hierarchy = if v1.exists() { v1 } else { root.to_path_buf() };
        let path = hierarchy.join(name);
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Group { hierarchy, path, origin: OnceLock::new() })
    }

    /// Moves a process into it.
    pub(crate) fn add(&self, pid: u32) -> Result<()> {
        let places = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).context("find its control group")?;
        self.origin.get_or_init(|| self.hierarchy.join(self.place(&places)));
        std::fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("move {pid} into {}", self.path.display()))
    }

    /// The place in this hierarchy that `/proc/<pid>/cgroup` tells of.
    fn place<'a>(&self, places: &'a str) -> &'a str {
        let controller = self.hierarchy.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let lines = || places.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let v1 = lines().find(|(controllers, _)| controllers.split(',').any(|one| one == controller));
        let place = v1.or_else(|| lines().find(|(controllers, _)| controllers.is_empty()));
        place.map_or("", |(_, path)| path.trim_start_matches('/'))
    }

    /// The CPU time that it has used.
    pub(crate) fn cpu_used(&self) -> Result<Duration> {
        if let Ok(text) = std::fs::read_to_string(self.path.join("cpuacct.usage")) {
            return Ok(Duration::from_nanos(text.trim().parse()?));
        }
        let text = std::fs::read_to_string(self.path.join("cpu.stat"))?;
        let used = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(used.context("cpu.stat has no usage_usec")?.parse()?))
    }

    /// The bytes that are charged to it when what can be had again from files has been given back.
    pub(crate) fn memory_charged(&self) -> Result<u64> {
        std::fs::write(self.path.join("memory.force_empty"), "0").context("memory.force_empty, which only v1 has")?;
        Ok(std::fs::read_to_string(self.path.join("memory.usage_in_bytes"))?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let origin = self.origin.get().unwrap_or(&self.hierarchy).join("cgroup.procs");
        for pid in std::fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = std::fs::write(&origin, pid);
        }
        let _ = std::fs::remove_dir(&self.path);
    }
}
