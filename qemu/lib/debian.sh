# shellcheck shell=bash
# Owns the real Debian guest: a root image made with mmdebstrap and mke2fs -d (no
# loop device, no boot loader), and how it is started with its own kernel.

# shellcheck source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"

DEBIAN_SUITE=bookworm
DEBIAN_MIB=768

# ensure_debian: DEBIAN_DIR with root.raw, vmlinuz and initrd.img. The packages
# are unpacked once; the image is made again when qemu/guest/debian changes.
ensure_debian() {
  local tree=$CACHE_DIR/debian-tree log=$CACHE_DIR/debian.log key
  DEBIAN_DIR=$CACHE_DIR/debian
  ensure_fio
  key=$(cat "$FIO" "$QEMU_DIR/guest/job-lib" "$QEMU_DIR/guest/debian/"* "${BASH_SOURCE[0]}" | sha256sum)
  [ "$(cat "$DEBIAN_DIR/key" 2>/dev/null)" = "$key" ] && return
  [ "$(id -u)" = 0 ] || die "please run this as root: mmdebstrap needs it to make the Debian root"
  need mmdebstrap mke2fs
  local include=systemd,systemd-sysv,udev,kmod,dbus,linux-image-cloud-amd64,initramfs-tools,e2fsprogs
  if [ "$(cat "$tree.done" 2>/dev/null)" != "$DEBIAN_SUITE $include" ]; then
    say "making a Debian root (mmdebstrap, a minute or two)"
    rm -rf "$tree" "$tree.done"
    mmdebstrap --mode=root --variant=minbase --aptopt='APT::Install-Recommends "false"' \
      --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
      --dpkgopt='path-exclude=/usr/share/locale/*' \
      --include="$include" "$DEBIAN_SUITE" "$tree" >"$log" 2>&1 || die "mmdebstrap failed, see $log"
    echo "$DEBIAN_SUITE $include" >"$tree.done"
  fi
  say "making the root image (mke2fs -d)"
  rm -rf "$DEBIAN_DIR" && mkdir -p "$DEBIAN_DIR"
  settle_debian "$tree" >>"$log" 2>&1
  cp "$(readlink -f "$tree/boot/"vmlinuz-*)" "$DEBIAN_DIR/vmlinuz"
  cp "$(readlink -f "$tree/boot/"initrd.img-*)" "$DEBIAN_DIR/initrd.img"
  truncate -s "${DEBIAN_MIB}M" "$DEBIAN_DIR/root.raw"
  PATH=$PATH:/sbin mke2fs -q -t ext4 -L debian -d "$tree" "$DEBIAN_DIR/root.raw" >>"$log" 2>&1 ||
    die "mke2fs failed, see $log"
  echo "$key" >"$DEBIAN_DIR/key"
}

# What makes a guest of the unpacked packages: a host name, a shell on the serial
# console, and the service that runs a job.
settle_debian() {
  local tree=$1 unit
  echo debian >"$tree/etc/hostname"
  echo '/dev/vda / ext4 rw,discard 0 1' >"$tree/etc/fstab"
  install -m 755 "$FIO" "$tree/usr/local/bin/fio"
  install -m 755 "$QEMU_DIR/guest/debian/leafblk-job" "$tree/usr/local/sbin/leafblk-job"
  install -m 644 "$QEMU_DIR/guest/job-lib" "$tree/usr/local/lib/leafblk-job-lib"
  install -m 644 "$QEMU_DIR/guest/debian/leafblk-job.service" "$tree/etc/systemd/system/"
  mkdir -p "$tree/etc/systemd/system/serial-getty@ttyS0.service.d"
  install -m 644 "$QEMU_DIR/guest/debian/autologin.conf" \
    "$tree/etc/systemd/system/serial-getty@ttyS0.service.d/"
  mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
  ln -sf ../leafblk-job.service "$tree/etc/systemd/system/multi-user.target.wants/"
  for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service; do
    ln -sf /dev/null "$tree/etc/systemd/system/$unit"
  done
  passwd --root "$tree" --delete root
}

# debian_kernel JOB: adds the guest's own kernel and JOB (a file, may be empty for
# none) to QEMU. The job travels on the kernel command line, which holds 2 KiB.
debian_kernel() {
  local append="$KERNEL_OPTIONS root=/dev/vda rw systemd.show_status=0" job
  if [ -n "$1" ]; then
    job=$(gzip -9 <"$1" | base64 -w0)
    [ ${#job} -lt 1800 ] || die "the job $1 is too long for a kernel command line"
    append+=" leafblk.job=$job"
  fi
  QEMU+=(-no-reboot -kernel "$DEBIAN_DIR/vmlinuz" -initrd "$DEBIAN_DIR/initrd.img" -append "$append")
}

# debian_start NAME LOG JOB SOCKET: starts a Debian guest that runs JOB once it is
# in multi-user, and powers off; guest_wait waits for it.
debian_start() {
  qemu_command -m 512 "$4"
  debian_kernel "$3"
  qemu_start 300 "$1" "$2"
}

# debian_console SOCKET: a Debian guest in the foreground, its serial console on
# this terminal.
debian_console() {
  local i
  qemu_command -m 512 "$1"
  for i in "${!QEMU[@]}"; do
    if [ "${QEMU[i]}" = stdio ]; then QEMU[i]=mon:stdio; fi
  done
  debian_kernel ''
  # Not in the foreground for bash, so that a signal reaches the clean-up at once.
  "${QEMU[@]}" <&0 &
  RUNNING[$!]=console
  wait $!
}
