//! What a write, a read and a flush cost in the leaf's second design, on a real file:
//!
//!     cargo bench --bench slot_leaf -- DIRECTORY
//!
//! Medians of 5 rounds. It compares with nothing: ratios come with the daemon.
#![expect(clippy::print_stdout, reason = "a program that reports")]
#![expect(clippy::unwrap_used, reason = "a benchmark that can't go on")]

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use leafblk::engine::file::FileEngine;
use leafblk::slot_leaf::leaf::Settings;
use leafblk::slot_leaf::record::Key;
use leafblk::slot_leaf::{Event, Leaf, create, open};
use leafblk::write_cache::{Memory, SharedMemory, WriteCache};

const ROUNDS: usize = 5;
const PIECES: u32 = 64;
/// 1 GiB of disk.
const BLOCKS: u64 = 1 << 18;

struct Bench {
    leaf: Leaf<SharedMemory>,
    file: FileEngine,
    begun: Instant,
    next: u64,
}

impl Bench {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The next of a fixed random sequence.
    fn random(&mut self, below: u64) -> u64 {
        self.next = self.next.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.next >> 33) % below
    }

    fn write(&mut self, block: u64, data: &[u8]) {
        while self.leaf.write(0, block, 0, data).is_err() {
            self.turn(true);
        }
    }

    fn turn(&mut self, wait: bool) {
        let now = self.now();
        self.leaf.advance(&mut self.file, now);
        let leaf = &mut self.leaf;
        self.file.reap(wait, |token, result| leaf.complete(token, result, now)).unwrap();
    }

    fn flush(&mut self) {
        let now = self.now();
        self.leaf.flush(now, 0);
        loop {
            if let Some(Event::Flushed { durable, .. }) = self.leaf.event() {
                assert!(durable);
                return;
            }
            self.turn(true);
        }
    }

    fn settle(&mut self) {
        self.flush();
        while !self.leaf.is_idle() {
            self.turn(true);
        }
    }
}

fn median(mut of: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS).map(|_| of()).collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn main() {
    let directory = std::env::args().nth(1).filter(|arg| !arg.starts_with("--"));
    let directory = directory.map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(directory).unwrap();
    let path = directory.path().join("bench.leaf");
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let mut file = FileEngine::new(file).unwrap();
    println!("past the page cache: {}", file.is_direct());
    create(&mut file, [1; 16], BLOCKS * 8, Key([1; 16])).unwrap();
    let frames: File =
        rustix::fs::memfd_create("write-cache", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into();
    let memory = SharedMemory::map(frames, PIECES).unwrap();
    let settings = Settings {
        write_back_at: 16_000,
        age_max: 5_000_000_000,
        window: 8 << 20,
        patience: 30_000_000_000,
    };
    let cache = WriteCache::new(memory, PIECES);
    let leaf = open(&mut file, cache, settings, Key([2; 16]), 0).unwrap();
    let mut bench = Bench { leaf, file, begun: Instant::now(), next: 1 };
    let data = [7; 4096];

    let each = median(|| {
        let begun = Instant::now();
        (0..8192).for_each(|_| {
            let block = bench.random(BLOCKS);
            bench.write(block, &data);
        });
        let took = begun.elapsed();
        bench.settle();
        took / 8192
    });
    println!("write 4 KiB, random blocks, no write-back under way: {each:?}");

    let each = median(|| {
        (0..8192).for_each(|block| bench.write(block, &data));
        let begun = Instant::now();
        (0..8192).for_each(|_| {
            let block = bench.random(8192);
            bench.write(block, &data);
        });
        let took = begun.elapsed();
        bench.settle();
        took / 8192
    });
    println!("write 4 KiB, blocks that are dirty: {each:?}");

    let mut into = [0; 4096];
    let each = median(|| {
        let begun = Instant::now();
        (0..65536).for_each(|_| {
            let block = bench.random(8192);
            if let Some((frame, _)) = bench.leaf.source(block).frame {
                bench.leaf.cache().memory().copy_out(frame, 0, &mut into);
            }
        });
        begun.elapsed() / 65536
    });
    println!("read 4 KiB of frames: {each:?}");

    for count in [1, 8, 64] {
        let mut times = Vec::new();
        for _ in 0..500 {
            (0..count).for_each(|_| {
                let block = bench.random(BLOCKS);
                bench.write(block, &data);
            });
            let begun = Instant::now();
            bench.flush();
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        let (half, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("flush of {count} blocks: {half:?}, p99 {most:?}");
    }

    let each = median(|| {
        let begun = Instant::now();
        (0..BLOCKS / 2).for_each(|i| {
            let block = bench.random(BLOCKS);
            bench.write(block, &data);
            if i % 32 == 0 {
                bench.turn(false);
            }
        });
        bench.settle();
        begun.elapsed()
    });
    let rate = (BLOCKS / 2) as f64 / each.as_secs_f64();
    println!("sustained random writes of 512 MiB, written and flushed: {rate:.0} a second");
    bench.leaf.audit().unwrap();
}
