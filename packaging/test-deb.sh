#!/usr/bin/env bash
# Makes the Debian package, holds it against lintian, installs it into a Debian
# guest and boots that: the service is up before anything was configured, as its
# own user, and under its hardening a VM's disk is read through io_uring and
# hugepages, by a user of the group that the sockets are shared with.
#
#   packaging/test-deb.sh                  with the release binary
#   LEAFBLK=PATH packaging/test-deb.sh     with that binary
#
# Root on Debian 12; what is missing is installed. Ends with "N passed, N failed,
# N skipped".
set -euo pipefail
# shellcheck source=../qemu/lib/debian.sh
. "$(dirname "$0")/../qemu/lib/debian.sh"

need mke2fs lintian dpkg-shlibdeps
ensure_guests
ensure_debian
make_work_dir

say "making the package"
DEB=$(cd "$REPO_DIR" && packaging/build-deb.sh 2>"$WORK/build.log" | tail -n 1) || {
  tail -n 20 "$WORK/build.log"
  die "making the package failed"
}
DEB=$REPO_DIR/$DEB
say "building the client (examples/read_disk.rs)"
(cd "$REPO_DIR" && cargo build --locked --quiet --example read_disk)
CLIENT=${CARGO_TARGET_DIR:-$REPO_DIR/target}/debug/examples/read_disk

no_errors() {
  lintian --allow-root --fail-on error --tag-display-limit 0 "$DEB" >"$WORK/lintian.log" 2>&1
  local status=$?
  sed 's/^/#   /' "$WORK/lintian.log"
  return "$status"
}
check "lintian finds no errors" no_errors
contains() { grep -qx "$1" < <(dpkg-deb --contents "$DEB" | awk '{print $6}' || true); }
for file in ./usr/bin/leafblk ./etc/leafblk/leafblk.toml ./usr/share/man/man1/leafblk.1.gz \
  ./usr/share/man/man1/leafblk-serve.1.gz ./usr/share/bash-completion/completions/leafblk \
  ./usr/share/zsh/vendor-completions/_leafblk ./usr/share/fish/vendor_completions.d/leafblk.fish \
  ./usr/share/doc/leafblk/copyright ./usr/share/doc/leafblk/changelog.Debian.gz \
  ./usr/share/doc/leafblk/README.md ./usr/share/doc/leafblk/docs/configuration.md \
  ./usr/share/doc/leafblk/docs/openapi.json ./usr/share/doc/leafblk/docs/grafana-dashboard.json \
  ./usr/share/doc/leafblk/docs/alerts.yaml \
  ./usr/share/doc/leafblk/docs/top.png; do
  check "the package has ${file#.}" contains "$file"
done

unit_is_tight() {
  systemd-analyze security --offline=true --threshold=20 "$REPO_DIR/packaging/leafblk.service" \
    >"$WORK/security.log" 2>&1
  local status=$?
  sed -n 's/^→ */#   /p' "$WORK/security.log"
  return "$status"
}
if command -v systemd-analyze >/dev/null; then
  check "systemd-analyze security: exposure of at most 2.0" unit_is_tight
else
  skipped "systemd-analyze security" "there is no systemd-analyze here"
fi

say "installing it into a Debian root"
TREE=$WORK/tree
cp -a "$CACHE_DIR/debian-tree" "$TREE"
cp "$DEB" "$TREE/root/leafblk.deb"
install -m 755 "$CLIENT" "$TREE/usr/local/bin/read_disk"
install -m 644 "$REPO_DIR/packaging/guest/with-vm.toml" "$TREE/root/with-vm.toml"
install -m 644 "$REPO_DIR/packaging/guest/"{installed,places}.job "$TREE/root/"
# A policy for chroots: nothing is started there.
printf '#!/bin/sh\nexit 101\n' >"$TREE/usr/sbin/policy-rc.d"
chmod 755 "$TREE/usr/sbin/policy-rc.d"
install_deb() { chroot "$TREE" dpkg --install /root/leafblk.deb >"$WORK/install.log" 2>&1; }
check "dpkg installs it" install_deb
rm "$TREE/usr/sbin/policy-rc.d"
IMAGE=$WORK/installed.raw
truncate -s $((DEBIAN_MIB + 128))M "$IMAGE"
mke2fs -q -t ext4 -L debian -d "$TREE" "$IMAGE" >"$WORK/mke2fs.log" 2>&1 || die "mke2fs failed"
rm -rf "$TREE"

say "booting it"
qemu_command -m 768
QEMU+=(-drive "file=$IMAGE,format=raw,if=virtio,cache=unsafe")
# It is too long for the kernel's command line.
echo ". /root/installed.job" >"$WORK/job"
debian_kernel "$WORK/job"
qemu_start 600 installed "$WORK/installed.log"
check "the guest: ran to its end and powered off" guest_wait "$GUEST_PID" "$WORK/installed.log"
guest_checks "installed" "$WORK/installed.log" verify active own-user ready no-capabilities flushes-give-way \
  socket-mode group-reads stranger-refused reload \
  reload-with-a-mistake-fails reload-after-the-mistake hugepages restart-keeps-leaf \
  status-as-a-member-of-the-group status-says-who-may unit-line-for-a-leaf unit-line-for-a-root \
  user-for-a-root own-tmp-refused own-var-tmp-refused kept-runtime-directory-taken own-tmpfs-refused \
  killed-comes-back-quickly kills-in-a-row mistake-is-not-retried \
  start-without-a-root mended-root-is-served \
  failed-start-is-tried-after-a-while mended-start-serves watchdog purge
summary || exit 1
