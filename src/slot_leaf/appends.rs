//! Batches on their way to the file, in the order of their records.

use std::collections::VecDeque;
use std::io;

use super::batch::{Batch, Part, Stage};
use super::blocks::Blocks;
use super::jobs::{Job, Jobs};
use super::page::Page;
use super::pending::Taken;
use super::record::{Header, Key};
use super::slots::Slots;
use super::take_first_if;
use super::word::{BLOCK_LEN, Slot};
use crate::engine::{Engine, Op};
use crate::virtqueue::GuestBuf;
use crate::write_cache::{Memory, WriteCache};

/// Batches on their way at a time.
const BATCHES_MAX: usize = 4;
/// The first pause before a failed write is tried again, and the longest, in nanoseconds.
pub(super) const PAUSE: u64 = 10_000_000;
const PAUSE_MAX: u64 = 1_000_000_000;

/// The batches.
#[derive(Debug)]
pub(super) struct Appends {
    key: Key,
    batches: VecDeque<Batch>,
    /// Where the next record will be, and its number.
    next: (Slot, u64),
    /// The last record that is durable with all before it.
    applied: u64,
    syncing: bool,
}

impl Appends {
    /// None yet; `next` says where the first record will be, and its number.
    pub(super) fn new(key: Key, next: (Slot, u64)) -> Self {
        Self { key, batches: VecDeque::new(), next, applied: next.1 - 1, syncing: false }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Whether another one may be begun.
    pub(super) fn has_room(&self) -> bool {
        self.batches.len() < BATCHES_MAX
    }

    /// Whether one of them fails.
    pub(super) fn is_failing(&self) -> bool {
        self.batches.iter().any(|batch| batch.failures > 0)
    }

    /// The oldest order of what they hold.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.batches.iter().map(|batch| batch.oldest).min()
    }

    /// The last record that is durable with all before it, and where the next one is or will
    /// be.
    pub(super) fn durable_end(&self) -> (u64, Slot) {
        (self.applied, self.batches.front().map_or(self.next.0, |batch| batch.slot))
    }

    /// Tells of the slots that they use.
    pub(super) fn each_slot(&self, mut tell: impl FnMut(Slot)) {
        for batch in &self.batches {
            tell(batch.slot);
            batch.unplace().into_iter().chain(batch.abandoned.iter().copied()).for_each(&mut tell);
        }
        tell(self.next.0);
    }

    /// Begins a batch. `urgent`: a flush waits for it.
    pub(super) fn begin<M: Memory>(
        &mut self,
        taken: Taken,
        cache: &WriteCache<M>,
        slots: &mut Slots,
        urgent: bool,
    ) {
        let (slot, number) = self.next;
        let mut batch = Batch::new(number, slot, taken.parts, taken.oldest);
        let last = batch.place(slots);
        let behind = Slot(last.0 + 1);
        batch.successor = if slots.take_at(behind) { behind } else { slots.take_run(1).0 };
        self.next = (batch.successor, number + 1);
        let left = batch.to_merge();
        batch.stage = Stage::Merging(left);
        self.batches.push_back(batch);
        if left == 0 {
            self.prepare(self.batches.len() - 1, cache, urgent);
        }
    }

    fn prepare<M: Memory>(&mut self, i: usize, cache: &WriteCache<M>, urgent: bool) {
        let batch = &mut self.batches[i];
        let header = Header {
            key: self.key,
            number: batch.number,
            slot: batch.slot,
            successor: batch.successor,
            synced: self.applied,
        };
        batch.prepare(cache, &header);
        // Nothing else is on its way: one write does for write and sync.
        let alone = self.batches.len() == 1 && !self.syncing;
        let batch = &mut self.batches[i];
        batch.durable = alone && urgent && batch.extents.len() == 1;
    }

    /// Submits what can be.
    pub(super) fn advance<M: Memory>(
        &mut self,
        io: &mut impl Engine,
        jobs: &mut Jobs,
        cache: &WriteCache<M>,
        slots: &mut Slots,
        now: u64,
        urgent: bool,
    ) {
        self.retry(cache, slots, now, urgent);
        for batch in &mut self.batches {
            match batch.stage {
                Stage::Merging(_) => submit_merges(batch, io, jobs),
                Stage::Writing(_) => submit_extents(batch, io, jobs),
                Stage::Written | Stage::Failed(_) => {}
            }
        }
        let written = self.batches.iter().take_while(|batch| batch.stage == Stage::Written);
        if let Some(covers) = written.last().map(|batch| batch.number)
            && !self.syncing
        {
            self.syncing = jobs.submit(io, Op::Sync, Job::Sync { covers });
        }
    }

    fn retry<M: Memory>(
        &mut self,
        cache: &WriteCache<M>,
        slots: &mut Slots,
        now: u64,
        urgent: bool,
    ) {
        for i in 0..self.batches.len() {
            let batch = &mut self.batches[i];
            if !matches!(batch.stage, Stage::Failed(at) if at <= now) {
                continue;
            }
            let left = batch.to_merge();
            if left > 0 {
                batch.stage = Stage::Merging(left);
                batch.failed = false;
                continue;
            }
            // What failed may be on the disk all the same, as a record that is whole: its
            // slots stay until the next attempt has replaced it durably.
            batch.place_elsewhere(slots);
            self.prepare(i, cache, urgent);
        }
    }

    fn place_of(&self, number: u64) -> Option<usize> {
        self.batches.iter().position(|batch| batch.number == number)
    }

    /// An extent is written, or not; the number of a batch that is durable by that.
    pub(super) fn extent_done(
        &mut self,
        number: u64,
        extent: usize,
        result: io::Result<u32>,
        now: u64,
    ) -> Option<u64> {
        let i = self.place_of(number)?;
        let batch = &mut self.batches[i];
        let e = batch.extents.get_mut(extent)?;
        e.submitted = false;
        match result {
            Ok(count) if count > 0 => {
                e.advance(count as usize);
                if e.left > 0 && !batch.failed {
                    return None;
                }
            }
            Ok(_) | Err(_) => batch.failed = true,
        }
        e.left = 0;
        let Stage::Writing(left) = batch.stage else { return None };
        batch.stage = match left - 1 {
            0 if batch.failed => failure(batch, now),
            0 => Stage::Written,
            left => Stage::Writing(left),
        };
        (batch.stage == Stage::Written && batch.durable && i == 0).then_some(number)
    }

    /// The old slot of a batch's part was read, or not.
    pub(super) fn merge_done<M: Memory>(
        &mut self,
        (number, part): (u64, usize),
        page: Box<Page>,
        result: io::Result<u32>,
        cache: &WriteCache<M>,
        now: u64,
        urgent: bool,
    ) {
        let Some(i) = self.place_of(number) else { return };
        let batch = &mut self.batches[i];
        let Stage::Merging(left) = batch.stage else { return };
        if matches!(result, Ok(count) if count as usize == BLOCK_LEN) {
            if let Some(Part::Block { merging, .. }) = batch.parts.get_mut(part) {
                *merging = Some(page);
            }
            batch.merge(part, cache);
        } else {
            batch.failed = true;
        }
        if left > 1 {
            batch.stage = Stage::Merging(left - 1);
        } else if batch.failed {
            batch.stage = failure(batch, now);
        } else {
            self.prepare(i, cache, urgent);
        }
    }

    /// A sync is done. Where it failed, nothing is known of what it covered, so all of it is
    /// written again.
    pub(super) fn synced(&mut self, result: &io::Result<u32>, now: u64) {
        self.syncing = false;
        if result.is_err() {
            for batch in self.batches.iter_mut().filter(|batch| batch.stage == Stage::Written) {
                batch.stage = failure(batch, now);
            }
        }
    }

    /// Takes the first batch, if it is not behind this one: it is durable, and in the index
    /// from now on.
    pub(super) fn end<M: Memory>(
        &mut self,
        number: u64,
        blocks: &mut Blocks<M>,
        superseded: &mut Vec<Slot>,
    ) -> Option<Batch> {
        let batch = take_first_if(&mut self.batches, |batch| batch.number <= number)?;
        self.applied = batch.number;
        for part in &batch.parts {
            blocks.apply(part, superseded);
        }
        Some(batch)
    }
}

fn failure(batch: &mut Batch, now: u64) -> Stage {
    let pause = PAUSE << batch.failures.min(7);
    batch.failures += 1;
    Stage::Failed(now + pause.min(PAUSE_MAX))
}

/// Reads the old slots of a batch's blocks that keep some of their sectors.
fn submit_merges(batch: &Batch, io: &mut impl Engine, jobs: &mut Jobs) {
    for (i, part) in batch.parts.iter().enumerate() {
        let Some((slot, _)) = part.to_merge() else { continue };
        let is_asked = |job: &Job| matches!(job, Job::Merge { batch: b, part: p, .. } if (*b, *p) == (batch.number, i));
        if jobs.has(is_asked) {
            continue;
        }
        let mut page = Page::zeroed();
        let into = GuestBuf::new(page.0.as_mut_ptr(), BLOCK_LEN);
        let op = Op::Read { into, offset: slot.offset() };
        if !jobs.submit(io, op, Job::Merge { batch: batch.number, part: i, page }) {
            return;
        }
    }
}

fn submit_extents(batch: &mut Batch, io: &mut impl Engine, jobs: &mut Jobs) {
    let (number, durable) = (batch.number, batch.durable);
    for (i, extent) in batch.extents.iter_mut().enumerate() {
        if extent.submitted || extent.left == 0 {
            continue;
        }
        let op = Op::Write { from: &extent.bufs, offset: extent.offset, durable };
        if !jobs.submit(io, op, Job::Extent { batch: number, extent: i }) {
            return;
        }
        extent.submitted = true;
    }
}
