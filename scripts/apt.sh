#!/bin/sh
# Runs apt-get, and waits up to five minutes while another program holds one of its locks, as unattended upgrades do when a
# machine boots for the first time.
#
#   apt.sh install|download ...   if it fails, the lists of packages are updated, and it is tried once more
#   apt.sh ARGUMENTS...           as of apt-get
set -u

limit=300
begun=$(date +%s)
timeout=0
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
# The packages' output goes where it was meant to; only errors are looked at.
exec 3>&1

# Sets `status` and `errors`.
run() { # ARGUMENTS
    while :; do
        # DPkg::Lock::Timeout is for dpkg's lock only. On the locks of lists and archives apt-get gives up at once.
        errors=$(apt-get -o DPkg::Lock::Timeout="$timeout" "$@" 2>&1 >&3 3>&-)
        status=$?
        [ "$status" != 0 ] || return 0
        case $errors in
            *"Could not get lock"* | *"Unable to lock"* | *"Unable to acquire"*) ;;
            *) return 0 ;;
        esac
        waited=$(($(date +%s) - begun))
        [ "$waited" -lt "$limit" ] || return 0
        if [ "$timeout" = 0 ]; then
            echo "apt: another program holds apt's lock; waiting up to $limit s for it" >&2
            printf '%s\n' "$errors" | sed -n 's/^E: \(Could not get lock.*\)/apt: \1/p' >&2
        else
            sleep 2
        fi
        timeout=$((limit - waited))
    done
}

run "$@"
case $status:${1:-} in
    0:*) ;;
    *:install | *:download)
        run -q update
        run "$@"
        ;;
esac
[ -z "$errors" ] || printf '%s\n' "$errors" >&2
exit "$status"
