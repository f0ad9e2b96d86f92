use std::fs::File;

use assert_no_alloc::{assert_no_alloc, violation_count};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rustix::fs::{MemfdFlags, fcntl_get_seals, ftruncate, memfd_create};

use super::*;

fn memory_file(len: u64) -> File {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    File::from(fd)
}

fn map(specs: Vec<RegionSpec>) -> Result<GuestMemory, GuestMemoryError> {
    GuestMemory::map(specs, &Account::new())
}

fn spec(guest_addr: u64, user_addr: u64, size: u64) -> RegionSpec {
    RegionSpec { guest_addr, size, user_addr, mmap_offset: 0, file: memory_file(size) }
}

#[test]
fn addresses_translate_inside_a_region_only() {
    let memory =
        map(vec![spec(0, 0x7000_0000, 0x2000), spec(0x2000, 0x9000_0000, 0x1000)]).unwrap();
    assert!(memory.translate(0, 0x2000).is_some());
    assert!(memory.translate(0x1fff, 2).is_none(), "spans two regions");
    assert_eq!(memory.translate_some(0x1fff, 2).unwrap().1, 1);
    assert!(memory.translate(0x3000, 1).is_none());
    assert!(memory.translate(u64::MAX, 2).is_none());
    assert!(memory.translate_some(0x3000, 1).is_none());
    assert!(memory.translate_user(0x9000_0fff, 1).is_some());
    assert!(memory.translate_user(0x9000_0fff, 2).is_none());
}

/// As many regions as there may be, in gaps of a page each; added in any order.
fn all_regions() -> GuestMemory {
    let file = memory_file(0x2000);
    let mut numbers: Vec<u64> = (0..REGIONS_MAX as u64).collect();
    numbers.shuffle(&mut StdRng::seed_from_u64(1));
    let spec = |i: &u64| RegionSpec {
        guest_addr: i * 0x3000,
        size: 0x2000,
        user_addr: (1 << 40) - i * 0x2000,
        mmap_offset: 0,
        file: file.try_clone().unwrap(),
    };
    map(numbers.iter().map(spec).collect()).unwrap()
}

#[test]
fn each_address_of_hundreds_of_regions_is_found_and_none_between_them() {
    let memory = all_regions();
    let base = |i: u64| memory.translate(i * 0x3000, 0x2000).unwrap() as u64;
    let bases: Vec<u64> = (0..REGIONS_MAX as u64).map(base).collect();
    let mut rng = StdRng::seed_from_u64(2);
    for _ in 0..100_000 {
        let region = rng.random_range(0..REGIONS_MAX);
        let (addr, len) = (rng.random_range(0..0x3000), rng.random_range(0..0x3000));
        let at = region as u64 * 0x3000 + addr;
        let room = 0x2000u64.saturating_sub(addr);
        let host = (room > 0).then_some(bases[region] + addr);
        let found = memory.translate(at, len).map(|ptr| ptr as u64);
        assert_eq!(found, host.filter(|_| len <= room), "{len:#x} at {at:#x}");
        let some = memory.translate_some(at, len).map(|(ptr, here)| (ptr as u64, here));
        assert_eq!(some, host.map(|host| (host, len.min(room))), "{len:#x} at {at:#x}");
        let user = (1 << 40) - region as u64 * 0x2000 + (addr & 0x1fff);
        let found = memory.translate_user(user, 1).unwrap() as u64;
        assert_eq!(found, bases[region] + (addr & 0x1fff));
    }
    assert!(memory.translate(REGIONS_MAX as u64 * 0x3000, 1).is_none());
    assert!(memory.translate(u64::MAX, 1).is_none());
}

#[test]
fn a_translation_allocates_nothing() {
    let memory = all_regions();
    let before = violation_count();
    assert_no_alloc(|| {
        for i in 0..REGIONS_MAX as u64 {
            let at = (i * 91) % REGIONS_MAX as u64 * 0x3000;
            std::hint::black_box(memory.translate(at, 16));
            std::hint::black_box(memory.translate(at + 0x2000, 16));
        }
    });
    assert_eq!(violation_count(), before);
}

#[test]
fn one_region_more_than_there_may_be_is_refused_and_one_less_makes_room() {
    let memory = all_regions();
    let more = || spec(1 << 50, 1 << 50, 0x1000);
    let account = Account::new();
    assert!(matches!(memory.with_region(more(), &account), Err(GuestMemoryError::TooMany)));
    let fewer = memory.without_region(7 * 0x3000, (1 << 40) - 7 * 0x2000, 0x2000).unwrap();
    assert!(fewer.translate(7 * 0x3000, 1).is_none());
    let again = fewer.with_region(more(), &account).unwrap();
    assert!(again.translate(1 << 50, 0x1000).is_some());
    // What was mapped stays where it is.
    assert!(again.has_all_of(&fewer) && !again.has_all_of(&memory));
    assert_eq!(again.translate(8 * 0x3000, 1), memory.translate(8 * 0x3000, 1));
}

#[test]
fn overlapping_regions_are_refused() {
    let guest = map(vec![spec(0, 0x10_0000, 0x2000), spec(0x1000, 0x20_0000, 0x1000)]);
    assert!(matches!(guest, Err(GuestMemoryError::Overlap(_))));
    let user = map(vec![spec(0, 0x10_0000, 0x2000), spec(0x8000, 0x10_1000, 0x1000)]);
    assert!(matches!(user, Err(GuestMemoryError::Overlap(_))));
}

#[test]
fn a_region_longer_than_its_file_is_refused() {
    let mut long = spec(0, 0x1000, 0x1000);
    long.size = 0x2000;
    assert!(matches!(map(vec![long]), Err(GuestMemoryError::FileTooShort { .. })));
    let mut empty = spec(0, 0x1000, 0x1000);
    empty.size = 0;
    assert!(matches!(map(vec![empty]), Err(GuestMemoryError::BadRange)));
    let mut wraps = spec(u64::MAX - 0xfff, 0x1000, 0x1000);
    wraps.size = 0x1001;
    assert!(map(vec![wraps]).is_err());
}

#[test]
fn regions_come_and_go_one_at_a_time() {
    let memory = map(vec![spec(0, 0x10_0000, 0x1000)]).unwrap();
    let more = memory.with_region(spec(0x1000, 0x20_0000, 0x1000), &Account::new()).unwrap();
    assert_eq!(more.translate(0, 1), memory.translate(0, 1), "the region is shared");
    assert!(more.without_region(0x1000, 0x20_0000, 0x2000).is_err());
    let fewer = more.without_region(0x1000, 0x20_0000, 0x1000).unwrap();
    assert!(fewer.translate(0x1000, 1).is_none());
}

#[test]
#[expect(unsafe_code, reason = "touches the mapping as the data path does")]
fn memory_that_is_truncated_later_marks_the_region_and_kills_nobody() {
    let file = memory_file(0x4000);
    let truncated = RegionSpec {
        guest_addr: 0,
        size: 0x4000,
        user_addr: 0x10_0000,
        mmap_offset: 0,
        file: file.try_clone().unwrap(),
    };
    let memory = map(vec![truncated]).unwrap();
    let last = memory.translate(0x3000, 1).unwrap();
    ftruncate(&file, 0x1000).unwrap();
    assert!(!memory.is_faulted());
    // SAFETY: the address is inside the mapping; the guard catches the fault.
    unsafe { last.write_volatile(7) };
    assert!(memory.is_faulted() && memory.is_faulted());
    // A table that was made of it knows, and one of others does not.
    let more = memory.with_region(spec(1 << 30, 1 << 30, 0x1000), &Account::new()).unwrap();
    assert!(more.is_faulted());
    assert!(!more.without_region(0, 0x10_0000, 0x4000).unwrap().is_faulted());
}

#[test]
fn memory_that_can_be_sealed_is_sealed_against_shrinking() {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, 0x2000).unwrap();
    let file = File::from(fd);
    let spec = RegionSpec {
        guest_addr: 0,
        size: 0x2000,
        user_addr: 0,
        mmap_offset: 0,
        file: file.try_clone().unwrap(),
    };
    let _memory = map(vec![spec]).unwrap();
    assert!(ftruncate(&file, 0).is_err());
}

/// A file on a file system that keeps files on a disk.
fn file_on_disk(len: u64) -> File {
    let on_disk = |dir: &str| {
        let file = tempfile::tempfile_in(dir).ok()?;
        (fcntl_get_seals(&file).is_err()).then_some(file)
    };
    let dirs = [env!("CARGO_MANIFEST_DIR"), "/var/tmp", "/tmp"];
    let file = dirs.into_iter().find_map(on_disk).expect("one of these is on a disk");
    file.set_len(len).unwrap();
    file
}

#[test]
fn memory_on_a_disk_is_refused() {
    let mut on_disk = spec(0, 0x10_0000, 0x2000);
    on_disk.file = file_on_disk(0x2000);
    assert!(matches!(map(vec![on_disk]), Err(GuestMemoryError::NotMemory)));
}

#[test]
fn files_in_dev_shm_and_of_hugepages_are_taken() {
    let mut shm = spec(0, 0x10_0000, 0x2000);
    shm.file = tempfile::tempfile_in("/dev/shm").unwrap();
    shm.file.set_len(0x2000).unwrap();
    let memory = map(vec![shm]).unwrap();
    let mut huge = spec(1 << 30, 1 << 40, 2 << 20);
    let fd = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
    // Pages are not needed for it: nothing is touched.
    huge.file = File::from(fd.unwrap());
    huge.file.set_len(2 << 20).unwrap();
    memory.with_region(huge, &Account::new()).unwrap();
}

#[test]
fn a_table_has_a_largest_size_however_many_regions_it_is_made_of() {
    let account = Account::new();
    let largest = table_bytes_max() & !0xfff;
    let region = |i: u64, size| spec(i << 56, i << 56, size);
    assert!(matches!(
        GuestMemory::map(vec![region(0, largest + 0x2000)], &account),
        Err(GuestMemoryError::TooLarge { .. })
    ));
    let memory = GuestMemory::map(vec![region(0, largest)], &account).unwrap();
    assert!(matches!(
        memory.with_region(region(1, 0x2000), &account),
        Err(GuestMemoryError::TooLarge { .. })
    ));
    // The next table replaces this one: both are mapped for a moment.
    GuestMemory::map(vec![region(0, largest)], &account).unwrap();
}
