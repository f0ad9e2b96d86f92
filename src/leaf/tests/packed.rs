//! Leaves whose blocks have slots.

use super::mem::{Mem, Op};
use super::*;
use live_map::table::Entry;
use slots::SLOT_LEN;

const MAP: u64 = 8192;
/// The root of these tests is 1 MiB.
const ROOT_SECTORS: u64 = 2048;

fn in_memory() -> (Leaf, Mem) {
    let mem = Mem::default();
    create_storage(Path::new("vm.leaf"), &mem, Layout::Packed, SIZE, &root(1)).unwrap();
    (reopen(&mem), mem)
}

fn reopen(mem: &Mem) -> Leaf {
    let storage = Box::new(mem.clone());
    Leaf::open_storage(Path::new("vm.leaf"), storage, &root(1), &OpenOptions::default()).unwrap()
}

/// Where a block's entry is in the file.
fn entry_offset(leaf: &Leaf, block: u64) -> u64 {
    leaf.table_offset + block * 4
}

fn put_entry(mem: &Mem, leaf: &Leaf, block: u64, raw: u32) {
    write_all_durable(mem, &raw.to_le_bytes(), entry_offset(leaf, block));
}

fn write_all_durable(mem: &Mem, bytes: &[u8], offset: u64) {
    crate::io::storage::write_all(mem, bytes, offset).unwrap();
    mem.sync_data().unwrap();
}

#[test]
fn blocks_far_apart_are_neighbours_in_the_file() {
    let (leaf, _) = in_memory();
    let far = [2 * live_map::PAGE_SECTORS, 0, live_map::PAGE_SECTORS, 1000];
    for (slot, start) in (0..).zip(far) {
        write(&leaf, start, 8, 1).unwrap();
        let place = (Some(leaf.data_offset + slot * SLOT_LEN), 8);
        assert_eq!(leaf.place(range(start, 8)), place);
    }
    // Rewritten where it is, and joined with what follows there.
    write(&leaf, 0, 16, 2).unwrap();
    assert_eq!(leaf.place(range(0, 16)), (Some(leaf.data_offset + SLOT_LEN), 8));
    write(&leaf, 1008, 8, 3).unwrap();
    write(&leaf, 1016, 80, 4).unwrap();
    assert_eq!(leaf.place(range(1009, 87)).1, 87);
    assert!(is_all(&read(&leaf, 1000, 8), 1) && is_all(&read(&leaf, 1016, 80), 4));
}

#[test]
fn a_flush_syncs_the_data_before_it_writes_map_and_table() {
    let (leaf, mem) = in_memory();
    mem.state().ops.clear();
    write(&leaf, 3, 2, 1).unwrap();
    leaf.flush().unwrap();
    let data = leaf.data_offset + 3 * 512;
    let ops = [
        Op::Write(data, 1024),
        Op::Sync,
        Op::Write(MAP, 4096),
        Op::Write(leaf.table_offset, 4096),
        Op::Sync,
    ];
    assert_eq!(mem.state().ops, ops);
}

#[test]
fn whole_blocks_of_zeros_take_no_slot_and_none_is_noted_past_the_root() {
    let (leaf, mem) = in_memory();
    mem.state().ops.clear();
    leaf.write_zeroes(range(8, 800)).unwrap();
    assert_eq!(leaf.place(range(8, 800)), (None, 800));
    leaf.write_zeroes(range(ROOT_SECTORS - 8, SECTORS - ROOT_SECTORS + 8)).unwrap();
    assert_eq!(leaf.present_sectors(), 808);
    assert_eq!(mem.state().ops, [], "nothing is written");
    assert_eq!(leaf.map.entry(ROOT_SECTORS / 8), Entry::Empty);
    // A part of such a block is written: the rest of it stays zeros.
    write(&leaf, 17, 2, 9).unwrap();
    leaf.close().unwrap();
    drop(leaf);
    let leaf = reopen(&mem);
    assert_eq!(leaf.present_sectors(), 808);
    assert!(is_all(&read(&leaf, 8, 9), 0) && is_all(&read(&leaf, 17, 2), 9));
    assert!(is_all(&read(&leaf, 19, 789), 0));
}

#[test]
fn a_block_keeps_its_slot_when_it_is_discarded() {
    let (leaf, mem) = in_memory();
    write(&leaf, 0, 24, 1).unwrap();
    mem.state().ops.clear();
    leaf.write_zeroes(range(4, 16)).unwrap();
    let place = |sector: u64| leaf.data_offset + sector * 512;
    let punched = |from, to| Op::Punch(place(from), place(to) - place(from));
    assert_eq!(mem.state().ops, [punched(4, 8), punched(8, 16), punched(16, 20)]);
    let content = read(&leaf, 0, 24);
    assert!(is_all(&content[..4 * 512], 1) && is_all(&content[4 * 512..20 * 512], 0));
    assert!(is_all(&content[20 * 512..], 1));
}

#[test]
fn a_bit_without_its_entry_is_of_a_flush_that_never_ended_and_does_not_come_back() {
    let (leaf, mem) = in_memory();
    write(&leaf, 3, 1, 1).unwrap();
    write_all_durable(&mem, &[1 << 3, 1], MAP);
    put_entry(&mem, &leaf, 5, u32::MAX);
    drop(leaf);
    let leaf = reopen(&mem);
    assert!(leaf.is_absent(range(0, SECTORS)));
    // An entry gets to the disk, and the map page with the new bit does not.
    write(&leaf, 4, 1, 2).unwrap();
    write(&leaf, 41, 1, 2).unwrap();
    leaf.flush().unwrap();
    let entries = [0, 5].map(|block| leaf.map.entry(block));
    drop(leaf);
    write_all_durable(&mem, &[0; 6], MAP);
    assert_eq!(entries, [Entry::Slot(0), Entry::Slot(1)]);
    let leaf = reopen(&mem);
    assert!(leaf.is_absent(range(0, SECTORS)), "neither the root's sector 3 nor zeros");
    assert_eq!(leaf.map.entry(0), Entry::Slot(0), "the block's still");
}

#[test]
fn what_was_not_flushed_leaves_nothing_in_slots_that_others_get() {
    let (leaf, mem) = in_memory();
    write(&leaf, 0, 8, 7).unwrap();
    drop(leaf);
    // The data got to the disk, and nothing else.
    mem.lose_power(|| true);
    let leaf = reopen(&mem);
    leaf.write_zeroes(range(80, 8)).unwrap();
    write(&leaf, 81, 1, 9).unwrap();
    assert_eq!(leaf.place(range(80, 8)), (Some(leaf.data_offset), 8));
    assert!(is_all(&read(&leaf, 80, 1), 0) && is_all(&read(&leaf, 82, 6), 0));
}

#[test]
fn a_disk_of_no_whole_number_of_blocks_opens_again_when_all_of_it_was_written() {
    let mem = Mem::default();
    const ODD: u64 = ROOT_SECTORS + 801;
    create_storage(Path::new("vm.leaf"), &mem, Layout::Packed, ODD * 512, &root(1)).unwrap();
    let leaf = reopen(&mem);
    // From the end, so that the last slot is a whole block's, of which a sector
    // is written.
    (1..=ODD.div_ceil(8)).rev().for_each(|block| {
        write(&leaf, (block - 1) * 8, 1, (block % 200) as u8 + 1).unwrap();
    });
    leaf.flush().unwrap();
    drop(leaf);
    mem.lose_power(|| false);
    let leaf = reopen(&mem);
    assert_eq!(leaf.present_sectors(), ODD.div_ceil(8));
    assert!(is_all(&read(&leaf, 0, 1), 2));
}

#[test]
fn slots_that_a_reset_or_a_shrinking_set_free_are_zeros_also_without_holes_and_after_a_kill() {
    let all = [false, true].map(|shrink| [false, true].map(|close| (shrink, close)));
    for (shrink, close) in all.into_iter().flatten() {
        let (mut leaf, mem) = in_memory();
        write(&leaf, 0, 8, 1).unwrap();
        write(&leaf, ROOT_SECTORS + 80, 8, 7).unwrap();
        mem.state().fail_punch = Some(libc::EOPNOTSUPP);
        match shrink {
            true => leaf.shrink(ROOT_SECTORS * 512).unwrap(),
            false => leaf.reset().unwrap(),
        }
        if close {
            leaf.close().unwrap();
            drop(leaf);
            leaf = reopen(&mem);
        }
        for _ in 0..2 {
            leaf.write_zeroes(range(80, 8)).unwrap();
            write(&leaf, 81, 1, 9).unwrap();
            write(&leaf, 105, 1, 9).unwrap();
            assert!(is_all(&read(&leaf, 80, 1), 0) && is_all(&read(&leaf, 82, 6), 0));
            let len = mem.len_bytes().unwrap();
            assert!(leaf.place(range(104, 8)).0.unwrap() + SLOT_LEN <= len);
            leaf.flush().unwrap();
            drop(leaf);
            leaf = reopen(&mem);
        }
    }
}

#[test]
fn zeros_of_many_blocks_are_kept_though_one_of_them_was_written_meanwhile() {
    let (leaf, mem) = in_memory();
    write(&leaf, 400, 8, 7).unwrap();
    // What found all of them empty before that write.
    leaf.zero_empty(range(0, 800)).unwrap();
    leaf.close().unwrap();
    drop(leaf);
    let leaf = reopen(&mem);
    assert_eq!(leaf.present_sectors(), 800);
    assert!(is_all(&read(&leaf, 0, 800), 0));
}

#[test]
fn what_a_failed_sync_of_the_map_left_in_the_page_cache_is_flushed_again() {
    let (leaf, mem) = in_memory();
    write(&leaf, 80, 8, 7).unwrap();
    {
        let mut state = mem.state();
        (state.syncs_before_failure, state.fail_sync) = (1, Some(libc::EIO));
    }
    leaf.flush().unwrap_err();
    mem.state().fail_sync = None;
    drop(leaf);
    let leaf = reopen(&mem);
    assert!(leaf.is_absent(range(0, SECTORS)), "neither map nor table got to the disk");
    write(&leaf, 80, 8, 8).unwrap();
    leaf.flush().unwrap();
    drop(leaf);
    mem.lose_power(|| false);
    assert!(is_all(&read(&reopen(&mem), 80, 8), 8));
}

#[test]
fn disks_that_slots_have_no_numbers_for_are_direct() {
    let mem = Mem::default();
    create_storage(Path::new("vm.leaf"), &mem, Layout::Packed, 16 << 40, &root(1)).unwrap();
    let mem_15 = Mem::default();
    create_storage(Path::new("vm.leaf"), &mem_15, Layout::Packed, 15 << 40, &root(1)).unwrap();
    let header = |mem: &Mem| {
        let mut bytes = [0; header::LEN];
        crate::io::storage::read_exact(mem, &mut bytes, 0).unwrap();
        Header::decode(&bytes).unwrap()
    };
    assert_eq!(header(&mem).table_offset, None);
    assert!(header(&mem_15).table_offset.is_some());
}

#[test]
fn zeros_whose_daemon_was_killed_before_it_set_their_bits_are_complete() {
    let home = Home::packed();
    let leaf = home.open();
    write(&leaf, 0, 8, 1).unwrap();
    leaf.map.prepare(range(8, 8)).unwrap();
    leaf.map.set_entry(1, Entry::Zeros).unwrap();
    drop(leaf);
    let leaf = home.open();
    assert_eq!(leaf.present_sectors(), 16);
    assert!(is_all(&read(&leaf, 0, 8), 1) && is_all(&read(&leaf, 8, 8), 0));
}

#[test]
fn a_reset_whose_clearing_was_not_durable_when_the_leaf_was_closed_leaves_nothing() {
    let (mut leaf, mem) = in_memory();
    write(&leaf, 0, 8, 7).unwrap();
    leaf.reset().unwrap();
    leaf.close().unwrap();
    drop(leaf);
    // The power failed after the header: the hole was not made.
    let data = reopen(&mem).data_offset;
    let leaf = reopen(&mem);
    leaf.close().unwrap();
    drop(leaf);
    write_all_durable(&mem, &[7; 4096], data);
    let leaf = reopen(&mem);
    leaf.write_zeroes(range(80, 8)).unwrap();
    write(&leaf, 81, 1, 9).unwrap();
    assert!(is_all(&read(&leaf, 80, 1), 0) && is_all(&read(&leaf, 82, 6), 0));
}

#[test]
fn a_table_that_names_what_is_past_the_files_end_refuses_the_leaf() {
    let (leaf, mem) = in_memory();
    let slots = SIZE.div_ceil(SLOT_LEN);
    put_entry(&mem, &leaf, 3, u32::try_from(slots + 2).unwrap());
    drop(leaf);
    let storage = Box::new(mem.clone());
    let refusal =
        Leaf::open_storage(Path::new("vm.leaf"), storage, &root(1), &OpenOptions::default());
    assert!(matches!(refusal, Err(LeafError::CutShort { .. })), "{refusal:?}");
}

#[test]
fn a_disk_that_shrinks_into_a_block_of_zeros_and_grows_has_the_roots_sectors_behind_it() {
    let (leaf, mem) = in_memory();
    let end = ROOT_SECTORS - 8;
    leaf.write_zeroes(range(end, 8)).unwrap();
    drop(leaf);
    let mut leaf = reopen(&mem);
    leaf.write_zeroes(range(end, 8)).unwrap();
    write(&leaf, end + 400, 8, 3).unwrap();
    leaf.shrink((ROOT_SECTORS + 4) * 512).unwrap();
    leaf.grow(SIZE).unwrap();
    assert!(leaf.is_absent(range(ROOT_SECTORS, SECTORS - ROOT_SECTORS)));
    write(&leaf, end + 400, 8, 4).unwrap();
    drop(leaf);
    let leaf = reopen(&mem);
    assert!(is_all(&read(&leaf, end, 8), 0), "the shrinking flushed it");
    assert!(leaf.is_absent(range(ROOT_SECTORS, SECTORS - ROOT_SECTORS)));
}

#[test]
fn what_was_filled_ahead_is_given_back_by_the_close() {
    let home = Home::packed();
    let leaf = home.open();
    // Many small ones, so that it is filled ahead.
    (0..300).for_each(|block| write(&leaf, block * 24, 8, 5).unwrap());
    leaf.flush().unwrap();
    let before = leaf.allocated_bytes().unwrap();
    leaf.close().unwrap();
    let after = leaf.allocated_bytes().unwrap();
    assert!(after < before && after >= 300 * SLOT_LEN, "{before} {after}");
    drop(leaf);
    let leaf = home.open();
    (0..300).for_each(|block| assert!(is_all(&read(&leaf, block * 24, 8), 5)));
}

#[test]
fn a_write_over_two_blocks_is_found_by_the_live_map() {
    let home = Home::packed();
    let leaf = home.open();
    write(&leaf, 1, 1, 1).unwrap();
    leaf.write_zeroes(range(2, 1)).unwrap();
    write(&leaf, live_map::PAGE_SECTORS + 1, 1, 2).unwrap();
    leaf.close().unwrap();
    drop(leaf);
    let leaf = home.open();
    write(&leaf, 7, 2, 3).unwrap();
    write(&leaf, 7, 2, 4).unwrap();
    drop(leaf);
    let leaf = home.open();
    assert!(is_all(&read(&leaf, 7, 2), 4));
    assert!(is_all(&read(&leaf, 1, 1), 1));
    write(&leaf, 64, 8, 5).unwrap();
    assert!(is_all(&read(&leaf, 1, 1), 1), "no slot was given out again");
}

#[test]
fn threads_that_write_new_blocks_get_slots_of_their_own() {
    let home = Home::packed();
    let leaf = home.open();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let leaf = &leaf;
            // Neighbouring blocks, so that they share words of the table.
            scope.spawn(move || {
                (0..500).for_each(|i| {
                    let start = (i * 4 + u64::from(thread)) * 8;
                    write(leaf, start, 8, thread + 1).unwrap();
                });
            });
        }
    });
    let mut places = std::collections::HashSet::new();
    leaf.each_slot(|_, offset| assert!(places.insert(offset)));
    assert_eq!(places.len(), 2000);
    (0..2000).for_each(|block| assert!(is_all(&read(&leaf, block * 8, 8), (block % 4) as u8 + 1)));
}
