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

# read_part DEFAULT KNOWN...: reads one KNOWN word, or DEFAULT, into `part`, and sets `yes` for --yes,
# which only the part down takes, because it asks.
read_part() {
  local word
  part=""
  yes=0
  expect "${@:2}" --yes --dry-run --help
  for word in ${words[@]+"${words[@]}"}; do
    case "$word" in
      --yes) yes=1 ;;
      *) [ -z "$part" ] || fail "'$part' and '$word' are two parts; expected one"; part="$word" ;;
    esac
  done
  part="${part:-$1}"
  [ "$yes" = 0 ] || [ "$part" = down ] || fail "--yes is only for down, which asks; '$part' does not"
}

# confirm WHAT: asks before WHAT is deleted, and fails if the answer is not yes. --yes is an answer.
confirm() {
  local answer
  [ "$yes" = 0 ] || return 0
  [ -t 0 ] || fail "$1 is deleted only after a question; add --yes to down if there is no terminal"
  read -r -p "Delete $1? [yes/no] " answer || true
  [ "$answer" = yes ] || fail "answered '$answer', not yes: nothing is deleted"
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

# expect_options PROGRAM: fails for a word that is no option of the program, --NAME or --NAME=VALUE.
expect_options() {
  local word
  for word in ${words[@]+"${words[@]}"}; do
    case "$word" in
      --[a-z]*) ;;
      *) fail "unknown word '$word'; expected --dry-run, --help, or an option of $1 as --NAME or --NAME=VALUE" ;;
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
