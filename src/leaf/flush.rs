//! Making writes durable: data, then map.

use std::io;

use super::live_map::PAGE_LEN;
use super::{Leaf, LeafError};
use crate::io::storage::write_all;
use crate::sync::atomic::Ordering;

/// Changed pages of map and table that one round takes: 4 MiB, 3 GiB of disk or
/// more. A flush that has more goes several rounds.
const ROUND_PAGES: usize = 1024;

/// So many unchanged pages are written along between two changed ones: one more
/// page costs less than another request to the disk, of which a flush had 200 and
/// more (docs/BENCHMARKS.md, noisy neighbour).
const GAP_PAGES: usize = 3;

/// Pages that one call writes at most. For so long, some 20 µs, it holds the file's
/// lock, and a write that wants it spins on its CPU (docs/BENCHMARKS.md).
const CALL_PAGES: usize = 16;

/// Room for the copies, allocated at the first flush that needs it.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    changed: Vec<usize>,
    /// Those and some between them: at most twice [`ROUND_PAGES`].
    pages: Vec<usize>,
    copies: Vec<u8>,
}

impl Leaf {
    /// Makes every write that returned before this call durable, and returns
    /// when they are. Calls that come together share one sync.
    ///
    /// # Errors
    /// The disk's. A failed sync poisons the leaf; a failed write of the map
    /// (ENOSPC) does not, and the next flush tries again.
    pub fn flush(&self) -> Result<(), LeafError> {
        self.flush_by(&|work| work())
    }

    /// As [`Self::flush`]; what takes long is done by `run`, which must
    /// call what it is given once. No lock is held there that a write takes.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn flush_by(&self, run: &dyn Fn(&mut dyn FnMut())) -> Result<(), LeafError> {
        self.check_not_poisoned()?;
        if self.read_only {
            return Ok(());
        }
        let wanted = self.written.load(Ordering::Acquire);
        let mut buffers = self.lock_whole(&self.flushing)?;
        // Somebody else's flush may have begun after our writes.
        if self.flushed.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        let covers = self.written.load(Ordering::Acquire);
        // This flush leaves nothing of it to write back.
        self.unsynced_bytes.store(0, Ordering::Relaxed);
        // One pass over the map: pages behind it that change again belong to
        // writes that came after this call, and could otherwise keep it for ever.
        let mut place = Some(0);
        while let Some(from) = place {
            place = self.flush_round(from, &mut buffers, run)?;
        }
        self.flushed.store(covers, Ordering::Release);
        Ok(())
    }

    /// One round from a place in the map on; the next one's place.
    fn flush_round(
        &self,
        from: usize,
        buffers: &mut Buffers,
        run: &dyn Fn(&mut dyn FnMut()),
    ) -> Result<Option<usize>, LeafError> {
        let Buffers { changed, pages, copies } = buffers;
        changed.clear();
        copies.clear();
        let next = {
            let _marking = self.lock_whole(&self.marking)?;
            self.map.take_changed(from, ROUND_PAGES, changed)
        };
        if from > 0 && changed.is_empty() {
            // An earlier round has synced everything that was written.
            return Ok(next);
        }
        self.fill_gaps(changed, pages);
        let mut result = Ok(());
        run(&mut || {
            // The copies first: a bit that is set while the data syncs belongs to
            // data that this sync may not cover.
            for page in pages.iter() {
                self.map.copy_page(*page, copies);
            }
            result = self.sync_with_map(pages, copies);
        });
        if result.is_err() {
            pages.iter().for_each(|page| self.map.mark_changed(*page));
        }
        result.map(|()| next)
    }

    /// Makes the data durable, then these pages.
    fn sync_with_map(&self, pages: &[usize], copies: &[u8]) -> Result<(), LeafError> {
        self.sync()?;
        if pages.is_empty() {
            return Ok(());
        }
        self.writing_map.store(true, Ordering::Relaxed);
        let written = self.write_pages(pages, copies);
        self.writing_map.store(false, Ordering::Relaxed);
        written.map_err(|source| self.io("write the presence map", source))?;
        self.sync()
    }

    /// What is written for the pages that changed: those, and pages in use that are
    /// few between two of them. Copies are made of all alike, before the sync, so
    /// that the same is true of what is in them.
    fn fill_gaps(&self, changed: &[usize], pages: &mut Vec<usize>) {
        pages.clear();
        for &page in changed {
            let gap = pages.last().map_or(page..page, |last| last + 1..page);
            let is_small = gap.len() <= GAP_PAGES && pages.len() < ROUND_PAGES;
            // One that is not in use would take memory, and room on the disk.
            if is_small && gap.clone().all(|page| self.map.has_bits(page)) {
                pages.extend(gap);
            }
            pages.push(page);
        }
    }

    /// Writes copies of pages to their places, those that follow each other in the
    /// file in one call, up to [`CALL_PAGES`]: in calls of 4 KiB this took a third of a
    /// flush's time.
    fn write_pages(&self, pages: &[usize], copies: &[u8]) -> io::Result<()> {
        let mut copies = copies;
        let follows =
            |a: &usize, b: &usize| self.page_offset(*b) == self.page_offset(*a) + PAGE_LEN as u64;
        for run in pages.chunk_by(follows).flat_map(|run| run.chunks(CALL_PAGES)) {
            let (these, rest) = copies.split_at(run.len() * PAGE_LEN);
            write_all(&*self.storage, these, self.page_offset(run[0]))?;
            copies = rest;
        }
        Ok(())
    }

    /// Where a page of the map or of the block table is in the file.
    fn page_offset(&self, page: usize) -> u64 {
        match self.map.table_page(page) {
            Some(page) => self.table_offset + (page * PAGE_LEN) as u64,
            None => self.map_offset + (page * PAGE_LEN) as u64,
        }
    }

    /// Makes the file durable; what was not durable before is only counted on
    /// after this.
    ///
    /// # Errors
    /// The disk's, which poison the leaf; [`LeafError::Poisoned`] where a
    /// write-back beside it met one.
    pub(super) fn sync(&self) -> Result<(), LeafError> {
        self.storage.sync_data().map_err(|source| {
            // The kernel forgets what it could not write: a second try would
            // succeed without the data (fsync(2), "EIO").
            self.poison();
            self.io("sync", source)
        })?;
        // A sync finds nothing wrong with pages that a write-back beside it has
        // just dropped. That one's answer may come after the sync's.
        drop(self.lock_whole(&self.writing_back)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
