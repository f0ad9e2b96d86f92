//! Row 9: what VM A feels while VM B writes and flushes as fast as it can.
//!
//! A reads cached root blocks one at a time and sleeps in between, as a guest
//! does; B has a client thread of its own that sleeps too.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::backend::{Backend, Export, Setup};
use crate::cli::Daemon;
use crate::client::{Client, Kind, Load, Op, Wait};
use crate::data;
use crate::load::{BLOCK, LARGE, RandomReads, Sequential, Timed};
use crate::report::{Row, Target};
use crate::rows::{Bench, Group, connect, progress};
use crate::util::{Error, Result, Rng, percentile, to_f64, to_u64};

/// Row 9.
pub(crate) const GROUP: Group =
    Group { numbers: &[9], ids: &["neighbour-p99", "neighbour-alone", "neighbour-noisy"], run };

/// Writes between two flushes of B.
const FLUSH_EVERY: u64 = 256;
const SAMPLES: usize = 4 << 20;

/// B's load: random writes, and a flush among them now and then.
struct Noise<'a> {
    rng: Rng,
    blocks: u64,
    count: u64,
    stop: &'a AtomicBool,
}

impl Load for Noise<'_> {
    fn next(&mut self, _slot: usize, buffer: &mut [u8]) -> Option<Op> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        self.count += 1;
        if self.count.is_multiple_of(FLUSH_EVERY) {
            return Some(Op::FLUSH);
        }
        let offset = self.rng.below(self.blocks) * to_u64(BLOCK);
        data::fill(&mut buffer[..BLOCK], data::WRITTEN + 1, offset);
        Some(Op { kind: Kind::Write, offset, len: BLOCK })
    }

    fn done(&mut self, _slot: usize, _op: &Op, _buffer: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Latencies of A in microseconds.
#[derive(Clone, Copy, Debug)]
struct Latency {
    p50: f64,
    p99: f64,
}

fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let root = bench.root()?;
    let mut ratio = Row::new(
        "neighbour-p99",
        "noisy neighbour: p99 of VM A's cached reads over the same alone",
        "×",
    )
    .target(Target::ValueAtMost(3.0));
    let mut alone_row = Row::new("neighbour-alone", "the same: p99 alone", "µs");
    let mut noisy_row = Row::new("neighbour-noisy", "the same: p99 beside VM B", "µs");
    for _ in 0..bench.reps(3) {
        for (side, daemon) in bench.daemons().into_iter().enumerate() {
            let (alone, noisy, writes) = once(bench, &root, daemon)?;
            let text = format!(
                "neighbour {daemon:?}: alone p50 {:.1} p99 {:.1} µs, beside B p50 {:.1} p99 {:.1} µs, \
                 B {writes:.1} k/s",
                alone.p50, alone.p99, noisy.p50, noisy.p99
            );
            progress(&text);
            noisy_row.notes.push(text);
            let column = |row: &mut Row, value| {
                if side == 0 { &mut row.a } else { &mut row.b }.push(value);
            };
            column(&mut ratio, noisy.p99 / alone.p99);
            column(&mut alone_row, alone.p99);
            column(&mut noisy_row, noisy.p99);
        }
    }
    ratio.notes.push(format!(
        "A: 4 KiB, QD1, sleeping; B: random 4 KiB writes at QD32 with a flush every {FLUSH_EVERY}"
    ));
    let mut rows = vec![ratio, alone_row, noisy_row];
    rows.retain(|row| bench.wants(9, row.id));
    Ok(rows)
}

/// A alone, A beside B, and B's requests in thousands a second.
fn once(bench: &Bench, root: &Path, daemon: Daemon) -> Result<(Latency, Latency, f64)> {
    let backend = bench.start(
        daemon,
        &Setup {
            root,
            vms: 2,
            export: Export::Overlay,
            cache_bytes: bench.cache_bytes(),
            threads: 1,
        },
    )?;
    let bytes = bench.sizes.root_bytes;
    let mut a = connect(&backend, 0, 8, LARGE)?;
    let mut warm = Sequential::new(Kind::Read, bytes, data::ROOT, true);
    a.drive(8, Duration::MAX, &mut warm)?;
    a.set_wait(Wait::Sleep);
    let alone = reads(bench, &mut a, 1)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let b = scope.spawn(|| noise(&backend, bytes, &stop));
        // B is connected and in its stride after a moment.
        let mut first = RandomReads::new(bytes, data::ROOT, 2);
        let warmed = a.drive(1, bench.run_time() / 4, &mut first);
        let noisy = warmed.and_then(|_| reads(bench, &mut a, 3));
        stop.store(true, Ordering::Relaxed);
        let writes = b.join().map_err(|_| Error::from("VM B's client panicked"))??;
        Ok((alone, noisy?, writes))
    })
}

fn noise(backend: &Backend, bytes: u64, stop: &AtomicBool) -> Result<f64> {
    let mut b = connect(backend, 1, 32, BLOCK)?;
    b.set_wait(Wait::Sleep);
    let mut load = Noise { rng: Rng::new(7), blocks: bytes / to_u64(BLOCK), count: 0, stop };
    Ok(b.drive(32, Duration::MAX, &mut load)?.per_second() / 1000.0)
}

fn reads(bench: &Bench, client: &mut Client, sequence: u64) -> Result<Latency> {
    let inner = RandomReads::new(bench.sizes.root_bytes, data::ROOT, sequence);
    let mut load = Timed::new(inner, 1, SAMPLES);
    client.drive(1, bench.run_time() * 2, &mut load)?;
    let sorted = load.into_sorted();
    let at = |percent| {
        percentile(&sorted, percent)
            .map(|ns| to_f64(ns) / 1000.0)
            .ok_or_else(|| Error::from("VM A read nothing"))
    };
    Ok(Latency { p50: at(50)?, p99: at(99)? })
}
