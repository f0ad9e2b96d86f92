//! The cache under threads that fill, evict and read at the same time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::*;

/// Small blocks, few slots, many blocks: evictions all the time.
const BLOCK: u32 = BLOCK_BYTES_MIN;
const BLOCKS: u64 = 1_500;
const ROUNDS: usize = 60_000;

/// What block `block` of root `root` is filled with, word after word.
fn word(root: u64, block: u64, index: usize) -> u64 {
    (root << 48 | block << 16 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn check(root: u64, block: u64, bytes: &[u8]) {
    for (index, chunk) in bytes.chunks_exact(8).enumerate() {
        let found = u64::from_le_bytes(chunk.try_into().unwrap());
        assert_eq!(found, word(root, block, index), "root {root} block {block}");
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// One thread's loop: look up, check what it holds after some more lookups,
/// fill what is missing, sleep now and then.
fn reactor(cache: &Arc<Cache>, roots: &[Arc<RootCache>], seed: u64, joined: &AtomicU64) -> u64 {
    let mut reader = cache.reader().unwrap();
    let mut random = Random(seed);
    let mut returned = 0;
    let mut waiters = Vec::new();
    let mut tickets: Vec<(u64, u64, FillTicket)> = Vec::new();
    for round in 0..ROUNDS {
        reader.quiesce();
        if round % 97 == 0 {
            reader.offline();
            thread::yield_now();
            reader.online();
        }
        let mut held = Vec::new();
        for _ in 0..4 {
            let root = random.below(roots.len() as u64);
            // Half of the reads go to a twentieth of the blocks.
            let end = if random.below(2) == 0 { BLOCKS / 20 } else { BLOCKS };
            let block = random.below(end);
            let index = usize::try_from(root).unwrap();
            match roots[index].lookup(&reader, block) {
                Lookup::Hit(bytes) => held.push((root, block, bytes)),
                Lookup::Zero => panic!("no block is zeros"),
                Lookup::Miss => match roots[index].begin_fill(block, waiter(0)) {
                    FillStart::Fill(ticket) => tickets.push((root, block, ticket)),
                    FillStart::Joined => {
                        joined.fetch_add(1, Ordering::Relaxed);
                    }
                    FillStart::Ready | FillStart::NoSlot => {}
                },
            }
        }
        // Others may evict and refill while this thread holds its blocks.
        if round % 16 == 0 {
            thread::yield_now();
        }
        for (root, block, bytes) in held {
            check(root, block, bytes.bytes());
        }
        // Some fills take several rounds, so that others can join them.
        while tickets.len() > 3 || (!tickets.is_empty() && random.below(2) == 0) {
            let (root, block, mut ticket) = tickets.swap_remove(0);
            let outcome = if random.below(50) == 0 {
                ticket.buffer_mut().fill(0xff);
                FillOutcome::Failed
            } else {
                for (index, chunk) in ticket.buffer_mut().chunks_exact_mut(8).enumerate() {
                    chunk.copy_from_slice(&word(root, block, index).to_le_bytes());
                }
                FillOutcome::Data
            };
            ticket.finish(outcome, &mut waiters);
            returned += waiters.drain(..).count() as u64;
        }
    }
    for (_, _, ticket) in tickets {
        ticket.finish(FillOutcome::Failed, &mut waiters);
    }
    returned + waiters.len() as u64
}

#[test]
fn readers_never_see_foreign_bytes_while_blocks_are_filled_and_evicted() {
    let cache = cache(BLOCK);
    let root = || cache.add_root(BLOCKS * u64::from(BLOCK) / 512).unwrap();
    let roots = [root(), root()];
    let joined = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let returned: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (1..=3)
            .map(|seed| {
                let (cache, roots, joined) = (&cache, &roots, &joined);
                scope.spawn(move || reactor(cache, roots, seed * 0x5851_f42d, joined))
            })
            .collect();
        // Meanwhile a third root comes and goes.
        let churn = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let brief = cache.add_root(64 * u64::from(BLOCK) / 512).unwrap();
                for block in 0..8 {
                    if let FillStart::Fill(mut ticket) = brief.begin_fill(block, waiter(0)) {
                        ticket.buffer_mut().fill(0xaa);
                        ticket.finish(FillOutcome::Data, &mut Vec::new());
                    }
                }
                drop(brief);
                thread::yield_now();
            }
        });
        let returned = threads.into_iter().map(|thread| thread.join());
        let returned: Vec<_> = returned.collect();
        stop.store(true, Ordering::Relaxed);
        churn.join().unwrap();
        returned.into_iter().map(Result::unwrap).sum()
    });
    let stats = cache.stats();
    assert_eq!(returned, joined.load(Ordering::Relaxed), "each waiter once");
    assert_eq!(stats.joined_waits, returned);
    assert!(stats.evictions > 10_000, "{stats:?}");
    assert_eq!((stats.filling, stats.lost_fills), (0, 0));
}
