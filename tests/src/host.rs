//! A daemon of one's own.

use api::api_client::ApiClient;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::bundle::Bundle;
use crate::fifo::Fifo;
use crate::leaks;
use crate::process::eventually;

/// A client of the API.
pub type Client = ApiClient<Channel>;

/// How a daemon is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Further flags.
    pub flags: Vec<String>,
    /// A script in place of the runtime, which `$RUNTIME` names.
    pub fake_runtime: Option<&'static str>,
    /// Leave `--debug` out.
    pub without_debug: bool,
    /// Environment variables.
    pub env: Vec<(&'static str, &'static str)>,
    /// Programs that can be killed at named steps, with [`Host::arm`].
    pub failpoints: bool,
    /// Programs of the host's own directory, where the test puts them.
    pub own_programs: bool,
    /// In front of the daemon's command line: a program that limits it, for example.
    pub wrapper: Vec<String>,
    /// The runtime, in place of the one that [`runtime`] names.
    pub runtime: Option<String>,
    /// Where its directory is made, in place of the system's directory for temporary files.
    pub parent: Option<PathBuf>,
}

/// A daemon with everything that belongs to it.
#[derive(Debug)]
pub struct Host {
    directory: tempfile::TempDir,
    cgroup: String,
    options: Options,
    daemon: Option<Child>,
    counter: AtomicU32,
    env: Vec<(String, String)>,
}

/// A built binary.
///
/// # Panics
/// When it has not been built.
pub fn bin(name: &str) -> PathBuf {
    let directory = std::env::var_os("CONTAINERD_BIN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"), PathBuf::from);
    let path = directory.join(name).canonicalize();
    path.unwrap_or_else(|e| panic!("{name} is not built ({}: {e}); `make test` builds it", directory.display()))
}

/// The runtime that the tests use: `CONTAINERD_TEST_RUNTIME`, or runc.
pub fn runtime() -> String {
    std::env::var("CONTAINERD_TEST_RUNTIME").unwrap_or_else(|_| "runc".into())
}

/// Where programs are looked for: the CRIU that `scripts/criu.sh` got comes before the system's.
///
/// # Panics
/// When the path has a colon in it.
pub fn path_with_criu() -> std::ffi::OsString {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/criu/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(own.canonicalize().into_iter().chain(std::env::split_paths(&path))).expect("no colons")
}

/// Whether containers can be checkpointed here. If not it is said, loudly.
///
/// # Panics
/// When a program that is there cannot be started.
pub fn has_criu() -> bool {
    let says = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).env("PATH", path_with_criu()).output();
        output
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let missing = match says("criu", &["--version"]) {
        None => "there is no CRIU",
        Some(version) if version.contains("Version: 3.") => "its CRIU is too old",
        Some(_) if !says(&runtime(), &["checkpoint", "--help"]).is_some_and(|help| help.contains("--image-path")) => {
            "its runtime was built without CRIU"
        }
        Some(_) => return true,
    };
    eprintln!("SKIPPED: nothing can be checkpointed on this machine: {missing}");
    false
}

/// Writes a program. Another process does it: a child that another test has just forked would have the file open for
/// writing for a moment, in which it cannot be run (execve(2), `ETXTBSY`).
///
/// # Panics
/// When it cannot.
pub fn write_program(path: &Path, text: &str) {
    use std::io::Write;
    let mut command = Command::new("sh");
    command.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(path).stdin(std::process::Stdio::piped());
    let mut writer = command.spawn().expect("sh starts");
    writer.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("writes");
    assert!(writer.wait().expect("is ours").success());
}

/// Has what is started from here on obey SIGHUP, which the starter of the tests may ignore, as nohup(1) does.
///
/// # Panics
/// Never: it is a signal.
pub fn obey_hangups() {
    sys::signal::restore_default(rustix::process::Signal::HUP.as_raw()).expect("a signal");
}

/// A client of whoever listens on a socket, which connects when it is used, and again when it has to.
pub fn client_at(socket: &str) -> Client {
    let channel = endpoint().connect_with_connector_lazy(connector(socket));
    ApiClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// What a thousand containers' state comes through at once, as `ctr` has it.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
}

fn connector(
    socket: &str,
) -> impl tower::Service<
    tonic::transport::Uri,
    Response = TokioIo<UnixStream>,
    Error = std::io::Error,
    Future = impl Future<Output = std::io::Result<TokioIo<UnixStream>>> + Send + use<>,
> + Send
+ use<> {
    let path = socket.to_string();
    tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    })
}

impl Host {
    /// Starts a daemon and waits until it serves.
    pub async fn new() -> Host {
        Host::with(Options::default()).await
    }

    /// The same, with options.
    pub async fn with(options: Options) -> Host {
        let mut host = Host::prepare(options);
        host.start().await;
        host
    }

    /// Everything but the daemon.
    ///
    /// # Panics
    /// When its directories cannot be made.
    pub fn prepare(options: Options) -> Host {
        let parent = options.parent.clone().unwrap_or_else(std::env::temp_dir);
        let directory = tempfile::Builder::new().prefix("ctd-").tempdir_in(parent).expect("makes a directory");
        let cgroup = directory.path().file_name().expect("has a name").to_string_lossy().replace('.', "-");
        for name in ["bundles", "fifos", "root"] {
            std::fs::create_dir(directory.path().join(name)).expect("makes a directory");
        }
        if let Some(script) = options.fake_runtime {
            let path = directory.path().join("fake-runtime");
            write_program(&path, &format!("#!/bin/sh\nRUNTIME={}\n{script}\n", runtime()));
        }
        Host { directory, cgroup, options, daemon: None, counter: AtomicU32::new(0), env: Vec::new() }
    }

    /// Sets a variable for the daemons to come.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.into(), value.into()));
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in its directory.
    ///
    /// # Panics
    /// Never: test paths are UTF-8.
    pub fn join(&self, name: &str) -> String {
        self.path().join(name).to_str().expect("test paths are UTF-8").to_string()
    }

    /// The daemon's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.path().join("state")
    }

    /// The daemon's address, as flags have it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.join("socket"))
    }

    /// The daemon's command line.
    ///
    /// # Panics
    /// When the log cannot be opened.
    pub fn command(&self) -> Command {
        let runtime = match self.options.fake_runtime {
            Some(_) => self.join("fake-runtime"),
            None => self.options.runtime.clone().unwrap_or_else(runtime),
        };
        let program = match (self.options.own_programs, self.options.failpoints) {
            (true, _) => self.path().join("containerd"),
            (false, true) => bin("../failpoints/containerd"),
            (false, false) => bin("containerd"),
        };
        let mut command = match self.options.wrapper.split_first() {
            Some((wrapper, arguments)) => {
                let mut command = Command::new(wrapper);
                command.args(arguments).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.env(failpoint::VARIABLE, self.join("failpoint")).env("PATH", path_with_criu());
        command.arg("--state-dir").arg(self.state_dir()).arg("--listen").arg(self.address());
        command.args(["--runtime", &runtime, &format!("--runtime-args=--root={}", self.join("root"))]);
        if !self.options.without_debug {
            command.arg("--debug");
        }
        command.args(&self.options.flags).envs(self.options.env.iter().copied()).envs(self.env.clone());
        let log = std::fs::File::options().append(true).create(true).open(self.path().join("log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("opens the log"));
        command
    }

    /// Starts the daemon and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(&mut self) {
        assert!(self.try_start().await, "the daemon does not serve: {}", self.log());
    }

    /// The same; false if it ended by itself before it served.
    ///
    /// # Panics
    /// When it neither serves nor ends.
    pub async fn try_start(&mut self) -> bool {
        assert!(self.daemon.is_none(), "one daemon at a time");
        self.daemon = Some(self.command().spawn().expect("containerd starts"));
        let deadline = Instant::now() + crate::LIMIT;
        while UnixStream::connect(self.path().join("socket")).await.is_err() {
            if self.has_died() {
                return false;
            }
            assert!(Instant::now() < deadline, "the daemon does not serve: {}", self.log());
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        true
    }

    /// Whether the daemon has ended by itself; then there is none any more.
    ///
    /// # Panics
    /// Never: it is our child.
    pub fn has_died(&mut self) -> bool {
        let ended = self.daemon.as_mut().is_none_or(|daemon| daemon.try_wait().expect("our child").is_some());
        if ended {
            self.daemon = None;
        }
        ended
    }

    /// Has the next program die that gets to `point`, after it has passed it some times.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn arm(&self, point: failpoint::Point, pass: usize) {
        assert!(self.options.failpoints, "a daemon that has failpoints");
        std::fs::write(self.path().join("failpoint"), format!("{} {pass}", point.name())).expect("arms");
    }

    /// Whether nobody has died where it was to.
    pub fn is_armed(&self) -> bool {
        self.path().join("failpoint").exists()
    }

    /// The daemon's pid.
    ///
    /// # Panics
    /// When there is none.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon").id()
    }

    /// Sends the daemon a signal and waits for its end.
    ///
    /// # Panics
    /// When there is none.
    pub fn stop(&mut self, signal: rustix::process::Signal) -> std::process::ExitStatus {
        let mut daemon = self.daemon.take().expect("a daemon");
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, signal).expect("our child");
        let mut status = None;
        eventually("the daemon has ended", || {
            status = daemon.try_wait().expect("our child");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// Kills the daemon and starts another one.
    pub async fn restart(&mut self, signal: rustix::process::Signal) {
        self.stop(signal);
        self.start().await;
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// Connects a client.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn client(&self) -> Client {
        ApiClient::new(self.channel().await).max_decoding_message_size(usize::MAX)
    }

    /// A client that connects when it is used, and again after each daemon.
    pub fn lazy_client(&self) -> Client {
        client_at(&self.join("socket"))
    }

    /// Connects a client whose streams take at most so many bytes before they are read.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn client_with_window(&self, bytes: u32) -> Client {
        let endpoint = Endpoint::from_static("http://localhost").initial_stream_window_size(bytes);
        ApiClient::new(self.connect(endpoint).await)
    }

    /// Connects.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn channel(&self) -> Channel {
        self.connect(endpoint()).await
    }

    async fn connect(&self, endpoint: Endpoint) -> Channel {
        endpoint.connect_with_connector(connector(&self.join("socket"))).await.expect("connects")
    }

    /// A name that nothing else on this host has.
    pub fn name(&self, prefix: &str) -> String {
        format!("{prefix}-{}", self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// A bundle that runs `args`; not yet written.
    pub fn bundle(&self, args: &[&str]) -> Bundle {
        Bundle::new(self.path().join("bundles").join(self.name("bundle")), &self.cgroup, args)
    }

    /// A FIFO.
    pub fn fifo(&self) -> Fifo {
        Fifo::new(self.path().join("fifos").join(self.name("fifo")))
    }

    /// `ctr` with this daemon's address.
    pub fn ctr(&self, arguments: &[&str]) -> Command {
        obey_hangups();
        let mut command = Command::new(bin("ctr"));
        command.arg("--address").arg(self.address()).args(arguments).env("PATH", path_with_criu());
        command
    }

    /// Stops the daemon, and checks that it leaves nothing behind.
    ///
    /// # Panics
    /// When it does.
    pub fn finish(mut self) {
        let status = self.stop(rustix::process::Signal::TERM);
        assert!(status.success(), "the daemon ends cleanly: {status}\n{}", self.log());
        let log = self.log();
        assert!(!log.contains("panicked"), "nothing panics:\n{log}");
        // The kernel takes a moment to take a dead process out of its lists.
        let mut left = Vec::new();
        let deadline = Instant::now() + std::time::Duration::from_secs(10);
        while Instant::now() < deadline {
            left = leaks::find(self.path(), &self.cgroup);
            if left.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(left.is_empty(), "left behind: {left:#?}\n{log}");
        leaks::remove_cgroups(&self.cgroup);
    }
}

impl Drop for Host {
    /// After a failure: the daemon and what it started go, so that other tests are not disturbed.
    fn drop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            // Nothing that was started is left; the daemon may have been another one than this host's.
            return leaks::remove_cgroups(&self.cgroup);
        };
        if std::thread::panicking() {
            eprintln!("--- log of the daemon in {} ---\n{}", self.path().display(), self.log());
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
        // First of all: to remove what is mounted would be to remove what belongs to other tests.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(self.path())) {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        for container in std::fs::read_dir(self.path().join("root")).into_iter().flatten().flatten() {
            let root = format!("--root={}", self.join("root"));
            let runtime = self.options.runtime.clone().unwrap_or_else(runtime);
            let _ = Command::new(runtime).args([&root, "delete", "--force"]).arg(container.file_name()).status();
        }
        leaks::remove_cgroups(&self.cgroup);
    }
}
