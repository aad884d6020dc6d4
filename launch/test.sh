#!/usr/bin/env bash
# Installs the package if needed, and runs the checks and tests; arguments go to pytest.
#   launch/test.sh              runs one config for every method and network at its smoke size
#   launch/test.sh --all        runs every config and every run of the sweeps, and plans 2,500 mutated
#                               configs and 300 mutated command lines instead of 300 and 12
#   launch/test.sh --cov=distill_jax    prints the lines and branches that no test reaches
#   EXTRA=dev,onnx launch/test.sh       also compares programs of ONNX, here and in a Chromium
#   launch/test.sh --dry-run    prints the commands, runs nothing
set -euo pipefail
# shellcheck source=launch/words.sh
. "$(dirname "$0")/words.sh"
read_words "$@"
pass_on
if [ "$DRY_RUN" != 1 ]; then
  # shellcheck source=launch/environment.sh
  . "$(dirname "$0")/environment.sh" "${EXTRA:-dev}"
  cd "$root"
fi
run ruff check .
run ruff format --check .
run mypy
# On shared cores, CPU-seconds are a better measure than wall time; most of them are compilation.
TIMEFORMAT="tests: %U + %S CPU-seconds (user, system)"
[ "$DRY_RUN" != 1 ] || TIMEFORMAT=""
time run python -m pytest -n 2 --dist loadfile --no-loadscope-reorder ${words[@]+"${words[@]}"}
