# shellcheck shell=bash
# Owns the backend process: builds it, starts it on one root image, stops it. The
# VMs' sockets are in $WORK/run, the leaves in $WORK/state.
#
# LEAFBLK names another binary. LEAFBLK_BACKEND=qsd serves the same guests with
# qemu-storage-daemon and qcow2 overlays: to tell a fault of these scripts from
# one of leafblk.

BACKEND=${LEAFBLK_BACKEND:-leafblk}
BACKEND_PIDS=()

# ensure_backend: the release binary is there and up to date.
ensure_backend() {
  if [ "$BACKEND" = qsd ]; then
    command -v qemu-storage-daemon >/dev/null || die "please install qemu-utils 7.2 or later"
    return
  fi
  [ -n "${LEAFBLK:-}" ] && return
  need_rust
  LEAFBLK=${CARGO_TARGET_DIR:-$REPO_DIR/target}/release/leafblk
  local log=$CACHE_DIR/build.log
  say "building leafblk (release)"
  (cd "$REPO_DIR" && cargo build --locked --release --bin leafblk) >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    die "building leafblk failed, see $log"
  }
}

socket_of() { echo "$WORK/run/$1.sock"; }
leaf_of() { echo "$WORK/state/$1.leaf"; }

# backend_start ROOT VM…: serves every VM (NAME[,queues=N][,…] as in --vm) from the
# image ROOT and returns when all sockets take connections.
backend_start() {
  local root=$1 vm arguments=()
  shift
  mkdir -p "$WORK/run" "$WORK/state"
  BACKEND_LOG=$WORK/backend.log
  if [ "$BACKEND" = qsd ]; then
    for vm in "$@"; do start_storage_daemon "$root" "$vm"; done
    return
  fi
  for vm in "$@"; do arguments+=(--vm "${vm%%,*},root=root${vm#"${vm%%,*}"}"); done
  : >"$BACKEND_LOG"
  "$LEAFBLK" serve --state-dir "$WORK/state" --runtime-dir "$WORK/run" \
    --root "root=$root" "${arguments[@]}" "${BACKEND_OPTIONS[@]}" >>"$BACKEND_LOG" 2>>"$BACKEND_LOG.err" &
  BACKEND_PIDS=($!)
  # Ends with the ready line, with the process, or after 30 s.
  if ! comes 30 $! "$BACKEND_LOG" '^ready'; then
    sed 's/^/#   /' "$BACKEND_LOG" "$BACKEND_LOG.err"
    backend_stop || true
    die "leafblk serve did not get ready"
  fi
}
BACKEND_OPTIONS=()

start_storage_daemon() {
  local root=$1 name=${2%%,*} queues=1 leaf
  case $2 in *,queues=*) queues=${2##*,queues=} queues=${queues%%,*} ;; esac
  leaf=$(leaf_of "$name")
  [ -f "$leaf" ] || qemu-img create -q -f qcow2 -b "$root" -F raw "$leaf"
  qemu-storage-daemon --daemonize --pidfile "$WORK/run/$name.pid" \
    --blockdev "driver=file,node-name=f0,filename=$root,read-only=on" \
    --blockdev driver=raw,node-name=r0,file=f0,read-only=on \
    --blockdev "driver=file,node-name=f1,filename=$leaf,discard=unmap" \
    --blockdev driver=qcow2,node-name=q0,file=f1,backing=r0,discard=unmap \
    --export "type=vhost-user-blk,id=e0,node-name=q0,addr.type=unix,addr.path=$(socket_of "$name"),writable=on,num-queues=$queues"
  BACKEND_PIDS+=("$(cat "$WORK/run/$name.pid")")
}

# backend_stop: SIGTERM, and the exit status of the backend. Without a backend it
# does nothing.
backend_stop() {
  local pid status=0 pids=("${BACKEND_PIDS[@]}")
  BACKEND_PIDS=()
  for pid in "${pids[@]}"; do
    kill "$pid" 2>/dev/null || true
    if [ "$BACKEND" = qsd ]; then
      timeout 20 tail -f --pid="$pid" -s 0.1 /dev/null || status=1
    else
      wait "$pid" 2>/dev/null || status=$?
    fi
  done
  return "$status"
}
at_exit backend_stop

# backend_kill: SIGKILL, as a crash would be.
backend_kill() {
  kill -9 "${BACKEND_PIDS[0]}"
  # The shell's own word on it is noise.
  wait "${BACKEND_PIDS[0]}" 2>/dev/null || true
  BACKEND_PIDS=()
}

# connections: how often a frontend has connected so far.
connections() { grep -c ': connected' "$BACKEND_LOG.err" || true; }

# frontends_are_back BEFORE COUNT: so many have connected since there were BEFORE
# connections; 1 if that takes over 20 s.
frontends_are_back() { comes 20 "${BACKEND_PIDS[0]}" "$BACKEND_LOG.err" ': connected' $(($1 + $2)); }

# show_counters: what came from leaf, cache and root, as leafblk prints it when it
# stops.
show_counters() {
  if [ "$BACKEND" = qsd ]; then
    echo "(qemu-storage-daemon does not count)"
    return
  fi
  sed '1,/^ready/d' "$BACKEND_LOG"
}

# show_leaf NAME: the leaf's size as seen by the guest, and what it occupies.
show_leaf() {
  local leaf
  leaf=$(leaf_of "$1")
  printf '%s: %s apparent, %s occupied on disk\n' "$1" \
    "$(du -h --apparent-size "$leaf" | cut -f1)" "$(du -h "$leaf" | cut -f1)"
}
