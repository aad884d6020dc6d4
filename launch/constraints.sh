#!/usr/bin/env bash
# Writes launch/constraints.txt with uv: the version of every package that the launchers install, for
# all extras, operating systems and Pythons of setup.py. Versions that are there stay if they fit.
#   launch/constraints.sh              after a change of setup.py
#   launch/constraints.sh --upgrade    takes the newest versions
#   launch/constraints.sh --dry-run    prints the command, runs nothing
# CONSTRAINTS= (empty) in front of a launcher on this machine installs the newest versions instead.
set -euo pipefail
# shellcheck source=launch/words.sh
. "$(dirname "$0")/words.sh"
read_words "$@"
expect --upgrade --dry-run --help
cd "$(dirname "$0")/.."
[ "$DRY_RUN" = 1 ] || command -v uv > /dev/null || fail "uv is missing; pip install uv"
run uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate \
  --custom-compile-command launch/constraints.sh --output-file launch/constraints.txt \
  ${words[@]+"${words[@]}"} setup.py
