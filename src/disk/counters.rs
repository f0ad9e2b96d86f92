//! What a disk did, counted where it costs next to nothing.

use crate::metrics::{Counter, Gauge, Histogram, OPERATIONS, Operation, Tally};

/// Counts of one disk since its VM was attached. Its reactor writes them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Sectors read that the leaf held.
    pub read_sectors_leaf: Counter,
    /// Sectors read that were in the cache.
    pub read_sectors_cache: Counter,
    /// Sectors read whose cache block had to be waited for.
    pub read_sectors_root: Counter,
    /// Sectors read that are known to be zeros.
    pub read_sectors_zero: Counter,
    /// Sectors asked to be written.
    pub written_sectors: Counter,
    /// Frontends that came back to a disk that was already in use: after a
    /// restart or crash of the backend, or a broken connection. The one counter
    /// that the connection's thread adds to, of which there is one at a time.
    pub reconnects: Counter,
    /// Requests in flight that were taken up after such a return.
    pub resubmitted: Counter,
    /// Pieces of reads, each within one cache block, that were in the cache.
    pub cache_hits: Counter,
    /// Pieces whose block had to be waited for.
    pub cache_misses: Counter,
    /// Sectors asked to be discarded.
    pub discarded_sectors: Counter,
    /// Sectors asked to be zeroed.
    pub zeroed_sectors: Counter,
    /// Times that the device was stopped, by its driver's or frontend's
    /// nonsense, until it was reset.
    pub device_faults: Counter,
    /// Failures to write the leaf back, which no request waited for.
    pub write_back_errors: Counter,
    /// Frontends that connected.
    pub connections: Counter,
    /// Whether one is connected: 1 or 0.
    pub connected: Gauge,
    errors: [Counter; OPERATIONS],
    latency: [Histogram; OPERATIONS],
}

impl Counters {
    /// Requests were answered in one turn that took so long.
    #[inline]
    pub fn answered(&self, tally: &mut Tally, nanos: u64) {
        while let Some((index, count)) = tally.take() {
            self.latency[index].record(nanos, count);
        }
    }

    /// One request was answered after so long.
    pub fn answered_one(&self, operation: Operation, nanos: u64) {
        self.latency[operation.index()].record(nanos, 1);
    }

    /// A request's answer is an error.
    #[cold]
    pub fn failed(&self, operation: Operation) {
        self.errors[operation.index()].add(1);
    }

    /// Requests that were answered with an error.
    pub fn errors(&self, operation: Operation) -> u64 {
        self.errors[operation.index()].get()
    }

    /// How long requests took, from being taken off the ring to being shown
    /// to the driver as used. Its count is that of requests answered.
    pub fn latency(&self, operation: Operation) -> &Histogram {
        &self.latency[operation.index()]
    }

    /// Requests that were answered, of all kinds.
    pub fn all_requests(&self) -> u64 {
        self.latency.iter().map(Histogram::count).sum()
    }

    /// Everything that went wrong.
    pub fn all_errors(&self) -> u64 {
        let requests: u64 = self.errors.iter().map(Counter::get).sum();
        requests + self.device_faults.get() + self.write_back_errors.get()
    }
}
