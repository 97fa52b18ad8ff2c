//! Private parsers of foreign bytes, for the targets in `fuzz/`.

use crate::procfs::{self, Stat};

/// Parses the text of `/proc/<pid>/stat`.
pub fn stat(text: &str) -> Option<Stat> {
    procfs::parse_stat(text)
}

/// Whether the text of `/proc/<pid>/status` describes the first process of a PID namespace.
pub fn is_namespace_init(status: &str) -> bool {
    procfs::parse_nspid(status)
}
