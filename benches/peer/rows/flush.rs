//! Row 10: how long a guest's flush takes after it has written a lot.

use std::path::Path;
use std::time::Duration;

use crate::backend::{Export, Setup};
use crate::cli::Daemon;
use crate::client::{Op, Wait};
use crate::data;
use crate::load::{BLOCK, FreshWrites, Once};
use crate::report::{Row, Target};
use crate::rows::{Bench, Group, connect, progress};
use crate::util::{Result, permutation, to_u64, to_usize};

/// Row 10.
pub(crate) const GROUP: Group = Group { numbers: &[10], ids: &["flush-p99", "flush-median"], run };

fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let root = bench.root()?;
    let bytes = bench.sizes.flush_bytes;
    let mut times = [Vec::new(), Vec::new()];
    let mut notes = Vec::new();
    for rep in 0..bench.reps(3) {
        let blocks = to_usize(bytes / to_u64(BLOCK));
        let mut order = permutation(bench.sizes.root_bytes / to_u64(BLOCK), to_u64(rep));
        order.truncate(blocks);
        for (side, daemon) in bench.daemons().into_iter().enumerate() {
            let (wrote, flushed) = once(bench, &root, daemon, &order)?;
            let text = format!(
                "{daemon:?}: wrote {} MiB in {:.2} s, then flushed in {:.1} ms",
                bytes >> 20,
                wrote.as_secs_f64(),
                flushed.as_secs_f64() * 1000.0
            );
            progress(&text);
            notes.push(text);
            times[side].push(flushed.as_secs_f64() * 1000.0);
        }
    }
    let title = format!("flush after {} MiB of random writes", bytes >> 20);
    let mut worst =
        Row::new("flush-p99", format!("{title}: p99"), "ms").target(Target::RatioAtMost(1.0));
    let mut middle = Row::new("flush-median", "the same: median", "ms");
    // The p99 of a handful is the worst of them.
    let maximum = |values: &[f64]| values.iter().copied().reduce(f64::max);
    worst.a.extend(maximum(&times[0]));
    worst.b.extend(maximum(&times[1]));
    worst.notes = notes;
    worst.notes.push(format!(
        "the worst of {} flushes, each after fresh writes into a fresh leaf at QD32",
        bench.reps(3)
    ));
    let [a, b] = times;
    (middle.a, middle.b) = (a, b);
    let mut rows = vec![worst, middle];
    rows.retain(|row| bench.wants(10, row.id));
    Ok(rows)
}

fn once(bench: &Bench, root: &Path, daemon: Daemon, order: &[u32]) -> Result<(Duration, Duration)> {
    // What the run before left to be written would be felt here.
    rustix::fs::sync();
    let backend = bench.start(
        daemon,
        &Setup {
            root,
            vms: 1,
            export: Export::Overlay,
            cache_bytes: bench.cache_bytes(),
            threads: 1,
        },
    )?;
    let mut client = connect(&backend, 0, 32, BLOCK)?;
    client.set_wait(Wait::Sleep);
    let mut writes = FreshWrites::new(order, data::WRITTEN);
    let wrote = client.drive(32, Duration::MAX, &mut writes)?.elapsed;
    let mut flush = Once(Some(Op::FLUSH));
    let flushed = client.drive(1, Duration::MAX, &mut flush)?.elapsed;
    Ok((wrote, flushed))
}
