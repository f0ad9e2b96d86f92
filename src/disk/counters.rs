//! What a disk did, counted where it costs next to nothing.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread at a time increases and any may read. Not a
/// read-modify-write: a disk belongs to one reactor, and a locked add would
/// cost as much as the lookup it counts.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning reactor may.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of one disk since its VM was attached.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Counters {
    pub reads: Counter,
    pub writes: Counter,
    pub flushes: Counter,
    pub discards: Counter,
    pub errors: Counter,
    pub read_sectors_leaf: Counter,
    pub read_sectors_cache: Counter,
    pub read_sectors_root: Counter,
    pub read_sectors_zero: Counter,
    pub written_sectors: Counter,
    /// Frontends that came back to a disk that was already in use: after a
    /// restart or crash of the backend, or a broken connection. The one counter
    /// that the connection's thread adds to, of which there is one at a time.
    pub reconnects: Counter,
    /// Requests in flight that were taken up after such a return.
    pub resubmitted: Counter,
}
