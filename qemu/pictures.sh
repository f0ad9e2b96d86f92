#!/usr/bin/env bash
# Makes the pictures in docs/: the page (page.png, page-dark.png) and leafblk top
# (top.png), while two Debian guests boot from one root. What is seen is what
# Chromium and a terminal (tmux) show; nothing is drawn by hand.
#
#   LEAFBLK=target/release/leafblk qemu/pictures.sh
set -euo pipefail
# shellcheck source=lib/debian.sh
. "$(dirname "$0")/lib/debian.sh"
# shellcheck source=lib/backend.sh
. "$(dirname "$0")/lib/backend.sh"

PORT=${PORT:-9750}
need chromium chromedriver tmux python3
ensure_guests
ensure_debian
ensure_backend
make_work_dir

# moved STEP: waits until the guests have written so many MiB.
moved() {
  local until=$((SECONDS + 180))
  while [ "$SECONDS" -lt "$until" ]; do
    "$LEAFBLK" top --json --socket "$WORK/run/control.sock" | python3 -c "
import json, sys
vms = json.load(sys.stdin)['vms']
sys.exit(sum(vm['leaf']['held_bytes'] for vm in vms) < $1 << 20)" && return
  done
  die "the guests don't write $1 MiB"
}

BACKEND_OPTIONS=(--http-port "$PORT" --cache-size 256MiB --reactors 2)
backend_start "$DEBIAN_DIR/root.raw" web1 web2 db1,size=2GiB build7,size=1GiB
at_exit backend_stop
TERMINAL=leafblk-pictures-$$
at_exit "tmux -L $TERMINAL kill-server"
tmux -u -L "$TERMINAL" -f /dev/null new-session -d -x 132 -y 31 \
  "env LANG=C.UTF-8 '$LEAFBLK' top --interval 0.5 --socket '$WORK/run/control.sock'"
say "booting guests"
PIDS=()
for name in web1 db1; do
  debian_start "$name" "$WORK/$name.log" "$QEMU_DIR/guest/demo.job" "$(socket_of "$name")"
  PIDS+=("$GUEST_PID")
done
# Booting: systemd writes its journal, and little else.
moved 1
tmux -L "$TERMINAL" send-keys Enter
say "photographing"
python3 "$QEMU_DIR/lib/picture.py" "http://127.0.0.1:$PORT/#vm=web1" "$REPO_DIR/docs"
tmux -L "$TERMINAL" capture-pane -e -p >"$WORK/top.ansi"
python3 "$QEMU_DIR/lib/picture.py" --terminal "$WORK/top.ansi" "$REPO_DIR/docs/top.png"
for pid in "${PIDS[@]}"; do stop_pid "$pid"; done
ls -l "$REPO_DIR"/docs/*.png
