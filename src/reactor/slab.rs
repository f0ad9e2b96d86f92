//! Things in flight, by number, and the lists of buffers that they use.
//!
//! A number stands for at most one thing at a time: who ends a thing takes it out
//! ([`Slab::remove`]), and only once. Places and lists are used again, so that steady-state
//! I/O allocates nothing; few lists are kept, so that what a guest once asked for doesn't
//! stay in memory for ever.

use crate::virtqueue::GuestBuf;

/// Things by number. A number is used again after its thing was removed.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    /// Puts a thing in; its number.
    pub(super) fn insert(&mut self, thing: T) -> u32 {
        if let Some(id) = self.free.pop() {
            self.entries[id as usize] = Some(thing);
            return id;
        }
        self.entries.push(Some(thing));
        u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
    }

    /// Takes a thing out; `None` if there is none of that number.
    pub(super) fn remove(&mut self, id: u32) -> Option<T> {
        let thing = self.entries.get_mut(id as usize)?.take()?;
        self.free.push(id);
        Some(thing)
    }

    #[inline]
    pub(super) fn get(&mut self, id: u32) -> Option<&mut T> {
        self.entries.get_mut(id as usize)?.as_mut()
    }
}

/// Lists that are kept when nobody uses them.
const KEPT: usize = 512;
/// Buffers that a kept list has room for, 4 KiB: twice what a driver's request
/// has that keeps to `seg_max`. Longer lists are made anew.
const LIST_KEPT: usize = 256;

/// Empty lists of buffers, with room.
#[derive(Debug, Default)]
pub(super) struct Lists {
    kept: Vec<Vec<GuestBuf>>,
}

impl Lists {
    /// An empty list.
    pub(super) fn take(&mut self) -> Vec<GuestBuf> {
        self.kept.pop().unwrap_or_default()
    }

    /// A list that is not needed any more.
    pub(super) fn give_back(&mut self, mut list: Vec<GuestBuf>) {
        if self.kept.len() < KEPT && (1..=LIST_KEPT).contains(&list.capacity()) {
            list.clear();
            self.kept.push(list);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_taken_out_once_and_its_number_is_used_again() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get(a), None);
        let c = slab.insert('c');
        assert_eq!((c, slab.remove(9)), (a, None));
        assert_eq!(slab.get(b), Some(&mut 'b'));
        assert_eq!(slab.entries.len(), 2);
    }

    #[test]
    fn lists_that_were_needed_once_give_their_memory_back() {
        let mut lists = Lists::default();
        for i in 0..4096 {
            lists.give_back(Vec::with_capacity(if i % 2 == 0 { 128 } else { 1024 }));
        }
        let kept: usize = lists.kept.iter().map(Vec::capacity).sum();
        assert!(kept <= KEPT * LIST_KEPT, "{kept} buffers");
        // What is used next has its room still.
        assert!((0..KEPT).all(|_| lists.take().capacity() >= 128));
        assert_eq!(lists.take().capacity(), 0);
    }
}
