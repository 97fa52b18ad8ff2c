//! The record in a checkpoint's `config.json`, and the runtime's flags that follow from it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

use crate::format::null_as_default;

/// The options with which a checkpoint was made, as its `config.json` holds them. The daemon writes the file. The daemon and
/// the shim read it: a container must be restored with the options of its checkpoint.
///
/// The shim reads only [`CheckpointOptions`], because reading the map of files would add 8 kB to the program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Checkpoint {
    /// When the checkpoint was begun, in the form of RFC 3339.
    pub created: String,
    /// The checkpoint's name, which its directory has too.
    pub name: String,
    /// The checkpoint includes established TCP connections.
    pub tcp: bool,
    /// The checkpoint includes Unix sockets whose peer is outside the container.
    pub unix_sockets: bool,
    /// The checkpoint includes a terminal that comes from outside the container.
    pub shell: bool,
    /// The container was stopped after the checkpoint was made.
    pub exit: bool,
    /// Namespaces that the checkpoint does not include. The restored container gets empty ones.
    #[serde(rename = "emptyNS", deserialize_with = "null_as_default")]
    pub empty_ns: Vec<String>,
    /// The size of each file, by which damage is noticed. Empty in a checkpoint of an older daemon.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, u64>,
}

impl Checkpoint {
    /// The options that the runtime needs for a restore.
    pub fn options(&self) -> CheckpointOptions {
        let Checkpoint { tcp, unix_sockets, shell, .. } = *self;
        CheckpointOptions { tcp, unix_sockets, shell, empty_ns: self.empty_ns.clone() }
    }
}

/// The part of a [`Checkpoint`] from which the runtime's flags follow. The shim reads no more than this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CheckpointOptions {
    /// See [`Checkpoint::tcp`].
    pub tcp: bool,
    /// See [`Checkpoint::unix_sockets`].
    pub unix_sockets: bool,
    /// See [`Checkpoint::shell`].
    pub shell: bool,
    /// See [`Checkpoint::empty_ns`].
    #[serde(rename = "emptyNS", deserialize_with = "null_as_default")]
    pub empty_ns: Vec<String>,
}

const EMPTY_NS: &str = "--empty-ns";

impl CheckpointOptions {
    /// The names of the flags that the runtime must know. Not every runtime knows them.
    pub fn needs(&self) -> Vec<&'static str> {
        let mut names = self.switches();
        if !self.empty_ns.is_empty() {
            names.push(EMPTY_NS);
        }
        names
    }

    /// The flags for the runtime's `checkpoint` and `restore`, with their values.
    pub fn flags(&self) -> Vec<&str> {
        let mut flags: Vec<&str> = self.switches();
        for namespace in &self.empty_ns {
            flags.extend([EMPTY_NS, namespace]);
        }
        flags
    }

    /// The flags that have no value.
    fn switches(&self) -> Vec<&'static str> {
        let switches =
            [(self.tcp, "--tcp-established"), (self.unix_sockets, "--ext-unix-sk"), (self.shell, "--shell-job")];
        switches.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_follow_from_the_config() {
        let text = r#"{"name":"a","tcp":true,"unixSockets":true,"shell":true,"exit":true,"emptyNS":["network"]}"#;
        let options: CheckpointOptions = serde_json::from_str(text).expect("valid");
        let all = ["--tcp-established", "--ext-unix-sk", "--shell-job", "--empty-ns", "network"];
        assert_eq!(options.flags(), all);
        assert_eq!(options.needs(), all[..4]);
        let options: CheckpointOptions = serde_json::from_str(r#"{"emptyNS":null}"#).expect("valid");
        assert!(options.flags().is_empty() && options.needs().is_empty());
    }

    #[test]
    fn shim_reads_the_options_that_the_daemon_writes() {
        for bits in 0..16 {
            let is_set = |bit: i32| bits & 1 << bit != 0;
            let empty_ns = if is_set(3) { alloc::vec!["network".into()] } else { Vec::new() };
            let checkpoint = Checkpoint {
                tcp: is_set(0),
                unix_sockets: is_set(1),
                shell: is_set(2),
                empty_ns,
                ..Checkpoint::default()
            };
            let text = serde_json::to_string(&checkpoint).expect("plain data");
            assert_eq!(serde_json::from_str::<CheckpointOptions>(&text).expect("its form"), checkpoint.options());
        }
    }

    #[test]
    fn config_keeps_its_form_on_disk() {
        let text = r#"{"created":"t","name":"a","tcp":true,"unixSockets":false,"shell":false,"exit":true,"emptyNS":["network"],"files":{"inventory.img":7}}"#;
        let checkpoint: Checkpoint = serde_json::from_str(text).expect("valid");
        assert_eq!(serde_json::to_string(&checkpoint).expect("plain data"), text);
    }
}
