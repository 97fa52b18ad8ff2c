//! The process object of the OCI runtime specification (config.md, "Process"), as far as it is looked at. What
//! is not looked at is passed on as it came.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::capability::Capability;
use crate::json::null_as_default;

/// A process as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProcessSpec {
    /// Whether it gets a terminal.
    #[serde(deserialize_with = "null_as_default")]
    pub terminal: bool,
    /// Whom it runs as, in the container's own numbers.
    #[serde(deserialize_with = "null_as_default")]
    pub user: User,
    /// The program and its arguments.
    #[serde(deserialize_with = "null_as_default")]
    pub args: Vec<String>,
    /// `NAME=value`.
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// Absolute, in the container.
    #[serde(deserialize_with = "null_as_default")]
    pub cwd: String,
    /// One list for the bounding, effective, inheritable and permitted sets; where these differ, the bounding one.
    #[serde(deserialize_with = "capabilities")]
    pub capabilities: Vec<Capability>,
    /// Name of a profile, or empty.
    #[serde(deserialize_with = "null_as_default")]
    pub apparmor_profile: String,
    /// A label, or empty.
    #[serde(deserialize_with = "null_as_default")]
    pub selinux_label: String,
    /// prctl(2), `PR_SET_NO_NEW_PRIVS`.
    #[serde(deserialize_with = "null_as_default")]
    pub no_new_privileges: bool,
    /// Limits to set.
    #[serde(deserialize_with = "null_as_default")]
    pub rlimits: Vec<Rlimit>,
}

/// Whom a process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// A resource limit, for example `RLIMIT_NOFILE`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Rlimit {
    /// Its name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

impl ProcessSpec {
    /// The OCI process object for the runtime's `exec`.
    pub fn to_oci(&self) -> Map<String, Value> {
        let mut object = Map::new();
        let mut set = |name: &str, value: Value| object.insert(name.to_string(), value);
        set("terminal", self.terminal.into());
        set("user", json!(self.user));
        set("args", json!(self.args));
        set("env", json!(self.env));
        set("cwd", json!(self.cwd));
        // Absent means the container's own capabilities to the runtime; empty sets would mean none.
        if !self.capabilities.is_empty() {
            let list = json!(self.capabilities);
            set("capabilities", json!({"bounding": list, "effective": list, "inheritable": list, "permitted": list}));
        }
        if !self.apparmor_profile.is_empty() {
            set("apparmorProfile", json!(self.apparmor_profile));
        }
        if !self.selinux_label.is_empty() {
            set("selinuxLabel", json!(self.selinux_label));
        }
        set("noNewPrivileges", self.no_new_privileges.into());
        if !self.rlimits.is_empty() {
            set("rlimits", json!(self.rlimits));
        }
        object
    }
}

/// Capabilities as the specification has them (an object of sets) or as its drafts had them (a list).
fn capabilities<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<Capability>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        List(Vec<Capability>),
        Sets {
            #[serde(default)]
            bounding: Option<Vec<Capability>>,
            #[serde(default)]
            effective: Option<Vec<Capability>>,
        },
    }
    Ok(match Option::<Form>::deserialize(d)? {
        None => Vec::new(),
        Some(Form::List(list)) => list,
        Some(Form::Sets { bounding, effective }) => bounding.or(effective).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_way_through_the_file() {
        let spec = ProcessSpec {
            terminal: true,
            user: User { uid: 1, gid: 2, additional_gids: vec![3] },
            args: vec!["a".into()],
            env: vec!["B=c".into()],
            cwd: "/".into(),
            capabilities: vec!["CAP_KILL".into()],
            apparmor_profile: "p".into(),
            selinux_label: "l".into(),
            no_new_privileges: true,
            rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 1, hard: u64::MAX }],
        };
        let object = Value::Object(spec.to_oci());
        assert_eq!(serde_json::from_value::<ProcessSpec>(object).expect("its own form"), spec);
    }

    #[test]
    fn null_is_absent() {
        let text = r#"{"args":["x"],"env":null,"user":null,"capabilities":null,"rlimits":null,"cwd":null}"#;
        let spec: ProcessSpec = serde_json::from_str(text).expect("lenient");
        assert_eq!(spec, ProcessSpec { args: vec!["x".into()], ..ProcessSpec::default() });
    }
}
