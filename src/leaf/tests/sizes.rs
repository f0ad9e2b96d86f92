//! Growing, shrinking and resetting: order, faults, and what is found after.

use std::os::unix::fs::FileExt;

use super::mem::{Mem, Op};
use super::*;

const MAP: u64 = 8192;
const GROWN: u64 = SECTORS + 3 * live_map::PAGE_SECTORS;

fn reopen(mem: &Mem) -> Leaf {
    let storage = Box::new(mem.clone());
    Leaf::open_storage(Path::new("vm.leaf"), storage, &root(1), &OpenOptions::default()).unwrap()
}

fn in_memory() -> (Leaf, Mem) {
    let mem = Mem::default();
    create_storage(Path::new("vm.leaf"), &mem, Layout::Direct, SIZE, &root(1)).unwrap();
    let leaf = reopen(&mem);
    mem.state().ops.clear();
    (leaf, mem)
}

/// Of a header copy in the file: generation, size, whether the map is void.
fn copies(home: &Home) -> [(u64, u64, bool); 2] {
    let file = File::open(home.leaf()).unwrap();
    [0, header::LEN as u64].map(|at| {
        let mut bytes = [0; header::LEN];
        file.read_exact_at(&mut bytes, at).unwrap();
        let header = Header::decode(&bytes).unwrap();
        (header.generation, header.virtual_size / 512, header.map_void)
    })
}

#[test]
fn a_leaf_grows_while_it_is_open_and_keeps_what_it_holds() {
    for end in ["killed", "closed", "without power"] {
        let home = Home::new();
        let leaf = home.open();
        write(&leaf, SECTORS - 2, 2, 0x11).unwrap();
        assert!(write(&leaf, SECTORS, 1, 0x22).is_err());
        leaf.grow(GROWN * 512).unwrap();
        assert_eq!(leaf.sectors(), GROWN);
        assert_eq!(copies(&home), [(3, GROWN, false); 2], "both copies know");
        assert_eq!(leaf.next_run(range(SECTORS - 2, 100)), (true, 2));
        assert!(leaf.is_absent(range(SECTORS, GROWN - SECTORS)));
        write(&leaf, GROWN - 1, 1, 0x33).unwrap();
        assert!(write(&leaf, GROWN, 1, 0x22).is_err());
        match end {
            "closed" => leaf.close().unwrap(),
            "without power" => {
                leaf.flush().unwrap();
                std::fs::remove_file(home.live_map()).unwrap();
            }
            _ => {}
        }
        drop(leaf);
        let leaf = home.open();
        assert_eq!((leaf.sectors(), leaf.present_sectors()), (GROWN, 3), "{end}");
        assert!(is_all(&read(&leaf, GROWN - 1, 1), 0x33));
    }
}

#[test]
fn a_live_map_fits_the_header_before_and_after_a_growth() {
    // Killed between the announcement and the header, and after the header.
    for header_is_written in [false, true] {
        let home = Home::new();
        let leaf = home.open();
        write(&leaf, 5, 1, 0x11).unwrap();
        leaf.storage.set_len(leaf.data_offset + GROWN * 512).unwrap();
        let next = live_map::Owner { generation: 3, ..live_map::Owner::of(&leaf.header()) };
        leaf.map.grow(GROWN).unwrap();
        leaf.map.announce(&next, GROWN).unwrap();
        if header_is_written {
            leaf.write_header(|h| (h.generation, h.virtual_size) = (3, GROWN * 512)).unwrap();
        }
        drop(leaf);
        let leaf = home.open();
        let sectors = if header_is_written { GROWN } else { SECTORS };
        assert_eq!((leaf.sectors(), leaf.present_sectors()), (sectors, 1));
        assert!(!leaf.is_flushed(), "taken over");
        drop(leaf);
        assert_eq!(home.open().present_sectors(), 1, "and again");
    }
}

#[test]
fn a_live_map_that_was_given_up_while_a_disk_grows_stays_nobodys() {
    // Write-back fails after the growth has looked for it: before the new
    // generation is announced, or between that and the header.
    for announced in [false, true] {
        let home = Home::new();
        let leaf = home.open();
        write(&leaf, 0, 8, 0x11).unwrap();
        leaf.flush().unwrap();
        write(&leaf, 8, 8, 0x22).unwrap();
        leaf.storage.set_len(leaf.data_offset + GROWN * 512).unwrap();
        if announced {
            let next = live_map::Owner { generation: 3, ..live_map::Owner::of(&leaf.header()) };
            leaf.map.announce(&next, GROWN).unwrap();
        }
        leaf.poison();
        let grown = leaf.switch_size(3, GROWN * 512);
        assert!(matches!(grown, Err(LeafError::Poisoned { .. })), "{grown:?}");
        drop(leaf);
        let first = std::fs::read(home.live_map()).unwrap();
        assert!(is_all(&first[..124], 0), "some record says whose it is");
        let leaf = home.open();
        assert_eq!(leaf.next_run(range(0, 16)), (true, 8), "what was flushed, no more");
    }
}

#[test]
fn an_announcement_is_void_once_the_map_was_taken_over() {
    let home = Home::new();
    let leaf = home.open();
    let next = live_map::Owner { generation: 3, ..live_map::Owner::of(&leaf.header()) };
    leaf.map.announce(&next, SECTORS).unwrap();
    drop(leaf);
    home.open();
    // Another run, which does not know the live map, comes to generation 3.
    let other = Leaf::open(&home.leaf(), &root(1), &OpenOptions::default()).unwrap();
    write(&other, 5, 1, 0x11).unwrap();
    other.flush().unwrap();
    drop(other);
    assert_eq!(home.open().present_sectors(), 1, "by the durable map");
}

#[test]
fn sizes_that_can_not_be_are_refused_and_change_nothing() {
    let (mut leaf, mem) = in_memory();
    let most = leaf.size_max();
    assert!(most >= 1 << 40, "{most}");
    assert!(matches!(leaf.grow(SIZE + 1), Err(LeafError::BadSize { .. })));
    assert!(matches!(leaf.grow(SIZE - 512), Err(LeafError::WouldShrink { .. })));
    let result = leaf.grow(most + 512);
    assert!(matches!(result, Err(LeafError::NoRoom { most: m, .. }) if m == most), "{result:?}");
    assert!(matches!(leaf.shrink((1 << 20) - 512), Err(LeafError::BadSize { .. })), "the root's");
    leaf.grow(SIZE).unwrap();
    assert_eq!(mem.state().ops, []);
    leaf.grow(most).unwrap();
    write(&leaf, most / 512 - 1, 1, 1).unwrap();
    leaf.close().unwrap();
    drop(leaf);
    assert_eq!(reopen(&mem).next_run(range(most / 512 - 1, 1)), (true, 1));
}

#[test]
fn the_file_is_longer_before_the_header_says_so() {
    let (leaf, mem) = in_memory();
    leaf.grow(GROWN * 512).unwrap();
    let expected = [
        Op::SetLen(leaf.place_of(Sector(GROWN)).unwrap()),
        Op::Punch(MAP + 3 * 4096, 3 * 4096),
        Op::Sync,
        Op::Write(4096, 4096),
        Op::Sync,
        Op::Write(0, 4096),
        Op::Sync,
    ];
    assert_eq!(mem.state().ops, expected);
}

#[test]
fn a_growth_that_fails_changes_nothing_and_can_be_repeated() {
    let (leaf, mem) = in_memory();
    write(&leaf, 5, 1, 1).unwrap();
    mem.state().fail_set_len = Some(libc::ENOSPC);
    assert!(leaf.grow(GROWN * 512).is_err());
    mem.state().fail_set_len = None;
    mem.state().fail_writes = Some((0, libc::ENOSPC));
    assert!(leaf.grow(GROWN * 512).is_err());
    assert_eq!(leaf.sectors(), SECTORS);
    assert!(!leaf.is_poisoned());
    mem.state().fail_writes = None;
    leaf.flush().unwrap();
    leaf.grow(GROWN * 512).unwrap();
    assert_eq!((leaf.sectors(), leaf.present_sectors()), (GROWN, 1));
}

#[test]
fn a_sync_that_fails_while_growing_poisons_and_either_size_is_found_later() {
    let (leaf, mem) = in_memory();
    write(&leaf, 5, 1, 1).unwrap();
    leaf.flush().unwrap();
    mem.state().fail_sync = Some(libc::EIO);
    assert!(leaf.grow(GROWN * 512).is_err());
    assert!(leaf.is_poisoned() && leaf.sectors() == SECTORS);
    mem.state().fail_sync = None;
    assert!(matches!(leaf.grow(GROWN * 512), Err(LeafError::Poisoned { .. })));
    drop(leaf);
    assert_eq!(reopen(&mem).present_sectors(), 1);
}

#[test]
fn what_a_shrinking_cut_off_does_not_come_back_with_the_next_growth() {
    let home = Home::new();
    let mut leaf = home.open();
    for sector in [7, live_map::PAGE_SECTORS - 1, live_map::PAGE_SECTORS + 9, SECTORS - 1] {
        write(&leaf, sector, 1, 0x44).unwrap();
    }
    let sectors = live_map::PAGE_SECTORS + 5;
    leaf.shrink(sectors * 512).unwrap();
    assert_eq!((leaf.sectors(), leaf.present_sectors()), (sectors, 2));
    assert_eq!(copies(&home), [(3, sectors, false); 2]);
    assert_eq!(home.leaf().metadata().unwrap().len(), leaf.place_of(Sector(sectors)).unwrap());
    assert!(write(&leaf, sectors, 1, 1).is_err());
    leaf.grow(SIZE).unwrap();
    assert_eq!(leaf.present_sectors(), 2);
    drop(leaf);
    let leaf = home.open();
    assert_eq!((leaf.sectors(), leaf.present_sectors()), (SECTORS, 2), "killed");
    leaf.close().unwrap();
    drop(leaf);
    let leaf = home.open();
    assert_eq!((leaf.sectors(), leaf.present_sectors()), (SECTORS, 2), "closed");
    assert!(leaf.is_absent(range(sectors, SECTORS - sectors)));
}

#[test]
fn bits_past_the_disks_end_count_for_nothing_and_are_cleared_before_it_grows() {
    let (leaf, mem) = in_memory();
    write(&leaf, SECTORS - 1, 1, 1).unwrap();
    leaf.close().unwrap();
    drop(leaf);
    let byte = MAP + (SECTORS - 1) / 8;
    let last = mem.durable(byte);
    crate::io::storage::write_all(&mem, &[last, 0xff], byte).unwrap();
    crate::io::storage::write_all(&mem, &[0xff; 4096], MAP + 3 * 4096).unwrap();
    let leaf = reopen(&mem);
    assert_eq!(leaf.present_sectors(), 1);
    leaf.grow(GROWN * 512).unwrap();
    assert_eq!(leaf.present_sectors(), 1);
    drop(leaf);
    mem.lose_power(|| false);
    let leaf = reopen(&mem);
    assert_eq!((leaf.sectors(), leaf.present_sectors()), (GROWN, 1));
}

#[test]
fn a_reset_forgets_every_change_and_gives_the_space_back() {
    let home = Home::new();
    let mut leaf = home.open();
    write(&leaf, 0, 1000, 0x55).unwrap();
    leaf.flush().unwrap();
    write(&leaf, 40_000, 1000, 0x66).unwrap();
    let before = leaf.allocated_bytes().unwrap();
    leaf.reset().unwrap();
    assert_eq!((leaf.sectors(), leaf.present_sectors()), (SECTORS, 0));
    assert!(leaf.allocated_bytes().unwrap() + 900_000 < before);
    assert_eq!(copies(&home), [(4, SECTORS, false); 2], "no copy brings it back or voids it");
    write(&leaf, 3, 1, 0x77).unwrap();
    drop(leaf);
    assert_eq!(home.open().present_sectors(), 1, "killed after it");
    std::fs::remove_file(home.live_map()).unwrap();
    assert_eq!(home.open().present_sectors(), 0, "without power: never flushed");
}

#[test]
fn a_reset_clears_the_map_before_it_punches_the_data() {
    let (mut leaf, mem) = in_memory();
    write(&leaf, 0, 1, 1).unwrap();
    leaf.flush().unwrap();
    mem.state().ops.clear();
    leaf.reset().unwrap();
    let expected = [
        Op::Write(4096, 4096),
        Op::Sync,
        Op::Punch(MAP, 3 * 4096),
        Op::Sync,
        Op::Write(0, 4096),
        Op::Sync,
        Op::Write(4096, 4096),
        Op::Sync,
        Op::Punch(leaf.place_of(Sector(0)).unwrap(), SIZE),
    ];
    assert_eq!(mem.state().ops, expected);
}

#[test]
fn a_reset_that_was_cut_off_is_completed_when_the_leaf_is_opened() {
    let home = Home::new();
    let leaf = home.open();
    write(&leaf, 0, 8, 0x55).unwrap();
    leaf.flush().unwrap();
    leaf.write_header(|h| (h.generation, h.map_void) = (h.generation + 1, true)).unwrap();
    drop(leaf);
    let read_only = OpenOptions { live_map: Some(home.live_map()), read_only: true };
    let reader = Leaf::open(&home.leaf(), &root(1), &read_only).unwrap();
    assert_eq!(reader.present_sectors(), 0, "a reader sees it done, and changes nothing");
    drop(reader);
    assert!(copies(&home)[1].2);
    let leaf = home.open();
    assert_eq!(leaf.present_sectors(), 0);
    write(&leaf, 3, 1, 0x77).unwrap();
    leaf.flush().unwrap();
    drop(leaf);
    std::fs::remove_file(home.live_map()).unwrap();
    assert_eq!(home.open().present_sectors(), 1, "and what came after is kept");
}

#[test]
fn a_reset_that_fails_after_its_switch_takes_nothing_more_until_the_leaf_is_reopened() {
    let (mut leaf, mem) = in_memory();
    write(&leaf, 0, 1, 1).unwrap();
    leaf.flush().unwrap();
    mem.state().fail_punch = Some(libc::EIO);
    assert!(leaf.reset().is_err());
    assert!(matches!(write(&leaf, 0, 1, 1), Err(LeafError::Poisoned { .. })));
    mem.state().fail_punch = None;
    drop(leaf);
    assert_eq!(reopen(&mem).present_sectors(), 0);
}

#[test]
fn leaves_without_holes_are_reset_too() {
    let (mut leaf, mem) = in_memory();
    mem.state().fail_punch = Some(libc::EOPNOTSUPP);
    write(&leaf, 0, 1, 1).unwrap();
    leaf.reset().unwrap();
    drop(leaf);
    mem.lose_power(|| false);
    assert_eq!(reopen(&mem).present_sectors(), 0);
}

#[test]
fn the_largest_disk_is_opened_by_what_its_leaf_holds_and_not_by_its_size() {
    // Files of that size are not on every file system.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let at = |name: &str| dir.path().join(name);
    create(&at("vm.leaf"), SIZE_MAX, &root(1)).unwrap();
    let options = OpenOptions { live_map: Some(at("vm.map")), read_only: false };
    let open = || Leaf::open(&at("vm.leaf"), &root(1), &options).unwrap();
    let begun = std::time::Instant::now();
    let held = [0, 1 << 30, SIZE_MAX / 512 - 1];
    let leaf = open();
    held.iter().for_each(|sector| write(&leaf, *sector, 1, 0x44).unwrap());
    leaf.close().unwrap();
    drop(leaf);
    let leaf = open();
    assert_eq!((leaf.sectors(), leaf.present_sectors()), (SIZE_MAX / 512, 3));
    for sector in held {
        assert!(is_all(&read(&leaf, sector, 1), 0x44), "{sector}");
        assert!(sector == 0 || leaf.is_absent(range(sector - 8, 8)));
    }
    // A take-over after a kill, which leaves the live map.
    write(&leaf, 99, 1, 0x55).unwrap();
    drop(leaf);
    let leaf = open();
    assert_eq!(leaf.present_sectors(), 4);
    assert!(is_all(&read(&leaf, 99, 1), 0x55));
    leaf.close().unwrap();
    // 256 GiB of map would have to be read otherwise.
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}
