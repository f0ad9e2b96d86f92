//! From an address to the memory behind it: one compare where the last translation was
//! in the same region, and a binary search elsewhere.
#![expect(unsafe_code, reason = "a mapping is memory, not a thread's property")]

use std::sync::atomic::{AtomicUsize, Ordering};

/// Where a region is, in one address space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    start: u64,
    size: u64,
    host: *mut u8,
}

impl Place {
    /// `size` bytes from `start` on are at `host`.
    pub(super) fn new(start: u64, size: u64, host: *mut u8) -> Self {
        Self { start, size, host }
    }

    /// What is at `addr`, and how many bytes there are from there on.
    #[inline]
    fn at(&self, addr: u64) -> Option<(*mut u8, u64)> {
        let offset = addr.wrapping_sub(self.start);
        #[expect(clippy::cast_possible_truncation, reason = "less than the size, a usize")]
        (offset < self.size).then(|| (self.host.wrapping_add(offset as usize), self.size - offset))
    }
}

/// Places of one address space that don't overlap.
#[derive(Debug, Default)]
pub(super) struct Places {
    sorted: Box<[Place]>,
    /// What the last search found: the next address is there too, most likely.
    last: AtomicUsize,
}

// SAFETY: the pointers lead into mappings, which are no thread's property; nothing here
// reads what is behind them.
unsafe impl Send for Places {}
// SAFETY: as for Send.
unsafe impl Sync for Places {}

impl FromIterator<Place> for Places {
    fn from_iter<T: IntoIterator<Item = Place>>(places: T) -> Self {
        let mut sorted: Box<[Place]> = places.into_iter().collect();
        sorted.sort_unstable_by_key(|place| place.start);
        Self { sorted, last: AtomicUsize::new(0) }
    }
}

impl Places {
    /// The host address of `addr`, and how many bytes there are from there on.
    #[inline]
    pub(super) fn find(&self, addr: u64) -> Option<(*mut u8, u64)> {
        let last = self.sorted.get(self.last.load(Ordering::Relaxed));
        last.and_then(|place| place.at(addr)).or_else(|| self.search(addr))
    }

    fn search(&self, addr: u64) -> Option<(*mut u8, u64)> {
        let after = self.sorted.partition_point(|place| place.start <= addr);
        let index = after.checked_sub(1)?;
        let found = self.sorted[index].at(addr)?;
        self.last.store(index, Ordering::Relaxed);
        Some(found)
    }
}
