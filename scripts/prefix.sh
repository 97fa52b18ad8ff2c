#!/bin/sh
# Puts a program of a later Debian into a directory of its own, with the libraries that it needs. Nothing of the system is
# changed or replaced.
#
#   prefix.sh SUITE PACKAGE PROGRAM DIRECTORY   DIRECTORY/bin/PROGRAM is there afterwards
set -eu

suite=$1 name=$2 program=$3 prefix=$4
here=$(cd "$(dirname "$0")" && pwd)
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac

work=$prefix.new
rm -rf "$work"
mkdir -p "$work/bin"
echo "prefix: getting $name of Debian's $suite"
"$here/unpack.sh" "$suite" "$work/root" "$name"
# Only what it is linked with is kept.
triplet=$(basename "$(dirname "$(find "$work/root/usr/lib" -name libc.so.6 | head -n 1)")")
mkdir -p "$work/lib"
cp -a "$work/root/usr/lib/$triplet/"*.so* "$work/lib/"
loader=$(find "$work/root" -name 'ld-linux*.so.*' -o -name 'ld-linux*.so' | head -n 1)
cp -L "$loader" "$work/lib/$(basename "$loader")"
found=$(find "$work/root/usr/sbin" "$work/root/usr/bin" -name "$program" -type f 2>/dev/null | head -n 1)
cp "$found" "$work/bin/$program"
rm -rf "$work/root"
command -v patchelf >/dev/null 2>&1 ||
    "$here/apt.sh" install -y -q --no-install-recommends patchelf >/dev/null
patchelf --set-interpreter "$prefix/lib/$(basename "$loader")" --force-rpath --set-rpath "$prefix/lib" "$work/bin/$program"
rm -rf "$prefix"
mv "$work" "$prefix"
"$prefix/bin/$program" --version | head -n 1
