//! Latencies by powers of two.
//!
//! 24 bounds from 1 µs to 8.4 s, each twice the one before, and one bucket
//! beyond: 208 bytes, wide enough for a cached read and for a disk that hangs,
//! and a bucket is found with one count of leading zeros.

use super::Counter;

/// Buckets with a bound; one more takes what is longer than the last bound.
pub const BUCKETS: usize = 24;

/// The bound of a bucket in microseconds: what is no longer falls into it, or
/// into one before.
pub const fn bound_us(bucket: usize) -> u64 {
    1 << bucket
}

/// The bucket for a latency.
#[inline]
pub const fn bucket_of(nanos: u64) -> usize {
    let micros = nanos.div_ceil(1000);
    let bucket = (u64::BITS - micros.saturating_sub(1).leading_zeros()) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS }
}

/// A latency histogram with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS + 1],
    sum_ns: Counter,
}

impl Histogram {
    /// `count` requests took so long.
    #[inline]
    pub fn record(&self, nanos: u64, count: u64) {
        self.buckets[bucket_of(nanos)].add(count);
        self.sum_ns.add(nanos.saturating_mul(count));
    }

    /// How many fell into each bucket; the last is what exceeds all bounds.
    pub fn counts(&self) -> [u64; BUCKETS + 1] {
        std::array::from_fn(|bucket| self.buckets[bucket].get())
    }

    /// All latencies together, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.get()
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts().iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_a_nanosecond_more_to_the_next() {
        for bucket in 0..BUCKETS {
            let bound_ns = bound_us(bucket) * 1000;
            assert_eq!(bucket_of(bound_ns), bucket);
            assert_eq!(bucket_of(bound_ns + 1), bucket + 1);
        }
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(u64::MAX), BUCKETS);
    }

    #[test]
    fn counts_and_sum_tell_what_was_recorded() {
        let histogram = Histogram::default();
        histogram.record(900, 3);
        histogram.record(9_000_000_000, 1);
        assert_eq!(histogram.counts()[0], 3);
        assert_eq!(histogram.counts()[BUCKETS], 1);
        assert_eq!(histogram.count(), 4);
        assert_eq!(histogram.sum_ns(), 9_000_002_700);
    }
}
