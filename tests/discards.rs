//! A discard of all that a VM has written at random, while the VM goes on writing.
//!
//! What a write waits for is a figure to be had by hand, since it is the disk's:
//!
//!     LEAFBLK_DISCARD_DIR=/var/tmp LEAFBLK_DISCARD_BLOCKS=262144 \
//!         cargo test --release --test discards -- --nocapture
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Client, Daemon, Op, make_root};

const BLOCK: usize = 4096;
/// Bytes before the blocks that are discarded, to which is written meanwhile.
const KEPT: u64 = 1 << 20;
const FILL: u8 = 0x5a;

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("LEAFBLK_DISCARD_{name}")).ok()
}

/// Writes each block once, in an order without neighbours, 32 at a time.
fn write_scattered(client: &mut Client, blocks: u64) {
    const DEPTH: usize = 32;
    client.memory(0, BLOCK).fill(FILL);
    assert!(blocks.is_power_of_two(), "an odd step comes to each of them once");
    let order = (0..blocks).map(|i| i.wrapping_mul(0x9e37_79b1) % blocks);
    let mut in_flight = 0;
    for block in order {
        if in_flight == DEPTH {
            in_flight -= client.complete(1).len();
        }
        client.submit(Op::Write, KEPT + block * BLOCK as u64, BLOCK, 0, 0);
        in_flight += 1;
    }
    client.complete(in_flight);
}

/// What a block before those has after so many writes, one block after the other.
fn kept(block: u64, writes: u64) -> u8 {
    let blocks = KEPT / BLOCK as u64;
    let rounds = (writes + blocks - 1 - block) / blocks;
    rounds as u8
}

/// Discards the blocks and writes until that is done; how many writes there were, and
/// how long the longest took.
fn discard_and_write(client: &mut Client, len: u64) -> (u64, Duration) {
    const DISCARD: usize = 1;
    client.submit(Op::Discard, KEPT, len as usize, 0, DISCARD);
    let (mut writes, mut longest, mut discarded) = (0, Duration::ZERO, false);
    while !discarded {
        let block = writes % (KEPT / BLOCK as u64);
        client.memory(0, BLOCK).fill(kept(block, writes + 1));
        let begun = Instant::now();
        client.submit(Op::Write, block * BLOCK as u64, BLOCK, 0, 0);
        let mut written = false;
        while !written {
            for (id, result) in client.complete(1) {
                assert_eq!(result, 0);
                (discarded, written) = (discarded || id == DISCARD, written || id != DISCARD);
            }
        }
        longest = longest.max(begun.elapsed());
        writes += 1;
    }
    (writes, longest)
}

#[test]
fn writes_go_on_beside_a_discard_of_all_that_was_written_at_random() {
    let place = setting("DIR").map_or("/dev/shm".into(), PathBuf::from);
    let dir = tempfile::tempdir_in(place).unwrap();
    let blocks: u64 = setting("BLOCKS").map_or(32 << 10, |text| text.parse().unwrap());
    let len = blocks * BLOCK as u64;
    let root = format!("base={}", make_root(dir.path(), 64).display());
    let vm = format!("web1,size={}", KEPT + len);
    let daemon = Daemon::start(dir.path(), &["--root", &root, "--vm", &vm]);
    let mut client = Client::connect(&daemon.socket("web1"));
    write_scattered(&mut client, blocks);
    assert!(client.read(KEPT + len - BLOCK as u64, BLOCK) == [FILL; BLOCK]);

    let begun = Instant::now();
    let (writes, longest) = discard_and_write(&mut client, len);
    let took = begun.elapsed();
    println!("{blocks} blocks discarded in {took:?}; {writes} writes, the longest {longest:?}");
    // One, which waited for all of it, was there before the discard was cut in pieces;
    // there is time for a hundred.
    assert!(writes >= 10, "{writes} writes beside {blocks} blocks, in {took:?}");
    if setting("BLOCKS").is_some() {
        assert!(longest < Duration::from_millis(250), "a write took {longest:?}");
    }
    for block in 0..KEPT / BLOCK as u64 {
        let expected = match kept(block, writes) {
            // Not written: the root's.
            0 => continue,
            fill => [fill; BLOCK],
        };
        assert!(client.read(block * BLOCK as u64, BLOCK) == expected, "block {block}");
    }
    const CHUNK: usize = 1 << 20;
    for start in (KEPT..KEPT + len).step_by(CHUNK) {
        assert!(client.read(start, CHUNK).iter().all(|byte| *byte == 0), "at {start}");
    }
}
