//! What must not be left when a test is over.

use std::path::Path;

/// Everything that still belongs to a host: processes that work in its directories or name them, mounts, cgroups and
/// what the runtime keeps.
pub(crate) fn find(directory: &Path, cgroup: &str) -> Vec<String> {
    let text = directory.to_str().expect("test directories are UTF-8");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() || sys::procfs::stat(pid).ok().flatten().is_none_or(|stat| stat.is_dead()) {
            continue;
        }
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if cwd.starts_with(directory) || command.contains(text) || groups.contains(cgroup) {
            found.push(format!("process {pid}: {command} (in {})", cwd.display()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo is there");
    found.extend(mounts.lines().filter(|line| line.contains(text)).map(|line| format!("mount: {line}")));
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        for own in [hierarchy.path().join(cgroup), Path::new("/sys/fs/cgroup").join(cgroup)] {
            let groups = std::fs::read_dir(own).into_iter().flatten().flatten();
            let groups = groups.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            found.extend(groups.map(|group| format!("cgroup: {}", group.path().display())));
        }
    }
    let kept = std::fs::read_dir(directory.join("root")).into_iter().flatten().flatten();
    found.extend(kept.map(|entry| format!("kept by the runtime: {}", entry.path().display())));
    for runtime in std::fs::read_dir(directory.join("state-runtime")).into_iter().flatten().flatten() {
        let kept = std::fs::read_dir(runtime.path()).into_iter().flatten().flatten();
        found.extend(kept.map(|entry| format!("kept by the runtime: {}", entry.path().display())));
    }
    let state = std::fs::read_dir(directory.join("state")).into_iter().flatten().flatten();
    let state = state.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    found.extend(state.map(|entry| format!("state: {}", entry.path().display())));
    found
}

/// Removes the groups that were made for the containers of a host; they are empty.
pub(crate) fn remove_cgroups(cgroup: &str) {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join(cgroup));
    }
    let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(cgroup));
}
