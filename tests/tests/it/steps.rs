//! The supervisor as a library, with another policy than the gRPC API's: create, start, kill and delete by hand.

use std::time::Duration;
use supervisor::{Config, CreateContainer, CreateProcess, Error, EventKind, OnExit, ProcessSpec, State, Supervisor};
use tests::{Host, Options};
use tokio::time::Instant;

fn config(host: &Host) -> Config {
    Config {
        state_dir: host.state_dir(),
        runtime: tests::runtime(),
        runtime_args: vec![format!("--root={}", host.join("root"))],
        shim: tests::bin("containerd-shim").to_str().unwrap().into(),
        call_timeout: Duration::from_secs(30),
        retain: 100,
        replaces: false,
    }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn keeping(id: &str, bundle: &str) -> CreateContainer {
    CreateContainer { id: id.into(), bundle: bundle.into(), on_exit: OnExit::Keep, ..CreateContainer::default() }
}

async fn state_of(supervisor: &Supervisor, id: &str) -> State {
    supervisor.state(Some(id)).await.unwrap()[0].state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_by_itself() {
    let host = Host::prepare(Options::default());
    let supervisor = Supervisor::open(config(&host)).unwrap();
    supervisor.recover().await.unwrap();
    let mut events = supervisor.subscribe(None, None, false);
    let bundle = host.bundle(&["sleep", "1000"]).write();
    supervisor.create(keeping("c", &bundle), deadline()).await.unwrap();
    assert_eq!(supervisor.state(Some("c")).await.unwrap()[0].state, State::Created);
    let spec = ProcessSpec { args: vec!["sleep".into(), "1000".into()], ..ProcessSpec::default() };
    let request = CreateProcess { id: "c".into(), name: "p".into(), spec, ..CreateProcess::default() };
    let early = supervisor.create_process(request.clone(), deadline()).await;
    assert!(matches!(early, Err(Error::State { state: "created", .. })));
    supervisor.start("c", deadline()).await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().kind, EventKind::StartContainer);
    assert!(matches!(supervisor.start("c", deadline()).await, Err(Error::State { state: "running", .. })));
    assert!(matches!(supervisor.delete("c").await, Err(Error::State { state: "running", .. })));
    // A process that is created and not started leaves nothing.
    drop(supervisor.create_process(request.clone(), deadline()).await.unwrap());
    assert!(!host.state_dir().join("c/p").exists());
    let created = supervisor.create_process(request.clone(), deadline()).await.unwrap();
    assert!(matches!(supervisor.create_process(request, deadline()).await, Err(Error::ProcessExists { .. })));
    supervisor.start_process(created, deadline()).await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().kind, EventKind::StartProcess);
    supervisor.kill("c", "init", 9).unwrap();
    for name in ["p", "init"] {
        let exit = events.next().await.unwrap().unwrap();
        assert_eq!((exit.kind, exit.pid.as_str(), exit.status), (EventKind::Exit, name, 137));
    }
    assert_eq!(state_of(&supervisor, "c").await, State::Stopped);
    supervisor.delete("c").await.unwrap();
    assert!(matches!(supervisor.state(Some("c")).await, Err(Error::ContainerNotFound { .. })));
    assert!(!host.state_dir().join("c").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_was_never_started_can_be_deleted() {
    let host = Host::prepare(Options::default());
    let supervisor = Supervisor::open(config(&host)).unwrap();
    supervisor.recover().await.unwrap();
    let bundle = host.bundle(&["sleep", "1000"]).write();
    supervisor.create(keeping("c", &bundle), deadline()).await.unwrap();
    supervisor.delete("c").await.unwrap();
    assert!(!host.state_dir().join("c").exists());
    assert_eq!(std::fs::read_dir(host.path().join("root")).unwrap().count(), 0);
    let stored = supervisor.subscribe(Some(supervisor::Timestamp(0)), None, true).next().await.unwrap();
    assert!(stored.is_none(), "nobody has been told of it");
}
