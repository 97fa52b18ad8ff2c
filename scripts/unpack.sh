#!/bin/sh
# Unpacks packages of a later Debian, with all that they need, into a directory. Nothing of the system is changed.
#
#   unpack.sh SUITE DIRECTORY PACKAGE...   DIRECTORY, which must not exist, is a root file system afterwards
set -eu

suite=$1 root=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)

# shellcheck disable=SC1091 # the system's
. /etc/os-release
[ "${ID:-}" = debian ] || { echo "unpack: $1 is taken from a later Debian, and this is not Debian" >&2; exit 1; }

# The mirror that this system gets its own packages from.
# shellcheck disable=SC2016 # apt-get expands it
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' 'Component: main' |
    sed -n "s/ $VERSION_CODENAME\$//p" | head -n 1)
[ -n "$mirror" ] || { echo "unpack: no mirror of Debian's packages is configured" >&2; exit 1; }

work=$root.apt
rm -rf "$work"
mkdir -p "$work/lists/partial" "$work/archives/partial" "$root"
: >"$work/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
# Its locks are in this directory.
own_apt() {
    "$here/apt.sh" -q -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" \
        -o Dir::Cache="$work" -o Dir::Cache::archives="$work/archives" -o APT::Sandbox::User=root \
        -o Dir::Log="$work" -o Debug::NoLocking=1 "$@"
}
own_apt update >/dev/null
# With no package installed, all that they need is taken from there, the C library included.
own_apt install -y --no-install-recommends --download-only "$@" >/dev/null
for package in "$work"/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
done
rm -rf "$work"
