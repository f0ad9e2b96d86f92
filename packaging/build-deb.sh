#!/usr/bin/env bash
# Makes the Debian package and prints its path. Needs Rust, dpkg-dev and, once it
# has run, no network: cargo-deb is built in target/tools unless this version of it
# is installed.
#
#   packaging/build-deb.sh                   builds the release binary first
#   LEAFBLK=PATH packaging/build-deb.sh      packages that binary
#
# Man pages and completions come from the binary itself.
set -euo pipefail
cd "$(dirname "$0")/.."

CARGO_DEB=3.8.0
stage=target/deb
command -v dpkg-shlibdeps >/dev/null || {
    echo "build-deb.sh: please install dpkg-dev" >&2
    exit 1
}
if [ -z "${LEAFBLK:-}" ]; then
    cargo build --locked --release --bin leafblk >&2
    LEAFBLK=${CARGO_TARGET_DIR:-target}/release/leafblk
fi
PATH=$PWD/target/tools/bin:$PATH
[ "$(cargo-deb --version 2>/dev/null)" = "cargo-deb $CARGO_DEB" ] ||
    # Optimised it would take three times as long to build.
    cargo install --quiet --locked --debug --config profile.dev.debug=false \
        --root target/tools "cargo-deb@$CARGO_DEB" >&2

rm -rf "$stage"
mkdir -p "$stage/release" "$stage/man" "$stage/completions" "$stage/doc" "$stage/docs"
strip -o "$stage/release/leafblk" "$LEAFBLK"
chmod 755 "$stage/release/leafblk"
"$LEAFBLK" man "$stage/man"
gzip -9n "$stage/man/"*.1
"$LEAFBLK" completions bash >"$stage/completions/leafblk"
"$LEAFBLK" completions zsh >"$stage/completions/_leafblk"
"$LEAFBLK" completions fish >"$stage/completions/leafblk.fish"
# As in the source: the README and the documents name each other by docs/NAME.
cp README.md "$stage/doc/"
cp docs/* "$stage/docs/"
cp CHANGELOG.md "$stage/doc/changelog"
gzip -9n "$stage/doc/changelog"
# cargo-deb looks for the binary below the target directory.
CARGO_TARGET_DIR=$stage cargo-deb --quiet --no-build --output "$stage/" >&2
ls "$stage"/*.deb
