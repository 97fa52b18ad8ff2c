//! What OCI runtimes and shims write down: JSON objects one after the other, and why something failed according to them.
//!
//! runc writes an object a line; crun 1.28 writes objects over several lines, and others have written empty messages and
//! text between the objects. The last error is the runtime's summary; where it does not contain the first cause, such as
//! the one that runc's first stage (libcontainer/nsenter) logs as fatal, the cause is added.

use contract::FailureKind;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// One object of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LogEntry {
    /// `error`, `warning`, …
    pub level: String,
    /// What is said.
    pub msg: String,
    /// The name of a [`FailureKind`], in an error of a shim.
    kind: String,
}

impl LogEntry {
    /// What made the shim give up. `None` for an entry of a runtime.
    pub fn failure(&self) -> Option<FailureKind> {
        FailureKind::from_name(&self.kind)
    }

    fn is_error(&self) -> bool {
        matches!(self.level.as_str(), "error" | "fatal" | "panic") && !self.msg.trim().is_empty()
    }

    fn is_fatal(&self) -> bool {
        matches!(self.level.as_str(), "fatal" | "panic")
    }

    /// Whether it warns of something that did not make the runtime fail.
    pub fn is_warning(&self) -> bool {
        matches!(self.level.as_str(), "warning" | "warn") && !self.msg.trim().is_empty()
    }
}

/// A runtime that writes without end shall not cost without end.
const TAIL: u64 = 64 << 10;

/// The objects in the text of a log. What is between them and no object is passed over.
pub(crate) fn parse(text: &[u8]) -> Vec<LogEntry> {
    let mut entries = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.iter().position(|byte| *byte == b'{') {
        rest = &rest[start..];
        let mut stream = serde_json::Deserializer::from_slice(rest).into_iter::<LogEntry>();
        rest = match stream.next() {
            Some(Ok(entry)) => {
                let end = stream.byte_offset();
                entries.push(entry);
                &rest[end..]
            }
            // No object begins here.
            _ => &rest[1..],
        };
    }
    entries
}

/// The objects of a log, from byte `start` on. None if the log is not there.
pub(crate) fn read(path: &Path, start: u64) -> Vec<LogEntry> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file: File = sys::foreign_file::open_regular(path)?;
        let tail = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start.max(tail)))?;
        let mut text = Vec::new();
        file.take(TAIL).read_to_end(&mut text)?;
        Ok(text)
    };
    read().map(|text| parse(&text)).unwrap_or_default()
}

/// Why a runtime failed, according to its log; `None` if the log has no error.
pub(crate) fn reason(entries: &[LogEntry]) -> Option<String> {
    let errors: Vec<&LogEntry> = entries.iter().filter(|entry| entry.is_error()).collect();
    let last = unwrap(&errors.last()?.msg);
    let first = errors.iter().find(|entry| entry.is_fatal()).or(errors.first()).map(|entry| unwrap(&entry.msg));
    let reason = match first.filter(|first| !last.contains(first.as_str())) {
        Some(first) => format!("{last}: {first}"),
        None => last,
    };
    Some(if reason == LOST_CAUSE { format!("{reason}{LOST_CAUSE_HINT}") } else { reason })
}

/// All that crun 1.8 says if the container's first process has failed just before crun writes to it: crun then ends without reading
/// what the process wrote to it about the cause.
const LOST_CAUSE: &str = "writing to pipe: Broken pipe";

/// What can be said about it.
const LOST_CAUSE_HINT: &str = ": the container's first process failed while it was being set up, and the runtime lost the cause; \
    if the bundle has createContainer or startContainer hooks, try them by hand";

/// A message that is itself a JSON object with a message, as crun hands on what its hooks and children have logged.
fn unwrap(message: &str) -> String {
    let message = message.trim();
    if message.starts_with('{') {
        if let Some(inner) = parse(message.as_bytes()).into_iter().find(|entry| !entry.msg.trim().is_empty()) {
            return inner.msg.trim().to_string();
        }
    }
    message.to_string()
}

/// Why a program failed, according to what it wrote to stderr: the head of a panic, or else the last line.
pub(crate) fn reason_in_words(text: &str) -> String {
    if let Some(reason) = reason(&parse(text.as_bytes())) {
        return reason;
    }
    // What follows these lines explains nothing: the stacks of a Go program, or how it is to be used.
    const HEADS: [&str; 4] = ["panic: ", "fatal error: ", "runtime: ", "Incorrect Usage: "];
    let is_advice = |line: &&str| line.is_empty() || line.starts_with("Try ");
    let lines = || text.lines().map(str::trim).filter(|line| !is_advice(line));
    let is_head = |line: &&str| HEADS.iter().any(|head| line.starts_with(head));
    let reason = lines().find(is_head).or_else(|| lines().next_back()).unwrap_or_default();
    // runc logs as text before it has read its options.
    let quoted = reason.split_once(" level=error msg=").map(|(_, message)| message);
    let message = quoted.and_then(|message| serde_json::from_str(message).ok());
    message.unwrap_or_else(|| reason.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason_of(log: &str) -> Option<String> {
        reason(&parse(log.as_bytes()))
    }

    #[test]
    fn objects_over_several_lines_are_read() {
        let log = "{\n  \"msg\": \"executable file `x` not found\",\n  \"level\": \"error\",\n  \"time\": \"t\"\n}\n\
                   {\n  \"msg\": \"\",\n  \"level\": \"error\"\n}\n";
        assert_eq!(reason_of(log).as_deref(), Some("executable file `x` not found"));
    }

    #[test]
    fn cause_that_crun_has_lost_is_called_lost() {
        let reason = reason_of(r#"{"msg":"writing to pipe: Broken pipe","level":"error"}"#).expect("an error");
        assert!(reason.starts_with("writing to pipe: Broken pipe: ") && reason.contains("hook"), "{reason}");
        let log = r#"{"msg":"hook failed","level":"error"}{"msg":"writing to pipe: Broken pipe","level":"error"}"#;
        assert_eq!(reason_of(log).as_deref(), Some("writing to pipe: Broken pipe: hook failed"));
    }

    #[test]
    fn cause_that_the_summary_lacks_is_added() {
        let log = "{\"level\":\"fatal\",\"msg\":\"nsexec-1[7]: failed to unshare remaining namespaces: Operation not permitted\"}\n\
                   {\"level\":\"error\",\"msg\":\"runc run failed: can't get final child's PID from pipe: EOF\"}\n";
        let reason = reason_of(log).expect("an error");
        assert!(reason.starts_with("runc run failed: can't get"), "{reason}");
        assert!(reason.ends_with(": nsexec-1[7]: failed to unshare remaining namespaces: Operation not permitted"));
        let log = "{\"level\":\"error\",\"msg\":\"no such file\"}{\"level\":\"error\",\"msg\":\"start failed: no such file\"}";
        assert_eq!(reason_of(log).as_deref(), Some("start failed: no such file"));
    }

    #[test]
    fn garbage_between_objects_and_cut_objects_are_passed_over() {
        let log = "{\"level\":\"error\",\"msg\":\"first\"}\nxx {\n[1]\n{\"level\":\"error\",\"msg\":\"first: second\",\"time\":1}\n\
                   {\"level\":\"info\",\"msg\":\"third\"}\n{\"level\":\"error\",\"msg\":\"cu";
        assert_eq!(reason_of(log).as_deref(), Some("first: second"));
        assert_eq!(reason_of("{\"level\":\"warning\",\"msg\":\"w\"}"), None);
    }

    #[test]
    fn message_in_a_message_is_unwrapped() {
        let inner = r#"{"msg":"error executing hook `/bin/false` (exit code: 1)","level":"error"}"#;
        let log = serde_json::json!({ "level": "error", "msg": inner }).to_string();
        assert_eq!(reason_of(&log).as_deref(), Some("error executing hook `/bin/false` (exit code: 1)"));
    }

    #[test]
    fn head_of_a_panic_is_the_reason() {
        let text = "panic: boom\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:5 +0x1\n";
        assert_eq!(reason_in_words(text), "panic: boom");
        assert_eq!(reason_in_words("one\n two \n\n"), "two");
        let usage = "crun: unrecognized option '--x'\nTry `crun --help' or `crun --usage' for more information.\n";
        assert_eq!(reason_in_words(usage), "crun: unrecognized option '--x'");
        let text = "time=\"2026-11-28T20:00:00Z\" level=error msg=\"flag provided but not defined: -x\"\n";
        assert_eq!(reason_in_words(text), "flag provided but not defined: -x");
        let usage = "Incorrect Usage: flag provided but not defined: -x\n\nNAME:\n   runc - x\n";
        assert_eq!(reason_in_words(usage), "Incorrect Usage: flag provided but not defined: -x");
        assert_eq!(reason_in_words("{\"level\":\"error\",\"msg\":\"in JSON\"}\n"), "in JSON");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in prop::collection::vec(prop::sample::select(&b"{}\"msg:lev,error \n\\[]"[..]), 0..300)) {
            reason(&parse(&text));
        }
    }
}
