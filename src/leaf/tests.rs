//! The format, what survives which end, the order of writes, faults.
#![expect(clippy::cast_possible_truncation, reason = "small numbers by construction")]

mod ahead;
mod copies;
mod faults;
mod fixture;
mod format;
#[cfg(feature = "loom")]
mod interleavings;
mod live_maps;
pub(crate) mod mem;
mod model;
#[cfg(not(feature = "loom"))]
mod packed;
mod sizes;

use std::fs::File;

use tempfile::TempDir;

use super::header::Header;
use super::*;
use crate::root::RootIdentity;
use crate::virtqueue::GuestBuf;

/// Two map pages and a half.
const SECTORS: u64 = 2 * live_map::PAGE_SECTORS + 1000;
const SIZE: u64 = SECTORS * 512;

fn root(seed: u8) -> RootIdentity {
    RootIdentity { len_bytes: 1 << 20, fingerprint: [seed; 32], name: "base".into() }
}

fn range(start: u64, count: u64) -> SectorRange {
    SectorRange::new(Sector(start), count).unwrap()
}

/// A leaf in a directory of its own, with a live map that outlives it.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new() -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        create_as(&home.leaf(), Layout::Direct, SIZE, &root(1)).unwrap();
        home
    }

    fn packed() -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        create(&home.leaf(), SIZE, &root(1)).unwrap();
        home
    }

    fn leaf(&self) -> PathBuf {
        self.dir.path().join("vm.leaf")
    }

    fn live_map(&self) -> PathBuf {
        self.dir.path().join("vm.map")
    }

    fn options(&self) -> OpenOptions {
        OpenOptions { live_map: Some(self.live_map()), read_only: false }
    }

    fn open(&self) -> Leaf {
        Leaf::open(&self.leaf(), &root(1), &self.options()).unwrap()
    }

    fn refusal(&self, options: &OpenOptions) -> LeafError {
        Leaf::open(&self.leaf(), &root(1), options).unwrap_err()
    }
}

#[expect(unsafe_code, reason = "buffers of our own")]
fn write_bytes(leaf: &Leaf, start: u64, bytes: &mut [u8]) -> Result<(), LeafError> {
    let range = range(start, bytes.len() as u64 / 512);
    // Ragged pieces, one of them empty.
    let (first, rest) = bytes.split_at_mut(100);
    let bufs = [
        GuestBuf::new(first.as_mut_ptr(), first.len()),
        GuestBuf::new(rest.as_mut_ptr(), 0),
        GuestBuf::new(rest.as_mut_ptr(), rest.len()),
    ];
    // SAFETY: the buffers live on and have the range's length in all.
    unsafe { leaf.write(range, &bufs) }
}

fn write(leaf: &Leaf, start: u64, count: u64, fill: u8) -> Result<(), LeafError> {
    write_bytes(leaf, start, &mut vec![fill; count as usize * 512])
}

#[expect(unsafe_code, reason = "buffers of our own")]
fn read(leaf: &Leaf, start: u64, count: u64) -> Vec<u8> {
    let mut bytes = vec![0xcc; count as usize * 512];
    let mut done = 0;
    while done < count {
        let (place, here) = leaf.place(range(start + done, count - done));
        let part = &mut bytes[done as usize * 512..][..here as usize * 512];
        let bufs = [GuestBuf::new(part.as_mut_ptr(), part.len())];
        match place {
            Some(place) => {
                // SAFETY: the buffer lives on.
                let count = unsafe { leaf.read(place, &bufs, false) }.unwrap();
                assert_eq!(count, part.len());
            }
            None => part.fill(0),
        }
        done += here;
    }
    bytes
}

fn is_all(bytes: &[u8], fill: u8) -> bool {
    bytes.iter().all(|byte| *byte == fill)
}

#[test]
fn a_new_leaf_holds_nothing_and_takes_no_space() {
    let home = Home::new();
    let leaf = home.open();
    assert_eq!((leaf.sectors(), leaf.present_sectors()), (SECTORS, 0));
    assert!(leaf.is_absent(range(0, SECTORS)));
    assert_eq!(leaf.next_run(range(5, SECTORS - 5)), (false, SECTORS - 5));
    assert!(leaf.allocated_bytes().unwrap() < 65536);
    assert_eq!(leaf.path(), home.leaf());
}

#[test]
fn what_was_written_is_there_after_close_and_open() {
    let home = Home::new();
    let leaf = home.open();
    write(&leaf, 10, 3, 0x11).unwrap();
    write(&leaf, live_map::PAGE_SECTORS - 1, 2, 0x22).unwrap();
    leaf.write_zeroes(range(11, 1)).unwrap();
    leaf.write_zeroes(range(SECTORS - 1, 1)).unwrap();
    assert!(!leaf.is_flushed());
    leaf.close().unwrap();
    assert!(leaf.is_flushed());
    assert!(!home.live_map().exists(), "a clean leaf needs no live map");
    drop(leaf);
    let leaf = home.open();
    assert_eq!(leaf.present_sectors(), 6);
    assert!(is_all(&read(&leaf, 10, 1), 0x11) && is_all(&read(&leaf, 12, 1), 0x11));
    assert!(is_all(&read(&leaf, 11, 1), 0));
    assert!(is_all(&read(&leaf, live_map::PAGE_SECTORS - 1, 2), 0x22), "across map pages");
    assert!(is_all(&read(&leaf, SECTORS - 1, 1), 0));
    assert_eq!(leaf.next_run(range(0, 20)), (false, 10));
    assert_eq!(leaf.next_run(range(10, 10)), (true, 3));
}

#[test]
fn after_a_kill_the_live_map_is_taken_over() {
    let home = Home::new();
    let leaf = home.open();
    write(&leaf, 100, 8, 0x33).unwrap();
    drop(leaf);
    let leaf = home.open();
    assert_eq!(leaf.next_run(range(100, 100)), (true, 8));
    assert!(is_all(&read(&leaf, 100, 8), 0x33));
    assert!(!leaf.is_flushed(), "what was taken over is not durable yet");
    leaf.flush().unwrap();
    drop(leaf);
    std::fs::remove_file(home.live_map()).unwrap();
    assert_eq!(home.open().next_run(range(100, 100)), (true, 8), "the flush made it durable");
}

#[test]
fn without_the_live_map_what_was_flushed_is_there_and_the_rest_is_the_roots_again() {
    let home = Home::new();
    let leaf = home.open();
    write(&leaf, 0, 8, 0x44).unwrap();
    leaf.flush().unwrap();
    write(&leaf, 8, 8, 0x55).unwrap();
    drop(leaf);
    std::fs::remove_file(home.live_map()).unwrap();
    let leaf = home.open();
    assert_eq!(leaf.next_run(range(0, 100)), (true, 8));
    assert!(is_all(&read(&leaf, 0, 8), 0x44));
}

#[test]
fn a_live_map_that_is_not_this_runs_is_not_taken_over() {
    // Boot id, UUID, generation, checksum, and one that is cut short.
    for change in [Some(8), Some(24), Some(40), Some(48), None] {
        let home = Home::new();
        let leaf = home.open();
        write(&leaf, 0, 8, 0x66).unwrap();
        drop(leaf);
        let mut bytes = std::fs::read(home.live_map()).unwrap();
        match change {
            Some(at) => bytes[at] ^= 1,
            None => bytes.truncate(8192),
        }
        std::fs::write(home.live_map(), bytes).unwrap();
        let leaf = home.open();
        assert!(leaf.is_absent(range(0, SECTORS)), "{change:?}");
        assert!(leaf.is_flushed());
    }
}

#[test]
fn a_live_map_of_an_earlier_run_is_stale_once_another_run_was_without_it() {
    let home = Home::new();
    drop(home.open());
    let anonymous = Leaf::open(&home.leaf(), &root(1), &OpenOptions::default()).unwrap();
    write(&anonymous, 0, 8, 0x77).unwrap();
    anonymous.flush().unwrap();
    drop(anonymous);
    assert!(home.live_map().exists());
    assert_eq!(home.open().next_run(range(0, 100)), (true, 8), "by the durable map");
}

#[test]
fn a_second_writer_is_refused_and_readers_share() {
    let home = Home::new();
    let read_only = OpenOptions { live_map: None, read_only: true };
    let leaf = home.open();
    assert!(matches!(home.refusal(&home.options()), LeafError::InUse { .. }));
    assert!(matches!(home.refusal(&read_only), LeafError::InUse { .. }));
    leaf.close().unwrap();
    drop(leaf);
    let before = std::fs::read(home.leaf()).unwrap();
    let one = Leaf::open(&home.leaf(), &root(1), &read_only).unwrap();
    let two = Leaf::open(&home.leaf(), &root(1), &read_only).unwrap();
    assert!(matches!(home.refusal(&home.options()), LeafError::InUse { .. }));
    assert!(write(&one, 0, 1, 1).is_err() && two.write_zeroes(range(0, 1)).is_err());
    two.flush().unwrap();
    two.close().unwrap();
    drop((one, two));
    assert!(std::fs::read(home.leaf()).unwrap() == before, "readers leave no trace");
    home.open();
}

#[test]
fn a_leaf_of_another_root_is_refused_with_both_names() {
    let home = Home::new();
    let error = Leaf::open(&home.leaf(), &root(2), &home.options()).unwrap_err();
    assert!(matches!(error, LeafError::OtherRoot { .. }));
    let text = error.to_string();
    assert!(text.contains("01010101") && text.contains("02020202"), "{text}");
    let renamed = RootIdentity { name: "other".into(), ..root(1) };
    Leaf::open(&home.leaf(), &renamed, &home.options()).unwrap();
}

#[test]
fn a_leaf_is_not_made_over_a_file_or_of_an_impossible_size() {
    let home = Home::new();
    let before = std::fs::read_dir(home.dir.path()).unwrap().count();
    assert!(matches!(create(&home.leaf(), SIZE, &root(1)), Err(LeafError::Create { .. })));
    let other = home.dir.path().join("other.leaf");
    for size in [0, 1, 511, SIZE + 1, 1 << 63, u64::MAX - 511, u64::MAX] {
        let result = create(&other, size, &root(1));
        assert!(matches!(result, Err(LeafError::BadSize { .. })), "{size}: {result:?}");
    }
    let nowhere = home.dir.path().join("missing").join("x.leaf");
    assert!(matches!(create(&nowhere, SIZE, &root(1)), Err(LeafError::Create { .. })));
    assert_eq!(std::fs::read_dir(home.dir.path()).unwrap().count(), before, "nothing is left");
}

#[test]
fn a_file_that_is_cut_short_is_refused() {
    let home = Home::new();
    let len = home.leaf().metadata().unwrap().len();
    File::options().write(true).open(home.leaf()).unwrap().set_len(len - 1).unwrap();
    let error = home.refusal(&home.options());
    assert!(
        matches!(error, LeafError::CutShort { have, need, .. } if (have, need) == (len - 1, len))
    );
}
