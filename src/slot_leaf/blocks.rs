//! What a leaf holds of its disk: what is durable in the index, newer data in frames, and
//! runs of zeros that no durable record has yet.
//!
//! Where all three say something of a sector, the frame counts before the run, and the run
//! before the index: a frame that a run covers is superseded when the run comes.

use std::collections::HashSet;
use std::io;

use super::batch::Part;
use super::index::Index;
use super::leaf::{FetchError, NoRoom, Source};
use super::record::Entry;
use super::word::{BLOCK_LEN, Mask, Slot};
use crate::write_cache::{Content, Memory, State, WriteCache};

/// Runs of zeros that no durable record has yet.
const RUNS_MAX: usize = 64;

/// Something that may be dirty.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// The frame that a block has then.
    Block(u64),
    /// The run whose frame this is.
    Run(u32),
}

#[derive(Clone, Copy, Debug)]
struct Run {
    frame: u32,
    first: u64,
    count: u64,
}

/// A discard that was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Discarded {
    /// Its place in the order of changes.
    pub(super) order: u64,
    /// What is dirty with it.
    pub(super) what: What,
    /// Whether data was among what it covers that is in no batch.
    pub(super) unwritten: bool,
}

/// The blocks.
#[derive(Debug)]
pub(super) struct Blocks<M> {
    index: Index,
    cache: WriteCache<M>,
    runs: Vec<Run>,
    /// Blocks in batches.
    busy: HashSet<u64>,
}

impl<M: Memory> Blocks<M> {
    /// The blocks of this index; `changed` hears of what an earlier process acknowledged and
    /// had not written, with its place in the order of changes.
    pub(super) fn new(
        index: Index,
        cache: WriteCache<M>,
        mut changed: impl FnMut(u64, What),
    ) -> Self {
        let mut blocks = Self { index, cache, runs: Vec::new(), busy: HashSet::new() };
        for left in blocks.cache.left() {
            if let Some(what) = blocks.adopt(left.frame, left.content) {
                changed(left.sequence, what);
            }
        }
        blocks
    }

    fn adopt(&mut self, frame: u32, content: Content) -> Option<What> {
        let blocks = self.index.blocks();
        match content {
            Content::Sectors { block, mask } if block < blocks && !mask.is_empty() => {
                if let Some(older) = self.index.get(block).frame() {
                    self.cache.supersede(older);
                }
                self.index.set_frame(block, Some(frame));
                Some(What::Block(block))
            }
            Content::Zeros { first, count } if first < blocks && count <= blocks - first => {
                self.supersede_frames(first, count);
                self.runs.push(Run { frame, first, count });
                Some(What::Run(frame))
            }
            // Of no block of this disk.
            Content::Sectors { .. } | Content::Zeros { .. } => {
                self.cache.supersede(frame);
                None
            }
        }
    }

    /// The index.
    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// The index, for a checkpoint.
    pub(super) fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// The write cache.
    pub(super) fn cache(&self) -> &WriteCache<M> {
        &self.cache
    }

    /// Whether there are so many runs that they had better be written.
    pub(super) fn has_many_runs(&self) -> bool {
        self.runs.len() * 2 > RUNS_MAX
    }

    /// Where a block's sectors come from, now.
    pub(super) fn source(&self, block: u64) -> Source {
        let held = self.index.get(block);
        let frame = held.frame().and_then(|frame| match self.cache.state(frame) {
            State::Dirty(Content::Sectors { mask, .. })
            | State::Writing(Content::Sectors { mask, .. })
            | State::Clean { mask, .. } => Some((frame, mask)),
            _ => None,
        });
        let rest = Mask::ALL.without(frame.map_or(Mask::NONE, |(_, mask)| mask));
        if self.is_under_run(block) {
            return Source { frame, zeros: rest, slot: None, damaged: Mask::NONE };
        }
        let from_slot = held.word.data().and(rest);
        let slot = held.word.slot().filter(|_| !from_slot.is_empty());
        Source {
            frame,
            zeros: held.word.zeros().and(rest),
            slot: slot.map(|slot| (slot, held.crc, from_slot)),
            damaged: held.word.damaged().and(rest),
        }
    }

    fn is_under_run(&self, block: u64) -> bool {
        self.runs.iter().any(|run| block >= run.first && block - run.first < run.count)
    }

    /// Takes a write; its place in the order of changes, unless the block was dirty already:
    /// then it keeps its place, since a flush that covers the older data needs this now.
    pub(super) fn write(
        &mut self,
        block: u64,
        first: u32,
        data: &[u8],
    ) -> Result<Option<u64>, NoRoom> {
        let mask = Mask::of(first, u32::try_from(data.len() / 512).unwrap_or(0));
        let frame = self.take_frame()?;
        // Looked up after a frame was taken: that may have been the block's own clean one.
        let older = self.source(block).frame;
        let mut kept = Mask::NONE;
        if let Some((older, has)) = older {
            kept = has.without(mask);
            for sector in kept.sectors() {
                let mut bytes = [0; 512];
                self.cache.memory().copy_out(older, sector * 512, &mut bytes);
                self.cache.memory().fill(frame, sector * 512, &bytes);
            }
        }
        self.cache.memory().fill(frame, first as usize * 512, data);
        let content = Content::Sectors { block, mask: mask.or(kept) };
        let order = self.cache.publish(frame, content);
        let mut was_dirty = false;
        if let Some((older, _)) = older {
            was_dirty = matches!(self.cache.state(older), State::Dirty(_));
            self.cache.supersede(older);
        }
        self.index.set_frame(block, Some(frame));
        Ok((!was_dirty).then_some(order))
    }

    /// Takes a discard of blocks that there are.
    pub(super) fn discard(&mut self, first: u64, count: u64) -> Result<Discarded, NoRoom> {
        if self.runs.len() >= RUNS_MAX {
            return Err(NoRoom);
        }
        let frame = self.take_frame()?;
        let order = self.cache.publish(frame, Content::Zeros { first, count });
        let unwritten = self.supersede_frames(first, count);
        self.runs.push(Run { frame, first, count });
        Ok(Discarded { order, what: What::Run(frame), unwritten })
    }

    /// True if data that is in no batch was among them.
    fn supersede_frames(&mut self, first: u64, count: u64) -> bool {
        let mut found = Vec::new();
        self.index.frames_in(first, count, &mut |block, frame| found.push((block, frame)));
        let mut unwritten = false;
        for (block, frame) in found {
            unwritten |= matches!(self.cache.state(frame), State::Dirty(_));
            self.cache.supersede(frame);
            self.index.set_frame(block, None);
        }
        unwritten
    }

    /// A frame of no content.
    pub(super) fn take_frame(&mut self) -> Result<u32, NoRoom> {
        let taken = self.cache.take().ok_or(NoRoom)?;
        if let Some(block) = taken.evicted {
            self.index.set_frame(block, None);
        }
        Ok(taken.frame)
    }

    /// A frame that was taken is not used after all.
    pub(super) fn drop_frame(&mut self, frame: u32) {
        self.cache.supersede(frame);
    }

    /// Takes back a frame that a slot was read into; it stays as the block's clean one, if it
    /// can.
    pub(super) fn give_back(&mut self, block: u64, slot: Slot, frame: u32) {
        let held = self.index.get(block);
        let fits = held.word.slot() == Some(slot) && held.frame().is_none();
        if fits && !self.is_under_run(block) {
            self.cache.keep_clean(frame, block, held.word.data());
            self.index.set_frame(block, Some(frame));
        } else {
            self.cache.supersede(frame);
        }
    }

    /// What was read of a slot, if it is still what the block has, and right.
    pub(super) fn check_fetched(
        &mut self,
        block: u64,
        frame: u32,
        slot: Slot,
        crc: u32,
        result: io::Result<u32>,
    ) -> Result<u32, FetchError> {
        let held = self.index.get(block);
        let error = if held.word.slot() != Some(slot) || held.crc != crc {
            // Whatever was read: the slot may have been used again since.
            FetchError::Moved
        } else if !matches!(result, Ok(count) if count as usize == BLOCK_LEN) {
            FetchError::Disk
        } else {
            let mut bytes = [0; BLOCK_LEN];
            self.cache.memory().copy_out(frame, 0, &mut bytes);
            if crc32c::crc32c(&bytes) == crc {
                return Ok(frame);
            }
            FetchError::Damaged
        };
        self.cache.supersede(frame);
        Err(error)
    }

    /// Whether this is dirty, and in no batch.
    pub(super) fn is_dirty(&self, what: What) -> bool {
        let frame = match what {
            What::Block(block) => self.index.get(block).frame(),
            What::Run(frame) => Some(frame),
        };
        frame.is_some_and(|frame| matches!(self.cache.state(frame), State::Dirty(_)))
    }

    /// What a batch holds of a dirty item; `None` where it has to wait.
    pub(super) fn part_of(&mut self, what: What) -> Option<Part> {
        match what {
            What::Block(block) => {
                if self.busy.contains(&block) || self.is_under_run(block) {
                    return None;
                }
                let held = self.index.get(block);
                let frame = held.frame()?;
                let State::Dirty(Content::Sectors { mask, .. }) = self.cache.state(frame) else {
                    return None;
                };
                self.cache.begin_writing(frame);
                self.busy.insert(block);
                Some(Part::Block {
                    block,
                    frame,
                    mask,
                    before: held.word,
                    before_crc: held.crc,
                    merging: None,
                    slot: Slot(0),
                    crc: 0,
                })
            }
            What::Run(frame) => {
                self.cache.begin_writing(frame);
                let run = self.runs.iter().find(|run| run.frame == frame)?;
                Some(Part::Zeros { first: run.first, count: run.count, frame })
            }
        }
    }

    /// A batch's part is durable, and all before it; `superseded` hears of the slots that are
    /// named no more.
    pub(super) fn apply(&mut self, part: &Part, superseded: &mut Vec<Slot>) {
        match part.entry() {
            Entry::Block { block, word, crc } => {
                superseded.extend(self.index.apply(block, word, crc));
                self.busy.remove(&block);
                self.cache.written(part.frame(), word.data());
            }
            Entry::Zeros { first, count } => {
                self.index.apply_zeros(first, count, &mut |slot| superseded.push(slot));
                self.runs.retain(|run| run.frame != part.frame());
                self.cache.written(part.frame(), Mask::NONE);
            }
        }
    }
}
