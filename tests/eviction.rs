//! Reads while the cache evicts all the time: the smallest cache, a root four times as
//! large, several reactors, and every byte checked.
//!
//! Each guest has 48 requests in flight, of 512 bytes to 1 MiB at any sector and any
//! address, into buffers that are poisoned before: one that was not written shows. Some
//! of them are writes, which later reads must find. Meanwhile one VM is attached and
//! detached again and again, one's frontend hangs up in the middle of its reads, and one
//! is a process that is killed. Bounded by time; `LEAFBLK_READ_SECONDS=N` has it go on for
//! so long, with more shapes of cache, and `LEAFBLK_SEED=N` repeats a run's choices (not
//! its timing). tests/soak.sh --reads does.
#![expect(clippy::print_stdout, reason = "says the seed, and what was read")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

#[path = "eviction/guest.rs"]
mod guest;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::Daemon;
use guest::{DISK_BYTES, Does, Guest};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

/// No whole number of blocks.
const ROOT_SECTORS: u64 = (64 << 20) / 512 + 24;
/// So long all of it takes, but for starting and ending.
const TIME: Duration = Duration::from_secs(6);
const TEST: &str =
    "every_byte_is_right_while_blocks_are_evicted_and_vms_come_and_go_and_are_killed";

/// What is tried at a time.
struct Shape {
    cache_block: &'static str,
    reactors: u16,
    vms: usize,
    time: Duration,
}

/// Three shapes; or, for longer, each block size with each number of reactors.
fn shapes() -> Vec<Shape> {
    let asked = number_from("LEAFBLK_READ_SECONDS").map(Duration::from_secs);
    let shapes = match asked {
        None => vec![("1MiB", 4, 6), ("64KiB", 2, 16), ("4KiB", 3, 8)],
        Some(_) => {
            let blocks = [("1MiB", 6), ("64KiB", 16), ("4KiB", 8)].into_iter();
            blocks.flat_map(|(block, vms)| (2..=4).map(move |n| (block, n, vms))).collect()
        }
    };
    let time = asked.unwrap_or(TIME) / shapes.len() as u32;
    let shape = |(cache_block, reactors, vms)| Shape { cache_block, reactors, vms, time };
    shapes.into_iter().map(shape).collect()
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// What a disk without writes holds.
fn content_of(root: &Path) -> Arc<Vec<u8>> {
    let mut bytes = std::fs::read(root).unwrap();
    bytes.resize(DISK_BYTES as usize, 0);
    Arc::new(bytes)
}

/// Where a killed VM's process finds what it needs.
const VICTIM: &str = "LEAFBLK_EVICTION_VICTIM";

/// A VM as a process of its own, to be killed.
struct Victim(Child);

impl Victim {
    fn start(socket: &Path, root: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(VICTIM, format!("{}\n{}", socket.display(), root.display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("reads")), "it never read anything");
        Self(child)
    }

    /// With requests in flight. Panics if it has ended by itself.
    fn kill(mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "it read something wrong");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What a [`Victim`]'s process does: it reads until it is killed.
fn be_a_victim(given: &str) -> ! {
    let (socket, root) = given.split_once('\n').unwrap();
    let below = content_of(Path::new(root));
    let mut guest = Guest::connect(Path::new(socket), Does::Read, &below, 1);
    guest.run(|done| done > 0);
    println!("reads");
    guest.run(|_| false);
    unreachable!("it has read enough");
}

/// What the threads of one shape share.
struct Scene {
    daemon: Daemon,
    root: PathBuf,
    below: Arc<Vec<u8>>,
    seed: u64,
    deadline: Instant,
    over: AtomicBool,
    requests: AtomicU64,
}

impl Scene {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || Instant::now() >= self.deadline
    }

    /// A failure of one thread ends the others.
    fn run(&self, work: impl FnOnce(&Self) -> u64) {
        struct EndsAll<'a>(&'a AtomicBool);
        impl Drop for EndsAll<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let ends_all = EndsAll(&self.over);
        let requests = work(self);
        self.requests.fetch_add(requests, Ordering::Relaxed);
        std::mem::forget(ends_all);
    }

    fn guest(&self, vm: &str, does: Does, number: u64) -> Guest {
        Guest::connect(&self.daemon.socket(vm), does, &self.below, self.seed ^ number << 32)
    }

    /// Reads and writes all the time.
    fn stays(&self, number: usize) -> u64 {
        let mut guest = self.guest(&format!("vm{number}"), Does::ReadAndWrite, number as u64);
        let done = guest.run(|_| self.is_over());
        guest.finish();
        done
    }

    /// Hangs up with requests in flight, and comes back.
    fn hangs_up(&self) -> u64 {
        let mut done = 0;
        for round in 1.. {
            if self.is_over() {
                break;
            }
            let mut guest = self.guest("restless", Does::Read, 100 * round);
            done += guest.run(|done| done >= 60 || self.is_over());
            guest.submit_all();
        }
        done
    }

    /// Is attached, reads, and is detached under its frontend.
    fn is_detached(&self) -> u64 {
        let (control, mut done) = (self.daemon.control(), 0);
        for round in 1.. {
            if self.is_over() {
                break;
            }
            let vm = json!({"name": "brief", "ephemeral": true, "size": DISK_BYTES});
            control.post("/v1/vms", &vm).expect(201);
            let mut guest = self.guest("brief", Does::Read, 101 * round);
            done += guest.run(|done| done >= 60 || self.is_over());
            guest.submit_all();
            control.delete("/v1/vms/brief?force=true").expect(204);
        }
        done
    }

    /// Is killed with requests in flight; its VM is served as before.
    fn is_killed(&self) -> u64 {
        let mut done = 0;
        for round in 1.. {
            if self.is_over() {
                break;
            }
            Victim::start(&self.daemon.socket("victim"), &self.root).kill();
            let mut guest = self.guest("victim", Does::Read, 102 * round);
            done += guest.run(|done| done >= 60);
            guest.finish();
        }
        done
    }
}

fn evictions(daemon: &Daemon) -> u64 {
    let text = String::from_utf8(daemon.control().get("/metrics").body).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix("leafblk_cache_evictions_total "));
    value.unwrap().parse().unwrap()
}

/// Random bytes, and zeros: a few sectors here and there, and whole blocks.
fn make_root(path: &Path, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut bytes = vec![0; ROOT_SECTORS as usize * 512];
    rng.fill(&mut bytes[..]);
    bytes[11 << 20..][..3 << 20].fill(0);
    for _ in 0..1000 {
        let at = 512 * rng.random_range(0..ROOT_SECTORS as usize - 8);
        bytes[at..][..4096].fill(0);
    }
    std::fs::write(path, bytes).unwrap();
}

fn every_byte_is_right(shape: &Shape, root: &Path, seed: u64) {
    let Shape { cache_block, reactors, vms, time } = *shape;
    let dir = tempfile::tempdir().unwrap();
    let root_arg = format!("base={}", root.display());
    let reactors_arg = reactors.to_string();
    let mut args = vec!["--root", &root_arg, "--reactors", &reactors_arg];
    args.extend(["--cache-size", "16MiB", "--cache-block", cache_block]);
    // As many stay as are left of all.
    let staying = vms - 3;
    let names = (0..staying).map(|vm| format!("vm{vm}"));
    let names = names.chain(["restless", "victim"].map(Into::into));
    let vm_args: Vec<String> = names.map(|name| format!("{name},size={DISK_BYTES}")).collect();
    args.extend(vm_args.iter().flat_map(|vm| ["--vm", vm]));
    let scene = Scene {
        daemon: Daemon::start(dir.path(), &args),
        below: content_of(root),
        root: root.to_owned(),
        seed,
        deadline: Instant::now() + time,
        over: AtomicBool::new(false),
        requests: AtomicU64::new(0),
    };
    std::thread::scope(|threads| {
        let scene = &scene;
        for number in 0..staying {
            threads.spawn(move || scene.run(|scene| scene.stays(number)));
        }
        for work in [Scene::hangs_up, Scene::is_detached, Scene::is_killed] {
            threads.spawn(move || scene.run(work));
        }
    });
    let (requests, evicted) = (scene.requests.into_inner(), evictions(&scene.daemon));
    println!(
        "{cache_block} blocks, {reactors} reactors, {vms} VMs: {requests} requests, {evicted} blocks evicted"
    );
    assert!(requests > 200 && evicted > 100, "nothing of it was tried");
    scene.daemon.stop();
}

#[test]
fn every_byte_is_right_while_blocks_are_evicted_and_vms_come_and_go_and_are_killed() {
    if let Ok(given) = std::env::var(VICTIM) {
        be_a_victim(&given);
    }
    let seed = number_from("LEAFBLK_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_micros() as u64
    });
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root.raw");
    make_root(&root, seed);
    for shape in shapes() {
        every_byte_is_right(&shape, &root, seed);
    }
}
