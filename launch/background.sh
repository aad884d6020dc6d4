#!/usr/bin/env bash
# Runs one command on this machine in the background, so that it outlives the ssh session. tpu_pod.sh
# calls it on every worker. It writes log, process id and exit code to run.log, run.pid and run.exit.
#   launch/background.sh start COMMAND...   ends the command of an earlier start, then starts this one
#   launch/background.sh follow             prints the log until the command ends
#   launch/background.sh code               prints "code=N", "code=running", or "code=lost" after a
#                                           reboot or a SIGKILL of everything
#   launch/background.sh stop               sends SIGTERM, which saves, and SIGKILL after GRACE seconds
# --dry-run, before COMMAND, prints the command and runs nothing.
set -euo pipefail
# shellcheck source=launch/words.sh
. "$(dirname "$0")/words.sh"
GRACE="${GRACE:-120}"

# COMMAND and all words after it belong to the command.
ours=()
started=0
while [ "$#" -gt 0 ]; do
  case "$started$1" in 1[!-]*) break ;; esac
  [ "$1" != start ] || started=1
  ours+=("$1")
  shift
done
read_words ${ours[@]+"${ours[@]}"}
expect start follow code stop --dry-run --help
[ "${#words[@]}" = 1 ] || fail "expected one of start COMMAND..., follow, code, stop; --help says more"
part="${words[0]}"
[ "$part" != start ] || [ "$#" -gt 0 ] || fail "start needs the COMMAND to start"
if [ "$DRY_RUN" = 1 ]; then
  show "$part" "$@"
  exit
fi
cd "$(dirname "$0")/.."

running() { [ -e run.pid ] && kill -0 -- "-$(cat run.pid)" 2> /dev/null; }

start() {
  stop
  rm -f run.exit
  # A new session has its own process group. The trap keeps the shell waiting for the command when
  # the whole group gets a signal.
  # shellcheck disable=SC2016
  setsid nohup bash -c '
    trap : TERM INT
    echo $$ > run.pid
    code=0
    "$@" & child=$!
    wait "$child" || code=$?
    while kill -0 "$child" 2> /dev/null; do code=0; wait "$child" || code=$?; done
    echo "$code" > run.exit
  ' background "$@" > run.log 2>&1 < /dev/null &
  disown
  while [ ! -s run.pid ] || [ ! -e run.log ]; do sleep 0.1; done
}

follow() {
  tail -n +1 -F run.log 2> /dev/null &
  local tail=$!
  while running && [ ! -e run.exit ]; do sleep 1; done
  sleep 1
  kill "$tail"
}

code() {
  if [ -e run.exit ]; then
    echo "code=$(cat run.exit)"
  elif running; then
    echo "code=running"
  else
    echo "code=lost"
  fi
}

stop() {
  local left="$GRACE"
  running && kill -TERM -- "-$(cat run.pid)"
  while running; do
    [ "$left" -gt 0 ] || kill -KILL -- "-$(cat run.pid)"
    left=$((left - 1))
    sleep 1
  done
  rm -f run.pid
}

"$part" "$@"
