#!/bin/sh
# Runs the fuzz targets of `fuzz/`, as many at a time as there are CPUs.
#
#   fuzz.sh SECONDS [TARGET...]   run each target for so long (default: all targets)
#   fuzz.sh --merge TARGET        add the inputs to fuzz/corpus/TARGET that extend what it covers
#
# libFuzzer mutates inputs and keeps those that reach new code. The compiler's part of that, SanitizerCoverage, is an LLVM
# pass, which `-C passes` adds on the stable toolchain. docs/dev/fuzzing.md says more.
#
# Inputs that extend the coverage are kept in target/fuzz/corpus, inputs that fail in target/fuzz/crashes.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
seconds=${1:-20}
[ $# = 0 ] || shift
work=$root/target/fuzz
cargo=${CARGO:-cargo}
host=$(rustc -vV | sed -n 's/^host: //p')

command -v c++ >/dev/null 2>&1 || {
    echo "fuzz: libFuzzer is built by a C++ compiler, and there is no c++ (Debian: apt-get install g++)" >&2
    exit 1
}

# With `--target`, build scripts and procedural macros are not instrumented: they would not link.
RUSTFLAGS="-C force-frame-pointers=yes -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
-C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
-C llvm-args=-sanitizer-coverage-trace-compares" \
    "$cargo" build --locked --quiet --profile fuzz --target "$host" --target-dir "$work/build" -p fuzz --features libfuzzer
program=$work/build/$host/fuzz/fuzz

# Parsers that read files read them from memory.
TMPDIR=$(mktemp -d -p /dev/shm containerd-fuzz.XXXXXX 2>/dev/null || mktemp -d)
export TMPDIR
clean_up() {
    status=$?
    trap - EXIT INT TERM
    rm -rf "$TMPDIR"
    exit "$status"
}
trap clean_up EXIT INT TERM

if [ "$seconds" = --merge ]; then
    FUZZ_TARGET=$1 "$program" -merge=1 "fuzz/corpus/$1" "$work/corpus/$1"
    exit
fi
[ $# -gt 0 ] || set -- "$root"/fuzz/corpus/*

one() { # TARGET
    mkdir -p "$work/corpus/$1" "$work/crashes/$1"
    log=$work/$1.log
    # The first directory gets new inputs. A slow input fails, as a parser must not be stopped by what it reads.
    if FUZZ_TARGET=$1 "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=16384 -print_final_stats=1 \
        -artifact_prefix="$work/crashes/$1/" "$work/corpus/$1" "fuzz/corpus/$1" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        cover=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
        echo "fuzz: $1: $runs runs, $cover edges covered"
        return
    fi
    {
        echo "fuzz: $1 FAILED:"
        grep -v -e '^#[0-9]' -e '^stat::' "$log" | tail -n 30
        input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
        echo "fuzz: to see it again: FUZZ_TARGET=$1 ${program#"$root/"} $input"
        echo "fuzz: to keep it as a test: cp $input fuzz/corpus/$1/"
    } >&2
    return 1
}

failed=0
running=0
pids=
wait_for_all() {
    for pid in $pids; do
        wait "$pid" || failed=1
    done
    pids='' running=0
}
for target in "$@"; do
    one "$(basename "$target")" &
    pids="$pids $!" running=$((running + 1))
    [ "$running" -lt "$(nproc)" ] || wait_for_all
done
wait_for_all
[ "$failed" = 0 ]
