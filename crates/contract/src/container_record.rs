//! The record in a container's `state.json`.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::format::null_as_default;

/// What `state.json` holds. The daemon writes it once, when it makes the container's directory; a later daemon reads it.
///
/// `bundle` to `noPivotRoot` are in the files of all daemons of this API. The other members may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerRecord {
    /// The format of the container's files. Absent, and so 0, if an older daemon wrote them.
    pub version: u32,
    /// The absolute path of the OCI bundle.
    pub bundle: String,
    /// The labels that the client gave.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: Vec<String>,
    /// The path of init's stdin.
    pub stdin: String,
    /// The path of init's stdout.
    pub stdout: String,
    /// The path of init's stderr.
    pub stderr: String,
    /// The OCI runtime, as a name or a path.
    pub runtime: String,
    /// The arguments in front of the runtime's subcommand.
    #[serde(deserialize_with = "null_as_default")]
    pub runtime_args: Vec<String>,
    /// The path of the shim.
    pub shim: String,
    /// Whether the runtime is called with `--no-pivot`.
    pub no_pivot_root: bool,
    /// The content of `/proc/sys/kernel/random/boot_id` when the container was made.
    #[serde(rename = "boot_id")]
    pub boot_id: String,
    /// The container's random key, which tells it from others of the same id. Empty if an older daemon made the container.
    pub instance: String,
    /// The `cgroupsPath` of `config.json`. Empty if the bundle leaves the choice to the runtime.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroups_path: String,
    /// Which of the container's control groups existed before the runtime was called. `None` if an older daemon made the
    /// container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<String>,
    /// Before the container was made, the runtime already had one of this id, which another supervisor made.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub theirs: bool,
    /// The directory of the checkpoint that the container was restored from. Empty if the container was started.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub checkpoint: String,
    /// The bundle has a hook that the runtime runs when it deletes the container.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub has_poststop: bool,
    /// The container's directory held the marker [`CREATING`](crate::container_files::CREATING) while the container was being
    /// made. False if an older daemon, which made no marker, made the container.
    pub marked: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn record_keeps_its_form_on_disk() {
        let record = ContainerRecord { version: 1, bundle: "/b".into(), marked: true, ..ContainerRecord::default() };
        let text = r#"{"version":1,"bundle":"/b","labels":[],"stdin":"","stdout":"","stderr":"","runtime":"","runtimeArgs":[],"shim":"","noPivotRoot":false,"boot_id":"","instance":"","marked":true}"#;
        assert_eq!(serde_json::to_string(&record).expect("plain data"), text);
        assert_eq!(serde_json::from_str::<ContainerRecord>(text).expect("its own form"), record);
        let full = ContainerRecord {
            labels: vec!["a=b".into()],
            runtime_args: vec!["--root=/r".into()],
            cgroups_path: "/g".into(),
            groups: Some("0::/g\n".into()),
            theirs: true,
            checkpoint: "/c".into(),
            has_poststop: true,
            ..record
        };
        let text = serde_json::to_string(&full).expect("plain data");
        assert!(
            text.contains(
                r#""cgroupsPath":"/g","groups":"0::/g\n","theirs":true,"checkpoint":"/c","hasPoststop":true"#
            ),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<ContainerRecord>(&text).expect("its own form"), full);
    }

    #[test]
    fn null_lists_of_older_daemons_are_empty() {
        let text = r#"{"bundle":"/b","labels":null,"runtimeArgs":null}"#;
        let record: ContainerRecord = serde_json::from_str(text).expect("lenient");
        assert_eq!(record, ContainerRecord { bundle: "/b".into(), ..ContainerRecord::default() });
    }
}
