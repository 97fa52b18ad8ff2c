//! The supervisor as a library, without the gRPC API.

use std::time::Duration;
use supervisor::{Config, CreateContainer, CreateProcess, Error, EventKind, ProcessSpec, Supervisor};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_that_is_prepared_and_not_started_leaves_nothing() {
    let host = Host::prepare(Options::default());
    let supervisor = Supervisor::open(config(&host)).unwrap();
    supervisor.recover().await.unwrap();
    supervisor.serve();
    let mut events = supervisor.subscribe(None, None, false);
    let bundle = host.bundle(&["sleep", "1000"]).write();
    let request = CreateContainer { id: "c".into(), bundle, ..CreateContainer::default() };
    supervisor.run(request, deadline()).await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().kind, EventKind::StartContainer);
    let spec = ProcessSpec { args: vec!["sleep".into(), "1000".into()], ..ProcessSpec::default() };
    let request = CreateProcess { id: "c".into(), name: "p".into(), spec, ..CreateProcess::default() };
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
    assert!(matches!(supervisor.state(Some("c")).await, Err(Error::ContainerNotFound { .. })));
    assert!(!host.state_dir().join("c").exists());
}
