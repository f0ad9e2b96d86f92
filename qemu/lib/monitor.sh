# shellcheck shell=bash
# Owns QEMU's human monitor: a pipe that commands go to, and a file with its answers.

# monitor_open NAME: the next QEMU has one, which `monitor NAME COMMAND…` reaches.
monitor_open() {
  local pipe=$WORK/$1.monitor
  mkfifo "$pipe.in" "$pipe.out"
  cat "$pipe.out" >"$pipe.log" &
  at_exit "stop_pid $!"
  # shellcheck disable=SC2034 # for guest.sh
  MONITOR_OPTIONS=(-chardev "pipe,id=monitor,path=$pipe" -mon chardev=monitor)
}

# monitor NAME COMMAND…: without a wait for its answer, and without one for a QEMU that
# has ended.
monitor() {
  local pipe=$WORK/$1.monitor
  shift
  echo "$*" 1<>"$pipe.in"
}

# monitor_errors NAME: what QEMU complained about, as remarks.
monitor_errors() {
  tr -d '\r' <"$WORK/$1.monitor.log" | grep -i error | sed 's/^/# /' || true
}
