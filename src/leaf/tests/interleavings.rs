//! The presence map's ordering, in every interleaving (feature `loom`).

use loom::model::Builder;
use loom::thread;
use std::sync::Arc;

use super::mem::Mem;
use super::*;
use crate::io::storage::{Storage, write_all};
use live_map::{LiveMap, Owner, PAGE_SECTORS, Shape};

const MAP_OFFSET: u64 = 2 * header::LEN as u64;
const DATA_OFFSET: u64 = MAP_OFFSET + 4096;

fn owner() -> Owner {
    Owner { boot_id: [1; 16], uuid: [2; 16], generation: 1 }
}

/// Two threads' interleavings with up to three preemptions, which is where all
/// known mistakes show, and within that all of them.
fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 20_000;
    builder.check(f);
}

/// A leaf of one map page, in memory.
fn small_leaf() -> (Arc<Leaf>, Mem) {
    let header = Header {
        clean: true,
        write_cache: WriteCache::Unknown,
        compatible: 0,
        map_void: false,
        uuid: [2; 16],
        disk: None,
        generation: 1,
        virtual_size: PAGE_SECTORS * 512,
        map_offset: MAP_OFFSET,
        table_offset: None,
        data_offset: DATA_OFFSET,
        created: 0,
        root: root(1),
    };
    let mem = Mem::default();
    write_all(&mem, &header.encode(), 0).unwrap();
    write_all(&mem, &header.encode(), header::LEN as u64).unwrap();
    mem.set_len(DATA_OFFSET + header.virtual_size).unwrap();
    mem.sync_data().unwrap();
    let storage = Box::new(mem.clone());
    let leaf = Leaf::open_storage(Path::new("vm.leaf"), storage, &root(1), &OpenOptions::default());
    (Arc::new(leaf.unwrap()), mem)
}

#[test]
fn loom_a_cleared_mark_never_comes_without_its_bits() {
    model(|| {
        let shape = Shape { sectors: 2 * PAGE_SECTORS, pages_max: 2, packed: false };
        let map = Arc::new(LiveMap::create(None, &owner(), Path::new(""), &shape).unwrap());
        let writer = {
            let map = Arc::clone(&map);
            thread::spawn(move || {
                let (added, marked) = map.set(range(1, 1));
                marked.unwrap();
                added
            })
        };
        let (mut pages, mut copy) = (Vec::new(), Vec::new());
        map.take_changed(0, 64, &mut pages);
        if !pages.is_empty() {
            map.copy_page(0, &mut copy);
            assert_eq!(copy[0], 2, "the mark was taken, and the bit is not in the copy");
        }
        assert_eq!(writer.join().unwrap(), 1);
        let taken = !pages.is_empty();
        map.take_changed(0, 64, &mut pages);
        assert_eq!(pages, [0], "marked once, and taken once: {taken}");
    });
}

#[test]
fn loom_what_was_written_before_a_flush_is_in_the_map_when_it_returns() {
    model(|| {
        let (leaf, mem) = small_leaf();
        // The same sector: who comes second finds the bit set already.
        let work = |leaf: &Leaf, mem: &Mem| {
            leaf.write_zeroes(range(3, 1)).unwrap();
            leaf.flush().unwrap();
            assert_eq!(mem.durable(MAP_OFFSET) & 8, 8, "flushed, and not in the map");
        };
        let other = {
            let (leaf, mem) = (Arc::clone(&leaf), mem.clone());
            thread::spawn(move || work(&leaf, &mem))
        };
        work(&leaf, &mem);
        other.join().unwrap();
        assert_eq!(leaf.present_sectors(), 1);
        assert!(leaf.is_flushed());
    });
}

#[test]
fn loom_a_write_beside_a_flush_is_covered_by_the_next() {
    model(|| {
        let (leaf, mem) = small_leaf();
        leaf.write_zeroes(range(0, 1)).unwrap();
        let writer = {
            let leaf = Arc::clone(&leaf);
            thread::spawn(move || leaf.write_zeroes(range(1, 1)).unwrap())
        };
        leaf.flush().unwrap();
        assert_eq!(mem.durable(MAP_OFFSET) & 1, 1);
        writer.join().unwrap();
        leaf.flush().unwrap();
        assert_eq!(mem.durable(MAP_OFFSET) & 3, 3);
    });
}
