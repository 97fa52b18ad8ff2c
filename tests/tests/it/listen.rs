//! Where the daemon listens beside a unix socket of its own: TCP with TLS, and sockets that it is passed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tests::{Host, Options, bin, eventually};

/// Passes what it has as stdin on as descriptor 3, as systemd does.
const ACTIVATE: &str = r#"exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api; exec "$0" "$@""#;

/// A daemon that is stopped when this is dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Certificates, as files.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Certificates {
        let files = Certificates(tempfile::tempdir().unwrap());
        for authority in ["ours", "others"] {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.distinguished_name.push(rcgen::DnType::CommonName, authority);
            let key = rcgen::KeyPair::generate().unwrap();
            files.write(&format!("{authority}.ca"), &params.self_signed(&key).unwrap().pem());
            let issuer = rcgen::Issuer::new(params, key);
            for name in ["daemon", "client"] {
                let names = vec!["localhost".to_string(), "127.0.0.1".to_string()];
                let params = rcgen::CertificateParams::new(names).unwrap();
                let key = rcgen::KeyPair::generate().unwrap();
                files.write(&format!("{authority}.{name}.cert"), &params.signed_by(&key, &issuer).unwrap().pem());
                files.write(&format!("{authority}.{name}.key"), &key.serialize_pem());
            }
        }
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn flags(&self, command: &mut Command, cert: Option<&str>, ca: &str) {
        command.arg("--tls-ca").arg(self.path(&format!("{ca}.ca")));
        if let Some(cert) = cert {
            command.arg("--tls-cert").arg(self.path(&format!("{cert}.cert")));
            command.arg("--tls-key").arg(self.path(&format!("{cert}.key")));
        }
    }
}

/// Starts a daemon on a TCP port that the kernel chooses; the port.
fn listen_on_tcp(host: &Host, command: &mut Command) -> (Daemon, u16) {
    let daemon = Daemon(command.args(["--listen", "tcp://127.0.0.1:0"]).spawn().unwrap());
    let mut port = None;
    eventually("the daemon listens", || {
        let log = host.log();
        let address =
            log.lines().filter(|line| line.contains("listening")).find_map(|line| line.split("address=").nth(1));
        port = address.and_then(|address| address.split_whitespace().next()?.rsplit(':').next()?.parse().ok());
        port.is_some()
    });
    (daemon, port.unwrap())
}

fn ctr(address: &str, flags: impl FnOnce(&mut Command)) -> (Option<i32>, String) {
    let mut command = Command::new(bin("ctr"));
    command.args(["--address", address, "--conn-timeout", "10s"]);
    flags(&mut command);
    let output = command.arg("version").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn over_tcp_only_clients_with_a_certificate_of_the_authority_are_served() {
    let host = Host::prepare(Options::default());
    let certificates = Certificates::new();
    let mut command = host.command();
    certificates.flags(&mut command, Some("ours.daemon"), "ours");
    let (_daemon, port) = listen_on_tcp(&host, &mut command);
    for name in ["localhost", "127.0.0.1"] {
        let address = format!("tcp://{name}:{port}");
        let (code, said) = ctr(&address, |command| certificates.flags(command, Some("ours.client"), "ours"));
        assert_eq!(code, Some(0), "{said}");
        assert!(said.starts_with("containerd "), "{said}");
    }
    let address = format!("tcp://localhost:{port}");
    for (what, cert, ca) in [
        ("no certificate", None, "ours"),
        ("one of another authority", Some("others.client"), "ours"),
        ("another authority than the daemon's", Some("ours.client"), "others"),
    ] {
        let (code, said) = ctr(&address, |command| certificates.flags(command, cert, ca));
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(said.starts_with("[ctr] "), "{what}: {said}");
    }
    let (code, said) = ctr(&address, |_| {});
    assert_eq!(code, Some(1), "without TLS: {said}");
    // One that says nothing delays nobody.
    let silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (code, said) = ctr(&address, |command| certificates.flags(command, Some("ours.client"), "ours"));
    assert_eq!(code, Some(0), "{said}");
    drop(silent);
    // One that speaks something else is told nothing of use.
    let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(answer.len() < 64, "{answer:?}");
    let log = host.log();
    assert!(log.contains("refused a client"), "{log}");
}

#[test]
fn clients_that_stall_in_the_handshake_lock_out_nobody() {
    let host = Host::prepare(Options::default());
    let certificates = Certificates::new();
    let mut command = host.command();
    certificates.flags(&mut command, Some("ours.daemon"), "ours");
    let (_daemon, port) = listen_on_tcp(&host, &mut command);
    let address = format!("tcp://localhost:{port}");
    for _ in 0..3 {
        // Some say nothing, others begin with a client's hello that is never finished.
        let stalled: Vec<_> = (0..300)
            .map(|n| {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                if n % 2 == 0 {
                    let _ = stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
                }
                stream
            })
            .collect();
        let (code, said) = ctr(&address, |command| {
            certificates.flags(command, Some("ours.client"), "ours");
            command.args(["--conn-timeout", "4s"]);
        });
        assert_eq!(code, Some(0), "{said}");
        drop(stalled);
    }
    let logged = host.log().matches("refused a client: ").count();
    assert!((1..=20).contains(&logged), "{logged} lines for 900 clients");
}

#[test]
fn tcp_without_tls_is_for_loopback_and_must_be_asked_for() {
    let host = Host::prepare(Options::default());
    let certificates = Certificates::new();
    let refused = |arguments: &[&str]| {
        let output = host.command().args(arguments).stderr(Stdio::piped()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused(&["--listen", "tcp://127.0.0.1:0"]);
    assert!(said.contains("--tls-cert") && said.contains("--insecure-tcp"), "{said}");
    let said = refused(&["--listen", "tcp://0.0.0.0:0", "--insecure-tcp"]);
    assert!(said.contains("loopback only"), "{said}");
    let ca = certificates.path("ours.ca");
    let said = refused(&["--listen", "tcp://127.0.0.1:0", "--tls-ca", ca.to_str().unwrap(), "--insecure-tcp"]);
    assert!(said.contains("TLS also needs --tls-cert and --tls-key"), "{said}");
    let none = host.join("none");
    let cert = certificates.path("ours.daemon.cert");
    let (ca, cert) = (ca.to_str().unwrap(), cert.to_str().unwrap());
    let said = refused(&["--listen", "tcp://127.0.0.1:0", "--tls-ca", ca, "--tls-cert", cert, "--tls-key", &none]);
    assert!(said.contains("--tls-key") && said.contains("none"), "{said}");
    assert!(refused(&["--listen", "tcp://"]).contains("tcp://host:port"));
    assert!(refused(&["--listen", "tcp://nowhere"]).contains("cannot listen at tcp://nowhere"));

    let (_daemon, port) = listen_on_tcp(&host, host.command().arg("--insecure-tcp"));
    let (code, said) = ctr(&format!("tcp://127.0.0.1:{port}"), |_| {});
    assert_eq!(code, Some(0), "{said}");
}

/// A daemon that is passed `socket`.
fn activate(host: &Host, socket: OwnedFd, arguments: &[&str]) -> Command {
    let ours = host.command();
    let log = std::fs::File::options().append(true).create(true).open(host.path().join("log")).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", ACTIVATE]).arg(ours.get_program()).args(ours.get_args()).args(arguments);
    command.stdin(socket).stdout(Stdio::null()).stderr(log);
    command
}

fn answers(path: &Path) {
    let (code, said) = ctr(&format!("unix://{}", path.display()), |_| {});
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn sockets_of_a_service_manager_are_served_and_stay() {
    let host = Host::prepare(Options::default());
    let path = host.path().join("activated");
    let listener = UnixListener::bind(&path).unwrap();
    for address in ["fd://", "fd://*", "fd://3", "fd://api"] {
        let socket = listener.try_clone().unwrap().into();
        let daemon = Daemon(activate(&host, socket, &["--listen", address]).spawn().unwrap());
        // The socket is there before the daemon is, and what comes meanwhile waits in it.
        answers(&path);
        drop(daemon);
        assert!(path.exists(), "it is not the daemon's");
    }
    let refused = |arguments: &[&str], socket: OwnedFd| {
        let output = activate(&host, socket, arguments).stderr(Stdio::piped()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let socket = || OwnedFd::from(listener.try_clone().unwrap());
    assert!(refused(&["--listen", "fd://other"], socket()).contains("none of the sockets"));
    let connected = std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert!(refused(&["--listen", "fd://"], connected.into()).contains("not listening"));
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(refused(&["--listen", "fd://"], file.into()).contains("not a socket"));
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(refused(&["--listen", "fd://"], tcp.into()).contains("--tls-cert"));
    let none = host.command().args(["--listen", "fd://"]).stderr(Stdio::piped()).output().unwrap();
    assert!(String::from_utf8(none.stderr).unwrap().contains("no socket was passed"));
    let mut misnamed = Command::new("sh");
    misnamed.args(["-c", &ACTIVATE.replace("FDNAMES=api", "FDNAMES=api:more")]).arg(host.command().get_program());
    misnamed.args(host.command().get_args()).args(["--listen", "fd://"]);
    let misnamed = misnamed.stdin(socket()).output().unwrap();
    assert!(String::from_utf8(misnamed.stderr).unwrap().contains("invalid LISTEN_FDNAMES"), "two names for one socket");
}
