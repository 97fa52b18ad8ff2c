//! Events: what happens to containers, as subscribers see it.

use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970, UTC.
///
/// ```
/// use supervisor::Timestamp;
///
/// let time: Timestamp = "2026-01-02T03:04:05Z".parse()?;
/// assert_eq!(time, Timestamp(1_767_323_045_000_000_000));
/// assert_eq!(time.to_string(), "2026-01-02T03:04:05.000000000Z");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The time that the clock shows.
    pub fn now() -> Timestamp {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp(now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec))
    }

    /// This time, moved by some nanoseconds.
    pub(crate) fn plus(self, nanoseconds: i64) -> Timestamp {
        Timestamp(self.0.saturating_add(nanoseconds))
    }

    /// The earliest later timestamp.
    pub(crate) fn next(self) -> Timestamp {
        Timestamp(self.0.saturating_add(1))
    }
}

impl std::fmt::Display for Timestamp {
    /// RFC 3339 with nanoseconds.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match jiff::Timestamp::from_nanosecond(self.0.into()) {
            Ok(time) => write!(f, "{time:.9}"),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

impl std::str::FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Timestamp, jiff::Error> {
        let time: jiff::Timestamp = text.parse()?;
        let clamped = time.as_nanosecond().clamp(i64::MIN.into(), i64::MAX.into());
        // In range because of the line before.
        Ok(Timestamp(clamped as i64))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The types of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The container's init runs.
    StartContainer,
    /// An added process runs.
    StartProcess,
    /// The container has been frozen.
    Pause,
    /// The container has been thawed.
    Resume,
    /// The kernel has killed a process of the container for memory.
    Oom,
    /// A process has ended, and its output has been delivered.
    Exit,
}

impl EventKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::StartContainer => "start-container",
            EventKind::StartProcess => "start-process",
            EventKind::Pause => "pause",
            EventKind::Resume => "resume",
            EventKind::Oom => "oom",
            EventKind::Exit => "exit",
        }
    }
}

/// One event; also one line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The container's id.
    pub id: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// When; strictly increasing over the whole journal.
    pub timestamp: Timestamp,
    /// The name of the process, for `start-process` and `exit`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pid: String,
    /// For an exit: the exit code, 128 and the signal's number, or 255 if it cannot be known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub status: u32,
    /// The instance key, which tells the container from others of the same id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// For `oom`: how many processes the kernel has killed in the container so far.
    #[serde(default, rename = "oomKills", skip_serializing_if = "is_zero")]
    pub oom_kills: u64,
    /// The instance key of an added process, which tells it from others of the same name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub process: String,
    /// The timestamp that the event had before the journal moved it, because the clock was wrong at the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<Timestamp>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's form
fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}

impl Event {
    /// The key of the process instance that the event is about: the added process's, or the container's own.
    pub(crate) fn key(&self) -> &str {
        if self.process.is_empty() { &self.instance } else { &self.process }
    }

    /// Whether the container has been paused or resumed.
    pub(crate) fn is_freezer(&self) -> bool {
        matches!(self.kind, EventKind::Pause | EventKind::Resume)
    }

    /// The name of the process that it is about.
    pub(crate) fn name(&self) -> &str {
        if self.pid.is_empty() { oci::INIT } else { &self.pid }
    }

    /// Whether a later daemon needs the event to know what has been recorded of a process that still has a directory.
    pub(crate) fn is_lifecycle(&self) -> bool {
        matches!(self.kind, EventKind::StartContainer | EventKind::StartProcess | EventKind::Exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_keep_their_nanoseconds() {
        let timestamp = Timestamp(1_479_816_000_000_000_001);
        assert_eq!(timestamp.to_string(), "2016-11-22T12:00:00.000000001Z");
        assert_eq!(timestamp.to_string().parse::<Timestamp>().expect("its own form"), timestamp);
        let zoned = "2016-11-22T14:00:00.000000001+02:00".parse::<Timestamp>().expect("an offset is fine");
        assert_eq!(zoned, timestamp);
        assert!("yesterday".parse::<Timestamp>().is_err());
    }

    #[test]
    fn event_is_written_as_the_contract_says() {
        let event = Event {
            id: "c".into(),
            kind: EventKind::Exit,
            timestamp: Timestamp(0),
            pid: "init".into(),
            status: 7,
            instance: "k".into(),
            oom_kills: 0,
            process: String::new(),
            was: None,
        };
        let line = serde_json::to_string(&event).expect("plain data");
        assert_eq!(
            line,
            r#"{"id":"c","type":"exit","timestamp":"1970-01-01T00:00:00.000000000Z","pid":"init","status":7,"instance":"k"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&line).expect("its own form"), event);
    }
}
