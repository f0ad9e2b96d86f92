//! A checkpoint on its way: changed nodes of the index, a sync, the superblock, a sync, and
//! the superblock's other place.

use std::collections::HashSet;

use super::index::Index;
use super::page::Page;
use super::slots::Slots;
use super::superblock::{PLACES, Superblock};
use super::word::{BLOCK_LEN, Slot};
use crate::virtqueue::GuestBuf;

/// Nodes that are written at a time.
const WRITES_MAX: usize = 8;

/// Where a checkpoint is on its way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// Nodes are written.
    Nodes,
    /// They are made durable.
    SyncNodes,
    /// The superblock is written to its first place.
    First,
    /// It is made durable: the checkpoint counts then.
    SyncFirst,
    /// The superblock is written to its second place.
    Second,
    /// All is done.
    Done,
}

/// One slot that is written.
#[derive(Debug)]
pub(super) struct Write {
    /// What is written: kept for `bufs`, which point into it.
    _page: Box<Page>,
    /// The page, as a list of buffers.
    pub(super) bufs: Vec<GuestBuf>,
    pub(super) slot: Slot,
    pub(super) submitted: bool,
    pub(super) done: bool,
}

/// A checkpoint.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub(super) stage: Stage,
    /// The last record that it makes superfluous.
    pub(super) base: u64,
    chain: Slot,
    pub(super) writes: Vec<Write>,
    /// Slots that are free when it is durable.
    pub(super) freed: Vec<Slot>,
    /// Where it wrote nodes to.
    pub(super) nodes: HashSet<Slot>,
    pub(super) syncing: bool,
    /// Where the superblock goes first: not where the durable one is.
    first: usize,
    pub(super) again_at: u64,
    /// The superblock that it writes.
    pub(super) superblock: Option<Superblock>,
}

impl Checkpoint {
    /// Begins one; `chain` is where the record after `base` is or will be.
    pub(super) fn begin(
        index: &mut Index,
        base: u64,
        chain: Slot,
        freed: Vec<Slot>,
        durable_place: usize,
    ) -> Self {
        index.begin_checkpoint();
        Self {
            stage: Stage::Nodes,
            base,
            chain,
            writes: Vec::new(),
            freed,
            nodes: HashSet::new(),
            syncing: false,
            first: 1 - durable_place,
            again_at: 0,
            superblock: None,
        }
    }

    /// Where the superblock is durable once this checkpoint is.
    pub(super) fn durable_place(&self) -> usize {
        self.first
    }

    /// Goes on as far as it can without an answer of the disk.
    pub(super) fn step(&mut self, index: &mut Index, slots: &mut Slots, last: &Superblock) {
        self.writes.retain(|write| !write.done);
        match self.stage {
            Stage::Nodes => {
                while self.writes.len() < WRITES_MAX {
                    let (slot, _) = slots.take_run(1);
                    let Some(node) = index.write_next(slot) else {
                        slots.free(slot);
                        break;
                    };
                    self.freed.extend(node.replaces);
                    self.nodes.insert(slot);
                    self.push(node.page, slot);
                }
                if self.writes.is_empty() {
                    self.stage = Stage::SyncNodes;
                    self.superblock = Some(self.superblock(index, last));
                }
            }
            Stage::First if self.writes.is_empty() => self.stage = Stage::SyncFirst,
            Stage::Second if self.writes.is_empty() => self.stage = Stage::Done,
            Stage::SyncNodes | Stage::First | Stage::SyncFirst | Stage::Second | Stage::Done => {}
        }
    }

    fn superblock(&self, index: &Index, last: &Superblock) -> Superblock {
        let mut next = last.clone();
        next.number += 1;
        (next.chain, next.record) = (self.chain, self.base + 1);
        next.table = index.table();
        let needed = next.openings.iter().rposition(|opening| opening.first <= self.base + 1);
        next.openings.drain(..needed.unwrap_or(0));
        next
    }

    /// A sync is done: the next stage's writes.
    pub(super) fn synced(&mut self) {
        self.syncing = false;
        match self.stage {
            Stage::SyncNodes => {
                self.stage = Stage::First;
                self.write_superblock(PLACES[self.first]);
            }
            Stage::SyncFirst => {
                self.stage = Stage::Second;
                self.write_superblock(PLACES[1 - self.first]);
            }
            Stage::Nodes | Stage::First | Stage::Second | Stage::Done => {}
        }
    }

    fn write_superblock(&mut self, place: Slot) {
        let mut page = Page::zeroed();
        if let Some(superblock) = &self.superblock {
            superblock.encode(&mut page.0);
        }
        self.push(page, place);
    }

    fn push(&mut self, mut page: Box<Page>, slot: Slot) {
        let bufs = vec![GuestBuf::new(page.0.as_mut_ptr(), BLOCK_LEN)];
        self.writes.push(Write { _page: page, bufs, slot, submitted: false, done: false });
    }

    /// A sync has failed: what it covered may be lost. Superblocks are written again; false
    /// where that is not enough, since nodes may be lost.
    pub(super) fn sync_failed(&mut self) -> bool {
        self.syncing = false;
        if self.stage == Stage::SyncFirst {
            self.stage = Stage::First;
            self.write_superblock(PLACES[self.first]);
            return true;
        }
        false
    }
}
