//! leafblk killed by SIGKILL again and again, at random moments, under guests
//! that write, zero, flush, read, and check each sector that they were told of.
//!
//! Four VMs on two reactors, each with a scripted frontend that keeps its memory,
//! its ring and its inflight region as a VMM does, and comes back. Bounded by
//! time; `LEAFBLK_KILLS=N` asks for so many kills instead, `LEAFBLK_SEED=N`
//! repeats a run's choices (not its timing).
#![expect(clippy::print_stdout, reason = "says which lines of the log were not expected")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::frontend::*;
use common::{make_root, root_sector};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const VMS: usize = 4;
/// Of the disk; the root has fewer, and the guests use all of it.
const SECTORS: u64 = 4096;
const ROOT_SECTORS: u64 = 3000;
const QUEUE_SIZE: u16 = 64;
/// Requests that a guest has in flight at most: three descriptors each.
const SLOTS: usize = 20;
/// Sectors of one request.
const REQUEST_SECTORS: u64 = 40;
/// Room for a request's data.
const SLOT_BYTES: u64 = 0x5000;
const TIME: Duration = Duration::from_secs(20);

/// What a sector holds: the root's content, zeros, or a numbered write's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Content {
    Root,
    Zeros,
    Write(u64),
}

fn bytes_of(content: Content, vm: usize, sector: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    match content {
        Content::Root if sector < ROOT_SECTORS => return root_sector(sector),
        Content::Root | Content::Zeros => {}
        Content::Write(number) => {
            for (i, word) in bytes.chunks_exact_mut(24).enumerate() {
                word[..8].copy_from_slice(&(number ^ ((i as u64) << 48)).to_le_bytes());
                word[8..16].copy_from_slice(&sector.to_le_bytes());
                word[16..].copy_from_slice(&(vm as u64).to_le_bytes());
            }
        }
    }
    bytes
}

#[derive(Clone, Copy, Debug)]
struct Request {
    kind: u32,
    start: u64,
    count: u64,
    /// What the sectors hold once it is done.
    content: Content,
}

/// The daemon's lives, and what all guests did in them.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    news: Condvar,
    acknowledged: AtomicU64,
    resubmitted: AtomicU64,
    /// Lines in the daemons' logs that nothing calls for.
    complaints: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Which daemon runs.
    life: u64,
    /// Guests for whom it has answered a request.
    answered: usize,
    stopping: bool,
}

/// One guest with its VMM.
struct Guest {
    vm: usize,
    vmm: Vmm,
    socket: PathBuf,
    shared: Arc<Shared>,
    rng: SmallRng,
    disk: Vec<Content>,
    busy: Vec<bool>,
    slots: [Option<Request>; SLOTS],
    writes: u64,
    life: u64,
}

impl Guest {
    fn run(mut self) -> Self {
        loop {
            let stopping = self.shared.state.lock().unwrap().stopping;
            if stopping && self.slots.iter().all(Option::is_none) {
                return self;
            }
            if !stopping {
                self.offer_some();
            }
            if !self.vmm.wait_for_used(0) {
                self.come_back();
            }
            while let Some((head, len)) = self.vmm.try_used(0) {
                self.done(head, len);
            }
        }
    }

    fn offer_some(&mut self) {
        let most = self.rng.random_range(1..=SLOTS);
        let mut any = false;
        for slot in 0..most {
            if self.slots[slot].is_none()
                && let Some(request) = self.choose()
            {
                self.describe(slot, request);
                self.vmm.offer(0, 3 * slot as u16);
                any = true;
            }
        }
        if any {
            self.vmm.kick(0);
        }
    }

    /// A request on sectors that no other one is about.
    fn choose(&mut self) -> Option<Request> {
        let kind = match self.rng.random_range(0..100) {
            0..45 => T_OUT,
            45..85 => T_IN,
            85..91 => T_FLUSH,
            91..96 => T_DISCARD,
            _ => T_WRITE_ZEROES,
        };
        let mut count = self.rng.random_range(1..=REQUEST_SECTORS);
        let mut start = self.rng.random_range(0..SECTORS - count);
        if self.rng.random_bool(0.5) {
            (start, count) = (start / 8 * 8, count.next_multiple_of(8).min(REQUEST_SECTORS));
        }
        if kind == T_FLUSH {
            (start, count) = (0, 0);
        }
        let places = start as usize..(start + count) as usize;
        if self.busy[places.clone()].contains(&true) {
            return None;
        }
        self.busy[places].fill(true);
        let content = match kind {
            T_OUT => {
                self.writes += 1;
                Content::Write(self.writes)
            }
            _ => Content::Zeros,
        };
        Some(Request { kind, start, count, content })
    }

    fn describe(&mut self, slot: usize, request: Request) {
        let at = HEADERS + 256 * slot as u64;
        let data = DATA + SLOT_BYTES * slot as u64;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&request.kind.to_le_bytes());
        let len = request.count as u32 * 512;
        let sector = if matches!(request.kind, T_IN | T_OUT) { request.start } else { 0 };
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.vmm.write(at, &header);
        self.vmm.write(at + 64, &[NO_STATUS]);
        let status = (at + 64, 1, true);
        let table = self.vmm.rings[0].desc;
        let first = 3 * slot as u16;
        let buffers = match request.kind {
            T_IN => {
                self.vmm.write(data, &vec![0xa5; len as usize]);
                vec![(at, 16, false), (data, len, true), status]
            }
            T_OUT => {
                let sectors = request.start..request.start + request.count;
                let bytes: Vec<u8> =
                    sectors.flat_map(|s| bytes_of(request.content, self.vm, s)).collect();
                self.vmm.write(data, &bytes);
                vec![(at, 16, false), (data, len, false), status]
            }
            T_FLUSH => vec![(at, 16, false), status],
            _ => {
                let mut range = [0; 16];
                range[..8].copy_from_slice(&request.start.to_le_bytes());
                range[8..12].copy_from_slice(&(request.count as u32).to_le_bytes());
                self.vmm.write(data, &range);
                vec![(at, 16, false), (data, 16, false), status]
            }
        };
        self.vmm.describe_chain(table, first, &buffers);
        self.slots[slot] = Some(request);
    }

    /// A chain came back: it must be one that is in flight, and good.
    fn done(&mut self, head: u32, len: u32) {
        let slot = head as usize / 3;
        let vm = self.vm;
        assert!(head.is_multiple_of(3) && slot < SLOTS, "VM {vm}: head {head} was never offered");
        let request = self.slots[slot].take();
        let request = request.unwrap_or_else(|| panic!("VM {vm}: head {head} came back twice"));
        let status = self.vmm.read(HEADERS + 256 * slot as u64 + 64, 1)[0];
        assert_eq!(status, OK, "VM {vm}: {request:?}");
        let places = request.start as usize..(request.start + request.count) as usize;
        self.busy[places.clone()].fill(false);
        match request.kind {
            T_IN => {
                assert_eq!(len, request.count as u32 * 512 + 1);
                let data = DATA + SLOT_BYTES * slot as u64;
                let bytes = self.vmm.read(data, request.count as usize * 512);
                self.check(request.start, &bytes);
            }
            T_FLUSH => {}
            _ => self.disk[places].fill(request.content),
        }
        self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        let mut state = self.shared.state.lock().unwrap();
        if self.life != state.life {
            self.life = state.life;
            state.answered += 1;
            self.shared.news.notify_all();
        }
    }

    fn check(&self, start: u64, bytes: &[u8]) {
        for (sector, found) in (start..).zip(bytes.chunks(512)) {
            let content = self.disk[sector as usize];
            assert!(
                found == bytes_of(content, self.vm, sector),
                "VM {}: sector {sector} does not hold {content:?} but {:02x?}…",
                self.vm,
                &found[..32]
            );
        }
    }

    /// The daemon died: on to the next one, which may die as well.
    fn come_back(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.vmm.reconnect(&self.socket) {
            assert!(Instant::now() < deadline, "VM {}: no way back: {error}", self.vm);
            // Nobody listens yet: a new life is news, and so is a little time.
            let state = self.shared.state.lock().unwrap();
            drop(self.shared.news.wait_timeout(state, Duration::from_millis(1)).unwrap());
        }
    }

    /// Reads all of the disk.
    fn check_all(&mut self) {
        for start in (0..SECTORS).step_by(128) {
            let bytes = self.vmm.read_sectors(start, 128);
            self.check(start, &bytes);
        }
    }
}

/// Daemons one after the other, on the same files.
struct Lives {
    dir: PathBuf,
    root: PathBuf,
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
}

impl Lives {
    fn start(&mut self) -> Child {
        let mut child = Command::new(env!("CARGO_BIN_EXE_leafblk"))
            .args(["serve", "--cache-size", "16MiB", "--hugepages", "off", "--reactors", "2"])
            .arg("--state-dir")
            .arg(self.dir.join("state"))
            .arg("--runtime-dir")
            .arg(self.dir.join("run"))
            .arg("--root")
            .arg(&self.root)
            .args((0..VMS).flat_map(|vm| ["--vm".into(), format!("vm{vm},size={}", SECTORS * 512)]))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = child.stderr.take().unwrap();
        let shared = Arc::clone(&self.shared);
        self.readers.push(std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("resubmitting ") {
                    let count: u64 = rest.split(' ').next().unwrap().parse().unwrap();
                    shared.resubmitted.fetch_add(count, Ordering::Relaxed);
                }
                let expected = [
                    "resubmitting",
                    "took over",
                    "onnected",
                    "come back",
                    "stopping",
                    "tmpfs",
                    " leaf",
                ];
                if !expected.iter().any(|part| line.contains(part)) {
                    println!("{line}");
                    shared.complaints.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
        let mut state = self.shared.state.lock().unwrap();
        (state.life, state.answered) = (state.life + 1, 0);
        child
    }

    fn socket(&self, vm: usize) -> PathBuf {
        self.dir.join(format!("run/vm{vm}.sock"))
    }

    /// Waits until the daemon has answered every guest.
    fn wait_until_it_serves(&self, child: &mut Child) {
        let state = self.shared.state.lock().unwrap();
        let all = |state: &mut State| state.answered < VMS;
        let (_state, timeout) = self.shared.news.wait_timeout_while(state, PATIENCE, all).unwrap();
        let ended = child.try_wait().unwrap();
        assert!(!timeout.timed_out(), "the daemon does not serve all guests ({ended:?})");
    }
}

fn wait_for_socket(socket: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "{} takes no connections", socket.display());
        std::thread::yield_now();
    }
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn no_acknowledged_sector_is_lost_however_often_the_daemon_is_killed() {
    let seed = number_from("LEAFBLK_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_micros() as u64
    });
    let wanted = number_from("LEAFBLK_KILLS");
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let shared = Arc::new(Shared::default());
    let root = make_root(dir.path(), ROOT_SECTORS);
    let mut lives =
        Lives { dir: dir.path().into(), root, shared: Arc::clone(&shared), readers: Vec::new() };

    let mut child = lives.start();
    let guests: Vec<_> = (0..VMS)
        .map(|vm| {
            let socket = lives.socket(vm);
            wait_for_socket(&socket);
            let guest = Guest {
                vm,
                vmm: Vmm::tracked(&socket, 1, QUEUE_SIZE),
                socket,
                shared: Arc::clone(&shared),
                rng: SmallRng::seed_from_u64(seed ^ (vm as u64 + 1)),
                disk: vec![Content::Root; SECTORS as usize],
                busy: vec![false; SECTORS as usize],
                slots: [None; SLOTS],
                writes: 0,
                life: 0,
            };
            std::thread::spawn(move || guest.run())
        })
        .collect();

    let begun = Instant::now();
    let mut kills = 0;
    let enough = |kills: u64| match wanted {
        Some(wanted) => kills >= wanted,
        None => begun.elapsed() >= TIME,
    };
    while !enough(kills) && guests.iter().all(|guest| !guest.is_finished()) {
        // While it serves, mostly; sometimes while it starts.
        if rng.random_bool(0.8) {
            lives.wait_until_it_serves(&mut child);
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(0..15_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        child = lives.start();
    }
    shared.state.lock().unwrap().stopping = true;
    let mut guests: Vec<Guest> = guests.into_iter().map(|guest| guest.join().unwrap()).collect();
    guests.iter_mut().for_each(Guest::check_all);

    // The same after an orderly stop, from the durable maps alone.
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let mut child = lives.start();
    for guest in &mut guests {
        guest.come_back();
        guest.check_all();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    lives.readers.into_iter().for_each(|reader| reader.join().unwrap());

    let acknowledged = shared.acknowledged.load(Ordering::Relaxed);
    let resubmitted = shared.resubmitted.load(Ordering::Relaxed);
    println!(
        "{kills} kills in {:.0} s, {VMS} guests: {acknowledged} requests acknowledged, \
         {resubmitted} of them resubmitted, none lost; seed {seed}",
        begun.elapsed().as_secs_f64()
    );
    assert!(kills >= 20, "only {kills} kills in {TIME:?}");
    assert_eq!(shared.complaints.load(Ordering::Relaxed), 0, "the log has something to say");
    assert!(resubmitted > 0, "no kill hit a request in flight");
}
