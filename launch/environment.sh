# shellcheck shell=bash
# Sourced by the other scripts: makes .venv when there is none, installs the package with the extra
# named in $1 ("" for none) when setup.py changed since last time, and activates it.
# PYTHON picks the interpreter; an active virtual environment is used instead of .venv.
# Returns 75, which launchers try again, when something cannot be installed.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extra="${1:-}"
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
    echo "making $root/.venv with $("$python" --version)"
    "$python" -m venv "$root/.venv" || return 75
  fi
  # shellcheck disable=SC1091
  . "$root/.venv/bin/activate" || return 75
fi
stamp="$VIRTUAL_ENV/.distill_jax_$(cksum < "$root/setup.py" | tr -d ' ')_$extra"
if [ ! -e "$stamp" ]; then
  echo "installing distill_jax and what it needs (a minute or two, once)"
  python -m pip install --quiet --disable-pip-version-check --editable "$root${extra:+[$extra]}" ||
    return 75
  touch "$stamp"
fi
