#!/usr/bin/env bash
# Runs the tests on the lowest versions that setup.py allows; arguments go to pytest.
# They are installed into .venv_lowest by uv, which takes the lowest that has a wheel for the Python.
# PYTHON picks the interpreter.
#   launch/lowest.sh                   all tests
#   launch/lowest.sh tests/storage     some of them
#   launch/lowest.sh --dry-run         prints the commands, runs nothing
set -euo pipefail
# shellcheck source=launch/words.sh
. "$(dirname "$0")/words.sh"
read_words "$@"
pass_on
cd "$(dirname "$0")/.."
venv=.venv_lowest
[ -x "$venv/bin/python" ] || run "${PYTHON:-python3}" -m venv "$venv"
run "$venv/bin/python" -m pip install --quiet uv
# promise, which tensorflow-datasets needs, has no wheel.
run "$venv/bin/uv" pip install --python "$venv/bin/python" --resolution lowest-direct \
  --only-binary :all: --no-binary promise --editable ".[dev]"
PATH="$PWD/$venv/bin:$PATH"
run python -m pytest -n 2 --dist loadfile --no-loadscope-reorder ${words[@]+"${words[@]}"}
