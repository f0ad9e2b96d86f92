//! Whole pages of the map: filled, taken over, copied out, counted.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{LiveMap, PAGE_LEN, PAGE_SECTORS, PAGE_WORDS, allocate, first_word};
use crate::sync::atomic::Ordering;
use crate::units::SectorRange;

impl LiveMap {
    /// Puts those of the pages that have bits into the summary, as changed. One look for
    /// each stretch of pages, not for each page: most are holes.
    pub(super) fn adopt_pages(&self, pages: Range<usize>) -> io::Result<()> {
        let mut page = pages.start;
        while page < pages.end {
            let Some(found) = next_page(&self.file, page)? else { break };
            page = found;
            let has_bits = |i| self.word(page * PAGE_WORDS + i).load(Ordering::Relaxed) != 0;
            if page < pages.end && (0..PAGE_WORDS).any(has_bits) {
                self.summary.set(page);
                self.changed.set(page);
            }
            page += 1;
        }
        Ok(())
    }

    /// How many sectors of the range are present. Passes over map pages
    /// without any 64 at a time.
    pub(in crate::leaf) fn count_in(&self, range: SectorRange) -> u64 {
        let end = range.end().0;
        let mut sector = range.start().0;
        let mut present = 0;
        while sector < end {
            let page = Self::page_of(sector);
            if !self.summary.is_set(page) {
                let word_empty = self.summary.0.get(page / 64).load(Ordering::Relaxed) == 0;
                let next = if word_empty { (page / 64 + 1) * 64 } else { page + 1 };
                sector = next as u64 * PAGE_SECTORS;
                continue;
            }
            let page_end = end.min((page as u64 + 1) * PAGE_SECTORS);
            while sector < page_end {
                let (mask, here) = first_word(sector, page_end - sector);
                let bits = self.word_of(sector).load(Ordering::Relaxed) & mask;
                present += u64::from(bits.count_ones());
                sector += here;
            }
        }
        present
    }

    /// Map pages that have anything in them.
    pub(in crate::leaf) fn pages_used(&self) -> u64 {
        let words = 0..self.pages().div_ceil(64);
        words.map(|i| u64::from(self.summary.0.get(i).load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Whether anything is in the page.
    pub(in crate::leaf) fn has_bits(&self, page: usize) -> bool {
        self.summary.is_set(page)
    }

    /// Copies a page out, little-endian.
    pub(in crate::leaf) fn copy_page(&self, page: usize, into: &mut Vec<u8>) {
        let at = into.len();
        into.resize(at + PAGE_LEN, 0);
        for (i, bytes) in into[at..].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *bytes = self.word(page * PAGE_WORDS + i).load(Ordering::Acquire).to_le_bytes();
        }
    }

    /// Adds what another map's file has of the pages, which somebody may go on changing.
    pub(super) fn load_pages_of(&self, file: &File, pages: Range<usize>) -> io::Result<()> {
        let mut bytes = vec![0; PAGE_LEN];
        let mut page = pages.start;
        while let Some(found) = next_page(file, page)?.filter(|found| *found < pages.end) {
            file.read_exact_at(&mut bytes, (found + 1) as u64 * PAGE_LEN as u64)?;
            if bytes.iter().any(|byte| *byte != 0) {
                self.load_page(found, &bytes)?;
            }
            page = found + 1;
        }
        Ok(())
    }

    /// Adds what the durable map has of a page.
    pub(in crate::leaf) fn load_page(&self, page: usize, bytes: &[u8]) -> io::Result<()> {
        let offset = (page + 1) as u64 * PAGE_LEN as u64;
        allocate(&self.file, offset)?;
        for (i, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            self.word(page * PAGE_WORDS + i).fetch_or(u64::from_le_bytes(*word), Ordering::Relaxed);
        }
        self.summary.set(page);
        Ok(())
    }

    /// Sectors present in all. Passes over map pages without any 64 at a time.
    pub(in crate::leaf) fn count(&self) -> u64 {
        let page_count = |page: usize| {
            let words = page * PAGE_WORDS..(page + 1) * PAGE_WORDS;
            words.map(|i| u64::from(self.word(i).load(Ordering::Relaxed).count_ones())).sum::<u64>()
        };
        let is_used = |word: &usize| self.summary.0.get(*word).load(Ordering::Acquire) != 0;
        let words = (0..self.pages().div_ceil(64)).filter(is_used);
        let pages = words.flat_map(|word| word * 64..self.pages().min((word + 1) * 64));
        pages.filter(|page| self.has_bits(*page)).map(page_count).sum()
    }
}

/// The first page of a map's file from `page` on that is no hole.
fn next_page(file: &File, page: usize) -> io::Result<Option<usize>> {
    let offset = (page + 1) as u64 * PAGE_LEN as u64;
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(data) => {
            let found = usize::try_from(data / PAGE_LEN as u64).unwrap_or(usize::MAX);
            Ok(Some(page.max(found.saturating_sub(1))))
        }
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
