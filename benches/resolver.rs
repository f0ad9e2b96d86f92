//! What it costs to find out where a sector is: the presence map, a disk's
//! decision, and a hit in the cache.
#![expect(unsafe_code, reason = "fills cache slots and writes to the leaf by raw buffers")]
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::fs::File;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use leafblk::cache::{
    Cache, CacheConfig, FillOutcome, FillStart, Hugepages, Lookup, RootCache, Waiter,
};
use leafblk::disk::{CachedRoot, Disk};
use leafblk::leaf::{self, Leaf, OpenOptions};
use leafblk::root::Root;
use leafblk::units::{Sector, SectorRange};
use leafblk::virtqueue::GuestBuf;

const BLOCK: u32 = 64 << 10;
const ROOT_BYTES: u64 = 64 << 20;
/// Sectors of the half of the disk that the leaf holds every other page of.
const WRITTEN: u64 = 65_536;

/// Numbers that no prefetcher guesses.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn page(sector: u64) -> SectorRange {
    SectorRange::new(Sector(sector), 8).unwrap()
}

fn fill(cache: &RootCache, block: u64) {
    let FillStart::Fill(ticket) = cache.begin_fill(block, Waiter { reactor: 0, token: 0 }) else {
        panic!("block {block} is not to be filled");
    };
    // SAFETY: the ticket is the sole right to its `len` bytes.
    unsafe { ticket.as_mut_ptr().write_bytes(0xa5, ticket.len()) };
    ticket.finish(FillOutcome::Data, &mut Vec::new());
}

fn resolver(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let root_path = dir.path().join("root.raw");
    File::create(&root_path).unwrap().set_len(ROOT_BYTES).unwrap();
    let root = Root::open("base", &root_path).unwrap();
    let config = CacheConfig {
        size_bytes: 2 * ROOT_BYTES,
        block_bytes: BLOCK,
        hugepages: Hugepages::Off,
        readers_max: 1,
    };
    let (shared, _) = Cache::new(&config).unwrap();
    let cache = shared.add_root(root.sectors()).unwrap();
    let mut reader = shared.reader().unwrap();
    for block in 0..cache.blocks() {
        fill(&cache, block);
    }
    let leaf_path = dir.path().join("vm.leaf");
    leaf::create(&leaf_path, ROOT_BYTES, root.identity()).unwrap();
    let leaf = Leaf::open(&leaf_path, root.identity(), &OpenOptions::default()).unwrap();
    let mut data = vec![1u8; 4096];
    for sector in (0..WRITTEN).step_by(16) {
        let bufs = [GuestBuf::new(data.as_mut_ptr(), 4096)];
        // SAFETY: the buffer outlives the call and has the range's length.
        unsafe { leaf.write(page(sector), &bufs) }.unwrap();
    }
    let leaf = Arc::new(leaf);
    let cached = Arc::new(CachedRoot::new(root, Arc::clone(&cache), BLOCK));
    let disk = Disk::new("vm".into(), cached, Some(Arc::clone(&leaf)), false);
    let end = leaf.sectors();
    let mut random = Random(1);
    // Random 4 KiB places in the half that was written, or in the other.
    let mut bench = |name: &str, what: &dyn Fn(SectorRange), from: u64, to: u64| {
        c.bench_function(name, |b| {
            b.iter(|| what(page(from + random.below((to - from) / 8) * 8)));
        });
    };
    bench("resolver/random number", &|r| _ = black_box(r), 0, end);
    bench("resolver/is_absent, untouched", &|r| _ = black_box(leaf.is_absent(r)), WRITTEN, end);
    bench("resolver/is_absent, mixed", &|r| _ = black_box(leaf.is_absent(r)), 0, WRITTEN);
    bench("resolver/next_run, untouched", &|r| _ = black_box(leaf.next_run(r)), WRITTEN, end);
    bench("resolver/next_run, mixed", &|r| _ = black_box(leaf.next_run(r)), 0, WRITTEN);
    bench("resolver/piece, untouched", &|r| _ = black_box(disk.piece(r)), WRITTEN, end);
    bench("resolver/piece, mixed", &|r| _ = black_box(disk.piece(r)), 0, WRITTEN);
    let look = |r: SectorRange| {
        let found = cache.lookup(&reader, r.start().0 / u64::from(BLOCK / 512));
        assert!(matches!(black_box(found), Lookup::Hit(_)));
    };
    bench("resolver/cache hit", &look, 0, end);
    reader.quiesce();
}

criterion_group!(benches, resolver);
criterion_main!(benches);
