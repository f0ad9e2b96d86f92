//! `cargo bench --bench reference`: why the data path is our own.
//!
//! The same cached reads, by the same libblkio client, of two backends: leafblk,
//! and the least that a backend on `vhost-user-backend` and `virtio-queue` can
//! be: one arena in memory, no leaf, no lookup, reads only, and a worker that
//! polls for 50 µs in `handle_event` before it sleeps. What leafblk loses to its
//! lookups it has to win back in the ring walk.
#![expect(
    unsafe_code,
    reason = "the client module, shared with the peer benchmark, works on raw buffers"
)]

#[expect(dead_code, reason = "shared with the peer benchmark, which uses all of it")]
#[path = "peer/backend.rs"]
mod backend;
#[expect(dead_code, reason = "shared with the peer benchmark, which uses all of it")]
#[path = "peer/cli.rs"]
mod cli;
#[expect(dead_code, reason = "shared with the peer benchmark, which uses all of it")]
#[path = "peer/client.rs"]
mod client;
#[expect(dead_code, reason = "shared with the peer benchmark, which uses all of it")]
#[path = "peer/data.rs"]
mod data;
#[path = "peer/hugepages.rs"]
mod hugepages;
#[expect(dead_code, reason = "shared with the peer benchmark, which uses all of it")]
#[path = "peer/load.rs"]
mod load;
#[expect(dead_code, reason = "shared with the peer benchmark, which uses all of it")]
#[path = "peer/proc_stat.rs"]
mod proc_stat;
#[expect(dead_code, reason = "shared with the peer benchmark, which uses all of it")]
#[path = "peer/report.rs"]
mod report;
#[expect(dead_code, reason = "shared with the peer benchmark, which uses all of it")]
#[path = "peer/util.rs"]
mod util;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringState, VringT};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, QueueOwnedT};
use vm_memory::{
    Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap, MmapRegion,
    VolatileMemory,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use backend::{Backend, Export, Setup};
use cli::Daemon;
use client::{Client, Kind, Wait};
use load::{LARGE, RandomReads, Sequential};
use report::{Row, Target};
use util::{Context, Error, Result, to_u64, to_usize};

const QUEUE_SIZE: usize = 256;
const POLL: Duration = Duration::from_micros(50);
const SECTOR: u64 = 512;
const STATUS_OK: u8 = 0;
const STATUS_IOERR: u8 = 1;
/// virtio 1.3, 5.2.6: a read.
const TYPE_IN: u32 = 0;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// leafblk against a minimal backend on vhost-user-backend.
#[derive(Debug, Parser)]
#[command(name = "reference")]
struct Options {
    /// A small arena and short runs: shows that it works, measures nothing
    #[arg(long)]
    quick: bool,
    /// Repetitions of each side, interleaved
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// Seconds that one timed run lasts
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The daemon in the first column
    #[arg(long, value_enum, default_value = "leafblk")]
    backend_a: Daemon,
    /// Print the table as Markdown
    #[arg(long)]
    markdown: bool,
    /// Measure in full: `cargo bench` passes it. `cargo test --benches` does not,
    /// and gets --quick
    #[arg(long)]
    bench: bool,
}

impl Options {
    /// Whether this run shows only that it works.
    const fn is_quick(&self) -> bool {
        self.quick || !self.bench
    }
}

/// A read-only disk in memory.
struct Reference {
    arena: MmapRegion,
    memory: Memory,
    event_idx: AtomicBool,
}

impl Reference {
    /// Serves `disk`, which is filled with the root's pattern.
    fn new(bytes: u64, memory: Memory) -> Result<Self> {
        let len = to_usize(bytes.next_multiple_of(2 << 20));
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;
        // The same pages as leafblk's arena has, where there are enough.
        let arena = MmapRegion::build(None, len, protection, flags | libc::MAP_HUGETLB)
            .or_else(|_| MmapRegion::build(None, len, protection, flags))
            .context(|| "cannot map the arena".to_owned())?;
        let mut chunk = vec![0; 2 << 20];
        for offset in (0..to_u64(len)).step_by(chunk.len()) {
            data::fill(&mut chunk, data::ROOT, offset);
            arena.get_slice(to_usize(offset), chunk.len())?.copy_from(&chunk);
        }
        Ok(Self { arena, memory, event_idx: AtomicBool::new(false) })
    }

    /// Answers everything in the ring. Says how many requests that was.
    fn serve(
        &self,
        vring: &mut VringState<Memory>,
        memory: &GuestMemoryMmap,
        used: &mut Vec<(u16, u32)>,
    ) -> std::io::Result<usize> {
        used.clear();
        let chains = vring.get_queue_mut().iter(memory).map_err(std::io::Error::other)?;
        for chain in chains {
            let head = chain.head_index();
            used.push((head, self.answer(chain, memory).unwrap_or(0)));
        }
        for &(head, len) in used.iter() {
            vring.add_used(head, len).map_err(std::io::Error::other)?;
        }
        if !used.is_empty()
            && (!self.event_idx.load(Ordering::Relaxed)
                || vring.needs_notification().map_err(std::io::Error::other)?)
        {
            vring.signal_used_queue()?;
        }
        Ok(used.len())
    }

    /// One request: header, one buffer, status. `None` if it has another shape.
    fn answer(
        &self,
        mut chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Option<u32> {
        let header = chain.next()?;
        let buffer = chain.next()?;
        let status = chain.next()?;
        let kind: u32 = memory.read_obj(header.addr()).ok()?;
        let sector: u64 =
            memory.read_obj(header.addr().0.checked_add(8).map(vm_memory::GuestAddress)?).ok()?;
        let len = usize::try_from(buffer.len()).ok()?;
        let copied = (kind == TYPE_IN).then_some(()).and_then(|()| {
            let offset = usize::try_from(sector.checked_mul(SECTOR)?).ok()?;
            let from = self.arena.get_slice(offset, len).ok()?;
            let to = memory.get_slice(buffer.addr(), len).ok()?;
            from.copy_to_volatile_slice(to);
            Some(())
        });
        let code = if copied.is_some() { STATUS_OK } else { STATUS_IOERR };
        memory.write_obj(code, status.addr()).ok()?;
        Some(buffer.len() + 1)
    }
}

impl VhostUserBackend for Reference {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_BLK_F_RO
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, enabled: bool) {
        self.event_idx.store(enabled, Ordering::Relaxed);
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // virtio 1.3, 5.2.4: capacity, then seg_max at 12 and blk_size at 20.
        let mut config = [0_u8; 256];
        let sectors = to_u64(self.arena.size()) / SECTOR;
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        config[12..16].copy_from_slice(&1_u32.to_le_bytes());
        config[20..24].copy_from_slice(&512_u32.to_le_bytes());
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(size).ok())
            .and_then(|(start, len)| config.get(start..start.checked_add(len)?));
        range.unwrap_or_default().to_vec()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        // Without one the daemon's drop waits for its worker for ever.
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn update_memory(&self, _memory: Memory) -> std::io::Result<()> {
        // The handle that `new` was given is the one that changes.
        Ok(())
    }

    fn handle_event(
        &self,
        _device_event: u16,
        _events: EventSet,
        vrings: &[VringMutex],
        _thread: usize,
    ) -> std::io::Result<()> {
        let memory = self.memory.memory();
        let mut used = Vec::with_capacity(QUEUE_SIZE);
        let mut last_work = Instant::now();
        loop {
            // Locked for one batch at a time: control messages want it too.
            let mut vring = vrings[0].get_mut();
            vring.disable_notification().map_err(std::io::Error::other)?;
            if self.serve(&mut vring, &memory, &mut used)? > 0 {
                last_work = Instant::now();
            } else if last_work.elapsed() > POLL
                && !vring.enable_notification().map_err(std::io::Error::other)?
            {
                return Ok(());
            }
        }
    }
}

/// Serves `reference` on `socket` until its client goes.
fn serve(reference: Arc<Reference>, mut listener: Listener) -> Result<()> {
    let memory = reference.memory.clone();
    let mut daemon = VhostUserDaemon::new("reference".to_owned(), reference, memory)
        .context(|| "cannot make the reference backend".to_owned())?;
    daemon.start(&mut listener).context(|| "cannot start the reference backend".to_owned())?;
    // Its client's end is an error to the crate and not to us.
    let _ = daemon.wait();
    Ok(())
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "progress of a program for the terminal")]
fn progress(text: &str) {
    eprintln!("reference: {text}");
}

fn run(options: &Options) -> Result<()> {
    util::stop_on_signals()?;
    let bytes: u64 = if options.is_quick() { 64 << 20 } else { 2 << 30 };
    let seconds = if options.is_quick() { 0.15 } else { options.seconds };
    let limit = Duration::try_from_secs_f64(seconds).context(|| "--seconds".to_owned())?;
    let work = tempfile::Builder::new().prefix("reference-").tempdir_in(target_dir()?)?;
    let cache_bytes = bytes + bytes / 8 + (16 << 20);
    let pages = hugepages::Reservation::new(bytes + cache_bytes);
    if let Err(error) = &pages {
        progress(&format!("without hugetlb pages: {error}"));
    }
    if !options.is_quick() {
        let busy = proc_stat::busy_cores(Duration::from_secs(1))?;
        progress(&format!("{}; others use {busy:.2} cores", proc_stat::machine()));
    }

    progress("making the root and the arena");
    let root = work.path().join("root.raw");
    data::create_root(&root, bytes)?;
    let reference =
        Arc::new(Reference::new(bytes, GuestMemoryAtomic::new(GuestMemoryMmap::new()))?);
    let backend = start_daemon(options, work.path(), &root, cache_bytes)?;
    // Sockets are short-named where the daemon's are.
    let socket = backend.runtime_dir().join("reference.sock");
    let listener = Listener::new(&socket, true)
        .context(|| format!("cannot listen on {}", socket.display()))?;
    let server = std::thread::spawn(move || serve(reference, listener));
    let mut clients = [connect(&backend)?, Client::connect_read_only(&socket, 32, LARGE)?];
    for client in &mut clients {
        let mut load = Sequential::new(Kind::Read, bytes, data::ROOT, true);
        client.drive(8, Duration::MAX, &mut load)?;
    }
    let rows = measure(options, &mut clients, bytes, limit)?;
    drop(clients);
    server.join().map_err(|_| Error::from("the reference backend panicked"))??;
    let names = [options.backend_a.name(), "vhost-user-backend"];
    let table = report::table(&rows, names, options.markdown);
    writeln!(std::io::stdout().lock(), "{table}")?;
    Ok(())
}

fn start_daemon(options: &Options, work: &Path, root: &Path, cache_bytes: u64) -> Result<Backend> {
    let cli = cli::Cli::try_parse_from(["reference"])?;
    let setup = Setup { root, vms: 1, export: Export::RawReadOnly, cache_bytes, threads: 1 };
    Backend::start(&cli, work, options.backend_a, &setup)
}

fn connect(backend: &Backend) -> Result<Client> {
    if backend.read_only() {
        Client::connect_read_only(backend.socket(0), 32, LARGE)
    } else {
        Client::connect(backend.socket(0), 32, LARGE)
    }
}

fn measure(
    options: &Options,
    clients: &mut [Client; 2],
    bytes: u64,
    limit: Duration,
) -> Result<Vec<Row>> {
    let cases = [
        ("qd32", "random read 4 KiB, cached, QD32, client polls", 32, Wait::Poll),
        ("qd1", "the same, QD1", 1, Wait::Poll),
        ("sleep", "the same, QD32, client sleeps", 32, Wait::Sleep),
    ];
    let reps = if options.is_quick() { 1 } else { options.reps };
    let mut rows = Vec::new();
    for (id, title, depth, wait) in cases {
        let mut row = Row::new(id, title, "k/s").target(Target::None);
        for rep in 0..reps {
            for (side, client) in clients.iter_mut().enumerate() {
                client.set_wait(wait);
                let mut load = RandomReads::new(bytes, data::ROOT, to_u64(rep));
                let figure = client.drive(depth, limit, &mut load)?.per_second() / 1000.0;
                progress(&format!("{id} {}: {figure:.1} k/s", ["A", "B"][side]));
                if side == 0 { &mut row.a } else { &mut row.b }.push(figure);
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Cargo's target directory, which is on a disk.
fn target_dir() -> Result<std::path::PathBuf> {
    let exe = std::env::current_exe()?;
    exe.ancestors()
        .nth(3)
        .map(Path::to_path_buf)
        .ok_or_else(|| Error::from("this program is not in cargo's target directory"))
}
