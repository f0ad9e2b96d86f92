#!/usr/bin/env bash
# More of what tests/run.sh does in small: kills by the hundred, and reads from a cache
# that evicts, for as long as one wants.
#
#   tests/soak.sh [--kills N] [--reads SECONDS] [--firmware] [--seed N]
#
# --kills: N kills under four scripted guests (tests/kills.rs; about 25 a second), then N
# under a QEMU guest (qemu/test-kills.sh; about one in 2.5 s).
# --reads: the smallest cache with three block sizes and 2 to 4 reactors, under 6 to 16
# VMs that come and go, every byte checked (tests/eviction.rs), for SECONDS in all.
# --firmware: guests that firmware boots, all of qemu/test-firmware.sh: some 9 minutes.
# Status 1 if anything failed.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    echo "usage: tests/soak.sh [--kills N] [--reads SECONDS] [--firmware] [--seed N]" >&2
    exit 2
}

kills=0 reads=0 firmware=0
while [ $# -gt 0 ]; do
    if [ "$1" = --firmware ]; then
        firmware=1
        shift
        continue
    fi
    if [ $# -lt 2 ] || ! [[ $2 =~ ^[0-9]+$ ]]; then usage; fi
    case $1 in
        --kills) kills=$2 ;;
        --reads) reads=$2 ;;
        --seed) export LEAFBLK_SEED=$2 ;;
        *) usage ;;
    esac
    shift 2
done
[ $((kills + reads + firmware)) -gt 0 ] || usage

if [ "$reads" -gt 0 ]; then
    LEAFBLK_READ_SECONDS=$reads cargo test --locked --test eviction -- --nocapture
fi
if [ "$kills" -gt 0 ]; then
    LEAFBLK_KILLS=$kills cargo test --locked --test kills -- --nocapture
    KILLS=$kills qemu/test-kills.sh
fi
if [ "$firmware" -gt 0 ]; then
    qemu/test-firmware.sh --all
fi
