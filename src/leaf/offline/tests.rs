//! Locks that hold for the file that the path names, and live maps that are
//! found whatever their name.

use super::*;
use crate::leaf::{OpenOptions, create};
use crate::root::RootIdentity;

const SIZE: u64 = 40 << 20;

fn root() -> RootIdentity {
    RootIdentity { len_bytes: 1 << 20, fingerprint: [1; 32], name: "base".into() }
}

fn home() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.leaf");
    create(&path, SIZE, &root()).unwrap();
    (dir, path)
}

fn range(start: u64, count: u64) -> SectorRange {
    SectorRange::new(Sector(start), count).unwrap()
}

#[test]
fn readers_share_a_leaf_and_a_writer_has_it_alone() {
    let (_dir, path) = home();
    let first = lock(&path, false).unwrap();
    let second = lock(&path, false).unwrap();
    assert!(matches!(lock(&path, true), Err(LeafError::InUse { .. })));
    drop((first, second));
    let writer = lock(&path, true).unwrap();
    assert!(matches!(lock(&path, false), Err(LeafError::InUse { .. })));
    let copy = clone(&path, &writer).unwrap();
    drop(writer);
    assert!(matches!(lock(&path, false), Err(LeafError::InUse { .. })), "a copy keeps the lock");
    drop(copy);
    lock(&path, false).unwrap();
}

#[test]
fn a_missing_leaf_and_one_that_is_no_file_are_told_apart() {
    let (dir, path) = home();
    assert!(matches!(lock(dir.path(), false), Err(LeafError::NotALeaf { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(lock(&path, false), Err(LeafError::Open { .. })));
}

#[test]
fn a_locked_file_keeps_its_name_against_tools_that_replace_it() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.leaf");
    std::fs::write(&path, b"a").unwrap();
    let named = || std::fs::metadata(&path).unwrap().ino();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let tool = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // As a tool: the old file locked until the new one has its name.
                if let Ok(_old) = lock(&path, true) {
                    let new = dir.path().join("new");
                    std::fs::write(&new, b"b").unwrap();
                    std::fs::rename(&new, &path).unwrap();
                }
            }
        });
        let mut locked = 0;
        let mut lost = 0;
        while locked < 2000 && lost == 0 && !tool.is_finished() {
            match lock(&path, true) {
                Ok(file) => {
                    lost += u32::from(file.metadata().unwrap().ino() != named());
                    locked += 1;
                }
                Err(e) => lost += u32::from(!matches!(e, LeafError::InUse { .. })),
            }
        }
        // Not asserted before: the other thread would run on.
        stop.store(true, Ordering::Relaxed);
        assert_eq!((locked, lost), (2000, 0));
    });
}

#[test]
fn a_live_map_is_found_by_what_it_says_not_by_its_name() {
    let (dir, path) = home();
    let run = dir.path().join("run");
    let look = |path: &Path| {
        let file = File::open(path).unwrap();
        let (header, alone) = header(path, &file).unwrap();
        find_live_map(&run, path, &header, alone).unwrap()
    };
    assert_eq!(look(&path), None, "no directory");
    std::fs::create_dir(&run).unwrap();
    let map = run.join("some.vm.map");
    let options = OpenOptions { live_map: Some(map.clone()), read_only: false };
    let leaf = Leaf::open(&path, &root(), &options).unwrap();
    leaf.write_bytes(range(3, 1), &[7; 512]).unwrap();
    drop(leaf);
    // Other files of a runtime directory, some of the right length.
    std::fs::write(run.join("short.map"), b"x").unwrap();
    let other = File::create(run.join("other.map")).unwrap();
    other.set_len(map.metadata().unwrap().len()).unwrap();
    std::fs::copy(&map, run.join("copy.sock")).unwrap();
    std::os::unix::fs::symlink(run.join("copy.sock"), run.join("link.map")).unwrap();
    assert_eq!(look(&path), Some(map.clone()));
    // Another leaf, of the same size on the same root.
    let other = dir.path().join("other.leaf");
    create(&other, SIZE, &root()).unwrap();
    assert_eq!(look(&other), None);
    // Opened once more, without it: it never fits again.
    Leaf::open(&path, &root(), &OpenOptions::default()).unwrap();
    assert_eq!(look(&path), None);
}

#[test]
fn bytes_that_were_written_are_held_and_read_back() {
    let (_dir, path) = home();
    let leaf = Leaf::open(&path, &root(), &OpenOptions::default()).unwrap();
    leaf.write_bytes(range(10, 3), &[9; 3 * 512]).unwrap();
    assert_eq!(leaf.next_run(range(10, 90)), (true, 3));
    let mut bytes = [0; 512];
    leaf.read_bytes(Sector(12), &mut bytes).unwrap();
    assert_eq!(bytes, [9; 512]);
    assert!(leaf.write_bytes(range(0, 2), &bytes).is_err(), "a sector's bytes for two");
    assert!(leaf.write_bytes(range(SIZE / 512, 1), &bytes).is_err(), "past the end");
    assert_eq!(leaf.present_sectors(), 3);
}

#[test]
fn each_copy_of_the_header_is_judged_by_itself() {
    let (_dir, path) = home();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    assert!(header_copies(&file).unwrap().iter().all(Result::is_ok));
    file.write_all_at(b"?", 4096 + 700).unwrap();
    let copies = header_copies(&file).unwrap();
    assert!(copies[0].is_ok());
    assert_eq!(copies[1], Err(HeaderError::Damaged));
    file.set_len(100).unwrap();
    assert_eq!(
        header_copies(&file).unwrap(),
        [Err(HeaderError::Damaged), Err(HeaderError::Damaged)]
    );
}
