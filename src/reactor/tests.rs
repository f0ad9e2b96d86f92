//! Turns of a reactor, one by one, without its thread.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command as Program;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use assert_no_alloc::{AllocDisabler, assert_no_alloc, violation_count};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::write;

use super::run::Runner;
use super::{Command, EndOfAll, Mailbox, QueueSetup};
use crate::cache::{Cache, CacheConfig, Hugepages};
use crate::disk::{CachedRoot, Disk};
use crate::root::Root;
use crate::virtqueue::rig::{self, Rig};

/// Counts what `assert_no_alloc` sees allocated.
#[global_allocator]
static ALLOCATOR: AllocDisabler = AllocDisabler;

const BLOCK: u32 = 64 << 10;
const HEADER: u64 = rig::DATA;
const STATUS: u64 = HEADER + 16;
const BUFFER: u64 = HEADER + 0x1000;

/// A guest whose one request reads 4 KiB from `sector` on.
fn guest_that_reads(sector: u64) -> Rig {
    let guest = Rig::new(16);
    let segments =
        [(HEADER, 16, rig::NEXT), (BUFFER, 4096, rig::NEXT | rig::WRITE), (STATUS, 1, rig::WRITE)];
    for (index, (addr, len, flags)) in (0u16..).zip(segments) {
        guest.desc(rig::DESC, index, (addr, len), flags, index + 1);
    }
    // VIRTIO_BLK_T_IN is 0.
    guest.put(HEADER + 8, &sector.to_le_bytes());
    guest.put(STATUS, &[0xff]);
    guest.offer(0, &[0]);
    guest
}

/// A reactor that serves one VM on a root of `blocks` blocks, each of them full of
/// its number.
fn runner(dir: &Path, blocks: u8, guest: &Rig) -> Runner {
    runner_with(dir, blocks, guest, None)
}

fn runner_with(dir: &Path, blocks: u8, guest: &Rig, kick: Option<OwnedFd>) -> Runner {
    let path = dir.join("root.raw");
    let bytes: Vec<u8> = (0..blocks).flat_map(|block| vec![block; BLOCK as usize]).collect();
    std::fs::write(&path, bytes).unwrap();
    let root = Root::open("base", &path).unwrap();
    let config = CacheConfig {
        size_bytes: 2 << 20,
        block_bytes: BLOCK,
        hugepages: Hugepages::Off,
        readers_max: 1,
    };
    let (cache, _) = Cache::new(&config).unwrap();
    let blocks = cache.add_root(root.sectors()).unwrap();
    let cached = Arc::new(CachedRoot::new(root, blocks, BLOCK));
    let disk = Arc::new(Disk::new("vm".into(), cached, None, true));
    let mailboxes = Arc::new([Mailbox::new().unwrap()]);
    let mut runner = Runner::new(0, &cache, mailboxes, 0).unwrap();
    let id = ask(&mut runner, |answer| Command::Attach(disk, answer));
    let memory = guest.memory.clone();
    ask(&mut runner, |answer| Command::SetMemory(id, memory, answer)).unwrap();
    let setup = Box::new(QueueSetup {
        index: 0,
        ring: guest.config,
        kick,
        call: None,
        enabled: true,
        inflight: None,
    });
    ask(&mut runner, |answer| Command::Start(id, setup, answer)).unwrap();
    runner
}

fn ask<T>(runner: &mut Runner, command: impl FnOnce(SyncSender<T>) -> Command) -> T {
    let (sender, answer): (_, Receiver<T>) = sync_channel(1);
    runner.command(command(sender));
    answer.try_recv().unwrap()
}

/// Waits until the disk has answered: of what the reactor sleeps on, nothing else
/// comes here.
fn wait(runner: &Runner) {
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&runner.epoll, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1, "the disk was not asked");
}

#[test]
fn the_disk_is_asked_in_a_devices_own_turn_for_what_its_read_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(3 * u64::from(BLOCK / 512) + 8);
    let mut runner = runner(dir.path(), 4, &guest);
    assert!(runner.serve_device(0));
    // Nothing else of the reactor's turn: it may take long.
    wait(&runner);
    assert_eq!(guest.get(STATUS), [0xff]);
    assert!(runner.reap());
    assert_eq!((guest.get(STATUS), guest.get(BUFFER)), ([0], [3; 4096]));
}

#[test]
fn a_guest_that_kicks_again_without_showing_a_request_shares_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(8);
    // As leafblk sees memory that the guest's VMM has mapped privately.
    guest.put(rig::AVAIL, &[0; 4]);
    let kick = eventfd(0, EventfdFlags::empty()).unwrap();
    let mut runner = runner_with(dir.path(), 1, &guest, Some(kick.try_clone().unwrap()));
    let in_vain = |runner: &mut Runner| {
        write(&kick, &1u64.to_ne_bytes()).unwrap();
        assert!(runner.look(0));
        assert!(!runner.serve_device(0));
        runner.devices[0].as_mut().unwrap().kicks_in_vain()
    };
    assert!(!in_vain(&mut runner), "the VMM's own");
    assert!(in_vain(&mut runner));
    // Says so.
    assert!(!runner.cool(true));
    assert!(!in_vain(&mut runner), "said before");
    // It was there after all.
    runner.devices[0].as_mut().unwrap().rings_show = false;
    guest.offer(0, &[0]);
    assert!(runner.serve_device(0));
    assert!(!runner.devices[0].as_mut().unwrap().kicks_in_vain());
    wait(&runner);
    assert!(runner.reap());
}

#[test]
fn a_read_from_the_cache_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(u64::from(BLOCK / 512) + 8);
    let mut runner = runner(dir.path(), 2, &guest);
    assert!(runner.serve_device(0));
    wait(&runner);
    assert!(runner.reap());
    let before = violation_count();
    assert_no_alloc(|| drop(black_box(Box::new(0u8))));
    assert!(violation_count() > before, "they are counted");
    for round in 1..4 {
        guest.put(STATUS, &[0xff]);
        guest.put(BUFFER, &[0; 4096]);
        guest.offer(round, &[0]);
        let before = violation_count();
        assert!(assert_no_alloc(|| runner.serve_device(0)));
        let allocated = violation_count() - before;
        assert_eq!((guest.get(STATUS), guest.get(BUFFER)), ([0], [1; 4096]));
        // The first may make room that is kept.
        assert!(round == 1 || allocated == 0, "round {round}: {allocated}");
    }
}

#[test]
fn a_reactor_that_panics_ends_the_process() {
    const NAME: &str = "reactor::tests::a_reactor_that_panics_ends_the_process";
    const IN_CHILD: &str = "LEAFBLK_TEST_PANICS";
    if std::env::var_os(IN_CHILD).is_some() {
        let reactor = std::thread::spawn(|| {
            let _end = EndOfAll;
            panic!("as a reactor might");
        });
        // Not reached, or the parent sees that this ends well.
        let _ = reactor.join();
        return;
    }
    let child = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(IN_CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{child:?}");
}
