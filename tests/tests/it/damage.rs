//! Files of the state directory are damaged while no daemon runs: the next daemon starts, touches no container because of
//! it, and tells of all that happens later.

use crate::support::*;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use tests::{Client, Host, Random};

/// How often a file is damaged; `CONTAINERD_TEST_DAMAGE` for more.
fn rounds() -> usize {
    std::env::var("CONTAINERD_TEST_DAMAGE").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(60)
}

fn is_alive(pid: u32) -> bool {
    sys::procfs::stat(pid).unwrap().is_some_and(|stat| !stat.is_dead())
}

/// A container can be made and ends, and its events arrive.
async fn events_arrive(host: &Host, client: &mut Client, id: &str) {
    let mut watch = Watch::new(client).await;
    start(client, id, &host.bundle(&["sh", "-c", "exit 4"]).write()).await;
    assert_eq!(short(&watch.next().await), format!("{id} start-container"));
    assert_eq!(short(&watch.next().await), format!("{id} exit init 4"));
}

/// Ends a container, and waits for its exit.
async fn end(client: &mut Client, id: &str) {
    let mut watch = Watch::new(client).await;
    signal(client, id, "init", 9).await.unwrap();
    assert_eq!(watch.exit(id, "init").await, 137);
}

/// A file of the state directory that was moved away, with damaged content in its place.
struct Damaged {
    path: PathBuf,
    original: PathBuf,
}

impl Damaged {
    fn new(host: &Host, path: &Path, random: &mut Random) -> Damaged {
        let original = host.path().join("original");
        std::fs::rename(path, &original).unwrap();
        let kind = std::fs::symlink_metadata(&original).unwrap().file_type();
        let content = if kind.is_file() { std::fs::read(&original).unwrap() } else { Vec::new() };
        let damaged = damage(content, random);
        println!(
            "{}: {}",
            path.display(),
            damaged.as_ref().map_or("removed".into(), |text| text.escape_ascii().to_string())
        );
        if let Some(content) = damaged {
            std::fs::write(path, content).unwrap();
        }
        Damaged { path: path.to_path_buf(), original }
    }

    /// Puts the file back, unless the daemon has repaired it.
    fn restore(self) {
        if self.path.parent().is_some_and(Path::is_dir) {
            std::fs::rename(&self.original, &self.path).unwrap();
        }
    }
}

/// What damage makes of a file's content; nothing if the file is removed.
fn damage(mut content: Vec<u8>, random: &mut Random) -> Option<Vec<u8>> {
    let length = content.len();
    match random.below(7) {
        0 => return None,
        1 => content.clear(),
        2 => content.truncate(random.below(length)),
        3 => content.extend((0..random.below(200)).map(|_| random.next_number() as u8)),
        4 => content = (0..random.below(500)).map(|_| random.next_number() as u8).collect(),
        5 => content.resize(length + 5000, 0),
        // A single bit is the hardest to notice.
        _ if length > 0 => content[random.below(length)] ^= 1 << random.below(8),
        _ => content.push(b'x'),
    }
    Some(content)
}

/// All files below a directory, FIFOs among them.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else if entry.file_name() != ".lock" {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn damaged_file_costs_no_container_and_no_later_event() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let mut random = Random::from_environment();
    println!("{random}");
    let mut pids = Vec::new();
    for id in ["a", "b", "c"] {
        pids.push(sleeper(&host, &mut client, id).await.processes[0].system_pid);
        let added = client.add_process(process(id, "p", &["sleep", "100000"])).await.unwrap();
        pids.push(added.into_inner().system_pid);
    }
    set_status(&mut client, "c", "paused").await.unwrap();
    for round in 0..rounds() {
        host.stop(Signal::KILL);
        let files = files(&host.state_dir());
        let path = random.of(&files).clone();
        let damaged = Damaged::new(&host, &path, &mut random);
        host.start().await;
        client = host.client().await;
        let containers = state(&mut client).await;
        let seen: Vec<&str> = containers.iter().map(|container| container.id.as_str()).collect();
        assert_eq!(seen, ["a", "b", "c"], "round {round}, {random}: {}", host.log());
        for container in &containers {
            let directory = host.state_dir().join(&container.id);
            let expected = if container.id == "c" { "paused" } else { "running" };
            let is_hit = path.starts_with(&directory);
            assert!(container.status == expected || is_hit, "round {round}, {random}: {container:?}\n{}", host.log());
        }
        for pid in &pids {
            assert!(is_alive(*pid), "round {round}, {random}: {pid} was killed\n{}", host.log());
        }
        events_arrive(&host, &mut client, &format!("probe{round}")).await;
        // What the daemon has written since is newer than what was there.
        if path.parent() != Some(&host.state_dir()) {
            host.stop(Signal::KILL);
            damaged.restore();
            host.start().await;
            client = host.client().await;
        }
    }
    for id in ["a", "b", "c"] {
        end(&mut client, id).await;
    }
    host.finish();
}

#[tokio::test]
async fn container_outlives_a_lost_journal_and_its_start_is_recorded_again() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let journal = host.state_dir().join("events.log");
    let pid = sleeper(&host, &mut client, "c").await.processes[0].system_pid;
    client.add_process(process("c", "p", &["sleep", "100000"])).await.unwrap();
    let harm: [&dyn Fn(); 3] =
        [&|| std::fs::write(&journal, "").unwrap(), &|| std::fs::remove_file(&journal).unwrap(), &|| {
            // One unreadable line.
            let text = std::fs::read_to_string(&journal).unwrap();
            std::fs::write(&journal, text.replacen("start-container", "start-conta1ner", 1)).unwrap();
        }];
    for harm in harm {
        host.stop(Signal::KILL);
        harm();
        host.start().await;
        client = host.client().await;
        assert_eq!(state(&mut client).await[0].status, "running");
        assert!(is_alive(pid));
        let told: Vec<String> = stored(&mut client).await.iter().map(short).collect();
        for start in ["c start-container", "c start-process p"] {
            assert_eq!(told.iter().filter(|event| *event == start).count(), 1, "{told:?}");
        }
    }
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn implausible_year_in_the_journal_does_not_hold_later_events_back() {
    let mut host = Host::new().await;
    let mut client = host.client().await;
    let journal = host.state_dir().join("events.log");
    events_arrive(&host, &mut client, "a").await;
    host.stop(Signal::KILL);
    // As an older daemon wrote it, without a checksum, and with one flipped bit in the year.
    let text = std::fs::read_to_string(&journal).unwrap();
    let line = text.lines().next().unwrap();
    let (body, _) = line.split_once(",\"crc\"").unwrap();
    let year = body.find("\"timestamp\":\"2").unwrap() + "\"timestamp\":\"".len();
    let mut old = format!("{body}}}\n").into_bytes();
    old[year] ^= 4;
    std::fs::write(&journal, &old).unwrap();
    host.start().await;
    client = host.client().await;
    for id in ["b", "c", "d"] {
        events_arrive(&host, &mut client, id).await;
    }
    let events = stored(&mut client).await;
    assert_eq!(events.len(), 7, "{events:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!(events.iter().all(|event| event.timestamp.unwrap().seconds <= now), "{events:?}");
    host.finish();
}

#[tokio::test]
async fn state_directory_of_another_program_is_refused_and_left_alone() {
    let mut host = Host::prepare(tests::Options::default());
    let theirs = host.state_dir().join("io.containerd.runtime.v2.task/default/web");
    std::fs::create_dir_all(&theirs).unwrap();
    std::fs::write(theirs.join("config.json"), "{}").unwrap();
    assert!(!host.try_start().await, "it must refuse");
    assert!(
        host.log().contains("io.containerd.runtime.v2.task") && host.log().contains("--state-dir"),
        "{}",
        host.log()
    );
    let names: Vec<_> = std::fs::read_dir(host.state_dir()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["io.containerd.runtime.v2.task"]);
    assert!(theirs.join("config.json").exists());
}
