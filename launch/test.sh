#!/usr/bin/env bash
# Installs what is missing and runs the checks and tests; arguments go to pytest.
#   launch/test.sh
set -euo pipefail
# shellcheck source=launch/environment.sh
. "$(dirname "$0")/environment.sh" dev
cd "$root"
ruff check .
ruff format --check .
# Compilation is most of the time and takes one core.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
