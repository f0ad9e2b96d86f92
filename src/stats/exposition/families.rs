//! Every metric: its name, what it says, and where its value comes from.

use prometheus::proto::{MetricFamily, MetricType};

use super::{Family, seconds};
use crate::metrics::Operation;
use crate::stats::{
    CacheStats, FileSystemStats, HostStats, ProcessStats, ReactorStats, ReloadStats, RootStats,
    StateCounts, VmStats,
};

/// All families, those without series included.
pub(super) fn of(stats: &HostStats) -> Vec<MetricFamily> {
    let families = host(stats)
        .into_iter()
        .chain(process(&stats.process))
        .chain(reload(stats.last_reload))
        .chain(states(stats))
        .chain(file_systems(&stats.file_systems))
        .chain(cache(&stats.cache))
        .chain(reactors(&stats.reactors))
        .chain(roots(&stats.roots))
        .chain(vms(&stats.vms))
        .chain(requests(&stats.vms));
    families.map(|family| family.family).collect()
}

fn host(stats: &HostStats) -> Vec<Family> {
    vec![
        Family::gauge("build_info", "Always 1; the label says the version.")
            .with(&[("version", &stats.version)], 1.0),
        Family::gauge("uptime_seconds", "Seconds since the daemon started.")
            .with(&[], stats.uptime_seconds),
        Family::counter("internal_errors_total", "Mistakes of leafblk that it noticed.")
            .with(&[], stats.internal_errors as f64),
        optional(
            Family::gauge("runtime_dir_in_memory", "1 if the runtime directory is on a tmpfs."),
            stats.runtime_dir_in_memory.map(f64::from),
        ),
    ]
}

/// The family with this value, or without series.
fn optional(family: Family, value: Option<f64>) -> Family {
    match value {
        Some(value) => family.with(&[], value),
        None => family,
    }
}

/// By the names that all of Prometheus's client libraries give them.
fn process(process: &ProcessStats) -> Vec<Family> {
    let gauge =
        |name, help, value| optional(Family::of_process(name, help, MetricType::GAUGE), value);
    let number = |value: Option<u64>| value.map(|value| value as f64);
    vec![
        optional(
            Family::of_process(
                "cpu_seconds_total",
                "CPU time of the process, user and system.",
                MetricType::COUNTER,
            ),
            process.cpu_seconds,
        ),
        gauge("virtual_memory_bytes", "Its address space.", number(process.virtual_bytes)),
        gauge(
            "resident_memory_bytes",
            "What of it is in memory, without hugetlb pages.",
            number(process.resident_bytes),
        ),
        gauge("threads", "Its threads.", number(process.threads)),
        gauge("start_time_seconds", "When it started, since 1970.", process.started_at),
        gauge("open_fds", "Its open file descriptors.", number(process.open_descriptors)),
        gauge("max_fds", "How many it may have open.", number(process.descriptors_max)),
    ]
}

/// No series before the first reload.
fn reload(last: Option<ReloadStats>) -> Vec<Family> {
    let each = |name, help, value: fn(ReloadStats) -> u64| {
        let mut family = Family::gauge(name, help);
        if let Some(last) = last {
            family.add(&[], value(last) as f64);
        }
        family
    };
    vec![
        each("last_reload_successful", "1 if nothing failed at the last reload.", |last| {
            last.successful.into()
        }),
        each("last_reload_timestamp_seconds", "When that was, since 1970.", |last| last.at),
    ]
}

fn states(stats: &HostStats) -> Vec<Family> {
    let each = |mut family: Family, counts: &StateCounts| {
        let StateCounts { attaching, serving, changing, failed } = *counts;
        for (state, count) in [
            ("attaching", attaching),
            ("serving", serving),
            ("changing", changing),
            ("failed", failed),
        ] {
            family.add(&[("state", state)], count as f64);
        }
        family
    };
    vec![
        each(Family::gauge("vms", "VMs, served or not, by state."), &stats.vm_states),
        each(Family::gauge("roots", "Roots, served or not, by state."), &stats.root_states),
    ]
}

fn file_systems(file_systems: &[FileSystemStats]) -> Vec<Family> {
    let each = |name, help, value: fn(&FileSystemStats) -> Option<u64>| {
        let mut family = Family::gauge(name, help);
        for file_system in file_systems {
            if let Some(value) = value(file_system) {
                family.add(&[("path", &file_system.path)], value as f64);
            }
        }
        family
    };
    let mut uses = Family::gauge("file_system_use", "Always 1; the labels say what is on it.");
    for file_system in file_systems {
        for used in &file_system.uses {
            uses.add(&[("path", &file_system.path), ("use", used)], 1.0);
        }
    }
    vec![
        uses,
        each("file_system_size_bytes", "Bytes of a file system that is used.", |f| f.size_bytes),
        each("file_system_free_bytes", "Bytes free for users other than root.", |f| f.free_bytes),
        each("file_system_inodes", "Inodes of a file system that is used.", |f| f.inodes),
        each("file_system_free_inodes", "Inodes that are free.", |f| f.free_inodes),
        each("file_system_silent", "1 while it owes an answer: it hangs.", |f| {
            Some(f.silent_seconds.is_some().into())
        }),
    ]
}

fn cache(cache: &CacheStats) -> Vec<Family> {
    let gauge = |name, help, value: u64| Family::gauge(name, help).with(&[], value as f64);
    let counter = |name, help, value: u64| Family::counter(name, help).with(&[], value as f64);
    vec![
        Family::gauge("cache_size_bytes", "Memory set aside for cached root blocks.")
            .with(&[("pages", &cache.pages)], cache.size_bytes as f64),
        gauge("cache_used_bytes", "Memory that holds blocks which can be hit.", cache.used_bytes),
        gauge("cache_block_bytes", "Bytes in a cache block.", cache.block_bytes),
        gauge("cache_filling_blocks", "Blocks being read from a root.", cache.filling_blocks),
        gauge("cache_limbo_blocks", "Evicted blocks not free yet.", cache.limbo_blocks),
        gauge("cache_zero_blocks", "Blocks known to be all zeros.", cache.zero_blocks),
        counter("cache_hits_total", "Pieces of reads found in the cache.", cache.hits),
        counter("cache_misses_total", "Pieces of reads that had to wait.", cache.misses),
        counter("cache_fills_total", "Blocks whose reading was begun.", cache.fills),
        counter("cache_failed_fills_total", "Blocks not readable.", cache.failed_fills),
        counter(
            "cache_refused_fills_total",
            "Misses tried again for want of a free slot.",
            cache.refused_fills,
        ),
        counter(
            "cache_single_flight_waits_total",
            "Misses that waited for a fill which another had begun.",
            cache.single_flight_waits,
        ),
        counter("cache_evictions_total", "Blocks given up for others.", cache.evictions),
    ]
}

fn reactors(reactors: &[ReactorStats]) -> Vec<Family> {
    let each = |mut family: Family, value: fn(&ReactorStats) -> f64| {
        for reactor in reactors {
            family.add(&[("reactor", &reactor.reactor.to_string())], value(reactor));
        }
        family
    };
    let counter = |name, help, value| each(Family::counter(name, help), value);
    vec![
        each(Family::gauge("reactor_devices", "Connected devices served."), |r| r.devices as f64),
        counter("reactor_busy_seconds_total", "Time with work in hand.", |r| seconds(r.busy_ns)),
        counter("reactor_cpu_seconds_total", "CPU time of the thread: busy and polling.", |r| {
            seconds(r.cpu_ns)
        }),
        counter("reactor_polls_total", "Turns of the loop.", |r| r.polls as f64),
        counter("reactor_epoll_waits_total", "Calls of epoll_wait.", |r| r.looks as f64),
        counter("reactor_sleeps_total", "Times that it slept.", |r| r.sleeps as f64),
        counter("reactor_kicks_total", "Kicks taken from drivers.", |r| r.kicks as f64),
        counter("reactor_calls_total", "Calls sent to drivers.", |r| r.calls as f64),
        counter("reactor_deferred_requests_total", "Requests that had to wait.", |r| {
            r.deferred as f64
        }),
    ]
}

fn roots(roots: &[RootStats]) -> Vec<Family> {
    let each = |mut family: Family, value: fn(&RootStats) -> u64| {
        for root in roots {
            family.add(&[("root", &root.name)], value(root) as f64);
        }
        family
    };
    vec![
        each(Family::gauge("root_size_bytes", "Bytes of the image."), |r| r.size),
        each(Family::gauge("root_vms", "VMs on the root."), |r| r.vms),
        each(Family::gauge("root_changed", "1 while its file is not what was recorded."), |r| {
            r.changed.into()
        }),
    ]
}

fn vms(vms: &[VmStats]) -> Vec<Family> {
    let each = |mut family: Family, value: fn(&VmStats) -> Option<u64>| {
        for vm in vms {
            if let Some(value) = value(vm) {
                family.add(&[("vm", &vm.name)], value as f64);
            }
        }
        family
    };
    let gauge = |name, help, value| each(Family::gauge(name, help), value);
    let counter = |name, help, value| each(Family::counter(name, help), value);
    let mut info = Family::gauge("vm_info", "Always 1; the labels say what the VM is on.");
    let mut sources =
        Family::counter("vm_read_sectors_total", "Sectors read, by where they came from.");
    for vm in vms {
        let reactor = vm.reactor.to_string();
        info.add(&[("vm", &vm.name), ("root", &vm.root), ("reactor", &reactor)], 1.0);
        let from = &vm.read_sectors;
        let by_source =
            [("leaf", from.leaf), ("cache", from.cache), ("root", from.root), ("zero", from.zero)];
        for (source, sectors) in by_source {
            sources.add(&[("vm", &vm.name), ("source", source)], sectors as f64);
        }
    }
    vec![
        info,
        sources,
        gauge("vm_size_bytes", "Bytes of the disk.", |vm| Some(vm.size)),
        gauge("vm_connected", "1 while a frontend is connected.", |vm| Some(vm.connected.into())),
        counter("vm_connections_total", "Frontends that connected.", |vm| Some(vm.connections)),
        counter("vm_reconnects_total", "Frontends that connected after the first.", |vm| {
            Some(vm.connections.saturating_sub(1))
        }),
        counter("vm_resubmitted_requests_total", "Requests taken up after a reconnect.", |vm| {
            Some(vm.resubmitted)
        }),
        gauge("vm_leaf_held_bytes", "Bytes of the disk that the leaf holds.", |vm| {
            vm.leaf.as_ref().map(|leaf| leaf.held_bytes)
        }),
        gauge("vm_leaf_allocated_bytes", "Bytes that the leaf's file occupies.", |vm| {
            vm.leaf.as_ref().map(|leaf| leaf.allocated_bytes)
        }),
        gauge(
            "vm_leaf_unsynced_bytes",
            "Bytes written since write-back or a flush was last begun.",
            |vm| vm.leaf.as_ref().map(|leaf| leaf.unsynced_bytes),
        ),
        gauge("vm_leaf_failed", "1 after a failed sync: the leaf takes no writes.", |vm| {
            vm.leaf.as_ref().map(|leaf| leaf.failed.into())
        }),
        gauge(
            "vm_leaf_lost",
            "1 while its leaf's file is in use, and was deleted, moved or replaced.",
            |vm| vm.leaf.as_ref().map(|leaf| leaf.lost.into()),
        ),
        gauge("vm_failing", "1 while its requests or connections fail, or it is stopped.", |vm| {
            Some(vm.failing.into())
        }),
        counter("vm_cache_hits_total", "Pieces of reads found in the cache.", |vm| {
            Some(vm.cache_hits)
        }),
        counter("vm_cache_misses_total", "Pieces of reads that had to wait.", |vm| {
            Some(vm.cache_misses)
        }),
        counter("vm_device_faults_total", "Times that the device was stopped.", |vm| {
            Some(vm.device_faults)
        }),
        counter("vm_write_back_errors_total", "Failures to write the leaf back.", |vm| {
            Some(vm.write_back_errors)
        }),
    ]
}

/// What is counted by operation. Bytes are those of the kinds that have some;
/// latencies those of the kinds that were used, since each is 26 series.
fn requests(vms: &[VmStats]) -> Vec<Family> {
    let mut requests = Family::counter("vm_requests_total", "Requests answered.");
    let mut errors = Family::counter("vm_request_errors_total", "Requests answered with an error.");
    let mut bytes =
        Family::counter("vm_request_bytes_total", "Bytes that requests moved or were about.");
    let mut latency = Family::histogram(
        "vm_request_duration_seconds",
        "From taking a request off the ring to showing its answer.",
    );
    for vm in vms {
        for (operation, stats) in Operation::ALL.into_iter().zip(&vm.operations) {
            let labels = [("vm", vm.name.as_str()), ("operation", operation.name())];
            requests.add(&labels, stats.requests as f64);
            errors.add(&labels, stats.errors as f64);
            if !matches!(operation, Operation::Flush | Operation::Other) {
                bytes.add(&labels, vm.bytes(operation) as f64);
            }
            if stats.requests > 0 {
                latency.add_latencies(&labels, &stats.latency_counts, stats.latency_sum_ns);
            }
        }
    }
    vec![requests, errors, bytes, latency]
}
