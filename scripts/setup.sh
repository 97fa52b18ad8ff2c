#!/bin/sh
# Installs what the demo and the tests need, where it is missing: an OCI runtime, a static busybox, and what
# building takes. On Debian; elsewhere it says what to install.
#
#   setup.sh --demo   only what `make demo` needs
set -eu

what=${1:-}
here=$(cd "$(dirname "$0")" && pwd)
missing=

need() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

need cc gcc
need runc runc
need busybox busybox-static
if [ "$what" != --demo ]; then
    need crun crun
    need ip iproute2
    # CRIU's, to lock the network of what it freezes.
    need iptables-restore iptables
    need losetup mount
    # Counts a shim's instructions.
    need valgrind valgrind
    need shellcheck shellcheck
    # Builds libFuzzer.
    need c++ g++
fi
# A busybox that needs libraries is of no use in a root file system without any.
if command -v busybox >/dev/null 2>&1 && ldd "$(command -v busybox)" >/dev/null 2>&1; then
    missing="$missing busybox-static"
fi
command -v "${CARGO:-cargo}" >/dev/null 2>&1 || {
    echo "setup: there is no cargo: install a Rust toolchain of at least 1.85 (Debian 13: apt-get install cargo)" >&2
    exit 1
}

if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup: missing:$missing; containers need root as well: run this as root" >&2
        exit 1
    fi
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "setup: missing:$missing; install them with this system's package manager" >&2
        exit 1
    fi
    echo "setup: installing$missing"
    # shellcheck disable=SC2086 # a list of packages
    "$here/apt.sh" install -y -q --no-install-recommends $missing >/dev/null
fi

if [ "$(id -u)" != 0 ]; then
    echo "setup: containers are started by root: run this as root" >&2
    exit 1
fi

# A daemon can be tested only where there are control groups.
if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && ! grep -q ' cgroup ' /proc/self/mountinfo; then
    echo "setup: no control groups are mounted on /sys/fs/cgroup" >&2
    exit 1
fi

# crun does without a hierarchy of v1 only if all that the kernel has are mounted.
if [ "$what" != --demo ] && [ ! -e /sys/fs/cgroup/cgroup.controllers ] &&
    grep -q '^hugetlb' /proc/cgroups && ! grep -q 'cgroup rw.*hugetlb' /proc/self/mountinfo; then
    mkdir -p /sys/fs/cgroup/hugetlb
    mount -t cgroup -o hugetlb cgroup /sys/fs/cgroup/hugetlb || echo "setup: crun needs hugetlb, which cannot be mounted" >&2
fi

tools=$(cd "$(dirname "$0")/.." && pwd)/target/tools
if [ "$what" != --demo ]; then
    "$(dirname "$0")/criu.sh" "$tools/criu" ||
        echo "setup: cannot get a CRIU for this kernel; tests of checkpoints will say that they are skipped" >&2
fi

# The runtimes of later Debians, for the tests of what differs between versions.
if [ "$what" != --demo ]; then
    "$(dirname "$0")/runtimes.sh" "$tools/runtimes" ||
        echo "setup: cannot get all runtimes of later Debians; tests of them will say that they are skipped" >&2
fi

# Prometheus' own checker of metrics, without its server: only that file of the package.
if [ "$what" != --demo ] && [ ! -x "$tools/promtool" ]; then
    mkdir -p "$tools"
    if (
        cd "$tools"
        rm -f prometheus_*.deb
        "$here/apt.sh" download -q prometheus >/dev/null
        dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >promtool.new
        rm -f prometheus_*.deb
        chmod +x promtool.new
        mv promtool.new promtool
    ); then :; else
        echo "setup: cannot get promtool (Debian's prometheus); a test of the metrics will say that it is skipped" >&2
    fi
fi
