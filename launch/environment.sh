# shellcheck shell=bash
# Sourced by the other scripts: creates .venv if there is none, activates it, and installs the
# package with the extra in $1 ("" for none) and the versions of launch/constraints.txt, if those or
# setup.py have changed since the last installation. CONSTRAINTS names another file; if it is empty,
# the newest versions are installed.
# PYTHON sets the interpreter; an active virtual environment is used instead of .venv.
# Returns 75, after which launchers try again, if the installation fails.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extra="${1:-}"
# The image of launch/Dockerfile has everything installed there.
if [ -z "${VIRTUAL_ENV:-}" ] && [ -f /distill_jax/.venv/bin/activate ]; then
  # shellcheck disable=SC1091
  . /distill_jax/.venv/bin/activate
fi
if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -x "$root/.venv/bin/python" ]; then
    python="${PYTHON:-}"
    for candidate in python3.13 python3.12 python3.11 python3; do
      [ -n "$python" ] && break
      if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python="$candidate"
      fi
    done
    if [ -z "$python" ]; then
      echo "error: no Python 3.11 or newer with venv found; install one, or set PYTHON to it" >&2
      exit 1
    fi
    echo "creating $root/.venv with $("$python" --version)"
    "$python" -m venv "$root/.venv" || return 75
  fi
  # shellcheck disable=SC1091
  . "$root/.venv/bin/activate" || return 75
fi
constraints="${CONSTRAINTS-$root/launch/constraints.txt}"
stamp="$VIRTUAL_ENV/.distill_jax_$(cat "$root/setup.py" ${constraints:+"$constraints"} | cksum | tr -d ' ')_$extra"
if [ ! -e "$stamp" ]; then
  echo "installing distill_jax and its dependencies (a minute or two, once)"
  python -m pip install --quiet --disable-pip-version-check ${constraints:+--constraint "$constraints"} \
    --editable "$root${extra:+[$extra]}" || return 75
  touch "$stamp"
fi
