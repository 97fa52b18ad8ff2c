#!/bin/sh
# Runs a container under a daemon of its own, printing every command, and leaves nothing behind.
set -eu

bin=$(cd "$(dirname "$0")/../target/release" && pwd)
PATH=$bin:$PATH
dir=$(mktemp -d /tmp/containerd-demo.XXXXXX)
daemon=

clean_up() {
    status=$?
    trap - EXIT INT TERM
    if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
        ctr containers kill --signal KILL redis >/dev/null 2>&1 || :
        kill "$daemon" 2>/dev/null || :
        wait "$daemon" || :
    fi
    # Gone already when all went well.
    runc --root "$dir/runc" delete --force redis 2>/dev/null || :
    if [ "$status" != 0 ]; then
        echo "demo: failed; the daemon's log:" >&2
        cat "$dir/log" >&2 || :
    fi
    rm -rf "$dir"
    exit "$status"
}
trap clean_up EXIT INT TERM

say() { printf '\n\033[1m# %s\033[0m\n' "$1"; }
[ -t 1 ] || say() { printf '\n# %s\n' "$1"; }
run() {
    printf '$ %s\n' "$*"
    "$@"
}
# Asks until it is so; gives up when that takes far too long or the daemon is gone.
wait_until() {
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ $tries -gt 200 ] || ! kill -0 "$daemon" 2>/dev/null; then
            echo "demo: still not so: $*" >&2
            exit 1
        fi
        sleep 0.05
    done
}
is_gone() { ! ctr containers list | grep -q "^$1 "; }
start_daemon() {
    containerd --state-dir "$dir/state" --listen "unix://$dir/containerd.sock" --runtime runc \
        --runtime-args "--root=$dir/runc" 2>>"$dir/log" &
    daemon=$!
    wait_until ctr version
}
# The same address for each, left out of what is shown.
ctr() { command ctr --address "unix://$dir/containerd.sock" "$@"; }

cd "$dir"
say "A bundle: a root file system (a static busybox) and a config.json"
run mkdir -p bundle/rootfs/bin bundle/rootfs/proc bundle/rootfs/dev bundle/rootfs/sys
run cp "$(command -v busybox)" bundle/rootfs/bin/busybox
run chroot bundle/rootfs /bin/busybox --install -s /bin
printf '$ (cd bundle && runc spec)\n'
(cd bundle && runc spec)
printf '$ sed -i ... bundle/config.json     # no terminal; a program that counts\n'
sed -i -e 's/"terminal": true/"terminal": false/' \
    -e 's|"sh"$|"sh", "-c", "for i in 1 2 3; do echo count $i; sleep 0.3; done; exit 3"|' bundle/config.json

say "The daemon, with a state directory, a socket and a runtime root of its own"
printf '$ containerd --state-dir %s/state --listen unix://%s/containerd.sock &\n' "$dir" "$dir"
start_daemon
echo "(every ctr below has --address unix://$dir/containerd.sock)"
run ctr version

say "A container, attached: its output is ours, and its exit status too"
status=0
run ctr containers start --attach counter bundle || status=$?
echo "(exit status $status)"
[ "$status" = 3 ] || exit 1

say "Another one, in the background, with a label"
sed -i 's|"for i in .*exit 3"|"while :; do sleep 1; done"|' bundle/config.json
run ctr containers start --label demo=yes redis bundle
run ctr containers list

say "A further process in it"
# shellcheck disable=SC2016 # the container expands it
run ctr containers exec --id redis --pid look --attach -- sh -c 'echo "user $(id -u) in $(hostname)"; ps'

say "Frozen, and thawed"
run ctr containers pause redis
run ctr containers list
run ctr containers resume redis

say "The daemon is killed; the container does not notice, and the next daemon finds it"
printf '$ kill -9 %s; containerd ... &\n' "$daemon"
kill -9 "$daemon"
wait "$daemon" 2>/dev/null || :
start_daemon
run ctr containers list

say "Its end"
run ctr containers kill --signal KILL redis
wait_until is_gone redis
run ctr containers list

say "All that has happened, from the journal"
run ctr events --stored-only --timestamp 2020-01-01T00:00:00Z

say "The daemon stops, and nothing is left"
kill "$daemon"
wait "$daemon"
daemon=
run ls -A state
[ -z "$(ls -A runc 2>/dev/null)" ]
echo "demo: done"
