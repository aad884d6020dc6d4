#!/usr/bin/env bash
# Fills in gke_jobset.yaml and starts it on the current cluster of kubectl.
#   WORKDIR=gs://my-bucket/guided SOURCE=https://github.com/my-name/distill_jax launch/gke.sh
#   launch/gke.sh --dry-run    prints the finished YAML, runs nothing
# The variables are at the top of this file. These commands watch it and end it:
#   kubectl get jobset
#   kubectl logs -f --tail=-1 -l jobset.sigs.k8s.io/jobset-name=distill,batch.kubernetes.io/job-completion-index=0
#   kubectl delete jobset distill
# Then the same command resumes the run in WORKDIR; a JobSet of that name must not exist.
set -euo pipefail
# shellcheck source=launch/words.sh
. "$(dirname "$0")/words.sh"
read_words "$@"
expect --dry-run --help

NAME="${NAME:-distill}"
SOURCE="${SOURCE:-https://github.com/my-name/distill_jax}"    # git URL to install from
REF="${REF:-main}"                                            # commit, tag or branch of it, looked up once
CONFIG="${CONFIG:-configs/imagenet64_guided.py:deterministic}"
WORKDIR="${WORKDIR:-gs://my-bucket/imagenet64_guided}"        # the service account must write to it
ARGS="${ARGS:---config.mesh.fsdp=8}"                          # further flags of distill_jax.main
IMAGE="${IMAGE:-python:3.12}"                                 # Python 3.11 or later, with git
ACCELERATOR="${ACCELERATOR:-tpu-v5-lite-podslice}"            # label of the node pool
TOPOLOGY="${TOPOLOGY:-8x8}"                                   # of the slice: 64 chips
CHIPS_PER_NODE="${CHIPS_PER_NODE:-4}"
NODES="${NODES:-16}"                                          # chips of the slice / CHIPS_PER_NODE
SPOT="${SPOT:-1}"                                             # 0: not only spot nodes
SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-default}"                 # of Kubernetes
MAX_RESTARTS="${MAX_RESTARTS:-100}"

if [ "$DRY_RUN" != 1 ]; then
  refuse_placeholders NAME SOURCE REF CONFIG WORKDIR ARGS IMAGE SERVICE_ACCOUNT
  pin_ref
fi

text="$(cat "$(dirname "$0")/gke_jobset.yaml")"
for name in NAME SOURCE REF CONFIG WORKDIR ARGS IMAGE ACCELERATOR TOPOLOGY CHIPS_PER_NODE NODES \
  SERVICE_ACCOUNT MAX_RESTARTS; do
  mark="\${$name}"
  while [[ "$text" == *"$mark"* ]]; do
    text="${text%%"$mark"*}${!name}${text#*"$mark"}"
  done
done
[ "$SPOT" = 1 ] || text="$(grep -v gke-spot <<< "$text")"
if [ "$DRY_RUN" = 1 ]; then echo "$text"; else kubectl create -f - <<< "$text"; fi
