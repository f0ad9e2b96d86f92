#!/usr/bin/env bash
# The control API under real guests: a VM is attached to an empty host, QEMU gets the
# options that `leafblk qemu-args` prints for it, its disk grows while the guest runs,
# another's while leafblk is stopped, a guest that shares no memory is in the log, and
# after a kill -9 of the backend the VM is there again without being asked for.
set -euo pipefail
# shellcheck source=lib/guest.sh
. "$(dirname "$0")/lib/guest.sh"
# shellcheck source=lib/backend.sh
. "$(dirname "$0")/lib/backend.sh"

BACKEND=leafblk
need virt-xml-validate xmllint
ensure_guests
ensure_backend
make_work_dir

ROOT=$WORK/root.raw
head -c 32M /dev/urandom >"$ROOT"

# control COMMAND…: the command, asked of this script's backend.
control() { "$LEAFBLK" "$@" --runtime-dir "$WORK/run"; }

# guest_reaches LOG TEXT: returns when the guest has reported this, or has ended.
guest_reaches() {
  comes 120 "$GUEST_PID" "$1" "^LEAFBLK-GUEST: $2"$'\r''\?$'
}

say "an empty host, a VM attached to it, and a disk that grows"
backend_start "$ROOT"
check "attach: the VM is served" control vm attach web1,root=root
PASTED=$(control qemu-args web1)
check "grow: the options for QEMU name its socket" grep -qF "path=$(socket_of web1)," <<<"$PASTED"
control qemu-args web1 --for libvirt >"$WORK/web1.xml"
check "grow: libvirt's own schema takes the domain for it" virt-xml-validate "$WORK/web1.xml" domain
guest_start -o "$PASTED" grow "$WORK/grow.log" "$QEMU_DIR/guest/control.job"
check "grow: the guest runs with these options" guest_reaches "$WORK/grow.log" waits
check "grow: a second VM is attached meanwhile" control vm attach web2,root=root
TOLD=$(control vm resize web1 48MiB)
echo "# $TOLD"
check "grow: QEMU was told" [ "$TOLD" = "VM web1 has 48MiB now; its client was told" ]
check "grow: the guest ran to its end" guest_wait "$GUEST_PID" "$WORK/grow.log"
guest_checks grow "$WORK/grow.log" sees-the-new-size old-and-new-part last-sectors
check "grow: 32 MiB before" [ "$(guest_value "$WORK/grow.log" sectors-before)" = 65536 ]
check "grow: 48 MiB after" [ "$(guest_value "$WORK/grow.log" sectors-after)" = 98304 ]

say "a disk that grows while leafblk is stopped"
PASTED_TOO=$(control qemu-args web2)
guest_start -o "$PASTED_TOO" later "$WORK/later.log" "$QEMU_DIR/guest/control.job"
check "later: the guest runs" guest_reaches "$WORK/later.log" waits
check "later: the backend stops with status 0" backend_stop
check "later: its leaf grows" \
  "$LEAFBLK" leaf resize "$(leaf_of web2)" 48MiB --runtime-dir "$WORK/run"
backend_start "$ROOT"
check "later: QEMU is connected again" \
  comes 60 "${BACKEND_PIDS[0]}" "$BACKEND_LOG.err" 'VM web2: its frontend has come back'
TOLD=$(control vm resize web2 48MiB)
check "later: QEMU is told of the size that the disk has already" \
  [ "$TOLD" = "VM web2 has 48MiB now; its client was told" ]
check "later: the guest ran to its end" guest_wait "$GUEST_PID" "$WORK/later.log"
guest_checks later "$WORK/later.log" sees-the-new-size old-and-new-part last-sectors

say "a guest whose memory is not shared"
guest_start -t 60 -o "${PASTED//share=on/share=off}" private "$WORK/private.log" "$QEMU_DIR/guest/control.job"
# The guest is ended after 60 s; the sentence comes by then, at the latest.
check "private memory: the log says what to do" \
  comes 90 "${BACKEND_PIDS[0]}" "$BACKEND_LOG.err" 'VM web1: its guest kicks, but.*share=on'
guest_stop "$GUEST_PID"

say "killed and started again"
kill -9 "${BACKEND_PIDS[0]}"
backend_stop || true
backend_start "$ROOT"
control vm list | sed 's/^/# /'
check "restart: both VMs are back" [ "$(control vm list --json | grep -c '"state": "serving"')" = 2 ]
check "restart: the size is kept" grep -q 'size: *48MiB' <(control vm show web1)
check "detach" control vm detach web1
check "detach: its socket is gone" [ ! -e "$(socket_of web1)" ]
check "the backend stops with status 0" backend_stop
summary || exit 1
