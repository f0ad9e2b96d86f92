#!/usr/bin/env bash
# The tests of what leafblk shows that need other programs: Prometheus and its
# promtool, tmux, Chromium with ChromeDriver. Installs what is missing where it
# can (Debian packages, as root). Ends with a count.
set -euo pipefail
# shellcheck source=../qemu/lib/tools.sh
. "$(dirname "$0")/../qemu/lib/tools.sh"
cd "$REPO_DIR"

PATH=$PATH:$CACHE_DIR/prometheus/usr/bin

# Installed, Debian's package would start a service, and start it at each boot.
fetch_prometheus() {
    is_there prometheus && is_there promtool && return
    on_debian || die "please install Prometheus with its promtool"
    unpack_package prometheus "$CACHE_DIR/prometheus"
}

# sum LOG FIELD: adds up that word of all "test result:" lines.
sum() { awk -v field="$2" '/^test result:/ {n += $field} END {print n + 0}' "$1"; }

# group MODULE COMMAND…: runs a module's tests, once COMMAND got what they need.
group() {
    local module=$1 log=$CACHE_DIR/seeing.log status=0 passed failed
    shift
    # In a subshell: what can't be had ends only this.
    if ! ("$@"); then
        skipped "$module" "there is something to install first, see above"
        return
    fi
    # One after the other: each starts a browser or a server.
    cargo test --locked --test seeing -- --include-ignored --test-threads=1 "$module" \
        >"$log" 2>&1 || status=$?
    cat "$log"
    passed=$(sum "$log" 4) failed=$(sum "$log" 6)
    CHECKS_PASSED=$((CHECKS_PASSED + passed)) CHECKS_FAILED=$((CHECKS_FAILED + failed))
    if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
        not_ok "$module did not run to its end"
    elif [ "$passed" -eq 0 ] && [ "$failed" -eq 0 ]; then
        not_ok "$module has no tests"
    fi
}

need_rust
group in_prometheus:: fetch_prometheus
group in_tmux:: need tmux
group in_chromium:: need chromium chromedriver
summary || [ "$CHECKS_FAILED" -eq 0 ]
