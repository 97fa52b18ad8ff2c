//! Sets the revision that `GetServerVersion` returns: `CONTAINERD_REVISION` if it is given, otherwise the commit of the git
//! checkout that is built.

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
}

fn main() {
    println!("cargo::rerun-if-env-changed=CONTAINERD_REVISION");
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let given = std::env::var("CONTAINERD_REVISION").ok().filter(|revision| !revision.is_empty());
    let revision = given.or_else(|| git(&["rev-parse", "HEAD"])).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=CONTAINERD_REVISION={revision}");
}
