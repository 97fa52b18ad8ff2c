//! What differs between versions of the runtimes: this system's, and those of later Debians (`scripts/runtimes.sh`).

use crate::support::*;
use serde_json::json;
use std::path::Path;
use tests::{Host, Options};

/// The runtimes, by path; what is not there is said, loudly.
pub(crate) fn runtimes() -> Vec<String> {
    let own = ["runc", "crun"].map(String::from);
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/runtimes");
    let later = ["crun-trixie/bin/crun", "crun-forky/bin/crun", "runc-trixie/bin/runc", "runc-forky/bin/runc"];
    let later = later.map(|name| directory.join(name)).into_iter().filter(|path| {
        if !path.exists() {
            eprintln!("SKIPPED: there is no {} (scripts/runtimes.sh)", path.display());
        }
        path.exists()
    });
    own.into_iter().chain(later.map(|path| path.to_str().unwrap().to_string())).collect()
}

async fn host_of(runtime: &str) -> Host {
    println!("{runtime}");
    Host::with(Options { runtime: Some(runtime.into()), ..Options::default() }).await
}

#[tokio::test]
async fn cause_of_a_failure_reaches_the_client_from_every_version() {
    for runtime in runtimes() {
        let host = host_of(&runtime).await;
        let mut client = host.client().await;
        let hook = |path: &str, args: &[&str]| json!([{"path": path, "args": args}]);
        let mut no_program = host.bundle(&["/no/such/program"]);
        no_program.config["process"]["cwd"] = "/".into();
        let mut bad_hook = host.bundle(&["sleep", "1000"]);
        bad_hook.config["hooks"] = json!({"createContainer": hook("/bin/busybox", &["busybox", "false"])});
        let mut bad_prestart = host.bundle(&["sleep", "1000"]);
        bad_prestart.config["hooks"] = json!({"prestart": hook("/no/such/hook", &["hook"])});
        let mut no_root = host.bundle(&["sleep", "1000"]);
        no_root.config["root"]["path"] = "/no/such/root".into();
        let mut bad_mount = host.bundle(&["sleep", "1000"]);
        bad_mount.config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/data", "type": "bind", "source": "/no/such/source", "options": ["bind"]
        }));
        for (bundle, cause) in [
            (no_program, "/no/such/program"),
            (bad_hook, "hook"),
            (bad_prestart, "/no/such/hook"),
            // crun 1.28 does not name it.
            (no_root, "o such file"),
            (bad_mount, "/no/such/source"),
        ] {
            let failure = client.create_container(container("c", &bundle.write())).await.expect_err("it cannot start");
            println!("  {}", failure.message());
            assert_eq!(failure.code(), tonic::Code::Unknown);
            assert!(failure.message().starts_with("oci runtime error: "), "{runtime}: {failure}");
            assert!(failure.message().contains(cause), "{runtime}: {failure}");
            assert!(!failure.message().contains("{\""), "{runtime}: {failure}");
        }
        let mut odd = container("c", &host.bundle(&["true"]).write());
        odd.runtime = runtime.clone();
        odd.runtime_args = vec!["--no-such-option".into()];
        let failure = client.create_container(odd).await.expect_err("there is no such option");
        println!("  {}", failure.message());
        assert!(failure.message().starts_with("oci runtime error: "), "{runtime}: {failure}");
        assert!(failure.message().contains("no-such-option"), "{runtime}: {failure}");
        let init = sleeper(&host, &mut client, "c").await.processes[0].system_pid;
        let failure = client.add_process(process("c", "p", &["/no/such/program"])).await.expect_err("it cannot start");
        println!("  {}", failure.message());
        assert!(failure.message().contains("/no/such/program"), "{runtime}: {failure}");
        assert!(zombies_in_namespace_of(init).is_empty(), "{runtime}");
        kill(&mut client, "c").await;
        host.finish();
    }
}
