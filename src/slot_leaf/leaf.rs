//! One VM's leaf while it is used: reads, writes, discards, flushes, and what they need of
//! the disk.
//!
//! Everything is done by the thread that owns it. What takes time is submitted to an
//! [`Engine`] in [`Leaf::advance`], and goes on in [`Leaf::complete`]. The rooms: what the
//! disk holds ([`super::blocks`]), what is dirty ([`super::pending`]), batches on their way
//! ([`super::appends`]), records and checkpoints ([`super::window`]).

use std::collections::VecDeque;
use std::io;

use super::appends::Appends;
use super::blocks::{Blocks, What};
use super::index::Index;
use super::jobs::{Job, Jobs};
use super::pending::Pending;
use super::record::{ENTRIES_MAX, Key};
use super::slots::Slots;
use super::superblock::{PLACES, Superblock};
use super::window::Window;
use super::word::{BLOCK_LEN, Mask, Slot};
use crate::engine::{Engine, Op, Token};
use crate::virtqueue::GuestBuf;
use crate::write_cache::{Memory, WriteCache};

/// How a leaf behaves. Times are in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Dirty frames from which on write-back begins by itself.
    pub write_back_at: usize,
    /// How long data may stay in memory only.
    pub age_max: u64,
    /// Bytes that records since the last checkpoint may stand for.
    pub window: u64,
    /// How long a flush waits for a disk that fails.
    pub patience: u64,
}

/// No frame is free: some have to be written first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NoRoom;

/// Where the sectors of a block come from; those in no mask are the root's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source {
    /// A frame, and which sectors it has.
    pub frame: Option<(u32, Mask)>,
    /// Sectors that are zeros.
    pub zeros: Mask,
    /// A slot, its checksum, and which sectors are to be taken from it.
    pub slot: Option<(Slot, u32, Mask)>,
    /// Sectors that are lost.
    pub damaged: Mask,
}

/// What a leaf has to tell.
#[derive(Debug)]
pub enum Event {
    /// A flush is done, or its patience has ended.
    Flushed {
        /// As given to [`Leaf::flush`].
        tag: u64,
        /// Whether all that it covers is durable.
        durable: bool,
    },
    /// A slot was read into a frame, which is the caller's until [`Leaf::give_back`].
    Fetched {
        /// As given to [`Leaf::fetch`].
        tag: u64,
        /// The block.
        block: u64,
        /// What was read: its checksum is right.
        slot: Slot,
        /// Where the data is, or why there is none.
        frame: Result<u32, FetchError>,
    },
}

/// Why a slot could not be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FetchError {
    /// The block has moved meanwhile: look again.
    Moved,
    /// The disk failed.
    Disk,
    /// The checksum is wrong.
    Damaged,
}

/// The leaf. Whoever drops it with operations in flight keeps its write cache's memory until
/// the engine has ended them, and hands none of their tokens to another leaf.
#[derive(Debug)]
pub struct Leaf<M> {
    settings: Settings,
    blocks: Blocks<M>,
    pending: Pending,
    appends: Appends,
    window: Window,
    slots: Slots,
    jobs: Jobs,
    events: VecDeque<Event>,
}

/// What recovery found: see [`super::recover`].
pub(super) struct Recovered<M> {
    pub(super) settings: Settings,
    pub(super) superblock: Superblock,
    pub(super) durable_place: usize,
    pub(super) index: Index,
    pub(super) slots: Slots,
    pub(super) cache: WriteCache<M>,
    pub(super) next: (Slot, u64),
    pub(super) records: VecDeque<(u64, Slot)>,
    pub(super) superseded: Vec<Slot>,
}

impl<M: Memory> Leaf<M> {
    pub(super) fn start(found: Recovered<M>, now: u64) -> Self {
        let key = found.superblock.openings.last().map_or(Key::default(), |last| last.key);
        let mut pending = Pending::default();
        let blocks = Blocks::new(found.index, found.cache, |order, what| {
            pending.push(order, now, what);
        });
        let (place, records) = (found.durable_place, found.records);
        Self {
            settings: found.settings,
            blocks,
            pending,
            appends: Appends::new(key, found.next),
            window: Window::new(found.superblock, place, records, found.superseded),
            slots: found.slots,
            jobs: Jobs::default(),
            events: VecDeque::new(),
        }
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.blocks.index().blocks()
    }

    /// The write cache.
    pub fn cache(&self) -> &WriteCache<M> {
        self.blocks.cache()
    }

    /// Free and used slots.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// What is to be told, if anything.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Where the index lies in the file.
    pub fn index_slots(&self) -> Vec<Slot> {
        let mut slots = Vec::new();
        self.blocks.index().each_node(|slot| slots.push(slot));
        slots
    }

    /// Whether each slot is either free or of use to something, and to one thing only.
    ///
    /// # Errors
    /// Which slot isn't.
    pub fn audit(&self) -> Result<(), String> {
        let mut used: Vec<Slot> = PLACES.to_vec();
        self.blocks.index().each_slot(|slot| used.push(slot));
        self.appends.each_slot(|slot| used.push(slot));
        self.window.each_slot(|slot| used.push(slot));
        used.sort_unstable();
        if let Some(pair) = used.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("slot {} is used twice", pair[0].0));
        }
        if let Some(slot) = used.iter().find(|slot| self.slots.is_free(**slot)) {
            return Err(format!("slot {} is used, and free", slot.0));
        }
        let (used, free) = (used.len() as u64, self.slots.free_count());
        let all = self.slots.end().0;
        if used + free != all {
            return Err(format!("{used} slots are used and {free} are free, of {all}"));
        }
        Ok(())
    }

    /// Whether nothing is dirty and nothing in flight.
    pub fn is_idle(&self) -> bool {
        let nothing_in_flight = self.jobs.in_flight() == 0 && self.appends.is_empty();
        nothing_in_flight && self.cache().dirty() == 0 && self.window.is_at_rest()
    }

    /// Where a block's sectors come from, now.
    pub fn source(&self, block: u64) -> Source {
        self.blocks.source(block)
    }

    /// Writes whole sectors of one block, from sector `first` of it on; acknowledged when
    /// this returns.
    ///
    /// # Errors
    /// [`NoRoom`]: nothing is written.
    pub fn write(&mut self, now: u64, block: u64, first: u32, data: &[u8]) -> Result<(), NoRoom> {
        if let Some(order) = self.blocks.write(block, first, data)? {
            self.pending.push(order, now, What::Block(block));
        }
        Ok(())
    }

    /// Makes whole blocks zeros; acknowledged when this returns.
    ///
    /// # Errors
    /// [`NoRoom`]: nothing is done.
    pub fn discard(&mut self, now: u64, first: u64, count: u64) -> Result<(), NoRoom> {
        let count = count.min(self.blocks().saturating_sub(first));
        if count == 0 {
            return Ok(());
        }
        let done = self.blocks.discard(first, count)?;
        if done.unwritten {
            self.pending.cover(done.order);
        }
        self.pending.push(done.order, now, done.what);
        Ok(())
    }

    /// Asks for all that was acknowledged until now to be durable; [`Event::Flushed`] says
    /// when.
    pub fn flush(&mut self, now: u64, tag: u64) {
        self.pending.push_flush(tag, self.cache().sequence(), now);
        self.end_flushes(now);
    }

    /// Asks for a checkpoint.
    pub fn want_checkpoint(&mut self) {
        self.window.want_checkpoint();
    }

    /// Reads the slot that a block's [`Source`] names; [`Event::Fetched`] says when. False
    /// where there is no frame or no room in the engine: try again.
    pub fn fetch(&mut self, io: &mut impl Engine, block: u64, tag: u64) -> bool {
        let Some((slot, crc, _)) = self.source(block).slot else {
            return false;
        };
        let Ok(frame) = self.blocks.take_frame() else { return false };
        let into = GuestBuf::new(self.cache().memory().frame(frame).as_ptr(), BLOCK_LEN);
        let op = Op::Read { into, offset: slot.offset() };
        let submitted = self.jobs.submit(io, op, Job::Fetch { tag, block, frame, slot, crc });
        if !submitted {
            self.blocks.drop_frame(frame);
        }
        submitted
    }

    /// Gives back a frame of [`Event::Fetched`]; it stays as the block's clean one, if it can.
    pub fn give_back(&mut self, block: u64, slot: Slot, frame: u32) {
        self.blocks.give_back(block, slot, frame);
    }

    /// Does what can be done now, without waiting.
    pub fn advance(&mut self, io: &mut impl Engine, now: u64) {
        while self.append(now) {}
        let urgent = self.pending.has_flushes();
        let (cache, slots) = (self.blocks.cache(), &mut self.slots);
        self.appends.advance(io, &mut self.jobs, cache, slots, now, urgent);
        let end = self.appends.durable_end();
        let file = (self.blocks.index_mut(), &mut self.slots);
        self.window.advance(io, &mut self.jobs, file, end, now, self.settings.window);
        self.end_flushes(now);
    }

    /// Puts what is dirty into a batch, if it is time to; false where there is nothing.
    fn append(&mut self, now: u64) -> bool {
        if !self.appends.has_room() {
            return false;
        }
        let much = self.cache().dirty() >= self.settings.write_back_at
            || self.cache().available() < ENTRIES_MAX
            || self.blocks.has_many_runs();
        let age_max = self.settings.age_max;
        let Some(taken) = self.pending.take(&mut self.blocks, now, age_max, much) else {
            return false;
        };
        let urgent = self.pending.has_flushes();
        self.appends.begin(taken, self.blocks.cache(), &mut self.slots, urgent);
        true
    }

    /// An operation is done. The result is what the system call would have returned.
    pub fn complete(&mut self, token: Token, result: io::Result<u32>, now: u64) {
        let Some(job) = self.jobs.end(token) else { return };
        let urgent = self.pending.has_flushes();
        match job {
            Job::Extent { batch, extent } => {
                if let Some(number) = self.appends.extent_done(batch, extent, result, now) {
                    self.durable_until(number);
                }
            }
            Job::Merge { batch, part, page } => {
                let (at, cache) = ((batch, part), self.blocks.cache());
                self.appends.merge_done(at, page, result, cache, now, urgent);
            }
            Job::Sync { covers } => {
                self.appends.synced(&result, now);
                if result.is_ok() {
                    self.durable_until(covers);
                }
            }
            Job::Node { slot } => self.window.node_done(slot, &result, now),
            Job::CheckpointSync => {
                let index = self.blocks.index_mut();
                self.window.synced(&result, index, &mut self.slots, now);
            }
            Job::Fetch { tag, block, frame, slot, crc } => {
                let frame = self.blocks.check_fetched(block, frame, slot, crc, result);
                self.events.push_back(Event::Fetched { tag, block, slot, frame });
            }
        }
        self.end_flushes(now);
    }

    fn durable_until(&mut self, number: u64) {
        let superseded = self.window.superseded();
        let mut ended = Vec::new();
        while let Some(batch) = self.appends.end(number, &mut self.blocks, superseded) {
            ended.push(batch);
        }
        for batch in ended {
            self.window.push(batch.number, batch.slot, batch.parts.len());
            batch.abandoned.into_iter().for_each(|slot| self.slots.free(slot));
        }
        self.pending.release();
    }

    fn end_flushes(&mut self, now: u64) {
        let pending = self.pending.oldest(&self.blocks);
        let oldest = pending.into_iter().chain(self.appends.oldest()).min();
        let failing = self.appends.is_failing();
        let since = failing.then(|| now.checked_sub(self.settings.patience)).flatten();
        while let Some((flush, durable)) = self.pending.end_flush(oldest, since) {
            self.events.push_back(Event::Flushed { tag: flush.tag, durable });
        }
    }
}
