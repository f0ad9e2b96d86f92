#!/usr/bin/env bash
# Runs everything that leafblk is held to: formatting, lints, unit, property and
# socket tests, simulated power cuts, kills, the fuzz targets on their seeds, the
# interleavings that loom tries, what is shown in a terminal and a browser, the control
# API against its description, QEMU guests and the Debian package. Installs what is
# missing where it can (Debian packages, as root; components of Rust). Ends with a
# count; exit status 1 if anything failed. Longer runs: tests/soak.sh (kills, reads, all of
# firmware's boots), tests/fuzz.sh (fuzzing), `cargo run --release --example crashsim` (power cuts).
#
#   tests/run.sh            all of it
#   tests/run.sh --quick    formatting, lints, unit tests and one guest: about 3 minutes
#                           where the dependencies are built
#   tests/run.sh --no-qemu  without guests, which are then counted as skipped
#   LEAFBLK=target/release/leafblk tests/run.sh
#                           with that build under the guests instead of the tests' own
set -uo pipefail
# shellcheck source=../qemu/lib/tools.sh
. "$(dirname "$0")/../qemu/lib/tools.sh"
# Here a failure is counted.
trap - ERR
cd "$REPO_DIR" || exit

with_qemu=1 quick=0
case "$#${1-}" in
    0) ;;
    1--quick) quick=1 ;;
    1--no-qemu) with_qemu=0 ;;
    *) echo "usage: tests/run.sh [--quick | --no-qemu]" >&2; exit 2 ;;
esac

passed=0 failed=0 skipped=0
log_dir=target/test-logs
mkdir -p "$log_dir"
# Whoever still runs: the number of one that has ended may be another process's.
stop_jobs() { local pid; for pid in $(jobs -pr); do stop_pid "$pid"; done; }
at_exit stop_jobs

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
    local name=$1 log="$log_dir/$2.log" begun=$SECONDS status=0
    shift 2
    "$@" >"$log" 2>&1 || status=$?
    count "$name" "$log" "$begun" "$status"
}

# count NAME LOG BEGUN STATUS: what a command of that kind said.
count() {
    local name=$1 log=$2 took=$((SECONDS - $3)) status=$4 line
    line=$(grep -oE '[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped' "$log" | tail -n 1)
    local p=0 f=0 s=0
    if [ -n "$line" ]; then
        read -r p _ f _ s _ <<<"$line"
    fi
    if [ "$f" -eq 0 ] && { [ "$status" -ne 0 ] || [ -z "$line" ]; }; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    if [ "$f" -gt 0 ]; then
        echo "FAILED  $name ($took s), see $log:"
        grep -E '^(not ok|skipped)' "$log" | sed 's/^/    /'
        tail -n 40 "$log" | sed 's/^/    /'
    else
        echo "ok      $name: $line ($took s)"
        grep -E '^skipped' "$log" | sed 's/^/    /'
    fi
}

# two_at_a_time SCRIPT…: each as counted.
two_at_a_time() {
    local pid status script
    local -A script_of=() begun_at=()
    for script in "$@" ''; do
        # The empty one stands for the end: whoever runs is waited for.
        while [ ${#script_of[@]} -gt 0 ] && { [ -z "$script" ] || [ ${#script_of[@]} -eq 2 ]; }; do
            status=0
            wait -n -p pid "${!script_of[@]}" || status=$?
            count "${script_of[$pid]}" "$(log_of "${script_of[$pid]}")" "${begun_at[$pid]}" "$status"
            unset "script_of[$pid]"
        done
        if [ -n "$script" ]; then
            "$script" >"$(log_of "$script")" 2>&1 &
            script_of[$!]=$script begun_at[$!]=$SECONDS
        fi
    done
}
log_of() { echo "$log_dir/$(basename "$1" .sh).log"; }

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

# The build that guests meet: the tests' own, as its assertions are on and a release
# takes minutes. LEAFBLK names another one.
export LEAFBLK=${LEAFBLK:-${CARGO_TARGET_DIR:-$PWD/target}/debug/leafblk}

report() {
    echo "took $SECONDS s"
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
}

# What each step needs besides, its script gets.
need_rust
need_components rustfmt clippy
need qemu-io xz bzip2 zstd
step "cargo fmt" fmt cargo fmt --check
if [ "$quick" -eq 1 ]; then
    step "cargo clippy" clippy cargo clippy --locked --all-targets -- -D warnings
    step "cargo build" quick-build cargo build --locked
    cargo_tests "cargo test --lib" quick-test cargo test --locked --lib
    counted "qemu/test-guests.sh --one" test-guests-one qemu/test-guests.sh --one
    report
    exit
fi
# Of no use to a build from nothing.
export CARGO_INCREMENTAL=0
# Most of it waits for the network.
if [ "$with_qemu" -eq 1 ]; then
    qemu/prepare.sh >"$log_dir/prepare.out" 2>&1 &
    prepare=$!
fi
prepared() {
    local status=0
    wait "$prepare" || status=$?
    cat "$log_dir/prepare.out"
    return "$status"
}
step "cargo clippy" clippy cargo clippy --locked --all-targets -- -D warnings
# leafblk's dependencies in the versions that were just checked, most of them in its
# target folder already. libFuzzer itself is only linked into a target that runs.
check_fuzz() {
    [ fuzz/Cargo.lock -nt Cargo.lock ] || cp Cargo.lock fuzz/
    CUSTOM_LIBFUZZER_PATH=/libfuzzer.a \
        cargo check --target-dir target --manifest-path fuzz/Cargo.toml
}
step "fuzz/ builds" fuzz-check check_fuzz
step "cargo test --no-run" test-build cargo test --locked --no-run
# cargo test measures time: nothing is to be beside it.
if [ "$with_qemu" -eq 1 ]; then step "qemu/prepare.sh" prepare prepared; fi
cargo_tests "cargo test" cargo-test cargo test --locked --no-fail-fast
cargo_tests "cargo test, loom" loom cargo test --locked --features loom --lib loom_
counted tests/seeing.sh seeing tests/seeing.sh
counted tests/openapi.sh openapi tests/openapi.sh
# As there are cores for: most have one guest at a time, with one CPU. The longest first.
guest_scripts=(packaging/test-deb.sh qemu/test-{guests,firmware,kills,filesystems,debian,demo,control,memory}.sh)
if [ "$with_qemu" -eq 1 ]; then
    two_at_a_time "${guest_scripts[@]}"
else
    for script in "${guest_scripts[@]}"; do
        skipped=$((skipped + 1))
        echo "skipped $script: --no-qemu"
    done
fi

report
