#!/usr/bin/env bash
# Runs the tests with the lowest versions that setup.py allows; arguments go to pytest.
# uv installs them into .venv_lowest, and takes the lowest versions with a wheel for the interpreter.
# PYTHON sets the interpreter.
#   launch/lowest.sh                   runs all tests
#   launch/lowest.sh tests/storage     runs some of them
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
# There is no wheel of promise, which tensorflow-datasets needs.
run "$venv/bin/uv" pip install --python "$venv/bin/python" --resolution lowest-direct \
  --only-binary :all: --no-binary promise --editable ".[dev]"
PATH="$PWD/$venv/bin:$PATH"
run python -m pytest -n 2 --dist loadfile --no-loadscope-reorder ${words[@]+"${words[@]}"}
