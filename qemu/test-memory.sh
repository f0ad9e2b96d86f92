#!/usr/bin/env bash
# A guest with 33 DIMMs beside its first memory: more slots than leafblk once had. One
# more is plugged and unplugged while the guest reads and writes; fio verifies by crc32c
# what lies in all of them.
set -euo pipefail
# shellcheck source=lib/guest.sh
. "$(dirname "$0")/lib/guest.sh"
# shellcheck source=lib/backend.sh
. "$(dirname "$0")/lib/backend.sh"
# shellcheck source=lib/monitor.sh
. "$(dirname "$0")/lib/monitor.sh"

DIMMS=33
# As Linux takes memory; QEMU's file is sparse.
DIMM=128M

BACKEND=leafblk
ensure_guests
ensure_backend
make_work_dir

ROOT=$WORK/root.raw
head -c 48M /dev/urandom >"$ROOT"

# What QEMU gets: the first memory, the DIMMs and the disk.
options() {
  local i
  echo "-machine q35,memory-backend=mem -m 256M,slots=$((DIMMS + 1)),maxmem=16G"
  echo "-object memory-backend-memfd,id=mem,size=256M,share=on"
  for ((i = 0; i < DIMMS; i++)); do
    echo "-object memory-backend-memfd,id=m$i,size=$DIMM,share=on -device pc-dimm,id=d$i,memdev=m$i"
  done
  echo "-chardev 'socket,id=c,path=$(socket_of web1)' -device vhost-user-blk-pci,chardev=c,num-queues=2"
}

# guest_reaches TEXT: returns when the guest has reported this, or has ended.
guest_reaches() {
  comes 120 "$GUEST_PID" "$LOG" "^LEAFBLK-GUEST: $1"$'\r''\?$'
}

say "$DIMMS DIMMs"
monitor_open dimms
LOG=$WORK/dimms.log
SMALL_OPTIONS+=' memhp_default_state=online_movable'
backend_start "$ROOT" web1,queues=2
guest_start -t 180 -s 2 -o "$(options)" dimms "$LOG" "$QEMU_DIR/guest/memory.job"
check "the guest is there, and waits for more" guest_reaches 'waits for more'
check "it has its DIMMs" [ "$(guest_value "$LOG" dimms)" -ge "$DIMMS" ]
check "and the memory in them" [ "$(guest_value "$LOG" mib)" -gt $((DIMMS * 120)) ]
monitor dimms "object_add memory-backend-memfd,id=more,size=$DIMM,share=on"
monitor dimms "device_add pc-dimm,id=dmore,memdev=more"
check "it has more, and waits for less" guest_reaches 'waits for less'
monitor dimms "device_del dmore"
check "the guest ran to its end" guest_wait "$GUEST_PID" "$LOG"
guest_checks "$DIMMS DIMMs" "$LOG" verify-in-dimms more-memory verify-with-more less-memory \
  verify-with-less still-running ran-on-and-on no-error-in-the-log
check "a new leaf showed exactly the root" \
  [ "$(guest_value "$LOG" content)" = "$(sha256sum "$ROOT" | cut -d' ' -f1)" ]
check "its frontend was never disconnected" \
  [ "$(grep -c 'VM web1: disconnected' "$BACKEND_LOG.err")" = 1 ]
check "the backend stops with status 0" backend_stop
monitor_errors dimms
summary || exit 1
