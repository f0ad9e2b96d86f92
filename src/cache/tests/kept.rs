//! Caches that outlive their process: what is taken over, and what is not.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::*;
use crate::cache::directory::HEADER_LEN;

const BLOCK: u32 = 4096;
const KEY: RootKey = RootKey([7; 16]);

fn config() -> CacheConfig {
    CacheConfig {
        size_bytes: 2 << 20,
        block_bytes: BLOCK,
        hugepages: Hugepages::Off,
        readers_max: 1,
    }
}

/// A runtime directory whose cache is removed at the end.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> Arc<Cache> {
        let (cache, warning) = Cache::keeping(&config(), self.0.path()).unwrap();
        assert_eq!(warning, None);
        cache
    }

    /// The files, which are in /dev/shm or in the directory itself.
    fn file(&self, suffix: &str) -> PathBuf {
        use sha2::{Digest, Sha256};
        let path = self.0.path().canonicalize().unwrap();
        let hash = Sha256::digest(path.as_os_str().as_encoded_bytes());
        let name: String = hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("leafblk-{name}.{suffix}");
        let places = [path.join(&name), Path::new("/dev/shm").join(&name)];
        places.into_iter().find(|path| path.exists()).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        discard(self.0.path());
    }
}

fn fill(root: &RootCache, block: u64, byte: u8) {
    let mut ticket = begin(root, block);
    ticket.buffer_mut().fill(byte);
    ticket.finish(FillOutcome::Data, &mut Vec::new());
}

/// The byte that the tests' root has in a block.
fn content(block: u64) -> u8 {
    u8::try_from(block % 250).unwrap() + 1
}

/// The byte that a cached block is full of.
fn held(cache: &Arc<Cache>, root: &RootCache, block: u64) -> Option<u8> {
    let reader = cache.reader().unwrap();
    match root.lookup(&reader, block) {
        Lookup::Hit(found) => {
            assert!(found.iter().all(|byte| *byte == found[0]));
            Some(found[0])
        }
        Lookup::Zero => Some(0),
        Lookup::Miss => None,
    }
}

#[test]
fn a_later_process_finds_the_blocks_of_the_same_root_and_of_no_other() {
    let place = Place::new();
    let cache = place.open();
    let root = cache.add_root_as(800, Some(KEY)).unwrap();
    let unnamed = cache.add_root(800).unwrap();
    (0..90).for_each(|block| fill(&root, block, content(block)));
    fill(&unnamed, 3, 0x77);
    drop((root, unnamed, cache));

    let cache = place.open();
    let other = cache.add_root_as(800, Some(RootKey([8; 16]))).unwrap();
    assert!((0..100).all(|block| held(&cache, &other, block).is_none()));
    let root = cache.add_root_as(800, Some(KEY)).unwrap();
    assert!((0..90).all(|block| held(&cache, &root, block) == Some(content(block))));
    assert_eq!(held(&cache, &root, 90), None);
    assert_eq!(cache.stats().kept, 90);
    let again = cache.add_root_as(800, Some(KEY)).unwrap();
    assert_eq!(held(&cache, &again, 0), None, "each slot has one owner");
}

#[test]
fn evictions_and_fills_of_a_taken_over_cache_keep_every_entry_right() {
    let place = Place::new();
    for life in 0..6u64 {
        let cache = place.open();
        let root = cache.add_root_as(8 * 3000, Some(KEY)).unwrap();
        let mut hits = 0;
        for block in 0..3000 {
            if let Some(byte) = held(&cache, &root, block) {
                assert_eq!(byte, content(block), "block {block} in life {life}");
                hits += 1;
            }
        }
        assert_eq!(hits, cache.stats().kept);
        assert!(life == 0 || hits > 400, "only {hits} of 512 slots are warm");
        // More than there are slots, other ones each time.
        for block in (life * 300..life * 300 + 700).map(|block| block % 3000) {
            if held(&cache, &root, block).is_none() {
                fill(&root, block, content(block));
            }
        }
    }
}

#[test]
fn a_fill_that_was_under_way_leaves_nothing() {
    let place = Place::new();
    let cache = place.open();
    let root = cache.add_root_as(800, Some(KEY)).unwrap();
    fill(&root, 0, 1);
    let ticket = begin(&root, 1);
    // As a kill would: nothing is finished or dropped, only the lock goes.
    std::mem::forget(ticket);
    release(&cache);
    std::mem::forget((root, cache));
    let cache = place.open();
    let root = cache.add_root_as(800, Some(KEY)).unwrap();
    assert_eq!((held(&cache, &root, 0), held(&cache, &root, 1)), (Some(1), None));
}

/// Lets the directory's lock go, as the end of a process does.
fn release(cache: &Cache) {
    #[expect(unsafe_code, reason = "the cache owns the descriptor")]
    // SAFETY: it is open as long as the cache.
    let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(cache.lifetime_fd().unwrap()) };
    rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock).unwrap();
}

#[test]
fn what_does_not_fit_is_made_anew() {
    let warm = |change: &dyn Fn(&Place), other: &CacheConfig| {
        let place = Place::new();
        let cache = place.open();
        let root = cache.add_root_as(800, Some(KEY)).unwrap();
        fill(&root, 0, 1);
        drop((root, cache));
        change(&place);
        let (cache, _) = Cache::keeping(other, place.0.path()).unwrap();
        let _root = cache.add_root_as(800, Some(KEY)).unwrap();
        cache.stats().kept
    };
    let write = |suffix: &'static str, at: u64| {
        move |place: &Place| {
            let file = File::options().write(true).open(place.file(suffix)).unwrap();
            file.write_all_at(&[0x5a], at).unwrap();
        }
    };
    assert_eq!(warm(&|_| {}, &config()), 1);
    assert_eq!(warm(&|_| {}, &CacheConfig { size_bytes: 4 << 20, ..config() }), 0);
    assert_eq!(warm(&|_| {}, &CacheConfig { block_bytes: 8192, ..config() }), 0);
    // Another format, another boot, another layout; a damaged entry.
    for at in [0, 10, 46] {
        assert_eq!(warm(&write("slots", at), &config()), 0, "header byte {at}");
    }
    assert_eq!(warm(&write("slots", HEADER_LEN as u64 + 5), &config()), 0);
    // Another arena in the same place; a directory that is cut short.
    let replaced = |place: &Place| {
        let path = place.file("cache");
        fs::rename(&path, path.with_extension("away")).unwrap();
        fs::copy(path.with_extension("away"), &path).unwrap();
        fs::remove_file(path.with_extension("away")).unwrap();
    };
    assert_eq!(warm(&replaced, &config()), 0);
    let cut = |suffix: &'static str| {
        move |place: &Place| {
            File::options().write(true).open(place.file(suffix)).unwrap().set_len(5000).unwrap();
        }
    };
    assert_eq!(warm(&cut("slots"), &config()), 0);
    assert_eq!(warm(&cut("cache"), &config()), 0);
    // Files that others may have written to.
    let opened = |place: &Place| {
        fs::set_permissions(place.file("cache"), fs::Permissions::from_mode(0o666)).unwrap();
    };
    let place = Place::new();
    drop(place.open());
    opened(&place);
    let path = place.file("cache");
    let (cache, why) = Cache::keeping(&config(), place.0.path()).unwrap();
    assert!(why.unwrap().contains("won't outlive"), "a file of mode 0666 is not ours to remove");
    assert_eq!(cache.lifetime_fd(), None);
    fs::remove_file(path).unwrap();
}

#[test]
fn one_process_at_a_time_has_a_kept_cache_and_the_files_are_private() {
    let place = Place::new();
    let first = place.open();
    for suffix in ["slots", "cache"] {
        let mode = fs::metadata(place.file(suffix)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let (second, why) = Cache::keeping(&config(), place.0.path()).unwrap();
    assert!(why.unwrap().contains("in use by another leafblk"));
    assert_eq!(second.lifetime_fd(), None);
    assert_eq!(discard(place.0.path()), 0, "what is in use stays");
    drop(first);
    assert!(discard(place.0.path()) > 2 << 20);
    assert_eq!(discard(place.0.path()), 0);
}
