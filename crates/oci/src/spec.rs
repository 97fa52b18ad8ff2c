//! The process object of the OCI runtime specification (config.md, "Process"). The daemon reads some of its members and
//! passes all of them to the runtime unchanged.

use contract::null_as_default;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::capabilities::Capabilities;

/// The members of a process object that the daemon reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProcessSpec {
    /// Whether the process gets a terminal.
    #[serde(deserialize_with = "null_as_default")]
    pub terminal: bool,
    /// The user of the process, by ids of the container's user namespace.
    #[serde(deserialize_with = "null_as_default")]
    pub user: User,
    /// The program and its arguments.
    #[serde(deserialize_with = "null_as_default")]
    pub args: Vec<String>,
    /// The environment variables in the form `NAME=value`.
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// The working directory: an absolute path in the container.
    #[serde(deserialize_with = "null_as_default")]
    pub cwd: String,
    /// One list for the bounding, effective and permitted sets. If these differ, it is the bounding set.
    #[serde(deserialize_with = "capabilities")]
    pub capabilities: Capabilities,
    /// The name of an AppArmor profile, or empty.
    #[serde(deserialize_with = "null_as_default")]
    pub apparmor_profile: String,
    /// The SELinux label, or empty.
    #[serde(deserialize_with = "null_as_default")]
    pub selinux_label: String,
    /// Whether the process cannot gain privileges by an exec (prctl(2), `PR_SET_NO_NEW_PRIVS`).
    #[serde(deserialize_with = "null_as_default")]
    pub no_new_privileges: bool,
    /// The resource limits of the process.
    #[serde(deserialize_with = "null_as_default")]
    pub rlimits: Vec<Rlimit>,
}

/// The user and groups of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    /// The ids of additional groups.
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// A resource limit, for example `RLIMIT_NOFILE`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Rlimit {
    /// The limit's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The soft limit.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// The width.
    pub columns: u16,
    /// The height.
    pub rows: u16,
}

impl Default for TerminalSize {
    /// Returns 80 by 24, the size that programs assume if a terminal reports none.
    fn default() -> TerminalSize {
        TerminalSize { columns: 80, rows: 24 }
    }
}

impl TerminalSize {
    /// Returns the size that a process object names. Returns `None` if it names none, or one that is zero in one
    /// direction.
    pub fn of(process: &Map<String, Value>) -> Option<TerminalSize> {
        let size = process.get("consoleSize")?;
        let number = |name| u16::try_from(size.get(name)?.as_u64()?).ok().filter(|number| *number > 0);
        Some(TerminalSize { columns: number("width")?, rows: number("height")? })
    }

    /// Puts this size into a process object.
    pub fn put_into(self, process: &mut Map<String, Value>) {
        process.insert("consoleSize".into(), json!({"width": self.columns, "height": self.rows}));
    }
}

impl ProcessSpec {
    /// Reads the members of a process object.
    pub fn of(object: &Map<String, Value>) -> serde_json::Result<ProcessSpec> {
        ProcessSpec::deserialize(object)
    }

    /// Returns the process object for the runtime's `exec`. Members that this specification leaves empty are taken from
    /// `init`, the process object of the container's first process, as `runc exec` does without `--process`. So are all
    /// members that an API request cannot name, such as `oomScoreAdj`, `ioPriority` and the umask.
    ///
    /// A request cannot turn off the container's `noNewPrivileges`. No capability is inheritable or ambient, since a
    /// program in the container could otherwise gain it from a file with inheritable capabilities (CVE-2022-24769).
    pub fn to_exec(&self, init: Map<String, Value>, size: Option<TerminalSize>) -> Map<String, Value> {
        let mut object = init;
        // Go programs treat null as absent, but crun does not.
        object.retain(|_, value| !value.is_null());
        let size = size.or_else(|| TerminalSize::of(&object)).unwrap_or_default();
        let user = self.user_for_exec(object.remove("user"));
        let capabilities = self.capabilities_for_exec(object.remove("capabilities"));
        let mut set = |name: &str, value: Value| object.insert(name.to_string(), value);
        set("terminal", self.terminal.into());
        set("args", json!(self.args));
        set("user", user);
        set("capabilities", capabilities);
        if !self.env.is_empty() {
            set("env", json!(self.env));
        }
        if !self.cwd.is_empty() {
            set("cwd", json!(self.cwd));
        }
        if !self.apparmor_profile.is_empty() {
            set("apparmorProfile", json!(self.apparmor_profile));
        }
        if !self.selinux_label.is_empty() {
            set("selinuxLabel", json!(self.selinux_label));
        }
        if self.no_new_privileges {
            set("noNewPrivileges", true.into());
        }
        if !self.rlimits.is_empty() {
            set("rlimits", json!(self.rlimits));
        }
        // This member is for Windows, and would contradict `args`.
        object.remove("commandLine");
        object.remove("consoleSize");
        if self.terminal {
            size.put_into(&mut object);
        }
        object
    }

    fn user_for_exec(&self, init: Option<Value>) -> Value {
        let mut user = match init {
            Some(Value::Object(user)) => user,
            _ => Map::new(),
        };
        user.retain(|name, value| !value.is_null() && name != "username");
        user.insert("uid".into(), self.user.uid.into());
        user.insert("gid".into(), self.user.gid.into());
        if !self.user.additional_gids.is_empty() {
            user.insert("additionalGids".into(), json!(self.user.additional_gids));
        }
        user.into()
    }

    fn capabilities_for_exec(&self, init: Option<Value>) -> Value {
        let of_all = |list: Value| json!({"bounding": list, "effective": list, "permitted": list});
        match init {
            _ if !self.capabilities.is_empty() => of_all(self.capabilities.iter().collect()),
            // Drafts of the specification had one list.
            Some(Value::Array(list)) => of_all(list.into()),
            Some(Value::Object(mut sets)) => {
                sets.retain(|name, set| {
                    matches!(name.as_str(), "bounding" | "effective" | "permitted") && !set.is_null()
                });
                sets.into()
            }
            _ => json!({}),
        }
    }
}

/// Reads capabilities in the form of the specification, an object of sets, or in the form of its drafts, a list.
fn capabilities<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Capabilities, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        List(Vec<String>),
        Sets {
            #[serde(default)]
            bounding: Option<Vec<String>>,
            #[serde(default)]
            effective: Option<Vec<String>>,
        },
    }
    let names = match Option::<Form>::deserialize(d)? {
        None => Vec::new(),
        Some(Form::List(list)) => list,
        Some(Form::Sets { bounding, effective }) => bounding.or(effective).unwrap_or_default(),
    };
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init() -> Map<String, Value> {
        let object = json!({
            "terminal": true, "args": ["init"], "env": ["A=1"], "cwd": "/srv", "commandLine": "x",
            "user": {"uid": 7, "gid": 8, "additionalGids": [9], "umask": 63, "username": "x"},
            "capabilities": {"bounding": ["CAP_KILL"], "effective": [], "permitted": ["CAP_KILL"],
                             "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
            "apparmorProfile": "p", "selinuxLabel": "l", "noNewPrivileges": true, "oomScoreAdj": 5,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": u64::MAX}],
            "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}, "scheduler": null,
        });
        object.as_object().expect("an object").clone()
    }

    #[test]
    fn empty_exec_takes_the_settings_of_the_container() {
        let spec = ProcessSpec { args: vec!["a".into()], ..ProcessSpec::default() };
        let expected = json!({
            "terminal": false, "args": ["a"], "env": ["A=1"], "cwd": "/srv",
            "user": {"uid": 0, "gid": 0, "additionalGids": [9], "umask": 63},
            "capabilities": {"bounding": ["CAP_KILL"], "effective": [], "permitted": ["CAP_KILL"]},
            "apparmorProfile": "p", "selinuxLabel": "l", "noNewPrivileges": true, "oomScoreAdj": 5,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": u64::MAX}],
            "ioPriority": {"class": "IOPRIO_CLASS_IDLE"},
        });
        assert_eq!(Value::Object(spec.to_exec(init(), None)), expected);
    }

    #[test]
    fn exec_in_a_container_without_capabilities_has_none() {
        for none in [json!({"cwd": "/"}), json!({"cwd": "/", "capabilities": null, "user": null})] {
            let none = none.as_object().expect("an object").clone();
            let object = ProcessSpec::default().to_exec(none, None);
            assert_eq!((&object["capabilities"], &object["user"]), (&json!({}), &json!({"uid": 0, "gid": 0})));
        }
        let draft = json!({"capabilities": ["CAP_KILL"]}).as_object().expect("an object").clone();
        let object = ProcessSpec::default().to_exec(draft, None);
        let list = json!(["CAP_KILL"]);
        assert_eq!(object["capabilities"], json!({"bounding": list, "effective": list, "permitted": list}));
    }

    #[test]
    fn terminal_of_an_exec_always_has_a_size() {
        let spec = ProcessSpec { terminal: true, ..ProcessSpec::default() };
        let size = |init: &Map<String, Value>, asked| TerminalSize::of(&spec.to_exec(init.clone(), asked));
        let (asked, mut process) = (TerminalSize { columns: 132, rows: 43 }, init());
        assert_eq!(size(&process, None), Some(TerminalSize { columns: 80, rows: 24 }));
        process.insert("consoleSize".into(), json!({"width": 100, "height": 0}));
        assert_eq!(size(&process, None), Some(TerminalSize::default()));
        process.insert("consoleSize".into(), json!({"width": 100, "height": 50}));
        assert_eq!(size(&process, None), Some(TerminalSize { columns: 100, rows: 50 }));
        assert_eq!(size(&process, Some(asked)), Some(asked));
        assert_eq!(TerminalSize::of(&ProcessSpec::default().to_exec(process, Some(asked))), None);
    }

    #[test]
    fn exec_request_survives_a_round_trip_through_the_process_object() {
        let spec = ProcessSpec {
            terminal: true,
            user: User { uid: 1, gid: 2, additional_gids: vec![3] },
            args: vec!["a".into()],
            env: vec!["B=c".into()],
            cwd: "/".into(),
            capabilities: ["CAP_KILL"].into_iter().collect(),
            apparmor_profile: "p".into(),
            selinux_label: "l".into(),
            no_new_privileges: true,
            rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 1, hard: u64::MAX }],
        };
        let object = Value::Object(spec.to_exec(init(), None));
        assert_eq!(serde_json::from_value::<ProcessSpec>(object).expect("its own form"), spec);
    }

    #[test]
    fn null_members_count_as_absent() {
        let text = r#"{"args":["x"],"env":null,"user":null,"capabilities":null,"rlimits":null,"cwd":null}"#;
        let spec: ProcessSpec = serde_json::from_str(text).expect("lenient");
        assert_eq!(spec, ProcessSpec { args: vec!["x".into()], ..ProcessSpec::default() });
    }
}
