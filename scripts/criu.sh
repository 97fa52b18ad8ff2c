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
# shellcheck disable=SC1091 # the system's
. /etc/os-release
[ "${ID:-}" = debian ] || { echo "criu: the system's CRIU is too old; install version $wanted or later" >&2; exit 1; }

# The mirror that this system gets its own packages from.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Component: main' |
    sed -n "s/ $VERSION_CODENAME\$//p" | head -n 1)
[ -n "$mirror" ] || { echo "criu: no mirror of Debian's packages is configured" >&2; exit 1; }

command -v patchelf >/dev/null 2>&1 ||
    "$here/apt.sh" install -y -q --no-install-recommends patchelf >/dev/null

work=$prefix.new
rm -rf "$work"
mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial" "$work/root" "$work/bin"
: >"$work/apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/apt/sources.list"
# Its locks are in this directory.
own_apt() {
    "$here/apt.sh" -q -o Dir::Etc::SourceList="$work/apt/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$work/apt/lists" -o Dir::State::status="$work/apt/status" \
        -o Dir::Cache="$work/apt" -o Dir::Cache::archives="$work/apt/archives" -o APT::Sandbox::User=root \
        -o Dir::Log="$work/apt" -o Debug::NoLocking=1 "$@"
}
echo "criu: getting CRIU $wanted or later, of Debian's $suite"
own_apt update >/dev/null
# With no package installed, all that it needs is taken from there, its C library included.
own_apt install -y --no-install-recommends --download-only criu >/dev/null
for package in "$work"/apt/archives/*.deb; do
    dpkg-deb -x "$package" "$work/root"
done
rm -rf "$work/apt"
# Only what it is linked with is kept.
triplet=$(basename "$(dirname "$(find "$work/root/usr/lib" -name libc.so.6 | head -n 1)")")
mkdir -p "$work/lib"
cp -a "$work/root/usr/lib/$triplet/"*.so* "$work/lib/"
loader=$(find "$work/root" -name 'ld-linux*.so.*' -o -name 'ld-linux*.so' | head -n 1)
cp -L "$loader" "$work/lib/$(basename "$loader")"
cp "$work/root/usr/sbin/criu" "$work/bin/criu"
rm -rf "$work/root"
patchelf --set-interpreter "$prefix/lib/$(basename "$loader")" --force-rpath --set-rpath "$prefix/lib" "$work/bin/criu"
rm -rf "$prefix"
mv "$work" "$prefix"
"$prefix/bin/criu" --version | head -n 1
