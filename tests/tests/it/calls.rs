//! Every method, with every field that it has.

use crate::support::*;
use serde_json::json;
use tests::{Host, eventually};
use tonic::Code;

#[tokio::test]
async fn the_version_is_that_of_the_build() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let version = client.get_server_version(api::GetServerVersionRequest {}).await.unwrap().into_inner();
    assert_eq!(format!("{}.{}.{}", version.major, version.minor, version.patch), env!("CARGO_PKG_VERSION"));
    assert!(!version.revision.is_empty());
    host.finish();
}

#[tokio::test]
async fn health_is_told() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let host = Host::new().await;
    // The first answered call is after recovery.
    state(&mut host.client().await).await;
    let mut health = HealthClient::new(host.channel().await);
    for service in ["", "types.API"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status, ServingStatus::Serving as i32);
    }
    host.finish();
}

#[tokio::test]
async fn state_shows_what_was_asked_for() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let rlimits = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    let bundle = host.bundle(&["sleep", "100000"]).process("rlimits", rlimits).write();
    let out = host.join("out");
    std::fs::write(&out, "").unwrap();
    let mut request = container("c", &bundle);
    request.labels = vec!["a=b".into(), "c".into()];
    request.stdout = out.clone();
    let started = client.create_container(request).await.unwrap().into_inner().container.unwrap();
    assert_eq!(started.status, "running");
    assert_eq!(state(&mut client).await, std::slice::from_ref(&started));
    let mut added = process("c", "p", &["sleep", "100000"]);
    added.env = vec!["X=1".into(), "PATH=/bin".into()];
    added.user = Some(api::User { uid: 1000, gid: 1001, additional_gids: vec![5, 6] });
    let pid = client.add_process(added).await.unwrap().into_inner().system_pid;
    let answer = client.state(api::StateRequest { id: "c".into() }).await.unwrap().into_inner();
    let machine = answer.machine.unwrap();
    assert!(machine.cpus >= 1 && machine.memory > 100, "{machine:?}");
    let [container] = &answer.containers[..] else { panic!("one container") };
    assert_eq!((container.id.as_str(), container.bundle_path.as_str()), ("c", bundle.as_str()));
    assert_eq!(container.labels, ["a=b", "c"]);
    assert!(!container.runtime.is_empty());
    let [init, added] = &container.processes[..] else { panic!("two processes") };
    assert_eq!((init.pid.as_str(), init.system_pid), ("init", started.processes[0].system_pid));
    assert_eq!(init.args, ["sleep", "100000"]);
    assert_eq!(init.env, ["PATH=/bin", "TERM=xterm"]);
    assert_eq!((init.cwd.as_str(), init.stdout.as_str()), ("/", out.as_str()));
    assert!(init.no_new_privileges);
    assert_eq!(init.rlimits, [api::Rlimit { r#type: "RLIMIT_NOFILE".into(), soft: 100, hard: 200 }]);
    assert!(init.capabilities.contains(&"CAP_KILL".to_string()));
    assert_eq!((added.pid.as_str(), added.system_pid), ("p", pid));
    assert_eq!(added.user.as_ref().unwrap().additional_gids, [5, 6]);
    assert_eq!((added.env[0].as_str(), added.cwd.as_str()), ("X=1", "/"));
    let mut pids = container.pids.clone();
    pids.sort_unstable();
    let mut expected = [init.system_pid, pid];
    expected.sort_unstable();
    assert_eq!(pids, expected, "every pid in the container");
    kill(&mut client, "c").await;
    assert!(state(&mut client).await.is_empty());
    host.finish();
}

/// The state of all containers, after making sure that it is for each what is told of it alone.
async fn state_of_each(client: &mut tests::Client) -> Vec<api::Container> {
    let all = state(client).await;
    for told in &all {
        let alone = client.state(api::StateRequest { id: told.id.clone() }).await.unwrap().into_inner().containers;
        assert_eq!(alone, std::slice::from_ref(told));
    }
    all
}

#[tokio::test]
async fn the_state_of_many_is_that_of_each_whatever_is_held_open_of_it() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundles: Vec<_> = (0..12).map(|_| host.bundle(&["sleep", "100000"])).collect();
    let ids: Vec<String> = (0..12).map(|n| format!("c{n:02}")).collect();
    for (id, bundle) in ids.iter().zip(&bundles) {
        start(&mut client, id, &bundle.write()).await;
    }
    let held = || {
        let links = std::fs::read_dir(format!("/proc/{}/fd", host.pid())).unwrap().flatten();
        let links = links.filter_map(|link| Some(std::fs::read_link(link.path()).ok()?.display().to_string()));
        // What waits for an out-of-memory is opened for each in any case.
        let links = links.filter(|link| !link.contains("/memory."));
        links.filter(|link| bundles.iter().any(|bundle| link.contains(&bundle.cgroup()))).count()
    };
    let at_first = held();
    state_of_each(&mut client).await;
    assert_eq!(held(), at_first, "once is not often");
    let all = state_of_each(&mut client).await;
    assert!(held() >= at_first + 2 * ids.len());
    assert_eq!(all.iter().map(|container| &container.id).collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
    assert!(all.iter().all(|container| container.pids == [container.processes[0].system_pid]), "{all:?}");

    // Somebody enters one, one is frozen by somebody else, and one has a group of its own with a process in it.
    client.add_process(process("c01", "p", &["sh", "-c", "sleep 1000 & exec sleep 1000"])).await.unwrap();
    let file = |n: usize, name: &str| {
        let directories = tests::cgroup::directories(&bundles[n].cgroup());
        directories.into_iter().map(|directory| directory.join(name)).find(|file| file.exists())
    };
    let freeze = file(2, "freezer.state").map(|file| (file, "FROZEN", "THAWED"));
    let (freezer, frozen, thawed) = freeze.or_else(|| file(2, "cgroup.freeze").map(|file| (file, "1", "0"))).unwrap();
    std::fs::write(&freezer, frozen).unwrap();
    let below = file(3, "pids.current").unwrap().with_file_name("below");
    std::fs::create_dir(&below).unwrap();
    let moved = client.add_process(process("c03", "p", &["sleep", "1000"])).await.unwrap().into_inner().system_pid;
    std::fs::write(below.join("cgroup.procs"), moved.to_string()).unwrap();
    // The shell's child may be a moment in coming.
    eventually("the child is there", || {
        std::fs::read_to_string(file(1, "cgroup.procs").unwrap()).unwrap().lines().count() == 3
    });
    let all = state_of_each(&mut client).await;
    assert_eq!(all[1].pids.len(), 3);
    assert_eq!(all[2].status, "paused");
    assert!(all[3].pids.len() == 2 && all[3].pids.contains(&moved), "{:?}", all[3]);

    std::fs::write(&freezer, thawed).unwrap();
    signal(&mut client, "c03", "p", 9).await.unwrap();
    eventually("the group below is empty", || std::fs::remove_dir(&below).is_ok());
    kill(&mut client, "c04").await;
    let all = state_of_each(&mut client).await;
    assert_eq!((all.len(), all[2].status.as_str(), all[3].pids.len()), (11, "running", 1));
    // Another one of the same name, in a group of the same name.
    start(&mut client, "c04", &bundles[4].write()).await;
    let all = state_of_each(&mut client).await;
    assert_eq!(all[4].pids, [all[4].processes[0].system_pid]);
    for id in &ids {
        kill(&mut client, id).await;
    }
    assert!(state(&mut client).await.is_empty());
    eventually("nothing is held open any more", || held() == 0);
    host.finish();
}

#[tokio::test]
async fn every_field_of_an_added_process_reaches_it() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    let (out, err) = (host.fifo(), host.fifo());
    let (out_reader, err_reader) = (out.collect(), err.collect());
    let script = "id -u; id -g; id -G; pwd; echo $X; grep core /proc/self/limits; \
                  grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs)' /proc/self/status; echo $0 >&2";
    let mut request = process("c", "p", &["sh", "-c", script, "zero"]);
    request.user = Some(api::User { uid: 0, gid: 1001, additional_gids: vec![5, 6] });
    request.cwd = "/data".into();
    request.env = vec!["PATH=/bin".into(), "X=a b".into()];
    request.capabilities = vec!["CAP_KILL".into()];
    request.no_new_privileges = true;
    request.rlimits = vec![api::Rlimit { r#type: "RLIMIT_CORE".into(), soft: 77, hard: 99 }];
    (request.stdout, request.stderr) = (out.path(), err.path());
    client.add_process(request).await.unwrap();
    assert_eq!(watch.exit("c", "p").await, 0);
    let said = out_reader.text();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..5], ["0", "1001", "1001 5 6", "/data", "a b"]);
    // Not RLIMIT_NOFILE, whose soft value some versions of runc raise to the hard one.
    assert_eq!(lines[5].split_whitespace().rev().take(3).collect::<Vec<_>>(), ["bytes", "99", "77"]);
    assert_eq!(
        lines[6..].join(" ").replace('\t', ""),
        "CapPrm:0000000000000020 CapEff:0000000000000020 CapBnd:0000000000000020 NoNewPrivs:1"
    );
    assert_eq!(err_reader.text(), "zero\n");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_missing_user_is_root_and_env_and_cwd_come_from_the_bundle() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let bundle = host.bundle(&["sleep", "100000"]).process("cwd", json!("/data"));
    let bundle =
        bundle.process("env", json!(["PATH=/bin", "FROM=bundle"])).process("user", json!({"uid": 7, "gid": 8}));
    start(&mut client, "c", &bundle.write()).await;
    let out = host.fifo();
    let reader = out.collect();
    let mut request = process("c", "p", &["sh", "-c", "id -u; id -g; pwd; echo $FROM"]);
    request.stdout = out.path();
    client.add_process(request).await.unwrap();
    assert_eq!(watch.exit("c", "p").await, 0);
    assert_eq!(reader.text(), "0\n0\n/data\nbundle\n");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn pause_and_resume_are_told_and_really_happen() {
    let host = Host::new().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let mut watch = Watch::new(&mut client).await;
    set_status(&mut client, "c", "paused").await.unwrap();
    assert_eq!(state(&mut client).await[0].status, "paused");
    refused(set_status(&mut client, "c", "paused").await, Code::FailedPrecondition, &["paused"]);
    refused(client.add_process(process("c", "p", &["true"])).await, Code::FailedPrecondition, &["paused"]);
    set_status(&mut client, "c", "running").await.unwrap();
    assert_eq!(state(&mut client).await[0].status, "running");
    refused(set_status(&mut client, "c", "running").await, Code::FailedPrecondition, &["running"]);
    set_status(&mut client, "c", "").await.unwrap();
    assert_eq!(short(&watch.next().await), "c pause");
    assert_eq!(short(&watch.next().await), "c resume");
    kill(&mut client, "c").await;
    host.finish();
}

/// A paused container with an added process, of which one has been killed; the added one's exit has come.
async fn killed_while_paused(pid: &str) -> (Host, tests::Client, Watch) {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    client.add_process(process("c", "p", &["sleep", "1000"])).await.unwrap();
    set_status(&mut client, "c", "paused").await.unwrap();
    signal(&mut client, "c", pid, 9).await.unwrap();
    assert_eq!(watch.exit("c", "p").await, 137);
    (host, client, watch)
}

#[tokio::test]
async fn a_paused_container_can_be_killed() {
    let (host, _client, mut watch) = killed_while_paused("init").await;
    assert_eq!(watch.exit("c", "init").await, 137);
    host.finish();
}

#[tokio::test]
async fn an_added_process_of_a_paused_container_can_be_killed() {
    let (host, mut client, _watch) = killed_while_paused("p").await;
    // v1 has to thaw the container for that; what is told and what is so agree in any case.
    let status = state(&mut client).await[0].status.clone();
    let other = if status == "paused" { "running" } else { "paused" };
    set_status(&mut client, "c", other).await.unwrap();
    set_status(&mut client, "c", &status).await.unwrap();
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_container_that_is_killed_while_it_is_being_paused_dies() {
    // The signal comes after the runtime has frozen it, and before it has said so.
    const SLOW: &str = r#"
case " $* " in *" pause "*) $RUNTIME "$@"; s=$?; touch "$(dirname $0)/frozen"; sleep 1; exit $s;; esac
exec $RUNTIME "$@""#;
    let options = tests::Options { fake_runtime: Some(SLOW), ..Default::default() };
    let host = Host::with(options).await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(&host, &mut client, "c").await;
    let mut pausing = client.clone();
    let pause = tokio::spawn(async move { set_status(&mut pausing, "c", "paused").await });
    let frozen = host.join("frozen");
    let wait = move || tests::eventually("it is frozen", || std::fs::exists(&frozen).unwrap());
    tokio::task::spawn_blocking(wait).await.unwrap();
    signal(&mut client, "c", "init", 9).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 137);
    let _ = pause.await.unwrap();
    host.finish();
}

#[tokio::test]
async fn a_containers_own_runtime_and_arguments_are_used_throughout() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    // Notes every call, and hands it on.
    let log = host.join("calls");
    let script = host.join("noting-runtime");
    let text = format!("#!/bin/sh\necho \"$@\" >> {log}\nexec {} \"$@\"\n", tests::runtime());
    tests::write_program(std::path::Path::new(&script), &text);
    let root = format!("--root={}", host.join("root"));
    let mut request = container("c", &host.bundle(&["sleep", "1000"]).write());
    request.runtime = script.clone();
    request.runtime_args = vec![root.clone()];
    let started = client.create_container(request).await.unwrap().into_inner().container.unwrap();
    assert_eq!(started.runtime, script);
    client.add_process(process("c", "p", &["true"])).await.unwrap();
    assert_eq!(watch.exit("c", "p").await, 0);
    set_status(&mut client, "c", "paused").await.unwrap();
    set_status(&mut client, "c", "running").await.unwrap();
    kill(&mut client, "c").await;
    let calls = std::fs::read_to_string(&log).unwrap();
    for subcommand in [" run ", " exec ", " pause ", " resume ", " delete "] {
        assert_eq!(calls.lines().filter(|line| line.contains(subcommand)).count(), 1, "{subcommand} in {calls}");
    }
    assert!(calls.lines().all(|line| line.starts_with(&root)), "in front of every subcommand: {calls}");
    host.finish();
}

#[tokio::test]
async fn no_pivot_reaches_the_runtime() {
    let host = Host::with(tests::Options {
        fake_runtime: Some(r#"echo "$@" >> "$(dirname $0)/calls"; exec $RUNTIME "$@""#),
        ..Default::default()
    })
    .await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let mut request = container("c", &host.bundle(&["true"]).write());
    request.no_pivot_root = true;
    client.create_container(request).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 0);
    let calls = std::fs::read_to_string(host.join("calls")).unwrap();
    let create = calls.lines().find(|line| line.contains(" --bundle ")).unwrap();
    assert!(create.contains(" --no-pivot "), "{calls}");
    host.finish();
}

#[tokio::test]
async fn a_relative_bundle_is_taken_from_the_daemons_directory() {
    let mut host = Host::prepare(tests::Options::default());
    let bundle = host.bundle(&["true"]).write();
    host.start().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let cwd = std::env::current_dir().unwrap();
    let up = "../".repeat(cwd.components().count() - 1);
    let started = start(&mut client, "c", &format!("{up}{}", bundle.trim_start_matches('/'))).await;
    assert!(started.bundle_path.starts_with('/'));
    assert_eq!(watch.exit("c", "init").await, 0);
    host.finish();
}

#[tokio::test]
async fn pipes_belong_to_the_root_of_a_user_namespace() {
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let script = "echo direct; echo again > /dev/stdout; stat -L -c %u /proc/self/fd/1; exec sleep 0";
    let mut bundle = host.bundle(&["sh", "-c", script]);
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    bundle.config["linux"]["uidMappings"] = mapping.clone();
    bundle.config["linux"]["gidMappings"] = mapping;
    let out = host.fifo();
    let reader = out.collect();
    // The mapped root must be able to walk to the root file system.
    std::fs::set_permissions(host.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut request = container("c", &bundle.write());
    request.stdout = out.path();
    client.create_container(request).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 0);
    assert_eq!(reader.text(), "direct\nagain\n0\n");
    host.finish();
}
