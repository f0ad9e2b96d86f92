//! Quiescent states: when has every reader let go of an evicted slot?
//!
//! Owns one counter and one cell a reader; knows neither slots nor tables.
//! An **epoch** is a number that grows by one with each batch of evictions. A
//! reader is either offline or carries the newest epoch that it has seen while
//! it held nothing. A slot that was evicted in the batch that ended epoch `e`
//! is free once every reader is offline or carries `e` or more.
//!
//! # Why that is right
//!
//! The evictor unlinks (stores an empty entry), advances the counter to `e`
//! (release), and later reads the cells. The reader loads entries, uses slots,
//! and at quiesce loads the counter (acquire) and stores it in its cell
//! (release).
//!
//! - *The cell shows `e` or more.* The reader's acquire load saw the advance, so
//!   the unlinking happened before it and all the reader's later lookups see it.
//!   The cell's release store, acquired by the evictor, orders all the reader's
//!   earlier uses of the slot before the refill. No fence is needed: quiesce is
//!   two plain moves on x86, and no store at all while nothing is evicted.
//! - *The cell shows less.* The slot waits.
//! - *The cell shows offline.* The reader may be coming online at this moment:
//!   it stores its cell and then loads entries, while the evictor stores the
//!   entry and then loads the cell. Without fences both loads could miss the
//!   other's store (store buffering). With a SeqCst fence between store and load
//!   on both sides, either the evictor sees the cell, or the reader sees the
//!   entry empty. That is the fence in [`Epochs::online`] and in
//!   [`Epochs::oldest_online`]. Going offline is a release store, so what the
//!   reader used before is ordered before the refill here too.
//!
//! Advancing is done by one thread at a time (under the cache's lock); the cells
//! are written by their readers alone.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// The epochs of one cache and its readers.
#[derive(Debug)]
pub(super) struct Epochs {
    current: Line<AtomicU64>,
    cells: Box<[Line<Cell>]>,
}

/// Two cache lines of its own, as x86 prefetches lines in pairs: a reader's
/// cell is written in each of its loops while evictions go on.
#[repr(align(128))]
#[derive(Debug)]
struct Line<T>(T);

#[derive(Debug)]
struct Cell {
    taken: AtomicBool,
    seen: AtomicU64,
}

/// A number that grows by one with each batch of evictions.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(super) struct Epoch(u64);

/// In a cell: the reader holds nothing and will look at nothing.
const OFFLINE: u64 = 0;

/// A reader's cell.
#[derive(Clone, Copy, Debug)]
pub(super) struct CellIndex(usize);

impl Epoch {
    /// Older than all that [`Epochs`] hands out.
    pub(super) const NEVER: Self = Self(OFFLINE);
}

impl Epochs {
    pub(super) fn new(readers_max: usize) -> Self {
        let cell = || Line(Cell { taken: AtomicBool::new(false), seen: AtomicU64::new(OFFLINE) });
        Self {
            current: Line(AtomicU64::new(OFFLINE + 1)),
            cells: std::iter::repeat_with(cell).take(readers_max).collect(),
        }
    }

    /// A cell for a new reader, offline; `None` where all are taken.
    pub(super) fn register(&self) -> Option<CellIndex> {
        let free = |cell: &Line<Cell>| {
            cell.0.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        self.cells.iter().position(free).map(CellIndex)
    }

    /// Gives the cell back; its reader is offline from now on.
    pub(super) fn unregister(&self, cell: CellIndex) {
        self.offline(cell);
        self.cells[cell.0].0.taken.store(false, Ordering::Release);
    }

    /// The reader holds nothing at this moment. `last` is what the previous
    /// call (or [`Self::online`]) returned.
    #[inline]
    pub(super) fn quiesce(&self, cell: CellIndex, last: Epoch) -> Epoch {
        let now = self.current.0.load(Ordering::Acquire);
        if now != last.0 {
            self.cells[cell.0].0.seen.store(now, Ordering::Release);
        }
        Epoch(now)
    }

    /// The reader holds nothing and looks at nothing until it is online again.
    pub(super) fn offline(&self, cell: CellIndex) {
        self.cells[cell.0].0.seen.store(OFFLINE, Ordering::Release);
    }

    /// The reader starts to look at entries.
    pub(super) fn online(&self, cell: CellIndex) -> Epoch {
        let now = self.current.0.load(Ordering::Acquire);
        self.cells[cell.0].0.seen.store(now, Ordering::Release);
        // Store the cell, then load entries: see the module's third case.
        fence(Ordering::SeqCst);
        Epoch(now)
    }

    /// The epoch that the next [`Self::advance`] begins: what is unlinked
    /// before that call is free once all readers carry it.
    pub(super) fn next(&self) -> Epoch {
        Epoch(self.current.0.load(Ordering::Relaxed) + 1)
    }

    /// Ends a batch of evictions. One thread at a time.
    pub(super) fn advance(&self) {
        self.current.0.fetch_add(1, Ordering::AcqRel);
    }

    /// The oldest epoch that an online reader carries; beyond all epochs where
    /// every reader is offline.
    pub(super) fn oldest_online(&self) -> Epoch {
        // Unlinked before, load the cells after: see the module's third case.
        fence(Ordering::SeqCst);
        let seen = self.cells.iter().map(|cell| cell.0.seen.load(Ordering::Acquire));
        Epoch(seen.filter(|seen| *seen != OFFLINE).min().unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_passes_only_when_every_online_reader_has_quiesced() {
        let epochs = Epochs::new(3);
        let (a, b) = (epochs.register().unwrap(), epochs.register().unwrap());
        let (seen_a, seen_b) = (epochs.online(a), epochs.online(b));
        let tag = epochs.next();
        epochs.advance();
        assert!(epochs.oldest_online() < tag);
        epochs.quiesce(a, seen_a);
        assert!(epochs.oldest_online() < tag, "b has not quiesced");
        epochs.quiesce(b, seen_b);
        assert!(epochs.oldest_online() >= tag);
    }

    #[test]
    fn offline_readers_hold_nobody_up() {
        let epochs = Epochs::new(2);
        let (a, b) = (epochs.register().unwrap(), epochs.register().unwrap());
        epochs.online(a);
        epochs.online(b);
        let tag = epochs.next();
        epochs.advance();
        epochs.offline(a);
        assert!(epochs.oldest_online() < tag);
        epochs.unregister(b);
        assert!(epochs.oldest_online() >= tag);
        // Who comes online after the advance holds nothing that was unlinked.
        epochs.online(a);
        assert!(epochs.oldest_online() >= tag);
    }

    #[test]
    fn cells_are_bounded_and_reused() {
        let epochs = Epochs::new(1);
        let cell = epochs.register().unwrap();
        assert!(epochs.register().is_none());
        epochs.unregister(cell);
        assert!(epochs.register().is_some());
    }
}
