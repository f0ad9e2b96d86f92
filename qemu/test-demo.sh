#!/usr/bin/env bash
# qemu/demo.sh --console as a person runs it: something is typed at the guest's shell.
# Without the option it has two guests at work, which takes minutes beside other tests:
# it is its own test, by its exit status, for who changes it.
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
OUTPUT=$WORK/console.out

# at_shell: waits for a prompt; 1 if there is none. (A prompt ends no line: comes does not
# see it. tail ends by a signal where it is there first.)
at_shell() {
  local part
  while read -r -t 300 -d '#' part; do
    if [[ $part == *root@debian:~ ]]; then return; fi
  done < <(tail -c +1 --pid="$DEMO" -F "$OUTPUT" 2>/dev/null || true)
  return 1
}

mkfifo "$WORK/keys"
# Open for both: whoever opens one side of a pipe waits for the other.
exec 3<>"$WORK/keys"
# What it takes on a slow machine is a fraction of the limit.
timeout 600 "$QEMU_DIR/demo.sh" --console <"$WORK/keys" >"$OUTPUT" 2>&1 &
DEMO=$!
at_exit "stop_pid $DEMO"
check "a prompt" at_shell
# shellcheck disable=SC2016 # for the guest's shell
echo 'echo answer-$((6 * 7)); head -c 1M /dev/urandom >kept; sync; poweroff' >&3
check "status 0" wait "$DEMO"
for pattern in answer-42 '^web1: read .* from the root, .* wrote' '^leaf of web1: .* occupied' \
  '^leaf of web2: .* occupied' 'root image: .* is the same as before'; do
  check "says $pattern" grep -qE "$pattern" "$OUTPUT"
done
if [ "$CHECKS_FAILED" -gt 0 ]; then tail -n 30 "$OUTPUT"; fi
summary || exit 1
