//! The header's copies: what damage to one of them may do, whenever it comes.

use std::os::unix::fs::FileExt;

use super::mem::Mem;
use super::*;

const LEN: u64 = header::LEN as u64;

/// Damages a copy.
pub(super) fn damage(home: &Home, copy: u64) {
    let file = File::options().read(true).write(true).open(home.leaf()).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, copy * LEN + 700).unwrap();
    file.write_all_at(&[byte[0] ^ 1], copy * LEN + 700).unwrap();
}

fn copies(home: &Home) -> [Option<Header>; 2] {
    let file = File::open(home.leaf()).unwrap();
    offline::header_copies(&file).unwrap().map(Result::ok)
}

#[test]
fn a_header_never_goes_over_the_only_good_copy() {
    // New leaves, and those whose copies were made alike, have the same
    // generation in both.
    for grown in [false, true] {
        for damaged in [0, 1] {
            let mem = Mem::default();
            create_storage(Path::new("vm.leaf"), &mem, Layout::Direct, SIZE, &root(1)).unwrap();
            let open = || {
                let storage = Box::new(mem.clone());
                let options = OpenOptions::default();
                Leaf::open_storage(Path::new("vm.leaf"), storage, &root(1), &options)
            };
            if grown {
                open().unwrap().grow(SIZE + 512).unwrap();
            }
            crate::io::storage::write_all(&mem, &[1], damaged * LEN + 700).unwrap();
            crate::io::storage::Storage::sync_data(&mem).unwrap();
            // Of the 4096 bytes that the opening writes, the first half.
            mem.state().write_max = Some(2048);
            mem.state().fail_writes_after = Some((1, libc::EIO));
            open().unwrap_err();
            (mem.state().write_max, mem.state().fail_writes_after) = (None, None);
            let leaf = open().unwrap_or_else(|e| panic!("grown {grown}, copy {damaged}: {e}"));
            assert_eq!(leaf.sectors(), SECTORS + u64::from(grown));
        }
    }
}

#[test]
fn opening_a_leaf_makes_a_damaged_copy_whole() {
    // Killed, the run's header is in copy 0, and the other one is older.
    for (taken_over, damaged) in [(false, 0), (false, 1), (true, 1)] {
        let home = Home::new();
        let leaf = home.open();
        write(&leaf, 5, 1, 0x11).unwrap();
        if !taken_over {
            leaf.close().unwrap();
        }
        drop(leaf);
        damage(&home, damaged);
        assert!(copies(&home)[usize::from(damaged == 1)].is_none());
        let leaf = home.open();
        assert_eq!(leaf.next_run(range(5, 9)), (true, 1));
        assert!(copies(&home).iter().all(Option::is_some), "{taken_over} {damaged}");
    }
}

/// Opens the leaf, damages each of its copies in turn, and opens it again.
fn survives_damage(home: &Home, sectors: u64, present: u64) {
    drop(home.open());
    for copy in [0, 1] {
        damage(home, copy);
        let read_only = OpenOptions { live_map: None, read_only: true };
        let leaf = Leaf::open(&home.leaf(), &root(1), &read_only).unwrap();
        assert_eq!((leaf.sectors(), leaf.present_sectors()), (sectors, present), "copy {copy}");
        drop(leaf);
        damage(home, copy);
    }
}

#[test]
fn a_change_that_was_cut_off_before_its_mirror_is_mirrored_when_the_leaf_is_opened() {
    for change in ["growth", "reset", "shrinking"] {
        let home = Home::new();
        let leaf = home.open();
        write(&leaf, 5, 1, 0x11).unwrap();
        leaf.flush().unwrap();
        let (sectors, present) = match change {
            "growth" => {
                leaf.storage.set_len(leaf.data_offset + GROWN * 512).unwrap();
                leaf.switch_size(3, GROWN * 512).unwrap();
                (GROWN, 1)
            }
            "reset" => {
                leaf.write_header(|h| (h.generation, h.map_void) = (3, true)).unwrap();
                (SECTORS, 0)
            }
            _ => {
                leaf.write_header(|h| (h.generation, h.virtual_size) = (3, SIZE - 512)).unwrap();
                (SECTORS - 1, 1)
            }
        };
        // Killed here.
        drop(leaf);
        survives_damage(&home, sectors, present);
    }
}

const GROWN: u64 = SECTORS + 3 * live_map::PAGE_SECTORS;
