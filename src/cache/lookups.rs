//! How lookups went, in all.
//!
//! Whoever looks up counts, as a counter here would be a cache line that all
//! threads write; what is here is what those counted who are gone.

use std::sync::atomic::{AtomicU64, Ordering};

/// Hits and misses.
#[derive(Debug, Default)]
pub struct Lookups {
    retired: [AtomicU64; 2],
    told: [AtomicU64; 2],
}

impl Lookups {
    /// Somebody who counted these is gone.
    pub(crate) fn retire(&self, hits: u64, misses: u64) {
        for (counter, count) in self.retired.iter().zip([hits, misses]) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// The hits and misses of all, given those that are there. Never less than
    /// what was told before: between leaving the list and retiring, somebody's
    /// are in neither.
    pub fn total(&self, living: impl Iterator<Item = (u64, u64)>) -> (u64, u64) {
        // Before the others are read: who retires meanwhile is then counted
        // once or not at all, never twice.
        let retired = [0, 1].map(|i: usize| self.retired[i].load(Ordering::Acquire));
        let sum = living.fold(retired, |sum, (hits, misses)| [sum[0] + hits, sum[1] + misses]);
        let [hits, misses] = [0, 1].map(|i: usize| {
            let before = self.told[i].fetch_max(sum[i], Ordering::Relaxed);
            before.max(sum[i])
        });
        (hits, misses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_gone_counted_stays_and_the_sum_never_goes_back() {
        let lookups = Lookups::default();
        assert_eq!(lookups.total([(10, 1), (5, 2)].into_iter()), (15, 3));
        assert_eq!(lookups.total([(5, 2)].into_iter()), (15, 3), "one has left, not retired");
        lookups.retire(12, 1);
        assert_eq!(lookups.total([(5, 2)].into_iter()), (17, 3));
    }
}
