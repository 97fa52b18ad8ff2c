#!/bin/sh
# Gets a CRIU that knows this kernel, for the tests: CRIU of a later Debian, with the libraries that it needs, in a
# directory of its own. Nothing of the system is changed or replaced.
#
#   criu.sh DIRECTORY   DIRECTORY/bin/criu is there afterwards, unless the system's own is recent enough
set -eu

prefix=$1
here=$(cd "$(dirname "$0")" && pwd)

at_least() { # WANTED VERSION
    [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

# Linux 6.16 took away socket options that CRIU asks for before 4.2: containers with TCP connections then need that.
if at_least 6.16 "$(uname -r)"; then
    wanted=4.2 suite=forky
else
    wanted=4.1 suite=trixie
fi

recent() { # PROGRAM
    version=$("$1" --version 2>/dev/null | sed -n 's/^Version: //p' || true)
    [ -n "$version" ] && at_least "$wanted" "$version"
}

if recent criu || recent "$prefix/bin/criu"; then
    exit 0
fi
exec "$here/prefix.sh" "$suite" criu criu "$prefix"
