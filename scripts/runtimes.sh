#!/bin/sh
# Gets the runtimes of later Debians, for the tests of what differs between versions, in directories of their own.
#
#   runtimes.sh DIRECTORY   DIRECTORY/crun-trixie/bin/crun and others are there afterwards
set -eu

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
failed=0
for suite in trixie forky; do
    for name in crun runc; do
        prefix=$1/$name-$suite
        "$prefix/bin/$name" --version >/dev/null 2>&1 && continue
        "$here/prefix.sh" "$suite" "$name" "$name" "$prefix" || failed=1
    done
done
exit "$failed"
