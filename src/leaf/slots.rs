//! Where the data of a packed leaf is: slots of a block, given out in the order
//! in which blocks are first written.
//!
//! Small writes all over a disk are one after the other in the file: one extent
//! instead of one each, pages that the kernel makes many at a time, and a flush
//! that writes once (docs/BENCHMARKS.md). A block keeps its slot for good; a
//! discard makes a hole of it.
//!
//! Invariants:
//! - A slot is one block's only, and what nobody wrote of it is zeros.
//! - A block's entry is in the table before anything is written to its slot, so
//!   that a later run, by this live map, gives the slot to nobody else.

use std::io;
use std::sync::PoisonError;

use super::live_map::table::{BLOCK_SECTORS, Entry, PAGE_ENTRIES, SLOTS_MAX};
use super::{Leaf, LeafError};
use crate::io::storage::{Storage, write_all, zero};
use crate::sync::atomic::Ordering;
use crate::units::{Sector, SectorRange};

/// Bytes of a slot.
pub(super) const SLOT_LEN: u64 = BLOCK_SECTORS * 512;

/// Slots that are filled with zeros ahead at most, 64 KiB: the kernel then makes
/// their pages at once, and a write into one takes 0.8 µs instead of 3.2.
const AHEAD_MAX: u64 = 16;
/// A leaf with so many times the slots is filled ahead: what a small one takes
/// is what was written.
const AHEAD_PART: u64 = 16;
static ZEROES: [u8; 65536] = [0; 65536];
const _: () = assert!(ZEROES.len() as u64 == AHEAD_MAX * SLOT_LEN);

/// Which slots are free: those from `next` on.
#[derive(Debug, Default)]
pub(super) struct Slots {
    next: u64,
    /// Those before it are filled.
    filled: u64,
    /// The file is known to have those before it.
    in_file: u64,
}

impl Slots {
    /// Free from `next` on.
    pub(super) fn from(next: u64) -> Self {
        Self { next, filled: next, in_file: next }
    }

    /// Takes `count` slots in a row; the first of them. The file has all of them
    /// then: an entry that names what is past its end is that of a file that was
    /// cut short.
    fn take(&mut self, count: u64, storage: &dyn Storage, data_offset: u64) -> io::Result<u64> {
        let (first, end) = (self.next, self.next.saturating_add(count));
        if end > SLOTS_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if end > self.in_file {
            let (len, need) = (storage.len_bytes()?, data_offset + end * SLOT_LEN);
            if len < need {
                // A disk whose size is no multiple of a slot has one more.
                storage.set_len(need)?;
            }
            self.in_file = (len.max(need) - data_offset) / SLOT_LEN;
        }
        let ahead = (first / AHEAD_PART).clamp(1, AHEAD_MAX);
        // To a boundary: the kernel's large pages are aligned.
        let (from, to) = (first.max(self.filled), end.next_multiple_of(ahead));
        if count < ahead && end > self.filled && to - from <= AHEAD_MAX {
            let len = usize::try_from((to - from) * SLOT_LEN).unwrap_or(0);
            let offset = data_offset + from * SLOT_LEN;
            // They are holes otherwise, which read as zeros too. What is wrong
            // with the disk shows in the write that follows.
            if write_all(storage, &ZEROES[..len], offset).is_ok() {
                self.filled = to;
            }
        }
        self.next = end;
        Ok(first)
    }
}

/// The blocks that a range touches.
fn blocks(range: SectorRange) -> std::ops::Range<u64> {
    let first = range.start().0 / BLOCK_SECTORS;
    first..if range.is_empty() { first } else { range.end().0.div_ceil(BLOCK_SECTORS) }
}

/// The range's sectors before its first whole block, its whole blocks, the rest.
fn split(range: SectorRange) -> [SectorRange; 3] {
    let to_boundary = range.start().0.next_multiple_of(BLOCK_SECTORS) - range.start().0;
    let (head, rest) = range.split_at(to_boundary);
    let (whole, tail) = rest.split_at(rest.count() / BLOCK_SECTORS * BLOCK_SECTORS);
    [head, whole, tail]
}

impl Leaf {
    /// Where held sectors at the start of the (non-empty) range are in the file,
    /// and how many follow there; no place: they are zeros.
    pub fn place(&self, range: SectorRange) -> (Option<u64>, u64) {
        if !self.map.is_packed() {
            return (Some(self.data_offset + range.start().to_bytes()), range.count());
        }
        let (mut block, within) =
            (range.start().0 / BLOCK_SECTORS, range.start().0 % BLOCK_SECTORS);
        let first = self.map.entry(block);
        let mut next = first;
        let mut count = BLOCK_SECTORS - within;
        while count < range.count() {
            block += 1;
            if let Entry::Slot(slot) = next {
                next = Entry::Slot(slot.wrapping_add(1));
            }
            if self.map.entry(block) != next {
                break;
            }
            count += BLOCK_SECTORS;
        }
        let offset = match first {
            Entry::Slot(slot) => Some(self.slot_offset(u64::from(slot)) + within * 512),
            Entry::Zeros | Entry::Empty => None,
        };
        (offset, count.min(range.count()))
    }

    /// The place of sectors whose slots were taken.
    pub(super) fn taken(&self, place: Option<u64>) -> Result<u64, LeafError> {
        place.ok_or_else(|| self.unfinished("write", io::ErrorKind::InvalidData.into()))
    }

    pub(super) fn slot_offset(&self, slot: u64) -> u64 {
        self.data_offset + slot * SLOT_LEN
    }

    /// Where the last slot that was given out ends in the file.
    pub(super) fn slots_end_offset(&self) -> u64 {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot_offset(slots.next)
    }

    /// Sees to it that each block of the range has a slot, before it is written.
    ///
    /// # Errors
    /// ENOSPC: the tmpfs is full, or there are no more slots.
    pub(super) fn take_slots(&self, range: SectorRange) -> Result<(), LeafError> {
        if !self.map.is_packed() {
            return Ok(());
        }
        let has_slot = |block: &u64| matches!(self.map.entry(*block), Entry::Slot(_));
        let blocks = blocks(range);
        if blocks.clone().all(|block| has_slot(&block)) {
            return Ok(());
        }
        let mut block = blocks.start;
        while block < blocks.end {
            // In steps of a table page: others want the lock too.
            let mut slots = self.lock_whole(&self.slots)?;
            let step = blocks.end.min((block / PAGE_ENTRIES + 1) * PAGE_ENTRIES);
            let count = (block..step).take_while(|block| !has_slot(block)).count() as u64;
            if count == 0 {
                block += 1;
                continue;
            }
            let first = slots
                .take(count, &*self.storage, self.data_offset)
                .map_err(|source| self.io("find a place in the leaf", source))?;
            self.set_entries(block..block + count, |i| {
                Entry::Slot(u32::try_from(first + i).unwrap_or(u32::MAX - 2))
            })?;
            block += count;
        }
        Ok(())
    }

    /// Sets the entries of blocks, and marks their page.
    fn set_entries(
        &self,
        blocks: std::ops::Range<u64>,
        entry: impl Fn(u64) -> Entry,
    ) -> Result<(), LeafError> {
        let _marking = self.lock_whole(&self.marking)?;
        for (i, block) in (0..).zip(blocks) {
            self.map
                .set_entry(block, entry(i))
                .map_err(|source| self.unfinished("extend the live map", source))?;
        }
        Ok(())
    }

    /// Makes the first sectors of the (non-empty) range of a packed leaf read as zeros:
    /// those in one place of the file, or without one, within one table page. How many.
    pub(super) fn zero_packed(&self, range: SectorRange) -> Result<u64, LeafError> {
        let [head, whole, tail] = split(range);
        if !head.is_empty() || whole.is_empty() {
            let part = if head.is_empty() { tail } else { head };
            self.zero_part(part)?;
            return Ok(part.count());
        }
        let block = whole.start().0 / BLOCK_SECTORS;
        let in_page = (block / PAGE_ENTRIES + 1) * PAGE_ENTRIES - block;
        let first = whole.split_at(in_page * BLOCK_SECTORS).0;
        match self.map.entry(block) {
            Entry::Slot(_) => {
                let (offset, count) = self.place(first);
                self.zero_at(offset, count)?;
                self.mark(first.split_at(count).0)?;
                Ok(count)
            }
            Entry::Zeros => {
                // Another thread may have set it and no bit yet.
                self.mark(first.split_at(BLOCK_SECTORS).0)?;
                Ok(BLOCK_SECTORS)
            }
            Entry::Empty => {
                let run = self.empty_run(first);
                self.zero_empty(run)?;
                Ok(run.count())
            }
        }
    }

    /// The blocks at the range's start that have no entry.
    fn empty_run(&self, range: SectorRange) -> SectorRange {
        let empty = |block: &u64| self.map.entry(*block) == Entry::Empty;
        let count = blocks(range).take_while(empty).count() as u64;
        range.split_at((count * BLOCK_SECTORS).max(BLOCK_SECTORS)).0
    }

    /// Whole blocks that had no entry a moment ago.
    pub(super) fn zero_empty(&self, range: SectorRange) -> Result<(), LeafError> {
        // Past the root's end they read as zeros as they are. A guest that trims
        // a large disk would have an entry for each block otherwise.
        let over_root = self.over_root(range);
        if over_root.is_empty() {
            return Ok(());
        }
        {
            // Entries change under this lock only. A write may have come first.
            let _slots = self.lock_whole(&self.slots)?;
            // Zeros that never got their bits would be the next write's old content.
            self.map.prepare(over_root).map_err(|e| self.io("extend the live map", e))?;
            let mut rest = blocks(over_root);
            while let Some(first) = rest.find(|block| self.map.entry(*block) == Entry::Empty) {
                let is_taken = |block: &u64| self.map.entry(*block) != Entry::Empty;
                let end = rest.find(is_taken).unwrap_or(rest.end);
                self.set_entries(first..end, |_| Entry::Zeros)?;
            }
        }
        // First those without a slot, which can't fail: zeros without their bits
        // must not stay.
        self.each_place(over_root, |place, run| match place {
            None => self.mark(run),
            Some(_) => Ok(()),
        })?;
        // Where a write came first, its slots are zeroed.
        self.each_place(over_root, |place, run| match place {
            None => Ok(()),
            Some(_) => self.zero_at(place, run.count()).and_then(|()| self.mark(run)),
        })
    }

    fn each_place(
        &self,
        range: SectorRange,
        each: impl Fn(Option<u64>, SectorRange) -> Result<(), LeafError>,
    ) -> Result<(), LeafError> {
        let mut rest = range;
        while !rest.is_empty() {
            let (place, count) = self.place(rest);
            let (run, more) = rest.split_at(count);
            each(place, run)?;
            rest = more;
        }
        Ok(())
    }

    /// Fewer sectors than a block.
    fn zero_part(&self, range: SectorRange) -> Result<(), LeafError> {
        if range.is_empty() {
            return Ok(());
        }
        let block = range.start().0 / BLOCK_SECTORS;
        if self.map.entry(block) == Entry::Empty && self.over_root(range).is_empty() {
            return Ok(());
        }
        self.take_slots(range)?;
        let (offset, count) = self.place(range);
        self.zero_at(offset, count)?;
        self.mark(range)
    }

    /// Gives back what was filled ahead and not used.
    pub(super) fn drop_filled(&self) -> io::Result<()> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = (slots.next, slots.filled);
        slots.filled = from;
        if from >= to {
            return Ok(());
        }
        match self.storage.punch_hole(self.slot_offset(from), (to - from) * SLOT_LEN) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    /// What was written to slots that no entry names is gone, for the next block
    /// that gets one to find zeros there: by a run that lost its power or was
    /// killed, or before a reset or a shrinking.
    pub(super) fn clear_unnamed(&self) -> Result<(), LeafError> {
        if !self.map.is_packed() {
            return Ok(());
        }
        let mut slots = self.lock_whole(&self.slots)?;
        let from = self.slot_offset(slots.next);
        let len = self.storage.len_bytes().map_err(|source| self.io("stat", source))?;
        if len <= from {
            return Ok(());
        }
        match self.storage.punch_hole(from, (len - from).next_multiple_of(512)) {
            // Where there are no holes, or no space for the note of one, what is past
            // the file's end is zeros.
            Err(error) => {
                log::debug!("leaf {}: no hole could be made: {error}", self.path.display());
                *slots = Slots::from((len - self.data_offset).div_ceil(SLOT_LEN));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Whether blocks have slots, in the order in which they were first written.
    pub fn is_packed(&self) -> bool {
        self.map.is_packed()
    }

    /// Tells of each block that has a slot: its first sector, and where in the
    /// file the slot is.
    pub fn each_slot(&self, mut each: impl FnMut(Sector, u64)) {
        for (block, entry) in self.map.entries() {
            if let Entry::Slot(slot) = entry {
                each(Sector(block * BLOCK_SECTORS), self.slot_offset(u64::from(slot)));
            }
        }
    }

    /// Before a disk is cut inside a block that is zeros without a slot: such a
    /// block is held whole, and this one won't be.
    pub(super) fn place_last_block(&self, sectors: u64) -> Result<(), LeafError> {
        let block = sectors / BLOCK_SECTORS;
        if sectors.is_multiple_of(BLOCK_SECTORS) || self.map.entry(block) != Entry::Zeros {
            return Ok(());
        }
        self.written.fetch_add(1, Ordering::Release);
        self.take_slots(range_of(block..block + 1))
    }

    /// Gives back the space of blocks that are past the disk's end, which had
    /// `before` sectors.
    pub(super) fn punch_slots_beyond(&self, sectors: u64, before: u64) -> io::Result<()> {
        let (mut block, end) = (sectors.div_ceil(BLOCK_SECTORS), before.div_ceil(BLOCK_SECTORS));
        while self.map.is_packed() && block < end {
            let (place, count) = self.place(range_of(block..end));
            if let Some(offset) = place {
                match self.storage.punch_hole(offset, count * 512) {
                    // Where there are no holes, the space stays taken.
                    Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
                    result => result?,
                }
            }
            block += count / BLOCK_SECTORS;
        }
        Ok(())
    }

    fn zero_at(&self, offset: Option<u64>, sectors: u64) -> Result<(), LeafError> {
        let Some(offset) = offset else { return Ok(()) };
        zero(&*self.storage, offset, sectors * 512).map_err(|e| self.unfinished("write zeroes", e))
    }

    /// The range's part that lies in blocks of the root.
    fn over_root(&self, range: SectorRange) -> SectorRange {
        let root_end = self.root_sectors.next_multiple_of(BLOCK_SECTORS);
        range.split_at(root_end.saturating_sub(range.start().0)).0
    }
}

fn range_of(blocks: std::ops::Range<u64>) -> SectorRange {
    let count = (blocks.end - blocks.start) * BLOCK_SECTORS;
    SectorRange::new(Sector(blocks.start * BLOCK_SECTORS), count).unwrap_or_default()
}
