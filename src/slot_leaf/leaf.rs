//! One VM's leaf while it is used: reads, writes, discards, flushes, and what they need of
//! the disk.
//!
//! Everything is done by the thread that owns it. What takes time is submitted to an
//! [`Engine`] in [`Leaf::advance`], and goes on in [`Leaf::complete`].
#![expect(unsafe_code, reason = "buffers of operations in flight, by address")]

use std::collections::{HashSet, VecDeque};
use std::io;

use super::batch::{Batch, Part, Stage};
use super::checkpoint::{self, Checkpoint};
use super::index::Index;
use super::page::Page;
use super::record::{ENTRIES_MAX, Header, Key};
use super::slots::Slots;
use super::superblock::Superblock;
use super::word::{BLOCK_LEN, Mask, Slot};
use crate::engine::{Engine, Op, Token};
use crate::virtqueue::GuestBuf;
use crate::write_cache::{Content, Memory, State, WriteCache};

/// Batches on their way at a time.
const BATCHES_MAX: usize = 4;
/// Runs of zeros that no durable record has yet.
const RUNS_MAX: usize = 64;
/// The first pause before a failed write is tried again, and the longest, in nanoseconds.
const PAUSE: u64 = 10_000_000;
const PAUSE_MAX: u64 = 1_000_000_000;

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

#[derive(Clone, Copy, Debug)]
enum What {
    Block(u64),
    Run(u32),
}

/// Something dirty, in the order in which it became so.
#[derive(Clone, Copy, Debug)]
struct Item {
    order: u64,
    since: u64,
    what: What,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    frame: u32,
    first: u64,
    count: u64,
}

#[derive(Clone, Copy, Debug)]
struct Flush {
    tag: u64,
    order: u64,
    since: u64,
}

/// What an operation in flight is for.
#[derive(Debug)]
enum Job {
    Extent { batch: u64, extent: usize },
    Merge { batch: u64, part: usize, page: Box<Page> },
    Sync { covers: u64 },
    Node { slot: Slot },
    CheckpointSync,
    Fetch { tag: u64, block: u64, frame: u32, slot: Slot, crc: u32 },
}

/// The leaf.
#[derive(Debug)]
pub struct Leaf<M> {
    settings: Settings,
    superblock: Superblock,
    durable_place: usize,
    key: Key,
    index: Index,
    slots: Slots,
    cache: WriteCache<M>,
    queue: VecDeque<Item>,
    /// Items whose block is in a batch, or under a run that is not durable.
    held_back: Vec<Item>,
    busy: HashSet<u64>,
    runs: Vec<Run>,
    batches: VecDeque<Batch>,
    /// Where the next record will be, and its number.
    next: (Slot, u64),
    /// The last record that is durable with all before it, and in the index.
    applied: u64,
    /// Records since the last checkpoint.
    records: VecDeque<(u64, Slot)>,
    /// Slots that nothing names any more, until the next checkpoint is durable.
    superseded: Vec<Slot>,
    window: u64,
    syncing: bool,
    checkpoint: Option<Checkpoint>,
    /// A checkpoint is wanted though the window is short.
    checkpoint_wanted: bool,
    flushes: VecDeque<Flush>,
    jobs: Vec<Option<Job>>,
    free_jobs: Vec<Token>,
    events: VecDeque<Event>,
}

/// Takes the first one, if it is such.
fn pop_if<T>(queue: &mut VecDeque<T>, is_such: impl FnOnce(&T) -> bool) -> Option<T> {
    queue.front().is_some_and(is_such).then(|| queue.pop_front()).flatten()
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
        let window = found.records.len() as u64 * BLOCK_LEN as u64;
        let mut leaf = Self {
            settings: found.settings,
            superblock: found.superblock,
            durable_place: found.durable_place,
            key,
            index: found.index,
            slots: found.slots,
            cache: found.cache,
            queue: VecDeque::new(),
            held_back: Vec::new(),
            busy: HashSet::new(),
            runs: Vec::new(),
            batches: VecDeque::new(),
            next: found.next,
            applied: found.next.1 - 1,
            records: found.records,
            superseded: found.superseded,
            window,
            syncing: false,
            checkpoint: None,
            checkpoint_wanted: false,
            flushes: VecDeque::new(),
            jobs: Vec::new(),
            free_jobs: Vec::new(),
            events: VecDeque::new(),
        };
        leaf.adopt_frames(now);
        leaf
    }

    /// Takes over what an earlier process acknowledged and had not written.
    fn adopt_frames(&mut self, now: u64) {
        for left in self.cache.left() {
            match left.content {
                Content::Sectors { block, mask } => {
                    if block >= self.index.blocks() || mask.is_empty() {
                        self.cache.supersede(left.frame);
                        continue;
                    }
                    if let Some(older) = self.index.get(block).frame() {
                        self.cache.supersede(older);
                    }
                    self.index.set_frame(block, Some(left.frame));
                    self.enqueue(left.sequence, now, What::Block(block));
                }
                Content::Zeros { first, count } => {
                    if first >= self.index.blocks() || count > self.index.blocks() - first {
                        self.cache.supersede(left.frame);
                        continue;
                    }
                    self.supersede_frames(first, count);
                    self.runs.push(Run { frame: left.frame, first, count });
                    self.enqueue(left.sequence, now, What::Run(left.frame));
                }
            }
        }
    }

    fn enqueue(&mut self, order: u64, since: u64, what: What) {
        self.queue.push_back(Item { order, since, what });
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.index.blocks()
    }

    /// The write cache.
    pub fn cache(&self) -> &WriteCache<M> {
        &self.cache
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
        self.index.each_node(|slot| slots.push(slot));
        slots
    }

    /// Whether each slot is either free or of use to something, and to one thing only.
    ///
    /// # Errors
    /// Which slot isn't.
    pub fn audit(&self) -> Result<(), String> {
        let mut used: Vec<Slot> = super::superblock::PLACES.to_vec();
        self.index.each_slot(|slot| used.push(slot));
        used.extend(self.records.iter().map(|(_, slot)| *slot));
        used.extend(&self.superseded);
        used.extend(self.batches.iter().map(|batch| batch.slot));
        used.extend(self.batches.iter().flat_map(Batch::unplace));
        used.push(self.next.0);
        if let Some(checkpoint) = &self.checkpoint {
            used.extend(&checkpoint.freed);
        }
        used.extend(self.batches.iter().flat_map(|batch| &batch.abandoned));
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
        self.cache.dirty() == 0
            && self.batches.is_empty()
            && self.checkpoint.is_none()
            && self.in_flight() == 0
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.jobs.len() - self.free_jobs.len()
    }

    /// Where a block's sectors come from, now.
    pub fn source(&self, block: u64) -> Source {
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

    /// Writes whole sectors of one block, from sector `first` of it on; acknowledged when
    /// this returns.
    ///
    /// # Errors
    /// [`NoRoom`]: nothing is written.
    pub fn write(&mut self, now: u64, block: u64, first: u32, data: &[u8]) -> Result<(), NoRoom> {
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
        let mut queued = false;
        if let Some((older, _)) = older {
            // Its place in the queue stays: a flush that covers it needs this data now.
            queued = matches!(self.cache.state(older), State::Dirty(_));
            self.cache.supersede(older);
        }
        self.index.set_frame(block, Some(frame));
        if !queued {
            self.enqueue(order, now, What::Block(block));
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
        if self.runs.len() >= RUNS_MAX {
            return Err(NoRoom);
        }
        let frame = self.take_frame()?;
        let order = self.cache.publish(frame, Content::Zeros { first, count });
        if self.supersede_frames(first, count) {
            // A flush that covers one of them needs the zeros in its place.
            for flush in &mut self.flushes {
                flush.order = order;
            }
        }
        self.runs.push(Run { frame, first, count });
        self.enqueue(order, now, What::Run(frame));
        Ok(())
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

    fn take_frame(&mut self) -> Result<u32, NoRoom> {
        let taken = self.cache.take().ok_or(NoRoom)?;
        if let Some(block) = taken.evicted {
            self.index.set_frame(block, None);
        }
        Ok(taken.frame)
    }

    /// Asks for all that was acknowledged until now to be durable; [`Event::Flushed`] says
    /// when.
    pub fn flush(&mut self, now: u64, tag: u64) {
        let order = self.cache.sequence();
        self.flushes.push_back(Flush { tag, order, since: now });
        self.end_flushes(now);
    }

    /// Asks for a checkpoint.
    pub fn want_checkpoint(&mut self) {
        self.checkpoint_wanted = true;
    }

    /// Reads the slot that a block's [`Source`] names; [`Event::Fetched`] says when. False
    /// where there is no frame or no room in the engine: try again.
    pub fn fetch(&mut self, io: &mut impl Engine, block: u64, tag: u64) -> bool {
        let Some((slot, crc, _)) = self.source(block).slot else {
            return false;
        };
        let Ok(frame) = self.take_frame() else { return false };
        let into = GuestBuf::new(self.cache.memory().frame(frame).as_ptr(), BLOCK_LEN);
        let op = Op::Read { into, offset: slot.offset() };
        let submitted = self.submit(io, op, Job::Fetch { tag, block, frame, slot, crc });
        if !submitted {
            self.cache.supersede(frame);
        }
        submitted
    }

    /// Gives back a frame of [`Event::Fetched`]; it stays as the block's clean one, if it can.
    pub fn give_back(&mut self, block: u64, slot: Slot, frame: u32) {
        let held = self.index.get(block);
        let fits = held.word.slot() == Some(slot) && held.frame().is_none();
        if fits && !self.is_under_run(block) {
            self.cache.keep_clean(frame, block, held.word.data());
            self.index.set_frame(block, Some(frame));
        } else {
            self.cache.supersede(frame);
        }
    }

    fn submit(&mut self, io: &mut impl Engine, op: Op<'_>, job: Job) -> bool {
        let token = self.free_jobs.pop().unwrap_or_else(|| {
            self.jobs.push(None);
            Token::try_from(self.jobs.len() - 1).unwrap_or(Token::MAX)
        });
        // SAFETY: each buffer is a frame that isn't free, a page that the job, its batch or
        // its checkpoint owns, and each list an extent's; all of them stay until the token
        // is completed.
        if unsafe { io.submit(op, token) } {
            self.jobs[token as usize] = Some(job);
            return true;
        }
        self.free_jobs.push(token);
        false
    }

    /// The oldest order of what is not durable.
    fn oldest(&mut self) -> Option<u64> {
        while let Some(item) = self.queue.front() {
            if self.is_dirty(item) {
                break;
            }
            self.queue.pop_front();
        }
        let queued = self.queue.front().map(|item| item.order);
        let held_back = self.held_back.iter().map(|item| item.order).min();
        let batches = self.batches.iter().map(|batch| batch.oldest).min();
        [queued, held_back, batches].into_iter().flatten().min()
    }

    fn is_dirty(&self, item: &Item) -> bool {
        let frame = match item.what {
            What::Block(block) => self.index.get(block).frame(),
            What::Run(frame) => Some(frame),
        };
        frame.is_some_and(|frame| matches!(self.cache.state(frame), State::Dirty(_)))
    }

    fn end_flushes(&mut self, now: u64) {
        let oldest = self.oldest();
        let failing = self.batches.iter().any(|batch| batch.failures > 0);
        while let Some(flush) = self.flushes.front() {
            let durable = oldest.is_none_or(|oldest| oldest > flush.order);
            let patience_ends = failing && now >= flush.since + self.settings.patience;
            if !durable && !patience_ends {
                break;
            }
            self.events.push_back(Event::Flushed { tag: flush.tag, durable });
            self.flushes.pop_front();
        }
    }

    /// Does what can be done now, without waiting.
    pub fn advance(&mut self, io: &mut impl Engine, now: u64) {
        self.retry(now);
        while self.form_batch(io, now) {}
        self.submit_extents(io);
        self.sync(io);
        self.advance_checkpoint(io, now);
        self.end_flushes(now);
    }

    fn retry(&mut self, now: u64) {
        for i in 0..self.batches.len() {
            let Stage::Failed(at) = self.batches[i].stage else { continue };
            if at > now {
                continue;
            }
            let batch = &mut self.batches[i];
            let left = batch.parts.iter().filter(|part| part.to_merge().is_some()).count();
            if left > 0 {
                // Submitted again below, with the extents.
                batch.stage = Stage::Merging(left);
                batch.failed = false;
                continue;
            }
            // What failed may be on the disk all the same, as a record that is whole: its
            // slots stay until the next attempt has replaced it durably.
            batch.place_elsewhere(&mut self.slots);
            self.prepare(i);
        }
    }

    fn prepare(&mut self, i: usize) {
        let synced = self.applied;
        let batch = &mut self.batches[i];
        let header = Header {
            key: self.key,
            number: batch.number,
            slot: batch.slot,
            successor: batch.successor,
            synced,
        };
        batch.prepare(&self.cache, &header);
        // Nothing else is on its way: one write does for write and sync.
        let alone = self.batches.len() == 1 && !self.syncing;
        let batch = &mut self.batches[i];
        batch.durable = alone && batch.extents.len() == 1 && !self.flushes.is_empty();
    }

    /// Puts what is dirty into a batch, if it is time to; false where there is nothing.
    fn form_batch(&mut self, io: &mut impl Engine, now: u64) -> bool {
        if self.batches.len() >= BATCHES_MAX {
            return false;
        }
        let covered = self.flushes.iter().map(|flush| flush.order).max();
        let Some(front) = self.queue.front() else { return false };
        let much = self.cache.dirty() >= self.settings.write_back_at
            || self.cache.available() < ENTRIES_MAX
            || self.runs.len() * 2 > RUNS_MAX;
        let old = now.saturating_sub(front.since) >= self.settings.age_max;
        let asked = covered.is_some_and(|order| front.order <= order);
        if !much && !old && !asked {
            return false;
        }
        let limit = if much || old { u64::MAX } else { covered.unwrap_or(0) };
        let mut parts = Vec::new();
        let mut oldest = u64::MAX;
        while parts.len() < ENTRIES_MAX {
            let Some(item) = pop_if(&mut self.queue, |item| item.order <= limit) else { break };
            if !self.is_dirty(&item) {
                continue;
            }
            match self.part_of(&item) {
                Some(part) => {
                    oldest = oldest.min(item.order);
                    parts.push(part);
                }
                None => self.held_back.push(item),
            }
        }
        if parts.is_empty() {
            return false;
        }
        let (slot, number) = self.next;
        let mut batch = Batch {
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
        };
        let last = batch.place(&mut self.slots);
        let behind = Slot(last.0 + 1);
        batch.successor =
            if self.slots.take_at(behind) { behind } else { self.slots.take_run(1).0 };
        self.next = (batch.successor, number + 1);
        let left = batch.parts.iter().filter(|part| part.to_merge().is_some()).count();
        batch.stage = Stage::Merging(left);
        self.batches.push_back(batch);
        let i = self.batches.len() - 1;
        if left == 0 {
            self.prepare(i);
        } else {
            self.submit_merges(io, i);
        }
        true
    }

    /// What a batch holds of a dirty item; `None` where it has to wait.
    fn part_of(&mut self, item: &Item) -> Option<Part> {
        match item.what {
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

    /// Reads the old slots of a batch's blocks that keep some of their sectors.
    fn submit_merges(&mut self, io: &mut impl Engine, i: usize) {
        let number = self.batches[i].number;
        for part in 0..self.batches[i].parts.len() {
            let Some((slot, _)) = self.batches[i].parts[part].to_merge() else { continue };
            let is_asked = |job: &Option<Job>| matches!(job, Some(Job::Merge { batch, part: p, .. }) if *batch == number && *p == part);
            if self.jobs.iter().any(is_asked) {
                continue;
            }
            let mut page = Page::zeroed();
            let into = GuestBuf::new(page.0.as_mut_ptr(), BLOCK_LEN);
            let op = Op::Read { into, offset: slot.offset() };
            if !self.submit(io, op, Job::Merge { batch: number, part, page }) {
                return;
            }
        }
    }

    fn submit_extents(&mut self, io: &mut impl Engine) {
        for i in 0..self.batches.len() {
            match self.batches[i].stage {
                Stage::Merging(_) => self.submit_merges(io, i),
                Stage::Writing(_) => {
                    for extent in 0..self.batches[i].extents.len() {
                        let number = self.batches[i].number;
                        let e = &self.batches[i].extents[extent];
                        if e.submitted || e.left == 0 {
                            continue;
                        }
                        let bufs: *const [GuestBuf] = e.bufs.as_slice();
                        let (offset, durable) = (e.offset, self.batches[i].durable);
                        // SAFETY: the list is the extent's, which is not touched by `submit`.
                        let op = unsafe { Op::Write { from: &*bufs, offset, durable } };
                        if !self.submit(io, op, Job::Extent { batch: number, extent }) {
                            return;
                        }
                        self.batches[i].extents[extent].submitted = true;
                    }
                }
                Stage::Written | Stage::Failed(_) => {}
            }
        }
    }

    fn sync(&mut self, io: &mut impl Engine) {
        if self.syncing {
            return;
        }
        let written = self.batches.iter().take_while(|batch| batch.stage == Stage::Written);
        let Some(covers) = written.last().map(|batch| batch.number) else { return };
        self.syncing = self.submit(io, Op::Sync, Job::Sync { covers });
    }

    /// An operation is done. The result is what the system call would have returned.
    pub fn complete(&mut self, token: Token, result: io::Result<u32>, now: u64) {
        let Some(job) = self.jobs.get_mut(token as usize).and_then(Option::take) else {
            return;
        };
        self.free_jobs.push(token);
        match job {
            Job::Extent { batch, extent } => self.extent_done(batch, extent, result, now),
            Job::Merge { batch, part, page } => self.merge_done(batch, part, page, result, now),
            Job::Sync { covers } => {
                self.syncing = false;
                match result {
                    Ok(_) => self.durable_until(covers),
                    Err(_) => self.fail_written(now),
                }
            }
            Job::Node { slot } => self.node_done(slot, result, now),
            Job::CheckpointSync => self.checkpoint_synced(result, now),
            Job::Fetch { tag, block, frame, slot, crc } => {
                let frame = self.check_fetched(block, frame, slot, crc, result);
                self.events.push_back(Event::Fetched { tag, block, slot, frame });
            }
        }
        self.end_flushes(now);
    }

    fn batch(&mut self, number: u64) -> Option<usize> {
        self.batches.iter().position(|batch| batch.number == number)
    }

    fn extent_done(&mut self, number: u64, extent: usize, result: io::Result<u32>, now: u64) {
        let Some(i) = self.batch(number) else { return };
        let batch = &mut self.batches[i];
        let Some(e) = batch.extents.get_mut(extent) else { return };
        e.submitted = false;
        match result {
            Ok(count) if count > 0 => {
                e.advance(count as usize);
                if e.left > 0 && !batch.failed {
                    return;
                }
            }
            Ok(_) | Err(_) => batch.failed = true,
        }
        e.left = 0;
        let Stage::Writing(left) = batch.stage else { return };
        batch.stage = match left - 1 {
            0 if batch.failed => Self::failure(batch, now),
            0 => Stage::Written,
            left => Stage::Writing(left),
        };
        if batch.stage == Stage::Written && batch.durable && i == 0 {
            self.durable_until(number);
        }
    }

    fn failure(batch: &mut Batch, now: u64) -> Stage {
        let pause = PAUSE << batch.failures.min(7);
        batch.failures += 1;
        Stage::Failed(now + pause.min(PAUSE_MAX))
    }

    fn merge_done(
        &mut self,
        number: u64,
        part: usize,
        page: Box<Page>,
        result: io::Result<u32>,
        now: u64,
    ) {
        let Some(i) = self.batch(number) else { return };
        let Stage::Merging(left) = self.batches[i].stage else { return };
        if matches!(result, Ok(count) if count as usize == BLOCK_LEN) {
            if let Some(Part::Block { merging, .. }) = self.batches[i].parts.get_mut(part) {
                *merging = Some(page);
            }
            self.batches[i].merge(part, &self.cache);
        } else {
            self.batches[i].failed = true;
        }
        let batch = &mut self.batches[i];
        if left > 1 {
            batch.stage = Stage::Merging(left - 1);
        } else if batch.failed {
            batch.stage = Self::failure(batch, now);
        } else {
            self.prepare(i);
        }
    }

    /// A sync has failed: nothing is known of what it covered, so all of it is written
    /// again.
    fn fail_written(&mut self, now: u64) {
        for batch in self.batches.iter_mut().filter(|batch| batch.stage == Stage::Written) {
            batch.stage = Self::failure(batch, now);
        }
    }

    fn durable_until(&mut self, number: u64) {
        while let Some(batch) = pop_if(&mut self.batches, |batch| batch.number <= number) {
            self.apply(batch);
        }
        // What waited for them comes first now, in its order.
        self.held_back.sort_by_key(|item| item.order);
        while let Some(item) = self.held_back.pop() {
            self.queue.push_front(item);
        }
    }

    /// A batch is durable, and all before it.
    fn apply(&mut self, batch: Batch) {
        self.applied = batch.number;
        self.records.push_back((batch.number, batch.slot));
        self.window += (batch.parts.len() as u64 + 1) * BLOCK_LEN as u64;
        for slot in &batch.abandoned {
            self.slots.free(*slot);
        }
        for part in &batch.parts {
            match *part {
                Part::Block { block, frame, mask, crc, .. } => {
                    let super::record::Entry::Block { word, .. } = part.entry() else { continue };
                    self.superseded.extend(self.index.apply(block, word, crc));
                    self.busy.remove(&block);
                    self.cache.written(frame, mask);
                }
                Part::Zeros { first, count, frame } => {
                    let superseded = &mut self.superseded;
                    self.index.apply_zeros(first, count, &mut |slot| superseded.push(slot));
                    self.runs.retain(|run| run.frame != frame);
                    self.cache.written(frame, Mask::NONE);
                }
            }
        }
    }

    fn check_fetched(
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

    fn advance_checkpoint(&mut self, io: &mut impl Engine, now: u64) {
        if self.checkpoint.is_none() {
            if self.window < self.settings.window && !self.checkpoint_wanted {
                return;
            }
            self.begin_checkpoint();
        }
        let Some(mut checkpoint) = self.checkpoint.take() else { return };
        if checkpoint.again_at <= now {
            checkpoint.step(&mut self.index, &mut self.slots, &self.superblock);
            for i in 0..checkpoint.writes.len() {
                let write = &checkpoint.writes[i];
                if write.submitted {
                    continue;
                }
                let slot = write.slot;
                let op = Op::Write { from: &write.bufs, offset: slot.offset(), durable: false };
                if !self.submit(io, op, Job::Node { slot }) {
                    break;
                }
                checkpoint.writes[i].submitted = true;
            }
            let syncs = [checkpoint::Stage::SyncNodes, checkpoint::Stage::SyncFirst];
            if syncs.contains(&checkpoint.stage) && !checkpoint.syncing {
                checkpoint.syncing = self.submit(io, Op::Sync, Job::CheckpointSync);
            }
        }
        if checkpoint.stage != checkpoint::Stage::Done {
            self.checkpoint = Some(checkpoint);
        }
    }

    fn begin_checkpoint(&mut self) {
        self.checkpoint_wanted = false;
        self.window = 0;
        let base = self.applied;
        let chain = self.batches.front().map_or(self.next.0, |batch| batch.slot);
        let mut freed = std::mem::take(&mut self.superseded);
        while let Some((_, slot)) = pop_if(&mut self.records, |(number, _)| *number <= base) {
            freed.push(slot);
        }
        let place = self.durable_place;
        self.checkpoint = Some(Checkpoint::begin(&mut self.index, base, chain, freed, place));
    }

    /// Nodes that a checkpoint wrote may be lost: the next one writes them again, elsewhere.
    fn give_up_checkpoint(&mut self) {
        if let Some(checkpoint) = self.checkpoint.take() {
            self.index.write_again(&checkpoint.nodes);
            self.superseded.extend(checkpoint.freed);
            self.checkpoint_wanted = true;
        }
    }

    fn node_done(&mut self, slot: Slot, result: io::Result<u32>, now: u64) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        let Some(write) = checkpoint.writes.iter_mut().find(|write| write.slot == slot) else {
            return;
        };
        if matches!(result, Ok(count) if count as usize == BLOCK_LEN) {
            write.done = true;
        } else {
            write.submitted = false;
            checkpoint.again_at = now + PAUSE;
        }
    }

    fn checkpoint_synced(&mut self, result: io::Result<u32>, now: u64) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        if result.is_err() {
            checkpoint.again_at = now + PAUSE;
            if !checkpoint.sync_failed() {
                self.give_up_checkpoint();
            }
            return;
        }
        let counts = checkpoint.stage == checkpoint::Stage::SyncFirst;
        checkpoint.synced();
        if counts {
            self.durable_place = checkpoint.durable_place();
            if let Some(superblock) = checkpoint.superblock.clone() {
                self.superblock = superblock;
            }
            for slot in std::mem::take(&mut checkpoint.freed) {
                self.slots.free(slot);
            }
        }
    }
}
