//! A disk that fails, is full, takes less than it is given; and the order in
//! which a leaf becomes durable.

use super::mem::{Mem, Op};
use super::*;

/// A leaf on storage that does as it is told, opened; its log emptied.
fn faulty() -> (Leaf, Mem) {
    let home = Home::new();
    let mem = Mem::of_file(&home.leaf());
    let leaf = reopen(&mem);
    mem.state().ops.clear();
    (leaf, mem)
}

fn reopen(mem: &Mem) -> Leaf {
    let storage = Box::new(mem.clone());
    Leaf::open_storage(Path::new("vm.leaf"), storage, &root(1), &OpenOptions::default()).unwrap()
}

fn errno(result: Result<(), LeafError>) -> Option<i32> {
    match result {
        Err(LeafError::Io { source, .. }) => source.raw_os_error(),
        other => panic!("{other:?}"),
    }
}

const MAP: u64 = 8192;

#[test]
fn a_flush_syncs_the_data_before_it_writes_the_map_and_syncs_that_too() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 1, 1).unwrap();
    write(&leaf, live_map::PAGE_SECTORS, 2, 1).unwrap();
    leaf.flush().unwrap();
    let data = leaf.place_of(Sector(0)).unwrap();
    assert_eq!(
        mem.state().ops,
        [
            Op::Write(data, 512),
            Op::Write(data + live_map::PAGE_SECTORS * 512, 1024),
            Op::Sync,
            Op::Write(MAP, 8192),
            Op::Sync,
        ]
    );
}

#[test]
fn a_flush_writes_few_unchanged_pages_in_use_between_two_changed_ones_along() {
    let (path, mem) = (Path::new("vm.leaf"), Mem::default());
    create_storage(path, &mem, Layout::Direct, 1 << 29, &root(1)).unwrap();
    let leaf = reopen(&mem);
    let page = |page: u64| page * live_map::PAGE_SECTORS;
    let map_writes = |changed: &[u64]| {
        changed.iter().for_each(|i| write(&leaf, page(*i) + leaf.present_sectors(), 1, 1).unwrap());
        mem.state().ops.clear();
        leaf.flush().unwrap();
        let ops = mem.state().ops.clone();
        let of_map = |op: &Op| match op {
            Op::Write(offset, len) => Some(((offset - MAP) / 4096, len / 4096)),
            _ => None,
        };
        ops.iter().filter_map(of_map).collect::<Vec<_>>()
    };
    assert_eq!(map_writes(&[0, 2, 3, 4, 10]), [(0, 1), (2, 3), (10, 1)], "1 is not in use");
    assert_eq!(map_writes(&[2, 4]), [(2, 3)]);
    map_writes(&[5, 6, 7, 8, 9]);
    assert_eq!(map_writes(&[2, 6, 10]), [(2, 9)]);
    assert_eq!(map_writes(&[2, 7]), [(2, 1), (7, 1)], "too many in between");
    let many: Vec<u64> = (11..30).collect();
    assert_eq!(map_writes(&many), [(11, 16), (27, 3)], "the lock is let go in between");
}

#[test]
fn a_flush_of_rewritten_sectors_is_one_sync_and_of_nothing_none() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 8, 1).unwrap();
    leaf.flush().unwrap();
    mem.state().ops.clear();
    leaf.flush().unwrap();
    assert_eq!(mem.state().ops, []);
    write(&leaf, 0, 8, 2).unwrap();
    leaf.flush().unwrap();
    assert_eq!(mem.state().ops, [Op::Write(leaf.place_of(Sector(0)).unwrap(), 4096), Op::Sync]);
}

#[test]
fn opening_and_closing_sync_their_headers_and_close_flushes_first() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 1, 1).unwrap();
    leaf.close().unwrap();
    let data = leaf.place_of(Sector(0)).unwrap();
    let flush = [Op::Write(data, 512), Op::Sync, Op::Write(MAP, 4096), Op::Sync];
    assert_eq!(mem.state().ops[..4], flush);
    assert_eq!(mem.state().ops[4..], [Op::Write(4096, 4096), Op::Sync]);
    mem.state().ops.clear();
    drop(leaf);
    reopen(&mem);
    assert_eq!(mem.state().ops, [Op::Sync, Op::Write(0, 4096), Op::Sync]);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_any_more() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 1, 1).unwrap();
    mem.state().fail_sync = Some(libc::EIO);
    assert_eq!(errno(leaf.flush()), Some(libc::EIO));
    mem.state().fail_sync = None;
    assert!(leaf.is_poisoned() && !leaf.is_flushed());
    assert!(matches!(leaf.flush(), Err(LeafError::Poisoned { .. })));
    assert!(matches!(write(&leaf, 0, 1, 1), Err(LeafError::Poisoned { .. })));
    assert!(matches!(leaf.write_zeroes(range(0, 1)), Err(LeafError::Poisoned { .. })));
    assert!(matches!(leaf.close(), Err(LeafError::Poisoned { .. })));
    assert!(is_all(&read(&leaf, 0, 1), 1), "reads go on");
    drop(leaf);
    mem.lose_power(|| false);
    assert!(reopen(&mem).is_absent(range(0, SECTORS)));
}

#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_not_shown_after_an_opening() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 1, 1).unwrap();
    leaf.flush().unwrap();
    write(&leaf, 0, 1, 2).unwrap();
    mem.state().fail_sync = Some(libc::EIO);
    assert_eq!(errno(leaf.flush()), Some(libc::EIO));
    mem.state().fail_sync = None;
    drop(leaf);
    // Nothing lost power: the page cache still has it.
    let leaf = reopen(&mem);
    assert!(is_all(&read(&leaf, 0, 1), 1), "a guest would see it, flush, and lose it");
    leaf.flush().unwrap();
    drop(leaf);
    mem.lose_power(|| false);
    assert!(is_all(&read(&reopen(&mem), 0, 1), 1));
}

#[test]
fn a_sync_that_fails_while_closing_poisons_too() {
    let (leaf, mem) = faulty();
    mem.state().fail_sync = Some(libc::EIO);
    assert_eq!(errno(leaf.close()), Some(libc::EIO));
    mem.state().fail_sync = None;
    assert!(matches!(leaf.flush(), Err(LeafError::Poisoned { .. })));
}

#[test]
fn a_close_that_failed_for_space_can_be_repeated_and_spares_the_good_header() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 1, 1).unwrap();
    leaf.flush().unwrap();
    mem.state().fail_writes = Some((0, libc::ENOSPC));
    mem.state().ops.clear();
    assert_eq!(errno(leaf.close()), Some(libc::ENOSPC));
    mem.state().fail_writes = None;
    leaf.close().unwrap();
    assert_eq!(mem.state().ops, [Op::Write(4096, 4096), Op::Sync], "the older copy");
    drop(leaf);
    assert_eq!(reopen(&mem).present_sectors(), 1);
}

#[test]
fn a_full_disk_fails_the_write_and_the_leaf_works_on() {
    let (leaf, mem) = faulty();
    mem.state().fail_writes = Some((0, libc::ENOSPC));
    assert_eq!(errno(write(&leaf, 7, 1, 1)), Some(libc::ENOSPC));
    assert!(leaf.is_absent(range(0, SECTORS)), "what was not written is not held");
    assert!(!leaf.is_poisoned() && leaf.present_sectors() == 0);
    mem.state().fail_writes = None;
    write(&leaf, 7, 1, 2).unwrap();
    leaf.flush().unwrap();
    assert!(is_all(&read(&leaf, 7, 1), 2));
}

#[test]
fn what_a_failed_write_has_changed_is_made_durable_by_the_next_flush() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 2, 1).unwrap();
    leaf.flush().unwrap();
    let second = leaf.place_of(Sector(1)).unwrap();
    mem.state().write_max = Some(512);
    mem.state().fail_writes = Some((second, libc::ENOSPC));
    assert_eq!(errno(write(&leaf, 0, 2, 2)), Some(libc::ENOSPC));
    (mem.state().write_max, mem.state().fail_writes) = (None, None);
    assert!(is_all(&read(&leaf, 0, 1), 2) && is_all(&read(&leaf, 1, 1), 1), "half of it");
    assert!(!leaf.is_flushed());
    leaf.flush().unwrap();
    mem.lose_power(|| false);
    assert!(is_all(&read(&leaf, 0, 1), 2), "what was read before the flush");
}

#[test]
fn a_long_write_goes_in_steps_and_is_held_when_all_of_it_is_written() {
    const LONG: u64 = 200;
    let (leaf, mem) = faulty();
    write(&leaf, 8, LONG, 1).unwrap();
    let len = |op: &Op| match op {
        Op::Write(_, len) => *len,
        other => panic!("{other:?}"),
    };
    let lens: Vec<u64> = mem.state().ops.iter().map(len).collect();
    assert!(lens.iter().all(|len| *len <= 16 << 10), "{lens:?}");
    assert_eq!(lens.iter().sum::<u64>(), LONG * 512);
    assert!(is_all(&read(&leaf, 8, LONG), 1));
    assert_eq!(leaf.next_run(range(8, 2 * LONG)), (true, LONG));
    // A step that fails: nothing of a new range is held.
    let far = live_map::PAGE_SECTORS;
    mem.state().fail_writes = Some((leaf.place_of(Sector(far + 100)).unwrap(), libc::ENOSPC));
    assert_eq!(errno(write(&leaf, far, LONG, 2)), Some(libc::ENOSPC));
    assert!(leaf.is_absent(range(far, LONG)) && !leaf.is_flushed());
}

#[test]
fn a_flush_between_two_steps_of_marking_makes_only_written_sectors_durable() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 8, 1).unwrap();
    // As `write_zeroes` over all pages does it: the data, then page by page.
    let all = range(0, SECTORS);
    let steps: Vec<_> = live_map::steps(all).collect();
    assert_eq!(steps.iter().map(|step| step.count()).sum::<u64>(), SECTORS);
    assert_eq!(steps.len(), 3, "each page is a step");
    assert!(steps.windows(2).all(|two| two[0].end() == two[1].start()));
    crate::io::storage::zero(&mem, leaf.place_of(Sector(0)).unwrap(), SIZE).unwrap();
    leaf.map.set(steps[0]).1.unwrap();
    mem.state().ops.clear();
    leaf.flush().unwrap();
    assert_eq!(mem.state().ops, [Op::Sync, Op::Write(MAP, 4096), Op::Sync]);
    drop(leaf);
    mem.lose_power(|| false);
    let leaf = reopen(&mem);
    assert_eq!(leaf.next_run(all), (true, live_map::PAGE_SECTORS));
    assert!(is_all(&read(&leaf, 0, 8), 0));
}

#[test]
fn a_full_disk_under_the_map_fails_the_flush_and_the_next_one_repeats_it() {
    let (leaf, mem) = faulty();
    write(&leaf, 7, 1, 1).unwrap();
    mem.state().fail_writes = Some((MAP, libc::ENOSPC));
    assert_eq!(errno(leaf.flush()), Some(libc::ENOSPC));
    assert!(!leaf.is_poisoned() && !leaf.is_flushed());
    mem.state().fail_writes = None;
    leaf.flush().unwrap();
    assert!(leaf.is_flushed());
    drop(leaf);
    mem.lose_power(|| false);
    let leaf = reopen(&mem);
    assert_eq!(leaf.next_run(range(7, 10)), (true, 1));
    assert!(is_all(&read(&leaf, 7, 1), 1));
}

#[test]
fn short_writes_are_continued_wherever_they_end() {
    for write_max in [1, 99, 100, 101, 511, 512, 700, 5000] {
        let (leaf, mem) = faulty();
        mem.state().write_max = Some(write_max);
        let mut bytes: Vec<u8> = (0..4096u32).map(|i| (i * 7 % 251) as u8).collect();
        write_bytes(&leaf, 3, &mut bytes).unwrap();
        assert!(read(&leaf, 3, 8) == bytes, "{write_max} bytes at a time");
        leaf.flush().unwrap();
        drop(leaf);
        mem.lose_power(|| false);
        assert!(read(&reopen(&mem), 3, 8) == bytes);
    }
}

#[test]
fn short_reads_are_continued_when_a_leaf_is_opened() {
    for read_max in [1, 7, 511, 4095] {
        let (leaf, mem) = faulty();
        write(&leaf, 9, 3, 1).unwrap();
        leaf.close().unwrap();
        drop(leaf);
        mem.state().read_max = Some(read_max);
        let leaf = reopen(&mem);
        assert_eq!(leaf.next_run(range(9, 100)), (true, 3), "{read_max} bytes at a time");
        mem.state().read_max = None;
        assert!(is_all(&read(&leaf, 9, 3), 1));
    }
}

#[test]
fn a_leaf_that_ends_early_is_refused_and_does_not_hang() {
    let (leaf, mem) = faulty();
    drop(leaf);
    mem.state().read_max = Some(0);
    let storage = Box::new(mem.clone());
    let opened =
        Leaf::open_storage(Path::new("vm.leaf"), storage, &root(1), &OpenOptions::default());
    assert!(matches!(opened, Err(LeafError::NotALeaf { .. })));
}

#[test]
fn a_leaf_whose_file_system_went_read_only_refuses_writes_and_is_whole_when_it_is_back() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 1, 1).unwrap();
    leaf.flush().unwrap();
    write(&leaf, 1, 1, 2).unwrap();
    // As ext4 with errors=remount-ro: what is dirty can't be written any more.
    mem.state().fail_writes = Some((0, libc::EROFS));
    mem.state().fail_punch = Some(libc::EROFS);
    assert_eq!(errno(write(&leaf, 2, 1, 3)), Some(libc::EROFS));
    assert_eq!(errno(leaf.write_zeroes(range(0, 1))), Some(libc::EROFS));
    assert!(is_all(&read(&leaf, 0, 1), 1), "reads go on");
    assert!(!leaf.is_poisoned(), "nothing that was acknowledged is lost yet");
    mem.state().fail_sync = Some(libc::EROFS);
    assert_eq!(errno(leaf.flush()), Some(libc::EROFS));
    assert!(leaf.is_poisoned());
    // Opening it for writing says why; nothing is changed by that.
    let storage = Box::new(mem.clone());
    let opened =
        Leaf::open_storage(Path::new("vm.leaf"), storage, &root(1), &OpenOptions::default());
    match opened {
        Err(LeafError::Io { source, .. }) => assert_eq!(source.raw_os_error(), Some(libc::EROFS)),
        other => panic!("{other:?}"),
    }
    let mut state = mem.state();
    (state.fail_writes, state.fail_punch, state.fail_sync) = (None, None, None);
    drop(state);
    drop(leaf);
    mem.lose_power(|| false);
    let leaf = reopen(&mem);
    assert_eq!(leaf.next_run(range(0, 10)), (true, 1));
    assert!(is_all(&read(&leaf, 0, 1), 1));
    write(&leaf, 1, 1, 4).unwrap();
    leaf.close().unwrap();
}

#[test]
fn a_sync_that_fails_while_opening_fails_the_opening_and_the_next_one_succeeds() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 1, 1).unwrap();
    leaf.close().unwrap();
    drop(leaf);
    mem.state().fail_sync = Some(libc::EIO);
    let open = || {
        let storage = Box::new(mem.clone());
        Leaf::open_storage(Path::new("vm.leaf"), storage, &root(1), &OpenOptions::default())
    };
    assert!(matches!(open(), Err(LeafError::Io { operation: "sync", .. })));
    mem.state().fail_sync = None;
    assert_eq!(open().unwrap().present_sectors(), 1);
}

#[test]
fn a_disk_that_takes_nothing_fails_the_write_and_does_not_hang_it() {
    let (leaf, mem) = faulty();
    mem.state().write_max = Some(0);
    match write(&leaf, 0, 1, 1) {
        Err(LeafError::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::WriteZero),
        other => panic!("{other:?}"),
    }
    assert!(leaf.is_absent(range(0, 1)));
}

#[test]
fn zeroes_are_holes_or_where_there_are_none_written_out() {
    let (leaf, mem) = faulty();
    write(&leaf, 0, 300, 1).unwrap();
    mem.state().ops.clear();
    let data = leaf.place_of(Sector(0)).unwrap();
    leaf.write_zeroes(range(0, 10)).unwrap();
    assert_eq!(mem.state().ops, [Op::Punch(data, 5120)]);
    mem.state().fail_punch = Some(libc::EOPNOTSUPP);
    leaf.write_zeroes(range(20, 200)).unwrap();
    assert_eq!(
        mem.state().ops[1..],
        [Op::Write(data + 20 * 512, 65536), Op::Write(data + 20 * 512 + 65536, 200 * 512 - 65536),]
    );
    let bytes = read(&leaf, 0, 300);
    for (sector, bytes) in bytes.chunks(512).enumerate() {
        let zero = sector < 10 || (20..220).contains(&sector);
        assert!(is_all(bytes, u8::from(!zero)), "sector {sector}");
    }
    mem.state().fail_punch = Some(libc::EIO);
    assert_eq!(errno(leaf.write_zeroes(range(500, 1))), Some(libc::EIO));
    assert!(leaf.is_absent(range(500, 1)));
}

#[test]
fn flushes_that_come_together_are_all_covered_when_they_return() {
    let (leaf, mem) = faulty();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (leaf, mem) = (&leaf, &mem);
            scope.spawn(move || {
                for i in 0..50 {
                    let sector = thread * 1000 + i;
                    write(leaf, sector, 1, 1).unwrap();
                    leaf.flush().unwrap();
                    let page = mem.durable(MAP + sector / 8);
                    assert!(page & 1 << (sector % 8) != 0, "sector {sector} is not durable");
                    assert_eq!(mem.durable(leaf.place_of(Sector(sector)).unwrap()), 1);
                }
            });
        }
    });
    assert_eq!(leaf.present_sectors(), 200);
    assert!(leaf.is_flushed());
}

#[test]
fn a_panic_in_a_flush_loses_no_write_and_lets_none_be_acknowledged_without_its_bits() {
    let home = Home::new();
    let mem = Mem::of_file(&home.leaf());
    let open = |options: &OpenOptions| {
        Leaf::open_storage(&home.leaf(), Box::new(mem.clone()), &root(1), options).unwrap()
    };
    let leaf = open(&home.options());
    write(&leaf, 5, 1, 0x11).unwrap();
    mem.state().panic_in_sync = true;
    let flush = std::panic::AssertUnwindSafe(|| leaf.flush());
    assert!(std::panic::catch_unwind(flush).is_err());
    mem.state().panic_in_sync = false;
    // The page of the map was taken: another flush would leave it out.
    assert!(matches!(leaf.flush(), Err(LeafError::Abandoned { .. })));
    assert!(matches!(write(&leaf, 6, 1, 0x22), Err(LeafError::Abandoned { .. })));
    assert!(matches!(leaf.close(), Err(LeafError::Abandoned { .. })));
    assert!(leaf.is_poisoned());
    drop(leaf);
    let leaf = open(&home.options());
    assert_eq!(leaf.next_run(range(5, 9)), (true, 1), "its live map is taken over");
    leaf.flush().unwrap();
    drop(leaf);
    mem.lose_power(|| false);
    let leaf = open(&OpenOptions::default());
    assert!(leaf.next_run(range(5, 9)) == (true, 1) && is_all(&read(&leaf, 5, 1), 0x11));
}
