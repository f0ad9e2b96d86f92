//! The memory that cached blocks lie in: one mapping, made once, never moved.
//!
//! Owns the mapping, which keeps the file behind it, if there is one. Knows
//! nothing of blocks, slots or who reads and writes them: that two parties
//! never disagree about a piece of it is the business of [`super::access`].
//!
//! Invariant: the mapping starts on a 2 MiB boundary, is a multiple of 2 MiB
//! long and stays readable and writable until the arena is dropped.
#![expect(unsafe_code, reason = "maps and unmaps memory")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use super::hugepages::{self, HUGEPAGE_BYTES};
use super::{CacheError, Hugepages};

/// What the arena's pages turned out to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ArenaPages {
    /// Hugetlb pages of 2 MiB, reserved when the arena was made.
    Hugetlb,
    /// Transparent huge pages: the kernel uses 2 MiB pages where it finds them.
    Transparent,
    /// Pages of the system's ordinary size.
    Ordinary,
}

/// A fixed piece of memory for cached blocks.
#[derive(Debug)]
pub(super) struct Arena {
    start: NonNull<u8>,
    len: usize,
    pages: ArenaPages,
}

// SAFETY: the arena only owns the mapping, which is no thread's in particular;
// it dereferences no pointer itself.
unsafe impl Send for Arena {}
// SAFETY: as above; `&Arena` gives out addresses, never references.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `size_bytes`, rounded up to whole 2 MiB pages, of the kind wished
    /// for. The sentence is a warning for the operator: hugepages were wanted
    /// and there are too few.
    ///
    /// # Errors
    /// [`CacheError::TooFewHugepages`] with [`Hugepages::On`],
    /// [`CacheError::Map`] where the kernel gives no memory at all.
    pub(super) fn map(
        size_bytes: u64,
        hugepages: Hugepages,
    ) -> Result<(Self, Option<String>), CacheError> {
        let map_error = |source: io::Error| CacheError::Map { size_bytes, source };
        let len = usize::try_from(size_bytes)
            .ok()
            .and_then(|bytes| bytes.checked_next_multiple_of(HUGEPAGE_BYTES))
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| map_error(io::ErrorKind::OutOfMemory.into()))?;
        let shortage = match hugepages {
            Hugepages::Off => {
                return Ok((Self::map_ordinary(len).map_err(map_error)?, None));
            }
            Hugepages::Auto | Hugepages::On => match Self::map_hugetlb(len) {
                Ok(arena) => return Ok((arena, None)),
                Err(source) => hugepages::Shortage::describe(len, source),
            },
        };
        match hugepages {
            Hugepages::On => Err(CacheError::TooFewHugepages(shortage)),
            Hugepages::Auto | Hugepages::Off => {
                let arena = Self::map_transparent(len).map_err(map_error)?;
                let instead = match arena.pages {
                    ArenaPages::Transparent => "using transparent huge pages",
                    ArenaPages::Hugetlb | ArenaPages::Ordinary => "using ordinary pages",
                };
                Ok((arena, Some(format!("{shortage}; {instead}"))))
            }
        }
    }

    /// The first byte's address.
    #[inline]
    pub(super) const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes in the arena: a multiple of 2 MiB, at least 2 MiB.
    #[inline]
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// What its pages are.
    pub(super) const fn pages(&self) -> ArenaPages {
        self.pages
    }

    /// Has the kernel make the pages of a part of the arena, whole huge pages, as a
    /// first write to each would (madvise(2), MADV_POPULATE_WRITE). Content is left as
    /// it is.
    ///
    /// # Errors
    /// As madvise(2): the system has no such pages, although they were reserved.
    pub(super) fn populate(&self, part: Range<usize>) -> io::Result<()> {
        if part.start > part.end || part.end > self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = self.as_ptr().wrapping_add(part.start);
        // SAFETY: the part lies in the mapping, whose content the advice leaves alone,
        // also where somebody reads or writes it meanwhile.
        unsafe { madvise(start.cast(), part.len(), Advice::LinuxPopulateWrite) }?;
        Ok(())
    }

    /// The mapping reserves its pages (no MAP_NORESERVE), so a shortage shows
    /// here as ENOMEM and not later as SIGBUS (memfd_create(2), mmap(2)).
    fn map_hugetlb(len: usize) -> io::Result<Self> {
        let memfd = memfd_create(
            "leafblk-cache",
            MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        )?;
        ftruncate(&memfd, len as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no
        // memory that anything else uses.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &memfd,
                0,
            )
        }?;
        Ok(Self { start: non_null(start)?, len, pages: ArenaPages::Hugetlb })
    }

    /// Maps a file of hugetlbfs or tmpfs that has `len` bytes, all of which can
    /// be had (a hugetlbfs mount reserves them here).
    ///
    /// # Errors
    /// As mmap(2).
    pub(super) fn of_file(file: File, len: usize, is_huge: bool) -> io::Result<Self> {
        // An address range that begins on a huge page, then the file in it.
        let place = Self::map_ordinary(len)?;
        // SAFETY: replaces the mapping that `place` has just made and nobody
        // has seen; it owns the range from then on.
        unsafe {
            mmap(
                place.start.as_ptr().cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                &file,
                0,
            )
        }?;
        // SAFETY: the range is exactly this mapping; the advice changes no content.
        let advised = !is_huge
            && hugepages::shared_may_be_transparent()
            && unsafe { madvise(place.start.as_ptr().cast(), len, Advice::LinuxHugepage) }.is_ok();
        let pages = match (is_huge, advised) {
            (true, _) => ArenaPages::Hugetlb,
            (false, true) => ArenaPages::Transparent,
            (false, false) => ArenaPages::Ordinary,
        };
        let mut arena = place;
        arena.pages = pages;
        Ok(arena)
    }

    /// Anonymous memory rather than a memfd: what shared memory may use is a
    /// second setting (shmem_enabled), which most systems leave at never.
    fn map_transparent(len: usize) -> io::Result<Self> {
        let mut arena = Self::map_ordinary(len)?;
        if hugepages::transparent_are_off() {
            return Ok(arena);
        }
        // SAFETY: the range is exactly this mapping; the advice changes no content.
        let advised = unsafe { madvise(arena.start.as_ptr().cast(), len, Advice::LinuxHugepage) };
        if advised.is_ok() {
            arena.pages = ArenaPages::Transparent;
        }
        Ok(arena)
    }

    /// Maps 2 MiB more than needed and gives back what lies before the first
    /// and after the last whole huge page: kernels before 6.7 align nothing.
    fn map_ordinary(len: usize) -> io::Result<Self> {
        let padded = len.checked_add(HUGEPAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no
        // memory that anything else uses.
        let mapped = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                padded,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let before = mapped.cast::<u8>().align_offset(HUGEPAGE_BYTES);
        let start = mapped.cast::<u8>().wrapping_add(before);
        unmap(mapped.cast(), before);
        unmap(start.wrapping_add(len), HUGEPAGE_BYTES - before);
        Ok(Self { start: non_null(start.cast())?, len, pages: ArenaPages::Ordinary })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        unmap(self.start.as_ptr(), self.len);
    }
}

fn non_null(start: *mut c_void) -> io::Result<NonNull<u8>> {
    NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Unmaps a part of a mapping that this file made and nobody uses.
fn unmap(start: *mut u8, len: usize) {
    if len == 0 {
        return;
    }
    // SAFETY: callers pass whole pages of a mapping of their own, to which no
    // reference exists: trimmings, or an arena that is being dropped.
    let unmapped = unsafe { munmap(start.cast(), len) };
    if let Err(error) = unmapped {
        log::error!("{len} bytes of the cache's memory can't be given back: {error}");
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Whether there is a page behind the address (proc_pid_pagemap(5), bit 63).
    pub(in crate::cache) fn is_present(address: *const u8) -> bool {
        let mut entry = [0; 8];
        let offset = (address.addr() / rustix::param::page_size() * entry.len()) as u64;
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        pagemap.read_exact_at(&mut entry, offset).unwrap();
        u64::from_le_bytes(entry) >> 63 == 1
    }

    #[test]
    fn a_part_that_is_populated_has_pages_and_keeps_its_content() {
        let (arena, _) = Arena::map(4 << 20, Hugepages::Off).unwrap();
        let (first, last) = (arena.as_ptr(), arena.as_ptr().wrapping_add((4 << 20) - 1));
        // SAFETY: the arena's first byte, which nobody else uses.
        unsafe { first.write(7) };
        assert!(is_present(first) && !is_present(last));
        arena.populate(0..4 << 20).unwrap();
        // SAFETY: as above.
        assert!(is_present(last) && unsafe { first.read() } == 7);
        assert!(arena.populate(2 << 20..6 << 20).is_err());
    }

    #[test]
    fn an_arena_is_aligned_and_rounded_up_to_huge_pages() {
        for pages in [Hugepages::Off, Hugepages::Auto] {
            let (arena, _) = Arena::map(3 << 20, pages).unwrap();
            assert_eq!(arena.len(), 4 << 20);
            assert_eq!(arena.as_ptr().align_offset(HUGEPAGE_BYTES), 0);
        }
    }

    #[test]
    fn on_gives_hugetlb_pages_or_an_error_that_says_why() {
        // Which of the two depends on the system's free pages; both are checked.
        match Arena::map(2 << 20, Hugepages::On) {
            Ok((arena, warning)) => {
                assert_eq!((arena.pages(), warning), (ArenaPages::Hugetlb, None));
                assert_eq!(arena.len(), 2 << 20);
            }
            Err(error) => {
                assert!(matches!(error, CacheError::TooFewHugepages(_)), "{error}");
                assert!(error.to_string().contains("--hugepages auto"), "{error}");
            }
        }
    }

    #[test]
    fn off_means_ordinary_pages_without_a_word() {
        let (arena, warning) = Arena::map(2 << 20, Hugepages::Off).unwrap();
        assert_eq!(arena.pages(), ArenaPages::Ordinary);
        assert_eq!(warning, None);
    }

    #[test]
    fn too_few_hugepages_are_a_warning_with_auto_and_an_error_with_on() {
        // 1 TiB: half a million pages, which no machine has lying about. It is
        // only address space until touched.
        let size_bytes = 1 << 40;
        let error = Arena::map(size_bytes, Hugepages::On).unwrap_err().to_string();
        assert!(error.contains("of 524288 hugepages"), "{error}");
        assert!(error.contains("sysctl vm.nr_hugepages="), "{error}");
        match Arena::map(size_bytes, Hugepages::Auto) {
            Ok((arena, warning)) => {
                let warning = warning.unwrap();
                assert!(warning.contains("sysctl vm.nr_hugepages="), "{warning}");
                // Kernels may be built without.
                let has_transparent =
                    std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
                let (pages, instead) = if has_transparent {
                    (ArenaPages::Transparent, "; using transparent huge pages")
                } else {
                    (ArenaPages::Ordinary, "; using ordinary pages")
                };
                assert!(warning.ends_with(instead), "{warning}");
                assert_eq!(arena.pages(), pages);
            }
            // A machine that doesn't overcommit refuses: then with its own error.
            Err(error) => assert!(matches!(error, CacheError::Map { .. }), "{error}"),
        }
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        for size_bytes in [0, u64::MAX] {
            assert!(matches!(Arena::map(size_bytes, Hugepages::Auto), Err(CacheError::Map { .. })));
        }
    }
}
