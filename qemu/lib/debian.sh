# shellcheck shell=bash
# Owns the real Debian guest: a root image made with mmdebstrap and mke2fs -d (no
# loop device, no boot loader), and how it is started with its own kernel.

# shellcheck source=guest.sh
. "$(dirname "${BASH_SOURCE[0]}")/guest.sh"

DEBIAN_SUITE=bookworm
DEBIAN_MIB=768

# ensure_debian: DEBIAN_DIR with root.raw, vmlinuz and initrd.img; DEBIAN_KERNEL, that
# kernel's version. The packages are unpacked once; the image is made again when
# qemu/guest/debian changes.
ensure_debian() {
  local key
  DEBIAN_DIR=$CACHE_DIR/debian
  ensure_fio
  key=$(cat "$FIO" "$QEMU_DIR/guest/job-lib" "$QEMU_DIR/guest/debian/"* "${BASH_SOURCE[0]}" | sha256sum)
  if [ "$(cat "$DEBIAN_DIR/key" 2>/dev/null)" != "$key" ]; then make_debian "$key"; fi
  # shellcheck disable=SC2034 # for firmware.sh
  DEBIAN_KERNEL=$(cat "$DEBIAN_DIR/version")
}

make_debian() {
  local tree=$CACHE_DIR/debian-tree log=$CACHE_DIR/debian.log
  [ "$(id -u)" = 0 ] || die "please run this as root: mmdebstrap needs it to make the Debian root"
  need mmdebstrap mke2fs
  local include=systemd,systemd-sysv,udev,kmod,dbus,linux-image-cloud-amd64,initramfs-tools,e2fsprogs,kexec-tools
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
  (cd "$tree/boot" && echo vmlinuz-*) | sed 's/^vmlinuz-//' >"$DEBIAN_DIR/version"
  truncate -s "${DEBIAN_MIB}M" "$DEBIAN_DIR/root.raw"
  PATH=$PATH:/sbin mke2fs -q -t ext4 -L debian -d "$tree" "$DEBIAN_DIR/root.raw" >>"$log" 2>&1 ||
    die "mke2fs failed, see $log"
  echo "$1" >"$DEBIAN_DIR/key"
}

# What makes a guest of the unpacked packages: a host name, a shell on the serial
# console, and the service that runs a job.
settle_debian() {
  local tree=$1 unit
  echo debian >"$tree/etc/hostname"
  echo 'LABEL=debian / ext4 rw,discard 0 1' >"$tree/etc/fstab"
  install -m 755 "$FIO" "$tree/usr/local/bin/fio"
  install -m 755 "$QEMU_DIR/guest/debian/leafblk-job" "$tree/usr/local/sbin/leafblk-job"
  install -m 644 "$QEMU_DIR/guest/job-lib" "$tree/usr/local/lib/leafblk-job-lib"
  install -m 644 "$QEMU_DIR/guest/debian/leafblk-job.service" "$tree/etc/systemd/system/"
  mkdir -p "$tree/etc/systemd/system/serial-getty@ttyS0.service.d"
  install -m 644 "$QEMU_DIR/guest/debian/autologin.conf" \
    "$tree/etc/systemd/system/serial-getty@ttyS0.service.d/"
  mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
  ln -sf ../leafblk-job.service "$tree/etc/systemd/system/multi-user.target.wants/"
  for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    kexec.service kexec-load.service; do
    ln -sf /dev/null "$tree/etc/systemd/system/$unit"
  done
  passwd --root "$tree" --delete root
}

DEBIAN_OPTIONS="$KERNEL_OPTIONS systemd.show_status=0"

# debian_kernel JOB: adds the guest's own kernel and JOB (a file, may be empty for
# none) to QEMU.
debian_kernel() {
  local append="$DEBIAN_OPTIONS root=/dev/vda rw"
  [ -z "$1" ] || append+=" $(job_option "$1")"
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
  qemu_command -m 512 "$1"
  debian_kernel ''
  qemu_console
}

# qemu_console: QEMU, as it was set, with the guest's serial console on this terminal.
qemu_console() {
  local i
  for i in "${!QEMU[@]}"; do
    if [ "${QEMU[i]}" = stdio ]; then QEMU[i]=mon:stdio; fi
  done
  # Not in the foreground for bash, so that a signal reaches the clean-up at once.
  "${QEMU[@]}" <&0 &
  RUNNING[$!]=console
  wait $!
}
