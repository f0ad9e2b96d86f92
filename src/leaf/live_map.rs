//! The live presence map: one bit a sector, in shared memory.
//!
//! A mapping of a tmpfs file, so that it outlives the daemon but not the
//! machine; its first page says to whom it belongs. Lock-free: bits are only
//! ever set.
//!
//! Each 4 KiB map page covers 32768 sectors (16 MiB of disk). Reading a hole
//! of a tmpfs mapping allocates a page, so a *summary* in ordinary memory says
//! which map pages have anything in them: an idle VM costs nothing, and a root
//! read costs one look at the summary. Pages are allocated by fallocate(2)
//! before they are touched, so a full tmpfs is an error and never a SIGBUS.
//!
//! Order: page allocated, summary set, bits set (Release), page marked
//! changed (Release). A flush clears the mark, then copies the page (Acquire):
//! it may see a bit without its mark, never a cleared mark without the bit.
//!
//! A map can grow while it is used: the mapping has room for the largest disk
//! that the leaf may become, which is address space and nothing else.

mod aside;
mod leaf_path;
pub(super) mod leftovers;
mod owner;
mod pages;
pub(super) mod place;
pub(super) mod table;
#[cfg_attr(all(test, feature = "loom"), path = "live_map/words_loom.rs")]
mod words;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};

use self::leaf_path::leaf_path;
pub(super) use self::owner::Owner;
use self::words::Words;
use super::WriteCache;
use crate::io::open::{self, Access};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::units::SectorRange;

/// Bytes of a map page. loom tries each access of each word in turn: it gets
/// pages of two words.
pub(super) const PAGE_LEN: usize = if cfg!(all(test, feature = "loom")) { 16 } else { 4096 };
/// Words of a map page.
pub(super) const PAGE_WORDS: usize = PAGE_LEN / 8;
/// Sectors that a map page covers.
pub(super) const PAGE_SECTORS: u64 = PAGE_LEN as u64 * 8;

/// Pages that are marked before others may have their turn: 1 GiB of disk, some
/// 50 µs, of which a new page's allocation is most. Tests try it page by page.
const STEP_PAGES: u64 = if cfg!(test) { 1 } else { 64 };

/// The range in the steps in which it is marked: each ends at a page's end.
pub(super) fn steps(range: SectorRange) -> impl Iterator<Item = SectorRange> {
    const STEP_SECTORS: u64 = STEP_PAGES * PAGE_SECTORS;
    let mut rest = range;
    std::iter::from_fn(move || {
        let (step, later) = rest.split_at(STEP_SECTORS - rest.start().0 % STEP_SECTORS);
        rest = later;
        (!step.is_empty()).then_some(step)
    })
}

/// A set of bits that threads share.
#[derive(Debug)]
struct AtomicBits(Words);

impl AtomicBits {
    fn new(bits: usize) -> io::Result<Self> {
        Ok(Self(Words::anonymous(bits.div_ceil(64))?))
    }

    #[inline]
    fn is_set(&self, bit: usize) -> bool {
        self.0.get(bit / 64).load(Ordering::Acquire) & (1 << (bit % 64)) != 0
    }

    /// Always a read-modify-write: after a plain look that finds the bit set,
    /// somebody who takes it in that moment might not see what came before.
    fn set(&self, bit: usize) {
        self.0.get(bit / 64).fetch_or(1 << (bit % 64), Ordering::AcqRel);
    }
}

/// What a live map has room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// The disk's sectors.
    pub(super) sectors: u64,
    /// Pages that the presence map may grow to.
    pub(super) pages_max: usize,
    /// Whether there is a block table.
    pub(super) packed: bool,
}

impl Shape {
    fn pages_max(&self) -> io::Result<usize> {
        Ok(self.pages_max.max(pages_of(self.sectors)?))
    }

    /// Length of the file.
    fn file_len(&self) -> io::Result<u64> {
        let pages = self.pages_in_all(pages_of(self.sectors)?)?;
        Ok((pages as u64 + 1) * PAGE_LEN as u64)
    }

    /// Where the pages end of a presence map of so many, and of its table.
    fn pages_in_all(&self, pages: usize) -> io::Result<usize> {
        if !self.packed {
            return Ok(pages);
        }
        let table = table::pages_for(pages)?;
        let all = table::base_after(self.pages_max()?).checked_add(table);
        all.ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

/// The map of one open leaf.
#[derive(Debug)]
pub(super) struct LiveMap {
    file: File,
    /// Where the file is, if it has a name.
    path: Option<PathBuf>,
    /// Whether the map was made nobody's, which it then stays. Held while its
    /// owner is written.
    disowned: Mutex<bool>,
    words: Words,
    pages: AtomicUsize,
    pages_max: usize,
    packed: bool,
    summary: AtomicBits,
    changed: AtomicBits,
}

/// The bits of `mask` words that a range has in its first word, and how many
/// sectors those are.
#[inline]
fn first_word(start: u64, count: u64) -> (u64, u64) {
    let bit = start % 64;
    let here = count.min(64 - bit);
    let mask = if here == 64 { u64::MAX } else { ((1 << here) - 1) << bit };
    (mask, here)
}

impl LiveMap {
    /// An empty map in a new file at `path`, or in anonymous memory. It is nobody's
    /// yet, so that a kill leaves none that is half filled; `owner` is whose it is
    /// to be, and `leaf` where that leaf's file is.
    pub(super) fn create(
        path: Option<&Path>,
        owner: &Owner,
        leaf: &Path,
        shape: &Shape,
    ) -> io::Result<Self> {
        let (file, path) = match path {
            Some(path) => place::create(path, owner, leaf).map(|(file, at)| (file, Some(at)))?,
            None => (File::from(memfd_create("leafblk-map", MemfdFlags::CLOEXEC)?), None),
        };
        ftruncate(&file, shape.file_len()?)?;
        allocate(&file, 0)?;
        Self::map(file, path, shape)
    }

    /// The map that an earlier daemon left, in the directory of `path`, and the
    /// generation of its header where that is newer than the one that counts.
    /// [`place::open`] says where it is then.
    pub(super) fn take_over(
        path: &Path,
        wanted: &place::Wanted<'_>,
        read_only: bool,
    ) -> Result<Option<(Self, Option<u64>)>, place::OpenError> {
        let (file, at, ahead) = match place::open(path, wanted, read_only)? {
            place::Found::Nothing => return Ok(None),
            place::Found::Fits(file, at) => (file, at, None),
            place::Found::Ahead(file, at, generation) => (file, at, Some(generation)),
        };
        let map = Self::map(file, Some(at), &wanted.shape)?;
        map.adopt_pages(0..map.pages())?;
        map.adopt_table()?;
        Ok(Some((map, ahead)))
    }

    /// A map in anonymous memory with the same bits and places.
    pub(super) fn copied(&self, owner: &Owner, shape: &Shape) -> io::Result<Self> {
        let copy = Self::create(None, owner, Path::new(""), shape)?;
        let mut bytes = Vec::with_capacity(PAGE_LEN);
        let pages = (0..self.pages()).chain(self.table_pages());
        for page in pages.filter(|page| self.has_bits(*page)) {
            bytes.clear();
            self.copy_page(page, &mut bytes);
            copy.load_page(page, &bytes)?;
        }
        Ok(copy)
    }

    /// A copy, in anonymous memory, of the map at `path`, which its owner goes on
    /// changing. No lock is taken and nothing written. Bits come before the table, so
    /// that each has its entry.
    pub(super) fn copied_beside(path: &Path, owner: &Owner, shape: &Shape) -> io::Result<Self> {
        let file = open::own_file(path, Access::Read)?;
        let copy = Self::create(None, owner, Path::new(""), shape)?;
        copy.load_pages_of(&file, 0..copy.pages())?;
        copy.load_pages_of(&file, copy.table_pages())?;
        Ok(copy)
    }

    /// Removes the map's file, if it has a name.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.path.as_ref().map_or(Ok(()), |path| place::remove(path, &self.file))
    }

    /// Lets other processes have the map's file, though this value may live on.
    pub(super) fn unlock(&self) {
        let _ = self.file.unlock();
    }

    /// Whether the file is a live map of `owner`'s.
    pub(super) fn is_owned(file: &File, owner: &Owner, shape: &Shape) -> io::Result<bool> {
        // Longer, if it grew for a header that was never written.
        Ok(owner.is_in(file, shape.sectors) && file.metadata()?.len() >= shape.file_len()?)
    }

    fn map(file: File, path: Option<PathBuf>, shape: &Shape) -> io::Result<Self> {
        let (pages, pages_max) = (pages_of(shape.sectors)?, shape.pages_max()?);
        let pages_in_all = shape.pages_in_all(pages_max)?;
        let words = pages_in_all.checked_mul(PAGE_WORDS).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            words: Words::of_file(&file, PAGE_LEN as u64, words)?,
            file,
            path,
            disowned: Mutex::default(),
            pages: AtomicUsize::new(pages),
            pages_max,
            packed: shape.packed,
            summary: AtomicBits::new(pages_in_all)?,
            changed: AtomicBits::new(pages_in_all)?,
        })
    }

    /// Makes room for so many sectors, if there is not. Bits of the new ones
    /// may be set when this has returned.
    ///
    /// # Errors
    /// FileTooLarge past the most pages; the tmpfs's.
    pub(super) fn grow(&self, sectors: u64) -> io::Result<()> {
        let pages = pages_of(sectors)?;
        if pages > self.pages_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let shape = Shape { sectors, pages_max: self.pages_max, packed: self.packed };
        if self.file.metadata()?.len() < shape.file_len()? {
            ftruncate(&self.file, shape.file_len()?)?;
        }
        self.pages.fetch_max(pages, Ordering::AcqRel);
        Ok(())
    }

    /// Whether the header that the map fits may not be durable: its writer was
    /// killed before [`Self::own`].
    pub(super) fn is_being_replaced(&self) -> io::Result<bool> {
        Owner::is_being_replaced(&self.file)
    }

    /// Makes the map this owner's, whose disk has so many sectors, and nobody
    /// else's. False if it is nobody's for good.
    pub(super) fn own(&self, owner: &Owner, sectors: u64) -> io::Result<bool> {
        self.unless_disowned(|| owner.write_to(&self.file, sectors))
    }

    /// Makes the map, beside its owner's, that of a header that is about to be
    /// written, for so many sectors. False if it is nobody's for good.
    pub(super) fn announce(&self, owner: &Owner, sectors: u64) -> io::Result<bool> {
        self.unless_disowned(|| owner.announce_in(&self.file, sectors))
    }

    fn unless_disowned(&self, write: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
        let disowned = self.disowned.lock().unwrap_or_else(PoisonError::into_inner);
        if !*disowned {
            write()?;
        }
        Ok(!*disowned)
    }

    /// Notes what the guest has made of its write cache.
    pub(super) fn note_write_cache(&self, write_cache: WriteCache) -> io::Result<()> {
        self.file.write_all_at(&[write_cache as u8], owner::WRITE_CACHE_OFFSET)
    }

    /// What was noted of it.
    pub(super) fn write_cache(&self) -> io::Result<WriteCache> {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, owner::WRITE_CACHE_OFFSET)?;
        Ok(WriteCache::from_byte(byte[0]))
    }

    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        self.words.get(index)
    }

    #[inline]
    fn page_of(sector: u64) -> usize {
        (sector / PAGE_SECTORS) as usize
    }

    #[inline]
    fn word_of(&self, sector: u64) -> &AtomicU64 {
        self.word((sector / 64) as usize)
    }

    /// The longest run of sectors at the start of the range that are all
    /// present or all absent; `range` is not empty.
    #[inline]
    pub(super) fn next_run(&self, range: SectorRange) -> (bool, u64) {
        let end = range.end().0;
        let mut sector = range.start().0;
        let mut wanted = None;
        while sector < end {
            let page_end = (sector / PAGE_SECTORS + 1) * PAGE_SECTORS;
            let (bits, here) = if self.summary.is_set(Self::page_of(sector)) {
                let (mask, here) = first_word(sector, end - sector);
                ((self.word_of(sector).load(Ordering::Acquire) & mask) >> (sector % 64), here)
            } else {
                (0, end.min(page_end) - sector)
            };
            let present = *wanted.get_or_insert(bits & 1 == 1);
            let run = u64::from(if present { bits.trailing_ones() } else { bits.trailing_zeros() });
            // A word of zeros has 64 trailing ones inverted, also beyond `here`.
            let run = if !present && bits == 0 { here } else { run.min(here) };
            sector += run;
            if run < here {
                break;
            }
        }
        (wanted.unwrap_or(false), sector - range.start().0)
    }

    /// Marks the range as held; returns how many of its sectors were not, and
    /// whether all are now: ENOSPC where the tmpfs is full. Then what comes
    /// before the first page that there is no space for is marked.
    pub(super) fn set(&self, range: SectorRange) -> (u64, io::Result<()>) {
        let end = range.end().0;
        let mut sector = range.start().0;
        let mut added = 0;
        while sector < end {
            let page = Self::page_of(sector);
            if let Err(error) = self.allocate_page(page) {
                return (added, Err(error));
            }
            let page_end = end.min((sector / PAGE_SECTORS + 1) * PAGE_SECTORS);
            let before = added;
            while sector < page_end {
                let (mask, here) = first_word(sector, page_end - sector);
                let word = self.word_of(sector);
                // A rewrite finds its bits set and writes nothing shared.
                if word.load(Ordering::Relaxed) & mask != mask {
                    let old = word.fetch_or(mask, Ordering::Release);
                    added += u64::from((mask & !old).count_ones());
                }
                sector += here;
            }
            if added > before {
                self.changed.set(page);
            }
        }
        (added, Ok(()))
    }

    /// Allocates a page of map or table, unless it has been, so that touching it
    /// can't fail.
    fn allocate_page(&self, page: usize) -> io::Result<()> {
        if !self.summary.is_set(page) {
            allocate(&self.file, (page + 1) as u64 * PAGE_LEN as u64)?;
            self.summary.set(page);
        }
        Ok(())
    }

    /// Map pages in all.
    pub(super) fn pages(&self) -> usize {
        self.pages.load(Ordering::Acquire)
    }

    /// Takes up to `most` (at least 64) pages of map and table that changed, clearing their
    /// marks, from the place `from` on; returns the place to go on from. A
    /// pass from 0 to the end visits each page once, however many of them
    /// change again meanwhile.
    pub(super) fn take_changed(
        &self,
        from: usize,
        most: usize,
        pages: &mut Vec<usize>,
    ) -> Option<usize> {
        let table = self.table_pages();
        let (map, table) =
            (from..self.pages().div_ceil(64), (table.start / 64).max(from)..table.end.div_ceil(64));
        for i in map.chain(table) {
            let word = self.changed.0.get(i);
            if pages.len() + 64 > most {
                return Some(i);
            }
            if word.load(Ordering::Relaxed) != 0 {
                let mut bits = word.swap(0, Ordering::AcqRel);
                while bits != 0 {
                    pages.push(i * 64 + bits.trailing_zeros() as usize);
                    bits &= bits - 1;
                }
            }
        }
        None
    }

    /// Makes the map nobody's for good, so that no later daemon takes it over.
    pub(super) fn disown(&self) -> io::Result<()> {
        let mut disowned = self.disowned.lock().unwrap_or_else(PoisonError::into_inner);
        *disowned = true;
        owner::disown(&self.file)
    }

    /// Marks a page as changed again: its copy did not get to the disk.
    pub(super) fn mark_changed(&self, page: usize) {
        self.changed.set(page);
    }
}

/// Allocates a page, so that touching it can't fail. tmpfs answers EINTR.
fn allocate(file: &File, offset: u64) -> io::Result<()> {
    let call = || fallocate(file, FallocateFlags::empty(), offset, PAGE_LEN as u64);
    Ok(rustix::io::retry_on_intr(call)?)
}

fn pages_of(sectors: u64) -> io::Result<usize> {
    usize::try_from(sectors.div_ceil(PAGE_SECTORS)).map_err(|_| io::ErrorKind::FileTooLarge.into())
}
