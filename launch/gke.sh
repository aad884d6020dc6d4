#!/usr/bin/env bash
# Fills in gke_jobset.yaml and starts it on the current cluster of kubectl.
#   WORKDIR=gs://my-bucket/guided SOURCE=https://github.com/my-name/distill_jax launch/gke.sh
#   launch/gke.sh --dry-run    prints the finished YAML, runs nothing
#   launch/gke.sh start | status | logs | errors | down    runs one part; errors prints the last lines
#                                                          of every worker
#   launch/gke.sh down --yes   deletes the JobSet without asking
# The same command resumes the run in WORKDIR. It asks before it replaces a finished JobSet of the same
# name, and never replaces a running one. The variables are below.
set -euo pipefail
# shellcheck source=launch/words.sh
. "$(dirname "$0")/words.sh"
# shellcheck source=launch/code.sh
. "$(dirname "$0")/code.sh"
read_words "$@"
read_part start start status logs errors down

NAME="${NAME:-distill}"
# The git URL that pods clone at REF; or `image`: IMAGE, made by launch/Dockerfile, has the code.
SOURCE="${SOURCE:-https://github.com/my-name/distill_jax}"
REF="${REF:-}"                                                # commit, tag or branch; empty: the commit of this checkout
CONFIG="${CONFIG:-configs/imagenet64_guided.py:deterministic}"
WORKDIR="${WORKDIR:-gs://my-bucket/imagenet64_guided}"        # the service account must write to it
ARGS="${ARGS:---config.mesh.fsdp=8}"                          # further flags of distill_jax.main
IMAGE="${IMAGE:-python:3.12}"                                 # Python 3.11 or later, with git
ACCELERATOR="${ACCELERATOR:-tpu-v5-lite-podslice}"            # label of the node pool
TOPOLOGY="${TOPOLOGY:-8x8}"                                   # of the slice: 64 chips
CHIPS_PER_NODE="${CHIPS_PER_NODE:-4}"
NODES="${NODES:-16}"                                          # chips of the slice / CHIPS_PER_NODE
CPU="${CPU:-32}"                                              # requested on each node
MEMORY="${MEMORY:-64Gi}"                                      # requested on each node
SPOT="${SPOT:-1}"                                             # 0: not only spot nodes
SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-default}"                 # of Kubernetes
MAX_RESTARTS="${MAX_RESTARTS:-100}"
STALL_MINUTES="${STALL_MINUTES:-60}"                          # without progress, then all pods restart
MAX_SECONDS="${MAX_SECONDS:-1209600}"                         # of one start; the JobSet then fails: 14 days

cd "$(dirname "$0")/.."
pods="jobset.sigs.k8s.io/jobset-name=$NAME"

# Prints the YAML with the values of the variables.
fill() {
  local text name mark
  text="$(cat launch/gke_jobset.yaml)"
  for name in NAME SOURCE REF CONFIG WORKDIR ARGS IMAGE ACCELERATOR TOPOLOGY CHIPS_PER_NODE NODES CPU \
    MEMORY SERVICE_ACCOUNT MAX_RESTARTS STALL_MINUTES MAX_SECONDS; do
    mark="\${$name}"
    while [[ "$text" == *"$mark"* ]]; do
      text="${text%%"$mark"*}${!name}${text#*"$mark"}"
    done
  done
  [ "$SPOT" = 1 ] || text="$(grep -v gke-spot <<< "$text")"
  echo "$text"
}

start() {
  local found
  if [ "$DRY_RUN" = 1 ]; then
    REF="${REF:-HEAD}"
    fill
    return
  fi
  refuse_placeholders NAME SOURCE REF CONFIG WORKDIR ARGS IMAGE SERVICE_ACCOUNT
  if [ "$SOURCE" != image ]; then
    pin_code
  elif [[ "$IMAGE" != *@sha256:* ]]; then
    fail "IMAGE is $IMAGE; with SOURCE=image give its digest, NAME@sha256:..., so that a restart runs the same code"
  fi
  found="$(kubectl get jobset "$NAME" --ignore-not-found --output='jsonpath={.metadata.name} {.status.terminalState}')" ||
    fail "kubectl cannot read the JobSets of the cluster; see above"
  case "$found" in
    "" | " ") ;;
    *" Completed" | *" Failed")
      confirm "the finished JobSet $found"
      down
      ;;
    *) fail "the JobSet $NAME is running; launch/gke.sh down ends it, or choose another NAME" ;;
  esac
  kubectl create --filename=- <<< "$(fill)"
}

status() { run kubectl get jobset "$NAME" && run kubectl get pods --selector="$pods"; }
logs() { run kubectl logs --follow --tail=-1 --selector="$pods,batch.kubernetes.io/job-completion-index=0"; }
errors() { run kubectl logs --prefix --tail=30 --max-log-requests="$NODES" --selector="$pods"; }
down() { run kubectl delete jobset "$NAME" --cascade=foreground; }

if [ "$part" = down ] && [ "$DRY_RUN" != 1 ]; then
  refuse_placeholders NAME
  confirm "the JobSet $NAME, and the run on it"
fi
"$part"
