//! Conversion between the API's messages and the supervisor's types.

mod request;
pub(crate) mod resources;
mod stats;

pub(crate) use request::{check_container, check_process};
pub(crate) use resources::changes;
pub(crate) use stats::stats;

use supervisor::{
    Checkpoint, ContainerInfo, Event, ProcessInfo, ProcessSpec, Rlimit, State, TerminalSize, Timestamp, User,
};
use tonic::Status;

use crate::errors::invalid;

/// Go's zero time, in year 1. Some clients send it instead of no time.
const GO_ZERO: i64 = -62_135_596_800;

/// The time that a client gives; `None` if it gives none.
pub(crate) fn moment(timestamp: Option<api::Timestamp>) -> Result<Option<Timestamp>, Status> {
    let Some(timestamp) = timestamp.filter(|t| (t.seconds, t.nanos) != (GO_ZERO, 0)) else { return Ok(None) };
    if !(0..1_000_000_000).contains(&timestamp.nanos) {
        return Err(invalid("timestamp", timestamp.nanos, "is not a number of nanoseconds within a second"));
    }
    let nanoseconds = timestamp.seconds.saturating_mul(1_000_000_000).saturating_add(timestamp.nanos.into());
    Ok(Some(Timestamp(nanoseconds)))
}

/// The message for an event.
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
        // Less than a billion.
        nanos: nanoseconds.rem_euclid(1_000_000_000) as i32,
    }
}

/// The message for a checkpoint.
pub(crate) fn checkpoint(checkpoint: Checkpoint) -> api::Checkpoint {
    let Checkpoint { name, tcp, unix_sockets, shell, exit, empty_ns, .. } = checkpoint;
    api::Checkpoint { name, exit, tcp, unix_sockets, shell, empty_ns }
}

/// The largest encoded container. gRPC clients accept messages of 4 MB by default.
const LARGEST_CONTAINER: usize = 3 << 20;

/// Limits on the bytes of a process's arguments, and on those of its environment. [`container()`] applies the first one that
/// makes a container small enough.
const TEXT_LIMITS: [usize; 4] = [usize::MAX, 64 << 10, 1 << 10, 0];

/// Stands for the texts that were left out.
const LEFT_OUT: &str = "[too long to be shown]";

/// The message for a container. Long arguments, environments and labels are cut until the message is at most
/// [`LARGEST_CONTAINER`] long.
pub(crate) fn container(info: &ContainerInfo) -> api::Container {
    let mut message = api::Container::default();
    for limit in TEXT_LIMITS {
        message = api::Container {
            id: info.id.clone(),
            bundle_path: info.bundle().into(),
            processes: info.processes.iter().map(|info| process(info, limit)).collect(),
            status: status_name(info.state).into(),
            labels: labels_within(limit, info.labels()).map(Into::into).collect(),
            pids: info.pids.clone(),
            runtime: info.runtime().into(),
        };
        if message.encoded_size() <= LARGEST_CONTAINER {
            break;
        }
    }
    message
}

/// The labels that fit into `limit` bytes, but at least as many as a new container may have.
fn labels_within(limit: usize, labels: &[String]) -> impl Iterator<Item = &str> {
    texts_within(limit.max(request::LARGEST_LABELS), labels)
}

/// The first texts, as many as fit into `limit` bytes. [`LEFT_OUT`] stands for the others.
fn texts_within(limit: usize, texts: &[String]) -> impl Iterator<Item = &str> {
    let mut left = limit;
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

fn process(info: &ProcessInfo, limit: usize) -> api::Process {
    let (spec, stdio) = (info.spec(), info.stdio());
    let texts = |texts: &[String]| texts_within(limit, texts).map(Into::into).collect();
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
        capabilities: spec.capabilities.iter().map(Into::into).collect(),
        apparmor_profile: spec.apparmor_profile.clone(),
        selinux_label: spec.selinux_label.clone(),
        no_new_privileges: spec.no_new_privileges,
        rlimits: spec.rlimits.iter().map(rlimit).collect(),
    }
}

/// The process that a client asks to add. Its texts move out of the request.
pub(crate) fn process_spec(request: &mut api::AddProcessRequest) -> ProcessSpec {
    let user = request.user.take().unwrap_or_default();
    ProcessSpec {
        terminal: request.terminal,
        user: User { uid: user.uid, gid: user.gid, additional_gids: user.additional_gids },
        args: std::mem::take(&mut request.args),
        env: std::mem::take(&mut request.env),
        cwd: std::mem::take(&mut request.cwd),
        capabilities: request.capabilities.iter().collect(),
        apparmor_profile: std::mem::take(&mut request.apparmor_profile),
        selinux_label: std::mem::take(&mut request.selinux_label),
        no_new_privileges: request.no_new_privileges,
        rlimits: std::mem::take(&mut request.rlimits)
            .into_iter()
            .map(|limit| Rlimit { kind: limit.r#type, soft: limit.soft, hard: limit.hard })
            .collect(),
    }
}

/// The terminal size that a client asks for. A client that does not know the fields sends zeros, which means `None`. If only one
/// side is zero, it gets the default length.
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

/// The message for the machine: the number of CPUs that the daemon may use, and the memory in MiB.
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
    fn zero_time_of_go_means_no_time() {
        let at = |seconds, nanos| moment(Some(api::Timestamp { seconds, nanos }));
        assert_eq!(moment(None).expect("none"), None);
        assert_eq!(at(GO_ZERO, 0).expect("none"), None);
        assert_eq!(at(1, 2).expect("valid"), Some(Timestamp(1_000_000_002)));
        assert_eq!(at(i64::MAX, 0).expect("clamped"), Some(Timestamp(i64::MAX)));
        assert_eq!(at(i64::MIN, 0).expect("clamped"), Some(Timestamp(i64::MIN)));
        assert!(at(0, -1).is_err() && at(0, 1_000_000_000).is_err());
    }

    #[test]
    fn texts_beyond_the_limit_are_replaced_by_a_mark() {
        let texts: Vec<String> = ["ab", "", "cde", "f"].map(String::from).into();
        let within = |limit| texts_within(limit, &texts).collect::<Vec<_>>();
        assert_eq!(within(6), ["ab", "", "cde", "f"]);
        assert_eq!(within(5), ["ab", "", "cde", LEFT_OUT]);
        assert_eq!(within(1), [LEFT_OUT]);
        assert!(texts_within(0, &[]).next().is_none());
    }

    #[test]
    fn terminal_side_of_length_zero_gets_the_default() {
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
