//! What a cache hit costs: one root of 2 GiB, blocks of 64 KiB, all cached.
//!
//!     cargo bench --bench cache
//!
//! "lookup" is the lookup alone; "lookup and copy 4 KiB" is what a read does,
//! and "copy 4 KiB" the same copy without a lookup, for comparison.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use leafblk::cache::{
    Cache, CacheConfig, FillOutcome, FillStart, Hugepages, Lookup, Reader, RootCache, Waiter,
};

const ROOT_BYTES: u64 = 2 << 30;
const BLOCK_BYTES: u32 = 64 << 10;
const BLOCKS: u64 = ROOT_BYTES / BLOCK_BYTES as u64;
const WAITER: Waiter = Waiter { reactor: 0, token: 0 };

fn fill(root: &RootCache, block: u64) {
    if let FillStart::Fill(mut ticket) = root.begin_fill(block, WAITER) {
        ticket.buffer_mut().fill(1);
        ticket.finish(FillOutcome::Data, &mut Vec::new());
    }
}

/// A little more than the root, so that the reserve leaves room for all of it.
fn full_cache() -> (Arc<RootCache>, Reader) {
    let config = CacheConfig {
        size_bytes: ROOT_BYTES + (64 << 20),
        block_bytes: BLOCK_BYTES,
        hugepages: Hugepages::Auto,
        readers_max: 8,
    };
    let (cache, _) = Cache::new(&config).expect("a cache of 2 GiB");
    let root = cache.add_root(ROOT_BYTES / 512).expect("a root of 2 GiB");
    for block in 0..BLOCKS {
        fill(&root, block);
    }
    (root, cache.reader().expect("a reader"))
}

/// Offsets of 4 KiB pieces: all different, in an order no prefetcher guesses.
fn random(step: u64) -> u64 {
    step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33 << 12 & (ROOT_BYTES - 1)
}

fn sequential(step: u64) -> u64 {
    step << 12 & (ROOT_BYTES - 1)
}

/// The offset of the step's piece.
type Order = fn(u64) -> u64;

fn hits(criterion: &mut Criterion) {
    let (root, mut reader) = full_cache();
    // What the pages are depends on the system's free hugepages: say it.
    let pages = root.cache().stats().pages;
    let mut group = criterion.benchmark_group(format!("cache hit, {pages:?} pages"));
    let orders: [(&str, Order); 2] = [("random", random), ("sequential", sequential)];
    for (name, order) in orders {
        let mut step = 0;
        group.bench_function(format!("lookup, {name}"), |bencher| {
            bencher.iter(|| {
                step += 1;
                match root.lookup(&reader, order(step) / u64::from(BLOCK_BYTES)) {
                    Lookup::Hit(bytes) => bytes.as_ptr(),
                    Lookup::Zero | Lookup::Miss => panic!("all is cached"),
                }
            });
        });
    }
    group.throughput(Throughput::Bytes(4096));
    let mut target = vec![0; 4096];
    for (name, order) in orders {
        let mut step = 0;
        group.bench_function(format!("lookup and copy 4 KiB, {name}"), |bencher| {
            bencher.iter(|| {
                step += 1;
                let offset = order(step);
                let block = offset / u64::from(BLOCK_BYTES);
                let within = usize::try_from(offset % u64::from(BLOCK_BYTES)).unwrap_or(0);
                if let Lookup::Hit(bytes) = root.lookup(&reader, block) {
                    target.copy_from_slice(&bytes[within..within + 4096]);
                }
                black_box(&mut target);
            });
        });
    }
    let all: Vec<&[u8]> = (0..BLOCKS)
        .map(|block| match root.lookup(&reader, block) {
            Lookup::Hit(bytes) => bytes.bytes(),
            Lookup::Zero | Lookup::Miss => panic!("all is cached"),
        })
        .collect();
    let mut step = 0;
    group.bench_function("copy 4 KiB, random", |bencher| {
        bencher.iter(|| {
            step += 1;
            let offset = usize::try_from(random(step)).unwrap_or(0);
            let (block, within) = (offset / BLOCK_BYTES as usize, offset % BLOCK_BYTES as usize);
            target.copy_from_slice(&all[block][within..within + 4096]);
            black_box(&mut target);
        });
    });
    drop(all);
    group.finish();
    criterion.bench_function("quiesce", |bencher| bencher.iter(|| reader.quiesce()));
}

fn misses(criterion: &mut Criterion) {
    let config = CacheConfig {
        size_bytes: 64 << 20,
        block_bytes: BLOCK_BYTES,
        hugepages: Hugepages::Auto,
        readers_max: 8,
    };
    let (cache, _) = Cache::new(&config).expect("a cache of 64 MiB");
    let root = cache.add_root(ROOT_BYTES / 512).expect("a root of 2 GiB");
    let mut reader = cache.reader().expect("a reader");
    let mut waiters = Vec::new();
    let mut block = 0;
    criterion.bench_function("miss: evict, begin and finish a fill", |bencher| {
        bencher.iter(|| {
            reader.quiesce();
            block = (block + 1) % BLOCKS;
            if let FillStart::Fill(mut ticket) = root.begin_fill(block, WAITER) {
                // Content without the copy: enough for it not to be zeros.
                ticket.buffer_mut()[0] = 1;
                ticket.finish(FillOutcome::Data, &mut waiters);
            }
        });
    });
}

criterion_group!(benches, hits, misses);
criterion_main!(benches);
