//! The members of `process.json` that are not OCI's.
//!
//! The daemon writes the file: an OCI process object to which it adds the members of a [`ProcessRecord`]. The shim reads it as
//! a [`Request`]; the OCI runtime reads the rest. A later daemon reads the record back.
//!
//! The two types share their members through a macro and are not one type, for two reasons. A shim should execute few
//! instructions, so it does not parse what only the daemon needs. And the shim reads some OCI members strictly, whereas the
//! daemon must be able to take over a process whose OCI members it does not understand.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::format::{FORMAT, NewerFormat, check_format, null_as_default};

/// Defines a type with the members that the daemon and the shim share, followed by its own.
macro_rules! with_shared_members {
    ($(#[$attribute:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$attribute])*
        #[serde(default, rename_all = "camelCase")]
        pub struct $name {
            /// False for a container's init, true for an added process.
            pub exec: bool,
            /// The client's path for stdin. Empty for none.
            pub containerd_stdin: String,
            /// The client's path for stdout. Empty for none.
            pub containerd_stdout: String,
            /// The client's path for stderr. Empty for none.
            pub containerd_stderr: String,
            /// The arguments in front of the runtime's subcommand.
            #[serde(deserialize_with = "null_as_default")]
            pub runtime_args: Vec<String>,
            /// Whether the runtime is called with `--no-pivot`.
            pub no_pivot_root: bool,
            /// Whether the shim creates and starts the container by one call of the runtime.
            pub run: bool,
            /// The directory of the checkpoint to restore from. Empty for a fresh start.
            pub checkpoint: String,
            /// The host uid of the container's root.
            #[serde(rename = "rootUID")]
            pub root_uid: u32,
            /// The host gid of the container's root.
            #[serde(rename = "rootGID")]
            pub root_gid: u32,
            /// The daemon's copy of the runtime, which the shim runs instead of the file if it finds the copy.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub runtime_copy: Option<RuntimeCopy>,
            /// Where the shim of an init counts OOM kills: the cgroup v1 controller, or nothing for v2; a colon; the mount
            /// point of the hierarchy. Empty if the shim is not to count.
            #[serde(skip_serializing_if = "String::is_empty")]
            pub memory_mount: String,
            $($own)*
        }
    };
}

with_shared_members! {
    /// What the daemon adds to an OCI process object in `process.json`, and reads back when it takes over a process.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct ProcessRecord {
        /// The process's random key, which tells it from others of the same name. Empty if an older daemon made the process.
        pub instance: String,
    }
}

with_shared_members! {
    /// What the shim reads from `process.json`. It ignores all other members.
    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    pub struct Request {
        /// The format of the file.
        version: u32,
        /// OCI: whether the process gets a terminal.
        pub terminal: bool,
        /// OCI: the size of the terminal.
        pub console_size: Option<ConsoleSize>,
    }
}

/// The size of a terminal, in characters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    /// Its width.
    pub width: u16,
    /// Its height.
    pub height: u16,
}

/// A copy of the runtime in memory, which the daemon holds open. The shim opens it through the daemon's entry in `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeCopy {
    /// The number of the daemon's descriptor. The daemon may have closed and reused it by the time the shim looks.
    pub descriptor: i32,
    /// The device of the copy, by which the shim checks that it has found the copy.
    pub device: u64,
    /// The inode of the copy, by which the shim checks that it has found the copy.
    pub inode: u64,
}

impl ProcessRecord {
    /// The members that a daemon adds to the process object, [`FORMAT`] as `version` and the checksum `crc` among them.
    pub const MEMBERS: [&str; 15] = [
        "checkpoint",
        "containerdStderr",
        "containerdStdin",
        "containerdStdout",
        "crc",
        "exec",
        "instance",
        "memoryMount",
        "noPivotRoot",
        "rootGID",
        "rootUID",
        "run",
        "runtimeArgs",
        "runtimeCopy",
        "version",
    ];

    /// Adds the record and the format to a process object. The checksum is added to the file's text.
    pub fn add_to(&self, object: &mut Map<String, Value>) {
        // A structure of plain data always becomes an object.
        if let Ok(Value::Object(members)) = serde_json::to_value(self) {
            object.extend(members);
        }
        object.insert("version".into(), FORMAT.into());
    }
}

/// Why the shim does not carry out a request.
#[derive(Debug)]
pub enum BadRequest {
    /// The text is not the JSON that it must be.
    Malformed(serde_json::Error),
    /// A daemon of a later version wrote it.
    Newer(NewerFormat),
}

/// How the runtime makes the process: its subcommand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `create`: the daemon calls `start` later.
    Create,
    /// `run`: create and start by one call.
    Run,
    /// `restore`: from a checkpoint.
    Restore,
    /// `exec`: as another process of a container.
    Exec,
}

impl Way {
    /// The runtime's subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Way::Create => "create",
            Way::Run => "run",
            Way::Restore => "restore",
            Way::Exec => "exec",
        }
    }
}

impl Request {
    /// Reads the text of `process.json`.
    pub fn parse(text: &[u8]) -> Result<Request, BadRequest> {
        let request: Request = serde_json::from_slice(text).map_err(BadRequest::Malformed)?;
        check_format(request.version).map_err(BadRequest::Newer)?;
        Ok(request)
    }

    /// How the runtime is to make the process.
    pub fn way(&self) -> Way {
        match self {
            Request { exec: true, .. } => Way::Exec,
            Request { run: true, .. } => Way::Run,
            request if request.checkpoint.is_empty() => Way::Create,
            _ => Way::Restore,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn full() -> ProcessRecord {
        ProcessRecord {
            exec: true,
            containerd_stdin: "/a".into(),
            containerd_stdout: "/b".into(),
            containerd_stderr: "/c".into(),
            runtime_args: vec!["--root".into(), "/r".into()],
            no_pivot_root: true,
            run: true,
            checkpoint: "/d".into(),
            root_uid: 7,
            root_gid: 8,
            runtime_copy: Some(RuntimeCopy { descriptor: 1, device: 2, inode: 3 }),
            memory_mount: "memory:/m".into(),
            instance: "k".into(),
        }
    }

    fn file(record: &ProcessRecord) -> Map<String, Value> {
        let object = r#"{"args":["sh"],"user":{"uid":0},"terminal":true,"consoleSize":{"width":80,"height":24}}"#;
        let mut object: Map<String, Value> = serde_json::from_str(object).expect("an object");
        record.add_to(&mut object);
        object
    }

    #[test]
    fn shim_reads_every_shared_member_that_the_daemon_writes() {
        let text = Value::Object(file(&full())).to_string();
        assert_eq!(serde_json::from_str::<ProcessRecord>(&text).expect("its own form"), full());
        let request = Request::parse(text.as_bytes()).expect("valid");
        let expected = full();
        let read = Request {
            exec: expected.exec,
            containerd_stdin: expected.containerd_stdin,
            containerd_stdout: expected.containerd_stdout,
            containerd_stderr: expected.containerd_stderr,
            runtime_args: expected.runtime_args,
            no_pivot_root: expected.no_pivot_root,
            run: expected.run,
            checkpoint: expected.checkpoint,
            root_uid: expected.root_uid,
            root_gid: expected.root_gid,
            runtime_copy: expected.runtime_copy,
            memory_mount: expected.memory_mount,
            version: FORMAT,
            terminal: true,
            console_size: Some(ConsoleSize { width: 80, height: 24 }),
        };
        assert_eq!(request, read);
    }

    #[test]
    fn file_keeps_its_form_on_disk() {
        let mut all = Map::new();
        full().add_to(&mut all);
        let text = r#"{"checkpoint":"/d","containerdStderr":"/c","containerdStdin":"/a","containerdStdout":"/b","exec":true,"instance":"k","memoryMount":"memory:/m","noPivotRoot":true,"rootGID":8,"rootUID":7,"run":true,"runtimeArgs":["--root","/r"],"runtimeCopy":{"descriptor":1,"device":2,"inode":3},"version":1}"#;
        assert_eq!(Value::Object(all.clone()).to_string(), text);
        all.insert("crc".into(), Value::Null);
        assert!(all.keys().eq(ProcessRecord::MEMBERS), "{all:?}");
        let mut few = Map::new();
        ProcessRecord::default().add_to(&mut few);
        assert!(!few.contains_key("runtimeCopy") && !few.contains_key("memoryMount"));
    }

    #[test]
    fn daemon_reads_the_record_beside_oci_members_that_the_shim_would_refuse() {
        let text = r#"{"terminal":null,"consoleSize":{"width":100000},"exec":true,"runtimeArgs":null}"#;
        assert!(Request::parse(text.as_bytes()).is_err());
        assert!(serde_json::from_str::<ProcessRecord>(text).expect("lenient").exec);
    }

    #[test]
    fn request_of_a_later_format_is_refused() {
        assert!(Request::parse(br#"{"version":1}"#).is_ok());
        assert!(matches!(Request::parse(br#"{"version":2}"#), Err(BadRequest::Newer(NewerFormat(2)))));
        assert!(matches!(Request::parse(b"{"), Err(BadRequest::Malformed(_))));
    }

    #[test]
    fn way_follows_from_the_request() {
        let way = |text: &str| Request::parse(text.as_bytes()).expect("valid").way();
        assert_eq!(way("{}"), Way::Create);
        assert_eq!(way(r#"{"run":true}"#), Way::Run);
        assert_eq!(way(r#"{"checkpoint":"/c"}"#), Way::Restore);
        assert_eq!(way(r#"{"exec":true,"checkpoint":"/c"}"#), Way::Exec);
    }
}
