//! Replays boot traces through the cache, to choose block size and eviction.
//!
//!     cargo bench --bench trace_sim
//!
//! The traces are in benches/traces; a directory after `--` has others of those names.
//! No data is read: a fill is counted, and its time taken from a table of
//! O_DIRECT reads measured once (docs/cache.md). Sectors that a VM has written
//! or discarded come from its leaf from then on and don't reach the cache.
//! Fills finish at once, so joined waits don't show here. Prints Markdown.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leafblk::cache::{
    Cache, CacheConfig, FillOutcome, FillStart, Hugepages, Lookup, Reader, RootCache, Waiter,
};

/// The traces' disk: 2 GiB.
const ROOT_SECTORS: u64 = 4 << 20;
const DEFAULT_BLOCK: u32 = 64 << 10;
const UNLIMITED: u64 = 2304 << 20;

/// Bytes in a block, and the median of random O_DIRECT reads of that length in
/// microseconds, one at a time: the third round of the table in docs/cache.md.
const READ_US: [(u32, u64); 7] = [
    (4 << 10, 43),
    (8 << 10, 49),
    (16 << 10, 55),
    (32 << 10, 71),
    (64 << 10, 88),
    (128 << 10, 113),
    (256 << 10, 244),
];

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A read of root sectors: when, where and how many.
#[derive(Clone, Copy)]
struct Read {
    us: u64,
    sector: u64,
    sectors: u64,
}

/// The reads of a trace that reach the root, whole or in pieces.
fn root_reads(path: &Path) -> Outcome<Vec<Read>> {
    let mut leaf = HashSet::new();
    let mut reads = Vec::new();
    for line in fs::read_to_string(path)?.lines() {
        let mut words = line.split_whitespace();
        let (Some(us), Some(op)) = (words.next(), words.next()) else {
            continue;
        };
        if us == "#" || op == "F" {
            continue;
        }
        let mut number = || {
            words.next().ok_or("a field is missing")?.parse::<u64>().map_err(Box::<dyn Error>::from)
        };
        let (us, sector, sectors) = (us.parse()?, number()?, number()?);
        let range = sector..(sector + sectors).min(ROOT_SECTORS);
        if op != "R" {
            leaf.extend(range);
            continue;
        }
        let mut piece: Option<Read> = None;
        for sector in range {
            match (&mut piece, leaf.contains(&sector)) {
                (Some(read), false) => read.sectors += 1,
                (None, false) => {
                    piece = Some(Read { us, sector, sectors: 1 });
                }
                (_, true) => reads.extend(piece.take()),
            }
        }
        reads.extend(piece);
    }
    Ok(reads)
}

/// The block numbers that so many VMs ask for when VM n starts n gaps late.
fn accesses(reads: &[Read], block_bytes: u32, vms: u64, gap_us: u64) -> Vec<u64> {
    let sectors = u64::from(block_bytes / 512);
    let mut timed: Vec<(u64, u64)> = Vec::new();
    for vm in 0..vms {
        for read in reads {
            let first = read.sector / sectors;
            let last = (read.sector + read.sectors - 1) / sectors;
            timed.extend((first..=last).map(|block| (read.us + vm * gap_us, block)));
        }
    }
    timed.sort_by_key(|(us, _)| *us);
    timed.into_iter().map(|(_, block)| block).collect()
}

/// Something that is asked for blocks and says whether it had them.
trait Simulated {
    fn access(&mut self, block: u64) -> bool;
}

/// The real thing.
struct Leafblk {
    root: Arc<RootCache>,
    reader: Reader,
    waiters: Vec<Waiter>,
}

impl Leafblk {
    fn new(size_bytes: u64, block_bytes: u32) -> Outcome<Self> {
        let (cache, _) = Cache::new(&CacheConfig {
            size_bytes,
            block_bytes,
            hugepages: Hugepages::Off,
            readers_max: 1,
        })?;
        Ok(Self {
            root: cache.add_root(ROOT_SECTORS)?,
            reader: cache.reader()?,
            waiters: Vec::new(),
        })
    }
}

impl Simulated for Leafblk {
    fn access(&mut self, block: u64) -> bool {
        self.reader.quiesce();
        if let Lookup::Hit(_) = self.root.lookup(&self.reader, block) {
            return true;
        }
        let waiter = Waiter { reactor: 0, token: 0 };
        // The second time round, what the first has evicted is free.
        for _ in 0..2 {
            if let FillStart::Fill(mut ticket) = self.root.begin_fill(block, waiter) {
                ticket.buffer_mut()[0] = 1;
                ticket.finish(FillOutcome::Data, &mut self.waiters);
                break;
            }
            self.reader.quiesce();
        }
        false
    }
}

/// Least recently used.
struct Lru {
    slots: usize,
    now: u64,
    used: HashMap<u64, u64>,
    order: BTreeMap<u64, u64>,
}

impl Simulated for Lru {
    fn access(&mut self, block: u64) -> bool {
        self.now += 1;
        let before = self.used.insert(block, self.now);
        if let Some(before) = before {
            self.order.remove(&before);
        } else if self.used.len() > self.slots
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.used.remove(&oldest);
        }
        self.order.insert(self.now, block);
        before.is_some()
    }
}

/// First in, first out, with a second chance for what was hit.
struct Clock {
    slots: usize,
    visited: HashMap<u64, bool>,
    order: VecDeque<u64>,
}

impl Simulated for Clock {
    fn access(&mut self, block: u64) -> bool {
        if let Some(visited) = self.visited.get_mut(&block) {
            *visited = true;
            return true;
        }
        while self.visited.len() >= self.slots
            && let Some(oldest) = self.order.pop_front()
        {
            if self.visited.insert(oldest, false) == Some(true) {
                self.order.push_back(oldest);
            } else {
                self.visited.remove(&oldest);
            }
        }
        self.visited.insert(block, false);
        self.order.push_back(block);
        false
    }
}

fn misses(cache: &mut dyn Simulated, blocks: impl IntoIterator<Item = u64>) -> u64 {
    blocks.into_iter().filter(|block| !cache.access(*block)).map(|_| 1).sum()
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn block_sizes(out: &mut dyn Write, name: &str, reads: &[Read]) -> Outcome<()> {
    let wanted: HashSet<u64> =
        reads.iter().flat_map(|read| read.sector..read.sector + read.sectors).collect();
    let wanted = wanted.len() as u64 * 512;
    writeln!(
        out,
        "\n{name}: {} reads of the root, {:.1} MiB distinct. A cache that holds all:\n",
        reads.len(),
        mib(wanted)
    )?;
    writeln!(
        out,
        "| block | fills | read from disk, MiB | amplification | hits, 1 VM | hits, 64 VMs | disk time, ms |"
    )?;
    writeln!(out, "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
    for (block, us) in READ_US {
        let one = accesses(reads, block, 1, 0);
        let all = accesses(reads, block, 64, 1_000);
        let fills = misses(&mut Leafblk::new(UNLIMITED, block)?, one.iter().copied());
        let fills_all = misses(&mut Leafblk::new(UNLIMITED, block)?, all.iter().copied());
        let bytes = fills * u64::from(block);
        writeln!(
            out,
            "| {} KiB | {fills} | {:.1} | {:.2} | {:.1} % | {:.2} % | {} |",
            block >> 10,
            mib(bytes),
            bytes as f64 / wanted as f64,
            100.0 - percent(fills, one.len() as u64),
            100.0 - percent(fills_all, all.len() as u64),
            fills * us / 1_000
        )?;
    }
    Ok(())
}

fn small_caches(out: &mut dyn Write, name: &str, reads: &[Read]) -> Outcome<()> {
    writeln!(
        out,
        "\n{name}: MiB read from disk (disk time in ms) with a small cache; \
         64 VMs started together (1 ms apart) and one after the other (1 s apart):\n"
    )?;
    let sizes = [8_u64, 16, 32, 48];
    write!(out, "| block | VMs |")?;
    for size in sizes {
        write!(out, " {size} MiB |")?;
    }
    writeln!(out, "\n| ---: | --- |{}", " ---: |".repeat(sizes.len()))?;
    for (block, us) in READ_US {
        let settings = [("1", 1, 0), ("64 together", 64, 1_000), ("64 in turn", 64, 1_000_000)];
        for (label, vms, gap_us) in settings {
            let blocks = accesses(reads, block, vms, gap_us);
            write!(out, "| {} KiB | {label} |", block >> 10)?;
            for size in sizes {
                let mut cache = Leafblk::new(size << 20, block)?;
                let fills = misses(&mut cache, blocks.iter().copied());
                let bytes = fills * u64::from(block);
                write!(out, " {:.0} ({}) |", mib(bytes), fills * us / 1_000)?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

/// Boots with a VM that reads the whole root between them: what the boots miss.
fn boots_and_scans(cache: &mut dyn Simulated, boot: &[u64]) -> u64 {
    let blocks = ROOT_SECTORS * 512 / u64::from(DEFAULT_BLOCK);
    misses(cache, boot.iter().copied());
    misses(cache, boot.iter().copied());
    let mut missed = 0;
    for _ in 0..8 {
        misses(cache, 0..blocks);
        missed += misses(cache, boot.iter().copied());
    }
    missed
}

fn policies(out: &mut dyn Write, name: &str, reads: &[Read]) -> Outcome<()> {
    writeln!(
        out,
        "\n{name}: accesses that miss, blocks of {} KiB. In turn: 64 VMs, 1 s apart. \
         Scans: two boots, then eight times a scan of the whole root and a boot; \
         only the boots' misses.\n",
        DEFAULT_BLOCK >> 10
    )?;
    writeln!(out, "| cache | load | leafblk | CLOCK | LRU |")?;
    writeln!(out, "| ---: | --- | ---: | ---: | ---: |")?;
    let boot = accesses(reads, DEFAULT_BLOCK, 1, 0);
    let in_turn = accesses(reads, DEFAULT_BLOCK, 64, 1_000_000);
    for size in [16_u64, 32, 48, 64, 80, 128, 256] {
        let slots = usize::try_from((size << 20) / u64::from(DEFAULT_BLOCK))?;
        for scans in [false, true] {
            let total = if scans { boot.len() * 8 } else { in_turn.len() };
            let run = |cache: &mut dyn Simulated| {
                let missed = if scans {
                    boots_and_scans(cache, &boot)
                } else {
                    misses(cache, in_turn.iter().copied())
                };
                percent(missed, total as u64)
            };
            let leafblk = run(&mut Leafblk::new(size << 20, DEFAULT_BLOCK)?);
            let clock = run(&mut Clock { slots, visited: HashMap::new(), order: VecDeque::new() });
            let lru = run(&mut Lru { slots, now: 0, used: HashMap::new(), order: BTreeMap::new() });
            let label = if scans { "scans" } else { "in turn" };
            writeln!(out, "| {size} MiB | {label} | {leafblk:.1} % | {clock:.1} % | {lru:.1} % |")?;
        }
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let mut out = io::stdout().lock();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` passes it, `cargo test --benches` does not.
    if !arguments.iter().any(|argument| argument == "--bench") {
        writeln!(out, "trace_sim: skipped; cargo bench --bench trace_sim runs it")?;
        return Ok(());
    }
    let directory = match arguments.iter().find(|argument| !argument.starts_with('-')) {
        Some(given) => PathBuf::from(given),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/traces"),
    };
    for name in ["debian-12-boot.txt", "debian-12-busy.txt"] {
        let path = directory.join(name);
        let reads = root_reads(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        block_sizes(&mut out, name, &reads)?;
        small_caches(&mut out, name, &reads)?;
        policies(&mut out, name, &reads)?;
    }
    Ok(())
}
