# shellcheck shell=bash
# Owns what has to be on the host: Debian packages, Rust, a guest kernel, a static
# busybox, a static fio and a static fsx. Everything that is not a package ends up in
# qemu/cache; once it is there, no script needs the network. The system's apt set-up
# is not changed.

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# What each command comes from. gcc only recommends the C library's headers, without
# which it makes no program.
declare -A PACKAGE_OF=(
  [cc]='gcc libc6-dev' [make]=make [xz]=xz-utils [bzip2]=bzip2 [zstd]=zstd [cpio]=cpio
  [depmod]=kmod [fdisk]=fdisk [sfdisk]=fdisk [mcopy]=mtools [grub-mkimage]=grub-common
  [mke2fs]=e2fsprogs [e2fsck]=e2fsprogs [dumpe2fs]=e2fsprogs
  [mkfs.xfs]=xfsprogs [xfs_repair]=xfsprogs [mkfs.btrfs]=btrfs-progs [btrfs]=btrfs-progs
  [qemu-system-x86_64]=qemu-system-x86 [qemu-io]=qemu-utils [mmdebstrap]=mmdebstrap
  [stress-ng]=stress-ng [lintian]=lintian [dpkg-shlibdeps]=dpkg-dev [tmux]=tmux
  [virt-xml-validate]=libvirt-clients [xmllint]=libxml2-utils [chromium]=chromium [chromedriver]=chromium-driver [python3]=python3
)

on_debian() { [ -f /etc/debian_version ] && command -v apt-get >/dev/null; }

# is_there COMMAND
is_there() {
  command -v "$1" >/dev/null || return 1
  [ "$1" != cc ] || echo '#include <stdio.h>' | cc -fsyntax-only -x c - 2>/dev/null
}

# need COMMAND…: every command is there afterwards, or the script ends with one
# sentence that says what to install.
need() {
  local command package packages=() missing=()
  PATH=$PATH:/usr/sbin:/sbin
  for command in "$@"; do
    is_there "$command" && continue
    [ -n "${PACKAGE_OF[$command]:-}" ] ||
      die "there is no $command here, and qemu/lib/tools.sh doesn't say which package has it; please install it, then run this again"
    missing+=("$command")
    for package in ${PACKAGE_OF[$command]}; do packages+=("$package"); done
  done
  [ ${#missing[@]} -eq 0 ] && return
  on_debian ||
    die "please install ${missing[*]} (in Debian the packages ${packages[*]}), then run this again"
  install_packages "${packages[@]}"
  for command in "${missing[@]}"; do
    is_there "$command" || die "${PACKAGE_OF[$command]} was installed, but there is no $command still; see $CACHE_DIR/apt.log"
  done
}

# install_packages PACKAGE…: from the distribution; QEMU from backports where
# installing the plain one would remove something (qemu-utils 10 is there).
install_packages() {
  [ "$(id -u)" = 0 ] || die "please run: sudo apt-get install --no-install-recommends $*"
  say "installing packages: $*"
  local log=$CACHE_DIR/apt.log package plain=()
  system_apt update >"$log" 2>&1 || true
  for package in "$@"; do
    # --no-remove makes the rehearsal fail where the plain package would remove one.
    if ! system_apt install -s "$package" >>"$log" 2>&1; then
      private_apt update >>"$log" 2>&1 || die "apt-get update failed, see $log"
      private_apt install -y -t "$(debian_codename)-backports" "$package" >>"$log" 2>&1 ||
        die "installing $package from backports failed, see $log"
    else
      plain+=("$package")
    fi
  done
  [ ${#plain[@]} -eq 0 ] || system_apt install -y "${plain[@]}" >>"$log" 2>&1 ||
    die "installing ${plain[*]} failed, see $log"
}

system_apt() {
  DEBIAN_FRONTEND=noninteractive apt-get -q --no-install-recommends --no-remove \
    -o APT::Sandbox::User=root "$@"
}

# apt with the system's Debian archive plus backports and sources, in a
# directory of its own.
private_apt() {
  local dir=$CACHE_DIR/apt site code signed
  if [ ! -f "$dir/sources.list" ]; then
    code=$(debian_codename)
    # shellcheck disable=SC2016 # $(SITE) is apt's
    site=$(apt-get indextargets --format '$(SITE)' "Codename: $code" 'Label: Debian' 2>/dev/null | sed -n 1p)
    signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    mkdir -p "$dir/lists/partial" "$dir/archives/partial" "$dir/empty"
    {
      echo "deb $signed ${site:-http://deb.debian.org/debian} $code main"
      echo "deb $signed ${site:-http://deb.debian.org/debian} $code-updates main"
      echo "deb $signed ${site:-http://deb.debian.org/debian} $code-backports main"
      echo "deb-src $signed ${site:-http://deb.debian.org/debian} $code main"
    } >"$dir/sources.list"
  fi
  system_apt -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts="$dir/empty" \
    -o Dir::State::Lists="$dir/lists" -o Dir::Cache::Archives="$dir/archives" \
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
}

debian_codename() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# unpack_package PACKAGE DIR: fetches a Debian package and unpacks it into DIR. It is
# not installed: it may conflict with what is, or start a service.
unpack_package() {
  local package=$1 dir=$2 log=$CACHE_DIR/apt.log
  rm -rf "$dir" "$dir.new"
  mkdir -p "$dir.new"
  say "fetching $package"
  system_apt update >"$log" 2>&1 || true
  (cd "$dir.new" && system_apt download "$package" >>"$log" 2>&1) ||
    die "fetching $package failed, see $log"
  dpkg -x "$dir.new"/*.deb "$dir.new"
  rm "$dir.new"/*.deb
  mv "$dir.new" "$dir"
}

# is_static PROGRAM
is_static() { ! grep -q / < <(ldd "$1" 2>/dev/null || true); }

# ensure_busybox: BUSYBOX, a static one. A Debian desktop or server has the other one
# (initramfs-tools recommends it), which busybox-static conflicts with.
ensure_busybox() {
  local dir=$CACHE_DIR/busybox-static
  BUSYBOX=$(command -v busybox || true)
  [ -n "$BUSYBOX" ] && is_static "$BUSYBOX" && return
  BUSYBOX=$dir/bin/busybox
  [ -x "$BUSYBOX" ] && return
  on_debian || die "please put a static busybox at $BUSYBOX"
  unpack_package busybox-static "$dir"
}

KERNEL_MODULES='virtio_pci virtio_mmio virtio_blk crc32c_intel crc32c_generic ext4 xfs btrfs'

# ensure_kernel: KERNEL_DIR with vmlinuz, modules in the order to load them in,
# and the version. Debian's cloud kernel, unpacked and not installed.
ensure_kernel() {
  KERNEL_DIR=$CACHE_DIR/kernel
  [ "$(cat "$KERNEL_DIR/wanted" 2>/dev/null)" = "$KERNEL_MODULES" ] && return
  on_debian || die "please put a kernel into $KERNEL_DIR: vmlinuz, version, modules/, modules.list and, with $KERNEL_MODULES in it, wanted; the scripts fetch Debian's only on Debian"
  need depmod xz
  local package version dir=$CACHE_DIR/kernel.new
  rm -rf "$dir" && mkdir -p "$dir/modules"
  system_apt update >"$CACHE_DIR/apt.log" 2>&1 || true
  package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | sed -n 1p)
  [ -n "$package" ] || die "apt knows no linux-image-cloud-amd64; is this an amd64 Debian?"
  unpack_package "$package" "$dir/deb"
  version=${package#linux-image-}
  [ -d "$dir/deb/lib" ] || ln -s usr/lib "$dir/deb/lib"
  depmod -b "$dir/deb" "$version"
  cp "$dir/deb/boot/vmlinuz-$version" "$dir/vmlinuz"
  local module
  for module in $KERNEL_MODULES; do
    modprobe -d "$dir/deb" -S "$version" --show-depends "$module" 2>/dev/null |
      sed -n 's/^insmod \([^ ]*\).*/\1/p'
  done | awk '!seen[$0]++' | while read -r module; do
    case $module in
      *.xz) xz -dc "$module" >"$dir/modules/$(basename "$module" .xz)" ;;
      *) cp "$module" "$dir/modules/" ;;
    esac
    basename "$module" .xz >>"$dir/modules.list"
  done
  grep -q virtio_blk "$dir/modules.list" || die "no virtio_blk in $package"
  rm -rf "$dir/deb"
  echo "$version" >"$dir/version"
  echo "$KERNEL_MODULES" >"$dir/wanted"
  rm -rf "$KERNEL_DIR" && mv "$dir" "$KERNEL_DIR"
}

# ensure_fio: FIO, a static binary built from Debian's source package.
ensure_fio() {
  FIO=$CACHE_DIR/fio
  [ -x "$FIO" ] && return
  on_debian || die "please put a static fio (configure --build-static) at $FIO"
  need cc make bzip2 xz
  [ -f /usr/include/libaio.h ] || install_packages libaio-dev
  local dir=$CACHE_DIR/fio-src log=$CACHE_DIR/fio.log
  say "building a static fio (about a minute)"
  rm -rf "$dir" && mkdir -p "$dir/src"
  private_apt update >"$log" 2>&1 || true
  (cd "$dir" && private_apt source --download-only fio >>"$log" 2>&1) ||
    die "fetching the source of fio failed, see $log"
  tar -C "$dir/src" --strip-components=1 -xf "$(find "$dir" -name 'fio_*.orig.tar.*' ! -name '*.asc')"
  (cd "$dir/src" && ./configure --build-static --disable-native --disable-http --disable-rdma \
    --disable-rados --disable-rbd --disable-gfapi && make -j"$(nproc)" fio) >>"$log" 2>&1 ||
    die "building fio failed, see $log"
  strip -o "$FIO" "$dir/src/fio"
  rm -rf "$dir"
}

# need_rust: cargo is there, and what rustc links with.
need_rust() {
  is_there cargo || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  is_there cargo || die "please install Rust (https://rustup.rs) as $(id -un), who has no cargo, then run this again"
  need cc
}

has_component() { cargo "${1/rustfmt/fmt}" --version >/dev/null 2>&1; }

# need_components COMPONENT…: parts of Rust that rustup's minimal profile lacks.
need_components() {
  local component log=$CACHE_DIR/rustup.log
  for component in "$@"; do
    has_component "$component" && continue
    is_there rustup || die "please install the Rust component $component, then run this again"
    say "installing the Rust component $component"
    { rustup component add "$component" >"$log" 2>&1 && has_component "$component"; } ||
      die "installing the Rust component $component failed, see $log"
  done
}

# ensure_fsx: FSX, the file system exerciser from crates.io, built static.
ensure_fsx() {
  FSX=$CACHE_DIR/bin/fsx
  [ -x "$FSX" ] && return
  need_rust
  say "building a static fsx"
  # Optimised it would take twice as long to build.
  RUSTFLAGS='-C target-feature=+crt-static' cargo install --quiet --locked --debug \
    --config profile.dev.debug=false --root "$CACHE_DIR" --target x86_64-unknown-linux-gnu \
    --target-dir "$CACHE_DIR/fsx-target" fsx@0.3.2 >"$CACHE_DIR/fsx.log" 2>&1 ||
    die "building fsx failed, see $CACHE_DIR/fsx.log"
  rm -rf "$CACHE_DIR/fsx-target"
}
