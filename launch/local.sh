#!/usr/bin/env bash
# Installs what is missing and trains a config on this machine; arguments go to distill_jax.main.
#   launch/local.sh --config=configs/digits_guided.py
# EXTRA=cuda, cuda12 (drivers before 580) or tpu installs JAX for that accelerator.
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh" "${EXTRA:-}"
exec python -m distill_jax.main "$@"
