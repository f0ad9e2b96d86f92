//! A made-up host, for tests.

use super::{
    CacheStats, ClientStats, Failed, FailingPart, FileSystemStats, HostStats, LeafStats,
    OperationStats, ProcessStats, ReactorStats, ReloadStats, RootStats, SourceSectors, StateCounts,
    VmStats,
};
use crate::metrics::{BUCKETS, Operation};

/// A host with so many VMs: `web1`, `web2` and so on. The n-th has done n times
/// what the first has.
pub(crate) fn host(vms: u64) -> HostStats {
    HostStats {
        version: "0.1.0".into(),
        uptime_seconds: 3600.0,
        internal_errors: 0,
        process: ProcessStats {
            cpu_seconds: Some(12.5),
            virtual_bytes: Some(4 << 30),
            resident_bytes: Some(300 << 20),
            threads: Some(17),
            started_at: Some(1_800_000_000.25),
            open_descriptors: Some(90),
            descriptors_max: Some(524_288),
        },
        runtime_dir_in_memory: Some(true),
        last_reload: Some(ReloadStats { at: 1_800_000_000, successful: true }),
        cache: CacheStats {
            size_bytes: 1 << 30,
            block_bytes: 65536,
            pages: "hugetlb".into(),
            used_bytes: 256 << 20,
            filling_blocks: 2,
            limbo_blocks: 1,
            zero_blocks: 77,
            hits: 9000,
            misses: 1000,
            fills: 900,
            failed_fills: 0,
            refused_fills: 3,
            single_flight_waits: 100,
            evictions: 12,
        },
        reactors: (0..2).map(reactor).collect(),
        roots: vec![RootStats { name: "debian".into(), size: 2 << 30, vms, changed: false }],
        vms: (1..=vms).map(vm).collect(),
        vm_states: StateCounts { serving: vms, ..StateCounts::default() },
        root_states: StateCounts { serving: 1, ..StateCounts::default() },
        failed_vms: Vec::new(),
        failed_roots: Vec::new(),
        failing: Vec::new(),
        file_systems: vec![file_system("/run", "runtime", 8), file_system("/var", "leaves", 1024)],
    }
}

fn file_system(path: &str, used: &str, gib: u64) -> FileSystemStats {
    FileSystemStats {
        path: path.into(),
        uses: vec![used.into()],
        size_bytes: Some(gib << 30),
        free_bytes: Some(gib << 29),
        inodes: Some(gib << 10),
        free_inodes: Some(gib << 9),
        silent_seconds: None,
    }
}

/// The same with a VM and a root that could not be attached, and one VM that fails.
pub(crate) fn host_with_failures(vms: u64) -> HostStats {
    let failed = |name: &str, reason: &str| Failed { name: name.into(), reason: reason.into() };
    let mut host = host(vms);
    (host.vm_states.failed, host.root_states.failed) = (1, 1);
    host.failed_vms = vec![failed("db1", "root late could not be attached")];
    host.failed_roots = vec![failed("late", "late.raw can't be read")];
    let (part, name, problem) = ("VM", "web1", "its writes fail: no space left");
    host.failing =
        vec![FailingPart { part: part.into(), name: name.into(), problem: problem.into() }];
    host.vms[0].failing = true;
    host
}

fn reactor(reactor: u64) -> ReactorStats {
    ReactorStats {
        reactor,
        devices: 1,
        busy_ns: 1_500_000_000,
        cpu_ns: 2_000_000_000,
        polls: 1_000_000,
        looks: 2000,
        sleeps: 500,
        kicks: 800,
        calls: 700,
        deferred: 120,
    }
}

fn vm(number: u64) -> VmStats {
    let operation = |operation: Operation| {
        let mut counts = vec![0; BUCKETS + 1];
        let (fast, slow, sum_ns) = match operation {
            Operation::Read => (900, 100, 10_500_000),
            Operation::Write => (0, 50, 5_000_000),
            _ => (0, 0, 0),
        };
        (counts[0], counts[7]) = (fast * number, slow * number);
        OperationStats {
            operation: operation.name().into(),
            requests: (fast + slow) * number,
            errors: 0,
            latency_counts: counts,
            latency_sum_ns: sum_ns * number,
        }
    };
    VmStats {
        name: format!("web{number}"),
        root: "debian".into(),
        reactor: (number + 1) % 2,
        size: 2 << 30,
        readonly: false,
        connected: !number.is_multiple_of(3),
        client: (!number.is_multiple_of(3)).then(|| ClientStats {
            pid: Some(4000 + u32::try_from(number).unwrap_or(0)),
            command: Some("qemu-system-x86".into()),
        }),
        connections: 3,
        resubmitted: 17,
        leaf: Some(LeafStats {
            held_bytes: 100 << 20,
            allocated_bytes: 101 << 20,
            unsynced_bytes: 0,
            failed: false,
            lost: false,
        }),
        read_sectors: SourceSectors {
            leaf: 64 * number,
            cache: 7000 * number,
            root: 800 * number,
            zero: 136 * number,
        },
        written_sectors: 400 * number,
        discarded_sectors: 0,
        zeroed_sectors: 0,
        cache_hits: 900 * number,
        cache_misses: 100 * number,
        device_faults: 0,
        write_back_errors: 0,
        failing: false,
        operations: Operation::ALL.into_iter().map(operation).collect(),
    }
}
