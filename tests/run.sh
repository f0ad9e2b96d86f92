#!/usr/bin/env bash
# Runs everything that leafblk is held to: formatting, lints, unit, property and
# socket tests, simulated power cuts, kills, the fuzz targets on their seeds, the
# interleavings that loom tries, what is shown in a terminal and a browser, QEMU
# guests and the Debian package. Installs what is missing where it can (Debian
# packages, as root; components of Rust). Ends with a count; exit status 1 if
# anything failed. Longer runs: tests/soak.sh (kills), tests/fuzz.sh (fuzzing),
# `cargo run --release --example crashsim` (power cuts).
#
#   tests/run.sh            all of it
#   tests/run.sh --no-qemu  without guests, which are then counted as skipped
set -uo pipefail
# shellcheck source=../qemu/lib/tools.sh
. "$(dirname "$0")/../qemu/lib/tools.sh"
# Here a failure is counted.
trap - ERR
cd "$REPO_DIR" || exit

with_qemu=1
case "${1-}" in
    "") ;;
    --no-qemu) with_qemu=0 ;;
    *) echo "usage: tests/run.sh [--no-qemu]" >&2; exit 2 ;;
esac

passed=0 failed=0 skipped=0
log_dir=target/test-logs
mkdir -p "$log_dir"

# step NAME LOG COMMAND…: one check; its output is shown if it fails.
step() {
    local name=$1 log="$log_dir/$2.log" begun=$SECONDS
    shift 2
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $name ($((SECONDS - begun)) s)"
    else
        failed=$((failed + 1))
        echo "FAILED  $name ($((SECONDS - begun)) s), see $log:"
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
    if [ "$f" -eq 0 ] && { [ "$status" -ne 0 ] || [ -z "$line" ]; }; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    if [ "$f" -gt 0 ]; then
        echo "FAILED  $name ($((SECONDS - begun)) s), see $log:"
        grep -E '^(not ok|skipped)' "$log" | sed 's/^/    /'
        tail -n 40 "$log" | sed 's/^/    /'
    else
        echo "ok      $name: $line ($((SECONDS - begun)) s)"
        grep -E '^skipped' "$log" | sed 's/^/    /'
    fi
}

# await PID OUTPUT: waits for a command, and says what it said.
await() {
    local status=0
    wait "$1" || status=$?
    cat "$2"
    return "$status"
}

# cargo_tests NAME LOG COMMAND…: as step, for cargo's test runner: adds up its "test
# result:" lines, one a binary. What is ignored counts as skipped, but for what
# tests/seeing.sh runs.
cargo_tests() {
    local name=$1 log="$log_dir/$2.log" begun=$SECONDS status=0 p f ignored i
    shift 2
    "$@" >"$log" 2>&1 || status=$?
    p=$(awk '/^test result:/ {n += $4} END {print n + 0}' "$log")
    f=$(awk '/^test result:/ {n += $6} END {print n + 0}' "$log")
    ignored=$(grep -E '^test .* \.\.\. ignored' "$log" | grep -v 'run tests/seeing.sh$')
    i=$(grep -c . <<<"$ignored")
    if [ "$f" -eq 0 ] && { [ "$status" -ne 0 ] || [ "$p" -eq 0 ]; }; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + i))
    if [ "$f" -gt 0 ]; then
        echo "FAILED  $name: $p passed, $f failed ($((SECONDS - begun)) s), see $log:"
        grep -E '^test .*FAILED|^error' "$log" | sed 's/^/    /'
        tail -n 60 "$log" | sed 's/^/    /'
    else
        echo "ok      $name: $p passed, $i skipped ($((SECONDS - begun)) s)"
    fi
    if [ -n "$ignored" ]; then printf '%s\n' "$ignored" | sed 's/^/    /'; fi
}

# What each step needs besides, its script gets.
need_rust
need_components rustfmt clippy
need qemu-io
step "cargo fmt" fmt cargo fmt --check
step "cargo clippy" clippy cargo clippy --locked --all-targets -- -D warnings
# leafblk's dependencies in the versions that were just checked, most of them in its
# target folder already. libFuzzer itself is only linked into a target that runs.
check_fuzz() {
    [ fuzz/Cargo.lock -nt Cargo.lock ] || cp Cargo.lock fuzz/
    CUSTOM_LIBFUZZER_PATH=/libfuzzer.a \
        cargo check --target-dir target --manifest-path fuzz/Cargo.toml
}
step "fuzz/ builds" fuzz-check check_fuzz
cargo_tests "cargo test" cargo-test cargo test --locked --no-fail-fast
# In a folder of its own: the flag builds everything anew.
cargo_tests "cargo test, loom" loom \
    env CARGO_TARGET_DIR=target/loom RUSTFLAGS="--cfg leafblk_loom" \
    cargo test --locked --profile loom --lib loom_
step "cargo build --release" build cargo build --locked --release
counted tests/seeing.sh seeing tests/seeing.sh
alone=(qemu/test-guests.sh qemu/test-filesystems.sh)
# These have one guest at a time: one core.
beside_kills=(qemu/test-debian.sh qemu/test-control.sh packaging/test-deb.sh)
guests() {
    local script
    for script in "$@"; do counted "$script" "$(basename "$script" .sh)" "$script"; done
}
if [ "$with_qemu" -eq 1 ]; then
    guests "${alone[@]}"
    qemu/test-kills.sh >"$log_dir/test-kills.out" 2>&1 &
    kills=$!
    at_exit "stop_pid $kills"
    guests "${beside_kills[@]}"
    counted qemu/test-kills.sh test-kills await "$kills" "$log_dir/test-kills.out"
else
    for script in "${alone[@]}" "${beside_kills[@]}" qemu/test-kills.sh; do
        skipped=$((skipped + 1))
        echo "skipped $script: --no-qemu"
    done
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
