//! OCI bundles: a directory with a `config.json` (OCI runtime specification, bundle.md).

use contract::null_as_default;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::spec::ProcessSpec;

/// The largest `config.json` that is read. A larger one would only cost memory.
const LARGEST: u64 = 16 << 20;

/// -1 as an unsigned number of 32 bits.
const NO_ID: u32 = u32::MAX;

/// What the daemon needs to know of a bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The absolute path of the bundle.
    pub path: PathBuf,
    /// The process object of `config.json`, for the runtime.
    pub process: Map<String, Value>,
    /// The members of `process` that the daemon reads.
    pub spec: ProcessSpec,
    /// The control group that the bundle names; empty if it leaves the choice to the runtime.
    pub cgroups_path: String,
    /// Whether the bundle has a hook that the runtime runs when it deletes the container.
    pub has_poststop: bool,
    /// The host's user id that the container's root maps to.
    pub root_uid: u32,
    /// The host's group id that the container's root maps to.
    pub root_gid: u32,
}

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// There is no directory.
    #[error("bundle {}: {source}", path.display())]
    Missing {
        /// The bundle.
        path: PathBuf,
        /// Why it cannot be used.
        source: std::io::Error,
    },
    /// `config.json` cannot be read.
    #[error("bundle config {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// `config.json` does not follow the specification.
    #[error("bundle config {}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column if they are known.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    process: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "null_as_default")]
    linux: Linux,
    #[serde(default, deserialize_with = "null_as_default")]
    hooks: Hooks,
    #[serde(default)]
    mounts: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Hooks {
    #[serde(deserialize_with = "null_as_default")]
    poststop: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    #[serde(deserialize_with = "null_as_default")]
    cgroups_path: String,
    #[serde(deserialize_with = "null_as_default")]
    uid_mappings: Vec<Mapping>,
    #[serde(deserialize_with = "null_as_default")]
    gid_mappings: Vec<Mapping>,
    devices: Value,
}

#[derive(Deserialize)]
struct Mapping {
    #[serde(rename = "containerID", default)]
    container_id: u32,
    #[serde(rename = "hostID", default)]
    host_id: u32,
}

impl Config {
    /// Returns the path of a number that cannot be an id of a user or group or a device number, with the reason, if
    /// there is one. -1 means "unchanged" to the kernel (setresuid(2), chown(2)), so that a process with this id would
    /// keep the runtime's, which is root's. Not all runtimes refuse it, and some truncate larger numbers to 32 bits.
    fn impossible_number(&self) -> Option<String> {
        let user = self.process.as_ref().and_then(|process| process.get("user")).unwrap_or(&Value::Null);
        let fields = ["uid", "gid"].map(|name| (format!("process.user.{name}"), &user[name]));
        let groups = list(&user["additionalGids"]).map(|(at, id)| (format!("process.user.additionalGids[{at}]"), id));
        let devices = list(&self.linux.devices).flat_map(|(at, device)| {
            ["major", "minor", "uid", "gid"].map(|name| (format!("linux.devices[{at}].{name}"), &device[name]))
        });
        let of_mappings = |path: String, mappings| {
            let fields = list(mappings).flat_map(move |(at, mapping): (usize, &Value)| {
                ["containerID", "hostID"].map(|name| (format!("{path}[{at}].{name}"), &mapping[name]))
            });
            fields.collect::<Vec<_>>()
        };
        let mounts = list(&self.mounts).flat_map(|(at, mount)| {
            let of = |name: &str| of_mappings(format!("mounts[{at}].{name}"), &mount[name]);
            [of("uidMappings"), of("gidMappings")].into_iter().flatten()
        });
        let mappings = [("uidMappings", &self.linux.uid_mappings), ("gidMappings", &self.linux.gid_mappings)];
        let of_linux = mappings.into_iter().flat_map(|(name, mappings)| {
            mappings.iter().enumerate().flat_map(move |(at, mapping)| {
                let ids = [("containerID", mapping.container_id), ("hostID", mapping.host_id)];
                ids.into_iter().filter(|(_, id)| *id == NO_ID).map(move |(id, _)| format!("linux.{name}[{at}].{id}"))
            })
        });
        let values = fields.into_iter().chain(groups).chain(devices).chain(mounts);
        let bad =
            values.filter(|(_, value)| value.as_f64().is_some_and(|number| !(0.0..f64::from(NO_ID)).contains(&number)));
        let bad =
            bad.map(|(path, value)| format!("{path}: {value}")).chain(of_linux.map(|path| format!("{path}: {NO_ID}")));
        bad.map(|what| format!("{what} is not allowed: it must be from 0 to {}", NO_ID - 1)).next()
    }
}

/// Returns the elements of a list with their indices. Returns none if the value is not a list, which the runtime will
/// refuse.
fn list(value: &Value) -> impl Iterator<Item = (usize, &Value)> {
    value.as_array().into_iter().flatten().enumerate()
}

impl Bundle {
    /// Reads the bundle in `path`, which may be relative.
    pub fn load(path: &Path) -> Result<Bundle, BundleError> {
        let missing = |source| BundleError::Missing { path: path.to_path_buf(), source };
        let path = std::path::absolute(path).map_err(missing)?;
        let metadata = std::fs::metadata(&path).map_err(missing)?;
        if !metadata.is_dir() {
            return Err(missing(std::io::ErrorKind::NotADirectory.into()));
        }
        let file = path.join("config.json");
        let text = sys::foreign_file::read(&file, LARGEST)
            .map_err(|source| BundleError::Unreadable { path: file.clone(), source })?;
        let malformed = |reason: String| BundleError::Malformed { path: file.clone(), reason };
        let config = parse(&text).map_err(|e| malformed(e.to_string()))?;
        if let Some(twice) = Twice::find(&text) {
            return Err(malformed(format!(
                "{twice} is a duplicate key, and runtimes differ in which of the two they use"
            )));
        }
        let config = Config::deserialize(config).map_err(|e| malformed(e.to_string()))?;
        if let Some(number) = config.impossible_number() {
            return Err(malformed(number));
        }
        let process = config.process.ok_or_else(|| malformed("has no process".into()))?;
        let spec: ProcessSpec =
            serde_json::from_value(Value::Object(process.clone())).map_err(|e| malformed(format!("process: {e}")))?;
        if spec.args.is_empty() {
            return Err(malformed("process: args: no program is named".into()));
        }
        let root = |mappings: &[Mapping]| mappings.iter().find(|m| m.container_id == 0).map_or(0, |m| m.host_id);
        let (root_uid, root_gid) = (root(&config.linux.uid_mappings), root(&config.linux.gid_mappings));
        let cgroups_path = config.linux.cgroups_path;
        let has_poststop = !config.hooks.poststop.is_empty();
        Ok(Bundle { path, process, spec, cgroups_path, has_poststop, root_uid, root_gid })
    }
}

/// Parses a `config.json`. The runtime reads the file too, so this accepts what one of the runtimes accepts: comments
/// and bytes that are not UTF-8 (crun), text after the object (runc), and duplicate keys. [`Twice`] then refuses the
/// duplicates that matter.
fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    let strict = match serde_json::from_slice(text) {
        Ok(value) => return Ok(value),
        Err(e) => e,
    };
    let text = without_comments(&String::from_utf8_lossy(text));
    match serde_json::Deserializer::from_str(&text).into_iter().next() {
        Some(Ok(value)) => Ok(value),
        _ => Err(strict),
    }
}

/// Finds duplicate keys in those parts of a `config.json` by which the daemon decides. Some runtimes use the first of
/// two equal keys, others the last.
struct Twice {
    /// The keys above the present value.
    path: Vec<String>,
    /// The path of the first duplicate.
    found: Option<String>,
}

impl Twice {
    /// Returns the path of a duplicate key that matters, if there is one.
    fn find(text: &[u8]) -> Option<String> {
        let text = without_comments(&String::from_utf8_lossy(text));
        let mut twice = Twice { path: Vec::new(), found: None };
        // `parse` has accepted the text, so that an error can only concern what follows the object.
        let _ = (&mut twice).deserialize(&mut serde_json::Deserializer::from_str(&text));
        twice.found
    }

    /// Returns whether the daemon decides by the value at the present path.
    fn matters(&self) -> bool {
        matches!(self.path.first().map(String::as_str), Some("process" | "linux" | "hooks" | "mounts"))
    }
}

impl<'de> DeserializeSeed<'de> for &mut Twice {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Twice {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            self.path.push(key.clone());
            if !keys.insert(key) && self.matters() && self.found.is_none() {
                self.found = Some(self.path.join("."));
            }
            map.next_value_seed(&mut *self)?;
            self.path.pop();
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Returns a JSON text with each comment replaced by a blank.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (kept, taken) = if first == '"' {
            let length = string_length(rest);
            (&rest[..length], length)
        } else if rest.starts_with("//") {
            (" ", rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("/*") {
            (" ", rest.find("*/").map_or(rest.len(), |end| end + 2))
        } else {
            (&rest[..first.len_utf8()], first.len_utf8())
        };
        out.push_str(kept);
        rest = &rest[taken..];
    }
    out
}

/// Returns the length of the JSON string at the beginning of a text, including its quotes.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(config: &str) -> Result<Bundle, String> {
        let directory = tempfile::tempdir().expect("tempdir");
        std::fs::write(directory.path().join("config.json"), config).expect("writes");
        Bundle::load(directory.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn host_id_of_the_root_of_a_user_namespace_is_found() {
        let bundle = load(
            r#"{"process":{"args":["a"],"x":1},"linux":{"uidMappings":[{"containerID":5,"hostID":1,"size":1},
               {"containerID":0,"hostID":100000,"size":65536}],"gidMappings":null}}"#,
        )
        .expect("valid");
        assert_eq!((bundle.root_uid, bundle.root_gid), (100_000, 0));
        assert_eq!(bundle.process["x"], 1);
    }

    #[test]
    fn lenient_config_is_accepted_and_ambiguous_one_refused() {
        for config in [
            r#"{"process":{"args":["a"],"terminal":null,"user":null,"capabilities":null},"hooks":null,"linux":null}"#,
            r#"{"hostname":"x","process":{"args":["a"]},"hostname":"y"}"#,
            "{ // a comment\n\"process\": /* { */ {\"args\":[\"a\"], \"cwd\": \"/a//b/*c\\\"*/\"}}",
            "{\"process\":{\"args\":[\"a\"]}} trailing",
        ] {
            assert_eq!(load(config).expect(config).spec.args, ["a"], "{config}");
        }
        assert!(load("{ /* without end").expect_err("cut").contains("line 1"));
        for (config, key) in [
            (r#"{"process":{"args":["x"]},"process":{"args":["a"]}}"#, "process"),
            (r#"{"process":{"args":["a"],"user":{"uid":4294967295,"uid":0}}}"#, "process.user.uid"),
            (
                "{\"process\":{\"args\":[\"a\"], // c\n\"noNewPrivileges\":true,\"noNewPrivileges\":false}}",
                "noNewPrivileges",
            ),
            (r#"{"linux":{"uidMappings":[{"hostID":1,"hostID":2}]},"process":{"args":["a"]}}"#, "uidMappings.hostID"),
        ] {
            let refused = load(config).expect_err(config);
            assert!(refused.contains(&format!("{key} is a duplicate key")), "{refused}");
        }
    }

    #[test]
    fn malformed_config_is_refused_with_the_place() {
        assert!(load("{\n \"process\": }").expect_err("bad").contains("line 2 column 13"));
        assert!(load("").expect_err("empty").contains("line 1 column 0"));
        assert!(load("{}").expect_err("no process").contains("has no process"));
        assert!(load(r#"{"process":{}}"#).expect_err("no args").contains("args"));
        assert!(load(r#"{"process":{"args":"sh"}}"#).expect_err("no list").contains("process: invalid type"));
        assert!(load("[]").is_err());
    }

    #[test]
    fn impossible_ids_are_refused_with_their_path() {
        let process = |user: &str| format!(r#"{{"process":{{"args":["a"],"user":{user}}}}}"#);
        let rest = |rest: &str| format!(r#"{{"process":{{"args":["a"]}},{rest}}}"#);
        let mapping = r#"[{"containerID":0,"hostID":1,"size":1},{"containerID":1,"hostID":4294967295,"size":1}]"#;
        for (config, path) in [
            (process(r#"{"uid":4294967295}"#), "process.user.uid: 4294967295"),
            (process(r#"{"uid":-1}"#), "process.user.uid: -1"),
            (process(r#"{"uid":0,"gid":4294967295}"#), "process.user.gid"),
            (process(r#"{"gid":4294967296}"#), "process.user.gid"),
            (process(r#"{"additionalGids":[5,4294967295]}"#), "process.user.additionalGids[1]"),
            (rest(&format!(r#""linux":{{"uidMappings":{mapping}}}"#)), "linux.uidMappings[1].hostID"),
            (rest(&format!(r#""linux":{{"gidMappings":{mapping}}}"#)), "linux.gidMappings[1].hostID"),
            (rest(&format!(r#""mounts":[{{}},{{"gidMappings":{mapping}}}]"#)), "mounts[1].gidMappings[1].hostID"),
            (rest(r#""linux":{"devices":[{"major":-1}]}"#), "linux.devices[0].major: -1"),
            (rest(r#""linux":{"devices":[{"minor":4294967304}]}"#), "linux.devices[0].minor"),
            (rest(r#""linux":{"devices":[{},{"uid":4294967295}]}"#), "linux.devices[1].uid"),
            (rest(r#""linux":{"devices":[{"gid":4294967295.0}]}"#), "linux.devices[0].gid"),
        ] {
            let error = load(&config).expect_err("it is refused");
            assert!(error.contains(path) && error.contains("from 0 to 4294967294"), "{error}");
        }
        let largest = r#"{"uid":4294967294,"gid":4294967294,"additionalGids":[4294967294]}"#;
        load(&process(largest)).expect("the largest ids");
        load(&process("null")).expect("no user");
        // -1 stands for any device there (OCI runtime specification, config-linux.md).
        load(&rest(r#""linux":{"devices":null,"resources":{"devices":[{"major":-1}]}},"mounts":null"#)).expect("valid");
    }

    #[test]
    fn missing_bundle_or_config_is_named_in_the_error() {
        let error = Bundle::load(Path::new("/nonexistent/bundle")).expect_err("missing").to_string();
        assert!(error.contains("/nonexistent/bundle") && error.contains("No such file"), "{error}");
        let error = Bundle::load(Path::new("/etc/passwd")).expect_err("a file").to_string();
        assert!(error.contains("not a directory"), "{error}");
        let directory = tempfile::tempdir().expect("tempdir");
        let error = Bundle::load(directory.path()).expect_err("no config").to_string();
        assert!(error.contains("config.json") && error.contains("No such file"), "{error}");
        let fifo = directory.path().join("config.json");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("fifo");
        assert!(Bundle::load(directory.path()).expect_err("a fifo").to_string().contains("not a regular file"));
    }
}
