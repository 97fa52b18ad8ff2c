//! Bundles with a busybox in them.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A control group that was there before its container.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// An OCI bundle that is being put together.
#[derive(Debug, Clone)]
pub struct Bundle {
    path: PathBuf,
    /// What its `config.json` will be.
    pub config: Value,
}

impl Bundle {
    /// A bundle in `path` that runs `args`; its containers' cgroups are below `cgroup`.
    pub(crate) fn new(path: PathBuf, cgroup: &str, args: &[&str]) -> Bundle {
        let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
        let capabilities = json!(["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"]);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": ["PATH=/bin", "TERM=xterm"],
                "cwd": "/",
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities,
                    "inheritable": capabilities, "permitted": capabilities
                },
                "noNewPrivileges": true,
            },
            "root": {"path": rootfs(), "readonly": true},
            "hostname": "test",
            "mounts": [
                mount("/proc", "proc", &[]),
                mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
                mount("/tmp", "tmpfs", &["nosuid", "nodev"]),
            ],
            "linux": {
                "cgroupsPath": format!("/{cgroup}/{name}"),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
                "maskedPaths": ["/proc/kcore"],
            },
        });
        Bundle { path, config }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same beside it, with another name and program, and a cgroup of its own.
    ///
    /// # Panics
    /// Never: its path has a parent.
    #[must_use]
    pub fn copy(&self, name: &str, args: &[&str]) -> Bundle {
        let path = self.path.with_file_name(name);
        let cgroup = self.cgroup();
        let parent = cgroup.rsplit_once('/').expect("it is absolute").0;
        let mut config = self.config.clone();
        config["process"]["args"] = json!(args);
        config["linux"]["cgroupsPath"] = format!("{parent}/{name}").into();
        Bundle { path, config }
    }

    /// The path of its containers' cgroup.
    ///
    /// # Panics
    /// Never: it is a text.
    pub fn cgroup(&self) -> String {
        self.config["linux"]["cgroupsPath"].as_str().expect("a path").to_string()
    }

    /// Makes a group of that path before any container has it: it is then created and started by two calls of the
    /// runtime, since somebody may have used it. Removed with the result, if nobody has removed it before.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn make_group(&self) -> Group {
        let root = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].into_iter().find(|root| Path::new(root).exists());
        let path = format!("{}{}", root.expect("control groups"), self.cgroup());
        std::fs::create_dir_all(&path).expect("makes a group");
        Group(path.into())
    }

    /// Limits its containers.
    #[must_use]
    pub fn resources(mut self, resources: Value) -> Bundle {
        self.config["linux"]["resources"] = resources;
        self
    }

    /// Changes the process.
    #[must_use]
    pub fn process(mut self, name: &str, value: Value) -> Bundle {
        self.config["process"][name] = value;
        self
    }

    /// Makes the fake runtime ([`crate::FAULTS`]) fail: `run:hang`, `start:signal-9,delete:fail`, …
    #[must_use]
    pub fn fault(mut self, faults: &str) -> Bundle {
        self.config["annotations"] = json!({"test.fault": faults});
        self
    }

    /// Gives the process a terminal.
    #[must_use]
    pub fn terminal(self) -> Bundle {
        self.process("terminal", true.into())
    }

    /// Takes a namespace away.
    ///
    /// # Panics
    /// Never: the namespaces are a list.
    #[must_use]
    pub fn without_namespace(mut self, name: &str) -> Bundle {
        let namespaces = self.config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != name);
        self
    }

    /// Writes it down; its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self) -> String {
        self.write_config(&self.config.to_string())
    }

    /// Writes something else as its `config.json`; its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_config(&self, config: &str) -> String {
        std::fs::create_dir_all(&self.path).expect("makes the bundle");
        std::fs::write(self.path.join("config.json"), config).expect("writes config.json");
        self.path.to_str().expect("test paths are UTF-8").to_string()
    }
}

/// A root file system with a static busybox, and files of letters in `/data` named after their sizes. Made once.
///
/// # Panics
/// When there is no busybox.
pub fn rootfs() -> &'static Path {
    static ROOTFS: OnceLock<PathBuf> = OnceLock::new();
    ROOTFS.get_or_init(|| {
        let target = crate::bin("containerd").parent().and_then(Path::parent).expect("target/release").to_path_buf();
        let ready = target.join("tmp/rootfs-1");
        if ready.exists() {
            return ready;
        }
        std::fs::create_dir_all(target.join("tmp")).expect("makes target/tmp");
        let making = tempfile::tempdir_in(target.join("tmp")).expect("makes a directory");
        for directory in ["bin", "proc", "dev", "sys", "tmp", "data", "etc"] {
            std::fs::create_dir(making.path().join(directory)).expect("makes a directory");
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let busybox = busybox.expect("a static busybox is installed (scripts/setup.sh)");
        // By another process, as in `write_program`.
        let copied = std::process::Command::new("cp").arg(busybox).arg(making.path().join("bin")).status();
        assert!(copied.expect("cp runs").success(), "copies busybox");
        let mut install = std::process::Command::new("chroot");
        install.arg(making.path()).args(["/bin/busybox", "--install", "-s", "/bin"]);
        assert!(install.status().expect("chroot runs").success(), "busybox is static");
        for size in [1, 4095, 4096, 65_537, 1 << 20, 16 << 20, 64 << 20] {
            std::fs::write(making.path().join(format!("data/{size}")), letters(size)).expect("writes");
        }
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(making.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        // Another test process may have been faster.
        let _ = std::fs::rename(making.path(), &ready);
        ready
    })
}

/// Letters in no order that repeats soon, and no line ends, which terminals change.
fn letters(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        b'a' + (state % 26) as u8
    };
    (0..size).map(|_| next()).collect()
}
