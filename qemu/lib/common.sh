# shellcheck shell=bash
# Owns what every script here shares: progress lines, check lines, clean-up.
# Knows nothing of guests or backends.

QEMU_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # for backend.sh
REPO_DIR=$(dirname "$QEMU_DIR")
CACHE_DIR=$QEMU_DIR/cache
mkdir -p "$CACHE_DIR"

# --- progress -------------------------------------------------------------

# say TEXT…: one line of progress, with the seconds since the script started.
say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }

# die TEXT…: one sentence on stderr, status 1.
die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# --- check lines ------------------------------------------------------------

CHECKS_PASSED=0 CHECKS_FAILED=0 CHECKS_SKIPPED=0

check_number() { echo $((CHECKS_PASSED + CHECKS_FAILED + CHECKS_SKIPPED)); }

ok() {
  CHECKS_PASSED=$((CHECKS_PASSED + 1))
  echo "ok $(check_number) - $*"
}

not_ok() {
  CHECKS_FAILED=$((CHECKS_FAILED + 1))
  echo "not ok $(check_number) - $*"
}

# skipped CHECK REASON
skipped() {
  CHECKS_SKIPPED=$((CHECKS_SKIPPED + 1))
  echo "skipped $(check_number) - $1: $2"
}

# check TEXT COMMAND…: ok when the command succeeds.
check() {
  local text=$1
  shift
  if "$@"; then ok "$text"; else not_ok "$text"; fi
}

# Prints the count and returns 1 when a check failed or when there was none.
summary() {
  echo "$CHECKS_PASSED passed, $CHECKS_FAILED failed, $CHECKS_SKIPPED skipped ($SECONDS s)"
  [ "$CHECKS_FAILED" -eq 0 ] && [ "$CHECKS_PASSED" -gt 0 ]
}

# --- clean-up ---------------------------------------------------------------

CLEANUP=()

# at_exit COMMAND: runs it on exit or ctrl-C, last registered first.
at_exit() { CLEANUP+=("$1"); }

run_cleanup() {
  local status=$? i
  trap - EXIT INT TERM HUP
  for ((i = ${#CLEANUP[@]} - 1; i >= 0; i--)); do
    eval "${CLEANUP[i]}" || true
  done
  exit "$status"
}
trap run_cleanup EXIT
# An unforeseen failure says where; foreseen ones go through die or a check.
set -E
trap 'echo "$0: line $LINENO of ${BASH_SOURCE[0]} failed: $BASH_COMMAND" >&2' ERR
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# stop_pid PID: ends a process that this script started, and waits for it.
stop_pid() {
  kill "$1" 2>/dev/null || return 0
  wait "$1" 2>/dev/null || true
}

# comes SECONDS PID FILE PATTERN [COUNT]: waits for a line in FILE, which PID writes, or
# for so many; 1 if they are not there in that time, or before PID ends.
comes() {
  local count=${5:-1}
  # tail and timeout end by a signal where the lines are found first.
  [ "$(grep -c -m "$count" "$4" < <(timeout "$1" tail -n +1 --pid="$2" -F "$3" 2>/dev/null || true) || true)" -eq "$count" ]
}

# make_work_dir: sets WORK, a directory that is gone at the end (it stays, and is
# named, when a check failed: the console logs are in it). Sockets live in it, so
# its path is short.
make_work_dir() {
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/leafblk.XXXXXX")
  at_exit drop_work_dir
}

keep_work_dir() { KEEP_WORK=1; }

drop_work_dir() {
  if [ "$CHECKS_FAILED" -gt 0 ] || [ "${KEEP_WORK:-0}" = 1 ]; then
    # Disks are large and can be made again; logs are what is wanted.
    find "$WORK" -type f -size +64M -delete
    echo "console and backend logs are in $WORK"
  else
    rm -rf "$WORK"
  fi
}
