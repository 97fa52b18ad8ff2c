#!/bin/sh
# Puts a program of a later Debian into a directory of its own, with the libraries that it needs. Nothing of the system is
# changed or replaced.
#
#   prefix.sh SUITE PACKAGE PROGRAM DIRECTORY   DIRECTORY/bin/PROGRAM is there afterwards
set -eu

suite=$1 name=$2 program=$3 prefix=$4
here=$(cd "$(dirname "$0")" && pwd)
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac

# shellcheck disable=SC1091 # the system's
. /etc/os-release
[ "${ID:-}" = debian ] || { echo "prefix: $name is taken from a later Debian, and this is not Debian" >&2; exit 1; }

# The mirror that this system gets its own packages from.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Component: main' |
    sed -n "s/ $VERSION_CODENAME\$//p" | head -n 1)
[ -n "$mirror" ] || { echo "prefix: no mirror of Debian's packages is configured" >&2; exit 1; }

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
echo "prefix: getting $name of Debian's $suite"
own_apt update >/dev/null
# With no package installed, all that it needs is taken from there, its C library included.
own_apt install -y --no-install-recommends --download-only "$name" >/dev/null
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
found=$(find "$work/root/usr/sbin" "$work/root/usr/bin" -name "$program" -type f 2>/dev/null | head -n 1)
cp "$found" "$work/bin/$program"
rm -rf "$work/root"
patchelf --set-interpreter "$prefix/lib/$(basename "$loader")" --force-rpath --set-rpath "$prefix/lib" "$work/bin/$program"
rm -rf "$prefix"
mv "$work" "$prefix"
"$prefix/bin/$program" --version | head -n 1
