#!/usr/bin/env bash
# Installs, fetches and builds what the scripts that boot guests need besides leafblk
# itself: packages, a kernel, fio, fsx, a Debian root. Each of them does that for
# itself, too; after this they may run side by side.
set -euo pipefail
# shellcheck source=lib/firmware.sh
. "$(dirname "$0")/lib/firmware.sh"

need mke2fs e2fsck mkfs.xfs mkfs.btrfs stress-ng lintian dpkg-shlibdeps virt-xml-validate xmllint
ensure_guests
ensure_fsx
ensure_debian
ensure_firmware
choose_accel
