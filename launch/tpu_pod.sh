#!/usr/bin/env bash
# Trains a config on a Cloud TPU slice and restarts after a preemption. Run it on any machine with
# gcloud, and keep it running; the training itself continues without it.
#   PROJECT=my-project WORKDIR=gs://my-bucket/guided launch/tpu_pod.sh
#   launch/tpu_pod.sh --dry-run    prints the commands, runs nothing
#   launch/tpu_pod.sh up | install | start | logs | errors | codes | stop | down    runs one part;
#                              errors prints the last lines of every worker
#   launch/tpu_pod.sh down --yes   deletes the slice without asking
# The variables are at the top of this file. Without SOURCE it sends the commit of this checkout.
# The exit code is 0 after a complete run, and 1 after a user error, which a restart would not fix.
# It restarts after 143 and 130 (stopped, state saved), a crash, and the loss of a worker or slice.
# A restart with the same WORKDIR resumes the run.
set -euo pipefail
# shellcheck source=launch/words.sh
. "$(dirname "$0")/words.sh"
# shellcheck source=launch/code.sh
. "$(dirname "$0")/code.sh"
read_words "$@"
read_part all all up install start logs errors codes stop down

PROJECT="${PROJECT:-my-project}"                        # Google Cloud project
ZONE="${ZONE:-us-west4-a}"                              # a zone that has the accelerator
NAME="${NAME:-distill}"                                 # name of the queued resource and its TPU VM
ACCELERATOR_TYPE="${ACCELERATOR_TYPE:-v5litepod-64}"    # gcloud compute tpus accelerator-types list
RUNTIME_VERSION="${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}"    # its image; tpu-ubuntu2204-base for v4
SPOT="${SPOT:-1}"                                       # 1: cheaper, may be preempted; 0: on demand
CONFIG="${CONFIG:-configs/imagenet64_guided.py:deterministic}"
WORKDIR="${WORKDIR:-gs://my-bucket/imagenet64_guided}"  # a bucket in the same region
ARGS="${ARGS:---config.mesh.fsdp=8}"                    # further flags of distill_jax.main
SOURCE="${SOURCE:-}"                                    # git URL to install from; empty: send this checkout
REF="${REF:-}"                                          # commit, tag or branch; empty: the commit of this checkout
MAX_RESTARTS="${MAX_RESTARTS:-100}"                     # largest number of restarts
STALL_MINUTES="${STALL_MINUTES:-60}"                    # without progress, then all workers restart; 0: never
MAX_FAILURES="${MAX_FAILURES:-10}"                      # largest number of consecutive failed requests for a slice
POLL="${POLL:-30}"                                      # seconds between two polls
KEEP="${KEEP:-0}"                                       # 1: keep the slice after the run
DOWN_AFTER_MISTAKE="${DOWN_AFTER_MISTAKE:-0}"           # 1: delete it after a user error, too

STILL_UP="still up, and $ACCELERATOR_TYPE costs money (https://cloud.google.com/tpu/pricing) until launch/tpu_pod.sh down"

cd "$(dirname "$0")/.."
place=(--project="$PROJECT" --zone="$ZONE")

say() { echo "tpu_pod: $*" >&2; }

# on WORKER COMMAND: runs a shell command on one worker (0) or all of them.
on() { run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker="$1" --command="$2"; }

# request VERB OPTION...: runs a gcloud command on the request for the slice.
request() { run gcloud compute tpus queued-resources "$1" "$NAME" "${place[@]}" "${@:2}"; }
describe() { request describe --format="value(state.state)"; }
down() { request delete --force --quiet; }

create() {
  local options=(--node-id="$NAME" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION")
  [ "$SPOT" != 1 ] || options+=(--spot)
  request create "${options[@]}"
}

# Prints the state of the request: NONE if it does not exist, UNKNOWN if gcloud fails.
state() {
  describe 2> "$scratch/error" && return
  if grep -q NOT_FOUND "$scratch/error"; then echo NONE; else cat "$scratch/error" >&2 && echo UNKNOWN; fi
}

# Waits until the slice is active; requests it if there is none, and again after a preemption.
up() {
  local now last="" failed=0
  while [ "$failed" -lt "$MAX_FAILURES" ]; do
    now="$(state)"
    [ "$now" = "$last" ] || say "$NAME is $now"
    last="$now"
    failed=$((failed + 1))
    case "$now" in
      ACTIVE) return ;;
      NONE) ! create || failed=0 ;;
      FAILED | SUSPENDING | SUSPENDED) down || true ;;
      UNKNOWN) ;;
      *) failed=0 ;;
    esac
    sleep "$POLL"
  done
  fail "no slice after $failed attempts; see the last lines of gcloud"
}

# The image's Python is too old, so uv installs another; environment.sh installs the rest.
install() {
  local fetch="mkdir -p distill_jax && rm -rf distill_jax/distill_jax distill_jax/configs"
  fetch+=" && tar -xzf distill_jax.tar.gz -C distill_jax && echo '$COMMIT' > distill_jax/launch/commit.txt"
  if [ -n "$SOURCE" ]; then
    fetch="{ [ -d distill_jax ] || git clone --quiet $SOURCE distill_jax; }"
    fetch+=" && git -C distill_jax fetch --quiet origin ${REF:-HEAD} && git -C distill_jax checkout --quiet FETCH_HEAD"
  else
    pack "$scratch/distill_jax.tar.gz" || return 1
    run gcloud compute tpus tpu-vm scp "$scratch/distill_jax.tar.gz" "$NAME:distill_jax.tar.gz" "${place[@]}" \
      --worker=all || return 1
  fi
  local uv="curl -LsSf https://astral.sh/uv/0.13.9/install.sh | sh"
  on all "$fetch && cd distill_jax && { [ -x .venv/bin/python ] || { $uv && ~/.local/bin/uv venv --quiet --seed --python 3.12 .venv; }; } && . launch/environment.sh tpu,gcs"
}

start() {
  on all "cd distill_jax && . launch/xla_tpu.sh && EXTRA=tpu,gcs launch/background.sh start launch/local.sh --config=$CONFIG --workdir=$WORKDIR --stall_minutes=$STALL_MINUTES $ARGS"
}

logs() { on 0 "distill_jax/launch/background.sh follow"; }
errors() { on all "tail -n 40 distill_jax/run.log | sed \"s/^/\$(hostname): /\""; }
codes() { on all "distill_jax/launch/background.sh code"; }
stop() { on all "distill_jax/launch/background.sh stop"; }

# Installs and starts on all workers; new machines may need some attempts.
begin() {
  for _ in 1 2 3; do
    install && start && return
    [ "$(state)" = ACTIVE ] || break
    sleep "$POLL"
  done
  return 1
}

# Ends after a user error, with the last lines of all workers.
mistake() {
  errors >&2 || true
  [ "$DOWN_AFTER_MISTAKE" != 1 ] || { down && fail "the command failed, see above; fix it and start again"; }
  fail "the command failed, see above; fix it and start again. $NAME is $STILL_UP"
}

# Follows the run until it needs a restart; ends the script after a complete run or a user error.
watch() {
  local found silent=0
  while true; do
    logs || true
    found="$(state)"
    if [ "$found" = ACTIVE ]; then
      found="$(codes | grep -o 'code=[0-9a-z]*' | sort -u | xargs)" || found=silent
    fi
    case " $found " in
      # The run continues while this machine has no network.
      " UNKNOWN ") ;;
      " silent ")
        silent=$((silent + 1))
        [ "$silent" -lt 5 ] || { say "a worker does not answer" && return; }
        ;;
      *" code=running "*) silent=0 ;;
      " code=0 ")
        [ "$KEEP" = 1 ] || down || say "$NAME could not be deleted: launch/tpu_pod.sh down"
        say "complete: $WORKDIR/report.md"
        exit
        ;;
      # A user error ends one worker with 1; the others lose it and end with another code.
      *" code=1 "*) say "workers ended with $found" && mistake ;;
      *" code="*) say "workers ended with $found" && return ;;
      *) say "the slice was preempted" && return ;;
    esac
    sleep "$POLL"
  done
}

all() {
  local restarts ran=0
  for ((restarts = 0; restarts <= MAX_RESTARTS; restarts++)); do
    [ "$restarts" = 0 ] || { say "restart $restarts" && sleep "$POLL"; }
    up
    if begin; then
      ran=1
      watch
    elif [ "$(state)" != ACTIVE ]; then
      say "the slice was preempted"
    elif [ "$ran" = 1 ]; then
      say "a worker is lost; requesting a new slice"
      down || true
    else
      mistake
    fi
  done
  fail "gave up after $MAX_RESTARTS restarts. $NAME is $STILL_UP"
}

scratch=/tmp
if [ "$DRY_RUN" = 1 ]; then
  up() { create && describe; }
  all() { up && install && start && logs && codes && { [ "$KEEP" = 1 ] || down; }; }
else
  # The variables of this part are checked before the first call of a cloud.
  refuse_placeholders PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION
  case "$part" in all | start) refuse_placeholders CONFIG WORKDIR ARGS ;; esac
  case "$part" in all | install) pin_code ;; esac
  [ "$part" != down ] || confirm "the slice $NAME in $ZONE of $PROJECT, and the run on it"
  scratch="$(mktemp -d)"
  trap 'rm -rf "$scratch"' EXIT
fi
"$part"
