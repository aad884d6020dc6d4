# shellcheck shell=bash
# Sourced by the other scripts, which read all words of a command before they do anything.
# ALLOW_MY=1: takes values that begin with my-, which are placeholders of the documents otherwise.
DRY_RUN="${DRY_RUN:-0}"
words=()

fail() {
  echo "error: $*" >&2
  exit 1
}

# The comment at the top of the script that was called.
usage() { awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "$0"; }

# read_words WORD...: prints the usage and ends where one is --help or -h, notes --dry-run wherever it
# stands, and keeps the others in `words`.
read_words() {
  local word help=0
  words=()
  for word in "$@"; do
    case "$word" in
      --help | -h) help=1 ;;
      --dry-run) DRY_RUN=1 ;;
      *) words+=("$word") ;;
    esac
  done
  if [ "$help" = 1 ]; then
    usage
    exit
  fi
}

# expect KNOWN...: refuses a word that is none of these.
expect() {
  local word
  for word in ${words[@]+"${words[@]}"}; do
    case " $* " in
      *" $word "*) ;;
      *) fail "unknown word '$word'; expected $*" ;;
    esac
  done
}

# Refuses words meant for this script in another spelling, where the others go to another program.
pass_on() {
  local word
  for word in ${words[@]+"${words[@]}"}; do
    case "${word%%=*}" in
      -*[Dd][Rr][Yy]* | -*[Rr][Uu][Nn] | [Dd][Rr][Yy]*[Rr][Uu][Nn] | -*[Hh][Ee][Ll][Pp]* | help)
        fail "unknown word '$word'; did you mean --dry-run or --help?"
        ;;
    esac
  done
}

# refuse_placeholders NAME...: ends where one of these variables has a value of the documents.
refuse_placeholders() {
  local name
  [ "${ALLOW_MY:-0}" != 1 ] || return 0
  for name in "$@"; do
    case "${!name:-}" in
      my-* | *://my-* | http*://*/my-*/* | *@*:my-*/*)
        fail "$name is ${!name}, a placeholder of the documents; set $name to your own" \
          "(ALLOW_MY=1 where it is really called my-...)"
        ;;
    esac
  done
}

# Makes REF the full name of a commit, so that a restart runs the same code: of the repository SOURCE
# or, where that is empty, of this checkout with no changes beside it.
pin_ref() {
  local found
  refuse_placeholders SOURCE REF
  [[ ! "$REF" =~ ^[0-9a-f]{40}$ ]] || return 0
  if [ -n "$SOURCE" ]; then
    found="$(git ls-remote "$SOURCE" "$REF")" || fail "git cannot read SOURCE, $SOURCE"
    REF="$(awk -v ref="$REF" '$2 == ref || $2 == "refs/heads/" ref || $2 == "refs/tags/" ref { print $1 }' <<< "$found")"
    REF="${REF%%$'\n'*}"
    [ -n "$REF" ] || fail "$SOURCE has no such branch or tag as REF; a commit is named in full"
    return
  fi
  found="$(git status --porcelain)" || fail "this is no git checkout to send; set SOURCE to a git URL"
  if [ "$REF" = HEAD ] && [ -n "$found" ] && [ "${ALLOW_DIRTY:-0}" != 1 ]; then
    echo "$found" | head -n 10 >&2
    fail "only the last commit is sent, and these changes are not in it; commit them, or set ALLOW_DIRTY=1"
  fi
  REF="$(git rev-parse --verify "$REF^{commit}")" || fail "REF is no commit of this checkout"
}

# Prints a command as it could be typed.
show() {
  local word line=""
  for word in "$@"; do
    case "$word" in
      "" | *[!A-Za-z0-9_./:=@,+-]*) line+=" '${word//\'/\'\\\'\'}'" ;;
      *) line+=" $word" ;;
    esac
  done
  echo "${line# }"
}

# Prints the command in a dry run; runs it otherwise.
run() { if [ "$DRY_RUN" = 1 ]; then show "$@"; else "$@"; fi; }
