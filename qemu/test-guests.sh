#!/usr/bin/env bash
# QEMU guests on one root image, each with its own leaf: random reads, random
# writes, crc32c verification, isolation, reboots; one and four guests at once,
# hugepage guest memory, two queues, a block device as root, 4 KiB blocks. One line per check,
# status 1 if one failed.
#
#   qemu/test-guests.sh        all of it
#   qemu/test-guests.sh --one  one guest, which starts again on its leaf
set -euo pipefail
# shellcheck source=lib/guest.sh
. "$(dirname "$0")/lib/guest.sh"
# shellcheck source=lib/backend.sh
. "$(dirname "$0")/lib/backend.sh"

case "$#${1-}" in
  0) ONE=0 ;;
  1--one) ONE=1 ;;
  *) echo "usage: qemu/test-guests.sh [--one]" >&2 && exit 2 ;;
esac

ROOT_MIB=96 # 64 MiB of noise, then a hole
JOBS=$QEMU_DIR/guest

ensure_guests
ensure_backend
make_work_dir

ROOT=$WORK/root.raw
head -c 64M /dev/urandom >"$ROOT"
truncate -s "${ROOT_MIB}M" "$ROOT"
ROOT_SUM=$(sha256sum "$ROOT" | cut -d' ' -f1)
root_is_unchanged() { [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$ROOT_SUM" ]; }

# job FILE…: the jobs put together into one script; prints its path.
job() {
  local path
  path=$(mktemp "$WORK/job.XXXXXX")
  (cd "$JOBS" && cat "${@/%/.job}") >"$path"
  echo "$path"
}

# --- one guest ------------------------------------------------------------------

backend_start "$ROOT" web1 web2 web3 web4 two,queues=2 huge again

say "one guest"
log=$WORK/one.log
check "one guest: ran to its end" guest_run web1 "$log" "$(job content io keep)" "$(socket_of web1)"
guest_checks "one guest" "$log" random-read random-write verify keep
check "one guest: the disk is as large as the root" \
  [ "$(guest_value "$log" size)" = $((ROOT_MIB * 1048576)) ]
check "one guest: a new leaf shows exactly the root" [ "$(guest_value "$log" content)" = "$ROOT_SUM" ]
check_name() {
  if [ "$BACKEND" = qsd ]; then
    skipped "one guest: the disk's serial is the VM's name" "qemu-storage-daemon has none"
  else
    check "one guest: the disk's serial is the VM's name" [ "$(guest_value "$log" serial)" = web1 ]
  fi
}
check_name

say "one guest, started again on its leaf"
log=$WORK/kept.log
check "second start: ran to its end" guest_run web1 "$log" "$(job kept)" "$(socket_of web1)"
guest_checks "second start" "$log" kept kept-verify

if [ "$ONE" = 1 ]; then
  check "the backend stops with status 0" backend_stop
  check "the root's checksum is the same as before" root_is_unchanged "$ROOT"
  summary || exit 1
  exit
fi

say "one guest that reboots"
log=$WORK/again.log
check "reboot: ran to its end" guest_run -r again "$log" "$(job reboot)" "$(socket_of again)"
guest_checks "reboot" "$log" written-before

# --- other shapes of guest --------------------------------------------------------

say "a guest with two queues"
log=$WORK/two.log
check "two queues: ran to its end" guest_run -s 2 -q 2 two "$log" "$(job io queues)" "$(socket_of two)"
check "two queues: the guest uses both" [ "$(guest_value "$log" queues)" = 2 ]
guest_checks "two queues" "$log" random-read random-write verify both-queues called-for-both

# Others may have changed the number since, so it is lowered, not put back.
give_hugepages_back() {
  local total
  total=$(cat /proc/sys/vm/nr_hugepages)
  echo $((total > $1 ? total - $1 : 0)) >/proc/sys/vm/nr_hugepages
}

# Makes COUNT free 2 MiB pages, and gives back what it took at the end: the kernel may
# have granted fewer than it was asked for.
free_hugepages() {
  local free total gained
  free=$(sed -n 's/^HugePages_Free: *//p' /proc/meminfo)
  [ "${free:-0}" -ge "$1" ] && return
  total=$(cat /proc/sys/vm/nr_hugepages) || return 1
  [ -w /proc/sys/vm/nr_hugepages ] || return 1
  echo $((total + $1 - free)) 2>/dev/null >/proc/sys/vm/nr_hugepages || return 1
  gained=$(($(cat /proc/sys/vm/nr_hugepages) - total))
  [ "$gained" -le 0 ] || at_exit "give_hugepages_back $gained"
  free=$(sed -n 's/^HugePages_Free: *//p' /proc/meminfo)
  [ "$free" -ge "$1" ]
}

if free_hugepages 96; then
  say "a guest in hugepages"
  log=$WORK/huge.log
  check "hugepages: ran to its end" guest_run -H -m 192 huge "$log" "$(job content io)" "$(socket_of huge)"
  check "hugepages: a new leaf shows exactly the root" [ "$(guest_value "$log" content)" = "$ROOT_SUM" ]
  guest_checks "hugepages" "$log" random-read random-write verify
else
  skipped "hugepages" "this host can't set 96 hugepages of 2 MiB aside (sysctl vm.nr_hugepages=96)"
fi

# --- four at once, after a restart of the backend -----------------------------------

check "the backend stops with status 0" backend_stop
backend_start "$ROOT" web1 web2 web3 web4

say "four guests at once"
pids=()
for name in web1 web2 web3 web4; do
  jobs="content io"
  [ $name = web1 ] && jobs="kept io"
  # shellcheck disable=SC2086 # job names are words
  guest_start -t 180 $name "$WORK/four-$name.log" "$(job $jobs)" "$(socket_of $name)"
  pids+=("$GUEST_PID")
done
for name in web1 web2 web3 web4; do
  log=$WORK/four-$name.log
  check "four guests, $name: ran to its end" guest_wait "${pids[0]}" "$log"
  pids=("${pids[@]:1}")
  guest_checks "four guests, $name" "$log" random-read random-write verify
  if [ $name = web1 ]; then
    guest_checks "four guests, web1 after a restart of the backend" "$log" kept kept-verify
  else
    check "four guests, $name: sees the root, and nothing of web1's writes" \
      [ "$(guest_value "$log" content)" = "$ROOT_SUM" ]
  fi
done

check "the backend stops with status 0 again" backend_stop

# --- a root that is a block device ------------------------------------------------------

loops_of_root() { losetup -n -O NAME -j "$ROOT"; }

# One that is in use goes with its last user.
release_loops() {
  local device
  for device in $(loops_of_root); do losetup -d "$device"; done
}

on_a_block_device() {
  local log=$WORK/block.log
  backend_start "$1" block
  check "block device: ran to its end" guest_run block "$log" "$(job content io)" "$(socket_of block)"
  check "block device: the disk is as large as the root" \
    [ "$(guest_value "$log" size)" = $((ROOT_MIB * 1048576)) ]
  check "block device: a new leaf shows exactly the root" [ "$(guest_value "$log" content)" = "$ROOT_SUM" ]
  guest_checks "block device" "$log" random-read random-write verify
  release_loops
  check "block device: leafblk holds it as long as it serves it" [ "$(loops_of_root)" = "$1" ]
  check "the backend stops with status 0, block device" backend_stop
  check "block device: it is free afterwards" [ -z "$(loops_of_root)" ]
}
if [ "$BACKEND" = qsd ]; then
  skipped "a root that is a block device" "its options for qemu-storage-daemon are others"
elif device=$(losetup --find --show --read-only "$ROOT"); then
  say "a root that is a block device"
  at_exit release_loops
  on_a_block_device "$device"
else
  skipped "a root that is a block device" "this host gives no loop device (losetup, as root)"
fi

# --- a root that was made for a disk of 4 KiB blocks -----------------------------------

# One partition from block 256 on, of 1024 blocks.
partitioned_in_4_kib() {
  head -c 8M /dev/urandom >"$1"
  printf 'g\nn\n1\n256\n1279\nw\n' | fdisk -b 4096 "$1"
}
in_4_kib_blocks() {
  local root=$WORK/4kn.raw log=$WORK/4kn.log sum
  partitioned_in_4_kib "$root" >"$log.fdisk" 2>&1 || return
  sum=$(dd if="$root" bs=4096 skip=256 count=1024 2>/dev/null | sha256sum | cut -d' ' -f1)
  backend_start "$root" four,block-size=4096 plain
  check "4 KiB blocks: ran to its end" \
    guest_run four "$log" "$(job four-kib)" "$(socket_of four)" "$(socket_of plain)"
  check "4 KiB blocks: the guest sees them, and sectors beside" \
    [ "$(guest_value "$log" blocks)" = "4096 512" ]
  check "4 KiB blocks: the partition is where it was made" \
    [ "$(guest_value "$log" partition)" = "2048 8192" ]
  check "4 KiB blocks: its content is the root's" [ "$(guest_value "$log" content)" = "$sum" ]
  guest_checks "4 KiB blocks" "$log" no-partition-in-sectors half-a-block-refused in-4-kib trims
  check "the backend stops with status 0, 4 KiB blocks" backend_stop
}
if [ "$BACKEND" = qsd ]; then
  skipped "a root for 4 KiB blocks" "its options for qemu-storage-daemon are others"
else
  say "a root that was made for a disk of 4 KiB blocks"
  need fdisk
  check "4 KiB blocks: a root with a partition" in_4_kib_blocks
fi

# --- a cache in hugepages that a restart takes over ------------------------------------

# The arena is a file on a hugetlbfs mount: one of this script's own, so that what it
# keeps goes with it.
kept_in_hugepages() {
  local log=$WORK/kept-cache.log said kept
  mkdir "$WORK/huge"
  mount -t hugetlbfs -o pagesize=2M none "$WORK/huge" || return
  at_exit "umount -l '$WORK/huge'"
  BACKEND_OPTIONS=(--keep-cache --hugepages on --cache-size 128MiB)
  for said in filled taken; do
    backend_start "$ROOT" "$said"
    check "a cache in hugepages, $said: ran to its end" \
      guest_run "$said" "$log" "$(job content)" "$(socket_of "$said")"
    check "a cache in hugepages, $said: the guest sees the root" \
      [ "$(guest_value "$log" content)" = "$ROOT_SUM" ]
    [ "$said" = taken ] || check "the backend stops with status 0, $said" backend_stop
  done
  check "the cache is a file in hugepages" test -f "$WORK"/huge/leafblk-*.cache
  # Its directory is kept beside it, on a tmpfs.
  kept=$(basename "$WORK"/huge/leafblk-*.cache .cache)
  at_exit "rm -f '/dev/shm/$kept.slots'"
  check "the second start took over all that the first had read" \
    grep -q 'took over 64MiB of cached blocks' "$BACKEND_LOG.err"
  check "the backend stops with status 0, taken" backend_stop
  BACKEND_OPTIONS=()
}
if [ "$BACKEND" = qsd ]; then
  skipped "a cache in hugepages" "qemu-storage-daemon has none"
elif free_hugepages 80; then
  say "a cache in hugepages that a restart takes over"
  kept_in_hugepages
else
  skipped "a cache in hugepages" "this host can't set 80 hugepages of 2 MiB aside (sysctl vm.nr_hugepages=80)"
fi

check "the root's checksum is the same as before" root_is_unchanged "$ROOT"
show_counters
summary || exit 1
