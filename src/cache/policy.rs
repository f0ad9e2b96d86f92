//! Which block goes when a slot is needed: S3-FIFO with a correlation window.
//!
//! Owns the sizes of the queues and the moves between them; is called on misses
//! only, under the cache's lock. Of hits it learns from the visited bits.
//!
//! ```text
//! miss ──► window ──► probation ──┬─ visited ──► main ──┬─ visited ─► main again
//!          (hits don't count)     └─ not: evicted,      └─ not: evicted
//! miss on a ghost ──► main           leaves a ghost
//! ```
//!
//! - **Scan resistance**: what is read once passes through window and probation
//!   (a tenth of the cache) and never displaces the main queue (S3-FIFO: Yang
//!   et al., SOSP 2023).
//! - **Correlation window**, the newer half of that tenth: hits shortly after
//!   the fill are one event seen several times, such as 64 guests that boot at
//!   once, and must not make everything hot (the idea of 2Q's correlated
//!   reference period, in Clock2Q+'s form).
//! - **Ghosts** are stamps in the empty entries: a block is remembered for as
//!   many evictions from probation as the main queue has slots. That needs no
//!   memory and no search.

use super::entry::{GhostStamp, SlotIndex};
use super::epoch::Epoch;
use super::slots::{SlotRole, Slots};
use super::table::Roots;

/// How many visited blocks one eviction passes over before it takes the next
/// come what may: bounds the time under the lock. All passed over have lost
/// their bit, so a round with more is rare.
const SKIPS_MAX: u32 = 256;

/// The queues' sizes and the clock of the ghosts.
#[derive(Debug)]
pub(super) struct Policy {
    /// Slots for window and probation together, once the cache is full.
    trial_slots: u32,
    /// Slots of them whose hits don't count yet.
    window_slots: u32,
    /// Evictions from probation for which a block is remembered.
    ghosts: u32,
    now: GhostStamp,
}

impl Policy {
    pub(super) fn new(slots: u32) -> Self {
        let trial_slots = (slots / 10).max(1);
        Self {
            trial_slots,
            window_slots: trial_slots / 2,
            ghosts: slots - trial_slots,
            now: GhostStamp::FIRST,
        }
    }

    /// Whether the block of the stamp was evicted so lately that it is taken
    /// for one that returns.
    pub(super) fn remembers(&self, ghost: Option<GhostStamp>) -> bool {
        ghost.is_some_and(|stamp| stamp.age(self.now) <= self.ghosts)
    }

    /// Publishes the block in the slot, which has just been filled.
    pub(super) fn admit(&self, slots: &mut Slots, roots: &Roots, slot: SlotIndex) {
        let returning = slots.get(slot).returning;
        let role = if returning {
            SlotRole::Main
        } else {
            SlotRole::Window
        };
        slots.assign(slot, role);
        if let Some(entry) = roots.entry(slots.get(slot).key) {
            entry.publish(slot, !returning);
        }
        while slots.len(SlotRole::Window) > self.window_slots
            && let Some(oldest) = slots.oldest(SlotRole::Window)
        {
            slots.assign(oldest, SlotRole::Probation);
            if let Some(entry) = roots.entry(slots.get(oldest).key) {
                entry.end_window();
            }
        }
    }

    /// Evicts one block; its slot is in limbo until all readers carry
    /// `free_after`. `false` where no block is ready.
    pub(super) fn evict_one(
        &mut self,
        slots: &mut Slots,
        roots: &Roots,
        free_after: Epoch,
    ) -> bool {
        for skips in 0..=SKIPS_MAX {
            let Some((slot, role)) = self.next_candidate(slots) else {
                return false;
            };
            let entry = roots.entry(slots.get(slot).key);
            if skips < SKIPS_MAX && entry.is_some_and(|entry| entry.take_visited()) {
                slots.assign(slot, SlotRole::Main);
                continue;
            }
            let ghost = match role {
                SlotRole::Main => None,
                _ => {
                    self.now = self.now.next();
                    Some(self.now)
                }
            };
            if let Some(entry) = entry {
                entry.set_empty(ghost);
            }
            Self::send_to_limbo(slots, slot, free_after);
            return true;
        }
        false
    }

    /// For a slot whose block nobody can look up any more.
    pub(super) fn send_to_limbo(slots: &mut Slots, slot: SlotIndex, free_after: Epoch) {
        slots.get_mut(slot).free_after = free_after;
        slots.assign(slot, SlotRole::Limbo);
    }

    fn next_candidate(&self, slots: &Slots) -> Option<(SlotIndex, SlotRole)> {
        let on_trial = slots.len(SlotRole::Window) + slots.len(SlotRole::Probation);
        let order = if on_trial > self.trial_slots {
            [SlotRole::Probation, SlotRole::Window, SlotRole::Main]
        } else {
            [SlotRole::Main, SlotRole::Probation, SlotRole::Window]
        };
        order
            .into_iter()
            .find_map(|role| slots.oldest(role).map(|slot| (slot, role)))
    }
}
