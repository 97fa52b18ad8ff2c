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
    /// One list for the bounding, effective and permitted sets; where these differ, the bounding one.
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

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Its width.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
}

impl Default for TerminalSize {
    /// What programs take a terminal for that does not say.
    fn default() -> TerminalSize {
        TerminalSize { columns: 80, rows: 24 }
    }
}

impl TerminalSize {
    /// The size that a process object asks for; `None` if it asks for none, or for one without an extent.
    pub fn of(process: &Map<String, Value>) -> Option<TerminalSize> {
        let size = process.get("consoleSize")?;
        let number = |name| u16::try_from(size.get(name)?.as_u64()?).ok().filter(|number| *number > 0);
        Some(TerminalSize { columns: number("width")?, rows: number("height")? })
    }

    /// Has a process object ask for this size.
    pub fn put_into(self, process: &mut Map<String, Value>) {
        process.insert("consoleSize".into(), json!({"width": self.columns, "height": self.rows}));
    }
}

impl ProcessSpec {
    /// What is looked at of a process object.
    pub fn of(object: &Map<String, Value>) -> serde_json::Result<ProcessSpec> {
        ProcessSpec::deserialize(object)
    }

    /// The OCI process object for the runtime's `exec`. What this specification leaves empty is taken from `init`, the
    /// process object of the container's first process, as `runc exec` without `--process` does it. So are all members that
    /// an API request cannot name, such as `oomScoreAdj`, `ioPriority` and the umask.
    ///
    /// `noNewPrivileges` of the container cannot be taken back. No capability is inheritable or ambient, since a program in
    /// the container could then give it to a file's owner (CVE-2022-24769).
    pub fn to_exec(&self, init: Map<String, Value>, size: Option<TerminalSize>) -> Map<String, Value> {
        let mut object = init;
        // To Go programs null is absent; not to crun.
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
        // Of Windows; it would stand beside other arguments.
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
            _ if !self.capabilities.is_empty() => of_all(json!(self.capabilities)),
            // As drafts of the specification had them.
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
    fn an_empty_exec_takes_the_containers_settings() {
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
    fn an_exec_of_a_bare_container_has_no_capabilities() {
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
    fn the_terminal_of_an_exec_always_has_a_size() {
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
    fn what_an_exec_asks_for_survives_the_way_through_the_file() {
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
        let object = Value::Object(spec.to_exec(init(), None));
        assert_eq!(serde_json::from_value::<ProcessSpec>(object).expect("its own form"), spec);
    }

    #[test]
    fn null_is_absent() {
        let text = r#"{"args":["x"],"env":null,"user":null,"capabilities":null,"rlimits":null,"cwd":null}"#;
        let spec: ProcessSpec = serde_json::from_str(text).expect("lenient");
        assert_eq!(spec, ProcessSpec { args: vec!["x".into()], ..ProcessSpec::default() });
    }
}
