#!/bin/sh
# Where the time of a start or an exec goes: a timeline and the CPU time of each program, and a flame graph of all of them.
#
#   scripts/profile.sh [start|exec] [runtime]      writes into target/bench
#
# Needs perf (Debian: linux-perf); `inferno` is installed by cargo into target/tools.
set -eu

what=${1:-start}
runtime=${2:-crun}
here=$(cd "$(dirname "$0")/.." && pwd)
out=$here/target/bench
# What the bench itself writes at the end is not what was measured on a quiet machine.
own=$out/profile
mkdir -p "$own"
command -v perf >/dev/null || { echo "profile.sh: perf is missing (Debian: apt-get install linux-perf)" >&2; exit 1; }
inferno=$here/target/tools/bin
[ -x "$inferno/inferno-flamegraph" ] || cargo install --quiet --locked --root "$here/target/tools" inferno

# Only ours: what the bare runtime does beside it is another branch of the tree of processes.
perf record -q -a -g -F 6000 -o "$out/cpu.perf" -- "$here/target/release/bench" "$what" --quick --alone --runtime "$runtime" --output "$own" >/dev/null 2>&1
perf record -q -a -e sched:sched_process_fork,sched:sched_process_exec,sched:sched_process_exit -o "$out/sched.perf" \
    -- "$here/target/release/bench" "$what" --quick --alone --runtime "$runtime" --output "$own" >/dev/null 2>&1

perf script -i "$out/cpu.perf" 2>/dev/null | "$inferno/inferno-collapse-perf" 2>/dev/null |
    grep -E '^(containerd|containerd-shim|tokio-rt-worker|disk|bench);' |
    "$inferno/inferno-flamegraph" --title "CPU time of client, daemon and shim: $what, $runtime" --minwidth 0.6 >"$out/flame-$what.svg"

# Times after the fork of a shim, in ms: of its own exec, of the runtime's, of the user's program's, and of the runtime's end.
perf script -i "$out/sched.perf" -F comm,pid,time,event,trace 2>/dev/null | awk -v what="$what" '
function field(name,    at, rest) { at = index($0, name "="); if (!at) return ""; rest = substr($0, at + length(name) + 1); split(rest, words, " "); return words[1] }
{ match($0, /[0-9]+\.[0-9]+:/); t = substr($0, RSTART, RLENGTH - 1) * 1000 }
/sched_process_fork:/ { child = field("child_pid"); parent[child] = field("pid"); born[child] = t }
/sched_process_exec:/ {
    pid = field("pid"); file = field("filename")
    if (file ~ /containerd-shim$/) { shim[pid] = 1; begun = born[pid]; note("shim runs", t - begun); next }
    p = parent[pid]; if (shim[p] && file ~ /(crun|runc|fd\/[0-9]+)$/ && !(pid in runtime)) { runtime[pid] = p; note("runtime runs", t - born[p]); next }
    for (up = p; up != ""; up = parent[up]) if (shim[up]) { if (file !~ /(crun|runc|fd\/[0-9]+)$/ && file ~ /(sleep|true)$/) note("user program runs", t - born[up]); break }
}
/sched_process_exit:/ { pid = field("pid"); if (pid in runtime) { note("runtime has ended", t - born[runtime[pid]]); delete runtime[pid] } else if (shim[pid]) { if (what == "exec") note("shim has ended", t - born[pid]); delete shim[pid] } }
function note(name, ms) { values[name, ++count[name]] = ms }
END {
    n = split("shim runs,runtime runs,user program runs,runtime has ended,shim has ended", names, ",")
    for (i = 1; i <= n; i++) { name = names[i]; if (!count[name]) continue
        for (a = 2; a <= count[name]; a++) { v = values[name, a]; for (b = a - 1; b >= 1 && values[name, b] > v; b--) values[name, b + 1] = values[name, b]; values[name, b + 1] = v }
        printf "%8.2f ms  %s (median of %d)\n", values[name, int((count[name] + 1) / 2)], name, count[name] }
}' | tee "$out/timeline-$what.txt"
perf report -i "$out/cpu.perf" --no-children --sort comm --stdio -g none 2>/dev/null | grep -E '^ +[0-9]' | head -8 | tee "$out/cpu-$what.txt"
rm -f "$out/cpu.perf" "$out/sched.perf"
