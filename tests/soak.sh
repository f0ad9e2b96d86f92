#!/usr/bin/env bash
# More of what tests/run.sh does in small: kills by the hundred.
#
#   tests/soak.sh --kills N [--seed N]
#
# N kills under four scripted guests (tests/kills.rs; about 25 a second), then N
# under a QEMU guest (qemu/test-kills.sh; about one in 2.5 s). Status 1 if anything
# failed.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    echo "usage: tests/soak.sh --kills N [--seed N]" >&2
    exit 2
}

kills=''
while [ $# -gt 0 ]; do
    if [ $# -lt 2 ] || ! [[ $2 =~ ^[0-9]+$ ]]; then usage; fi
    case $1 in
        --kills) kills=$2 ;;
        --seed) export LEAFBLK_SEED=$2 ;;
        *) usage ;;
    esac
    shift 2
done
[ "${kills:-0}" -gt 0 ] || usage

LEAFBLK_KILLS=$kills cargo test --locked --test kills -- --nocapture
KILLS=$kills qemu/test-kills.sh
