#!/usr/bin/env bash
# Trains a config under SLURM and requeues a stopped job. Run it in a checkout on a file system that
# all nodes share. Options of sbatch may follow, as --NAME or --NAME=VALUE:
#   NODES=2 CONFIG=configs/imagenet64_guided.py:deterministic launch/slurm.sh --partition=gpu --time=8:00:00
#   launch/slurm.sh --dry-run    prints the commands, runs nothing
# The variables are at the top of this file.
# The exit code is 0 after a complete run, and 1 after a user error, which is not requeued. The job
# is requeued after 129, 130, 131, 138 and 143 (stopped, state saved), and up to MAX_RESTARTS times after a crash.
# `scancel JOB` ends it for good; launch/slurm.sh with the same WORKDIR resumes the run.
#SBATCH --job-name=distill
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
#SBATCH --signal=B:TERM@120
set -euo pipefail
# sbatch runs a copy of this file, from another directory.
root="${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# shellcheck source=launch/words.sh
. "$root/launch/words.sh"
# shellcheck source=launch/code.sh
. "$root/launch/code.sh"
read_words "$@"
pass_on
expect_options sbatch
cd "$root"

CONFIG="${CONFIG:-configs/imagenet64_guided.py:deterministic}"
name="$(basename "${CONFIG/.py:/_}" .py)"
WORKDIR="${WORKDIR:-runs/$name}"                     # on the shared file system, or gs://
ARGS="${ARGS:-}"                                     # further flags of distill_jax.main
NODES="${NODES:-${SLURM_JOB_NUM_NODES:-1}}"
GPUS="${GPUS:-${SLURM_GPUS_ON_NODE:-8}}"             # on each node
PER="${PER:-node}"                                   # one process per node or per gpu
EXTRA="${EXTRA:-cuda}"                               # of setup.py; cuda,gcs for gs://
MAX_RESTARTS="${MAX_RESTARTS:-20}"                   # after crashes
STALL_MINUTES="${STALL_MINUTES:-60}"                 # without progress, then it counts as a crash; 0: never
IMAGE="${IMAGE:-}"                                   # of launch/Dockerfile, for Pyxis; empty: install into .venv
MOUNTS="${MOUNTS:-$PWD}"                             # folders that the container sees, with commas
SOURCE=""
REF=""                                               # the code is this checkout

case "$PER" in
  node) tasks=1 ;;
  gpu) tasks="$GPUS" ;;
  *) fail "PER is $PER; expected node or gpu" ;;
esac
# Under SLURM, JAX gives each process the one GPU of its rank on the node, SLURM_LOCALID
# (jax/_src/clusters/cluster.py, auto_detect_unset_distributed_params). A process per node would see
# only GPU 0. jax/_src/distributed.py reads this variable before SLURM's.
[ "$PER" = gpu ] || export JAX_LOCAL_DEVICE_IDS="${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((GPUS - 1)))}"
# Without binding every process sees all CPUs of its node and all GPUs, which those numbers index.
python=python
container=()
if [ -n "$IMAGE" ]; then
  python=/distill_jax/.venv/bin/python
  container=(--container-image="$IMAGE" --container-mounts="$MOUNTS" --container-workdir="$PWD")
fi
# shellcheck disable=SC2206
command=(srun --nodes="$NODES" --ntasks="$((NODES * tasks))" --ntasks-per-node="$tasks"
  --cpu-bind=none --gpu-bind=none ${container[@]+"${container[@]}"}
  "$python" -m distill_jax.main --config="$CONFIG" --workdir="$WORKDIR"
  --stall_minutes="$STALL_MINUTES" $ARGS)

submit=(sbatch --nodes="$NODES" --gpus-per-node="$GPUS" ${words[@]+"${words[@]}"} launch/slurm.sh)

if [ "$DRY_RUN" = 1 ]; then
  [ -n "${SLURM_JOB_ID:-}" ] || echo "${submit[*]}"
  echo "${JAX_LOCAL_DEVICE_IDS:+JAX_LOCAL_DEVICE_IDS=$JAX_LOCAL_DEVICE_IDS }${command[*]}"
  exit
fi
refuse_placeholders CONFIG WORKDIR ARGS
if [ -z "${SLURM_JOB_ID:-}" ]; then
  pin_code
  export DISTILL_JAX_COMMIT="$COMMIT"
  exec "${submit[@]}"
fi
# The job may start days after sbatch, and again. A node without git cannot tell.
now="$(checkout)"
if [ "$now" != "${DISTILL_JAX_COMMIT:-$now}" ] && [ "${now%% *}" != none ] && [ "${ALLOW_DIRTY:-0}" != 1 ]; then
  fail "this checkout is $now, but $DISTILL_JAX_COMMIT was submitted; check that out and submit again" \
    "(or set ALLOW_DIRTY=1 to run what is there)"
fi

# shellcheck source=launch/environment.sh
[ -n "$IMAGE" ] || . launch/environment.sh "$EXTRA"
# shellcheck source=launch/xla_gpu.sh
. launch/xla_gpu.sh

# SIGTERM reaches only this shell, 120 s before the time limit. srun would send SIGKILL to its tasks,
# so scancel forwards SIGTERM: with --signal it reaches the tasks of the job, but not this shell.
asked=0
trap 'asked=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
"${command[@]}" &
child=$!
while true; do
  asked=0
  code=0
  wait "$child" || code=$?
  [ "$asked" = 1 ] || break    # A signal interrupts wait.
done

again=0
case "$code" in
  0 | 1) ;;
  129 | 130 | 131 | 138 | 143) again=1 ;;
  *) [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_RESTARTS" ] || again=1 ;;
esac
# A cancelled job is not requeued.
case "$(scontrol show job "$SLURM_JOB_ID")" in
  *JobState=CANCELLED*) again=0 ;;
esac
if [ "$again" = 1 ]; then
  echo "slurm: exit code $code, requeued after ${SLURM_RESTART_COUNT:-0} restarts"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
