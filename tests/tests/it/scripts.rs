//! The scripts that get what building and testing take.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts")
}

/// Runs `apt.sh` with an `apt-get` that is a script of the test's; what that was called with is in `calls`.
fn apt(script: &str, arguments: &[&str]) -> (Output, String) {
    let directory = tempfile::tempdir().unwrap();
    let calls = directory.path().join("calls");
    let text = format!("#!/bin/sh\necho \"$*\" >>{0}\ncalls=$(wc -l <{0})\n{script}\n", calls.display());
    tests::write_program(&directory.path().join("apt-get"), &text);
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let output = Command::new(scripts().join("apt.sh")).args(arguments).env("PATH", path).output().unwrap();
    (output, std::fs::read_to_string(calls).unwrap())
}

#[test]
fn apt_lock_is_waited_for_and_the_user_is_told() {
    let locked = "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (unattended-upgr)";
    let script = format!("[ $calls -gt 1 ] || {{ echo '{locked}' >&2; exit 100; }}; echo installed");
    let (output, calls) = apt(&script, &["install", "-y", "x"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"installed\n");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("waiting up to 300 s") && said.contains("held by process 1"), "{said}");
    let calls: Vec<&str> = calls.lines().collect();
    assert_eq!(calls[0], "-o DPkg::Lock::Timeout=0 install -y x");
    assert!(calls[1].starts_with("-o DPkg::Lock::Timeout=") && !calls[1].contains("=0 "), "{calls:?}");
    assert_eq!(calls.len(), 2, "{calls:?}");
}

#[test]
fn apt_lists_are_updated_once_before_a_failure_is_reported() {
    let script = "case \"$*\" in *update*) exit 0;; esac; echo 'E: Unable to locate package x' >&2; exit 100";
    let (output, calls) = apt(script, &["install", "-y", "x"]);
    assert_eq!(output.status.code(), Some(100));
    assert_eq!(output.stderr, b"E: Unable to locate package x\n", "reported once");
    assert_eq!(calls.lines().count(), 3, "{calls}");
    let (output, calls) = apt(script, &["-q", "install", "x"]);
    assert_eq!((output.status.code(), calls.lines().count()), (Some(100), 1), "{calls}");
}

#[test]
fn no_script_calls_apt_get_without_waiting_for_its_lock() {
    for entry in std::fs::read_dir(scripts()).unwrap().flatten().filter(|entry| entry.file_name() != "apt.sh") {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let calls = |line: &&str| line.trim_start().starts_with("apt-get ") || line.contains("& apt-get ");
        assert_eq!(text.lines().find(calls), None, "{:?} calls apt-get by itself", entry.file_name());
    }
}
