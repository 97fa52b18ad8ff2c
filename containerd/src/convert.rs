//! Between the messages of the API and the supervisor's types.

mod resources;
mod stats;

pub(crate) use resources::changes;
pub(crate) use stats::stats;

use supervisor::{Checkpoint, ContainerInfo, Event, ProcessInfo, ProcessSpec, Rlimit, State, Stdio, Timestamp, User};
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

/// A container as it is sent.
pub(crate) fn container(info: &ContainerInfo) -> api::Container {
    api::Container {
        id: info.id.clone(),
        bundle_path: info.bundle().into(),
        processes: info.processes.iter().map(process).collect(),
        status: status_name(info.state).into(),
        labels: info.labels().into(),
        pids: info.pids.clone(),
        runtime: info.runtime().into(),
    }
}

/// The same, encoded as one of the containers of a state.
pub(crate) fn encode_container(info: &ContainerInfo, state: &mut Vec<u8>) {
    api::Writer(state).message(api::EncodedState::CONTAINERS, |container| {
        container.text(1, &info.id);
        container.text(2, info.bundle());
        for process in &info.processes {
            container.message(3, |writer| {
                encode_process(process.name(), process.pid, process.spec(), process.stdio(), writer);
            });
        }
        container.text(4, status_name(info.state));
        container.texts(5, info.labels());
        container.numbers(6, &info.pids);
        container.text(7, info.runtime());
    });
}

fn encode_process(name: &str, pid: u32, spec: &ProcessSpec, stdio: &Stdio, process: &mut api::Writer<'_>) {
    process.text(1, name);
    process.number(2, spec.terminal);
    process.message(3, |user| {
        user.number(1, spec.user.uid);
        user.number(2, spec.user.gid);
        user.numbers(3, &spec.user.additional_gids);
    });
    process.texts(4, &spec.args);
    process.texts(5, &spec.env);
    process.text(6, &spec.cwd);
    process.number(7, pid);
    process.text(8, &stdio.stdin);
    process.text(9, &stdio.stdout);
    process.text(10, &stdio.stderr);
    process.texts(11, &spec.capabilities);
    process.text(12, &spec.apparmor_profile);
    process.text(13, &spec.selinux_label);
    process.number(14, spec.no_new_privileges);
    for limit in &spec.rlimits {
        process.message(15, |rlimit| {
            rlimit.text(1, &limit.kind);
            rlimit.number(2, limit.soft);
            rlimit.number(3, limit.hard);
        });
    }
}

fn status_name(state: State) -> &'static str {
    match state {
        State::Paused => "paused",
        State::Stopped => "stopped",
        State::Broken => "broken",
        State::Creating | State::Created | State::Running => "running",
    }
}

fn process(info: &ProcessInfo) -> api::Process {
    process_of(info.name(), info.pid, info.spec().clone(), info.stdio().clone())
}

fn process_of(name: &str, system_pid: u32, spec: ProcessSpec, stdio: Stdio) -> api::Process {
    api::Process {
        pid: name.into(),
        terminal: spec.terminal,
        user: Some(api::User { uid: spec.user.uid, gid: spec.user.gid, additional_gids: spec.user.additional_gids }),
        args: spec.args,
        env: spec.env,
        cwd: spec.cwd,
        system_pid,
        stdin: stdio.stdin,
        stdout: stdio.stdout,
        stderr: stdio.stderr,
        capabilities: spec.capabilities.iter().map(ToString::to_string).collect(),
        apparmor_profile: spec.apparmor_profile,
        selinux_label: spec.selinux_label,
        no_new_privileges: spec.no_new_privileges,
        rlimits: spec
            .rlimits
            .into_iter()
            .map(|limit| api::Rlimit { r#type: limit.kind, soft: limit.soft, hard: limit.hard })
            .collect(),
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
        capabilities: request.capabilities.iter().map(|name| name.as_str().into()).collect(),
        apparmor_profile: std::mem::take(&mut request.apparmor_profile),
        selinux_label: std::mem::take(&mut request.selinux_label),
        no_new_privileges: request.no_new_privileges,
        rlimits: std::mem::take(&mut request.rlimits)
            .into_iter()
            .map(|limit| Rlimit { kind: limit.r#type, soft: limit.soft, hard: limit.hard })
            .collect(),
    }
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
    fn a_process_is_encoded_as_the_generated_code_does() {
        let full = ProcessSpec {
            terminal: true,
            user: User { uid: 1000, gid: u32::MAX, additional_gids: vec![0, 5, 300] },
            args: vec!["sh".into(), String::new(), "x".repeat(200)],
            env: vec!["A=b".into()],
            cwd: "/".into(),
            capabilities: vec!["CAP_KILL".into(), "CAP_CHOWN".into()],
            apparmor_profile: "profile".into(),
            selinux_label: "label".into(),
            no_new_privileges: true,
            rlimits: vec![
                Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 0, hard: u64::MAX },
                Rlimit { kind: String::new(), soft: 0, hard: 0 },
            ],
        };
        let files = Stdio { stdin: "/in".into(), stdout: "/out".into(), stderr: "/err".into() };
        for (name, pid, spec, stdio) in
            [("init", 4_000_000, full, files), ("", 0, ProcessSpec::default(), Stdio::default())]
        {
            let mut encoded = Vec::new();
            encode_process(name, pid, &spec, &stdio, &mut api::Writer(&mut encoded));
            assert_eq!(encoded, process_of(name, pid, spec, stdio).encoded());
        }
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
