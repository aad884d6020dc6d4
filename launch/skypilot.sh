#!/usr/bin/env bash
# Starts skypilot.yaml as a managed job of SkyPilot. Options of `sky jobs launch` may follow, as --NAME
# or --NAME=VALUE:
#   WORKDIR=gs://my-bucket/guided launch/skypilot.sh --gpus=H100:8
#   launch/skypilot.sh --dry-run    prints the command, runs nothing
# `sky launch --dryrun launch/skypilot.yaml` prints where it would run, and the price.
set -euo pipefail
# shellcheck source=launch/words.sh
. "$(dirname "$0")/words.sh"
# shellcheck source=launch/code.sh
. "$(dirname "$0")/code.sh"
read_words "$@"
pass_on
expect_options "sky jobs launch"
cd "$(dirname "$0")/.."

NAME="${NAME:-distill}"
CONFIG="${CONFIG:-configs/imagenet64_guided.py:deterministic}"
WORKDIR="${WORKDIR:-gs://my-bucket/imagenet64_guided}"    # a bucket that exists; docs/scale.md on s3://
ARGS="${ARGS:---config.mesh.fsdp=8}"                      # further flags of distill_jax.main
IMAGE="${IMAGE:-}"                                        # of launch/Dockerfile; empty: install on every node
SOURCE=""
REF=""    # SkyPilot sends the files of this checkout.

if [ "$DRY_RUN" != 1 ]; then
  refuse_placeholders NAME CONFIG WORKDIR ARGS IMAGE
  pin_code
fi
run sky jobs launch --name="$NAME" ${IMAGE:+--image-id="docker:$IMAGE"} --env CONFIG="$CONFIG" \
  --env WORKDIR="$WORKDIR" --env ARGS="$ARGS" --env DISTILL_JAX_COMMIT="$COMMIT" \
  ${words[@]+"${words[@]}"} launch/skypilot.yaml
