#!/usr/bin/env bash
# Runs one command on this machine beyond the end of the ssh session that started it. tpu_pod.sh
# calls it on every worker. Log, process id and exit code lie in run.log, run.pid and run.exit.
#   launch/background.sh start COMMAND...   ends what an earlier start left, then starts the command
#   launch/background.sh follow             prints the log until the command ends
#   launch/background.sh code               prints "code=N", "code=running", or "code=lost" after a
#                                           reboot or a SIGKILL of everything
#   launch/background.sh stop               SIGTERM, which saves; SIGKILL after GRACE seconds
set -euo pipefail
GRACE="${GRACE:-120}"
cd "$(dirname "$0")/.."

running() { [ -e run.pid ] && kill -0 -- "-$(cat run.pid)" 2> /dev/null; }

start() {
  stop
  rm -f run.exit
  # A new session, so that it has a process group of its own; the trap keeps the shell waiting for
  # the command when the whole group is told to stop.
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

case "${1:-}" in
  start | follow | code | stop) "$@" ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2 && exit 1 ;;
esac
