#!/usr/bin/env bash
# Guests that firmware boots: SeaBIOS and UEFI (OVMF) read a disk with partitions through
# leafblk, GRUB reads a kernel from it, and what the guest has written is there after each
# boot. Machines and queues of several shapes; a reset, a pause, a restart and a kill of
# leafblk while firmware, boot loader and kernel are at work; sleep (S3), an unbound
# driver, kexec, microvm. One line per check, status 1 if one failed.
#
#   qemu/test-firmware.sh        one machine with each firmware, a kill and resets: some
#                                100 s on 2 cores without KVM
#   qemu/test-firmware.sh --all  all of it
set -euo pipefail
# shellcheck source=lib/firmware.sh
. "$(dirname "$0")/lib/firmware.sh"
# shellcheck source=lib/backend.sh
. "$(dirname "$0")/lib/backend.sh"
# shellcheck source=lib/monitor.sh
. "$(dirname "$0")/lib/monitor.sh"

case "$#${1-}" in
  0) ALL=0 ;;
  1--all) ALL=1 ;;
  *) echo "usage: qemu/test-firmware.sh [--all]" >&2 && exit 2 ;;
esac

BACKEND=leafblk
ensure_guests
ensure_debian
ensure_firmware
ensure_backend
make_work_dir

ROOT=$FIRMWARE_DIR/disk.raw
ROOT_SUM=$(sha256sum <"$ROOT")
root_is_unchanged() { [ "$(sha256sum <"$ROOT")" = "$ROOT_SUM" ]; }

# job NAME ROUNDS EXTRA: the small guest's job; prints its path.
job() {
  { echo "ROUNDS=$2 EXTRA='$3'" && grep -v '^#' "$QEMU_DIR/guest/firmware.job"; } >"$WORK/$1.job"
  echo "$WORK/$1.job"
}

# boot NAME FIRMWARE ROUNDS EXTRA [qemu_command's options]: starts the small guest on the
# disk of VM NAME, with a monitor. It may reboot if there are more rounds than one.
boot() {
  local name=$1 firmware=$2 rounds=$3 extra=$4 options
  shift 4
  monitor_open "$name"
  options="$SMALL_OPTIONS $(job_option "$(job "$name" "$rounds" "$extra")")"
  firmware_command "$firmware" small "$options" "$name" -m 384 "$@" "$(socket_of "$name")"
  [ "$rounds" -gt 1 ] || QEMU+=(-no-reboot)
  LOG=$WORK/$name.log
  : >"$LOG"
  qemu_start 600 "$name" "$LOG"
}

# reached STAGE COUNT: the guest has come to it so often; 1 if it does not in 180 s.
reached() {
  local pattern
  case $1 in
    bios) pattern='Booting from Hard Disk' ;;
    uefi) pattern='BdsDxe: loading Boot' ;;
    loader) pattern='LEAFBLK-GUEST: loader' ;;
    kernel) pattern='LEAFBLK-GUEST: round [0-9]* works' ;;
  esac
  comes 180 "$GUEST_PID" "$LOG" "$pattern" "$2"
}

# ended NAME FIRMWARE QUEUES EXTRA: the guest has come to its end, and all was well.
ended() {
  check "$1: ran to its end" guest_wait "$GUEST_PID" "$LOG"
  # shellcheck disable=SC2086 # words
  guest_checks "$1" "$LOG" mount files kept verify $4 fsck no-io-error
  check "$1: by $2" [ "$(guest_value "$LOG" firmware)" = "$2" ]
  check "$1: queues: $3" [ "$(guest_value "$LOG" queues)" = "$3" ]
  monitor_errors "$1"
}

# again: leafblk, after its end.
again() {
  local before
  before=$(connections)
  "$1"
  backend_start "$ROOT" "${VMS[@]}"
  frontends_are_back "$before" 1
}

paused() {
  local name=$1 before
  before=$(grep -c 'status: paused' "$WORK/$name.monitor.log" || true)
  monitor "$name" stop
  monitor "$name" info status
  comes 20 "$GUEST_PID" "$WORK/$name.monitor.log" 'status: paused' $((before + 1)) &&
    monitor "$name" cont
}

# in_each_stage NAME FIRMWARE WHAT COMMAND…: the command, once in the firmware, once in
# the boot loader, which then reads the kernel, and once under the guest's writes.
in_each_stage() {
  local name=$1 firmware=$2 what=$3 stage
  shift 3
  say "$name: $what in firmware, boot loader and kernel"
  boot "$name" "$firmware" 1 ''
  for stage in "$firmware" loader kernel; do
    check "$name: reached, $stage" reached "$stage" 1
    check "$name: $what, $stage" "$@"
  done
  ended "$name" "$firmware" '1 of 256' ''
}

# resets NAME FIRMWARE: as above; but each begins anew.
resets() {
  local name=$1 firmware=$2
  say "$name: a reset in firmware, boot loader and kernel"
  boot "$name" "$firmware" 2 ''
  check "$name: reached, $firmware" reached "$firmware" 1
  monitor "$name" system_reset
  check "$name: reached, loader" reached loader 1
  monitor "$name" system_reset
  check "$name: reached, kernel" reached kernel 1
  monitor "$name" system_reset
  check "$name: four boots" reached "$firmware" 4
  ended "$name" "$firmware" '1 of 256' ''
}

# shape NAME FIRMWARE MACHINE ENTRIES QUEUES EXTRA
shape() {
  say "$1: machine $3, queues: $5 of $4"
  boot "$1" "$2" 1 "$6" -M "$3" -z "$4" -q "$5" -s "$(($5 > 1 ? 2 : 1))"
  ended "$1" "$2" "$(($5 > 1 ? 2 : 1)) of $4" "$6"
}

# debian NAME FIRMWARE
debian() {
  local log=$WORK/$1.log
  say "$1: Debian, which starts itself anew by kexec"
  firmware_debian_start "$2" "$1" "$log" "$QEMU_DIR/guest/firmware-debian.job" "$(socket_of "$1")"
  check "$1: ran to its end" guest_wait "$GUEST_PID" "$log"
  guest_checks "$1" "$log" multi-user changes multi-user-after-kexec changes-are-there
}

# micro: its firmware knows no disks, and the kernel comes from QEMU.
micro() {
  say "microvm, under a kill of leafblk and a reset"
  LOG=$WORK/micro.log
  # Nothing on this machine tells the kernel how fast an emulated CPU counts.
  local SMALL_OPTIONS=$SMALL_OPTIONS
  [ "$ACCEL" = kvm ] || SMALL_OPTIONS+=' tsc_early_khz=1000000'
  monitor_open micro
  guest_start -t 300 -r -M microvm -z 1024 -e "$FIRMWARE_DIR/sums.gz" micro "$LOG" "$(job micro 2 rebind)" \
    "$(socket_of micro)"
  check "micro: reached, kernel" reached kernel 1
  check "micro: a kill of leafblk" again backend_kill
  monitor micro system_reset
  check "micro: reached, kernel again" reached kernel 2
  check "micro: a kill of leafblk, again" again backend_kill
  ended micro bios '1 of 1024' rebind
}

VMS=(pc-bios q35-uefi kill-bios kill-uefi reset-bios reset-uefi)
if [ "$ALL" = 1 ]; then
  VMS+=(pc-uefi q35-bios large-bios large-uefi restart-bios restart-uefi pause-bios pause-uefi
    debian-bios debian-uefi micro)
fi
VMS=("${VMS[@]/%/,queues=4}")
backend_start "$ROOT" "${VMS[@]}"

shape pc-bios bios pc 128 1 'rebind sleeps'
shape q35-uefi uefi q35 512 4 rebind
in_each_stage kill-uefi uefi "a kill of leafblk" again backend_kill
resets reset-bios bios
if [ "$ALL" = 1 ]; then
  shape q35-bios bios q35 256 2 rebind
  shape pc-uefi uefi pc 128 1 'rebind sleeps'
  shape large-bios bios q35 1024 1 sleeps
  shape large-uefi uefi pc 1024 2 ''
  in_each_stage kill-bios bios "a kill of leafblk" again backend_kill
  for firmware in bios uefi; do
    in_each_stage "restart-$firmware" $firmware "a restart of leafblk" again backend_stop
    in_each_stage "pause-$firmware" $firmware "stop and cont" paused "pause-$firmware"
  done
  resets reset-uefi uefi
  for firmware in bios uefi; do debian "debian-$firmware" $firmware; done
  micro
fi

check "the backend stops with status 0" backend_stop
check "the root's checksum is the same as before" root_is_unchanged
summary || exit 1
