//! A batch: frames on their way to the file, with the record that names them.
//!
//! It goes through its stages once, and from [`Stage::Failed`] back to writing, in other
//! slots: the frames are still there.

use super::page::Page;
use super::record::{Entry, Header, encode};
use super::slots::Slots;
use super::word::{BLOCK_LEN, Mask, Slot, Word};
use crate::virtqueue::GuestBuf;
use crate::write_cache::{Memory, WriteCache};

/// Attempts that each get slots of their own.
const ATTEMPTS: usize = 3;

/// Where a batch is on its way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// So many blocks are read whose other sectors are to be kept.
    Merging(usize),
    /// So many extents aren't written yet.
    Writing(usize),
    /// Written, and not known to be durable.
    Written,
    /// Something could not be read or written; it is tried again then.
    Failed(u64),
}

/// One thing that a batch holds.
#[derive(Debug)]
pub(super) enum Part {
    /// A frame's data.
    Block {
        block: u64,
        frame: u32,
        /// What is written of the frame.
        mask: Mask,
        /// What is durable of the block now.
        before: Word,
        before_crc: u32,
        /// The old slot's data, while it is merged.
        merging: Option<Box<Page>>,
        slot: Slot,
        crc: u32,
    },
    /// A run of zeros.
    Zeros { first: u64, count: u64, frame: u32 },
}

impl Part {
    /// Sectors of the old slot that the new one is to have.
    pub(super) fn to_merge(&self) -> Option<(Slot, Mask)> {
        match self {
            Self::Block { before, mask, .. } => {
                let rest = before.data().without(*mask);
                before.slot().filter(|_| !rest.is_empty()).map(|slot| (slot, rest))
            }
            Self::Zeros { .. } => None,
        }
    }

    fn word(before: Word, slot: Slot, mask: Mask) -> Word {
        Word::new(slot, mask, before.zeros(), before.damaged())
    }

    /// The frame that it is in.
    pub(super) fn frame(&self) -> u32 {
        match self {
            Self::Block { frame, .. } | Self::Zeros { frame, .. } => *frame,
        }
    }

    /// What the record says of it.
    pub(super) fn entry(&self) -> Entry {
        match *self {
            Self::Block { block, mask, before, slot, crc, .. } => {
                Entry::Block { block, word: Self::word(before, slot, mask), crc }
            }
            Self::Zeros { first, count, .. } => Entry::Zeros { first, count },
        }
    }
}

/// A stretch of slots that is one write.
#[derive(Debug)]
pub(super) struct Extent {
    pub(super) bufs: Vec<GuestBuf>,
    pub(super) offset: u64,
    pub(super) left: usize,
    pub(super) submitted: bool,
}

impl Extent {
    /// So many bytes are written.
    pub(super) fn advance(&mut self, bytes: usize) {
        let mut bytes = bytes.min(self.left);
        self.left -= bytes;
        self.offset += bytes as u64;
        while let Some(first) = self.bufs.first_mut().filter(|_| bytes > 0) {
            let here = bytes.min(first.len());
            bytes -= here;
            *first = first.skip(here);
            if first.len() == 0 {
                self.bufs.remove(0);
            }
        }
    }
}

/// A batch.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) slot: Slot,
    pub(super) successor: Slot,
    pub(super) stage: Stage,
    pub(super) parts: Vec<Part>,
    pub(super) extents: Vec<Extent>,
    pub(super) record: Box<Page>,
    /// The oldest order of what it holds.
    pub(super) oldest: u64,
    /// Slots of attempts that failed.
    pub(super) abandoned: Vec<Slot>,
    pub(super) failures: u32,
    pub(super) failed: bool,
    /// Whether its writes are durable when they are complete.
    pub(super) durable: bool,
}

impl Batch {
    /// A batch whose record goes to `slot`; where its blocks go isn't known yet.
    pub(super) fn new(number: u64, slot: Slot, parts: Vec<Part>, oldest: u64) -> Self {
        Self {
            number,
            slot,
            successor: slot,
            stage: Stage::Merging(0),
            parts,
            extents: Vec::new(),
            record: Page::zeroed(),
            oldest,
            abandoned: Vec::new(),
            failures: 0,
            failed: false,
            durable: false,
        }
    }

    /// How many of its blocks have to be merged with what is durable.
    pub(super) fn to_merge(&self) -> usize {
        self.parts.iter().filter(|part| part.to_merge().is_some()).count()
    }

    /// Gives each of its blocks a slot: behind the record as far as there is room.
    pub(super) fn place(&mut self, slots: &mut Slots) -> Slot {
        let blocks = self.parts.iter().filter(|part| matches!(part, Part::Block { .. })).count();
        let mut left = blocks as u64;
        let (mut next, mut run) = (Slot(self.slot.0 + 1), 0);
        let mut last = self.slot;
        if left > 0 {
            run = slots.take_run_at(next, left);
        }
        for part in &mut self.parts {
            let Part::Block { slot, .. } = part else { continue };
            if run == 0 {
                (next, run) = slots.take_run(left);
            }
            *slot = next;
            last = next;
            next = Slot(next.0 + 1);
            (run, left) = (run - 1, left - 1);
        }
        last
    }

    /// Gives its blocks other slots. Those of attempts that failed are used again after a
    /// few of them: the data is the same, and the checksums tell which block is where.
    pub(super) fn place_elsewhere(&mut self, slots: &mut Slots) {
        let tried = self.unplace();
        let mut again = Vec::new();
        if self.abandoned.len() >= ATTEMPTS * tried.len() {
            again.extend(self.abandoned.drain(..tried.len()));
        }
        self.abandoned.extend(tried);
        if again.is_empty() {
            self.place(slots);
            return;
        }
        let blocks = self.parts.iter_mut().filter_map(|part| match part {
            Part::Block { slot, .. } => Some(slot),
            Part::Zeros { .. } => None,
        });
        for (slot, other) in blocks.zip(again) {
            *slot = other;
        }
    }

    /// Fills in what a slot has besides the frame's own sectors, now that the old one is
    /// there or was not needed. True if the old slot was damaged: its sectors are lost.
    pub(super) fn merge<M: Memory>(&mut self, part: usize, cache: &WriteCache<M>) -> bool {
        let Some(needed) = self.parts.get(part).and_then(Part::to_merge) else { return false };
        let Part::Block { mask, frame, before, before_crc, merging, .. } = &mut self.parts[part]
        else {
            return false;
        };
        let Some(old) = merging.take() else { return false };
        let (_, rest) = needed;
        if crc32c::crc32c(&old.0) != *before_crc {
            let damaged = before.damaged().or(rest);
            *before = Word::new(Slot(0), Mask::NONE, before.zeros(), damaged);
            return true;
        }
        for sector in rest.sectors() {
            let at = sector * 512;
            cache.memory().fill(*frame, at, &old.0[at..at + 512]);
        }
        *mask = mask.or(rest);
        *before = Word::new(Slot(0), Mask::NONE, before.zeros(), before.damaged());
        false
    }

    /// The record, and the writes that the batch consists of.
    pub(super) fn prepare<M: Memory>(&mut self, cache: &WriteCache<M>, header: &Header) {
        for part in &mut self.parts {
            if let Part::Block { frame, mask, crc, .. } = part {
                let zeros = [0; 512];
                for sector in Mask::ALL.without(*mask).sectors() {
                    cache.memory().fill(*frame, sector * 512, &zeros);
                }
                let mut bytes = [0; BLOCK_LEN];
                cache.memory().copy_out(*frame, 0, &mut bytes);
                *crc = crc32c::crc32c(&bytes);
            }
        }
        let entries: Vec<Entry> = self.parts.iter().map(Part::entry).collect();
        encode(header, &entries, &mut self.record.0);
        self.extents.clear();
        let record = GuestBuf::new(self.record.0.as_mut_ptr(), BLOCK_LEN);
        self.add(self.slot, record);
        for i in 0..self.parts.len() {
            if let Part::Block { frame, slot, .. } = self.parts[i] {
                let data = GuestBuf::new(cache.memory().frame(frame).as_ptr(), BLOCK_LEN);
                self.add(slot, data);
            }
        }
        self.stage = Stage::Writing(self.extents.len());
        self.failed = false;
    }

    fn add(&mut self, slot: Slot, buf: GuestBuf) {
        match self.extents.last_mut() {
            Some(last) if last.offset + last.left as u64 == slot.offset() => {
                last.bufs.push(buf);
                last.left += BLOCK_LEN;
            }
            _ => {
                let (bufs, offset) = (vec![buf], slot.offset());
                self.extents.push(Extent { bufs, offset, left: BLOCK_LEN, submitted: false });
            }
        }
    }

    /// The slots of its data.
    pub(super) fn unplace(&self) -> Vec<Slot> {
        let slot = |part: &Part| match part {
            Part::Block { slot, .. } => Some(*slot),
            Part::Zeros { .. } => None,
        };
        self.parts.iter().filter_map(slot).collect()
    }
}
