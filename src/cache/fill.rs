//! Misses: one fill a block, however many want it.
//!
//! Owns the life of a fill, from [`RootCache::begin_fill`] to
//! [`FillTicket::finish`]. Knows nothing of disks: it hands out memory to fill
//! and is told the result.
//!
//! Invariants: a block has at most one ticket at a time; a waiter that was
//! queued is returned exactly once, by that ticket's finish (or, if the ticket
//! was dropped by mistake, by the next finish of any other).

use std::sync::Arc;

use super::entry::{AtomicEntry, BlockState, SlotIndex};
use super::slots::SlotRole;
use super::table::{BlockKey, RootTable};
use super::waiters::{Waiter, WaiterList};
use super::{Cache, RootCache};
use crate::logging::internal;
use crate::units::SectorRange;

/// What became of a miss.
#[must_use]
#[derive(Debug)]
pub enum FillStart {
    /// The caller fills the block, and then serves its own request: its waiter
    /// was not queued.
    Fill(FillTicket),
    /// Somebody else is filling the block; the waiter was queued and comes out
    /// of that fill's [`FillTicket::finish`].
    Joined,
    /// The block has been filled meanwhile: look it up again. It may be gone again
    /// then.
    Ready,
    /// No slot is free (all are being filled, or wait for readers to quiesce),
    /// or too many wait already. Quiesce, go on with other work, try again; at
    /// the latest after a short while, as nobody calls back.
    NoSlot,
}

/// How a fill went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FillOutcome {
    /// The first [`FillTicket::sectors`] of the slot hold the root's content.
    Data,
    /// The root could not be read. The block stays uncached; the next miss
    /// tries again.
    Failed,
}

/// What a fill has left.
pub(super) enum Filled {
    /// The block, published in this slot.
    Slot(SlotIndex),
    /// A block that is known to be zeros, and has no slot.
    Zeros,
    /// No block.
    Nothing,
}

/// The sole right to write to a slot. Must be finished; never dropped.
#[must_use = "waiters hang until the ticket is finished"]
#[derive(Debug)]
pub struct FillTicket {
    cache: Arc<Cache>,
    table: Arc<RootTable>,
    key: BlockKey,
    slot: SlotIndex,
    finished: bool,
}

impl FillTicket {
    /// Where to put the block: [`Self::len`] bytes, aligned to that length.
    /// Whoever writes there must be done before the ticket is finished.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.cache.slot_ptr(self.slot)
    }

    /// Bytes in the slot: a whole block, even for the root's last.
    #[expect(clippy::len_without_is_empty, reason = "a slot is never empty")]
    pub fn len(&self) -> usize {
        self.cache.block_len()
    }

    /// What to read: the block's sectors on the root, cut off at its end. The
    /// rest of the slot need not be touched.
    pub fn sectors(&self) -> SectorRange {
        self.table.sectors_of(u64::from(self.key.block))
    }

    /// Ends the fill, publishes the block if there is one, and appends to
    /// `waiters` whoever waited for it. A block that is all zeros gives its slot
    /// back. After `Data` the waiters look the block up again, and start anew if
    /// it is gone already; after `Failed` their reads have failed.
    pub fn finish(self, outcome: FillOutcome, waiters: &mut Vec<Waiter>) {
        self.end(outcome, waiters);
    }

    pub(super) fn end(mut self, outcome: FillOutcome, waiters: &mut Vec<Waiter>) -> Filled {
        let is_zero = match outcome {
            FillOutcome::Data => {
                let filled = usize::try_from(self.sectors().byte_len()).unwrap_or(usize::MAX);
                let buffer = self.buffer_mut();
                if let Some(past_the_end) = buffer.get_mut(filled..) {
                    past_the_end.fill(0);
                }
                is_zero(buffer)
            }
            FillOutcome::Failed => false,
        };
        self.finished = true;
        let mut core = self.cache.lock();
        core.return_waiters(self.slot, waiters);
        let entry = self.entry_in_use(core.roots.contains(&self.table));
        match (outcome, entry) {
            (FillOutcome::Failed, entry) => {
                core.counters.failed_fills += 1;
                core.slots.assign(self.slot, SlotRole::Free);
                if let Some(entry) = entry {
                    entry.set_empty(None);
                }
                Filled::Nothing
            }
            // The root was removed meanwhile: nobody will ask for the block.
            (FillOutcome::Data, None) => {
                core.slots.assign(self.slot, SlotRole::Free);
                Filled::Nothing
            }
            (FillOutcome::Data, Some(entry)) if is_zero => {
                core.slots.assign(self.slot, SlotRole::Free);
                entry.set_zero();
                core.count_zero(self.key.root, 1);
                Filled::Zeros
            }
            (FillOutcome::Data, Some(_)) => {
                core.admit(self.slot);
                core.note_content(self.slot, &self.table, self.key.block);
                Filled::Slot(self.slot)
            }
        }
    }

    pub(super) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    fn entry_in_use(&self, root_in_use: bool) -> Option<&AtomicEntry> {
        let entry = self.table.entry(u64::from(self.key.block));
        entry.filter(|_| root_in_use)
    }
}

impl Drop for FillTicket {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut core = self.cache.lock();
        core.counters.lost_fills += 1;
        core.slots.assign(self.slot, SlotRole::Lost);
        core.orphan_waiters(self.slot);
        if let Some(entry) = self.entry_in_use(core.roots.contains(&self.table)) {
            entry.set_empty(None);
        }
        drop(core);
        let block = self.key.block;
        internal::note(format_args!("the ticket of block {block} was dropped unfinished"));
    }
}

impl RootCache {
    /// To be called after a [`super::Lookup::Miss`]: decides who fills the block.
    pub fn begin_fill(&self, block: u64, waiter: Waiter) -> FillStart {
        let (Some(entry), Ok(number)) = (self.table.entry(block), u32::try_from(block)) else {
            return FillStart::Ready;
        };
        let key = BlockKey { root: self.table.id(), block: number };
        let mut core = self.cache.lock();
        let ghost = match entry.load().state() {
            BlockState::Ready(_) | BlockState::Zero => return FillStart::Ready,
            BlockState::Filling(slot) => {
                return if core.join(slot, waiter) { FillStart::Joined } else { FillStart::NoSlot };
            }
            BlockState::Empty(ghost) => ghost,
        };
        let Some(slot) = core.take_slot(&self.cache.epochs) else {
            core.counters.refused_fills += 1;
            return FillStart::NoSlot;
        };
        self.cache.note_use(slot);
        core.counters.fills += 1;
        let returning = core.policy.remembers(ghost);
        let record = core.slots.get_mut(slot);
        record.key = key;
        record.returning = returning;
        record.waiters = WaiterList::EMPTY;
        core.slots.assign(slot, SlotRole::Filling);
        core.forget_content(slot);
        entry.set_filling(slot);
        drop(core);
        FillStart::Fill(FillTicket {
            cache: Arc::clone(&self.cache),
            table: Arc::clone(&self.table),
            key,
            slot,
            finished: false,
        })
    }
}

/// Whether all bytes are zero. Looks at the first few first, as blocks with
/// content mostly show it there; comparing the rest with itself, shifted, makes
/// it a memcmp.
fn is_zero(bytes: &[u8]) -> bool {
    const HEAD: usize = 64;
    match bytes.split_at_checked(HEAD) {
        Some((head, tail)) => {
            head.iter().all(|byte| *byte == 0) && *tail == bytes[..bytes.len() - HEAD]
        }
        None => bytes.iter().all(|byte| *byte == 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_makes_a_block_data() {
        let mut bytes = vec![0; 4096];
        assert!(is_zero(&bytes));
        for at in [0, 63, 64, 65, 127, 128, 2048, 4095] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "byte {at}");
            bytes[at] = 0;
        }
        assert!(is_zero(&[]) && is_zero(&[0; 63]) && !is_zero(&[1]));
    }
}
