//! libFuzzer's program for all targets. `FUZZ_TARGET` names the target; the arguments are libFuzzer's.
//!
//! `scripts/fuzz.sh` builds it with coverage instrumentation and runs it.
#![no_main]
#![allow(unsafe_code, reason = "fuzz_target exports the symbols that libFuzzer calls")]

use fuzz::Target;
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

/// The target that the environment names. Ends the process if there is none.
fn target() -> &'static Target {
    TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        fuzz::target(&name).unwrap_or_else(|| {
            let names: Vec<&str> = fuzz::TARGETS.iter().map(|target| target.name).collect();
            eprintln!("fuzz: FUZZ_TARGET is {name:?}, and must be one of: {}", names.join(" "));
            std::process::exit(2)
        })
    })
}

fuzz_target!(
    init: {
        target();
    },
    |input: &[u8]| target().run(input)
);
