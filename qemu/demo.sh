#!/usr/bin/env bash
# Two Debian guests, side by side on one root image, each with its own leaf.
set -euo pipefail
# shellcheck source=lib/firmware.sh
. "$(dirname "$0")/lib/firmware.sh"
# shellcheck source=lib/backend.sh
. "$(dirname "$0")/lib/backend.sh"

usage() {
  cat <<'TEXT'
usage: qemu/demo.sh [--firmware] [--console]

Gets what is missing, builds leafblk, makes a Debian root image, boots two guests
on it, runs fio in both, and shows where the sectors came from and how large each
guest's leaf is. What it makes stays in qemu/cache, so that the next run is quick.

  --firmware  the image has partitions and GRUB, from which firmware boots: SeaBIOS for
              web1, UEFI (OVMF) for web2. Without, the kernel comes from QEMU
  --console   leave one guest at a shell on this terminal (ends with: poweroff); with
              --firmware, UEFI and GRUB's menu come first
TEXT
}

# follow NAME PID LOG: shows what a guest reports, as it reports it.
follow() {
  local what text
  tail -n +1 --pid="$2" -F "$3" 2>/dev/null | sed -un 's/\r$//; s/^LEAFBLK-GUEST: //p' |
    while read -r what text; do
      case $what in
        up | figures) say "  $1: $text" ;;
        failed) say "  $1: $text FAILED" ;;
      esac
    done
}

# start_guest NAME LOG JOB SOCKET
start_guest() {
  if [ "$FIRMWARE" = 0 ]; then
    debian_start "$@"
  elif [ "$1" = web1 ]; then
    firmware_debian_start bios "$@"
  else
    firmware_debian_start uefi "$@"
  fi
}

run_jobs() {
  local name pids=() followers=() failed=0
  for name in "$@"; do
    : >"$WORK/$name.log"
    start_guest "$name" "$WORK/$name.log" "$QEMU_DIR/guest/demo.job" "$(socket_of "$name")"
    pids+=("$GUEST_PID")
    follow "$name" "$GUEST_PID" "$WORK/$name.log" &
    followers+=($!)
  done
  for name in "$@"; do
    guest_wait "${pids[0]}" "$WORK/$name.log" || failed=1
    pids=("${pids[@]:1}")
  done
  wait "${followers[@]}" || true
  return "$failed"
}

show_result() {
  echo
  echo "Where the sectors came from, as leafblk counted:"
  show_counters
  echo
  printf 'root image: %s, read-only, its checksum is %s\n' \
    "$(du -h --apparent-size "$ROOT" | cut -f1)" "$1"
  local name
  for name in web1 web2; do echo "leaf of $(show_leaf "$name")"; done
}

CONSOLE=0 FIRMWARE=0
for option in "$@"; do
  case $option in
    --console) CONSOLE=1 ;;
    --firmware) FIRMWARE=1 ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 2 ;;
  esac
done

ensure_guests
ensure_debian
ROOT=$DEBIAN_DIR/root.raw
if [ "$FIRMWARE" = 1 ]; then
  ensure_firmware
  ROOT=$FIRMWARE_DIR/disk.raw
fi
ensure_backend
make_work_dir

SUM=$(sha256sum <"$ROOT")
say "starting leafblk: one process, one root ($(du -h "$ROOT" | cut -f1) of data), two VMs"
backend_start "$ROOT" web1 web2
STATUS=0
if [ "$CONSOLE" = 1 ]; then
  say "booting web1; its shell appears here, poweroff ends it (or ctrl-A X)"
  if [ "$FIRMWARE" = 1 ]; then
    firmware_console uefi "$(socket_of web1)" || STATUS=1
  else
    debian_console "$(socket_of web1)" || STATUS=1
  fi
else
  say "booting two Debian guests, web1 and web2"
  run_jobs web1 web2 || STATUS=1
fi
say "stopping leafblk"
backend_stop || { STATUS=1 && cat "$BACKEND_LOG.err"; }
if [ "$(sha256sum <"$ROOT")" = "$SUM" ]; then
  show_result "the same as before"
else
  show_result "DIFFERENT"
  STATUS=1
fi
[ "$STATUS" = 0 ] || keep_work_dir
exit "$STATUS"
