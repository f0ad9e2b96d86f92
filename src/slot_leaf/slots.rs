//! Which slots of a leaf's file are free, and which one is next.
//!
//! Free runs are kept by their start. What lies beyond `end` was never used: the file is
//! longer there only by what it was extended to.

use std::collections::BTreeMap;

use super::word::Slot;

/// Free runs that are looked at for one that is long enough, before a shorter one or the
/// file's end is taken.
const RUNS_LOOKED_AT: usize = 16;
/// A run of so many free slots is worth a write of its own.
const WORTHWHILE: u64 = 16;
/// Slots that a file may have beyond [`USE`] of those in use before shorter runs are
/// taken: 16 MiB.
const SPARE: u64 = 4096;

/// Free and used slots.
#[derive(Debug)]
pub struct Slots {
    /// Start to length; runs don't touch.
    free: BTreeMap<u64, u64>,
    free_count: u64,
    /// The first slot that was never used.
    end: u64,
    cursor: u64,
}

impl Slots {
    /// All slots up to `end` are in use, and none behind it.
    pub fn new(end: Slot) -> Self {
        Self { free: BTreeMap::new(), free_count: 0, end: end.0, cursor: 0 }
    }

    /// The first slot that was never used.
    pub fn end(&self) -> Slot {
        Slot(self.end)
    }

    /// Free slots before [`Self::end`].
    pub fn free_count(&self) -> u64 {
        self.free_count
    }

    /// Takes the slot where it is free.
    pub fn take_at(&mut self, slot: Slot) -> bool {
        self.take_run_at(slot, 1) == 1
    }

    /// Takes free slots from `slot` on, up to `most`; how many.
    pub fn take_run_at(&mut self, slot: Slot, most: u64) -> u64 {
        if slot.0 >= self.end {
            let gap = slot.0 - self.end;
            if gap > 0 {
                self.add(self.end, gap);
            }
            self.end = slot.0 + most;
            return most;
        }
        let Some((&start, &len)) = self.free.range(..=slot.0).next_back() else {
            return 0;
        };
        let Some(there) = (start + len).checked_sub(slot.0).filter(|there| *there > 0) else {
            return 0;
        };
        let taken = there.min(most);
        self.free.remove(&start);
        if slot.0 > start {
            self.free.insert(start, slot.0 - start);
        }
        if there > taken {
            self.free.insert(slot.0 + taken, there - taken);
        }
        self.free_count -= taken;
        taken
    }

    /// Takes up to `most` slots that follow each other: the first, and how many.
    pub fn take_run(&mut self, most: u64) -> (Slot, u64) {
        let wanted = most.min(WORTHWHILE);
        let from_cursor = self.free.range(self.cursor..).take(RUNS_LOOKED_AT);
        let found = from_cursor.into_iter().find(|(_, len)| **len >= wanted);
        let used = self.end - self.free_count;
        let start = match found {
            Some((&start, _)) => start,
            None if self.free_count > SPARE + used / 4 => {
                self.cursor = 0;
                let next = self.free.range(self.cursor..).next();
                next.map_or(self.end, |(&start, _)| start)
            }
            None => {
                self.cursor = 0;
                self.end
            }
        };
        let taken = self.take_run_at(Slot(start), most);
        if start + taken < self.end {
            self.cursor = start + taken;
        }
        (Slot(start), taken)
    }

    /// Gives a slot back.
    pub fn free(&mut self, slot: Slot) {
        self.add(slot.0, 1);
    }

    /// Gives back a run that is in use.
    pub fn free_run(&mut self, first: Slot, count: u64) {
        if count > 0 {
            self.add(first.0, count);
        }
    }

    fn add(&mut self, start: u64, len: u64) {
        self.free_count += len;
        let (mut start, mut len) = (start, len);
        let before = self.free.range(..start).next_back().map(|(s, l)| (*s, *l));
        if let Some((s, l)) = before
            && s + l == start
        {
            self.free.remove(&s);
            (start, len) = (s, l + len);
        }
        if let Some(l) = self.free.remove(&(start + len)) {
            len += l;
        }
        self.free.insert(start, len);
    }

    /// Whether the slot is free or was never used.
    pub fn is_free(&self, slot: Slot) -> bool {
        slot.0 >= self.end
            || self.free.range(..=slot.0).next_back().is_some_and(|(s, l)| slot.0 < s + l)
    }
}
