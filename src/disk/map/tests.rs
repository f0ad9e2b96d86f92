use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::cache::{Cache, CacheConfig, FillOutcome, FillStart, Hugepages, Waiter};
use crate::disk::CachedRoot;
use crate::leaf::{self, Leaf, OpenOptions};
use crate::root::Root;

const BLOCK: u32 = 64 << 10;
const MIB: u64 = 1 << 20;
/// Blocks in a MiB.
const BLOCKS: u64 = 16;
/// The root: 4 MiB, of which the second is a hole.
const ROOT: u64 = 4 * MIB;

/// A disk of `size` bytes on the root; its leaf holds nothing.
fn disk(dir: &Path, size: u64) -> Disk {
    let path = dir.join("root.raw");
    let part = |fill| vec![fill; 1 << 20];
    std::fs::write(&path, [part(7u8), part(0), part(7), part(7)].concat()).unwrap();
    let root = Root::open("root", &path).unwrap();
    let (cache, _) = Cache::new(&CacheConfig {
        size_bytes: 2 * MIB,
        block_bytes: BLOCK,
        hugepages: Hugepages::Off,
        readers_max: 1,
    })
    .unwrap();
    let table = cache.add_root(root.sectors()).unwrap();
    table.mark_zero(BLOCKS..2 * BLOCKS);
    let leaf_path = dir.join("vm.leaf");
    leaf::create_as(&leaf_path, leaf::Layout::Direct, size, root.identity()).unwrap();
    let leaf = Leaf::open(&leaf_path, root.identity(), &OpenOptions::default()).unwrap();
    let root = Arc::new(CachedRoot::new(root, table, BLOCK));
    Disk::new("vm".into(), root, Some(Arc::new(leaf)), false)
}

fn hold(disk: &Disk, start: u64, count: u64) {
    let range = SectorRange::new(Sector(start), count).unwrap();
    disk.leaf().unwrap().write_zeroes(range).unwrap();
}

fn cache_block(disk: &Disk, block: u64) {
    let waiter = Waiter { reactor: 0, token: 0 };
    let FillStart::Fill(mut ticket) = disk.root().cache().begin_fill(block, waiter) else {
        panic!("block {block} is not to be filled");
    };
    ticket.buffer_mut().fill(7);
    ticket.finish(FillOutcome::Data, &mut Vec::new());
}

/// A cell's numbers: leaf, cached, uncached, zero.
fn cells(map: &DiskMap) -> Vec<[u64; 4]> {
    let places = 0..map.leaf.len();
    places.map(|i| [map.leaf[i], map.cached[i], map.uncached[i], map.zero[i]]).collect()
}

#[test]
fn a_cell_counts_each_of_its_sectors_once() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), 8 * MIB);
    assert_eq!(
        cells(&disk.map(8)),
        [
            [0, 0, 2048, 0],
            [0, 0, 0, 2048],
            [0, 0, 2048, 0],
            [0, 0, 2048, 0],
            [0, 0, 0, 2048],
            [0, 0, 0, 2048],
            [0, 0, 0, 2048],
            [0, 0, 0, 2048],
        ]
    );
    cache_block(&disk, 0);
    cache_block(&disk, 33);
    // The last sector of block 0 and the first two of block 1, a part of the
    // hole, the root's last sector and two beyond it.
    hold(&disk, 127, 3);
    hold(&disk, 2048, 100);
    hold(&disk, ROOT / 512 - 1, 3);
    let map = disk.map(8);
    assert!(!map.sampled);
    assert_eq!(map.size, 8 * MIB);
    assert_eq!(
        cells(&map),
        [
            [3, 127, 1918, 0],
            [100, 0, 0, 1948],
            [0, 128, 1920, 0],
            [1, 0, 2047, 0],
            [2, 0, 0, 2046],
            [0, 0, 0, 2048],
            [0, 0, 0, 2048],
            [0, 0, 0, 2048],
        ]
    );
}

#[test]
fn cells_smaller_than_a_block_and_of_no_whole_number_of_sectors_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), 8 * MIB);
    cache_block(&disk, 3);
    hold(&disk, 500, 33);
    for count in [1, 3, 1000, 1001, CELLS_MAX, u32::MAX] {
        let map = disk.map(count);
        let all = cells(&map);
        assert_eq!(all.len(), count.min(CELLS_MAX) as usize);
        let sum = |kind: usize| all.iter().map(|cell| cell[kind]).sum::<u64>();
        // Block 3 is sectors 384 to 512, of which the leaf holds 12.
        assert_eq!([sum(0), sum(1), sum(3)], [33, 116, 2048 + 8192]);
        assert_eq!(sum(2), 3 * 2048 - 33 - 116);
    }
}

#[test]
fn a_sampled_map_adds_up_and_shows_what_is_even() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), 8 * MIB);
    for block in 32..48 {
        cache_block(&disk, block);
    }
    hold(&disk, 3 * 2048, 1024);
    hold(&disk, ROOT / 512, 4096);
    for count_leaf in [true, false] {
        let map = disk.map_with(8, Effort { stride: 4, count_leaf });
        assert!(map.sampled);
        let all = cells(&map);
        assert!(all.iter().all(|cell| cell.iter().sum::<u64>() == 2048), "{all:?}");
        assert_eq!(
            all[..4],
            [[0, 0, 2048, 0], [0, 0, 0, 2048], [0, 2048, 0, 0], [1024, 0, 1024, 0]]
        );
        assert_eq!(all[4..], [[2048, 0, 0, 0], [2048, 0, 0, 0], [0, 0, 0, 2048], [0, 0, 0, 2048]]);
    }
}

#[test]
fn an_estimate_of_a_long_range_looks_at_64_stretches_of_it() {
    let looked = std::cell::Cell::new(0);
    let range = SectorRange::new(Sector(1000), 1 << 30).unwrap();
    let half = |stretch: SectorRange| {
        looked.set(looked.get() + stretch.count());
        stretch.intersection(SectorRange::new(Sector(0), 1000 + (1 << 29)).unwrap()).count()
    };
    assert_eq!(sample(range, half), 1 << 29);
    assert_eq!(looked.get(), 64 * 512);
    let short = SectorRange::new(Sector(0), 1000).unwrap();
    assert_eq!(sample(short, |range| range.count()), 1000);
}

#[test]
fn a_look_at_the_map_is_no_hit() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path(), 8 * MIB);
    cache_block(&disk, 0);
    let before = disk.root().cache().cache().stats();
    disk.map(64);
    assert_eq!(disk.root().cache().cache().stats(), before);
    assert_eq!(disk.counters().cache_hits.get(), 0);
}
