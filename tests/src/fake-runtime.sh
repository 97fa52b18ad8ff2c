# shellcheck shell=sh
# A runtime that fails as the bundle says, in the annotation `test.fault`: STEP:FAULT, several with commas between.
#
# Steps are the runtime's subcommands. Faults:
#   hang         never ends                        stop      stops itself (SIGSTOP)
#   fail         says why in its log, ends with 1  crash     ends with 3 and says nothing
#   signal-N     dies by signal N                  garbage   writes rubbish wherever it can, ends with 1
#   silent       ends with 0 and does nothing      no-pid    does it, but writes no pid file
#   bad-pid      does it, and writes no number as the pid
#   dead-pid     does it, and writes the pid of nobody
#   slow         does it, two seconds later        meet-N    does it when N of them are under way
#   late         does it, and never ends
#
# A file `fault` beside this script does the same for all containers, `mended` takes the annotations back. Which step
# it was is in the file `reached`, once it has got there.
home=$(dirname "$0")
step=
bundle=
pidfile=
log=/dev/null
id=
want=
for argument; do
    case $want in
    bundle) bundle=$argument ;;
    pidfile) pidfile=$argument ;;
    log) log=$argument ;;
    esac
    if [ -n "$want" ]; then want=; continue; fi
    case $argument in
    --bundle) want=bundle ;;
    --pid-file) want=pidfile ;;
    --log) want=log ;;
    --log-format | --console-socket | --process | --resources | --root | --image-path | --work-path) want=other ;;
    -*) ;;
    create | run | start | exec | pause | resume | update | delete | kill | state | checkpoint | restore) [ -n "$step" ] && id=$argument || step=$argument ;;
    *) [ -z "$step" ] || [ -n "$id" ] || id=$argument ;;
    esac
done
mkdir -p "$home/faults"
if [ "$step" = create ] || [ "$step" = run ]; then
    # Later calls do not name the bundle.
    sed -n 's/.*"test\.fault":"\([^"]*\)".*/\1/p' "$bundle/config.json" >"$home/faults/$id"
fi
faults=$(cat "$home/fault" 2>/dev/null || { [ -e "$home/mended" ] || cat "$home/faults/$id" 2>/dev/null; })
fault=
for one in $(echo "$faults" | tr , ' '); do
    [ "${one%%:*}" = "$step" ] && fault=${one#*:}
done
[ -z "$fault" ] || echo "$step" >"$home/.reached" && mv "$home/.reached" "$home/reached" 2>/dev/null
case $fault in
hang) exec sleep 100000 ;;
stop) kill -STOP $$ ;;
fail) echo '{"level":"error","msg":"it fails on purpose","time":"now"}' >>"$log"; exit 1 ;;
crash) exit 3 ;;
signal-*) kill -"${fault#signal-}" $$ ;;
garbage)
    head -c 70000 /dev/urandom >>"$log"
    head -c 70000 /dev/urandom >&2
    [ -z "$pidfile" ] || head -c 100 /dev/urandom >"$pidfile"
    exit 1
    ;;
silent) exit 0 ;;
no-pid) "$RUNTIME" "$@" && rm -f "$pidfile"; exit ;;
bad-pid) "$RUNTIME" "$@" && echo pid >"$pidfile"; exit ;;
dead-pid) "$RUNTIME" "$@" && echo 4194303 >"$pidfile"; exit ;;
slow) sleep 2 ;;
late) "$RUNTIME" "$@" && sleep 100000 ;;
meet-*)
    mkdir -p "$home/meeting"
    : >"$home/meeting/$$"
    # shellcheck disable=SC2012 # the names are numbers
    while [ "$(ls "$home/meeting" | wc -l)" -lt "${fault#meet-}" ]; do sleep 0.01; done
    ;;
esac
exec "$RUNTIME" "$@"
