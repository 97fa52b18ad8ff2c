//! The names of capabilities. A container has a dozen of them in most cases, and they are the same few everywhere: those
//! that are known are not kept as a string each.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// A capability's name, whether it is a known one or not.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Capability(Cow<'static, str>);

/// All of Linux 6.18 (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

impl From<&str> for Capability {
    fn from(name: &str) -> Capability {
        let known = CAPABILITIES.binary_search(&name).ok().map(|at| CAPABILITIES[at]);
        Capability(known.map_or_else(|| Cow::Owned(name.to_string()), Cow::Borrowed))
    }
}

impl AsRef<str> for Capability {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Capability, D::Error> {
        // As it stands in the text, unless something in it is escaped.
        struct Name;
        impl serde::de::Visitor<'_> for Name {
            type Value = Capability;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a capability")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Capability, E> {
                Ok(name.into())
            }
        }
        d.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_what_they_were() {
        assert!(CAPABILITIES.is_sorted(), "they are searched for");
        let names = r#"["CAP_KILL","CAP_WAKE_ALARM","CAP_OF_TOMORROW","cap_kill","CAP_\u004bILL"]"#;
        let list: Vec<Capability> = serde_json::from_str(names).expect("names");
        let texts: Vec<&str> = list.iter().map(AsRef::as_ref).collect();
        assert_eq!(texts, ["CAP_KILL", "CAP_WAKE_ALARM", "CAP_OF_TOMORROW", "cap_kill", "CAP_KILL"]);
        let is_known: Vec<bool> = list.iter().map(|one| matches!(one.0, Cow::Borrowed(_))).collect();
        assert_eq!(is_known, [true, true, false, false, true]);
    }
}
