//! Reading the values off the running parts.

use super::{
    CacheStats, LeafStats, OperationStats, ReactorStats, RootStats, SourceSectors, VmStats,
};
use crate::cache::{self, ArenaPages};
use crate::disk::Disk;
use crate::leaf::Leaf;
use crate::metrics::Operation;
use crate::reactor::ReactorCounters;
use crate::root::Root;

impl VmStats {
    /// The disk's values, which knows no client; `reactor` is the number of the one that
    /// serves it, it is `failing` or not, and its leaf's name `lost` or not.
    pub fn read(disk: &Disk, reactor: usize, failing: bool, lost: bool) -> Self {
        let counters = disk.counters();
        let operation = |operation: Operation| {
            let latency = counters.latency(operation);
            let latency_counts = latency.counts().to_vec();
            OperationStats {
                operation: operation.name().to_owned(),
                requests: latency_counts.iter().sum(),
                errors: counters.errors(operation),
                latency_counts,
                latency_sum_ns: latency.sum_ns(),
            }
        };
        Self {
            name: disk.name().to_owned(),
            root: disk.root().root().name().to_owned(),
            reactor: reactor as u64,
            size: disk.sectors() * 512,
            readonly: disk.is_read_only(),
            connected: counters.connected.get() != 0,
            client: None,
            connections: counters.connections.get(),
            resubmitted: counters.resubmitted.get(),
            leaf: disk.leaf().map(|leaf| LeafStats::read(leaf, lost)),
            read_sectors: SourceSectors {
                leaf: counters.read_sectors_leaf.get(),
                cache: counters.read_sectors_cache.get(),
                root: counters.read_sectors_root.get(),
                zero: counters.read_sectors_zero.get(),
            },
            written_sectors: counters.written_sectors.get(),
            discarded_sectors: counters.discarded_sectors.get(),
            zeroed_sectors: counters.zeroed_sectors.get(),
            cache_hits: counters.cache_hits.get(),
            cache_misses: counters.cache_misses.get(),
            device_faults: counters.device_faults.get(),
            write_back_errors: counters.write_back_errors.get(),
            failing,
            operations: Operation::ALL.into_iter().map(operation).collect(),
        }
    }
}

impl LeafStats {
    fn read(leaf: &Leaf, lost: bool) -> Self {
        Self {
            held_bytes: leaf.present_sectors() * 512,
            allocated_bytes: leaf.occupied_bytes().unwrap_or(0),
            unsynced_bytes: leaf.unsynced_bytes(),
            failed: leaf.is_poisoned(),
            lost,
        }
    }
}

impl RootStats {
    /// The root's values; `vms` are on it, and its file has `changed` or not.
    pub fn read(root: &Root, vms: usize, changed: bool) -> Self {
        let (name, size) = (root.name().to_owned(), root.len_bytes());
        Self { name, size, vms: vms as u64, changed }
    }
}

impl CacheStats {
    /// The cache's values. Lookups are counted by `disks`: all that are
    /// attached.
    pub fn read<'a>(cache: &cache::Cache, disks: impl Iterator<Item = &'a Disk>) -> Self {
        let (hits, misses) =
            cache.lookups().total(disks.map(|disk| {
                (disk.counters().cache_hits.get(), disk.counters().cache_misses.get())
            }));
        let stats = cache.stats();
        let pages = match stats.pages {
            ArenaPages::Hugetlb => "hugetlb",
            ArenaPages::Transparent => "transparent",
            ArenaPages::Ordinary => "ordinary",
        };
        Self {
            size_bytes: stats.size_bytes,
            block_bytes: u64::from(stats.block_bytes),
            pages: pages.to_owned(),
            used_bytes: stats.ready_bytes,
            filling_blocks: stats.filling,
            limbo_blocks: stats.limbo,
            zero_blocks: stats.zero_blocks,
            hits,
            misses,
            fills: stats.fills,
            failed_fills: stats.failed_fills,
            refused_fills: stats.refused_fills,
            single_flight_waits: stats.joined_waits,
            evictions: stats.evictions,
        }
    }
}

impl ReactorStats {
    /// The values of the reactor with this number.
    pub fn read(reactor: usize, counters: &ReactorCounters) -> Self {
        Self {
            reactor: reactor as u64,
            devices: counters.devices.get(),
            busy_ns: counters.busy_ns.get(),
            cpu_ns: thread_cpu_ns(counters.thread_id.get()).unwrap_or(0),
            polls: counters.polls.get(),
            looks: counters.looks.get(),
            sleeps: counters.sleeps.get(),
            kicks: counters.kicks.get(),
            calls: counters.calls.get(),
            deferred: counters.deferred.get(),
        }
    }
}

/// The CPU time of a thread of this process: the first number of its
/// `schedstat` (Documentation/scheduler/sched-stats.rst of Linux).
fn thread_cpu_ns(thread: u64) -> Option<u64> {
    let text = crate::io::open::kernel_text(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_cpu_time_is_read_and_grows() {
        let thread = crate::thread::own_id().unsigned_abs();
        let before = thread_cpu_ns(u64::from(thread)).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while thread_cpu_ns(u64::from(thread)).unwrap() <= before {
            assert!(std::time::Instant::now() < deadline);
        }
        assert_eq!(thread_cpu_ns(u64::MAX), None, "no such thread");
    }
}
