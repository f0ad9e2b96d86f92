# shellcheck shell=bash
# Owns guests that firmware boots: a disk image with partitions, GRUB for SeaBIOS and for
# UEFI (OVMF), and on it the Debian guest and the small one. Which of them starts, and its
# kernel's options with its job, GRUB takes from the machine's SMBIOS tables.

# shellcheck source=debian.sh
. "$(dirname "${BASH_SOURCE[0]}")/debian.sh"

# The partitions: GRUB for the BIOS, the EFI system partition, Debian. In MiB.
GRUB_AT=1 GRUB_MIB=1 ESP_AT=2 ESP_MIB=48 DEBIAN_AT=50

# ensure_firmware: FIRMWARE_DIR with disk.raw and sums.gz, an archive for the small guest
# with the checksums of Debian's programs; OVMF_DIR.
ensure_firmware() {
  local key grub=$CACHE_DIR/grub package
  FIRMWARE_DIR=$CACHE_DIR/firmware OVMF_DIR=$CACHE_DIR/ovmf/usr/share/OVMF
  for package in ovmf grub-pc-bin grub-efi-amd64-bin; do
    [ -d "$CACHE_DIR/$package" ] && continue
    on_debian || die "please unpack Debian's package $package into $CACHE_DIR/$package"
    unpack_package "$package" "$CACHE_DIR/$package"
  done
  key=$(cat "$DEBIAN_DIR/key" "${BASH_SOURCE[0]}" <(echo "$INITRD") | sha256sum)
  [ "$(cat "$FIRMWARE_DIR/key" 2>/dev/null)" = "$key" ] && return
  need grub-mkimage mcopy sfdisk
  say "making a disk image with partitions and GRUB"
  rm -rf "$FIRMWARE_DIR" && mkdir -p "$FIRMWARE_DIR"
  make_firmware_disk >"$CACHE_DIR/firmware.log" 2>&1 ||
    die "making the disk image failed, see $CACHE_DIR/firmware.log"
  echo "$key" >"$FIRMWARE_DIR/key"
}

make_firmware_disk() {
  local dir=$FIRMWARE_DIR disk=$FIRMWARE_DIR/disk.raw
  mkdir "$dir/tree"
  (cd "$CACHE_DIR/debian-tree" && find usr/bin -type f -print0 | sort -z | xargs -0 sha256sum) |
    sed 's, usr/, /mnt/usr/,' >"$dir/tree/sums"
  pack "$dir/tree" "$dir/sums.gz"
  rm -r "$dir/tree"
  truncate -s "$((DEBIAN_AT + DEBIAN_MIB + 1))M" "$disk"
  sfdisk -q "$disk" <<TEXT
label: gpt
start=${GRUB_AT}MiB, size=${GRUB_MIB}MiB, type=21686148-6449-6E6F-744E-656564454649
start=${ESP_AT}MiB, size=${ESP_MIB}MiB, type=uefi
start=${DEBIAN_AT}MiB, size=${DEBIAN_MIB}MiB, type=linux
TEXT
  grub_for_bios "$disk"
  system_partition "$disk@@${ESP_AT}M"
  dd if="$DEBIAN_DIR/root.raw" of="$disk" bs=1M seek="$DEBIAN_AT" conv=sparse,notrunc status=none
}

# Modules that both GRUBs have in them.
GRUB_MODULES=(part_gpt fat ext2 normal configfile echo test linux search search_label serial
  terminal smbios boot sleep minicmd)

# grub_image FORMAT OUTPUT MODULE…
grub_image() {
  local format=$1 output=$2 package=grub-pc-bin
  shift 2
  [ "$format" = i386-pc ] || package=grub-efi-amd64-bin
  grub-mkimage -d "$CACHE_DIR/$package/usr/lib/grub/$format" -O "$format" -o "$output" \
    -p '(hd0,gpt2)/grub' "${GRUB_MODULES[@]}" "$@"
}

# What grub-bios-setup does, which wants a block device: the boot sector knows where the
# rest of GRUB begins, and that where it goes on.
grub_for_bios() {
  local core=$FIRMWARE_DIR/core.img boot=$CACHE_DIR/grub-pc-bin/usr/lib/grub/i386-pc/boot.img
  grub_image i386-pc "$core" biosdisk
  local at=$((GRUB_AT * 2048))
  [ "$(stat -c %s "$core")" -le $((GRUB_MIB << 20)) ]
  dd if="$core" of="$1" bs=512 seek="$at" conv=notrunc status=none
  # A boot sector has its code in the first 440 bytes.
  dd if="$boot" of="$1" bs=1 count=440 conv=notrunc status=none
  little_endian "$at" | dd of="$1" bs=1 seek=$((0x5c)) conv=notrunc status=none
  little_endian $((at + 1)) | dd of="$1" bs=1 seek=$((at * 512 + 0x1f4)) conv=notrunc status=none
  rm "$core"
}

# little_endian NUMBER: in 8 bytes.
little_endian() {
  local i
  # shellcheck disable=SC2059 # the format is made here
  for i in 0 8 16 24 32 40 48 56; do printf "\\x$(printf %x $(($1 >> i & 255)))"; done
}

# system_partition IMAGE@@OFFSET: GRUB for UEFI, its settings for both, the small guest.
system_partition() {
  local loader=$FIRMWARE_DIR/bootx64.efi settings=$FIRMWARE_DIR/grub.cfg
  grub_image x86_64-efi "$loader"
  cat "$INITRD" "$FIRMWARE_DIR/sums.gz" >"$FIRMWARE_DIR/initrd.gz"
  cat >"$settings" <<TEXT
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
smbios --type 1 --get-string 5 --set=guest
smbios --type 11 --get-string 4 --set=options
if [ "\$guest" = console ]; then set timeout=5; else set timeout=0; fi
if [ "\$guest" = small ]; then set default=1; fi
echo
echo LEAFBLK-GUEST: loader
menuentry Debian {
  search --label debian --set=root
  linux /boot/vmlinuz-$DEBIAN_KERNEL root=LABEL=debian rw \$options
  initrd /boot/initrd.img-$DEBIAN_KERNEL
}
menuentry "The small guest" {
  linux /small/vmlinuz \$options
  initrd /small/initrd.gz
}
TEXT
  mformat -i "$1" -T $((ESP_MIB * 2048)) -v ESP ::
  mmd -i "$1" ::/EFI ::/EFI/BOOT ::/grub ::/small
  mcopy -i "$1" "$loader" ::/EFI/BOOT/BOOTX64.EFI
  mcopy -i "$1" "$settings" ::/grub/grub.cfg
  mcopy -i "$1" "$KERNEL_DIR/vmlinuz" ::/small/vmlinuz
  mcopy -i "$1" "$FIRMWARE_DIR/initrd.gz" ::/small/initrd.gz
  rm "$loader" "$settings" "$FIRMWARE_DIR/initrd.gz"
}

# firmware_command FIRMWARE GUEST OPTIONS NAME [qemu_command's options] SOCKET…: sets QEMU
# to a machine whose firmware (bios, uefi) starts GUEST (small, debian, console) from the
# first disk, with these options for its kernel.
firmware_command() {
  local firmware=$1 guest=$2 options=$3 name=$4
  shift 4
  qemu_command "$@"
  QEMU+=(-smbios "type=1,product=$guest" -smbios "type=11,value=${options//,/,,}")
  case $firmware in
    # The BIOS has no screen: its messages, and GRUB's first ones, go to the serial line.
    bios) QEMU+=(-machine graphics=off) ;;
    uefi)
      cp "$OVMF_DIR/OVMF_VARS_4M.fd" "$WORK/$name.vars"
      QEMU+=(-drive "if=pflash,format=raw,readonly=on,file=$OVMF_DIR/OVMF_CODE_4M.fd"
        -drive "if=pflash,format=raw,file=$WORK/$name.vars")
      ;;
  esac
}

# firmware_debian_start FIRMWARE NAME LOG JOB SOCKET: as debian_start, by firmware.
firmware_debian_start() {
  firmware_command "$1" debian "$DEBIAN_OPTIONS $(job_option "$4")" "$2" -m 512 "$5"
  QEMU+=(-no-reboot)
  qemu_start 600 "$2" "$3"
}

# firmware_console FIRMWARE SOCKET: as debian_console, by firmware; GRUB's menu waits 5 s.
firmware_console() {
  firmware_command "$1" console "$DEBIAN_OPTIONS" console -m 512 "$2"
  qemu_console
}
