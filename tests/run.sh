#!/usr/bin/env bash
# Runs everything that leafblk is held to: formatting, lints, unit, property and
# socket tests, simulated power cuts, kills, a short run of each fuzz target,
# what is shown in a terminal and a browser, QEMU guests and the Debian package.
# Installs what is missing where it can (Debian packages, as root). Ends with a
# count; exit status 1 if anything failed. Longer runs: tests/soak.sh (kills),
# tests/fuzz.sh (fuzzing), `cargo run --release --example crashsim` (power cuts).
#
#   tests/run.sh            all of it
#   tests/run.sh --no-qemu  without guests, which are then counted as skipped
set -uo pipefail
cd "$(dirname "$0")/.."

with_qemu=1
case "${1-}" in
    "") ;;
    --no-qemu) with_qemu=0 ;;
    *) echo "usage: tests/run.sh [--no-qemu]" >&2; exit 2 ;;
esac

passed=0 failed=0 skipped=0
log_dir=target/test-logs
mkdir -p "$log_dir"

ok() { passed=$((passed + 1)); echo "ok      $1"; }
not_ok() { failed=$((failed + 1)); echo "FAILED  $1"; }
skip() { skipped=$((skipped + 1)); echo "skipped $1: $2"; }

# step NAME LOG COMMAND…: one check; its output is shown if it fails.
step() {
    local name=$1 log="$log_dir/$2.log" begun=$SECONDS
    shift 2
    if "$@" >"$log" 2>&1; then
        ok "$name ($((SECONDS - begun)) s)"
    else
        not_ok "$name ($((SECONDS - begun)) s), see $log:"
        tail -n 60 "$log" | sed 's/^/    /'
    fi
}

# counted NAME LOG COMMAND…: as step, for a command that says how many tests of
# its own passed, failed and were skipped: "N passed, N failed, N skipped".
counted() {
    local name=$1 log="$log_dir/$2.log" begun=$SECONDS status=0 line
    shift 2
    "$@" >"$log" 2>&1 || status=$?
    line=$(grep -oE '[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped' "$log" | tail -n 1)
    local p=0 f=0 s=0
    if [ -n "$line" ]; then
        read -r p _ f _ s _ <<<"$line"
    fi
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    if [ "$f" -gt 0 ] || [ -z "$line" ]; then
        [ -n "$line" ] || failed=$((failed + 1))
        echo "FAILED  $name ($((SECONDS - begun)) s), see $log:"
        grep -E '^(not ok|skipped)' "$log" | sed 's/^/    /'
        tail -n 40 "$log" | sed 's/^/    /'
    else
        echo "ok      $name: $line ($((SECONDS - begun)) s)"
        grep -E '^skipped' "$log" | sed 's/^/    /'
    fi
}

# Adds up what cargo's test runner printed, one "test result:" line a binary.
cargo_tests() {
    local log="$log_dir/cargo-test.log" begun=$SECONDS status=0 p f i
    cargo test --no-fail-fast >"$log" 2>&1 || status=$?
    p=$(awk '/^test result:/ {n += $4} END {print n + 0}' "$log")
    f=$(awk '/^test result:/ {n += $6} END {print n + 0}' "$log")
    i=$(awk '/^test result:/ {n += $8} END {print n + 0}' "$log")
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + i))
    if [ "$f" -gt 0 ]; then
        echo "FAILED  cargo test: $p passed, $f failed ($((SECONDS - begun)) s), see $log:"
        grep -E '^test .*FAILED|^error' "$log" | sed 's/^/    /'
        tail -n 60 "$log" | sed 's/^/    /'
    else
        echo "ok      cargo test: $p passed, $i ignored ($((SECONDS - begun)) s)"
    fi
}

install_missing() {
    # Only what the socket tests use; qemu/ looks after its own.
    command -v qemu-io >/dev/null && return
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "installing qemu-utils"
        { apt-get update && DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends qemu-utils; } >"$log_dir/apt.log" 2>&1
    fi
    command -v qemu-io >/dev/null || echo "qemu-io is missing: install qemu-utils" >&2
}

install_missing
step "cargo fmt" fmt cargo fmt --check
step "cargo clippy" clippy cargo clippy --all-targets -- -D warnings
cargo_tests
step "cargo build --release" build cargo build --release
counted tests/seeing.sh seeing tests/seeing.sh
for guests in qemu/test-guests.sh qemu/test-filesystems.sh qemu/test-debian.sh \
    qemu/test-kills.sh qemu/test-control.sh packaging/test-deb.sh; do
    if [ "$with_qemu" -eq 1 ]; then
        counted "$guests" "$(basename "$guests" .sh)" "$guests"
    else
        skip "$guests" "--no-qemu"
    fi
done

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
