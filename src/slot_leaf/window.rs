//! Records since the last checkpoint, and the checkpoint that ends them.

use std::collections::VecDeque;
use std::io;

use super::appends::PAUSE;
use super::checkpoint::{Checkpoint, Stage};
use super::index::Index;
use super::jobs::{Job, Jobs};
use super::slots::Slots;
use super::superblock::Superblock;
use super::take_first_if;
use super::word::{BLOCK_LEN, Slot};
use crate::engine::{Engine, Op};

/// The window.
#[derive(Debug)]
pub(super) struct Window {
    /// The durable one, and which of its two places has it.
    superblock: Superblock,
    durable_place: usize,
    /// Numbers and slots of the records.
    records: VecDeque<(u64, Slot)>,
    /// Slots that nothing names any more, until the next checkpoint is durable.
    superseded: Vec<Slot>,
    bytes: u64,
    checkpoint: Option<Checkpoint>,
    /// A checkpoint is wanted though the window is short.
    wanted: bool,
}

impl Window {
    /// What recovery found.
    pub(super) fn new(
        superblock: Superblock,
        durable_place: usize,
        records: VecDeque<(u64, Slot)>,
        superseded: Vec<Slot>,
    ) -> Self {
        let bytes = records.len() as u64 * BLOCK_LEN as u64;
        let (checkpoint, wanted) = (None, false);
        Self { superblock, durable_place, records, superseded, bytes, checkpoint, wanted }
    }

    /// Whether no checkpoint is under way.
    pub(super) fn is_at_rest(&self) -> bool {
        self.checkpoint.is_none()
    }

    /// Asks for a checkpoint.
    pub(super) fn want_checkpoint(&mut self) {
        self.wanted = true;
    }

    /// Tells of the slots that are kept for recovery.
    pub(super) fn each_slot(&self, tell: impl FnMut(Slot)) {
        let records = self.records.iter().map(|(_, slot)| slot);
        let freed = self.checkpoint.iter().flat_map(|checkpoint| &checkpoint.freed);
        records.chain(&self.superseded).chain(freed).copied().for_each(tell);
    }

    /// Slots that a durable record names no more go here.
    pub(super) fn superseded(&mut self) -> &mut Vec<Slot> {
        &mut self.superseded
    }

    /// A record of so many parts is durable.
    pub(super) fn push(&mut self, number: u64, slot: Slot, parts: usize) {
        self.records.push_back((number, slot));
        self.bytes += (parts as u64 + 1) * BLOCK_LEN as u64;
    }

    /// Goes on with a checkpoint, or begins one where the window is longer than `most` bytes.
    /// `end`: the last record that is durable, and where the next one is.
    pub(super) fn advance(
        &mut self,
        io: &mut impl Engine,
        jobs: &mut Jobs,
        (index, slots): (&mut Index, &mut Slots),
        end: (u64, Slot),
        now: u64,
        most: u64,
    ) {
        if self.checkpoint.is_none() && (self.bytes >= most || self.wanted) {
            self.begin(index, end);
        }
        let Some(checkpoint) = self.checkpoint.as_mut().filter(|c| c.again_at <= now) else {
            return;
        };
        checkpoint.step(index, slots, &self.superblock);
        for write in checkpoint.writes.iter_mut().filter(|write| !write.submitted) {
            let slot = write.slot;
            let op = Op::Write { from: &write.bufs, offset: slot.offset(), durable: false };
            if !jobs.submit(io, op, Job::Node { slot }) {
                break;
            }
            write.submitted = true;
        }
        if matches!(checkpoint.stage, Stage::SyncNodes | Stage::SyncFirst) && !checkpoint.syncing {
            checkpoint.syncing = jobs.submit(io, Op::Sync, Job::CheckpointSync);
        }
        if checkpoint.stage == Stage::Done {
            self.checkpoint = None;
        }
    }

    fn begin(&mut self, index: &mut Index, (base, chain): (u64, Slot)) {
        (self.wanted, self.bytes) = (false, 0);
        let mut freed = std::mem::take(&mut self.superseded);
        while let Some((_, slot)) = take_first_if(&mut self.records, |(n, _)| *n <= base) {
            freed.push(slot);
        }
        self.checkpoint = Some(Checkpoint::begin(index, base, chain, freed, self.durable_place));
    }

    /// A slot of the checkpoint is written, or not.
    pub(super) fn node_done(&mut self, slot: Slot, result: &io::Result<u32>, now: u64) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        let Some(write) = checkpoint.writes.iter_mut().find(|write| write.slot == slot) else {
            return;
        };
        if matches!(result, Ok(count) if *count as usize == BLOCK_LEN) {
            write.done = true;
        } else {
            write.submitted = false;
            checkpoint.again_at = now + PAUSE;
        }
    }

    /// The checkpoint's sync is done.
    pub(super) fn synced(
        &mut self,
        result: &io::Result<u32>,
        index: &mut Index,
        slots: &mut Slots,
        now: u64,
    ) {
        let Some(checkpoint) = &mut self.checkpoint else { return };
        if result.is_err() {
            checkpoint.again_at = now + PAUSE;
            if !checkpoint.sync_failed() {
                self.give_up(index);
            }
            return;
        }
        let counts = checkpoint.stage == Stage::SyncFirst;
        checkpoint.synced();
        if counts {
            self.durable_place = checkpoint.durable_place();
            if let Some(superblock) = checkpoint.superblock.clone() {
                self.superblock = superblock;
            }
            for slot in checkpoint.freed.drain(..) {
                slots.free(slot);
            }
        }
    }

    /// Nodes that a checkpoint wrote may be lost: the next one writes them again, elsewhere.
    fn give_up(&mut self, index: &mut Index) {
        if let Some(checkpoint) = self.checkpoint.take() {
            index.write_again(&checkpoint.nodes);
            self.superseded.extend(checkpoint.freed);
            self.wanted = true;
        }
    }
}
