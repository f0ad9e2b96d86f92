//! What happened between two readings, a second.

use super::latency::{between, quantile_us};
use super::{HostStats, OperationStats, ReactorStats, VmStats};
use crate::metrics::Operation;

/// What one VM did.
#[derive(Clone, Debug, PartialEq)]
pub struct VmRates {
    /// Its name.
    pub name: String,
    /// Its root's name.
    pub root: String,
    /// Whether a frontend is connected.
    pub connected: bool,
    /// Whether something of what it does fails.
    pub failed: bool,
    /// Requests answered, a second.
    pub iops: f64,
    /// Bytes read, a second.
    pub read_bytes: f64,
    /// Bytes written, a second.
    pub written_bytes: f64,
    /// Requests answered with an error, a second.
    pub errors: f64,
    /// What half of its reads and writes didn't exceed, in microseconds.
    pub p50_us: Option<f64>,
    /// What 99 of 100 didn't exceed.
    pub p99_us: Option<f64>,
    /// What 99 of 100 of its flushes didn't exceed, in microseconds.
    pub flush_p99_us: Option<f64>,
    /// The share of pieces that were in the cache, of those looked up.
    pub hit_ratio: Option<f64>,
    /// Bytes that its leaf holds.
    pub leaf_held_bytes: Option<u64>,
    /// Bytes that its leaf came to hold, a second.
    pub leaf_growth: f64,
    /// Each kind of request.
    pub operations: Vec<OperationRates>,
}

/// What one VM did in one way.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationRates {
    /// In which.
    pub operation: Operation,
    /// Requests answered, a second.
    pub iops: f64,
    /// Bytes moved, a second.
    pub bytes: f64,
    /// Requests answered with an error, since it was attached.
    pub errors: u64,
    /// How many fell into each bucket of the histogram.
    pub latency_counts: Vec<u64>,
}

/// What one reactor did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReactorRates {
    /// Its number.
    pub reactor: u64,
    /// Devices that it serves.
    pub devices: u64,
    /// The share of time with work in hand.
    pub busy: f64,
    /// The share of time that it polled and found nothing.
    pub polling: f64,
    /// Turns of the loop, a second.
    pub polls: f64,
    /// Kicks taken, a second.
    pub kicks: f64,
    /// Calls sent, a second.
    pub calls: f64,
}

/// What the host did.
#[derive(Clone, Debug, PartialEq)]
pub struct HostRates {
    /// Each VM, in the order of the reading.
    pub vms: Vec<VmRates>,
    /// Each reactor.
    pub reactors: Vec<ReactorRates>,
    /// The share of pieces that were in the cache, of those looked up.
    pub hit_ratio: Option<f64>,
    /// Fills begun, a second.
    pub fills: f64,
    /// Blocks evicted, a second.
    pub evictions: f64,
}

/// How much a counter grew; one that went back was begun anew.
fn grown(before: u64, after: u64) -> f64 {
    after.checked_sub(before).unwrap_or(after) as f64
}

fn ratio(hits: f64, misses: f64) -> Option<f64> {
    (hits + misses > 0.0).then(|| hits / (hits + misses))
}

impl HostRates {
    /// The rates between two readings that lie `seconds` apart. What is only in
    /// the later one has none yet.
    pub fn between(before: &HostStats, after: &HostStats, seconds: f64) -> Self {
        let seconds = seconds.max(1e-3);
        let was = |name: &str| before.vms.iter().find(|vm| vm.name == name);
        let vms = after.vms.iter().map(|vm| VmRates::between(was(&vm.name), vm, seconds)).collect();
        let reactors = after.reactors.iter().enumerate();
        let (cache, cache_was) = (&after.cache, &before.cache);
        Self {
            vms,
            reactors: reactors
                .map(|(i, r)| ReactorRates::between(before.reactors.get(i), r, seconds))
                .collect(),
            hit_ratio: ratio(
                grown(cache_was.hits, cache.hits),
                grown(cache_was.misses, cache.misses),
            ),
            fills: grown(cache_was.fills, cache.fills) / seconds,
            evictions: grown(cache_was.evictions, cache.evictions) / seconds,
        }
    }

    /// A sum over all VMs.
    pub fn sum(&self, value: impl Fn(&VmRates) -> f64) -> f64 {
        self.vms.iter().map(value).sum()
    }
}

impl VmRates {
    fn between(before: Option<&VmStats>, after: &VmStats, seconds: f64) -> Self {
        let before = before.unwrap_or(after);
        let rate = |value: fn(&VmStats) -> u64| grown(value(before), value(after)) / seconds;
        let operations: Vec<_> = Operation::ALL
            .into_iter()
            .zip(before.operations.iter().zip(&after.operations))
            .map(|(operation, (was, is))| OperationRates {
                operation,
                iops: grown(was.requests, is.requests) / seconds,
                bytes: grown(before.bytes(operation), after.bytes(operation)) / seconds,
                errors: is.errors,
                latency_counts: between(&was.latency_counts, &is.latency_counts),
            })
            .collect();
        let both = reads_and_writes(&operations);
        let leaf = |vm: &VmStats| vm.leaf.as_ref().map(|leaf| leaf.held_bytes);
        let growth = leaf(after).unwrap_or(0).saturating_sub(leaf(before).unwrap_or(0));
        Self {
            name: after.name.clone(),
            root: after.root.clone(),
            connected: after.connected,
            failed: after.failing || after.leaf.as_ref().is_some_and(|leaf| leaf.failed),
            iops: operations.iter().map(|operation| operation.iops).sum(),
            read_bytes: rate(|vm| vm.bytes(Operation::Read)),
            written_bytes: rate(|vm| vm.bytes(Operation::Write)),
            errors: rate(|vm| sum_of(vm, |operation| operation.errors)),
            p50_us: quantile_us(&both, 0.5),
            p99_us: quantile_us(&both, 0.99),
            flush_p99_us: flushes(&operations).and_then(|counts| quantile_us(counts, 0.99)),
            hit_ratio: ratio(
                grown(before.cache_hits, after.cache_hits),
                grown(before.cache_misses, after.cache_misses),
            ),
            leaf_held_bytes: leaf(after),
            leaf_growth: growth as f64 / seconds,
            operations,
        }
    }
}

fn sum_of(vm: &VmStats, value: impl Fn(&OperationStats) -> u64) -> u64 {
    vm.operations.iter().map(value).sum()
}

fn flushes(operations: &[OperationRates]) -> Option<&[u64]> {
    let flushes = operations.iter().find(|operation| operation.operation == Operation::Flush);
    flushes.map(|operation| operation.latency_counts.as_slice())
}

fn reads_and_writes(operations: &[OperationRates]) -> Vec<u64> {
    let mut both: Vec<u64> = Vec::new();
    for operation in operations {
        if matches!(operation.operation, Operation::Read | Operation::Write) {
            both.resize(both.len().max(operation.latency_counts.len()), 0);
            for (sum, count) in both.iter_mut().zip(&operation.latency_counts) {
                *sum += count;
            }
        }
    }
    both
}

impl ReactorRates {
    fn between(before: Option<&ReactorStats>, after: &ReactorStats, seconds: f64) -> Self {
        let before = before.unwrap_or(after);
        let busy = (grown(before.busy_ns, after.busy_ns) / 1e9 / seconds).min(1.0);
        let cpu = (grown(before.cpu_ns, after.cpu_ns) / 1e9 / seconds).min(1.0);
        Self {
            reactor: after.reactor,
            devices: after.devices,
            busy,
            polling: (cpu - busy).max(0.0),
            polls: grown(before.polls, after.polls) / seconds,
            kicks: grown(before.kicks, after.kicks) / seconds,
            calls: grown(before.calls, after.calls) / seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::sample;

    #[test]
    fn rates_are_what_was_counted_between_two_readings() {
        let before = sample::host(2);
        let mut after = before.clone();
        let vm = &mut after.vms[1];
        vm.operations[0].requests += 100;
        vm.operations[0].latency_counts[3] += 99;
        vm.operations[0].latency_counts[10] += 1;
        vm.read_sectors.cache += 1600;
        vm.cache_hits += 75;
        vm.cache_misses += 25;
        vm.leaf.as_mut().unwrap().held_bytes += 1 << 20;
        after.reactors[0].busy_ns += 500_000_000;
        after.reactors[0].cpu_ns += 1_500_000_000;
        after.cache.evictions += 8;
        let rates = HostRates::between(&before, &after, 2.0);
        let idle = &rates.vms[0];
        assert_eq!((idle.iops, idle.p50_us, idle.hit_ratio), (0.0, None, None));
        let vm = &rates.vms[1];
        assert_eq!((vm.iops, vm.read_bytes, vm.written_bytes), (50.0, 409_600.0, 0.0));
        assert_eq!((vm.hit_ratio, vm.leaf_growth), (Some(0.75), 524_288.0));
        assert!(vm.p50_us.is_some_and(|p50| p50 > 4.0 && p50 < 8.0), "{:?}", vm.p50_us);
        assert_eq!(vm.p99_us, Some(8.0));
        assert_eq!((rates.reactors[0].busy, rates.reactors[0].polling), (0.25, 0.5));
        assert_eq!(rates.evictions, 4.0);
    }

    #[test]
    fn a_vm_that_was_reset_counts_from_zero_and_a_new_one_has_no_rates() {
        let before = sample::host(2);
        let mut after = sample::host(1);
        after.vms[0].written_sectors = 10;
        let mut new = after.vms[0].clone();
        new.name = "new".into();
        after.vms.push(new);
        let rates = HostRates::between(&before, &after, 1.0);
        assert_eq!(rates.vms[0].written_bytes, 5120.0);
        assert_eq!((rates.vms[1].iops, rates.vms[1].read_bytes), (0.0, 0.0));
    }
}
