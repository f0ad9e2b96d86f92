//! One word of a root's table: where a root block is.
//!
//! Owns the encoding; nobody else sees bits. A table has one entry a block:
//!
//! | bits 31–30 | 29 | 28 | 27–0 | the block |
//! | --- | --- | --- | --- | --- |
//! | 0 | – | – | stamp | is not cached; stamp: when it was evicted, 0 never |
//! | 1 | – | – | – | is all zeros and needs no slot |
//! | 2 | – | – | slot | is being filled into the slot |
//! | 3 | young | visited | slot | lies in the slot |
//!
//! Who writes: all state changes are stores under the cache's lock. Readers only
//! ever add the visited bit, by compare-and-swap, to a value that says that the
//! block is in a slot: a failed swap means that it has moved on, and is ignored.
//!
//! Ordering: [`AtomicEntry::publish`] releases the block's bytes, every later
//! write to the entry is a release or a read-modify-write (so the release
//! sequence goes on), and [`AtomicEntry::load`] acquires.

use crate::sync::atomic::{AtomicU32, Ordering};

/// Slots that an entry can name.
pub(super) const SLOTS_MAX: u32 = 1 << 28;

const TAG_SHIFT: u32 = 30;
const TAG_MASK: u32 = 3 << TAG_SHIFT;
const TAG_EMPTY: u32 = 0;
const TAG_ZERO: u32 = 1 << TAG_SHIFT;
const TAG_FILLING: u32 = 2 << TAG_SHIFT;
const TAG_READY: u32 = 3 << TAG_SHIFT;
const YOUNG: u32 = 1 << 29;
const VISITED: u32 = 1 << 28;
const PAYLOAD_MASK: u32 = SLOTS_MAX - 1;

/// The number of a slot in the arena, below [`SLOTS_MAX`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub(super) struct SlotIndex(pub(super) u32);

impl SlotIndex {
    /// For indexing arrays that have an element a slot.
    #[inline]
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// When a block was evicted from probation, counted in such evictions; wraps
/// round after 2²⁸ − 1 of them. A stamp that is a whole round old looks young:
/// one block is then kept longer than it deserves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct GhostStamp(u32);

impl GhostStamp {
    const ROUND: u32 = PAYLOAD_MASK;

    pub(super) const FIRST: Self = Self(1);

    pub(super) const fn next(self) -> Self {
        Self(self.0 % Self::ROUND + 1)
    }

    /// How many evictions before `now` this one was.
    pub(super) const fn age(self, now: Self) -> u32 {
        (now.0 + Self::ROUND - self.0) % Self::ROUND
    }
}

/// Where a block is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum BlockState {
    /// Not cached; the stamp of its last eviction from probation, if any.
    Empty(Option<GhostStamp>),
    /// All zeros: needs no slot.
    Zero,
    /// Somebody fills the slot with it.
    Filling(SlotIndex),
    /// The slot holds it.
    Ready(SlotIndex),
}

/// A value that an entry had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Entry(u32);

impl Entry {
    /// The slot of a block that is ready: what the hot path asks.
    #[inline]
    pub(super) const fn ready_slot(self) -> Option<SlotIndex> {
        if self.0 >= TAG_READY { Some(SlotIndex(self.0 & PAYLOAD_MASK)) } else { None }
    }

    /// Whether the block is known to be all zeros.
    #[inline]
    pub(super) const fn is_zero(self) -> bool {
        self.0 & TAG_MASK == TAG_ZERO
    }

    pub(super) const fn state(self) -> BlockState {
        let payload = self.0 & PAYLOAD_MASK;
        match self.0 & TAG_MASK {
            TAG_ZERO => BlockState::Zero,
            TAG_FILLING => BlockState::Filling(SlotIndex(payload)),
            TAG_READY => BlockState::Ready(SlotIndex(payload)),
            TAG_EMPTY.. => BlockState::Empty(match payload {
                0 => None,
                stamp => Some(GhostStamp(stamp)),
            }),
        }
    }
}

/// One block's word in a root's table.
#[derive(Debug)]
pub(super) struct AtomicEntry(AtomicU32);

impl AtomicEntry {
    pub(super) fn empty() -> Self {
        Self(AtomicU32::new(TAG_EMPTY))
    }

    #[inline]
    pub(super) fn load(&self) -> Entry {
        Entry(self.0.load(Ordering::Acquire))
    }

    /// Notes a hit on the value `seen`. Writes only where the block is past its
    /// correlation window and not marked yet, so a hot block is marked once a
    /// round of the clock.
    #[inline]
    pub(super) fn note_hit(&self, seen: Entry) {
        if seen.0 & (YOUNG | VISITED) == 0 {
            self.mark_visited(seen);
        }
    }

    #[cold]
    fn mark_visited(&self, seen: Entry) {
        // Relaxed: the bit says nothing about other memory. A lost swap means
        // that somebody else marked or moved the block.
        let _ =
            self.0.compare_exchange(seen.0, seen.0 | VISITED, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Under the lock: a fill starts.
    pub(super) fn set_filling(&self, slot: SlotIndex) {
        self.0.store(TAG_FILLING | slot.0, Ordering::Release);
    }

    /// Under the lock: the slot's bytes are complete and from now on constant.
    pub(super) fn publish(&self, slot: SlotIndex, young: bool) {
        let flags = if young { YOUNG } else { 0 };
        self.0.store(TAG_READY | flags | slot.0, Ordering::Release);
    }

    /// Under the lock: the block is all zeros.
    pub(super) fn set_zero(&self) {
        self.0.store(TAG_ZERO, Ordering::Release);
    }

    /// Under the lock: the block is not cached (any more).
    pub(super) fn set_empty(&self, ghost: Option<GhostStamp>) {
        let stamp = ghost.map_or(0, |stamp| stamp.0);
        self.0.store(TAG_EMPTY | stamp, Ordering::Release);
    }

    /// Under the lock, for a ready block: hits count from now on.
    pub(super) fn end_window(&self) {
        self.0.fetch_and(!YOUNG, Ordering::AcqRel);
    }

    /// Under the lock, for a ready block: whether it was hit since the last
    /// call (or since its window ended).
    pub(super) fn take_visited(&self) -> bool {
        self.0.fetch_and(!VISITED, Ordering::AcqRel) & VISITED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: SlotIndex = SlotIndex(SLOTS_MAX - 1);

    #[test]
    fn every_state_survives_its_encoding() {
        let entry = AtomicEntry::empty();
        assert_eq!(entry.load().state(), BlockState::Empty(None));
        entry.set_filling(LAST);
        assert_eq!(entry.load().state(), BlockState::Filling(LAST));
        assert_eq!(entry.load().ready_slot(), None);
        for young in [false, true] {
            entry.publish(LAST, young);
            assert_eq!(entry.load().state(), BlockState::Ready(LAST));
            assert_eq!(entry.load().ready_slot(), Some(LAST));
        }
        entry.set_zero();
        assert_eq!(entry.load().state(), BlockState::Zero);
        assert!(entry.load().is_zero());
        assert_eq!(entry.load().ready_slot(), None);
        entry.set_empty(Some(GhostStamp::FIRST));
        assert_eq!(entry.load().state(), BlockState::Empty(Some(GhostStamp::FIRST)));
    }

    #[test]
    fn hits_inside_the_correlation_window_do_not_count() {
        let entry = AtomicEntry::empty();
        entry.publish(LAST, true);
        entry.note_hit(entry.load());
        entry.end_window();
        assert!(!entry.take_visited());
        entry.note_hit(entry.load());
        assert!(entry.take_visited());
        assert!(!entry.take_visited(), "taken once");
    }

    #[test]
    fn a_late_hit_does_not_mark_what_took_the_blocks_place() {
        let entry = AtomicEntry::empty();
        entry.publish(SlotIndex(1), false);
        let seen = entry.load();
        entry.set_empty(None);
        entry.note_hit(seen);
        assert_eq!(entry.load().state(), BlockState::Empty(None));
        entry.publish(SlotIndex(2), false);
        entry.note_hit(seen);
        assert!(!entry.take_visited());
    }

    #[test]
    fn ghost_ages_count_across_the_wrap() {
        let last = GhostStamp(GhostStamp::ROUND);
        assert_eq!(last.next(), GhostStamp::FIRST);
        assert_eq!(last.age(last.next().next()), 2);
        assert_eq!(GhostStamp::FIRST.age(GhostStamp::FIRST), 0);
    }
}
