#!/usr/bin/env bash
# Runs each fuzz target with cargo-fuzz (libFuzzer, AddressSanitizer), one after
# the other, and says how many inputs it ran and how much code they reached.
# Ends with "N passed, N failed, N skipped"; exit status 1 if one failed.
#
#   tests/fuzz.sh                   20 seconds each
#   tests/fuzz.sh 300               300 seconds each
#   tests/fuzz.sh 300 ring leaf     these only
#
# It needs a nightly compiler (rustup toolchain install nightly) and installs
# cargo-fuzz where that is missing; without nightly all targets are skipped.
# What it finds is kept in fuzz/corpus; an input that breaks a target is in
# fuzz/artifacts: put it into fuzz/seeds/TARGET, where tests/fuzz_seeds.rs runs
# it from then on.
set -uo pipefail
cd "$(dirname "$0")/.."

seconds=${1-20}
shift || true
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || targets=(leaf request ring inflight messages)
case "$seconds" in
    "" | *[!0-9]*) echo "usage: tests/fuzz.sh [SECONDS [TARGET]...]" >&2; exit 2 ;;
esac

passed=0 failed=0 skipped=0
finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
    exit
}
skip_all() {
    skipped=${#targets[@]}
    for target in "${targets[@]}"; do echo "skipped fuzz $target: $1"; done
    finish
}

cargo +nightly --version >/dev/null 2>&1 || skip_all "no nightly compiler: rustup toolchain install nightly"
cargo fuzz --version >/dev/null 2>&1 || cargo install --quiet cargo-fuzz ||
    skip_all "cargo-fuzz can't be installed"

log_dir=target/test-logs
mkdir -p "$log_dir"
cargo +nightly fuzz build >"$log_dir/fuzz-build.log" 2>&1 || {
    tail -n 40 "$log_dir/fuzz-build.log" | sed 's/^/    /'
    failed=${#targets[@]}
    echo "not ok  the fuzz targets don't build"
    finish
}
for target in "${targets[@]}"; do
    log="$log_dir/fuzz-$target.log"
    mkdir -p "fuzz/corpus/$target"
    # The first folder takes what is new, the second is read.
    if cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=60 -rss_limit_mb=4096 \
        -print_final_stats=1 >"$log" 2>&1; then
        passed=$((passed + 1))
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        reach=$(grep -oE 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -n 1)
        echo "ok      fuzz $target: $runs inputs in $seconds s, $reach"
    else
        failed=$((failed + 1))
        echo "not ok  fuzz $target, see $log:"
        tail -n 40 "$log" | sed 's/^/    /'
    fi
done
finish
