//! Between the messages of the API and the supervisor's types.

mod request;
mod resources;
mod stats;

pub(crate) use request::{check_container, check_process};
pub(crate) use resources::changes;
pub(crate) use stats::stats;

use supervisor::{
    Checkpoint, ContainerInfo, Event, ProcessInfo, ProcessSpec, Rlimit, State, TerminalSize, Timestamp, User,
};
use tonic::Status;

use crate::errors::invalid;

/// Go's zero time, year 1, which some clients send for "none".
const GO_ZERO: i64 = -62_135_596_800;

/// A moment that a client names; `None` if it names none.
pub(crate) fn moment(timestamp: Option<api::Timestamp>) -> Result<Option<Timestamp>, Status> {
    let Some(timestamp) = timestamp.filter(|t| (t.seconds, t.nanos) != (GO_ZERO, 0)) else { return Ok(None) };
    if !(0..1_000_000_000).contains(&timestamp.nanos) {
        return Err(invalid("timestamp", timestamp.nanos, "is no number of nanoseconds within a second"));
    }
    let nanoseconds = timestamp.seconds.saturating_mul(1_000_000_000).saturating_add(timestamp.nanos.into());
    Ok(Some(Timestamp(nanoseconds)))
}

/// An event as it is sent.
pub(crate) fn event(event: &Event) -> api::Event {
    api::Event {
        r#type: event.kind.name().into(),
        id: event.id.clone(),
        status: event.status,
        pid: event.pid.clone(),
        timestamp: Some(timestamp(event.timestamp)),
    }
}

fn timestamp(Timestamp(nanoseconds): Timestamp) -> api::Timestamp {
    api::Timestamp {
        seconds: nanoseconds.div_euclid(1_000_000_000),
        // Less than a thousand million.
        nanos: nanoseconds.rem_euclid(1_000_000_000) as i32,
    }
}

/// A checkpoint as it is sent.
pub(crate) fn checkpoint(checkpoint: Checkpoint) -> api::Checkpoint {
    let Checkpoint { name, tcp, unix_sockets, shell, exit, empty_ns, .. } = checkpoint;
    api::Checkpoint { name, exit, tcp, unix_sockets, shell, empty_ns }
}

/// The largest encoded container. Clients take messages of 4 MB unless they are told otherwise.
const LARGEST_CONTAINER: usize = 3 << 20;

/// How many bytes of a process's arguments and of its environment are sent: all of them, or of a container that would be
/// larger than [`LARGEST_CONTAINER`] as many as the first of these that makes it smaller.
const KEPT_OF_TEXTS: [usize; 4] = [usize::MAX, 64 << 10, 1 << 10, 0];

/// What stands in place of texts that are left out.
const LEFT_OUT: &str = "[too long to be shown]";

/// A container as it is sent.
pub(crate) fn container(info: &ContainerInfo) -> api::Container {
    let mut found = api::Container::default();
    for kept in KEPT_OF_TEXTS {
        found = api::Container {
            id: info.id.clone(),
            bundle_path: info.bundle().into(),
            processes: info.processes.iter().map(|info| process(info, kept)).collect(),
            status: status_name(info.state).into(),
            labels: kept_labels(info.labels(), kept).map(Into::into).collect(),
            pids: info.pids.clone(),
            runtime: info.runtime().into(),
        };
        if found.encoded_size() <= LARGEST_CONTAINER {
            break;
        }
    }
    found
}

/// Labels as [`kept_texts`], but at least as many as a new container may have.
fn kept_labels(labels: &[String], kept: usize) -> impl Iterator<Item = &str> {
    kept_texts(labels, kept.max(request::LARGEST_LABELS))
}

/// The first texts, as many as `kept` bytes hold.
fn kept_texts(texts: &[String], kept: usize) -> impl Iterator<Item = &str> {
    let mut left = kept;
    let fits = texts.iter().take_while(|text| match left.checked_sub(text.len()) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    });
    let count = fits.count();
    let rest = (count < texts.len()).then_some(LEFT_OUT);
    texts[..count].iter().map(String::as_str).chain(rest)
}

fn status_name(state: State) -> &'static str {
    match state {
        State::Paused => "paused",
        State::Stopped | State::Removed | State::Discarded => "stopped",
        State::Broken => "broken",
        State::Creating | State::Created | State::Running => "running",
    }
}

fn process(info: &ProcessInfo, kept: usize) -> api::Process {
    let (spec, stdio) = (info.spec(), info.stdio());
    let texts = |texts: &[String]| kept_texts(texts, kept).map(Into::into).collect();
    let rlimit = |limit: &Rlimit| api::Rlimit { r#type: limit.kind.clone(), soft: limit.soft, hard: limit.hard };
    let User { uid, gid, additional_gids } = spec.user.clone();
    api::Process {
        pid: info.name().into(),
        terminal: spec.terminal,
        user: Some(api::User { uid, gid, additional_gids }),
        args: texts(&spec.args),
        env: texts(&spec.env),
        cwd: spec.cwd.clone(),
        system_pid: info.pid,
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        capabilities: spec.capabilities.clone(),
        apparmor_profile: spec.apparmor_profile.clone(),
        selinux_label: spec.selinux_label.clone(),
        no_new_privileges: spec.no_new_privileges,
        rlimits: spec.rlimits.iter().map(rlimit).collect(),
    }
}

/// The process that a client wants added.
pub(crate) fn process_spec(request: &mut api::AddProcessRequest) -> ProcessSpec {
    let user = request.user.take().unwrap_or_default();
    ProcessSpec {
        terminal: request.terminal,
        user: User { uid: user.uid, gid: user.gid, additional_gids: user.additional_gids },
        args: std::mem::take(&mut request.args),
        env: std::mem::take(&mut request.env),
        cwd: std::mem::take(&mut request.cwd),
        capabilities: std::mem::take(&mut request.capabilities),
        apparmor_profile: std::mem::take(&mut request.apparmor_profile),
        selinux_label: std::mem::take(&mut request.selinux_label),
        no_new_privileges: request.no_new_privileges,
        rlimits: std::mem::take(&mut request.rlimits)
            .into_iter()
            .map(|limit| Rlimit { kind: limit.r#type, soft: limit.soft, hard: limit.hard })
            .collect(),
    }
}

/// The size of a terminal that a client asks for; `None` from one that sends nothing.
pub(crate) fn terminal_size(width: u32, height: u32) -> Result<Option<TerminalSize>, Status> {
    if (width, height) == (0, 0) {
        return Ok(None);
    }
    let reason = "is more than a terminal can have (65535)";
    let number = |field, value: u32, default| match u16::try_from(value) {
        Ok(0) => Ok(default),
        Ok(number) => Ok(number),
        Err(_) => Err(invalid(field, value, reason)),
    };
    let default = TerminalSize::default();
    let columns = number("width", width, default.columns)?;
    Ok(Some(TerminalSize { columns, rows: number("height", height, default.rows)? }))
}

/// The machine: CPUs that this process may use, memory in MiB.
pub(crate) fn machine() -> api::Machine {
    let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    let info = rustix::system::sysinfo();
    let bytes = u64::from(info.mem_unit).saturating_mul(info.totalram);
    api::Machine { cpus, memory: bytes >> 20 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_zero_time_is_none() {
        let at = |seconds, nanos| moment(Some(api::Timestamp { seconds, nanos }));
        assert_eq!(moment(None).expect("none"), None);
        assert_eq!(at(GO_ZERO, 0).expect("none"), None);
        assert_eq!(at(1, 2).expect("valid"), Some(Timestamp(1_000_000_002)));
        assert_eq!(at(i64::MAX, 0).expect("clamped"), Some(Timestamp(i64::MAX)));
        assert_eq!(at(i64::MIN, 0).expect("clamped"), Some(Timestamp(i64::MIN)));
        assert!(at(0, -1).is_err() && at(0, 1_000_000_000).is_err());
    }

    #[test]
    fn texts_beyond_the_limit_are_left_out_and_marked() {
        let texts: Vec<String> = ["ab", "", "cde", "f"].map(String::from).into();
        let kept = |most| kept_texts(&texts, most).collect::<Vec<_>>();
        assert_eq!(kept(6), ["ab", "", "cde", "f"]);
        assert_eq!(kept(5), ["ab", "", "cde", LEFT_OUT]);
        assert_eq!(kept(1), [LEFT_OUT]);
        assert!(kept_texts(&[], 0).next().is_none());
    }

    #[test]
    fn a_terminal_has_no_side_of_length_zero() {
        let size = |width, height| terminal_size(width, height).ok().flatten().map(|size| (size.columns, size.rows));
        assert_eq!(size(0, 0), None);
        assert_eq!(size(132, 43), Some((132, 43)));
        assert_eq!((size(132, 0), size(0, 43)), (Some((132, 24)), Some((80, 43))));
        assert!(terminal_size(65_536, 1).is_err() && terminal_size(1, 65_536).is_err());
    }

    #[test]
    fn events_before_1970_keep_their_fraction() {
        let sent = event(&Event {
            id: "a".into(),
            kind: supervisor::EventKind::Oom,
            timestamp: Timestamp(-1),
            pid: String::new(),
            status: 0,
            instance: String::new(),
            oom_kills: 0,
            process: String::new(),
            was: None,
        });
        assert_eq!(sent.timestamp, Some(api::Timestamp { seconds: -1, nanos: 999_999_999 }));
    }
}
