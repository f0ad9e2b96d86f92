//! A disk that fails under a running guest: what the guest sees, and that all
//! is well once the cause is gone and the VM is attached again.
//!
//! Reactor, connection, disk and leaf are the real ones, in this process, so
//! that the leaf's storage can be told to fail.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::faulty_storage::{Faults, FaultyFile};
use common::frontend::{
    F_FLUSH, IOERR, OK, T_DISCARD, T_FLUSH, T_IN, T_OUT, T_WRITE_ZEROES, VERSION_1, Vmm,
};
use common::make_root;
use common::scene::{ROOT_SECTORS, root_content};
use common::small_disk::SmallDisk;
use leafblk::cache::{Cache, CacheConfig, Hugepages};
use leafblk::disk::{Activity, CachedRoot, Disk, HOLD};
use leafblk::leaf::{Layout, Leaf, OpenOptions, create_as};
use leafblk::metrics::Operation;
use leafblk::reactor::{Mailbox, Reactor};
use leafblk::root::Root;
use leafblk::vhost_user;

/// A host with one VM.
struct Host {
    root: Arc<CachedRoot>,
    reactor: Reactor,
    listener: UnixListener,
    socket: PathBuf,
    leaf: PathBuf,
    live_map: PathBuf,
    faults: Arc<Faults>,
    _dir: tempfile::TempDir,
}

/// The VM, attached.
struct Attached {
    vmm: Vmm,
    leaf: Arc<Leaf>,
    disk: Arc<Disk>,
    thread: JoinHandle<Result<(), String>>,
}

const BLOCK: u32 = 65536;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let live_map = dir.path().join("vm.map");
        Self::with(dir, live_map, Layout::Packed)
    }

    fn with(dir: tempfile::TempDir, live_map: PathBuf, layout: Layout) -> Self {
        let path = make_root(dir.path(), ROOT_SECTORS);
        let (size_bytes, hugepages) = (16 << 20, Hugepages::Off);
        let config = CacheConfig { size_bytes, block_bytes: BLOCK, hugepages, readers_max: 1 };
        let (cache, _) = Cache::new(&config).unwrap();
        let root = Root::open("root", &path).unwrap();
        let leaf = dir.path().join("vm.leaf");
        // Room for several pages of the map, 16 MiB of disk each.
        create_as(&leaf, layout, 64 << 20, root.identity()).unwrap();
        let blocks = cache.add_root(root.sectors()).unwrap();
        let peers: Arc<[Arc<Mailbox>]> = Arc::new([Mailbox::new().unwrap()]);
        let reactor = Reactor::start(0, cache, peers, 0).unwrap();
        let socket = dir.path().join("vm.sock");
        Self {
            root: Arc::new(CachedRoot::new(root, blocks, BLOCK)),
            reactor,
            listener: UnixListener::bind(&socket).unwrap(),
            socket,
            leaf,
            live_map,
            faults: Arc::default(),
            _dir: dir,
        }
    }

    fn attach(&self) -> Attached {
        let storage = Box::new(FaultyFile::open(&self.leaf, &self.faults));
        let options = OpenOptions { live_map: Some(self.live_map.clone()), read_only: false };
        let identity = self.root.root().identity();
        let leaf = Leaf::open_storage(&self.leaf, storage, identity, &options).unwrap();
        let leaf = Arc::new(leaf);
        let disk = Disk::new("vm".into(), Arc::clone(&self.root), Some(Arc::clone(&leaf)), false);
        let (disk, mailbox) = (Arc::new(disk), Arc::clone(self.reactor.mailbox()));
        let (listener, served) = (self.listener.try_clone().unwrap(), Arc::clone(&disk));
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().map_err(|e| e.to_string())?;
            vhost_user::serve(stream, &served, 1, &mailbox, &Arc::default(), None)
        });
        let features = VERSION_1 | F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
        Attached { vmm: Vmm::running_with(&self.socket, features, 256), leaf, disk, thread }
    }
}

impl Attached {
    fn flush(&mut self) -> u8 {
        self.vmm.request(T_FLUSH, 0, 0).0
    }

    /// What fails, as health says it: now, or where nothing more happens for a while.
    fn failing(&self, after: Duration) -> Vec<Activity> {
        let failing = self.disk.failures().at(Instant::now() + after);
        failing.into_iter().map(|failing| failing.activity).collect()
    }

    /// That only this fails, until it succeeds.
    fn only_fails(&self, activity: Activity) {
        assert_eq!(
            (self.failing(Duration::ZERO), self.failing(HOLD)),
            (vec![activity], vec![activity])
        );
    }

    /// That all has succeeded since it failed.
    fn is_well(&self) {
        assert_eq!(self.failing(HOLD), []);
    }

    /// The VMM goes; whether the leaf could be closed.
    fn detach(self) -> bool {
        drop(self.vmm);
        self.thread.join().unwrap().unwrap();
        self.leaf.close().is_ok()
    }

    /// Writes, flushes and reads, each well.
    fn works(&mut self) {
        self.vmm.write_sectors(64, &[0x77; 4096]);
        assert_eq!(self.flush(), OK);
        assert!(self.vmm.read_sectors(64, 8) == [0x77; 4096]);
        assert!(self.vmm.read_sectors(1000, 8) == root_content(1000, 8));
    }
}

#[test]
fn after_a_failed_sync_a_guest_gets_ioerr_until_it_is_attached_again() {
    let host = Host::new();
    let mut vm = host.attach();
    vm.vmm.write_sectors(0, &[0x11; 4096]);
    assert_eq!(vm.flush(), OK);
    vm.vmm.write_sectors(8, &[0x22; 4096]);
    host.faults.set(&host.faults.sync, libc::EIO);
    assert_eq!(vm.flush(), IOERR);
    host.faults.was_met("sync");
    vm.only_fails(Activity::Flush);
    host.faults.set(&host.faults.sync, 0);
    // A second sync would succeed, without the data: nothing is acknowledged.
    assert_eq!(vm.flush(), IOERR);
    assert_eq!(vm.vmm.request(T_OUT, 16, 4096).0, IOERR);
    let why = &vm.disk.failures().at(Instant::now())[0].why;
    assert!(why.contains("sync failed: Input/output error"), "not that it is poisoned: {why}");
    assert!(vm.leaf.refusal().is_some(), "it says so by itself");
    assert!(vm.vmm.read_sectors(0, 8) == [0x11; 4096], "reads go on");
    assert!(vm.vmm.read_sectors(1000, 8) == root_content(1000, 8));
    assert!(!vm.detach(), "a poisoned leaf is not marked as clean");

    let mut vm = host.attach();
    assert!(vm.vmm.read_sectors(0, 8) == [0x11; 4096], "what was flushed");
    let unflushed = vm.vmm.read_sectors(8, 8);
    assert!(unflushed == root_content(8, 8), "the durable map counts, not the live one");
    vm.works();
    assert!(vm.detach());
}

#[test]
fn after_a_failed_write_back_a_guest_gets_ioerr_although_its_sync_succeeds() {
    let host = Host::new();
    let mut vm = host.attach();
    vm.vmm.write_sectors(0, &[0x11; 4096]);
    assert_eq!(vm.flush(), OK);
    vm.vmm.write_sectors(8, &[0x22; 4096]);
    // One that is also what a kernel without the call answers.
    host.faults.set(&host.faults.write_back, libc::EOPNOTSUPP);
    vm.leaf.start_write_back().unwrap_err();
    host.faults.was_met("write back");
    host.faults.set(&host.faults.write_back, 0);
    assert_eq!(vm.flush(), IOERR);
    assert_eq!(vm.vmm.request(T_OUT, 16, 4096).0, IOERR);
    assert!(!vm.detach());
    let mut vm = host.attach();
    assert!(vm.vmm.read_sectors(0, 16) == [vec![0x11; 4096], root_content(8, 8)].concat());
    vm.works();
    assert!(vm.detach());
}

#[test]
fn a_full_disk_under_the_map_is_over_when_there_is_space() {
    let host = Host::new();
    let mut vm = host.attach();
    vm.vmm.write_sectors(0, &[0x11; 4096]);
    host.faults.set(&host.faults.map, libc::ENOSPC);
    assert_eq!(vm.flush(), IOERR);
    host.faults.was_met("map");
    assert_eq!(vm.flush(), IOERR);
    vm.vmm.write_sectors(8, &[0x22; 4096]);
    vm.only_fails(Activity::Flush);
    host.faults.set(&host.faults.map, 0);
    assert_eq!(vm.flush(), OK, "no second attaching is needed");
    vm.is_well();
    assert!(vm.vmm.read_sectors(0, 16)[4096..] == [0x22; 4096]);
    assert!(vm.detach());
    let mut vm = host.attach();
    assert!(vm.vmm.read_sectors(0, 8) == [0x11; 4096]);
    vm.works();
    assert!(vm.detach());
}

#[test]
fn a_file_system_that_went_read_only_fails_writes_and_not_reads() {
    let host = Host::new();
    let mut vm = host.attach();
    vm.vmm.write_sectors(0, &[0x11; 4096]);
    assert_eq!(vm.flush(), OK);
    vm.vmm.write_sectors(8, &[0x22; 4096]);
    for errno in [&host.faults.data, &host.faults.map, &host.faults.sync] {
        host.faults.set(errno, libc::EROFS);
    }
    assert_eq!(vm.vmm.request(T_OUT, 16, 4096).0, IOERR);
    host.faults.was_met("data");
    // Through the lane too.
    assert_eq!(vm.vmm.request(T_OUT, 17, 512).0, IOERR);
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        let mut segment = [0; 16];
        segment[..8].copy_from_slice(&0u64.to_le_bytes());
        segment[8..12].copy_from_slice(&8u32.to_le_bytes());
        vm.vmm.write(common::frontend::DATA, &segment);
        assert_eq!(vm.vmm.request(kind, 0, 16).0, IOERR);
    }
    vm.only_fails(Activity::Write);
    assert_eq!(vm.flush(), IOERR);
    assert_eq!(vm.failing(HOLD), [Activity::Write, Activity::Flush]);
    assert!(vm.vmm.read_sectors(0, 8) == [0x11; 4096]);
    assert!(!vm.detach());
    for errno in [&host.faults.data, &host.faults.map, &host.faults.sync] {
        host.faults.set(errno, 0);
    }
    let mut vm = host.attach();
    assert!(vm.vmm.read_sectors(0, 8) == [0x11; 4096]);
    vm.works();
    assert!(vm.detach());
}

/// What was logged.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn a_leaf_that_cannot_be_read_reaches_the_guest_and_goes_away_with_its_cause() {
    log::set_logger(&Logger).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let host = Host::new();
    let mut vm = host.attach();
    vm.vmm.write_sectors(0, &[0x11; 4096]);
    assert_eq!(vm.flush(), OK);
    host.faults.set(&host.faults.read, libc::EIO);
    assert_eq!(vm.vmm.request(T_IN, 0, 4096).0, IOERR);
    // Of which the leaf has a part only.
    assert_eq!(vm.vmm.request(T_IN, 4, 8192).0, IOERR);
    host.faults.was_met("read");
    let said = LOGGED.lock().unwrap().clone();
    let about = |line: &&String| line.starts_with("VM vm: its leaf can't be read: Bad file");
    assert_eq!(said.iter().filter(about).count(), 1, "the others are rare: {said:?}");
    assert_eq!(vm.disk.counters().errors(Operation::Read), 2);
    assert!(vm.vmm.read_sectors(1000, 8) == root_content(1000, 8), "the root can be read");
    vm.vmm.write_sectors(8, &[0x22; 4096]);
    vm.only_fails(Activity::LeafRead);
    host.faults.set(&host.faults.read, 0);
    assert!(vm.vmm.read_sectors(0, 16) == [[0x11; 4096], [0x22; 4096]].concat());
    vm.works();
    vm.is_well();
    assert_eq!(vm.disk.counters().errors(Operation::Read), 2);
    assert!(vm.detach());
}

#[test]
fn a_disk_that_does_a_little_at_a_time_does_all() {
    let host = Host::new();
    for most in [700, 4096, 5000] {
        host.faults.most.store(most, Ordering::SeqCst);
        let mut vm = host.attach();
        let bytes: Vec<u8> = (0..65536u32).map(|i| (i * 7 % 251) as u8).collect();
        vm.vmm.write_sectors(3, &bytes);
        assert!(vm.vmm.read_sectors(3, 128) == bytes, "{most} bytes at a time");
        vm.works();
        assert!(vm.detach());
    }
}

#[test]
fn a_write_that_a_full_runtime_directory_cuts_in_two_is_counted_and_flushed() {
    let memory = SmallDisk::mount("64k");
    let map = memory.path().join("vm.map");
    let host = Host::with(tempfile::tempdir().unwrap(), map, Layout::Direct);
    let mut vm = host.attach();
    // A page of the live map ends here.
    const EDGE: u64 = 32768;
    vm.vmm.write_sectors(EDGE - 4, &[0x11; 4 * 512]);
    assert_eq!(vm.flush(), OK);
    assert!(vm.leaf.is_flushed());
    let filler: &Path = &memory.fill();
    vm.vmm.write(common::frontend::DATA, &[0x22; 16 * 512]);
    assert_eq!(vm.vmm.request(T_OUT, EDGE - 8, 16 * 512).0, IOERR);
    memory.make_room(filler);
    assert!(vm.vmm.read_sectors(EDGE - 8, 8) == [0x22; 8 * 512], "the half that has a page");
    assert!(vm.vmm.read_sectors(EDGE, 8) == [0; 8 * 512], "the other half is not held");
    assert_eq!(vm.leaf.present_sectors(), 8);
    assert!(!vm.leaf.is_flushed(), "a guest has seen it, so a flush must cover it");
    host.faults.set(&host.faults.sync, libc::EIO);
    assert_eq!(vm.flush(), IOERR, "the flush was answered without a sync");
}

#[test]
fn a_full_runtime_directory_reaches_that_guest_and_goes_away_with_its_cause() {
    let memory = SmallDisk::mount("64k");
    let map = memory.path().join("vm.map");
    let host = Host::with(tempfile::tempdir().unwrap(), map, Layout::Packed);
    let mut vm = host.attach();
    vm.vmm.write_sectors(0, &[0x11; 4096]);
    let filler: &Path = &memory.fill();
    // A page of the map that the live map has not got yet.
    const FAR: u64 = 40 << 11;
    assert_eq!(vm.vmm.request(T_OUT, FAR, 4096).0, IOERR);
    assert_eq!(vm.flush(), OK, "what was acknowledged can be flushed");
    vm.only_fails(Activity::Write);
    memory.make_room(filler);
    vm.vmm.write_sectors(FAR, &[0x22; 4096]);
    vm.works();
    vm.is_well();
    assert!(vm.vmm.read_sectors(FAR, 8) == [0x22; 4096]);
    assert!(vm.detach());
}
