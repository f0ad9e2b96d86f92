//! What the cache's lock protects: slots, queues, waiters, roots and counters.
//!
//! Owns the steps that fills are made of. Taken on misses, on the adding and
//! removing of roots and for statistics; never on a hit.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::CacheError;
use super::directory::{Directory, RootKey};
use super::entry::{BlockState, SlotIndex};
use super::epoch::Epochs;
use super::policy::Policy;
use super::slots::{SlotRole, Slots};
use super::table::{BlockKey, RootId, RootTable, Roots};
use super::waiters::{Waiter, WaiterList, WaiterPool};

/// Requests that may wait for other requests' fills, all VMs together. Beyond
/// it a miss is told to try again later.
const WAITERS_MAX: u16 = 16384;

/// Of the slots, one in so many is kept free or in limbo, so that a burst of
/// misses needn't wait for readers to quiesce …
const RESERVE_DIVISOR: u32 = 32;
/// … but no more than this many: what the reactors can miss in one loop.
const RESERVE_MAX: u32 = 256;

/// Entries or slots looked at without letting go of the lock.
const CHUNK: u32 = 4096;

/// What happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) fills: u64,
    pub(super) failed_fills: u64,
    pub(super) lost_fills: u64,
    pub(super) refused_fills: u64,
    pub(super) joined_waits: u64,
    pub(super) evictions: u64,
    pub(super) zero_blocks: u64,
    pub(super) kept: u64,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) slots: Slots,
    pub(super) policy: Policy,
    pub(super) roots: Roots,
    pub(super) counters: Counters,
    /// What each slot holds, for a later process.
    directory: Option<Directory>,
    /// What an earlier process left, by root: slots and their blocks.
    left: HashMap<RootKey, Vec<(SlotIndex, u32)>>,
    waiters: WaiterPool,
    orphans: WaiterList,
    reserve: u32,
}

impl Core {
    pub(super) fn new(slots: u32, directory: Option<Directory>) -> Self {
        let mut left: HashMap<_, Vec<_>> = HashMap::new();
        for slot in (0..slots).map(SlotIndex) {
            if let Some((key, block)) = directory.as_ref().and_then(|d| d.get(slot)) {
                left.entry(key).or_default().push((slot, block));
            }
        }
        Self {
            directory,
            left,
            slots: Slots::new(slots),
            policy: Policy::new(slots),
            roots: Roots::default(),
            counters: Counters::default(),
            waiters: WaiterPool::new(WAITERS_MAX),
            orphans: WaiterList::EMPTY,
            reserve: (slots / RESERVE_DIVISOR).clamp(1, RESERVE_MAX),
        }
    }

    pub(super) fn add_root(
        &mut self,
        sectors: u64,
        block_bytes: u32,
        key: Option<RootKey>,
    ) -> Result<Arc<RootTable>, CacheError> {
        let table = self.roots.add(sectors, block_bytes, key)?;
        for (slot, block) in key.and_then(|key| self.left.remove(&key)).unwrap_or_default() {
            self.adopt(&table, slot, block);
        }
        Ok(table)
    }

    /// Takes a block over that an earlier process left, unless its slot has got
    /// another one since.
    fn adopt(&mut self, table: &RootTable, slot: SlotIndex, block: u32) {
        let still = self.directory.as_ref().and_then(|directory| directory.get(slot));
        let is_free = self.slots.role(slot) == SlotRole::Free;
        let entry = table.entry(u64::from(block)).map(|entry| entry.load().state());
        if !is_free || still.map(|(key, block)| (Some(key), block)) != Some((table.key(), block)) {
            return;
        }
        // Beyond the end, or there twice: an evicted block stays in its slot
        // until that is used again.
        let Some(BlockState::Empty(_)) = entry else {
            return;
        };
        let record = self.slots.get_mut(slot);
        record.key = BlockKey { root: table.id(), block };
        // It had proved its worth, as far as anybody remembers.
        record.returning = true;
        self.counters.kept += 1;
        self.admit(slot);
    }

    /// The slot is about to be filled: nobody may take it for what it held.
    pub(super) fn forget_content(&self, slot: SlotIndex) {
        if let Some(directory) = &self.directory {
            directory.clear(slot);
        }
    }

    /// The slot's bytes are complete, and are the block's.
    pub(super) fn note_content(&self, slot: SlotIndex, table: &RootTable, block: u32) {
        if let (Some(directory), Some(key)) = (&self.directory, table.key()) {
            directory.set(slot, key, block);
        }
    }

    /// A slot that nobody uses or looks at, evicting where there are too few.
    pub(super) fn take_slot(&mut self, epochs: &Epochs) -> Option<SlotIndex> {
        self.collect_limbo(epochs);
        let mut evicted = 0;
        let free_after = epochs.next();
        while self.slots.len(SlotRole::Free) + self.slots.len(SlotRole::Limbo) < self.reserve
            && self.policy.evict_one(&mut self.slots, &self.roots, free_after)
        {
            evicted += 1;
        }
        if evicted > 0 {
            self.counters.evictions += evicted;
            epochs.advance();
            if self.slots.len(SlotRole::Free) == 0 {
                self.collect_limbo(epochs);
            }
        }
        // The newest: its memory is the likeliest to be in some CPU's cache.
        self.slots.newest(SlotRole::Free)
    }

    /// Frees the slots that no reader can be looking at any more.
    fn collect_limbo(&mut self, epochs: &Epochs) {
        if self.slots.len(SlotRole::Limbo) == 0 {
            return;
        }
        let oldest_online = epochs.oldest_online();
        while let Some(slot) = self.slots.oldest(SlotRole::Limbo)
            && self.slots.get(slot).free_after <= oldest_online
        {
            self.slots.assign(slot, SlotRole::Free);
        }
    }

    pub(super) fn admit(&mut self, slot: SlotIndex) {
        self.policy.admit(&mut self.slots, &self.roots, slot);
    }

    /// Queues the waiter for the slot's fill; `false` where too many wait.
    #[must_use]
    pub(super) fn join(&mut self, slot: SlotIndex, waiter: Waiter) -> bool {
        let list = &mut self.slots.get_mut(slot).waiters;
        let joined = self.waiters.push(list, waiter);
        if joined {
            self.counters.joined_waits += 1;
        } else {
            self.counters.refused_fills += 1;
        }
        joined
    }

    pub(super) fn return_waiters(&mut self, slot: SlotIndex, into: &mut Vec<Waiter>) {
        let list = &mut self.slots.get_mut(slot).waiters;
        self.waiters.drain(list, into);
        self.waiters.drain(&mut self.orphans, into);
    }

    /// Keeps the waiters of a lost fill for the next finish.
    pub(super) fn orphan_waiters(&mut self, slot: SlotIndex) {
        let list = &mut self.slots.get_mut(slot).waiters;
        self.waiters.append(&mut self.orphans, list);
    }

    pub(super) fn count_zero(&mut self, root: RootId, blocks: u64) {
        self.counters.zero_blocks += blocks;
        self.roots.count_zero(root, blocks);
    }

    /// Marks the first few of the blocks as zeros where nothing is known of
    /// them; what is left of the range.
    pub(super) fn mark_zero(&mut self, table: &RootTable, blocks: Range<u64>) -> Range<u64> {
        let end = blocks.end.min(table.blocks() as u64);
        let stop = end.min(blocks.start.saturating_add(u64::from(CHUNK)));
        let mut marked = 0;
        for entry in (blocks.start..stop).filter_map(|block| table.entry(block)) {
            if let BlockState::Empty(_) = entry.load().state() {
                entry.set_zero();
                marked += 1;
            }
        }
        self.count_zero(table.id(), marked);
        stop.max(blocks.start)..end
    }

    /// Evicts the root's blocks among a chunk of slots, from slot `next` on;
    /// the next chunk's first slot, or `None` after the last. The caller has
    /// closed the root; fills that are under way end nowhere.
    pub(super) fn evict_root(&mut self, id: RootId, next: u32, epochs: &Epochs) -> Option<u32> {
        let end = self.slots.count().min(next.saturating_add(CHUNK));
        let free_after = epochs.next();
        let mut evicted = 0;
        for slot in (next..end).map(SlotIndex) {
            let key = self.slots.get(slot).key;
            if key.root != id || !self.slots.role(slot).is_ready() {
                continue;
            }
            if let Some(entry) = self.roots.entry(key) {
                entry.set_empty(None);
            }
            Policy::send_to_limbo(&mut self.slots, slot, free_after);
            evicted += 1;
        }
        if evicted > 0 {
            self.counters.evictions += evicted;
            epochs.advance();
        }
        (end < self.slots.count()).then_some(end)
    }

    /// The last step of a root's removal: its id is free again.
    pub(super) fn remove_root(&mut self, id: RootId) {
        self.counters.zero_blocks -= self.roots.remove(id);
    }
}
