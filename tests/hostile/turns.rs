//! Guests that ask for much at once: what one gets done in a turn of the
//! reactor is bounded, so that its neighbour's turns come soon.
//!
//! Bounds are told by what happens meanwhile, not by the clock: the neighbour
//! has one read in the ring at a time, and so gets at most one or two done a
//! turn. On a busy machine its own thread may not run for a while, therefore one
//! try of many must show it.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use vhost::vhost_user::Frontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use crate::TABLE_AT;
use crate::common::frontend::*;
use crate::common::scene::Scene;
use crate::common::{Client, Daemon};

const TRIES: u32 = 60;
/// Headers and statuses of requests that are in flight together.
const MANY_HEADERS: u64 = RAM_START + 0x10_0000;

/// Lets descriptor 0 of the first queue be a request through an indirect table:
/// header, the data, status.
fn describe_indirect(vmm: &Vmm, kind: u32, data: impl Iterator<Item = (u64, u32, bool)>) {
    let mut buffers = vec![(vmm.header(kind, 0), 16, false)];
    buffers.extend(data);
    buffers.push((Vmm::STATUS, 1, true));
    vmm.describe_chain(TABLE_AT, 0, &buffers);
    let len = buffers.len() as u32 * 16;
    vmm.describe(vmm.rings[0].desc, 0, desc(TABLE_AT, len, TABLE, 0));
}

/// Offers descriptor 0 of a queue so often.
fn offer_often(vmm: &mut Vmm, queue: usize, count: u16) {
    (0..count).for_each(|_| vmm.offer(queue, 0));
    vmm.kick(queue);
}

/// Waits until so many of a queue are back.
fn await_all(vmm: &mut Vmm, queue: usize, count: u16) {
    for _ in 0..count {
        vmm.used(queue);
    }
}

/// Attacks until the neighbour reads more than `least` times during an attack, or
/// in the part of it whose reads the attack has counted.
fn leaves_the_neighbour(scene: &Scene, least: u64, mut attack: impl FnMut() -> Option<u64>) {
    let mut most = 0;
    for _ in 0..TRIES {
        let begun = scene.neighbour.reads();
        let counted = attack();
        most = most.max(counted.unwrap_or(scene.neighbour.reads() - begun));
        if most > least {
            return;
        }
    }
    panic!("the neighbour reads {most} times beside an attack, never more than {least} times");
}

#[test]
fn many_descriptors_without_data_leave_the_neighbour_its_turns() {
    let scene = Scene::new();
    let mut vmm = Vmm::running_with(&scene.victim, VERSION_1 | EVENT_IDX | INDIRECT, 1024);
    // Reads of nothing, and ragged ones; the same of buffers that are nowhere.
    let nowhere = RAM_START + RAM_LEN;
    for (start, len) in [(DATA, 0), (DATA, 1), (nowhere, 0), (nowhere, 1)] {
        describe_indirect(&vmm, T_IN, (0..1000).map(|i| (start + i * 4096, len, true)));
        // Sixteen turns, where only data is reckoned with.
        leaves_the_neighbour(&scene, 40, || {
            offer_often(&mut vmm, 0, 1024);
            await_all(&mut vmm, 0, 1024);
            None
        });
    }
    drop(vmm);
    scene.all_is_well();
}

#[test]
fn many_huge_reads_at_once_leave_the_neighbour_its_turns() {
    let scene = Scene::with_victim("victim,size=1GiB");
    let mut vmm = Vmm::running(&scene.victim);
    describe_indirect(&vmm, T_IN, (0..32).map(|_| (DATA, 1 << 20, true)));
    // 32 turns of 64 MiB, where each request that waits goes on in each turn.
    leaves_the_neighbour(&scene, 150, || {
        offer_often(&mut vmm, 0, 64);
        await_all(&mut vmm, 0, 64);
        None
    });
    assert_eq!(vmm.read(Vmm::STATUS, 1), [OK]);
    drop(vmm);
    scene.neighbour.goes_on(20);
}

const QUEUES: usize = 64;

/// A VMM whose guest runs with that many queues of 64.
fn with_many_queues(scene: &Scene) -> Vmm {
    let features = VERSION_1 | EVENT_IDX | INDIRECT | F_MQ;
    let mut vmm = Vmm::connect(&scene.victim);
    vmm.frontend = Frontend::from_stream(vmm.stream.try_clone().unwrap(), QUEUES as u64);
    vmm.negotiate(features, VhostUserProtocolFeatures::all());
    vmm.share_ram();
    for index in 0..QUEUES {
        let mut ring = Ring::new(index, 64);
        ring.desc = RAM_START + index as u64 * 4096;
        (ring.avail, ring.used) = (ring.desc + 0x400, ring.desc + 0x800);
        vmm.start_ring(ring);
    }
    vmm
}

#[test]
fn endless_tables_in_all_queues_end_their_device_and_delay_nobody() {
    const ENTRIES: u32 = 1 << 16;
    /// Walked to their ends, those of one turn take longer, again and again.
    const BOUND: Duration = Duration::from_secs(1);
    let mut scene = Scene::with_victim("victim,queues=64");
    let quick = (0..10).any(|_| {
        let mut vmm = with_many_queues(&scene);
        // Each of no bytes, at an address where there is no memory.
        let entries = (0..ENTRIES).flat_map(|i| {
            let next = if i + 1 < ENTRIES { NEXT } else { 0 };
            let low = u128::from(u64::MAX) | u128::from(next) << 96;
            (low | u128::from((i + 1) & 0xffff) << 112).to_le_bytes()
        });
        vmm.write(DATA, &entries.collect::<Vec<u8>>());
        for queue in 0..QUEUES {
            vmm.describe(vmm.rings[queue].desc, 0, desc(DATA, ENTRIES * 16, TABLE, 0));
        }
        let begun = Instant::now();
        (0..QUEUES).for_each(|queue| offer_often(&mut vmm, queue, 64));
        scene.log.wait_for(&["VM victim", "its device stops", "loops or has more than"]);
        scene.neighbour.goes_on(20);
        begun.elapsed() < BOUND
    });
    assert!(quick, "20 reads of the neighbour take longer than {BOUND:?}, each time");
    scene.all_is_well();
}

#[test]
fn all_queues_of_a_device_together_leave_the_neighbour_its_turns() {
    let scene = Scene::with_victim("victim,queues=64,size=1GiB");
    let mut vmm = with_many_queues(&scene);
    describe_indirect(&vmm, T_IN, [(DATA, 256 << 10, true)].into_iter());
    for index in 0..QUEUES {
        vmm.describe(vmm.rings[index].desc, 0, desc(TABLE_AT, 3 * 16, TABLE, 0));
    }
    // Some hundred turns of 16 MiB, where each queue has one of its own.
    leaves_the_neighbour(&scene, 250, || {
        (0..QUEUES).for_each(|queue| offer_often(&mut vmm, queue, 64));
        (0..QUEUES).for_each(|queue| await_all(&mut vmm, queue, 64));
        None
    });
    drop(vmm);
    scene.neighbour.goes_on(20);
}

#[test]
fn small_writes_behind_a_huge_one_do_not_make_the_reactor_wait() {
    let scene = Scene::with_victim("victim,size=1GiB");
    leaves_the_neighbour(&scene, 250, || {
        // A new device each time: one whose write has waited once writes through
        // its lane for a while.
        let mut vmm = Vmm::running(&scene.victim);
        describe_indirect(&vmm, T_OUT, (0..100).map(|_| (DATA, 1 << 20, false)));
        // A whole page, which the reactor would write itself.
        let small = [(HEADERS, 16, false), (DATA, 4096, false), (Vmm::STATUS, 1, true)];
        vmm.describe_chain(vmm.rings[0].desc, 1, &small);
        offer_often(&mut vmm, 0, 1);
        // By then the huge one is under way.
        scene.neighbour.goes_on(20);
        let begun = scene.neighbour.reads();
        (0..4).for_each(|_| vmm.offer(0, 1));
        vmm.kick(0);
        await_all(&mut vmm, 0, 5);
        let beside = scene.neighbour.reads() - begun;
        // So that the next one's small writes aren't the lane's for its sake.
        assert_eq!(vmm.request(T_FLUSH, 0, 0).0, OK);
        Some(beside)
    });
    scene.neighbour.goes_on(20);
}

#[test]
fn a_miss_does_not_wait_for_all_that_another_vm_reads_cold() {
    /// Far more than the cache holds, so that every try is cold.
    const VICTIMS_MIB: u16 = 256;
    const ALL_MIB: usize = 320;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root.raw");
    let mib: Vec<u8> =
        (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
    fs::write(&root, mib.repeat(ALL_MIB)).unwrap();
    let root = root.to_str().unwrap();
    let vms = ["--vm", "victim", "--vm", "neighbour", "--reactors", "1", "--root", root];
    let daemon = Daemon::start_with(dir.path(), &vms, Stdio::inherit());
    let mut victim = Vmm::running_with(&daemon.socket("victim"), VERSION_1 | EVENT_IDX, 1024);
    let mut neighbour = Client::connect(&daemon.socket("neighbour"));
    for i in 0..VICTIMS_MIB {
        let header = MANY_HEADERS + u64::from(i) * 32;
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&(u64::from(i) * 2048).to_le_bytes());
        victim.write(header, &bytes);
        let buffers = [(header, 16, false), (DATA, 1 << 20, true), (header + 16, 1, true)];
        victim.describe_chain(victim.rings[0].desc, i * 3, &buffers);
    }
    let mut place = VICTIMS_MIB as u64;
    let mut left_each_try = (0..TRIES).map(|_| {
        (0..VICTIMS_MIB).for_each(|i| victim.offer(0, i * 3));
        victim.kick(0);
        // Only when it is at work.
        victim.used(0);
        for _ in 0..4 {
            assert!(neighbour.read(place << 20, 4096) == mib[..4096]);
            place = VICTIMS_MIB as u64 + (place + 1) % (ALL_MIB as u64 - VICTIMS_MIB as u64);
        }
        let mut left = VICTIMS_MIB - 1;
        while victim.try_used(0).is_some() {
            left -= 1;
        }
        await_all(&mut victim, 0, left);
        left
    });
    // Of 256 requests of 1 MiB, where the neighbour's wait behind all of them.
    let shown = left_each_try.any(|left| left > VICTIMS_MIB / 2);
    assert!(shown, "four misses last as long as all reads of the other VM");
    drop((victim, neighbour));
    daemon.stop();
}

/// Threads of the daemon that serve some leaf.
fn lanes(daemon: &Daemon) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("leaf-")).count()
}

#[test]
fn frontends_that_come_write_and_go_leave_no_threads_behind() {
    let scene = Scene::new();
    for _ in 0..60 {
        let mut vmm = Vmm::running(&scene.victim);
        // No whole page: through a lane. And a flush, through another.
        vmm.write_sectors(3001, &[0x11; 512]);
        assert_eq!(vmm.request(T_FLUSH, 0, 0).0, OK);
    }
    // Much less than a lane's thread stays when it has nothing to do.
    let deadline = Instant::now() + Duration::from_secs(2);
    while lanes(&scene.daemon) > 4 {
        assert!(Instant::now() < deadline, "{} threads stay behind", lanes(&scene.daemon));
        std::thread::yield_now();
    }
    scene.all_is_well();
}
