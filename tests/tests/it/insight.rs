//! Metrics, profiles, dumps and logs.

use crate::support::*;
use std::collections::BTreeSet;
use std::io::{BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use tests::{Host, Options, eventually};

/// One request over a connection of its own; status and body.
fn http(port: u16, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

fn text(port: u16, path: &str) -> String {
    let (status, body) = http(port, "GET", path, "");
    assert_eq!(status, 200, "{path}");
    String::from_utf8(body).unwrap()
}

/// The port at which the daemon serves for a flag.
fn port(host: &Host, flag: &str) -> u16 {
    let mut port = None;
    eventually("it listens", || {
        let (log, said) = (host.log(), format!("serving for {flag}"));
        let line = log.lines().rfind(|line| line.contains(&said)).map(str::to_string);
        let digits = |line: String| line.split("address=127.0.0.1:").nth(1)?.split_whitespace().next()?.parse().ok();
        port = line.and_then(digits);
        port.is_some()
    });
    port.unwrap()
}

fn flags(flags: &[&str]) -> Options {
    Options { flags: flags.iter().map(|flag| (*flag).to_string()).collect(), ..Options::default() }
}

/// A container that has done everything that is timed.
async fn exercise(host: &Host) {
    let mut client = host.client().await;
    let mut watch = Watch::new(&mut client).await;
    sleeper(host, &mut client, "c").await;
    client.add_process(process("c", "p", &["true"])).await.unwrap();
    assert_eq!(watch.exit("c", "p").await, 0);
    client.stats(api::StatsRequest { id: "c".into() }).await.unwrap();
    kill(&mut client, "c").await;
}

const TIMERS: [&str; 6] = [
    "container-create-time",
    "container-start-time",
    "container-delete-time",
    "container-stats-time",
    "exec-process-time",
    "exit-process-time",
];

#[tokio::test]
async fn prometheus_accepts_the_metrics() {
    let host = Host::with(flags(&["--metrics-address", "127.0.0.1:0"])).await;
    let port = port(&host, "--metrics-address");
    exercise(&host).await;
    let page = text(port, "/metrics");
    let value = |line: &str| {
        let found = page.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' ')?.parse::<f64>().ok());
        found.unwrap_or_else(|| panic!("no {line} in {page}"))
    };
    for timer in TIMERS {
        let name = format!("containerd_{}", timer.replace('-', "_"));
        let count = if timer == "exit-process-time" { 2.0 } else { 1.0 };
        assert_eq!(value(&format!("{name}_seconds_count")), count, "{timer}");
        let (min, max) = (value(&format!("{name}_min_seconds")), value(&format!("{name}_max_seconds")));
        let median = value(&format!("{name}_seconds{{quantile=\"0.5\"}}"));
        assert!(0.0 < min && min <= max && max < 30.0 && median > 0.0, "{timer}: {min} {median} {max}");
        assert!(value(&format!("{name}_rate{{window=\"all\"}}")) > 0.0);
        assert!(value(&format!("{name}_stddev_seconds")) >= 0.0);
    }
    assert_eq!(value("containerd_containers"), 0.0);
    assert_eq!(value("containerd_events_total"), 4.0);
    assert!(value("containerd_tasks_total") > 5.0);
    assert!(value("containerd_fds") > 5.0 && value("containerd_epoll_fds") > 1.0);
    assert!(value("containerd_memory_used_bytes") > 1e6);
    assert!(value("containerd_runtime_tasks") > 0.0);
    assert_eq!(http(port, "GET", "/other", "").0, 404);
    assert_eq!(http(port, "DELETE", "/metrics", "").0, 405);
    let promtool = tests::bin("containerd").with_file_name("../tools/promtool");
    if promtool.exists() {
        let mut check = Command::new(&promtool).args(["check", "metrics"]).stdin(Stdio::piped()).spawn().unwrap();
        check.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        assert!(check.wait().unwrap().success(), "promtool finds nothing wrong");
    } else {
        println!("SKIPPED: there is no promtool (scripts/setup.sh fetches it)");
        assert!(std::env::var_os("CONTAINERD_TEST_STRICT").is_none(), "promtool is missing");
    }
    host.finish();
}

#[tokio::test]
async fn graphite_gets_each_metric() {
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = receiver.local_addr().unwrap().to_string();
    let host = Host::with(flags(&["--graphite-address", &address, "--metrics-interval", "1s"])).await;
    let receive = move || {
        let (stream, _) = receiver.accept().unwrap();
        let lines: Vec<String> = std::io::BufReader::new(stream).lines().map(Result::unwrap).collect();
        (receiver, lines)
    };
    let (receiver, _) = tokio::task::spawn_blocking(receive).await.unwrap();
    exercise(&host).await;
    let mut receiver = Some(receiver);
    let mut lines = Vec::new();
    // What was done may have been before or after the connection that comes next.
    while !lines.iter().any(|line: &String| line.starts_with("metrics.exit-process-time.count 2 ")) {
        let receiver_now = receiver.take().unwrap();
        let receive = move || {
            let (stream, _) = receiver_now.accept().unwrap();
            let lines: Vec<String> = std::io::BufReader::new(stream).lines().map(Result::unwrap).collect();
            (receiver_now, lines)
        };
        let (again, next) = tokio::task::spawn_blocking(receive).await.unwrap();
        (receiver, lines) = (Some(again), next);
    }
    let mut names = BTreeSet::new();
    for line in &lines {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, value, time] = fields[..] else { panic!("{line}") };
        assert!(value.parse::<f64>().unwrap() >= 0.0, "{line}");
        assert!(time.parse::<u64>().unwrap() > 1_700_000_000, "{line}");
        assert!(names.insert(name.to_string()), "{line} is told twice");
    }
    let of_timers = "count min max mean std-dev 50-percentile 75-percentile 95-percentile 99-percentile 999-percentile \
                     one-minute five-minute fifteen-minute mean-rate";
    let timers = TIMERS.iter().flat_map(|t| of_timers.split(' ').map(move |f| format!("metrics.{t}.{f}")));
    let counters = ["containers", "events", "event-subscribers", "tasks"].map(|name| format!("metrics.{name}.count"));
    let gauges = ["fds", "epoll-fds", "memory-used", "runtime-tasks"].map(|name| format!("metrics.{name}.value"));
    let expected: BTreeSet<String> = timers.chain(counters).chain(gauges).collect();
    assert_eq!(names, expected);
    // In nanoseconds: a runtime takes a millisecond at least, and far less than a minute.
    let mean = lines.iter().find(|line| line.starts_with("metrics.container-create-time.mean ")).unwrap();
    let mean: f64 = mean.split(' ').nth(1).unwrap().parse().unwrap();
    assert!((1e6..6e10).contains(&mean), "{mean}");
    host.finish();
}

#[tokio::test]
async fn metrics_are_printed_with_debug() {
    let host = Host::with(flags(&["--metrics-interval", "300ms"])).await;
    for name in
        TIMERS.iter().chain(&["containers", "events", "event-subscribers", "tasks", "fds", "epoll-fds", "memory-used"])
    {
        eventually("it is printed", || host.log().contains(&format!("name=\"{name}\"")));
    }
    host.finish();
}

#[tokio::test]
async fn a_profile_can_be_opened_and_there_is_one_at_a_time() {
    use pprof::protos::Message;
    let host = Host::with(flags(&["--pprof-address", "127.0.0.1:0"])).await;
    let port = port(&host, "--pprof-address");
    // Before the profile is over somebody else wants one.
    let profile = std::thread::spawn(move || http(port, "GET", "/debug/pprof/profile?seconds=3", ""));
    let mut client = host.client().await;
    let mut conflicts = 0;
    while !profile.is_finished() {
        // Something to be seen in it.
        for _ in 0..50 {
            state(&mut client).await;
        }
        conflicts += u32::from(http(port, "GET", "/debug/pprof/profile?seconds=1", "").0 == 409);
    }
    assert!(conflicts > 0);
    let (status, body) = profile.join().unwrap();
    assert_eq!(status, 200);
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut bytes).unwrap();
    let profile = pprof::protos::Profile::decode(&bytes[..]).unwrap();
    assert!(!profile.sample.is_empty() && profile.duration_nanos > 2_000_000_000, "{profile:?}");
    let names = profile.string_table.join("\n");
    assert!(names.contains("tokio::") || names.contains("h2::"), "{names}");
    for (path, status) in [
        ("/debug/pprof/profile?seconds=0", 400),
        ("/debug/pprof/profile?seconds=x", 400),
        ("/debug/pprof/profile?seconds=99999", 400),
        ("/nothing", 404),
        ("/", 200),
        ("/debug/pprof/", 200),
    ] {
        assert_eq!(http(port, "GET", path, "").0, status, "{path}");
    }
    // The profiler leaves nothing to those who are started later.
    sleeper(&host, &mut client, "c").await;
    let [shim] = tests::children_of(host.pid())[..] else { panic!("one shim") };
    let status = std::fs::read_to_string(format!("/proc/{shim}/status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_eq!(ignored & 1 << (27 - 1), 0, "SIGPROF: {ignored:x}");
    kill(&mut client, "c").await;
    host.finish();
}

#[tokio::test]
async fn the_log_level_can_be_seen_and_changed() {
    let host = Host::with(flags(&["--pprof-address", "127.0.0.1:0"])).await;
    let port = port(&host, "--pprof-address");
    let mut client = host.client().await;
    let answered = || host.log().matches("answered").count();
    assert_eq!(text(port, "/debug/log-level"), "debug\n");
    state(&mut client).await;
    eventually("it is logged", || answered() == 1);
    assert_eq!(http(port, "PUT", "/debug/log-level", "info\n"), (200, b"info\n".to_vec()));
    assert_eq!(text(port, "/debug/log-level"), "info\n");
    state(&mut client).await;
    for wrong in ["loud", "", "off", "3"] {
        assert_eq!(http(port, "PUT", "/debug/log-level", wrong).0, 400, "{wrong}");
    }
    assert_eq!(http(port, "PUT", "/debug/log-level", &"x".repeat(5000)).0, 400);
    assert_eq!(http(port, "PUT", "/debug/log-level", "debug").0, 200);
    state(&mut client).await;
    eventually("it is logged again", || answered() == 2);
    host.finish();
}

#[tokio::test]
async fn clients_that_never_read_block_no_scrape() {
    let host = Host::with(flags(&["--metrics-address", "127.0.0.1:0"])).await;
    let port = port(&host, "--metrics-address");
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    for round in 0..3 {
        let stalled: Vec<_> = (0..40 + round)
            .map(|_| {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.set_nonblocking(true).unwrap();
                let _ = stream.write(request.as_bytes());
                stream
            })
            .collect();
        assert!(text(port, "/metrics").contains("containerd_fds"));
        drop(stalled);
    }
    // Random bytes, and requests that are cut off anywhere.
    for n in 0..200_usize {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let noise: Vec<u8> = (0..n).map(|at| (at * 31 + n * 7) as u8).collect();
        let _ = stream.write_all(if n % 2 == 0 { &request.as_bytes()[..n] } else { &noise });
    }
    assert!(text(port, "/metrics").contains("containerd_fds"));
    host.finish();
}

#[tokio::test]
async fn web_pages_of_other_origins_change_nothing() {
    let host = Host::with(flags(&["--pprof-address", "127.0.0.1:0"])).await;
    let port = port(&host, "--pprof-address");
    let put = |head: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let text = format!("PUT /debug/log-level HTTP/1.1\r\n{head}Connection: close\r\nContent-Length: 4\r\n\r\ninfo");
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_string()
    };
    let own = format!("127.0.0.1:{port}");
    assert_eq!(put(&format!("Host: {own}\r\nOrigin: http://evil.example\r\n")), "403");
    assert_eq!(put(&format!("Host: {own}\r\nSec-Fetch-Site: cross-site\r\n")), "403");
    assert_eq!(put("Host: evil.example\r\nOrigin: http://evil.example\r\n"), "403");
    assert_eq!(text(port, "/debug/log-level"), "debug\n");
    assert_eq!(put(&format!("Host: {own}\r\nOrigin: http://{own}\r\nSec-Fetch-Site: same-origin\r\n")), "200");
    assert_eq!(text(port, "/debug/log-level"), "info\n");
    host.finish();
}

#[tokio::test]
async fn address_that_is_not_loopback_is_warned_of() {
    let host = Host::with(flags(&["--metrics-address", "0.0.0.0:0", "--pprof-address", "127.0.0.1:0"])).await;
    let log = host.log();
    assert!(log.contains("--metrics-address is not on loopback"), "{log}");
    assert!(!log.contains("--pprof-address is not on loopback"), "{log}");
    host.finish();
}

/// Containers whose id has `slow` in it hang in the runtime's `run`.
const HANGING: &str = r#"case " $* " in *" run "*slow*) exec sleep 100000;; esac; exec $RUNTIME "$@""#;

// Waiting for the dump blocks a thread.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_says_what_hangs() {
    let mut options = flags(&["--pprof-address", "127.0.0.1:0", "--start-timeout", "20s"]);
    options.fake_runtime = Some(HANGING);
    let host = Host::with(options).await;
    let port = port(&host, "--pprof-address");
    let mut client = host.client().await;
    sleeper(&host, &mut client, "quick").await;
    let bundle = host.bundle(&["true"]).write();
    let mut slow = host.client().await;
    let hanging = tokio::spawn(async move { slow.create_container(container("slow", &bundle)).await });
    let expected = [
        "task: CreateContainer container=slow, for ",
        "task: shim and runtime run container=slow process=init, for ",
        "container: quick is running, 1 pids; waits for the exit of init=",
        "event loop: ",
    ];
    eventually("the dump says so", || {
        let dump = text(port, "/debug/pprof/tasks");
        expected.iter().all(|text| dump.contains(text))
    });
    let pid = rustix::process::Pid::from_raw(host.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    eventually("the log says so", || expected.iter().all(|text| host.log().contains(&format!("dump: {text}"))));
    // The client goes; the call ends when its time is over, or with the runtime.
    hanging.abort();
    for shim in tests::children_of(host.pid()) {
        let command = std::fs::read(format!("/proc/{shim}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains("slow") {
            let pid = rustix::process::Pid::from_raw(shim as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
    kill(&mut client, "quick").await;
    eventually("nothing is left of it", || !host.state_dir().join("slow").exists());
    host.finish();
}

#[tokio::test]
async fn a_calls_span_names_the_container_and_tells_the_runtimes_time() {
    let host = Host::with(flags(&["--log-format", "json"])).await;
    let mut client = host.client().await;
    sleeper(&host, &mut client, "c").await;
    let none = client.add_process(process("none", "p", &["true"])).await;
    refused(none, tonic::Code::NotFound, &["not found"]);
    kill(&mut client, "c").await;
    let log = host.log();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let answered: Vec<serde_json::Value> = lines.filter(|line| line["message"] == "answered").collect();
    let of = |method: &str| answered.iter().find(|line| line["span"]["method"] == method).unwrap().clone();
    let create = of("CreateContainer");
    assert_eq!(create["span"]["container"], "c");
    let (ms, in_runtime) = (create["ms"].as_f64().unwrap(), create["runtime_ms"].as_f64().unwrap());
    assert!(in_runtime > 1.0 && in_runtime <= ms, "{create}");
    let add = of("AddProcess");
    assert_eq!((&add["span"]["container"], &add["span"]["process"]), (&"none".into(), &"p".into()));
    assert_eq!(add["code"], "NotFound");
    assert_eq!(add["runtime_ms"], 0.0);
    host.finish();
}

#[test]
fn under_systemd_the_journal_gets_the_log() {
    let host = Host::prepare(Options::default());
    let journal = UnixDatagram::bind(host.path().join("journal")).unwrap();
    journal.set_read_timeout(Some(tests::LIMIT)).unwrap();
    let (stderr, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let mut stderr = std::fs::File::from(stderr);
    let stat = rustix::fs::fstat(&writer).unwrap();
    // A /run of its own, with this journal in it.
    let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && touch /run/systemd/journal/socket && \
                  mount --bind \"$JOURNAL\" /run/systemd/journal/socket && exec \"$0\" \"$@\"";
    let ours = host.command();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(ours.get_program()).args(ours.get_args());
    command.env("JOURNAL", host.path().join("journal"));
    command.env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino));
    let mut daemon = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    drop(command);
    let mut told = String::new();
    // In the journal's own form, with lengths.
    while !told.contains("serving") {
        let mut datagram = vec![0; 64 << 10];
        let length = journal.recv(&mut datagram).expect("the daemon writes to the journal");
        told.push_str(&String::from_utf8_lossy(&datagram[..length]));
    }
    for field in ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "containerd", "LISTEN"] {
        assert!(told.contains(field), "{field} in {told:?}");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), rustix::process::Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(said, "", "nothing is said twice");
}
