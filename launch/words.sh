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
