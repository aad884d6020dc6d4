# shellcheck shell=bash
# Sourced by the other scripts: reads and checks all words of a command before anything runs.
# ALLOW_MY=1 accepts values that begin with my-; otherwise they are placeholders of the documents.
DRY_RUN="${DRY_RUN:-0}"
words=()

fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints the comment at the top of the called script.
usage() { awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "$0"; }

# read_words WORD...: for --help or -h prints the usage and ends. --dry-run at any place sets DRY_RUN,
# and `words` gets all other words.
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

# expect KNOWN...: fails for any other word.
expect() {
  local word
  for word in ${words[@]+"${words[@]}"}; do
    case " $* " in
      *" $word "*) ;;
      *) fail "unknown word '$word'; expected $*" ;;
    esac
  done
}

# Fails for misspelt --dry-run and --help in scripts whose other words go to another program.
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

# refuse_placeholders NAME...: fails if one of these variables has a placeholder of the documents.
refuse_placeholders() {
  local name
  [ "${ALLOW_MY:-0}" != 1 ] || return 0
  for name in "$@"; do
    case "${!name:-}" in
      my-* | *://my-* | http*://*/my-*/* | *@*:my-*/*)
        fail "$name is ${!name}, a placeholder of the documents; set $name to your own" \
          "(or ALLOW_MY=1 if that is its name)"
        ;;
    esac
  done
}

# Resolves REF to the full name of a commit, so that a restart runs the same code: a commit of the
# repository SOURCE or, if that is empty, of this checkout, which must have no uncommitted changes.
pin_ref() {
  local found
  refuse_placeholders SOURCE REF
  [[ ! "$REF" =~ ^[0-9a-f]{40}$ ]] || return 0
  if [ -n "$SOURCE" ]; then
    found="$(git ls-remote "$SOURCE" "$REF")" || fail "git cannot read SOURCE, $SOURCE"
    REF="$(awk -v ref="$REF" '$2 == ref || $2 == "refs/heads/" ref || $2 == "refs/tags/" ref { print $1 }' <<< "$found")"
    REF="${REF%%$'\n'*}"
    [ -n "$REF" ] || fail "$SOURCE has no branch or tag REF; for a commit give its full name"
    return
  fi
  found="$(git status --porcelain)" || fail "this is no git checkout to send; set SOURCE to a git URL"
  if [ "$REF" = HEAD ] && [ -n "$found" ] && [ "${ALLOW_DIRTY:-0}" != 1 ]; then
    echo "$found" | head -n 10 >&2
    fail "only the last commit is sent, and these changes are not in it; commit them, or set ALLOW_DIRTY=1"
  fi
  REF="$(git rev-parse --verify "$REF^{commit}")" || fail "REF is no commit of this checkout"
}

# Prints a command with shell quoting.
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
