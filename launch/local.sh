#!/usr/bin/env bash
# Installs the package if needed, and trains a config on this machine; arguments go to distill_jax.main.
#   launch/local.sh --config=configs/digits_guided.py
#   launch/local.sh --dry-run --config=configs/digits_guided.py    prints the command, runs nothing
# EXTRA=cuda, cuda12 (drivers before 580) or tpu installs JAX for that accelerator.
# python -m distill_jax.main --help lists the flags.
set -euo pipefail
# shellcheck source=launch/words.sh
. "$(dirname "$0")/words.sh"
read_words "$@"
pass_on
command=(python -m distill_jax.main ${words[@]+"${words[@]}"})
if [ "$DRY_RUN" = 1 ]; then
  show "${command[@]}"
  exit
fi
# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh" "${EXTRA:-}"
exec "${command[@]}"
