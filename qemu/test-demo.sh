#!/usr/bin/env bash
# qemu/demo.sh as a person runs it: with its two guests, and with one at a shell, at
# which something is typed.
set -euo pipefail
# shellcheck source=lib/common.sh
. "$(dirname "$0")/lib/common.sh"
# shellcheck source=lib/tools.sh
. "$(dirname "$0")/lib/tools.sh"
# shellcheck source=lib/backend.sh
. "$(dirname "$0")/lib/backend.sh"

BACKEND=leafblk
ensure_backend
export LEAFBLK
make_work_dir

# start_demo OUTPUT [--console]: DEMO is its process. What it takes on a slow machine
# is a fraction of the limit.
start_demo() {
  timeout 600 "$QEMU_DIR/demo.sh" "${@:2}" >"$1" 2>&1 <&0 &
  DEMO=$!
  at_exit "stop_pid $DEMO"
}

# said DEMO PATTERN…: a check for each: a line of the demo's output.
said() {
  local name=$1 pattern
  for pattern in "${@:2}"; do
    check "$name: says $pattern" grep -qE "$pattern" "$WORK/$name.out"
  done
}

say "two guests"
start_demo "$WORK/guests.out" </dev/null
check "guests: status 0" wait "$DEMO"
for name in web1 web2; do
  said guests "$name: multi-user" "$name: random-read .* IOPS" "$name: random-write .* IOPS" \
    "^$name: read .* from its leaf, .* from the cache" "^leaf of $name: .* occupied"
done
said guests "root image: .* is the same as before"

# at_shell: returns when there is a prompt.
at_shell() {
  local part
  while read -r -t 300 -d '#' part; do
    if [[ $part == *root@debian:~ ]]; then return; fi
  done < <(tail -c +1 --pid="$DEMO" -F "$WORK/console.out" 2>/dev/null || true)
  return 1
}

say "a shell"
mkfifo "$WORK/keys"
# Open for both: whoever opens one side of a pipe waits for the other.
exec 3<>"$WORK/keys"
start_demo "$WORK/console.out" --console <"$WORK/keys"
check "console: a prompt" at_shell
# shellcheck disable=SC2016 # for the guest's shell
echo 'echo answer-$((6 * 7)); head -c 1M /dev/urandom >kept; sync; poweroff' >&3
check "console: status 0" wait "$DEMO"
said console answer-42 "^web1: .* wrote" "root image: .* is the same as before"
if [ "$CHECKS_FAILED" -gt 0 ]; then tail -n 30 "$WORK"/*.out; fi
summary || exit 1
