//! Quantiles from histograms of powers of two.

use crate::metrics::{BUCKETS, bound_us};

/// The latency in microseconds that a share `quantile` (0 to 1) of the counted
/// requests didn't exceed, taking them as evenly spread within their bucket as
/// Prometheus's `histogram_quantile` does; `None` where there were none. What
/// exceeds the last bound counts as that bound.
pub fn quantile_us(counts: &[u64], quantile: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = quantile.clamp(0.0, 1.0) * total as f64;
    let mut before = 0;
    for (bucket, count) in counts.iter().copied().enumerate() {
        let until = before + count;
        if count > 0 && until as f64 >= rank {
            if bucket >= BUCKETS {
                break;
            }
            let upper = bound_us(bucket) as f64;
            let lower = if bucket == 0 { 0.0 } else { upper / 2.0 };
            let within = (rank - before as f64).max(0.0) / count as f64;
            return Some(lower + (upper - lower) * within);
        }
        before = until;
    }
    Some(bound_us(BUCKETS - 1) as f64)
}

/// What was counted between two readings of a histogram; all of `after` where
/// it was begun anew meanwhile.
pub fn between(before: &[u64], after: &[u64]) -> Vec<u64> {
    let differences: Option<Vec<u64>> =
        after.iter().zip(before).map(|(after, before)| after.checked_sub(*before)).collect();
    differences.filter(|found| found.len() == after.len()).unwrap_or_else(|| after.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(buckets: &[(usize, u64)]) -> Vec<u64> {
        let mut counts = vec![0; BUCKETS + 1];
        for (bucket, count) in buckets {
            counts[*bucket] = *count;
        }
        counts
    }

    #[test]
    fn without_requests_there_is_no_quantile() {
        assert_eq!(quantile_us(&counts(&[]), 0.5), None);
        assert_eq!(quantile_us(&[], 0.99), None);
    }

    #[test]
    fn a_quantile_lies_in_the_bucket_of_its_rank() {
        let found = counts(&[(3, 98), (10, 2)]);
        assert_eq!(quantile_us(&found, 0.5), Some(4.0 + 4.0 * 50.0 / 98.0));
        assert_eq!(quantile_us(&found, 0.98), Some(8.0));
        assert_eq!(quantile_us(&found, 0.99), Some(768.0));
        assert_eq!(quantile_us(&found, 1.0), Some(1024.0));
    }

    #[test]
    fn what_exceeds_the_last_bound_counts_as_it() {
        assert_eq!(quantile_us(&counts(&[(BUCKETS, 1)]), 0.5), Some(8_388_608.0));
    }

    #[test]
    fn a_histogram_that_began_anew_is_taken_as_it_is() {
        assert_eq!(between(&[1, 2], &[3, 2]), [2, 0]);
        assert_eq!(between(&[5, 0], &[3, 1]), [3, 1]);
        assert_eq!(between(&[], &[3, 1]), [3, 1]);
    }
}
