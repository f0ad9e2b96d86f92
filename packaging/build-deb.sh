#!/usr/bin/env bash
# Makes the Debian package and prints its path. Needs Rust and, once it is there,
# no network: cargo-deb is installed where it is missing.
#
#   packaging/build-deb.sh                   builds the release binary first
#   LEAFBLK=PATH packaging/build-deb.sh      packages that binary
#
# Man pages and completions come from the binary itself.
set -euo pipefail
cd "$(dirname "$0")/.."

stage=target/deb
if [ -z "${LEAFBLK:-}" ]; then
    cargo build --release --bin leafblk >&2
    LEAFBLK=${CARGO_TARGET_DIR:-target}/release/leafblk
fi
cargo deb --version >/dev/null 2>&1 || cargo install --quiet cargo-deb >&2

rm -rf "$stage"
mkdir -p "$stage/release" "$stage/man" "$stage/completions" "$stage/doc"
strip -o "$stage/release/leafblk" "$LEAFBLK"
chmod 755 "$stage/release/leafblk"
"$LEAFBLK" man "$stage/man"
gzip -9n "$stage/man/"*.1
"$LEAFBLK" completions bash >"$stage/completions/leafblk"
"$LEAFBLK" completions zsh >"$stage/completions/_leafblk"
"$LEAFBLK" completions fish >"$stage/completions/leafblk.fish"
cp README.md CHANGELOG.md docs/*.md "$stage/doc/"
mv "$stage/doc/CHANGELOG.md" "$stage/doc/changelog"
gzip -9n "$stage/doc/changelog"
# cargo-deb looks for the binary below the target directory.
CARGO_TARGET_DIR=$stage cargo deb --quiet --no-build --output "$stage/"
ls "$stage"/*.deb
