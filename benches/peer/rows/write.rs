//! Rows 5 and 6: writes of sectors that the leaf does not hold yet, and reads
//! of sectors that it does.

use std::time::Duration;

use crate::backend::{Export, Setup};
use crate::cli::Daemon;
use crate::client::{Client, Kind};
use crate::data;
use crate::load::{BLOCK, CheckBlocks, FreshWrites, LARGE, RandomReads, Sequential};
use crate::report::{Row, Target};
use crate::rows::{Bench, Group, connect, progress};
use crate::util::{Result, permutation, to_u64};

/// Row 5 at depth 1.
pub(crate) const NEW_QD1: Group = Group {
    numbers: &[5],
    ids: &["randwrite-new-qd1"],
    run: |bench| {
        fresh_writes(
            bench,
            Row::new(
                "randwrite-new-qd1",
                "random write 4 KiB, sectors not yet in the leaf, QD1",
                "k/s",
            )
            .target(Target::RatioAtLeast(8.0)),
            1,
        )
    },
};

/// Row 5 at depth 32.
pub(crate) const NEW_QD32: Group = Group {
    numbers: &[5],
    ids: &["randwrite-new-qd32"],
    run: |bench| {
        fresh_writes(
            bench,
            Row::new("randwrite-new-qd32", "the same, QD32", "k/s")
                .target(Target::RatioAtLeast(4.0)),
            32,
        )
    },
};

/// Bytes of a qcow2 cluster, as qemu-img makes them.
const PEER_CLUSTER: u64 = 64 << 10;

/// Row 6.
pub(crate) const LEAF_READ: Group = Group { numbers: &[6], ids: &["leafread"], run: leaf_reads };

fn setup<'a>(bench: &Bench, root: &'a std::path::Path) -> Setup<'a> {
    Setup { root, vms: 1, export: Export::Overlay, cache_bytes: bench.cache_bytes(), threads: 1 }
}

fn fresh_writes(bench: &mut Bench, mut row: Row, depth: usize) -> Result<Vec<Row>> {
    let root = bench.root()?;
    let clusters = bench.sizes.root_bytes / PEER_CLUSTER;
    let mut written = [0; 2];
    for rep in 0..bench.reps(5) {
        // Both sides write the same blocks in the same order.
        // One block of each of the peer's clusters: its second block would be
        // an overwrite there.
        let in_cluster = 16;
        let order: Vec<u32> = permutation(clusters, to_u64(rep))
            .into_iter()
            .map(|cluster| cluster * in_cluster + cluster % in_cluster)
            .collect();
        // Some are left, to see that they still show the root.
        let fresh = &order[..order.len() / 8 * 7];
        for (side, daemon) in bench.daemons().into_iter().enumerate() {
            let backend = bench.start(daemon, &setup(bench, &root))?;
            let mut client = connect(&backend, 0, depth.max(8), BLOCK)?;
            let mut load = FreshWrites::new(fresh, data::WRITTEN);
            let driven = client.drive(depth, bench.run_time(), &mut load)?;
            let count = load.submitted();
            check_some(&mut client, &order, count)?;
            let figure = driven.per_second() / 1000.0;
            progress(&format!("{} {}: {figure:.1} {}", row.id, ["A", "B"][side], row.unit));
            if side == 0 { &mut row.a } else { &mut row.b }.push(figure);
            written[side] = count;
        }
    }
    row.notes.push(format!(
        "one random 4 KiB block of each 64 KiB of a {} MiB disk (the peer's cluster), a fresh \
         leaf each time; in the last run {} and {} blocks",
        bench.sizes.root_bytes >> 20,
        written[0],
        written[1]
    ));
    Ok(vec![row])
}

/// Reads back some of the blocks that were written, and some that were not.
fn check_some(client: &mut Client, order: &[u32], written: usize) -> Result<()> {
    let (yes, no) = order.split_at(written);
    client.drive(8, Duration::MAX, &mut CheckBlocks::new(yes, 256, data::WRITTEN))?;
    client.drive(8, Duration::MAX, &mut CheckBlocks::new(no, 64, data::ROOT))?;
    Ok(())
}

fn leaf_reads(bench: &mut Bench) -> Result<Vec<Row>> {
    let root = bench.root()?;
    let mut row =
        Row::new("leafread", "random read 4 KiB of leaf sectors in the page cache, QD32", "k/s")
            .target(Target::RatioAtLeast(2.0));
    let bytes = bench.sizes.leaf_bytes;
    let mut sides: Vec<(Client, _)> = Vec::with_capacity(2);
    for daemon in bench.daemons() {
        let backend = bench.start(daemon, &setup(bench, &root))?;
        let mut client = connect(&backend, 0, 32, LARGE)?;
        progress(&format!("writing {} MiB through {daemon:?}", bytes >> 20));
        let mut load = Sequential::new(Kind::Write, bytes, data::WRITTEN, true);
        client.drive(8, Duration::MAX, &mut load)?;
        let mut flush = crate::load::Once(Some(crate::client::Op::FLUSH));
        client.drive(1, Duration::MAX, &mut flush)?;
        sides.push((client, backend));
    }
    for rep in 0..bench.reps(5) {
        for (side, (client, _)) in sides.iter_mut().enumerate() {
            let mut load = RandomReads::new(bytes, data::WRITTEN, to_u64(rep));
            let driven = client.drive(32, bench.run_time(), &mut load)?;
            let figure = driven.per_second() / 1000.0;
            progress(&format!("{} {}: {figure:.1} {}", row.id, ["A", "B"][side], row.unit));
            if side == 0 { &mut row.a } else { &mut row.b }.push(figure);
        }
    }
    if bench.daemons().contains(&Daemon::Qsd) {
        row.notes.push(format!("{} MiB were written and flushed before", bytes >> 20));
    }
    Ok(vec![row])
}
