#!/bin/sh
# Checks licenses, duplicate versions, sources and known vulnerabilities of all dependencies, as deny.toml says.
#
# cargo-deny is built once, into target/tools. Its database of advisories is a Git repository on GitHub. Where that cannot
# be reached, the other checks run, and the last line says that this one did not.
set -eu

# The newest version that the toolchain of rust-toolchain.toml builds (it needs Rust 1.88).
version=0.20.2

cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
tool=target/tools/cargo-deny-$version
if [ ! -x "$tool/bin/cargo-deny" ]; then
    echo "deny: building cargo-deny $version; this takes some minutes, once"
    # Not optimised: that halves the time to build it, and it runs for a second.
    CARGO_PROFILE_DEV_DEBUG=0 RUSTFLAGS='' "$cargo" install --quiet --locked --debug --no-track --root "$tool.new" \
        --target-dir target/tools/build --version "$version" cargo-deny
    rm -rf "$tool" target/tools/build
    mv "$tool.new" "$tool"
fi
deny() { # CHECK...
    "$tool/bin/cargo-deny" --workspace --all-features --locked check --hide-inclusion-graph "$@"
}

deny bans licenses sources

log=target/tools/advisories.log
if deny advisories >"$log" 2>&1; then
    tail -n 1 "$log"
elif grep -qi -e 'failed to fetch advisory database' -e 'failed to open advisory' -e 'unable to fetch' "$log"; then
    grep -i -m 1 -e 'fetch' -e 'advisory' "$log" >&2 || :
    echo "deny: ADVISORIES WERE NOT CHECKED: the database cannot be reached" >&2
else
    cat "$log" >&2
    exit 1
fi
