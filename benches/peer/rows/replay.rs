//! Row 7: many VMs boot at once, as a trace of a real boot replayed.
//!
//! Each repetition starts new daemons with fresh leaves. Cold: nothing is
//! cached. Warm: one more VM has booted before, so the root is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::backend::{Backend, Export, Setup};
use crate::cli::Daemon;
use crate::client::Client;
use crate::data;
use crate::replay::{DEPTH, replay};
use crate::report::{Row, Target};
use crate::rows::{Bench, Group, connect, progress};
use crate::trace::Trace;
use crate::util::{Result, median, to_f64, to_u64};

/// Row 7.
pub(crate) const GROUP: Group = Group {
    numbers: &[7],
    ids: &[
        "boot-cold-wall",
        "boot-cold-cpu",
        "boot-warm-wall",
        "boot-warm-cpu",
        "boot2-cold-wall",
        "boot2-cold-cpu",
        "boot2-warm-wall",
        "boot2-warm-cpu",
        "boot-root-bytes",
    ],
    run,
};

/// What one replay took.
#[derive(Clone, Copy)]
struct Sample {
    wall: Duration,
    cpu: Duration,
    client_cpu: Duration,
    disk_bytes: u64,
}

/// A daemon with a number of threads, and its samples.
struct Side {
    daemon: Daemon,
    threads: usize,
    samples: Vec<Sample>,
}

impl Side {
    fn column(&self, figure: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(figure).collect()
    }

    fn median_client_cpu(&self) -> f64 {
        median(&self.column(|sample| sample.client_cpu.as_secs_f64())).unwrap_or_default()
    }
}

fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let path = trace_path(bench);
    let trace = Trace::open(&path)?;
    let root = replay_root(bench, &trace)?;
    let block_bytes = u64::from(bench.cli.cache_block_kib) << 10;
    let distinct = to_u64(trace.root_blocks(block_bytes).len()) * block_bytes;
    progress(&format!(
        "{} requests a VM, {} MiB read, root blocks of {} MiB",
        trace.ops.len(),
        trace.read_bytes >> 20,
        distinct >> 20
    ));
    let vms = bench.sizes.vms;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let what = format!("{vms} VMs replay {name}");
    let cold = measure(bench, &trace, &root, true)?;
    let warm = measure(bench, &trace, &root, false)?;
    let mut rows = Vec::new();
    for (one, two, state, sides) in [
        (["boot-cold-wall", "boot-cold-cpu"], ["boot2-cold-wall", "boot2-cold-cpu"], "cold", &cold),
        (["boot-warm-wall", "boot-warm-cpu"], ["boot2-warm-wall", "boot2-warm-cpu"], "warm", &warm),
    ] {
        for (ids, threads, sides) in
            [(one, "one thread each", &sides[0]), (two, "two threads each", &sides[1])]
        {
            rows.push(wall_row(ids[0], format!("{what}, {state}, {threads}: wall"), sides));
            rows.push(cpu_row(ids[1], "the same: CPU of the backend", sides));
        }
    }
    let [a, b] = &cold[0];
    let mut bytes = Row::new(
        "boot-root-bytes",
        "bytes read from disk in the cold replay over the distinct cache blocks",
        "×",
    )
    .target(Target::ValueAtMost(1.1));
    bytes.a = a.column(|sample| to_f64(sample.disk_bytes) / to_f64(distinct));
    bytes.b = b.column(|sample| to_f64(sample.disk_bytes) / to_f64(distinct));
    bytes.notes.push(format!(
        "distinct blocks of {} KiB: {:.1} MiB",
        bench.cli.cache_block_kib,
        to_f64(distinct) / to_f64(1 << 20)
    ));
    rows.push(bytes);
    rows.retain(|row| bench.wants(7, row.id));
    Ok(rows)
}

fn wall_row(id: &'static str, title: String, sides: &[Side; 2]) -> Row {
    let mut row = Row::new(id, title, "s").target(Target::RatioAtMost(0.6));
    row.a = sides[0].column(|sample| sample.wall.as_secs_f64());
    row.b = sides[1].column(|sample| sample.wall.as_secs_f64());
    row.notes.push(format!(
        "each VM keeps {DEPTH} requests in flight; CPU of the client, which shares the machine: \
         {:.2} and {:.2} s",
        sides[0].median_client_cpu(),
        sides[1].median_client_cpu()
    ));
    row
}

fn cpu_row(id: &'static str, title: &str, sides: &[Side; 2]) -> Row {
    let mut row = Row::new(id, title, "s").target(Target::RatioAtMost(0.5));
    row.a = sides[0].column(|sample| sample.cpu.as_secs_f64());
    row.b = sides[1].column(|sample| sample.cpu.as_secs_f64());
    row
}

/// Measures both daemons in turn, with one thread each (reactor, I/O thread) and
/// with two each.
fn measure(bench: &Bench, trace: &Trace, root: &Path, cold: bool) -> Result<[[Side; 2]; 2]> {
    let mut sides = [1, 2]
        .map(|threads| bench.daemons().map(|daemon| Side { daemon, threads, samples: Vec::new() }));
    for _ in 0..bench.reps(3) {
        for side in sides.iter_mut().flatten() {
            let sample = once(bench, trace, root, side, cold)?;
            progress(&format!(
                "boot {} {:?} with {} threads: {:.2} s, CPU {:.2} s, \
                 the client's {:.2} s, {} MiB from disk",
                if cold { "cold" } else { "warm" },
                side.daemon,
                side.threads,
                sample.wall.as_secs_f64(),
                sample.cpu.as_secs_f64(),
                sample.client_cpu.as_secs_f64(),
                sample.disk_bytes >> 20
            ));
            side.samples.push(sample);
        }
    }
    Ok(sides)
}

fn once(bench: &Bench, trace: &Trace, root: &Path, side: &Side, cold: bool) -> Result<Sample> {
    let vms = bench.sizes.vms;
    let backend = bench.start(
        side.daemon,
        &Setup {
            root,
            // The last one boots alone, before the others, in the warm variant.
            vms: vms + 1,
            export: Export::Overlay,
            cache_bytes: bench.cache_bytes().max(256 << 20),
            threads: side.threads,
        },
    )?;
    if !cold {
        let mut first = [client(&backend, vms, trace)?];
        replay(&mut first, trace, data::WRITTEN + to_u64(vms))?;
    }
    let mut clients: Vec<Client> =
        (0..vms).map(|vm| client(&backend, vm, trace)).collect::<Result<_>>()?;
    if cold {
        data::drop_file(root)?;
        // A test run leaves the rest of the machine its page cache.
        if !bench.sizes.quick && !data::drop_all() {
            progress("only the root was dropped from the page cache: run as root to drop all");
        }
    }
    let process = backend.process();
    let (cpu, disk_bytes) = (process.cpu()?, process.read_bytes()?);
    let replayed = replay(&mut clients, trace, data::WRITTEN)?;
    Ok(Sample {
        wall: replayed.wall,
        client_cpu: replayed.client_cpu,
        cpu: process.cpu()?.saturating_sub(cpu),
        disk_bytes: process.read_bytes()?.saturating_sub(disk_bytes),
    })
}

fn client(backend: &Backend, vm: usize, trace: &Trace) -> Result<Client> {
    connect(backend, vm, DEPTH, trace.largest)
}

/// The trace that was named, or the repository's.
fn trace_path(bench: &Bench) -> PathBuf {
    bench.cli.trace.clone().unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/traces/debian-12-boot.txt")
    })
}

/// A root as large as the trace's disk. The shared one if it is; with
/// `--quick` one that has data only where the trace reads.
fn replay_root(bench: &mut Bench, trace: &Trace) -> Result<PathBuf> {
    if !bench.sizes.quick && bench.sizes.root_bytes == trace.disk_bytes {
        return bench.root();
    }
    let path = bench.work().join("boot-root.raw");
    if bench.sizes.quick {
        let blocks = trace.root_blocks(64 << 10).into_iter();
        data::create_sparse_root(&path, trace.disk_bytes, 64 << 10, blocks)?;
    } else {
        data::create_root(&path, trace.disk_bytes)?;
    }
    Ok(path)
}
