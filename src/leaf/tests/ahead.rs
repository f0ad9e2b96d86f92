//! Live maps that are newer than the header that counts: after damage to the
//! newer copy of it, and where the leaf's file is not what it was.

use super::copies::damage;
use super::mem::Mem;
use super::*;

/// What a killed daemon was told to write: flushed, and only acknowledged.
const FLUSHED: u64 = 40;
const ACKNOWLEDGED: [u64; 3] = [5, 40_000, SECTORS - 1];

/// A leaf that was used so many times before, and whose daemon was then killed.
fn killed(home: &Home, runs_before: u64) -> Header {
    for _ in 0..runs_before {
        let leaf = home.open();
        write(&leaf, FLUSHED + 1, 1, 0x31).unwrap();
        leaf.close().unwrap();
    }
    let leaf = home.open();
    write(&leaf, FLUSHED, 1, 0x32).unwrap();
    leaf.flush().unwrap();
    for sector in ACKNOWLEDGED {
        write(&leaf, sector, 1, 0x33).unwrap();
    }
    leaf.set_write_cache(WriteCache::Off).unwrap();
    leaf.header()
}

/// Both copies of the header, and the first page of the map.
fn first_pages(home: &Home) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; 3 * header::LEN];
    File::open(home.leaf()).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn has_all(leaf: &Leaf, runs_before: u64) {
    for sector in ACKNOWLEDGED {
        assert!(!leaf.is_absent(range(sector, 1)), "sector {sector}");
        assert!(is_all(&read(leaf, sector, 1), 0x33));
    }
    assert!(is_all(&read(leaf, FLUSHED, 1), 0x32));
    let before = u64::from(runs_before > 0);
    assert_eq!(leaf.present_sectors(), 4 + before);
    assert!(leaf.next_run(range(FLUSHED, 9)) == (true, 1 + before));
}

#[test]
fn damage_to_either_copy_of_the_header_after_a_kill_loses_no_acknowledged_write() {
    for runs_before in 0..4 {
        for (copy, renamed) in [(0, false), (1, false), (0, true), (1, true)] {
            let home = Home::new();
            let header = killed(&home, runs_before);
            damage(&home, copy);
            if renamed {
                std::fs::rename(home.live_map(), home.dir.path().join("old.map")).unwrap();
            }
            let leaf = home.open();
            has_all(&leaf, runs_before);
            assert!(!leaf.is_flushed() && leaf.write_cache() == WriteCache::Off);
            let again = leaf.header();
            assert_eq!((again.generation, again.clean), (header.generation, false));
            // Killed, and killed again: the mended header and the map agree.
            drop(leaf);
            has_all(&home.open(), runs_before);
            let leaf = home.open();
            leaf.flush().unwrap();
            drop(leaf);
            std::fs::remove_file(home.live_map()).unwrap();
            has_all(&home.open(), runs_before);
        }
    }
}

#[test]
fn a_reader_sees_what_a_map_ahead_names_and_changes_nothing() {
    let home = Home::new();
    let header = killed(&home, 1);
    damage(&home, header.generation % 2);
    let bytes = || (std::fs::read(home.live_map()).unwrap(), first_pages(&home));
    let before = bytes();
    let options = OpenOptions { read_only: true, ..home.options() };
    let leaf = Leaf::open(&home.leaf(), &root(1), &options).unwrap();
    has_all(&leaf, 1);
    drop(leaf);
    assert!(bytes() == before);
}

#[test]
fn an_opening_that_takes_a_map_ahead_over_may_be_cut_off_anywhere() {
    for after in 0..3 {
        for torn in [false, true] {
            let home = Home::new();
            let mem = Mem::of_file(&home.leaf());
            let open = |options: &OpenOptions| {
                Leaf::open_storage(&home.leaf(), Box::new(mem.clone()), &root(1), options)
            };
            let leaf = open(&home.options()).unwrap();
            write(&leaf, FLUSHED, 1, 0x32).unwrap();
            leaf.flush().unwrap();
            write(&leaf, 5, 1, 0x33).unwrap();
            let copy = leaf.header().generation % 2;
            drop(leaf);
            crate::io::storage::write_all(&mem, &[1], copy * header::LEN as u64 + 700).unwrap();
            mem.state().write_max = torn.then_some(2048);
            mem.state().fail_writes_after = Some((after, libc::EIO));
            let cut_off = open(&home.options()).is_err();
            (mem.state().write_max, mem.state().fail_writes_after) = (None, None);
            assert!(cut_off || after > 0, "a header is written");
            let leaf = open(&home.options()).unwrap();
            assert!(leaf.present_sectors() == 2 && leaf.next_run(range(5, 9)) == (true, 1));
            leaf.flush().unwrap();
            drop(leaf);
            mem.lose_power(|| false);
            let leaf = open(&OpenOptions::default()).unwrap();
            assert!(leaf.present_sectors() == 2 && is_all(&read(&leaf, 5, 1), 0x33));
        }
    }
}

#[test]
fn an_opening_that_was_cut_off_before_its_header_leaves_no_map_ahead() {
    for closed in [false, true] {
        let home = Home::new();
        let mem = Mem::of_file(&home.leaf());
        let open = || {
            let storage = Box::new(mem.clone());
            Leaf::open_storage(&home.leaf(), storage, &root(1), &home.options())
        };
        let leaf = open().unwrap();
        write(&leaf, 5, 1, 0x33).unwrap();
        leaf.flush().unwrap();
        if closed {
            leaf.close().unwrap();
        }
        drop(leaf);
        let _ = std::fs::remove_file(home.live_map());
        mem.state().fail_writes_after = Some((0, libc::EIO));
        open().unwrap_err();
        mem.state().fail_writes_after = None;
        assert!(home.live_map().exists(), "the case");
        let leaf = open().unwrap();
        assert_eq!(leaf.next_run(range(5, 9)), (true, 1));
    }
}

#[test]
fn a_map_that_is_not_filled_yet_is_nobodys() {
    let home = Home::new();
    let leaf = home.open();
    let owner = live_map::Owner::of(&leaf.header());
    drop(leaf);
    std::fs::remove_file(home.live_map()).unwrap();
    let read_only = OpenOptions { live_map: None, read_only: true };
    let header = Leaf::open(&home.leaf(), &root(1), &read_only).unwrap().header();
    let path = home.leaf();
    let wanted = live_map::place::Wanted::of(&path, &header, false);
    let found = || live_map::place::find(home.dir.path(), &wanted).unwrap();
    let shape = live_map::Shape { sectors: SECTORS, pages_max: 3, packed: false };
    let map = LiveMap::create(Some(&home.live_map()), &owner, &path, &shape).unwrap();
    assert_eq!(found(), None);
    map.own(&owner, SECTORS).unwrap();
    assert_eq!(found(), Some(home.live_map()));
}

#[test]
fn a_leaf_that_was_put_back_older_is_refused_until_its_map_is_moved_away() {
    let home = Home::new();
    let old = first_pages(&home);
    killed(&home, 2);
    let map = std::fs::read(home.live_map()).unwrap();
    let file = File::options().write(true).open(home.leaf()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &old, 0).unwrap();
    let refusal = home.refusal(&home.options());
    assert!(matches!(refusal, LeafError::LiveMapAhead { .. }), "{refusal}");
    let said = refusal.to_string();
    let (state, next) = ("nothing was changed", format!("mv {} /", home.live_map().display()));
    let next = next.as_str();
    for part in ["older copy of itself", state, "move the map out of its directory", next] {
        assert!(said.contains(part), "{said}");
    }
    assert!(first_pages(&home) == old, "nothing has changed");
    assert!(std::fs::read(home.live_map()).unwrap() == map);
    std::fs::remove_file(home.live_map()).unwrap();
    let leaf = home.open();
    assert_eq!(leaf.present_sectors(), 0);
    leaf.close().unwrap();
}

#[test]
fn a_map_ahead_of_another_size_or_of_a_reset_is_refused() {
    const GROWN: u64 = SECTORS + 3 * live_map::PAGE_SECTORS;
    for change in ["growth within a page", "growth", "reset"] {
        let home = Home::new();
        let mut leaf = home.open();
        write(&leaf, 5, 1, 0x11).unwrap();
        // As where the second copy could not be written too, for want of space.
        let sectors = if change == "growth" { GROWN } else { SECTORS + 1 };
        if change == "reset" {
            leaf.flush().unwrap();
            leaf.write_header(|h| (h.generation, h.map_void) = (3, true)).unwrap();
            leaf.write_header(|h| (h.generation, h.map_void) = (4, false)).unwrap();
            leaf.reload_map().unwrap();
        } else {
            leaf.storage.set_len(leaf.data_offset + sectors * 512).unwrap();
            leaf.switch_size(3, sectors * 512).unwrap();
        }
        write(&leaf, 7, 1, 0x22).unwrap();
        let newer = leaf.header().generation % 2;
        drop(leaf);
        damage(&home, newer);
        let before = first_pages(&home);
        let refusal = home.refusal(&home.options()).to_string();
        assert!(refusal.contains("another size or was reset"), "{change}: {refusal}");
        assert!(first_pages(&home) == before && home.live_map().exists());
    }
}
