#!/usr/bin/env bash
# A real Debian from the root image: boots to multi-user, changes files, powers
# off, boots again from its leaf with the changes there; e2fsck, run on the disk
# through leafblk, finds it clean, and the root image is what it was.
set -euo pipefail
# shellcheck source=lib/debian.sh
. "$(dirname "$0")/lib/debian.sh"
# shellcheck source=lib/backend.sh
. "$(dirname "$0")/lib/backend.sh"

need mke2fs
ensure_guests
ensure_debian
ensure_backend
make_work_dir

ROOT=$DEBIAN_DIR/root.raw
ROOT_SUM=$(sha256sum <"$ROOT")
root_is_unchanged() { [ "$(sha256sum <"$ROOT")" = "$ROOT_SUM" ]; }

# boot WHAT: a Debian guest with the job debian-WHAT, on web1's disk.
boot() {
  say "Debian, $1 boot"
  debian_start "$1" "$WORK/$1.log" "$QEMU_DIR/guest/debian-$1.job" "$(socket_of web1)"
  check "$1 boot: ran to its end and powered off" guest_wait "$GUEST_PID" "$WORK/$1.log"
}

backend_start "$ROOT" web1 web2
boot first
guest_checks "first boot" "$WORK/first.log" multi-user changes fstrim
check "the backend stops with status 0" backend_stop
backend_start "$ROOT" web1 web2
boot second
guest_checks "second boot" "$WORK/second.log" multi-user changes-are-there

say "e2fsck through the backend"
ensure_archive e2fsck none e2fsck dumpe2fs
check "e2fsck: ran to its end" guest_run -m 512 -e "$ARCHIVE" fsck "$WORK/fsck.log" \
  "$QEMU_DIR/guest/debian-fsck.job" "$(socket_of web1)" "$(socket_of web2)"
guest_checks "after both boots" "$WORK/fsck.log" e2fsck clean neighbour-e2fsck neighbour-sees-the-root

check "the backend stops with status 0 again" backend_stop
check "the root's checksum is the same as before" root_is_unchanged
show_counters
summary || exit 1
