#!/bin/sh
# Runs tests in a virtual machine that has control groups of version 2 only, which this host may not have.
#
#   test-v2.sh [FILTER...]   default: the tests that control groups matter to
#
# The machine is emulated in software, so that it works everywhere, slowly. Its kernel is Debian's, its root file
# system is made of what this host has. RUNTIME=crun for another runtime than runc.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
vm=$root/target/vm
runtime=${RUNTIME:-runc}
[ $# -gt 0 ] || set -- limits:: stats:: oom::a_ calls::pause calls::a_paused calls::state calls::the_state exits::exit_codes shim::

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    echo "test-v2: not needed: this host has version 2 only, so that all tests are of it"
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "test-v2: SKIPPED: the machine's kernel is Debian's, and there is no apt-get here" >&2
    exit 0
fi

install() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 && return
    "$root/scripts/apt.sh" install -y -q --no-install-recommends "$2" >/dev/null
}
install qemu-system-x86_64 qemu-system-x86
install cpio cpio

mkdir -p "$vm"
if [ ! -e "$vm/kernel/done" ]; then
    echo "test-v2: fetching a kernel"
    rm -rf "$vm/kernel"
    mkdir -p "$vm/kernel"
    (
        cd "$vm"
        rm -f linux-image-*.deb
        apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || "$root/scripts/apt.sh" update -q
        package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -n 1)
        "$root/scripts/apt.sh" download -q "$package" >/dev/null
        dpkg-deb -x linux-image-*.deb kernel
        rm -f linux-image-*.deb
        touch kernel/done
    )
fi
kernel=$(echo "$vm"/kernel/boot/vmlinuz-*)
modules=$(echo "$vm"/kernel/lib/modules/*)/kernel

tree=$vm/root
rm -rf "$tree"
mkdir -p "$tree/bin" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/tmp" "$tree/run" "$tree/etc" "$tree/modules" "$tree/sbin"
busybox=$(command -v busybox)
cp "$busybox" "$tree/bin/busybox"
chroot "$tree" /bin/busybox --install -s /bin

# A program with the libraries that it needs, where it expects them.
add() { # FILE [TARGET]
    to=$tree${2:-$1}
    mkdir -p "$(dirname "$to")"
    rm -f "$to"
    cp -L "$1" "$to"
    { ldd "$1" 2>/dev/null || :; } | sed -n 's|.*[[:space:]]\(/[^ ]*\) (.*|\1|p' | while read -r library; do
        [ -e "$tree$library" ] || { mkdir -p "$(dirname "$tree$library")" && cp -L "$library" "$tree$library"; }
    done
}
for program in runc crun losetup ip unshare nsenter; do
    add "$(command -v $program)" "/bin/$program"
done
for program in containerd containerd-shim ctr; do
    add "$root/target/release/$program" "/target/release/$program"
done
tests=$(find "$root/target/release/deps" -maxdepth 1 -name 'it-*' -type f -perm -u+x -printf '%T@ %p\n' | sort -rn | head -n 1 | cut -d' ' -f2)
add "$tests" /it
# The containers' root file system, without the large files in it, which take long to make there.
rootfs=$root/target/tmp/rootfs-1
if [ -e "$rootfs" ]; then
    mkdir -p "$tree/target/tmp"
    cp -a "$rootfs" "$tree/target/tmp/"
    find "$tree/target/tmp/rootfs-1/data" -size +2M -delete
fi
for module in drivers/block/loop drivers/net/veth block/bfq; do
    find "$modules" -path "*/$module.ko*" -exec cp {} "$tree/modules/" \;
done
xz -d "$tree"/modules/*.xz 2>/dev/null || :

cat >"$tree/init" <<'END'
#!/bin/sh
# From the first root file system, which nothing can be pivoted away from, into one that is mounted.
if [ ! -e /is-mounted ]; then
    mkdir /new && mount -t tmpfs -o size=90% tmpfs /new
    for entry in bin sbin etc lib lib64 usr modules target tmp run it init; do
        [ -e "/$entry" ] && cp -a "/$entry" /new/
    done
    mkdir -p /new/proc /new/sys /new/dev /new/root
    touch /new/is-mounted
    exec switch_root /new /init
fi
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in /modules/*.ko; do insmod "$module"; done
ip link set lo up
chmod 1777 /tmp
export PATH=/bin CONTAINERD_BIN_DIR=/target/release CONTAINERD_TEST_RUNTIME=@RUNTIME@ RUST_BACKTRACE=0
echo "v2 machine: $(uname -r), controllers: $(cat /sys/fs/cgroup/cgroup.controllers)"
/it --test-threads 2 @FILTERS@
echo "v2 machine: the tests ended with status $?"
poweroff -f
END
sed -i -e "s|@RUNTIME@|$runtime|" -e "s|@FILTERS@|$*|" "$tree/init"
chmod +x "$tree/init"
(cd "$tree" && find . | cpio -o -H newc --quiet | gzip -1) >"$vm/initrd"

echo "test-v2: starting the machine ($runtime): $*"
log=$vm/log
timeout "${LIMIT:-900}" qemu-system-x86_64 -M q35,accel=tcg -cpu qemu64 -smp 2 -m 3072 -nographic -no-reboot \
    -kernel "$kernel" -initrd "$vm/initrd" -append "console=ttyS0 quiet panic=-1" </dev/null | tee "$log"
grep -q 'v2 machine: the tests ended with status 0' "$log" || {
    echo "test-v2: failed" >&2
    exit 1
}
