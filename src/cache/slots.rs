//! What each slot is doing: one record a slot, strung on one list a role.
//!
//! Owns the records and lists; decides nothing. All of it lies in arrays made
//! at the start and is used under the cache's lock.
//!
//! Invariant: each slot is on exactly one list, the one that its role names.

use super::entry::SlotIndex;
use super::epoch::Epoch;
use super::table::BlockKey;
use super::waiters::WaiterList;

/// What a slot is used for at the moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SlotRole {
    /// Nothing: may be filled at once.
    Free,
    /// A ticket for it is out.
    Filling,
    /// Ready, new: hits don't count yet.
    Window,
    /// Ready, on trial.
    Probation,
    /// Ready, has proved its worth.
    Main,
    /// Evicted; some reader may still look at it.
    Limbo,
    /// Its ticket was dropped unfinished: the disk may write to it at any time,
    /// so it is never used again.
    Lost,
}

impl SlotRole {
    /// Whether an entry names the slot as ready.
    pub(super) const fn is_ready(self) -> bool {
        match self {
            Self::Window | Self::Probation | Self::Main => true,
            Self::Free | Self::Filling | Self::Limbo | Self::Lost => false,
        }
    }
}

const ROLES: usize = SlotRole::Lost as usize + 1;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Slot {
    /// The block that it holds or is filled with; stale in other roles.
    pub(super) key: BlockKey,
    role: SlotRole,
    newer: u32,
    older: u32,
    /// In limbo: when it may be reused.
    pub(super) free_after: Epoch,
    /// While filling: who waits.
    pub(super) waiters: WaiterList,
    /// While filling: the block was evicted a short while ago.
    pub(super) returning: bool,
}

// What a slot costs beside its memory; docs/cache.md counts on it.
const _: () = assert!(size_of::<Slot>() == 40);

#[derive(Clone, Copy, Debug)]
struct List {
    newest: u32,
    oldest: u32,
    len: u32,
}

/// All slots of a cache.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    count: u32,
    lists: [List; ROLES],
}

impl Slots {
    /// All free.
    pub(super) fn new(count: u32) -> Self {
        let empty = List { newest: NONE, oldest: NONE, len: 0 };
        let mut slots =
            Self { slots: Vec::with_capacity(count as usize), count, lists: [empty; ROLES] };
        slots.slots.extend((0..count).map(|_| Slot {
            key: BlockKey::default(),
            role: SlotRole::Free,
            newer: NONE,
            older: NONE,
            free_after: Epoch::NEVER,
            waiters: WaiterList::EMPTY,
            returning: false,
        }));
        for slot in (0..count).rev() {
            slots.link(SlotIndex(slot), SlotRole::Free);
        }
        slots
    }

    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    pub(super) const fn len(&self, role: SlotRole) -> u32 {
        self.lists[role as usize].len
    }

    pub(super) fn role(&self, slot: SlotIndex) -> SlotRole {
        self.slots[slot.index()].role
    }

    pub(super) fn get(&self, slot: SlotIndex) -> &Slot {
        &self.slots[slot.index()]
    }

    pub(super) fn get_mut(&mut self, slot: SlotIndex) -> &mut Slot {
        &mut self.slots[slot.index()]
    }

    /// The slot that has been in the role the longest.
    pub(super) fn oldest(&self, role: SlotRole) -> Option<SlotIndex> {
        Self::some(self.lists[role as usize].oldest)
    }

    /// The slot that came to the role last.
    pub(super) fn newest(&self, role: SlotRole) -> Option<SlotIndex> {
        Self::some(self.lists[role as usize].newest)
    }

    /// Takes the slot off its list and makes it the newest of `role`.
    pub(super) fn assign(&mut self, slot: SlotIndex, role: SlotRole) {
        self.unlink(slot);
        self.link(slot, role);
    }

    const fn some(index: u32) -> Option<SlotIndex> {
        if index == NONE { None } else { Some(SlotIndex(index)) }
    }

    fn link(&mut self, slot: SlotIndex, role: SlotRole) {
        let list = &mut self.lists[role as usize];
        let older = std::mem::replace(&mut list.newest, slot.0);
        list.len += 1;
        if older == NONE {
            list.oldest = slot.0;
        } else {
            self.slots[older as usize].newer = slot.0;
        }
        let record = &mut self.slots[slot.index()];
        record.role = role;
        record.newer = NONE;
        record.older = older;
    }

    fn unlink(&mut self, slot: SlotIndex) {
        let Slot { role, newer, older, .. } = self.slots[slot.index()];
        let list = &mut self.lists[role as usize];
        list.len -= 1;
        if newer == NONE {
            list.newest = older;
        } else {
            self.slots[newer as usize].older = older;
        }
        if older == NONE {
            self.lists[role as usize].oldest = newer;
        } else {
            self.slots[older as usize].newer = newer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_of(slots: &Slots, role: SlotRole) -> Vec<u32> {
        let mut found = Vec::new();
        let mut next = slots.oldest(role);
        while let Some(slot) = next {
            found.push(slot.0);
            next = Slots::some(slots.get(slot).newer);
        }
        assert_eq!(found.len(), slots.len(role) as usize);
        assert_eq!(found.last().copied(), slots.newest(role).map(|slot| slot.0));
        found
    }

    #[test]
    fn a_list_is_first_in_first_out_and_loses_any_member() {
        let mut slots = Slots::new(5);
        for slot in [3, 1, 4, 0] {
            slots.assign(SlotIndex(slot), SlotRole::Main);
        }
        assert_eq!(all_of(&slots, SlotRole::Main), [3, 1, 4, 0]);
        assert_eq!(all_of(&slots, SlotRole::Free), [2]);
        for (gone, rest) in [(4, vec![3, 1, 0]), (3, vec![1, 0]), (0, vec![1]), (1, vec![])] {
            slots.assign(SlotIndex(gone), SlotRole::Limbo);
            assert_eq!(all_of(&slots, SlotRole::Main), rest);
        }
        assert_eq!(all_of(&slots, SlotRole::Limbo), [4, 3, 0, 1]);
    }

    #[test]
    fn reinsertion_makes_the_oldest_the_newest() {
        let mut slots = Slots::new(3);
        for slot in 0..3 {
            slots.assign(SlotIndex(slot), SlotRole::Main);
        }
        slots.assign(SlotIndex(0), SlotRole::Main);
        assert_eq!(all_of(&slots, SlotRole::Main), [1, 2, 0]);
    }
}
