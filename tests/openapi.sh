#!/usr/bin/env bash
# docs/openapi.json, judged from outside: schemathesis makes requests of it, right ones
# and wrong ones, sends them to a daemon's control socket, and looks whether each answer
# is one that the document promises. Installs schemathesis into qemu/cache. Always the
# same requests. Ends with a count.
set -euo pipefail
# shellcheck source=../qemu/lib/tools.sh
. "$(dirname "$0")/../qemu/lib/tools.sh"
cd "$REPO_DIR"

VERSION=4.32.5
VENV=$CACHE_DIR/schemathesis-$VERSION
EXAMPLES=25 # of each operation and phase: some 25 s

fetch_schemathesis() {
    [ -x "$VENV/bin/schemathesis" ] && return
    need python3
    rm -rf "$VENV" "$CACHE_DIR"/schemathesis-*
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    say "installing schemathesis $VERSION"
    python3 -m venv "$VENV.new" || return
    "$VENV.new/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$VERSION" || return
    # Scripts in it have its path.
    sed -i "1s|$VENV.new|$VENV|" "$VENV.new/bin/schemathesis" && mv "$VENV.new" "$VENV"
}

# start_daemon: with a root and a VM, as a user that can write nowhere else: it will be
# asked for files in any place.
start_daemon() {
    local as=() program=$LEAFBLK
    head -c 2M /dev/urandom >"$WORK/root.raw"
    if [ "$(id -u)" = 0 ]; then
        as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
        chown 65534:65534 "$WORK" "$WORK/root.raw"
        if ! "${as[@]}" test -x "$program"; then
            install -m 755 "$program" "$WORK/leafblk"
            program=$WORK/leafblk
        fi
    fi
    "${as[@]}" "$program" serve --state-dir "$WORK/state" --runtime-dir "$WORK/run" \
        --cache-size 64MiB --hugepages off --root "debian=$WORK/root.raw" --vm web1 \
        >"$WORK/out" 2>"$WORK/log" &
    DAEMON=$!
    at_exit "stop_pid $DAEMON"
    comes 30 "$DAEMON" "$WORK/out" '^ready'
}

start_forwarder() {
    "$VENV/bin/python" tests/openapi/forward.py "$WORK/run/control.sock" >"$WORK/port" &
    FORWARDER=$!
    at_exit "stop_pid $FORWARDER"
    comes 30 "$FORWARDER" "$WORK/port" '^[0-9]'
    URL=http://127.0.0.1:$(cat "$WORK/port")
}

judge() {
    # It leaves files where it runs.
    (cd "$WORK" && timeout 300 "$VENV/bin/schemathesis" run "$REPO_DIR/docs/openapi.json" \
        --url "$URL" --checks all --max-examples "$EXAMPLES" --generation-deterministic \
        --continue-on-failure --request-timeout 30 --warnings off --no-color) >"$WORK/judge" 2>&1
}

# said PATTERN: what it says there of itself.
said() { sed -n "s/^ *$1.*/\1/p" "$WORK/judge" | tail -n 1; }

all_is_tested() {
    local all
    all=$(grep -cE '^      "(get|post|put|patch|delete)": ' docs/openapi.json)
    [ "$(said 'Tested: \([0-9]*\)')" = "$all" ]
}

# attached: how many VMs have come by its requests.
attached() { grep -cE ' VM [^ ]*: attached(,|$)' "$WORK/log" || true; }

ends_well() {
    kill "$DAEMON" && wait "$DAEMON" && ! grep -q panicked "$WORK/log"
}

need_rust
# tests/run.sh has built the one that it names.
if [ -z "${LEAFBLK:-}" ]; then
    LEAFBLK=${CARGO_TARGET_DIR:-$PWD/target}/debug/leafblk
    cargo build --locked --bin leafblk
fi
if ! (fetch_schemathesis); then
    skipped "docs/openapi.json" "schemathesis could not be installed, see above"
else
    TMPDIR=/dev/shm make_work_dir
    start_daemon || die "the daemon does not start: $(tail -n 5 "$WORK/log")"
    start_forwarder
    status=0
    judge || status=$?
    check "the API is what docs/openapi.json says ($(said '\([0-9]*\) generated') requests)" \
        [ "$status" -eq 0 ]
    [ "$status" -eq 0 ] || cat "$WORK/judge"
    check "each operation was tried" all_is_tested
    check "some requests attached VMs ($(attached))" [ "$(attached)" -gt 0 ]
    check "the daemon ends with status 0, and no part of it panicked" ends_well
fi
summary || [ "$CHECKS_FAILED" -eq 0 ]
