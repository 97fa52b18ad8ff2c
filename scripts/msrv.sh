#!/bin/sh
# Checks that the workspace builds with the oldest Rust that Cargo.toml promises: that of Debian 13 (trixie), unpacked into
# target/tools/msrv. On Debian 12 or later; elsewhere it says that it was skipped.
set -eu

cd "$(dirname "$0")/.."
tool=$PWD/target/tools/msrv
promised=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)

if [ ! -e "$tool/done" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "msrv: SKIPPED: Rust $promised is taken from Debian 13, and there is no apt-get here" >&2
        exit 0
    fi
    command -v patchelf >/dev/null 2>&1 || scripts/apt.sh install -y -q --no-install-recommends patchelf >/dev/null
    echo "msrv: getting the Rust of Debian's trixie"
    rm -rf "$tool"
    scripts/unpack.sh trixie "$tool" rustc cargo
    # Debian 12 has an older C library: both programs run with the one that they were built for.
    loader=$(find "$tool/usr/lib" "$tool/usr/lib64" -name 'ld-linux*.so.*' 2>/dev/null | head -n 1)
    libraries=$(dirname "$(find "$tool/usr/lib" -name libc.so.6 | head -n 1)")
    for program in rustc cargo; do
        patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$(readlink -f "$tool/usr/bin/$program")"
    done
    touch "$tool/done"
fi

found=$("$tool/usr/bin/rustc" --version | cut -d' ' -f2)
case $found in
"$promised" | "$promised".*) ;;
*)
    echo "msrv: Debian 13 has Rust $found, and Cargo.toml promises $promised" >&2
    exit 1
    ;;
esac
echo "msrv: checking with Rust $found"
RUSTC=$tool/usr/bin/rustc "$tool/usr/bin/cargo" check --locked --quiet --workspace --all-targets \
    --target-dir target/msrv
