# shellcheck shell=bash
# Sourced by the launchers that train on other machines: chooses the code that runs there. All follow
# one rule. The code is one commit, the same at every restart; uncommitted changes are refused, or with
# ALLOW_DIRTY=1 part of the code.

COMMIT=HEAD    # In a dry run, which does not ask git.

# Sets REF, the full name of the commit that runs, and COMMIT, the same with " + changes" if there are
# some, and prints COMMIT. The commit is that of this checkout, or REF: a commit, branch or tag of the
# git URL SOURCE or, if SOURCE is empty, of this checkout.
pin_code() {
  refuse_placeholders SOURCE REF
  if [ -n "$REF" ]; then
    find_ref
    COMMIT="$REF"
  else
    this_checkout
  fi
  echo "code: $COMMIT${SOURCE:+ of $SOURCE}" >&2
}

# Resolves REF to the full name of a commit.
find_ref() {
  local found
  [[ ! "$REF" =~ ^[0-9a-f]{40}$ ]] || return 0
  if [ -z "$SOURCE" ]; then
    REF="$(git rev-parse --verify "$REF^{commit}")" || fail "REF is no commit of this checkout"
    return
  fi
  found="$(git ls-remote "$SOURCE" "$REF")" || fail "git cannot read SOURCE, $SOURCE"
  REF="$(awk -v ref="$REF" '$2 == ref || $2 == "refs/heads/" ref || $2 == "refs/tags/" ref { print $1 }' <<< "$found")"
  REF="${REF%%$'\n'*}"
  [ -n "$REF" ] || fail "$SOURCE has no branch or tag REF; for a commit give its full name"
}

# Prints the commit of this checkout, "none" without git, and whether files differ from it.
checkout() {
  local head changed
  head="$(git rev-parse --verify --quiet HEAD 2> /dev/null)" && changed="$(git status --porcelain)" || head=none
  [ "$head" != none ] || changed=unknown
  echo "$head${changed:+ + changes}"
}

# Takes the commit of this checkout, if the machines can have it.
this_checkout() {
  COMMIT="$(checkout)"
  REF="${COMMIT%% *}"
  if [ "$COMMIT" != "$REF" ] && [ -n "$SOURCE" ]; then
    fail "this checkout is $COMMIT, and $SOURCE lacks the changes; commit and push them, or set REF"
  elif [ "$COMMIT" != "$REF" ] && [ "${ALLOW_DIRTY:-0}" != 1 ]; then
    git status --short 2> /dev/null | head -n 10 >&2 || true
    fail "this checkout is $COMMIT; commit them, or set ALLOW_DIRTY=1 to run them, too"
  elif [ -n "$SOURCE" ] && [ -z "$(git branch --remotes --contains "$REF")" ]; then
    fail "commit $REF of this checkout is not pushed; push it, or set REF to another one"
  fi
}

# pack FILE: writes the code as a .tar.gz: the files of a commit, or of this checkout with its changes.
pack() {
  if [ "$DRY_RUN" = 1 ] && [ "${ALLOW_DIRTY:-0}" = 1 ] && [ -z "$REF" ]; then
    show tar -czf "$1" "[the files of this checkout]"
  elif [ "$DRY_RUN" = 1 ] || [ "$COMMIT" = "$REF" ]; then
    run git archive --format=tar.gz --output="$1" "${REF:-HEAD}"
  elif [ "$REF" = none ]; then
    tar -czf "$1" --exclude='.venv*' --exclude=./runs --exclude=__pycache__ --exclude='./.[a-z]*_cache' \
      --exclude=./.git .
  else
    git ls-files -z --cached --others --exclude-standard | while read -r -d '' file; do
      [ ! -e "$file" ] || printf '%s\0' "$file"
    done | tar --null --files-from=- -czf "$1"
  fi
}
