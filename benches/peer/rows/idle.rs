//! Row 8: what many idle VMs cost.
//!
//! Every client is connected and started, has read once, and then does nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::backend::{Backend, Export, Setup};
use crate::cli::Daemon;
use crate::client::{Client, Wait};
use crate::data;
use crate::load::{BLOCK, CheckBlocks};
use crate::proc_stat;
use crate::report::{Row, Target};
use crate::rows::{Bench, Group, connect, progress};
use crate::util::{Result, check_signals, to_f64, to_u64};

/// Row 8.
pub(crate) const GROUP: Group = Group { numbers: &[8], ids: &["idle-cpu", "idle-memory"], run };

/// Blocks that every VM reads before it is idle.
const TOUCHED: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let root = bench.root()?;
    let vms = bench.sizes.vms;
    let mut cpu = Row::new("idle-cpu", format!("{vms} idle VMs: CPU, % of a core"), "%")
        .target(Target::ValueAtMost(1.0));
    let mut memory = Row::new("idle-memory", "memory per VM beside the cache", "KiB")
        .target(Target::ValueAtMost(150.0));
    memory.notes.push(
        "proportional share of all mappings, page tables and files in the runtime directory; \
         without hugepages and without guests' memory; the slope from 1 VM to all"
            .to_owned(),
    );
    for _ in 0..bench.reps(1) {
        for (side, daemon) in bench.daemons().into_iter().enumerate() {
            let one = idle_memory(bench, &root, daemon, 1)?;
            let (backend, clients) = start_idle(bench, &root, daemon, vms)?;
            let percent = idle_cpu(bench, &backend)?;
            let all = memory_of(&backend)?;
            drop(clients);
            let per_vm = to_f64(all.saturating_sub(one))
                / 1024.0
                / to_f64(to_u64(vms.saturating_sub(1).max(1)));
            progress(&format!(
                "idle {daemon:?}: {percent:.2} %, {per_vm:.1} KiB a VM, {} KiB with one",
                one >> 10
            ));
            if side == 0 {
                cpu.a.push(percent);
                memory.a.push(per_vm);
            } else {
                cpu.b.push(percent);
                memory.b.push(per_vm);
            }
        }
    }
    let mut rows = vec![cpu, memory];
    rows.retain(|row| bench.wants(8, row.id));
    Ok(rows)
}

fn start_idle(
    bench: &Bench,
    root: &Path,
    daemon: Daemon,
    vms: usize,
) -> Result<(Backend, Vec<Client>)> {
    let backend = bench.start(
        daemon,
        &Setup { root, vms, export: Export::Overlay, cache_bytes: bench.cache_bytes(), threads: 1 },
    )?;
    let mut clients = Vec::with_capacity(vms);
    for vm in 0..vms {
        let mut client = connect(&backend, vm, 8, BLOCK)?;
        client.set_wait(Wait::Sleep);
        let mut load = CheckBlocks::new(&TOUCHED, TOUCHED.len(), data::ROOT);
        client.drive(8, Duration::MAX, &mut load)?;
        clients.push(client);
    }
    Ok((backend, clients))
}

/// The share of a core that the daemon uses while nobody asks it for anything.
fn idle_cpu(bench: &Bench, backend: &Backend) -> Result<f64> {
    let span = Duration::from_secs_f64(bench.sizes.idle_seconds);
    // What the last request started, such as polling, ends within a moment.
    std::thread::sleep(span / 10);
    let (cpu, started) = (backend.process().cpu()?, Instant::now());
    std::thread::sleep(span);
    check_signals()?;
    let used = backend.process().cpu()?.saturating_sub(cpu);
    Ok(100.0 * used.as_secs_f64() / started.elapsed().as_secs_f64())
}

fn idle_memory(bench: &Bench, root: &Path, daemon: Daemon, vms: usize) -> Result<u64> {
    let (backend, _clients) = start_idle(bench, root, daemon, vms)?;
    memory_of(&backend)
}

/// Bytes of the daemon, with the live maps on tmpfs that it has not mapped.
fn memory_of(backend: &Backend) -> Result<u64> {
    let mapped = backend.process().memory()?;
    Ok(mapped + proc_stat::occupied(backend.runtime_dir())?)
}
