#!/usr/bin/env bash
# ext4, xfs and btrfs on leaves of one root image: fsx, stress-ng --verify and
# fstrim in three guests at once, then, after a power-off, each file system's own
# check in a fourth guest that has all three disks.
set -euo pipefail
# shellcheck source=lib/guest.sh
. "$(dirname "$0")/lib/guest.sh"
# shellcheck source=lib/backend.sh
. "$(dirname "$0")/lib/backend.sh"

FILE_SYSTEMS=(ext4 xfs btrfs)

need mke2fs mkfs.xfs mkfs.btrfs stress-ng
ensure_guests
ensure_fsx
ensure_backend
make_work_dir

# Noise, so that a sector read from the wrong place never passes for zeros.
ROOT=$WORK/root.raw
head -c 384M /dev/urandom >"$ROOT"
ROOT_SUM=$(sha256sum <"$ROOT")
root_is_unchanged() { [ "$(sha256sum <"$ROOT")" = "$ROOT_SUM" ]; }

backend_start "$ROOT" "${FILE_SYSTEMS[@]}"

say "ext4, xfs and btrfs, a guest each"
pids=()
for fs in "${FILE_SYSTEMS[@]}"; do
  case $fs in
    ext4) tools=(mke2fs) ;;
    *) tools=("mkfs.$fs") ;;
  esac
  ensure_archive "make-$fs" file-systems "${tools[@]}" "$FSX" "$(command -v stress-ng)"
  { echo "FS=$fs" && cat "$QEMU_DIR/guest/filesystem.job"; } >"$WORK/$fs.job"
  guest_start -t 400 -m 320 -e "$ARCHIVE" "$fs" "$WORK/$fs.log" "$WORK/$fs.job" "$(socket_of "$fs")"
  pids+=("$GUEST_PID")
done
for fs in "${FILE_SYSTEMS[@]}"; do
  check "$fs: ran to its end" guest_wait "${pids[0]}" "$WORK/$fs.log"
  pids=("${pids[@]:1}")
  guest_checks "$fs" "$WORK/$fs.log" mkfs mount fsx-1 fsx-2 stress-hdd stress-hdd-direct files fstrim umount
  check "$fs: fstrim trimmed something" [ "0$(guest_value "$WORK/$fs.log" trimmed)" -gt 0 ]
done

say "the file systems' own checks"
ensure_archive fsck file-systems e2fsck xfs_repair btrfs
check "fsck: ran to its end" guest_run -t 200 -m 512 -e "$ARCHIVE" fsck "$WORK/fsck.log" \
  "$QEMU_DIR/guest/fsck.job" "$(socket_of ext4)" "$(socket_of xfs)" "$(socket_of btrfs)"
guest_checks "fsck" "$WORK/fsck.log" ext4-fsck ext4-files xfs-fsck xfs-files btrfs-fsck btrfs-files

check "the backend stops with status 0" backend_stop
check "the root's checksum is the same as before" root_is_unchanged
show_counters
summary || exit 1
