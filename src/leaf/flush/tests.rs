//! Flushes that fail, that race with writers, and what is found afterwards.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tempfile::TempDir;

use crate::faulty_storage::{Faults, FaultyFile};
use crate::leaf::{Layout, Leaf, LeafError, OpenOptions, SIZE_MAX, create, create_as};
use crate::root::RootIdentity;
use crate::units::{Sector, SectorRange};

/// A leaf, its directory, and a live map that outlives it.
struct Place {
    dir: TempDir,
    root: RootIdentity,
}

impl Place {
    fn new(virtual_size: u64) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap(), root: RootIdentity::default() };
        create_as(&place.leaf(), Layout::Direct, virtual_size, &place.root).unwrap();
        place
    }

    fn leaf(&self) -> PathBuf {
        self.dir.path().join("web1.leaf")
    }

    fn options(&self, read_only: bool) -> OpenOptions {
        OpenOptions { live_map: Some(self.dir.path().join("web1.map")), read_only }
    }

    fn open(&self, read_only: bool) -> Leaf {
        Leaf::open(&self.leaf(), &self.root, &self.options(read_only)).unwrap()
    }

    fn open_faulty(&self, faults: &Arc<Faults>) -> Leaf {
        let storage = Box::new(FaultyFile::open(&self.leaf(), faults));
        Leaf::open_storage(&self.leaf(), storage, &self.root, &self.options(false)).unwrap()
    }
}

fn range(start: u64, count: u64) -> SectorRange {
    SectorRange::new(Sector(start), count).unwrap()
}

/// What a leaf is like after the failure, and after it was opened again.
fn assert_loses_only_what_was_not_flushed(fail: impl FnOnce(&Faults, &Leaf)) {
    let place = Place::new(1 << 20);
    let faults = Arc::<Faults>::default();
    let leaf = place.open_faulty(&faults);
    leaf.write_zeroes(range(0, 8)).unwrap();
    leaf.flush().unwrap();
    leaf.write_zeroes(range(8, 8)).unwrap();
    fail(&faults, &leaf);
    assert!(matches!(leaf.flush(), Err(LeafError::Poisoned { .. })));
    assert!(matches!(leaf.close(), Err(LeafError::Poisoned { .. })));
    drop(leaf);

    let leaf = place.open(false);
    assert_eq!(leaf.next_run(range(0, 16)), (true, 8), "what was flushed stays");
    assert!(leaf.is_absent(range(8, 8)), "what was lost is the root's again");
    leaf.close().unwrap();
}

#[test]
fn writes_that_a_failed_sync_lost_are_not_taken_over_as_zeros() {
    assert_loses_only_what_was_not_flushed(|faults, leaf| {
        faults.set(&faults.sync, libc::EIO);
        leaf.flush().unwrap_err();
        faults.set(&faults.sync, 0);
    });
}

#[test]
fn a_write_back_that_failed_for_whatever_reason_is_a_failed_sync() {
    // The last three are also what a kernel without the call answers.
    let some = [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::ESTALE, libc::EROFS, libc::ETIMEDOUT];
    for errno in some.into_iter().chain([libc::EINVAL, libc::EOPNOTSUPP, libc::EPERM]) {
        assert_loses_only_what_was_not_flushed(|faults, leaf| {
            faults.set(&faults.write_back, errno);
            leaf.start_write_back().unwrap_err();
            // The kernel has told it once: the next sync succeeds.
            faults.set(&faults.write_back, 0);
        });
    }
}

#[test]
fn a_write_back_that_is_not_to_be_had_does_no_harm() {
    let place = Place::new(1 << 20);
    let faults = Arc::<Faults>::default();
    faults.no_write_back.store(true, Ordering::SeqCst);
    let leaf = place.open_faulty(&faults);
    leaf.write_zeroes(range(0, 8)).unwrap();
    leaf.start_write_back().unwrap();
    leaf.flush().unwrap();
    leaf.close().unwrap();
}

/// The map page of the first sectors, as it is in the file.
fn durable_bits(place: &Place) -> u8 {
    use std::os::unix::fs::FileExt;
    let mut byte = [0];
    File::open(place.leaf()).unwrap().read_exact_at(&mut byte, 8192).unwrap();
    byte[0]
}

#[test]
fn a_flush_is_no_success_where_write_back_beside_it_took_the_error() {
    // In the sync of the data, or of the map.
    for at in [0, 1] {
        let place = Place::new(1 << 20);
        let faults = Arc::<Faults>::default();
        let leaf = Arc::new(place.open_faulty(&faults));
        leaf.write_zeroes(range(0, 8)).unwrap();
        let (weak, first) = (Arc::downgrade(&leaf), faults.syncs());
        let hook = move |count: usize| {
            if count == first + at {
                // The kernel tells it here, and the sync then succeeds.
                weak.upgrade().unwrap().start_write_back().unwrap_err();
            }
        };
        assert!(faults.during_sync.set(Box::new(hook)).is_ok());
        faults.set(&faults.write_back, libc::EIO);
        assert!(matches!(leaf.flush(), Err(LeafError::Poisoned { .. })));
        assert!(matches!(leaf.flush(), Err(LeafError::Poisoned { .. })), "and stays so");
        assert_eq!(durable_bits(&place) != 0, at == 1, "no bit without its data");
    }
}

#[test]
fn a_flush_waits_for_the_answer_of_a_write_back_that_began_before_its_sync_ended() {
    let place = Place::new(1 << 20);
    let faults = Arc::<Faults>::default();
    let leaf = place.open_faulty(&faults);
    leaf.write_zeroes(range(0, 8)).unwrap();
    let before = faults.synced();
    let (begun, has_begun) = std::sync::mpsc::sync_channel(1);
    let begun_in_sync = std::sync::Mutex::new(has_begun);
    // The sync ends only after the write-back has begun, and the write-back has
    // its answer only after the sync has ended.
    let weak = Arc::downgrade(&faults);
    let write_back = move || {
        begun.send(()).unwrap();
        let faults = weak.upgrade().unwrap();
        while faults.synced() == before {
            std::thread::yield_now();
        }
    };
    let first = faults.syncs();
    let sync = move |count: usize| {
        if count == first {
            begun_in_sync.lock().unwrap().recv().unwrap();
        }
    };
    assert!(faults.during_write_back.set(Box::new(write_back)).is_ok());
    assert!(faults.during_sync.set(Box::new(sync)).is_ok());
    faults.set(&faults.write_back, libc::ENOSPC);
    std::thread::scope(|scope| {
        scope.spawn(|| leaf.start_write_back().unwrap_err());
        assert!(matches!(leaf.flush(), Err(LeafError::Poisoned { .. })));
    });
    assert_eq!(durable_bits(&place), 0, "no bit without its data");
}

#[test]
fn a_flush_ends_although_every_map_page_changes_while_it_syncs() {
    // 1500 map pages: two rounds.
    const PAGES: u64 = 1500;
    const PAGE_SECTORS: u64 = 32768;
    let place = Place::new(PAGES * PAGE_SECTORS * 512);
    let faults = Arc::<Faults>::default();
    let leaf = Arc::new(place.open_faulty(&faults));
    let touch_all = |leaf: &Leaf, sector: u64| {
        for page in 0..PAGES {
            leaf.mark(range(page * PAGE_SECTORS + sector, 1)).unwrap();
        }
    };
    touch_all(&leaf, 0);
    let before = faults.syncs();
    let weak: Weak<Leaf> = Arc::downgrade(&leaf);
    let hook = move |count: usize| {
        // The writer gives up in the end, so that a flush that doesn't fails
        // below rather than hangs.
        if let Some(leaf) = weak.upgrade()
            && count < 30
        {
            touch_all(&leaf, 1 + count as u64);
        }
    };
    assert!(faults.during_sync.set(Box::new(hook)).is_ok());
    leaf.flush().unwrap();
    let syncs = faults.syncs() - before;
    assert!(syncs <= 4, "two rounds of two syncs, not {syncs}");
    assert!(!leaf.is_flushed(), "what came meanwhile wants a flush of its own");
}

#[test]
fn a_round_without_pages_after_a_full_one_syncs_nothing() {
    const PAGE_SECTORS: u64 = 32768;
    let place = Place::new(2048 * PAGE_SECTORS * 512);
    let faults = Arc::<Faults>::default();
    let leaf = place.open_faulty(&faults);
    for page in 0..1000 {
        leaf.mark(range(page * PAGE_SECTORS, 1)).unwrap();
    }
    let before = faults.syncs();
    leaf.flush().unwrap();
    assert_eq!(faults.syncs() - before, 2);
    drop(leaf);
    // The durable map has them all.
    std::fs::remove_file(place.dir.path().join("web1.map")).unwrap();
    assert_eq!(place.open(false).present_sectors(), 1000);
}

#[test]
fn a_reader_after_a_crash_sees_what_was_acknowledged() {
    let place = Place::new(1 << 20);
    let leaf = place.open(false);
    leaf.write_zeroes(range(3, 4)).unwrap();
    drop(leaf); // without close: as a kill

    let reader = place.open(true);
    assert_eq!(reader.next_run(range(3, 9)), (true, 4));
    reader.close().unwrap();
    drop(reader);
    assert_eq!(place.open(false).next_run(range(3, 9)), (true, 4), "a reader changes nothing");
}

#[test]
fn a_write_past_the_end_is_refused_and_an_empty_one_is_nothing() {
    let place = Place::new(1 << 20);
    let leaf = place.open(false);
    for past_the_end in [range(2048, 1), range(2047, 2), range(1 << 50, 1)] {
        assert!(matches!(leaf.write_zeroes(past_the_end), Err(LeafError::Io { .. })));
    }
    leaf.write_zeroes(range(7, 0)).unwrap();
    assert_eq!(leaf.present_sectors(), 0);
    assert!(leaf.is_flushed());
}

#[test]
fn leaves_are_created_beside_what_a_killed_creation_left() {
    let dir = tempfile::tempdir().unwrap();
    let leftover = dir.path().join(".web1.leaf.0f0e0d0c0b0a09080706050403020100.new");
    std::fs::write(&leftover, "half made").unwrap();
    create(&dir.path().join("web1.leaf"), 1 << 20, &RootIdentity::default()).unwrap();
    assert!(leftover.exists(), "another creation's file is not ours to remove");
    let names = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 2, "and ours is gone");
}

#[test]
fn a_size_that_no_memory_could_hold_the_map_of_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for size in [0, 100, SIZE_MAX + 512, !511] {
        let result = create(&dir.path().join("web1.leaf"), size, &RootIdentity::default());
        assert!(matches!(result, Err(LeafError::BadSize { .. })));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
