# shellcheck shell=bash
# Owns the small guest (kernel, busybox, fio, a job) and every QEMU process: how
# it is started, waited for and ended. Knows nothing of the backend but a socket
# path. A guest has a time limit, and nothing here waits by sleeping.

# shellcheck source=tools.sh
. "$(dirname "${BASH_SOURCE[0]}")/tools.sh"

# --- initramfs ----------------------------------------------------------------

# pack DIR FILE: a gzipped cpio archive of DIR.
pack() {
  (cd "$1" && find . -print0 | LC_ALL=C sort -z |
    cpio --quiet -0 -o -H newc -R 0:0 | gzip -1) >"$2.new"
  mv "$2.new" "$2"
}

# ensure_initrd: INITRD with busybox, fio, the virtio modules and /init. Made
# again when one of them changes.
ensure_initrd() {
  need cpio
  ensure_busybox
  ensure_kernel
  ensure_fio
  local key dir=$CACHE_DIR/initrd.dir
  key=$(cat "$KERNEL_DIR/version" "$FIO" "$BUSYBOX" "$QEMU_DIR/guest/init" "$QEMU_DIR/guest/job-lib" | sha256sum | cut -c1-16)
  INITRD=$CACHE_DIR/initrd-$key.gz
  [ -f "$INITRD" ] && return
  rm -rf "$dir" "$CACHE_DIR"/initrd-*.gz
  mkdir -p "$dir/bin" "$dir/modules"
  cp "$BUSYBOX" "$dir/bin/busybox"
  cp "$FIO" "$dir/bin/fio"
  grep ^virtio "$KERNEL_DIR/modules.list" >"$dir/modules.list"
  while read -r module; do
    cp "$KERNEL_DIR/modules/$module" "$dir/modules/"
  done <"$dir/modules.list"
  cp "$QEMU_DIR/guest/job-lib" "$dir/"
  install -m 755 "$QEMU_DIR/guest/init" "$dir/init"
  pack "$dir" "$INITRD"
  rm -rf "$dir"
}

# ensure_archive NAME MODULES TOOL…: ARCHIVE for guest_start -e, with host commands
# and the libraries they need. MODULES: file-systems adds those of xfs and btrfs
# (ext4 is built in), or none.
ensure_archive() {
  local name=$1 modules=$2 key dir=$CACHE_DIR/archive-$1.dir tool paths=() library
  shift 2
  for tool in "$@"; do paths+=("$(command -v "$tool")"); done
  key=$(cat "${paths[@]}" "$KERNEL_DIR/version" "${BASH_SOURCE[0]}" | sha256sum | cut -c1-16)
  ARCHIVE=$CACHE_DIR/$name-$key.gz
  [ -f "$ARCHIVE" ] && return
  rm -rf "$dir" "$CACHE_DIR/$name"-*.gz
  mkdir -p "$dir/usr/sbin"
  for tool in "${paths[@]}"; do
    cp -L "$tool" "$dir/usr/sbin/"
    # ldd fails for a static tool, which needs nothing.
    { ldd "$tool" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } | while read -r library; do
      mkdir -p "$dir$(dirname "$library")"
      cp -L "$library" "$dir$library"
    done
  done
  if [ "$modules" = file-systems ]; then
    mkdir -p "$dir/modules"
    cp "$KERNEL_DIR/modules/"*.ko "$dir/modules/"
    cp "$KERNEL_DIR/modules.list" "$dir/"
  fi
  pack "$dir" "$ARCHIVE"
  rm -rf "$dir"
}

# no_timer_check: an emulated CPU on a busy host fails the kernel's test of the
# timer interrupt now and then, and the kernel panics.
KERNEL_OPTIONS='console=ttyS0 quiet mitigations=off no_timer_check'
SMALL_OPTIONS="$KERNEL_OPTIONS loglevel=1 panic=-1"

# job_option JOB: the file for a guest as a kernel option, of which there are 2 KiB.
job_option() {
  local job
  job=$(gzip -9 <"$1" | base64 -w0)
  [ ${#job} -lt 1800 ] || die "the job $1 is too long for a kernel command line"
  echo "leafblk.job=$job"
}

# --- QEMU ---------------------------------------------------------------------

# choose_accel: sets ACCEL. KVM counts only if a guest gets to READY under it;
# the answer is remembered until the host is rebooted.
choose_accel() {
  local memo
  memo=$CACHE_DIR/accel-$(cat /proc/sys/kernel/random/boot_id)
  if [ ! -f "$memo" ]; then
    rm -f "$CACHE_DIR"/accel-*
    ACCEL=kvm
    if [ -r /dev/kvm ] && [ -w /dev/kvm ] && echo true >"$CACHE_DIR/probe.job" &&
      guest_run -t 10 probe "$CACHE_DIR/probe.log" "$CACHE_DIR/probe.job"; then
      echo kvm >"$memo"
    else
      echo tcg >"$memo"
    fi
  fi
  ACCEL=$(cat "$memo")
  [ "$ACCEL" = kvm ] || say "KVM does not run guests on this host: QEMU emulates the CPU, which is slower"
}

declare -A RUNNING=()
at_exit stop_guests

# guest_stop PID: ends a guest that need not come to its end.
guest_stop() {
  stop_pid "$1"
  unset "RUNNING[$1]"
}

stop_guests() {
  local pid
  for pid in "${!RUNNING[@]}"; do
    guest_stop "$pid"
  done
}

# qemu_version_at_least MAJOR MINOR
qemu_version_at_least() {
  : "${QEMU_VERSION:=$(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9]*\.[0-9]*\).*/\1/p')}"
  local major=${QEMU_VERSION%.*} minor=${QEMU_VERSION#*.}
  [ "$major" -gt "$1" ] || { [ "$major" -eq "$1" ] && [ "$minor" -ge "$2" ]; }
}

# qemu_command [-M MACHINE] [-m MIB] [-s CPUS] [-q QUEUES] [-z ENTRIES] [-H] [-o OPTIONS]
# SOCKET…: sets QEMU to the command with everything but the kernel. -z: entries of each
# queue. -H: guest memory in 2 MiB hugepages. -o: memory and disk are what `leafblk
# qemu-args` printed, read by the shell as if pasted.
qemu_command() {
  local memory=256 cpus=1 queues=1 entries=256 machine=q35 huge='' option OPTIND=1
  local reconnect=reconnect=1 index=0 socket pasted='' device=vhost-user-blk-pci
  while getopts M:m:s:q:z:Ho: option; do
    case $option in
      M) machine=$OPTARG ;;
      m) memory=$OPTARG ;;
      s) cpus=$OPTARG ;;
      q) queues=$OPTARG ;;
      z) entries=$OPTARG ;;
      H) huge=,hugetlb=on,hugetlbsize=2M ;;
      o) pasted=$OPTARG ;;
      *) return 1 ;;
    esac
  done
  shift $((OPTIND - 1))
  qemu_version_at_least 9 2 && reconnect='reconnect-ms=1000'
  local accel='tcg,thread=multi'
  [ "$ACCEL" = kvm ] && accel=kvm
  QEMU=(qemu-system-x86_64 -accel "$accel" -cpu max -smp "$cpus"
    -nodefaults -display none -serial stdio)
  if [ -n "$pasted" ]; then
    eval "QEMU+=($pasted)"
    return
  fi
  QEMU+=(-machine "$machine,memory-backend=mem"
    -object "memory-backend-memfd,id=mem,size=${memory}M,share=on$huge" -m "${memory}M")
  # microvm has no PCI, and its usual firmware none of the disk.
  if [ "$machine" = microvm ]; then QEMU+=(-bios qboot.rom) device=vhost-user-blk; fi
  for socket in "$@"; do
    QEMU+=(-chardev "socket,id=c$index,path=$socket,$reconnect"
      -device "$device,chardev=c$index,num-queues=$queues,queue-size=$entries")
    index=$((index + 1))
  done
}

# guest_start [-t SECONDS] [-e CPIO]… [-r] [qemu_command's options] NAME LOG JOB
# [SOCKET…]: starts the small guest with the shell script JOB; sets GUEST_PID. -e
# adds an archive to the initramfs; -r lets the guest reboot.
guest_start() {
  local limit=120 extra=() options=() option OPTIND=1 reboot=-no-reboot name log job
  while getopts t:e:rM:m:s:q:z:Ho: option; do
    case $option in
      t) limit=$OPTARG ;;
      e) extra+=("$OPTARG") ;;
      r) reboot='' ;;
      H) options+=(-H) ;;
      *) options+=("-$option" "$OPTARG") ;;
    esac
  done
  shift $((OPTIND - 1))
  name=$1 log=$2 job=$3
  shift 3
  qemu_command "${options[@]}" "$@"
  QEMU+=(${reboot:+"$reboot"} -kernel "$KERNEL_DIR/vmlinuz"
    -initrd "$log.initrd" -append "$SMALL_OPTIONS")
  mkdir -p "$log.dir"
  cp "$job" "$log.dir/job"
  pack "$log.dir" "$log.job.gz"
  cat "$INITRD" "${extra[@]}" "$log.job.gz" >"$log.initrd"
  rm -r "$log.dir" "$log.job.gz"
  qemu_start "$limit" "$name" "$log"
}

# More options for the next QEMU (monitor.sh).
MONITOR_OPTIONS=()

# qemu_start SECONDS NAME LOG: starts QEMU as qemu_command and others have set it.
# What QEMU itself has to say goes to LOG.qemu: within a line of the guest's it would
# hide that line.
qemu_start() {
  timeout "$1" "${QEMU[@]}" "${MONITOR_OPTIONS[@]}" -name "$2" </dev/null >"$3" 2>"$3.qemu" &
  GUEST_PID=$! GUEST_LOG=$3 MONITOR_OPTIONS=()
  RUNNING[$GUEST_PID]=$2
}

# guest_wait PID LOG: waits for a guest; 0 if its job reported status 0. Says what
# happened otherwise.
guest_wait() {
  local pid=$1 log=$2 status=0 name
  name=${RUNNING[$pid]}
  wait "$pid" 2>/dev/null || status=$?
  unset "RUNNING[$pid]"
  rm -f "$log.initrd"
  guest_said "$log" "EXIT 0" && return
  [ "$name" = probe ] && return 1
  if [ "$status" = 124 ]; then
    echo "# $name: stopped by its time limit; the end of its console:"
  else
    echo "# $name: QEMU's status $status; the end of its console:"
  fi
  tail -q -n 15 "$log.qemu" "$log" | tr -d '\r' | sed 's/^/#   /'
  return 1
}

# guest_run …: guest_start and guest_wait.
guest_run() { guest_start "$@" && guest_wait "$GUEST_PID" "$GUEST_LOG"; }

# guest_said LOG TEXT: the guest has reported exactly this line. No pipe: grep -q
# stops reading at its match, and a `tr` that dies of SIGPIPE fails a whole pipe.
guest_said() { grep -qx "LEAFBLK-GUEST: $2" < <(tr -d '\r' <"$1" || true); }

# guest_value LOG KEY: what follows KEY in the guest's last such line.
guest_value() { tr -d '\r' <"$1" | sed -n "s/^LEAFBLK-GUEST: $2 //p" | tail -n 1; }

# guest_checks WHO LOG NAME…: one check line for each NAME, ok only when the guest
# reported it.
guest_checks() {
  local who=$1 log=$2 name
  shift 2
  for name in "$@"; do
    if guest_said "$log" "ok $name"; then
      ok "$who: $name$(guest_value "$log" "figures $name" | sed 's/.*/ (&)/')"
    else
      not_ok "$who: $name"
    fi
  done
}

# ensure_guests: everything that guest_start needs.
ensure_guests() {
  need qemu-system-x86_64
  ensure_initrd
  choose_accel
}
