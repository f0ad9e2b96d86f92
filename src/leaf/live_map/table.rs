//! The block table of a packed leaf: for each block of 4 KiB where its data is.
//!
//! Its pages come behind the presence map's room, in the same file, and have
//! their marks in the same summary. An entry is set before the first bit of its
//! block, and only from empty to something, or from zeros to a slot: so of two
//! states of a page each entry is whole, and the older one true of what was
//! flushed before.

use std::io;

use super::{LiveMap, PAGE_LEN, PAGE_SECTORS};
use crate::sync::atomic::Ordering;
use crate::units::{Sector, SectorRange};

/// Sectors of a block.
pub(in crate::leaf) const BLOCK_SECTORS: u64 = 8;
/// Entries of a table page.
pub(in crate::leaf) const PAGE_ENTRIES: u64 = PAGE_LEN as u64 / 4;
/// Table pages for each page of the presence map.
pub(in crate::leaf) const TABLE_PAGES: usize = 4;
const _: () = assert!(TABLE_PAGES as u64 == PAGE_SECTORS / BLOCK_SECTORS / PAGE_ENTRIES);
/// Slots that entries can name.
pub(in crate::leaf) const SLOTS_MAX: u64 = (ZEROS - 1) as u64;

const EMPTY: u32 = 0;
const ZEROS: u32 = u32::MAX;

/// Where a block's data is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::leaf) enum Entry {
    /// Nowhere: the leaf holds none of its sectors.
    Empty,
    /// Nowhere: the leaf holds all of its sectors, as zeros.
    Zeros,
    /// In this slot.
    Slot(u32),
}

impl Entry {
    /// What the four bytes say.
    pub(in crate::leaf) fn decode(raw: u32) -> Self {
        match raw {
            EMPTY => Self::Empty,
            ZEROS => Self::Zeros,
            more => Self::Slot(more - 1),
        }
    }

    fn encode(self) -> u32 {
        match self {
            Self::Empty => EMPTY,
            Self::Zeros => ZEROS,
            Self::Slot(slot) => slot + 1,
        }
    }
}

/// Number of the first table page, after all that the presence map may have.
/// A multiple of 64: the marks of both share no word.
pub(super) const fn base_after(pages_max: usize) -> usize {
    pages_max.next_multiple_of(64)
}

/// Table pages beside so many of the presence map.
pub(super) fn pages_for(map_pages: usize) -> io::Result<usize> {
    map_pages.checked_mul(TABLE_PAGES).ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

impl LiveMap {
    /// Whether the leaf is packed.
    #[inline]
    pub(in crate::leaf) fn is_packed(&self) -> bool {
        self.packed
    }

    /// Number of the first table page.
    pub(super) fn table_base(&self) -> usize {
        base_after(self.pages_max)
    }

    /// Numbers of the table's pages.
    pub(in crate::leaf) fn table_pages(&self) -> std::ops::Range<usize> {
        let base = self.table_base();
        let count = if self.packed { self.pages() * TABLE_PAGES } else { 0 };
        base..base + count
    }

    /// The table page number `page` counted from the table's first; `None` for a
    /// page of the presence map.
    pub(in crate::leaf) fn table_page(&self, page: usize) -> Option<usize> {
        page.checked_sub(self.table_base())
    }

    fn page_of_block(&self, block: u64) -> usize {
        self.table_base() + (block / PAGE_ENTRIES) as usize
    }

    fn word_of_block(&self, block: u64) -> &crate::sync::atomic::AtomicU64 {
        self.word(self.table_base() * super::PAGE_WORDS + (block / 2) as usize)
    }

    /// A block's entry.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "half of a word")]
    pub(in crate::leaf) fn entry(&self, block: u64) -> Entry {
        if !self.packed || !self.summary.is_set(self.page_of_block(block)) {
            return Entry::Empty;
        }
        let word = self.word_of_block(block).load(Ordering::Acquire);
        Entry::decode((word >> (32 * (block % 2))) as u32)
    }

    /// Sets a block's entry. One caller at a time: a word has two entries.
    ///
    /// # Errors
    /// ENOSPC where the tmpfs is full; nothing is set then.
    pub(in crate::leaf) fn set_entry(&self, block: u64, entry: Entry) -> io::Result<()> {
        let page = self.page_of_block(block);
        self.allocate_page(page)?;
        let (word, shift) = (self.word_of_block(block), 32 * (block % 2));
        let other = word.load(Ordering::Relaxed) & !(u64::from(u32::MAX) << shift);
        word.store(other | u64::from(entry.encode()) << shift, Ordering::Release);
        self.changed.set(page);
        Ok(())
    }

    /// Allocates the presence map's pages for a range: setting its bits can't fail
    /// then.
    ///
    /// # Errors
    /// ENOSPC where the tmpfs is full.
    pub(in crate::leaf) fn prepare(&self, range: SectorRange) -> io::Result<()> {
        let pages = range.start().0 / PAGE_SECTORS..range.end().0.div_ceil(PAGE_SECTORS);
        for page in pages {
            let page = usize::try_from(page).map_err(|_| io::ErrorKind::FileTooLarge)?;
            self.allocate_page(page)?;
        }
        Ok(())
    }

    /// Gives blocks of zeros all of their bits: a daemon was killed that was about to
    /// set them. Its request was in flight, and may have been carried out.
    fn complete_zeros(&self) -> io::Result<()> {
        for (block, entry) in self.entries() {
            if entry == Entry::Zeros && self.bits_of(block) != 0xff {
                let sector = Sector(block * BLOCK_SECTORS);
                let block = SectorRange::new(sector, BLOCK_SECTORS).unwrap_or_default();
                self.set(block).1?;
            }
        }
        Ok(())
    }

    /// All blocks of table pages that have anything in them, and their entries.
    pub(in crate::leaf) fn entries(&self) -> impl Iterator<Item = (u64, Entry)> {
        let pages = (0..).zip(self.table_pages()).filter(|(_, page)| self.summary.is_set(*page));
        let blocks = pages.flat_map(|(i, _)| i * PAGE_ENTRIES..(i + 1) * PAGE_ENTRIES);
        blocks.map(|block| (block, self.entry(block)))
    }

    /// The bits of a block's sectors.
    fn bits_of(&self, block: u64) -> u64 {
        let sector = block * BLOCK_SECTORS;
        if !self.summary.is_set(Self::page_of(sector)) {
            return 0;
        }
        (self.word_of(sector).load(Ordering::Relaxed) >> (sector % 64)) & 0xff
    }

    /// One more than the last slot that any entry names.
    pub(in crate::leaf) fn slots_end(&self) -> u64 {
        let end = |(_, entry)| match entry {
            Entry::Slot(slot) => u64::from(slot) + 1,
            Entry::Empty | Entry::Zeros => 0,
        };
        self.entries().map(end).max().unwrap_or(0)
    }

    /// Puts the table pages that an earlier daemon left into the summary, as
    /// changed.
    pub(super) fn adopt_table(&self) -> io::Result<()> {
        self.adopt_pages(self.table_pages())?;
        self.complete_zeros()
    }
}
