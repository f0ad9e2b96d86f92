#!/usr/bin/env bash
# The tests of what leafblk shows that need other programs: Prometheus and its
# promtool, tmux, Chromium with ChromeDriver. Installs what is missing where it
# can (Debian packages, as root). Ends with a count.
set -uo pipefail
cd "$(dirname "$0")/.."

passed=0 failed=0 skipped=0

# have PACKAGE COMMAND…: the commands are there, if need be after installing.
have() {
    local package=$1 command missing=()
    shift
    for command in "$@"; do
        command -v "$command" >/dev/null || missing+=("$command")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "installing $package for ${missing[*]}"
        # shellcheck disable=SC2086 # several packages
        { apt-get -q install -y --no-install-recommends $package ||
            { apt-get -q update && apt-get -q install -y --no-install-recommends $package; }; } >&2
    fi
    for command in "$@"; do
        command -v "$command" >/dev/null || return 1
    done
}

# group MODULE PACKAGES COMMAND…: runs a module's tests, or says why not.
group() {
    local module=$1 package=$2 log status=0
    shift 2
    if ! have "$package" "$@"; then
        echo "skipped $module: install $package"
        skipped=$((skipped + 1))
        return
    fi
    log=$(mktemp)
    # One after the other: each starts a browser or a server.
    cargo test --test seeing -- --include-ignored --test-threads=1 "$module" >"$log" 2>&1 || status=$?
    cat "$log"
    passed=$((passed + $(awk '/^test result:/ {n += $4} END {print n + 0}' "$log")))
    failed=$((failed + $(awk '/^test result:/ {n += $6} END {print n + 0}' "$log")))
    if [ "$status" -ne 0 ] && ! grep -q '^test result: FAILED' "$log"; then
        failed=$((failed + 1))
        echo "not ok $module: it did not run to its end"
    fi
    rm -f "$log"
}

export DEBIAN_FRONTEND=noninteractive
group in_prometheus:: prometheus prometheus promtool
group in_tmux:: tmux tmux
group in_chromium:: "chromium chromium-driver" chromium chromedriver

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
