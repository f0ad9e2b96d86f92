//! Turns of a reactor, one by one, without its thread.

use std::fs::File;
use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command as Program;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use assert_no_alloc::{AllocDisabler, assert_no_alloc, violation_count};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::write;

use super::block_wait::TRIES_MAX;
use super::run::Runner;
use super::{Command, EndOfAll, Mailbox, QueueSetup};
use crate::cache::{
    BlockKind, Cache, CacheConfig, FillOutcome, FillStart, FillTicket, Hugepages, RootCache, Waiter,
};
use crate::disk::{CachedRoot, Disk};
use crate::guest_memory::{Account, GuestMemory};
use crate::root::Root;
use crate::virtqueue::rig::{self, Rig};
use crate::virtqueue::{InflightRegion, QueueError, RegionLayout};

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
    runner_for(dir, blocks, guest, kick, None)
}

fn setup(
    guest: &Rig,
    kick: Option<OwnedFd>,
    inflight: Option<Arc<InflightRegion>>,
    enabled: bool,
) -> QueueSetup {
    QueueSetup { index: 0, ring: guest.config, kick, call: None, enabled, inflight }
}

fn runner_for(
    dir: &Path,
    blocks: u8,
    guest: &Rig,
    kick: Option<OwnedFd>,
    inflight: Option<Arc<InflightRegion>>,
) -> Runner {
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
    ask(&mut runner, |answer| Command::SetMemory(id, memory, answer));
    let setup = Box::new(setup(guest, kick, inflight, true));
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

/// Begins a fill, as another reactor would.
fn begin_fill(runner: &mut Runner, root: &RootCache, block: u64) -> FillTicket {
    for _ in 0..3 {
        // A slot that is evicted is free after this.
        runner.reader.quiesce();
        match root.begin_fill(block, Waiter { reactor: 1, token: 0 }) {
            FillStart::Fill(ticket) => return ticket,
            FillStart::NoSlot => {}
            other => panic!("block {block}: {other:?}"),
        }
    }
    panic!("block {block}: no slot");
}

/// Fills the block with its number, as another reactor would; who waited.
fn finish_fill(mut ticket: FillTicket, block: u64) -> Vec<Waiter> {
    let mut waiters = Vec::new();
    ticket.buffer_mut().fill(u8::try_from(block).unwrap());
    ticket.finish(FillOutcome::Data, &mut waiters);
    waiters
}

/// Evicts the block, as other reactors would.
fn evict(runner: &mut Runner, root: &RootCache, block: u64) {
    let others = (10..60).cycle().take(10_000).filter(|other| *other != block);
    for other in others {
        if root.kind_of(block) == BlockKind::Absent {
            return;
        }
        if root.kind_of(other) == BlockKind::Absent {
            finish_fill(begin_fill(runner, root, other), other);
        }
    }
    panic!("block {block} stays");
}

#[test]
fn a_read_whose_block_is_evicted_again_and_again_is_answered_with_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(3 * u64::from(BLOCK / 512) + 8);
    let mut runner = runner(dir.path(), 64, &guest);
    let cached = Arc::clone(runner.devices[0].as_ref().unwrap().disk.root());
    let root = cached.cache();
    let mut others = begin_fill(&mut runner, root, 3);
    assert!(runner.serve_device(0));
    for _ in 0..TRIES_MAX {
        assert_eq!(guest.get(STATUS), [0xff]);
        // What it waited for is there, and gone again when it looks; somebody else asks
        // for it first.
        let waiters = finish_fill(others, 3);
        let [waiter] = waiters[..] else { panic!("{waiters:?}") };
        evict(&mut runner, root, 3);
        others = begin_fill(&mut runner, root, 3);
        runner.filled(waiter.token, true);
        assert!(runner.run_deferred());
    }
    runner.submit();
    wait(&runner);
    assert!(runner.reap());
    assert_eq!((guest.get(STATUS), guest.get(BUFFER)), ([0], [3; 4096]));
    assert!(runner.aside.is_some(), "for the next one");
    assert!(finish_fill(others, 3).is_empty(), "it has not waited");
}

#[test]
fn a_read_that_finds_no_slot_is_answered_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(40 * u64::from(BLOCK / 512) + 8);
    let mut runner = runner(dir.path(), 64, &guest);
    let cached = Arc::clone(runner.devices[0].as_ref().unwrap().disk.root());
    // All of the cache's 32.
    let others = 0..32;
    let others: Vec<_> = others.map(|b| begin_fill(&mut runner, cached.cache(), b)).collect();
    assert!(runner.serve_device(0));
    for _ in 0..TRIES_MAX {
        assert_eq!(guest.get(STATUS), [0xff]);
        runner.run_deferred();
    }
    runner.submit();
    wait(&runner);
    assert!(runner.reap());
    assert_eq!((guest.get(STATUS), guest.get(BUFFER)), ([0], [40; 4096]));
    for (block, ticket) in (0..).zip(others) {
        finish_fill(ticket, block);
    }
}

#[test]
fn a_root_that_ends_early_fails_a_read_with_ioerr_whichever_way_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(40 * u64::from(BLOCK / 512) + 8);
    let mut runner = runner(dir.path(), 64, &guest);
    let cached = Arc::clone(runner.devices[0].as_ref().unwrap().disk.root());
    std::fs::File::options().write(true).open(cached.root().path()).unwrap().set_len(0).unwrap();
    for (round, aside) in (0u16..).zip([false, true]) {
        let slots = if aside { 0..32 } else { 0..0 };
        let others: Vec<_> =
            slots.map(|block| begin_fill(&mut runner, cached.cache(), block)).collect();
        guest.put(STATUS, &[0xff]);
        guest.offer(round, &[0]);
        assert!(runner.serve_device(0));
        if aside {
            (0..TRIES_MAX).for_each(|_| _ = runner.run_deferred());
        }
        runner.submit();
        wait(&runner);
        assert!(runner.reap());
        assert_eq!((guest.get(STATUS), runner.aside.is_some()), ([1], true));
        for ticket in others {
            ticket.finish(FillOutcome::Failed, &mut Vec::new());
        }
    }
}

#[test]
fn a_guest_that_kicks_again_without_showing_a_request_shares_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(8);
    // As leafblk sees memory that the guest's VMM has mapped privately.
    guest.put(rig::AVAIL, &[0; 4]);
    // QEMU makes it so.
    let kick = eventfd(1, EventfdFlags::empty()).unwrap();
    let mut runner = runner_with(dir.path(), 1, &guest, Some(kick.try_clone().unwrap()));
    assert!(!runner.look(0), "nobody has kicked yet");
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

/// Sends a command that may be answered later.
fn send<T>(runner: &mut Runner, command: impl FnOnce(SyncSender<T>) -> Command) -> Receiver<T> {
    let (sender, answer) = sync_channel(1);
    runner.command(command(sender));
    answer
}

#[test]
fn memory_is_added_while_a_request_is_in_flight_and_taken_away_when_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(3 * u64::from(BLOCK / 512) + 8);
    let mut runner = runner(dir.path(), 4, &guest);
    let id = runner.devices[0].as_ref().unwrap().id;
    assert!(runner.serve_device(0));
    let more = Arc::new(guest.memory.with_region(rig::spare(), &Account::new()).unwrap());
    ask(&mut runner, |answer| Command::SetMemory(id, more, answer));
    let fewer = guest.memory.clone();
    let answer = send(&mut runner, |answer| Command::SetMemory(id, fewer, answer));
    assert!(answer.try_recv().is_err(), "the read may use what goes");
    wait(&runner);
    assert!(runner.reap());
    answer.try_recv().unwrap();
    assert_eq!((guest.get(STATUS), guest.get(BUFFER)), ([0], [3; 4096]));
}

/// The guest's memory without its second region, in which the request's data or its
/// status is from now on.
fn without_the_second(guest: &Rig, descriptor: u16, len: u32) -> Arc<GuestMemory> {
    let flags = if descriptor == 1 { rig::NEXT | rig::WRITE } else { rig::WRITE };
    guest.desc(rig::DESC, descriptor, (rig::SEAM, len), flags, descriptor + 1);
    let memory =
        guest.memory.without_region(rig::SEAM, rig::USER[1], rig::END - rig::SEAM).unwrap();
    Arc::new(memory)
}

#[test]
fn a_request_waits_a_moment_for_memory_that_was_taken_away_and_fails_then() {
    for comes_back in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest_that_reads(8);
        let fewer = without_the_second(&guest, 1, 4096);
        let kick = eventfd(0, EventfdFlags::empty()).unwrap();
        let mut runner = runner_with(dir.path(), 1, &guest, Some(kick));
        let id = runner.devices[0].as_ref().unwrap().id;
        ask(&mut runner, |answer| Command::SetMemory(id, fewer, answer));
        // It is looked at again and again, also without a kick.
        for _ in 0..3 {
            runner.serve_hot();
            assert!(!runner.cool(true));
            assert_eq!(runner.hot, [0]);
            assert_eq!(guest.get(STATUS), [0xff]);
        }
        if comes_back {
            let memory = guest.memory.clone();
            ask(&mut runner, |answer| Command::SetMemory(id, memory, answer));
        } else {
            let device = runner.devices[0].as_mut().unwrap();
            device.memory_settles_at = Some(Instant::now());
        }
        assert!(runner.serve_hot());
        if comes_back {
            wait(&runner);
            assert!(runner.reap());
            assert_eq!(guest.get(rig::SEAM), [0; 4096]);
        }
        assert_eq!(guest.get(STATUS), [u8::from(!comes_back)], "IOERR is 1");
        assert!(!runner.devices[0].as_ref().unwrap().broken);
    }
}

#[test]
fn a_queue_whose_answer_has_no_place_waits_until_there_is_more_memory() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(8);
    let fewer = without_the_second(&guest, 2, 1);
    guest.put(rig::SEAM, &[0xff]);
    let kick = eventfd(0, EventfdFlags::empty()).unwrap();
    let mut runner = runner_with(dir.path(), 1, &guest, Some(kick));
    let id = runner.devices[0].as_ref().unwrap().id;
    ask(&mut runner, |answer| Command::SetMemory(id, fewer, answer));
    runner.devices[0].as_mut().unwrap().memory_settles_at = Some(Instant::now());
    runner.serve_hot();
    assert!(!runner.cool(true));
    assert!(runner.hot.is_empty(), "nobody looks until it is told");
    let memory = guest.memory.clone();
    ask(&mut runner, |answer| Command::SetMemory(id, memory, answer));
    assert!(runner.serve_hot());
    wait(&runner);
    assert!(runner.reap());
    assert_eq!((guest.get(rig::SEAM), guest.get(BUFFER)), ([0], [0; 4096]));
}

#[test]
fn a_queue_waits_while_its_ring_is_away_and_then_needs_no_kick() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(8);
    let mut runner = runner(dir.path(), 1, &guest);
    assert!(runner.serve_hot());
    wait(&runner);
    assert!(runner.reap());
    // The driver is shown that before the ring goes.
    let id = runner.devices[0].as_ref().unwrap().id;
    ask(&mut runner, |answer| Command::SetMemory(id, Arc::default(), answer));
    assert_eq!(guest.get16(rig::USED + 2), 1);
    guest.put(STATUS, &[0xff]);
    guest.offer(1, &[0]);
    for _ in 0..2 {
        assert!(!runner.serve_hot());
        assert!(!runner.cool(true));
        runner.heat(0);
    }
    assert_eq!(guest.get(STATUS), [0xff]);
    let memory = guest.memory.clone();
    ask(&mut runner, |answer| Command::SetMemory(id, memory, answer));
    assert!(runner.serve_hot());
    assert_eq!((guest.get(STATUS), guest.get(BUFFER)), ([0], [0; 4096]));
    assert_eq!(guest.get16(rig::USED + 2), 2);
    ask(&mut runner, |answer| Command::SetMemory(id, Arc::default(), answer));
    assert_eq!(ask(&mut runner, |answer| Command::Stop(id, 0, answer)), Some(2));
}

/// A region in which an earlier backend noted that chain 0 is in flight.
fn region_with_chain_0() -> Arc<InflightRegion> {
    let file = File::from(memfd_create("inflight", MemfdFlags::CLOEXEC).unwrap());
    let layout = RegionLayout::new(1, 16);
    file.set_len(layout.len_bytes()).unwrap();
    // Version 1, 16 states, used index 0; state 0.
    file.write_all_at(&1u16.to_ne_bytes(), 8).unwrap();
    file.write_all_at(&16u16.to_ne_bytes(), 10).unwrap();
    file.write_all_at(&[1], 16).unwrap();
    Arc::new(InflightRegion::map(file, 0, layout, &Account::new()).unwrap())
}

#[test]
fn a_queue_stops_when_what_an_earlier_backend_left_is_done_and_takes_nothing_new() {
    let dir = tempfile::tempdir().unwrap();
    // It is offered a second time, which is new.
    let guest = guest_that_reads(8);
    guest.offer(0, &[0, 0]);
    let mut runner = runner_for(dir.path(), 1, &guest, None, Some(region_with_chain_0()));
    let id = runner.devices[0].as_ref().unwrap().id;
    // QEMU disables a queue before it stops it.
    ask(&mut runner, |answer| Command::Enable(id, 0, false, answer));
    assert!(!runner.serve_hot());
    let answer = send(&mut runner, |answer| Command::Stop(id, 0, answer));
    assert!(answer.try_recv().is_err());
    assert!(runner.serve_hot());
    assert!(answer.try_recv().is_err(), "it waits for the disk");
    wait(&runner);
    assert!(runner.reap());
    assert_eq!(answer.try_recv(), Ok(Some(1)));
    assert_eq!((guest.get(STATUS), guest.get16(rig::USED + 2)), ([0], 1));
}

#[test]
fn what_a_stopped_queue_can_not_do_stays_noted_for_the_next() {
    for enabled in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest_that_reads(8);
        let region = region_with_chain_0();
        let mut runner = runner_for(dir.path(), 1, &guest, None, Some(region.clone()));
        let id = runner.devices[0].as_ref().unwrap().id;
        let setup = |enabled| Box::new(setup(&guest, None, Some(region.clone()), enabled));
        // Its ring is away; or it was never enabled.
        if enabled {
            ask(&mut runner, |answer| Command::SetMemory(id, Arc::default(), answer));
            assert_eq!(ask(&mut runner, |answer| Command::Stop(id, 0, answer)), Some(1));
            let memory = guest.memory.clone();
            ask(&mut runner, |answer| Command::SetMemory(id, memory, answer));
        } else {
            runner.devices[0].as_mut().unwrap().queues.clear();
            ask(&mut runner, |answer| Command::Start(id, setup(false), answer)).unwrap();
            assert_eq!(ask(&mut runner, |answer| Command::Stop(id, 0, answer)), Some(1));
        }
        assert_eq!(guest.get16(rig::USED + 2), 0);
        ask(&mut runner, |answer| Command::Start(id, setup(true), answer)).unwrap();
        assert!(runner.serve_hot());
        wait(&runner);
        assert!(runner.reap());
        assert_eq!(guest.get(STATUS), [0]);
    }
}

#[test]
fn a_device_that_has_stopped_or_waits_is_not_said_to_share_no_memory() {
    // At the first request: one whose status is outside memory, as SeaBIOS' on QEMU's
    // microvm, and one that loops.
    for (addr, flags, next) in [(rig::END, rig::WRITE, 0), (STATUS, rig::NEXT, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest_that_reads(8);
        guest.desc(rig::DESC, 2, (addr, 1), flags, next);
        let kick = eventfd(0, EventfdFlags::empty()).unwrap();
        let mut runner = runner_with(dir.path(), 1, &guest, Some(kick.try_clone().unwrap()));
        // The memory table is as it will be.
        runner.devices[0].as_mut().unwrap().memory_settles_at = Some(Instant::now());
        for _ in 0..4 {
            write(&kick, &1u64.to_ne_bytes()).unwrap();
            assert!(runner.look(0));
            runner.serve_device(0);
            let device = runner.devices[0].as_mut().unwrap();
            assert_eq!(device.broken, addr == STATUS);
            assert!(!device.kicks_in_vain());
        }
    }
}

#[test]
fn a_queue_whose_kick_the_epoll_set_refuses_is_polled() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(8);
    guest.put(BUFFER, &[0xff; 4096]);
    guest.put(rig::AVAIL, &[0; 4]);
    // EPERM, as good as the ENOSPC of a user without watches.
    let refused = tempfile::tempfile_in(dir.path()).unwrap();
    let mut runner = runner_with(dir.path(), 1, &guest, Some(refused.into()));
    // It has cooled down if it ever does, and no kick comes.
    assert!(!runner.cool(true));
    assert!(!runner.serve_hot());
    guest.offer(0, &[0]);
    assert!(runner.serve_hot());
    wait(&runner);
    assert!(runner.reap());
    assert_eq!((guest.get(STATUS), guest.get(BUFFER)), ([0], [0; 4096]));
}

#[test]
fn a_stopped_queues_kick_wakes_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(8);
    guest.put(rig::AVAIL, &[0; 4]);
    let kick = eventfd(0, EventfdFlags::empty()).unwrap();
    let mut runner = runner_with(dir.path(), 1, &guest, Some(kick.try_clone().unwrap()));
    let id = runner.devices[0].as_ref().unwrap().id;
    assert_eq!(ask(&mut runner, |answer| Command::Stop(id, 0, answer)), Some(0));
    write(&kick, &1u64.to_ne_bytes()).unwrap();
    assert!(!runner.look(0));
}

#[test]
fn a_queue_that_runs_is_not_replaced_under_its_requests() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest_that_reads(3 * u64::from(BLOCK / 512) + 8);
    let mut runner = runner(dir.path(), 4, &guest);
    assert!(runner.serve_device(0));
    let setup = Box::new(setup(&guest, None, None, true));
    let id = runner.devices[0].as_ref().unwrap().id;
    let started = ask(&mut runner, |answer| Command::Start(id, setup, answer));
    assert_eq!(started, Err(QueueError::Running(0)));
    wait(&runner);
    assert!(runner.reap());
    assert_eq!((guest.get(STATUS), guest.get(BUFFER)), ([0], [3; 4096]));
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
