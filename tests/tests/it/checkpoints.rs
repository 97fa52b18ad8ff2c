//! Checkpoints, with the real CRIU.

use crate::support::*;
use failpoint::Point;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::{Bundle, Client, FAULTS, Host, Ledger, Options, eventually, has_criu};
use tonic::{Code, Status};

/// Writes a number every 50 ms.
const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";

fn counter(host: &Host) -> Bundle {
    host.bundle(&["sh", "-c", COUNTER])
}

fn named(name: &str) -> api::Checkpoint {
    api::Checkpoint { name: name.into(), ..Default::default() }
}

fn exiting(name: &str) -> api::Checkpoint {
    api::Checkpoint { exit: true, ..named(name) }
}

async fn make(client: &mut Client, id: &str, checkpoint: api::Checkpoint) -> Result<(), Status> {
    make_in(client, id, checkpoint, "").await
}

async fn make_in(client: &mut Client, id: &str, checkpoint: api::Checkpoint, directory: &str) -> Result<(), Status> {
    let (checkpoint, checkpoint_dir) = (Some(checkpoint), directory.to_string());
    let request = api::CreateCheckpointRequest { id: id.into(), checkpoint, checkpoint_dir };
    client.create_checkpoint(request).await.map(|_| ())
}

/// The names of the checkpoints in a directory.
async fn list(client: &mut Client, id: &str, directory: &str) -> Result<Vec<String>, Status> {
    let request = api::ListCheckpointRequest { id: id.into(), checkpoint_dir: directory.into() };
    let checkpoints = client.list_checkpoint(request).await?.into_inner().checkpoints;
    Ok(checkpoints.into_iter().map(|checkpoint| checkpoint.name).collect())
}

async fn remove(client: &mut Client, id: &str, name: &str, directory: &str) -> Result<(), Status> {
    let request = api::DeleteCheckpointRequest { id: id.into(), name: name.into(), checkpoint_dir: directory.into() };
    client.delete_checkpoint(request).await.map(|_| ())
}

/// A request for a container with its output in a file, started or restored.
fn writing(id: &str, bundle: &str, checkpoint: &str, output: &Path) -> api::CreateContainerRequest {
    std::fs::File::options().create(true).append(true).open(output).unwrap();
    let mut request = container(id, bundle);
    request.checkpoint = checkpoint.into();
    request.stdout = output.to_str().unwrap().into();
    request
}

/// The whole lines of a file, as numbers.
fn numbers(output: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(output).unwrap();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{line:?}"))).collect()
}

fn last(output: &Path) -> u64 {
    numbers(output).last().copied().unwrap_or_default()
}

/// Waits until a counter has gone on.
fn goes_on(output: &Path) {
    let before = numbers(output).len();
    eventually("the counter goes on", || numbers(output).len() > before);
}

/// A host with a counter that runs in container `c`.
struct Counting {
    host: Host,
    client: Client,
    bundle: String,
    output: PathBuf,
}

impl Counting {
    /// `None` where nothing can be checkpointed.
    async fn new() -> Option<Counting> {
        if !has_criu() {
            return None;
        }
        let host = Host::new().await;
        let mut client = host.client().await;
        let bundle = counter(&host).write();
        let output = host.path().join("numbers");
        client.create_container(writing("c", &bundle, "", &output)).await.unwrap();
        goes_on(&output);
        Some(Counting { host, client, bundle, output })
    }
}

/// What is in a directory, hidden or not.
fn entries(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_counter_goes_on_with_the_next_number_fifty_times() {
    if !has_criu() {
        return;
    }
    let flags = vec!["--retain-count=0".into()];
    let mut host = Host::with(Options { flags, ..Options::default() }).await;
    let bundle = counter(&host).write();
    let output = host.path().join("numbers");
    let mut client = host.client().await;
    client.create_container(writing("c", &bundle, "", &output)).await.unwrap();
    for round in 0..50 {
        goes_on(&output);
        if round % 3 == 0 {
            host.restart(Signal::KILL).await;
            client = host.client().await;
        }
        let name = format!("n{round}");
        make(&mut client, "c", exiting(&name)).await.unwrap();
        assert!(state(&mut client).await.is_empty(), "it is gone once its checkpoint is there");
        if round % 3 == 1 {
            host.restart(Signal::KILL).await;
            client = host.client().await;
        }
        client.create_container(writing("c", &bundle, &name, &output)).await.unwrap();
        if round % 3 == 2 {
            host.restart(Signal::KILL).await;
            client = host.client().await;
        }
        if round > 0 {
            remove(&mut client, "c", &format!("n{}", round - 1), "").await.unwrap();
        }
    }
    goes_on(&output);
    kill(&mut client, "c").await;
    let numbers = numbers(&output);
    let expected: Vec<u64> = (0..numbers.len() as u64).collect();
    assert_eq!(numbers, expected, "each number once");
    assert_eq!(entries(&Path::new(&bundle).join("checkpoints")), ["n49"]);
    let told: Vec<String> = stored(&mut client).await.iter().map(short).collect();
    assert_eq!(told.len(), 2 * 51);
    assert!(told.chunks(2).all(|pair| pair == ["c start-container", "c exit init 137"]), "{told:?}");
    host.finish();
}

#[tokio::test]
async fn a_container_goes_on_and_three_clones_run_beside_it() {
    if !has_criu() {
        return;
    }
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let own = counter(&host);
    let output = host.path().join("c.out");
    client.create_container(writing("c", &own.write(), "", &output)).await.unwrap();
    goes_on(&output);
    let directory = host.join("elsewhere");
    make_in(&mut client, "c", named("one"), &directory).await.unwrap();
    goes_on(&output);
    let mut clones = tokio::task::JoinSet::new();
    for n in 0..3 {
        let id = format!("clone{n}");
        let bundle = own.copy(&id, &["sh", "-c", COUNTER]).write();
        let mut request = writing(&id, &bundle, "one", &host.path().join(&id));
        request.checkpoint_dir = directory.clone();
        let mut client = client.clone();
        clones.spawn(async move { client.create_container(request).await.map(|_| ()) });
    }
    while let Some(clone) = clones.join_next().await {
        clone.unwrap().unwrap();
    }
    let firsts: Vec<u64> = (0..3)
        .map(|n| {
            let output = host.path().join(format!("clone{n}"));
            goes_on(&output);
            numbers(&output)[0]
        })
        .collect();
    assert!(firsts[0] > 0 && firsts.iter().all(|first| *first == firsts[0]), "{firsts:?}");
    goes_on(&output);
    // They are containers like any other: processes are added, limits are changed, usage is told, all over a restart.
    host.restart(Signal::KILL).await;
    client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    client.add_process(process("clone0", "p", &["sh", "-c", "exit 5"])).await.unwrap();
    assert_eq!(watch.exit("clone0", "p").await, 5);
    set_status(&mut client, "clone1", "paused").await.unwrap();
    refused(make(&mut client, "clone1", named("x")).await, Code::FailedPrecondition, &["cannot checkpoint", "paused"]);
    set_status(&mut client, "clone1", "running").await.unwrap();
    let resources = Some(api::UpdateResource { pids_limit: 50, ..Default::default() });
    let update = api::UpdateContainerRequest { id: "clone2".into(), resources, ..Default::default() };
    client.update_container(update).await.unwrap();
    let stats = client.stats(api::StatsRequest { id: "clone2".into() }).await.unwrap().into_inner();
    assert_eq!(stats.cgroup_stats.unwrap().pids_stats.unwrap().limit, 50);
    // One of them once more.
    make(&mut client, "clone2", exiting("again")).await.unwrap();
    let request = writing("clone2", &own.path().with_file_name("clone2").display().to_string(), "again", &output);
    client.create_container(request).await.unwrap();
    for id in ["c", "clone0", "clone1", "clone2"] {
        kill(&mut client, id).await;
    }
    host.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_answers_on_its_new_terminal() {
    use std::io::Write;
    if !has_criu() {
        return;
    }
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let bundle = host.bundle(&["sh"]).terminal().write();
    let answers = async |client: &mut Client, checkpoint: &str, question: &str, answer: &str| {
        let (stdin, stdout) = (host.fifo(), host.fifo());
        let mut request = container("c", &bundle);
        request.checkpoint = checkpoint.into();
        (request.stdin, request.stdout) = (stdin.path(), stdout.path());
        let mut reader = stdout.reader_now();
        client.create_container(request).await.unwrap();
        stdin.writer().write_all(question.as_bytes()).unwrap();
        let mut text = String::new();
        eventually("the shell answers", || {
            let mut piece = [0; 512];
            if let Ok(n) = std::io::Read::read(&mut reader, &mut piece) {
                text.push_str(&String::from_utf8_lossy(&piece[..n]));
            }
            text.contains(answer)
        });
        // Its other end stays open until the container has gone.
        (stdin, reader)
    };
    let _ends = answers(&mut client, "", "x=17; echo set $x\n", "set 17").await;
    make(&mut client, "c", exiting("shell")).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 137);
    let _other_ends = answers(&mut client, "shell", "echo $((x + 1)); stty size\n", "18\r\n").await;
    let resize =
        api::UpdateProcessRequest { id: "c".into(), pid: "init".into(), width: 77, height: 33, ..Default::default() };
    client.update_process(resize).await.unwrap();
    kill(&mut client, "c").await;
    host.finish();
}

/// A network namespace with a name.
struct NetworkNamespace(String);

impl NetworkNamespace {
    fn new(host: &Host) -> NetworkNamespace {
        let name = host.path().file_name().unwrap().to_str().unwrap().to_string();
        for arguments in [["netns", "add", &name].as_slice(), &["-n", &name, "link", "set", "lo", "up"]] {
            assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
        }
        NetworkNamespace(name)
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[tokio::test]
async fn an_established_connection_survives_if_it_is_taken_along() {
    if !has_criu() {
        return;
    }
    let host = Host::new().await;
    let mut client = host.client().await;
    // What is written comes back over the connection.
    let script = "nc -l -p 7000 -e cat & while ! cat /proc/net/tcp /proc/net/tcp6 | grep -q :1B58; do sleep 0.05; done; \
                  (i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done) | nc 127.0.0.1 7000";
    // A network namespace that is there before the container and stays: runc takes none along of its own.
    let namespace = NetworkNamespace::new(&host);
    let mut bundle = host.bundle(&["sh", "-c", script]).without_namespace("network");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(serde_json::json!({"type": "network", "path": format!("/run/netns/{}", namespace.0)}));
    let output = host.path().join("echoed");
    client.create_container(writing("c", &bundle.write(), "", &output)).await.unwrap();
    goes_on(&output);
    let refusal = make(&mut client, "c", exiting("without")).await;
    refused(refusal, Code::Unknown, &["oci runtime error: ", "--tcp-established", ".dump.log"]);
    goes_on(&output);
    let checkpoints = bundle.path().join("checkpoints");
    assert_eq!(entries(&checkpoints), Vec::<String>::new());
    assert!(host.state_dir().join("c/.dump.log").exists(), "the log that the message names");
    for n in 0..2 {
        let name = format!("with{n}");
        make(&mut client, "c", api::Checkpoint { tcp: true, ..exiting(&name) }).await.unwrap();
        client.create_container(writing("c", &bundle.write(), &name, &output)).await.unwrap();
        goes_on(&output);
    }
    kill(&mut client, "c").await;
    let numbers = numbers(&output);
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "nothing is lost or comes twice");
    drop(namespace);
    host.finish();
}

#[tokio::test]
async fn all_flags_at_once_are_understood_by_the_real_criu() {
    let Some(Counting { host, mut client, bundle, output }) = Counting::new().await else { return };
    let empty_ns = vec!["network".into()];
    let all = api::Checkpoint { tcp: true, unix_sockets: true, shell: true, empty_ns, ..exiting("all") };
    make(&mut client, "c", all.clone()).await.unwrap();
    let before = last(&output);
    client.create_container(writing("c", &bundle, "all", &output)).await.unwrap();
    goes_on(&output);
    assert_eq!(numbers(&output), (0..=last(&output)).collect::<Vec<_>>(), "it goes on after {before}");
    let request = api::ListCheckpointRequest { id: "c".into(), ..Default::default() };
    let listed = client.list_checkpoint(request).await.unwrap().into_inner().checkpoints;
    assert_eq!(listed, [all]);
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn limits_of_its_config_hold_after_a_restore() {
    if !has_criu() {
        return;
    }
    let host = Host::new().await;
    let mut client = host.client().await;
    let resources = serde_json::json!({"memory": {"limit": 48 << 20}, "pids": {"limit": 40}, "cpu": {"shares": 512}});
    let bundle = counter(&host).resources(resources).write();
    let output = host.path().join("numbers");
    let limits = async |client: &mut Client| {
        let stats = client.stats(api::StatsRequest { id: "c".into() }).await.unwrap().into_inner();
        let groups = stats.cgroup_stats.unwrap();
        (groups.memory_stats.unwrap().usage.unwrap().limit, groups.pids_stats.unwrap().limit)
    };
    client.create_container(writing("c", &bundle, "", &output)).await.unwrap();
    goes_on(&output);
    let before = limits(&mut client).await;
    assert_eq!(before, (48 << 20, 40));
    make(&mut client, "c", exiting("one")).await.unwrap();
    client.create_container(writing("c", &bundle, "one", &output)).await.unwrap();
    goes_on(&output);
    assert_eq!(limits(&mut client).await, before);
    // What is over its limit is killed, and told.
    let mut watch = Watch::new(&mut client).await;
    client.add_process(process("c", "p", &["tail", "/dev/zero"])).await.unwrap();
    let told = [watch.next().await, watch.next().await, watch.next().await];
    assert_eq!(told.map(|event| event.r#type), ["start-process", "oom", "exit"]);
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn names_and_states_that_do_not_fit() {
    if !has_criu() {
        return;
    }
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = counter(&host);
    let output = host.path().join("numbers");
    client.create_container(writing("c", &bundle.write(), "", &output)).await.unwrap();
    let none = api::CreateCheckpointRequest { id: "c".into(), ..Default::default() };
    refused(client.create_checkpoint(none).await, Code::InvalidArgument, &["checkpoint"]);
    for name in ["../x", "", ".hidden", "a/b"] {
        refused(make(&mut client, "c", named(name)).await, Code::InvalidArgument, &["checkpoint name", name]);
        refused(remove(&mut client, "c", name, "").await, Code::InvalidArgument, &["checkpoint name", name]);
        if !name.is_empty() {
            let request = writing("d", &bundle.write(), name, &output);
            refused(client.create_container(request).await, Code::InvalidArgument, &["checkpoint", name]);
        }
    }
    let wrong = api::Checkpoint { empty_ns: vec!["mount".into()], ..named("x") };
    refused(make(&mut client, "c", wrong).await, Code::InvalidArgument, &["emptyNS", "mount"]);
    refused(make(&mut client, "nobody", named("x")).await, Code::NotFound, &["container not found"]);
    refused(list(&mut client, "nobody", "").await, Code::NotFound, &["container not found"]);
    assert_eq!(list(&mut client, "c", "").await.unwrap(), Vec::<String>::new());
    make(&mut client, "c", named("one")).await.unwrap();
    refused(make(&mut client, "c", named("one")).await, Code::AlreadyExists, &["one"]);
    refused(remove(&mut client, "c", "two", "").await, Code::NotFound, &["two"]);
    let request = writing("d", &bundle.write(), "two", &output);
    refused(client.create_container(request).await, Code::NotFound, &["two"]);
    let request = writing("c", &bundle.write(), "one", &output);
    refused(client.create_container(request).await, Code::AlreadyExists, &["c"]);
    // Somebody else's container of that name stays.
    let other = counter(&host).write();
    let root = format!("--root={}", host.join("root"));
    let runtime = |arguments: &[&str]| Command::new(tests::runtime()).arg(&root).args(arguments).status().unwrap();
    assert!(runtime(&["create", "--bundle", &other, "theirs"]).success());
    let request = writing("theirs", &bundle.write(), "one", &output);
    refused(client.create_container(request).await, Code::Unknown, &["theirs", "exists"]);
    assert!(runtime(&["state", "theirs"]).success());
    assert!(runtime(&["delete", "--force", "theirs"]).success());
    // A checkpoint that is no checkpoint is left alone.
    let checkpoints = bundle.path().join("checkpoints");
    std::fs::create_dir(checkpoints.join("mine")).unwrap();
    refused(remove(&mut client, "c", "mine", "").await, Code::NotFound, &["mine"]);
    goes_on(&output);
    kill(&mut client, "c").await;
    // The container is gone, its checkpoints are there.
    let directory = checkpoints.to_str().unwrap();
    assert_eq!(list(&mut client, "c", directory).await.unwrap(), ["one"]);
    remove(&mut client, "c", "one", directory).await.unwrap();
    assert_eq!(entries(&checkpoints), ["mine"]);
    host.finish();
}

#[tokio::test]
async fn where_there_is_no_criu() {
    if !has_criu() {
        return;
    }
    let mut host = Host::prepare(Options::default());
    // All that the runtime is found by.
    let programs = host.path().join("programs");
    std::fs::create_dir(&programs).unwrap();
    for program in [tests::runtime().as_str(), "ip"] {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().stdout;
        let found = String::from_utf8(found).unwrap();
        std::os::unix::fs::symlink(found.trim(), programs.join(Path::new(program).file_name().unwrap())).unwrap();
    }
    host.set_env("PATH", programs.to_str().unwrap());
    host.start().await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let refusal = make(&mut client, "c", named("one")).await;
    refused(refusal, Code::FailedPrecondition, &["criu not installed on system"]);
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_runtime_without_criu_says_so() {
    // As Debian 12's crun: the commands are there, and have no such flags.
    const NONE: &str = r#"case " $* " in *" checkpoint "*|*" restore "*) echo "unknown command" >&2; exit 1 ;; esac; exec $RUNTIME "$@""#;
    let host = Host::with(Options { fake_runtime: Some(NONE), ..Options::default() }).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let refusal = make(&mut client, "c", named("one")).await;
    refused(refusal, Code::FailedPrecondition, &["cannot checkpoint a container"]);
    let directory = host.path().join("checkpoints/one");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("config.json"), "{}").unwrap();
    let mut request = container("d", &host.bundle(&["true"]).write());
    (request.checkpoint, request.checkpoint_dir) = ("one".into(), host.join("checkpoints"));
    refused(client.create_container(request).await, Code::FailedPrecondition, &["cannot restore a container"]);
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_flag_that_the_runtime_does_not_know_is_named() {
    if !has_criu() {
        return;
    }
    const OLD: &str = r#"case " $* " in *" checkpoint --help"*) echo "--image-path --tcp-established"; exit ;; esac; exec $RUNTIME "$@""#;
    let host = Host::with(Options { fake_runtime: Some(OLD), ..Options::default() }).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let wanted = api::Checkpoint { empty_ns: vec!["network".into()], ..named("one") };
    refused(make(&mut client, "c", wanted).await, Code::FailedPrecondition, &["cannot checkpoint", "--empty-ns"]);
    let wanted = api::Checkpoint { shell: true, ..named("one") };
    refused(make(&mut client, "c", wanted).await, Code::FailedPrecondition, &["--shell-job"]);
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn a_damaged_checkpoint_is_refused_and_leaves_nothing() {
    if !has_criu() {
        return;
    }
    let flags = vec!["--start-timeout=5s".into()];
    let host = Host::with(Options { flags, ..Options::default() }).await;
    let mut client = host.client().await;
    let own = counter(&host);
    let output = host.path().join("numbers");
    client.create_container(writing("c", &own.write(), "", &output)).await.unwrap();
    goes_on(&output);
    make(&mut client, "c", named("one")).await.unwrap();
    let whole = own.path().join("checkpoints/one");
    let bundle = own.copy("clone", &["sh", "-c", COUNTER]).write();
    let damaged = host.path().join("damaged");
    let images: Vec<String> = entries(&whole).into_iter().filter(|name| whole.join(name).is_file()).collect();
    assert!(images.len() > 10, "{images:?}");
    let mut restored = Vec::new();
    // As the daemon finds it, and then as CRIU does: without the sizes, which an older daemon did not write.
    for with_sizes in [true, false] {
        for image in &images {
            let _ = std::fs::remove_dir_all(&damaged);
            std::fs::create_dir_all(damaged.join("one")).unwrap();
            for name in &images {
                std::fs::copy(whole.join(name), damaged.join("one").join(name)).unwrap();
            }
            let config = damaged.join("one/config.json");
            if !with_sizes {
                let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
                value.as_object_mut().unwrap().remove("files").unwrap();
                std::fs::write(&config, value.to_string()).unwrap();
            }
            let path = damaged.join("one").join(image);
            let size = path.metadata().unwrap().len();
            std::fs::File::options().write(true).open(&path).unwrap().set_len(size / 2).unwrap();
            let mut request = writing("clone", &bundle, "one", &host.path().join("clone.out"));
            request.checkpoint_dir = damaged.to_str().unwrap().into();
            match client.create_container(request).await {
                Ok(_) => {
                    // CRIU did without it.
                    assert!(!with_sizes && image != "config.json", "{image}");
                    restored.push(image.clone());
                    kill(&mut client, "clone").await;
                }
                Err(status) if with_sizes || image == "config.json" => {
                    refused(Err::<(), _>(status), Code::FailedPrecondition, &["damaged", image]);
                }
                // Some CRIUs read the end of a file of pages again and again.
                Err(status) if image.starts_with("pages-") => {
                    assert!(matches!(status.code(), Code::Unknown | Code::DeadlineExceeded), "{image}: {status:?}");
                }
                Err(status) => refused(Err::<(), _>(status), Code::Unknown, &["oci runtime error: "]),
            }
            let left = ["state/clone", "root/clone"].map(|path| host.path().join(path).exists());
            assert_eq!(left, [false, false], "{image}");
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(&host.join("state")) && !mounts.contains(&host.join("root/clone")), "{image}");
        }
    }
    println!("CRIU does without: {restored:?}");
    // One that is whole is restored into what they left.
    goes_on(&output);
    let mut request = writing("clone", &bundle, "one", &host.path().join("clone.out"));
    request.checkpoint_dir = own.path().join("checkpoints").to_str().unwrap().into();
    client.create_container(request).await.unwrap();
    for id in ["c", "clone"] {
        kill(&mut client, id).await;
    }
    host.finish();
}

#[tokio::test]
async fn a_full_disk_leaves_the_container_as_it_was() {
    if !has_criu() {
        return;
    }
    let host = Host::new().await;
    let mut client = host.client().await;
    let bundle = host.bundle(&["sh", "-c", &format!("head -c 4000000 /dev/urandom > /tmp/much; {COUNTER}")]);
    let output = host.path().join("numbers");
    client.create_container(writing("c", &bundle.write(), "", &output)).await.unwrap();
    goes_on(&output);
    let small = host.path().join("small");
    std::fs::create_dir(&small).unwrap();
    rustix::mount::mount("small", &small, "tmpfs", rustix::mount::MountFlags::empty(), c"size=1m").unwrap();
    for exit in [true, false] {
        let wanted = api::Checkpoint { exit, ..named("one") };
        let refusal = make_in(&mut client, "c", wanted, small.to_str().unwrap()).await;
        refused(refusal, Code::Unknown, &["oci runtime error: ", ".dump.log"]);
        assert_eq!(entries(&small), Vec::<String>::new());
        goes_on(&output);
    }
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
    kill(&mut client, "c").await;
    host.finish();
}

/// Where a daemon may be killed over a restore.
const RESTORE: [Point; 9] = [
    Point::DirectoryMade,
    Point::FifosMade,
    Point::ShimStarted,
    Point::ShimRuntimeStarted,
    Point::ShimRuntimeEnded,
    Point::ShimPidWritten,
    Point::PidSeen,
    Point::CgroupKept,
    Point::StartJournaled,
];

#[tokio::test]
async fn a_program_that_dies_over_a_checkpoint_loses_nothing() {
    if !has_criu() {
        return;
    }
    let points = Point::ALL.iter().filter(|point| point.name().starts_with("checkpoint"));
    let flags = vec!["--retain-count=0".into()];
    let mut host = Host::with(Options { failpoints: true, flags, ..Options::default() }).await;
    let mut client = host.lazy_client();
    let mut last_restored = String::new();
    let bundle = counter(&host);
    let (path, output) = (bundle.write(), host.path().join("numbers"));
    client.create_container(writing("c", &path, "", &output)).await.unwrap();
    for point in points {
        for exit in [false, true] {
            goes_on(&output);
            println!("{}, exit: {exit}", point.name());
            let name = format!("{}-{exit}", point.name());
            host.arm(*point, 0);
            make(&mut client, "c", api::Checkpoint { exit, ..named(&name) }).await.expect_err("its daemon dies");
            eventually("the daemon has died", || host.has_died());
            host.start().await;
            let checkpoints = bundle.path().join("checkpoints");
            eventually("it has been seen to", || entries(&checkpoints).iter().all(|name| !name.starts_with('.')));
            let made = entries(&checkpoints).contains(&name);
            if exit && made {
                eventually("it is gone", || !host.state_dir().join("c").exists());
                client.create_container(writing("c", &path, &name, &output)).await.unwrap();
                last_restored = name;
            } else {
                assert!(!exit || *point == Point::CheckpointBegun, "a container that was stopped has its checkpoint");
            }
            assert_eq!(state(&mut client).await[0].status, "running");
        }
    }
    assert!(!last_restored.is_empty());
    goes_on(&output);
    let numbers_now = numbers(&output);
    assert_eq!(numbers_now, (0..numbers_now.len() as u64).collect::<Vec<_>>());
    // A restore that nobody acknowledged has not happened, or wholly.
    make(&mut client, "c", exiting("last")).await.unwrap();
    for point in RESTORE {
        println!("{}", point.name());
        let output = host.path().join(point.name());
        host.arm(point, 0);
        let restored = client.create_container(writing("c", &path, "last", &output)).await;
        if !host.has_died() && restored.is_err() && point.program() == failpoint::Program::Daemon {
            eventually("the daemon has died", || host.has_died());
        }
        if host.has_died() {
            host.start().await;
        }
        // A shim gets there when it has been answered, it may be.
        eventually("it has died", || !host.is_armed());
        eventually("it has been seen to", || {
            let there = host.state_dir().join("c");
            !there.exists() || there.join("init/pid").exists()
        });
        // It runs, or has ended with its shim, or is not there.
        let _ = signal(&mut client, "c", "init", 9).await;
        eventually("nothing is left", || !host.state_dir().join("c").exists());
        assert!(!host.path().join("root/c").exists(), "{}", point.name());
        // runc mounts the container's root below its own while it restores it.
        assert!(tests::rootfs().join("bin/sh").exists(), "{}", point.name());
    }
    client.create_container(writing("c", &path, "last", &output)).await.unwrap();
    goes_on(&output);
    kill(&mut client, "c").await;
    // Whatever was cut off, each start has its end.
    let told: Vec<String> = stored(&mut client).await.iter().map(short).collect();
    assert!(told.chunks(2).all(|pair| pair == ["c start-container", "c exit init 137"]), "{told:?}");
    host.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_while_criu_works_finds_the_checkpoint() {
    if !has_criu() {
        return;
    }
    let mut host = Host::with(Options { fake_runtime: Some(FAULTS), ..Options::default() }).await;
    let mut client = host.lazy_client();
    let ledger = Ledger::new(host.lazy_client());
    let bundle = counter(&host);
    let output = host.path().join("numbers");
    client.create_container(writing("c", &bundle.write(), "", &output)).await.unwrap();
    goes_on(&output);
    // It is asked what it can do once.
    make(&mut client, "c", named("zero")).await.unwrap();
    remove(&mut client, "c", "zero", "").await.unwrap();
    std::fs::write(host.join("fault"), "checkpoint:slow").unwrap();
    let mut caller = client.clone();
    let call = tokio::spawn(async move { make(&mut caller, "c", exiting("one")).await });
    let directory = bundle.path().join("checkpoints");
    let reached = host.join("reached");
    eventually("the runtime is at work", || Path::new(&reached).exists());
    host.stop(Signal::KILL);
    std::fs::write(host.join("fault"), "none").unwrap();
    call.await.unwrap().expect_err("its daemon has died");
    host.start().await;
    // What is being made is nobody else's to make.
    let other = host.bundle(&["sleep", "1000"]).write();
    start(&mut client, "d", &other).await;
    refused(
        make_in(&mut client, "d", named("one"), directory.to_str().unwrap()).await,
        Code::AlreadyExists,
        &["one", "is being made"],
    );
    ledger.exit("c", "init").await;
    assert_eq!(entries(&directory), ["one"]);
    eventually("it is gone", || !host.state_dir().join("c").exists());
    let before = last(&output);
    client.create_container(writing("c", &bundle.write(), "one", &output)).await.unwrap();
    goes_on(&output);
    assert!(numbers(&output).contains(&(before + 1)));
    for id in ["c", "d"] {
        kill(&mut client, id).await;
    }
    drop(ledger);
    host.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_killed_while_criu_dumps_it_dies() {
    if !has_criu() {
        return;
    }
    let mut host = Host::new().await;
    let mut client = host.client().await;
    // What CRIU says when it is about to have init do something and to wait for it. An init that ends waits for its
    // children, which CRIU traces.
    const STEPS: [(&str, usize); 4] =
        [("Collecting fds", 1), ("Parasite syscall_ip", 1), ("Putting parasite", 1), ("Dumping core", 1)];
    let bundle = host.bundle(&["sh", "-c", "for n in 1 2 3; do sleep 1000 & done; wait"]).write();
    let ledger = Ledger::new(host.lazy_client());
    for round in 0..12 {
        let id = format!("c{round}");
        client.create_container(container(&id, &bundle)).await.unwrap();
        let init = std::fs::read_to_string(host.state_dir().join(&id).join("init/pid")).unwrap();
        let init: u32 = init.parse().unwrap();
        let shim = sys::procfs::stat(init).unwrap().unwrap().parent;
        let (mut other, whose) = (client.clone(), id.clone());
        let checkpoint = api::Checkpoint { exit: round % 4 < 2, ..named("one") };
        let making = tokio::spawn(async move { make(&mut other, &whose, checkpoint).await });
        let log = Path::new(&bundle).join("checkpoints/.one.partial/criu.work/dump.log");
        let (step, nth) = STEPS[round % STEPS.len()];
        eventually("CRIU is at work", || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            making.is_finished() || said.matches(step).count() >= nth
        });
        if round % 2 == 1 {
            host.restart(Signal::KILL).await;
            client = host.client().await;
        }
        let [init, shim] = [init, shim].map(|pid| rustix::process::Pid::from_raw(pid as i32).unwrap());
        let _ = match round / 2 % 3 {
            0 => signal(&mut client, &id, "init", 9).await.is_ok(),
            1 => rustix::process::kill_process(shim, Signal::KILL).is_ok(),
            // As when the kernel runs out of memory.
            _ => rustix::process::kill_process(init, Signal::KILL).is_ok(),
        };
        assert_eq!(ledger.exit(&id, "init").await, 137);
        let _ = making.await.unwrap();
        assert!(state(&mut client).await.is_empty());
        let checkpoints = Path::new(&bundle).join("checkpoints");
        eventually("it has been seen to", || entries(&checkpoints).iter().all(|name| name == "one"));
        let _ = std::fs::remove_dir_all(checkpoints.join("one"));
    }
    drop(ledger);
    host.finish();
}

/// Whether a process writes into a file of CRIU's, in the process directory.
fn logs_below(pid: &str, directory: &Path) -> bool {
    let descriptors = format!("/proc/{pid}/fd");
    let links =
        entries(Path::new(&descriptors)).into_iter().map(|fd| std::fs::read_link(format!("{descriptors}/{fd}")));
    links.flatten().any(|path| path.starts_with(directory.join("criu.work")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_is_killed_while_criu_restores_leaves_nothing() {
    let Some(Counting { host, mut client, bundle, output }) = Counting::new().await else { return };
    make(&mut client, "c", exiting("one")).await.unwrap();
    let directory = host.state_dir().join("c/init");
    let variable = format!("CONTAINERD_PROCESS_DIR={}", directory.display());
    // CRIU itself, what it is making into the container's processes, and what has already become one and waits for CRIU.
    for name in ["criu", "sh", "sleep", "", "", ""] {
        let mut watch = Watch::new(&mut client).await;
        let (mut other, request) = (client.clone(), writing("c", &bundle, "one", &output));
        let creating = tokio::spawn(async move { other.create_container(request).await });
        let has = |pid: &str, file: &str, text: &str| {
            let read = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read.split(|byte| matches!(byte, 0 | b'\n')).any(|part| part == text.as_bytes())
        };
        let is_meant = |pid: &str| match name {
            "" => logs_below(pid, &directory) && has(pid, "cmdline", "-c"),
            name => has(pid, "comm", name) && has(pid, "environ", &variable),
        };
        // No pause: it may take less than one.
        while !creating.is_finished() && !entries(Path::new("/proc")).iter().any(|pid| is_meant(pid)) {}
        let log = directory.join("log.json");
        let is_runtime = |pid: &str| has(pid, "cmdline", log.to_str().unwrap());
        let is_criu = |pid: &str| has(pid, "comm", "criu") && logs_below(pid, &directory);
        let is_maker = |pid: &str| name.is_empty() && (is_runtime(pid) || is_criu(pid));
        let is_shim = |pid: &str| {
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)
                && has(pid, "comm", "containerd-shim")
        };
        for pid in entries(Path::new("/proc")).iter().filter(|pid| is_maker(pid) || is_shim(pid)) {
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        match creating.await.unwrap() {
            Err(status) => {
                refused::<()>(Err(status), Code::Unknown, &["shim"]);
            }
            // It was done by then.
            Ok(_) => assert_eq!(watch.exit("c", "init").await, 137),
        }
        assert!(state(&mut client).await.is_empty());
        eventually("what was being restored has gone", || {
            let is_left = |pid: &String| has(pid, "environ", &variable) || logs_below(pid, &directory);
            !entries(Path::new("/proc")).iter().any(is_left)
        });
    }
    client.create_container(writing("c", &bundle, "one", &output)).await.unwrap();
    goes_on(&output);
    kill(&mut client, "c").await;
    host.finish();
}

/// Runs `ctr` and returns what it says on stdout; on stderr if it fails.
fn ctr(host: &Host, arguments: &[&str]) -> Result<String, String> {
    let output = host.ctr(arguments).current_dir(host.path()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test]
async fn ctr_makes_lists_and_removes_them_and_says_what_works_here() {
    if !has_criu() {
        return;
    }
    let host = Host::new().await;
    let bundle = counter(&host);
    let path = bundle.write();
    ctr(&host, &["containers", "start", "c", &path]).unwrap();
    let made = ctr(&host, &["checkpoints", "create", "c", "one"]).unwrap();
    assert!(made.starts_with("one: ") && made.contains("KiB, frozen for ") && made.contains(" ms in all"), "{made}");
    let made = ctr(&host, &["checkpoints", "create", "c", "two", "--exit", "--tcp", "--json"]).unwrap();
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert!(made["bytes"].as_u64().unwrap() > 1000 && made["frozenMs"].as_f64().unwrap() > 0.0, "{made}");
    let said = ctr(&host, &["checkpoints", "c"]).unwrap_err();
    assert!(said.contains("container not found"), "{said}");
    let directory = format!("{path}/checkpoints");
    let table = ctr(&host, &["checkpoints", "list", "c", "--checkpoint-dir", &directory]).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "TCP", "UNIX", "SOCKETS", "SHELL"]);
    assert_eq!(rows[1..], [["one", "false", "false", "false"], ["two", "true", "false", "false"]]);
    ctr(&host, &["containers", "start", "--checkpoint", "two", "c", &path]).unwrap();
    ctr(&host, &["checkpoints", "delete", "c", "one"]).unwrap();
    let table = ctr(&host, &["checkpoints", "c"]).unwrap();
    assert!(!table.contains("one") && table.contains("two"), "{table}");
    let said = ctr(&host, &["checkpoints", "check", "--runtime", &tests::runtime()]).unwrap();
    for what in ["criu", "dump", "restore", "tcp", "lazy pages", "pre-dump"] {
        assert!(said.lines().any(|line| line.starts_with(what)), "{said}");
    }
    let mut client = host.client().await;
    kill(&mut client, "c").await;
    host.finish();
}

/// An overlay over a root file system, in a bundle.
struct Mounted(PathBuf);

impl Mounted {
    fn new(bundle: &mut Bundle, lower: &Path) -> Mounted {
        let path = bundle.path().to_path_buf();
        for name in ["upper", "work", "rootfs"] {
            std::fs::create_dir_all(path.join(name)).unwrap();
        }
        let (lower, path_shown) = (lower.display(), path.display());
        let options = format!("lowerdir={lower},upperdir={path_shown}/upper,workdir={path_shown}/work");
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("overlay", path.join("rootfs"), "overlay", flags, Some(options.as_c_str())).unwrap();
        bundle.config["root"] = serde_json::json!({"path": "rootfs", "readonly": false});
        Mounted(path.join("rootfs"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_counter_goes_on_with_another_daemon() {
    if !has_criu() {
        return;
    }
    let (here, there) = (Host::new().await, elsewhere().await);
    let mut bundle =
        here.bundle(&["sh", "-c", "rm /etc/issue; i=0; while :; do echo $i >> /numbers; i=$((i+1)); sleep 0.05; done"]);
    // What both machines have.
    let base = here.path().join("base");
    let copied = Command::new("cp").arg("-a").arg(tests::rootfs()).arg(&base).status().unwrap();
    assert!(copied.success());
    std::fs::write(base.join("etc/issue"), "of the base").unwrap();
    let mounted = Mounted::new(&mut bundle, &base);
    let path = bundle.write();
    ctr(&here, &["containers", "start", "c", &path]).unwrap();
    let numbers_here = mounted.0.join("numbers");
    eventually("it counts", || numbers_here.exists());
    goes_on(&numbers_here);
    ctr(&here, &["checkpoints", "create", "--exit", "c", "moving"]).unwrap();
    let before = last(&numbers_here);
    let said = ctr(&here, &["checkpoints", "export", "c", "moving", "moving.tar.zst"]).unwrap_err();
    assert!(said.contains("--bundle"), "{said}");
    ctr(&here, &["checkpoints", "export", "--bundle", &path, "c", "moving", "moving.tar.zst"]).unwrap();
    let said = ctr(&here, &["checkpoints", "export", "--bundle", &path, "c", "moving", "moving.tar.zst"]).unwrap_err();
    assert!(said.contains("moving.tar.zst") && said.contains("exists"), "{said}");
    let file = here.join("moving.tar.zst");
    let target = there.join("bundle");
    let said = ctr(&there, &["checkpoints", "import", &file, "--bundle", &target, "--mount"]).unwrap();
    assert!(said.contains("ctr containers start --checkpoint moving c"), "{said}");
    let imported = Mounted(Path::new(&target).join("rootfs"));
    assert!(
        base.join("etc/issue").exists() && !imported.0.join("etc/issue").exists(),
        "what was removed stays removed"
    );
    // It runs in the control group of its own config, which is the other host's.
    ctr(&there, &["containers", "start", "--checkpoint", "moving", "c", &target]).unwrap();
    let numbers_there = imported.0.join("numbers");
    eventually("the counter goes on", || last(&numbers_there) > before + 3);
    let all = numbers(&numbers_there);
    assert_eq!(all, (0..all.len() as u64).collect::<Vec<_>>());
    let mut client = there.client().await;
    kill(&mut client, "c").await;
    let said = ctr(&there, &["checkpoints", "import", &file, "--bundle", &target]).unwrap_err();
    assert!(said.contains("exists") || said.contains("not empty"), "nothing is replaced: {said}");
    drop((mounted, imported));
    there.finish();
    here.finish();
}

#[tokio::test]
async fn a_whole_root_file_system_goes_along_if_that_is_asked_for() {
    if !has_criu() {
        return;
    }
    let (here, there) = (Host::new().await, elsewhere().await);
    let mut bundle = here.bundle(&["sh", "-c", "i=0; while :; do echo $i >> /numbers; i=$((i+1)); sleep 0.05; done"]);
    // A plain directory, which the other machine does not have.
    let root = bundle.path().join("rootfs");
    std::fs::create_dir_all(bundle.path()).unwrap();
    assert!(Command::new("cp").arg("-a").arg(tests::rootfs()).arg(&root).status().unwrap().success());
    bundle.config["root"] = serde_json::json!({"path": "rootfs", "readonly": false});
    let path = bundle.write();
    ctr(&here, &["containers", "start", "c", &path]).unwrap();
    let numbers_here = root.join("numbers");
    eventually("it counts", || numbers_here.exists());
    goes_on(&numbers_here);
    ctr(&here, &["checkpoints", "create", "--exit", "c", "moving"]).unwrap();
    let before = last(&numbers_here);
    ctr(&here, &["checkpoints", "export", "--rootfs", "--bundle", &path, "c", "moving", "whole.tar.zst"]).unwrap();
    let (file, target) = (here.join("whole.tar.zst"), there.join("bundle"));
    ctr(&there, &["checkpoints", "import", &file, "--bundle", &target]).unwrap();
    let numbers_there = Path::new(&target).join("rootfs/numbers");
    assert_eq!(last(&numbers_there), before);
    std::fs::remove_dir_all(&root).unwrap();
    ctr(&there, &["containers", "start", "--checkpoint", "moving", "c", &target]).unwrap();
    eventually("the counter goes on", || last(&numbers_there) > before + 3);
    let all = numbers(&numbers_there);
    assert_eq!(all, (0..all.len() as u64).collect::<Vec<_>>());
    let mut client = there.client().await;
    kill(&mut client, "c").await;
    there.finish();
    here.finish();
}

#[tokio::test]
async fn progress_is_shown_on_a_terminal() {
    if !has_criu() {
        return;
    }
    // As with a container that has much memory.
    const LONG: &str = r#"case " $* " in *" checkpoint "*.one.*) sleep 2 ;; esac; exec $RUNTIME "$@""#;
    let host = Host::with(Options { fake_runtime: Some(LONG), ..Options::default() }).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let command = format!("{} --address {} checkpoints create c one", tests::bin("ctr").display(), host.address());
    let terminal = ["--quiet", "--return", "--command", &command, "/dev/null"];
    let shown = Command::new("script").args(terminal).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success(), "{text}");
    assert!(text.contains(" written, ") && text.contains("frozen for"), "{text:?}");
    // Nobody looks: nothing but the result.
    let plain = ctr(&host, &["checkpoints", "create", "c", "two"]).unwrap();
    assert!(!plain.contains(" written, ") && plain.lines().count() == 1, "{plain}");
    kill(&mut client, "c").await;
    host.finish();
}

/// A daemon in a network namespace of its own.
async fn elsewhere() -> Host {
    // CRIU wants to know what the loopback interface can do.
    let script = "ip link set lo up && exec \"$@\"";
    let wrapper = ["unshare", "--net", "sh", "-c", script, "sh"].map(String::from).to_vec();
    Host::with(Options { wrapper, ..Options::default() }).await
}

#[tokio::test]
async fn a_container_with_a_user_namespace_goes_on() {
    if !has_criu() {
        return;
    }
    let host = Host::new().await;
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    let mut bundle = counter(&host);
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(serde_json::json!({"type": "user"}));
    let mapping = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    bundle.config["linux"]["uidMappings"] = mapping.clone();
    bundle.config["linux"]["gidMappings"] = mapping;
    // The mapped root must be able to walk to the root file system.
    std::fs::set_permissions(host.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (bundle, output) = (bundle.write(), host.path().join("numbers"));
    client.create_container(writing("c", &bundle, "", &output)).await.unwrap();
    goes_on(&output);
    make(&mut client, "c", exiting("one")).await.unwrap();
    assert_eq!(watch.exit("c", "init").await, 137);
    let last_before = last(&output);
    client.create_container(writing("c", &bundle, "one", &output)).await.unwrap();
    goes_on(&output);
    assert!(numbers(&output).contains(&(last_before + 1)));
    // Other users than the mapped root are kept out.
    let images = Path::new(&bundle).join("checkpoints/one");
    let mode = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        let metadata = path.metadata().unwrap();
        (metadata.mode() & 0o777, metadata.uid(), metadata.gid())
    };
    assert_eq!(mode(&images), (0o710, 0, 100_000));
    assert_eq!(mode(&images.join("config.json")), (0o640, 0, 100_000));
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn added_process_that_is_killed_during_a_checkpoint_takes_nothing_along() {
    if !has_criu() {
        return;
    }
    let host = Host::new().await;
    let mut client = host.client().await;
    let output = host.path().join("numbers");
    client.create_container(writing("c", &counter(&host).write(), "", &output)).await.unwrap();
    let mut random = tests::Random::from_environment();
    println!("{random}");
    let mut failed = 0;
    for round in 0..12 {
        client.add_process(process("c", "p", &["sleep", "1000"])).await.unwrap();
        let mut watch = Watch::new(&mut client).await;
        let mut caller = client.clone();
        let made = tokio::spawn(async move { make(&mut caller, "c", named("x")).await });
        // At any time of the checkpoint, which takes a fifth of a second.
        tokio::time::sleep(std::time::Duration::from_millis(random.below(200) as u64)).await;
        signal(&mut client, "c", "p", 9).await.unwrap();
        assert_eq!(watch.exit("c", "p").await, 137);
        match made.await.unwrap() {
            Ok(()) => remove(&mut client, "c", "x", "").await.unwrap(),
            Err(_) => failed += 1,
        }
        let status = state(&mut client).await.first().map(|container| container.status.clone());
        assert_eq!(status.as_deref(), Some("running"), "round {round}: {}", host.log());
        goes_on(&output);
    }
    println!("{failed} checkpoints failed");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn directory_of_checkpoints_can_hold_anything() {
    let host = Host::with(Options { flags: vec!["--start-timeout=2s".into()], ..Options::default() }).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let directory = host.path().join("anything");
    let at = |name: &str| directory.join(name).join("config.json");
    let names = ["zero", "fifo", "huge", "directory", "good"];
    names.iter().for_each(|name| std::fs::create_dir_all(directory.join(name)).unwrap());
    std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    std::fs::File::create(at("huge")).unwrap().set_len(1 << 40).unwrap();
    std::fs::create_dir(at("directory")).unwrap();
    std::fs::write(at("good"), "{}").unwrap();
    let text = directory.to_str().unwrap();
    let threads = || std::fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap().count();
    let before = threads();
    for _ in 0..5 {
        // What cannot be read is no checkpoint.
        assert_eq!(list(&mut client, "c", text).await.unwrap(), ["good"]);
        for name in names.iter().filter(|name| **name != "good") {
            let mut request = container("r", &host.bundle(&["true"]).write());
            (request.checkpoint, request.checkpoint_dir) = ((*name).into(), text.into());
            client.create_container(request).await.expect_err(name);
        }
    }
    let memory = tests::usage(host.pid()).rss;
    assert!(memory < 64 << 10, "{memory} kB");
    assert!(threads() <= before + 2, "no thread is held");
    kill(&mut client, "c").await;
    host.finish();
}
