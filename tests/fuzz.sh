#!/usr/bin/env bash
# Runs each fuzz target with cargo-fuzz (libFuzzer, AddressSanitizer), one after
# the other, and says how many inputs it ran and how much code they reached.
# Ends with "N passed, N failed, N skipped"; exit status 1 if one failed.
#
#   tests/fuzz.sh                   20 seconds each
#   tests/fuzz.sh 300               300 seconds each
#   tests/fuzz.sh 300 ring leaf     these only
#
# It needs a nightly compiler (rustup toolchain install nightly) and a C++ compiler;
# without nightly all targets are skipped. cargo-fuzz is built in target/tools unless
# this version of it is installed.
# What it finds is kept in fuzz/corpus; an input that breaks a target is in
# fuzz/artifacts: put it into fuzz/seeds/TARGET, where tests/fuzz_seeds.rs runs
# it from then on.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

CARGO_FUZZ=0.13.2
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

export RUSTUP_TOOLCHAIN=nightly
cargo --version >/dev/null 2>&1 || skip_all "no nightly compiler: rustup toolchain install nightly"
PATH=$PWD/target/tools/bin:$PATH
[ "$(cargo-fuzz --version 2>/dev/null)" = "cargo-fuzz $CARGO_FUZZ" ] ||
    cargo install --quiet --locked --root target/tools "cargo-fuzz@$CARGO_FUZZ" ||
    skip_all "cargo-fuzz $CARGO_FUZZ can't be installed"

log_dir=target/test-logs
mkdir -p "$log_dir"
# leafblk's dependencies in the versions that its own tests use.
[ fuzz/Cargo.lock -nt Cargo.lock ] || cp Cargo.lock fuzz/
cargo-fuzz build >"$log_dir/fuzz-build.log" 2>&1 || {
    tail -n 40 "$log_dir/fuzz-build.log" | sed 's/^/    /'
    failed=${#targets[@]}
    echo "not ok  the fuzz targets don't build"
    finish
}
for target in "${targets[@]}"; do
    log="$log_dir/fuzz-$target.log"
    mkdir -p "fuzz/corpus/$target"
    # The first folder takes what is new, the second is read.
    if cargo-fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
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
