//! Requests in flight, noted in a region that the frontend keeps: what the next
//! daemon takes up, and regions that no backend has written.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use common::frontend::*;
use common::scene::{Log, ROOT_SECTORS, Scene, root_content};
use common::{Daemon, make_root};
use rustix::process::{Signal, kill_process};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

/// A daemon that can be started again, with one VM named `web1`.
struct Host {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = make_root(dir.path(), ROOT_SECTORS);
        Self { dir, root }
    }

    fn start(&self) -> Daemon {
        Daemon::start(self.dir.path(), &self.args())
    }

    fn start_logged(&self) -> (Daemon, Log) {
        Daemon::start_logged(self.dir.path(), &self.args())
    }

    fn args(&self) -> [&str; 4] {
        ["--root", self.root.to_str().unwrap(), "--vm", "web1,queues=2"]
    }
}

/// A chain that writes `fill` to a sector, on descriptors of its own.
fn describe_write(vmm: &Vmm, slot: u16, sector: u64, fill: u8) {
    let at = HEADERS + 256 * u64::from(slot);
    let mut header = [0; 16];
    header[..4].copy_from_slice(&T_OUT.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    vmm.write(at, &header);
    vmm.write(at + 64, &[NO_STATUS]);
    let data = DATA + 4096 * u64::from(slot);
    vmm.write(data, &[fill; 512]);
    let buffers = [(at, 16, false), (data, 512, false), (at + 64, 1, true)];
    vmm.describe_chain(vmm.rings[0].desc, 3 * slot, &buffers);
}

fn status(vmm: &Vmm, slot: u16) -> u8 {
    vmm.read(HEADERS + 256 * u64::from(slot) + 64, 1)[0]
}

/// Notes a head as in flight, as a backend that died would have.
fn note(vmm: &Vmm, head: u16, order: u64) {
    let (_, region) = vmm.inflight.as_ref().unwrap();
    let state = 16 + 16 * u64::from(head);
    region.write_all_at(&[1], state).unwrap();
    region.write_all_at(&order.to_ne_bytes(), state + 8).unwrap();
}

#[test]
fn requests_that_were_in_flight_are_done_once_each_in_their_order_before_new_ones() {
    let host = Host::new();
    let daemon = host.start();
    let mut vmm = Vmm::tracked(&daemon.socket("web1"), 2, 64);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    daemon.kill();
    // Three chains that the dead one had popped, all writing one sector: the
    // last one in their order counts. Slot 0 is head 0.
    for (slot, fill) in [(2, 0x22), (0, 0x20), (1, 0x21)] {
        describe_write(&vmm, slot, 40, fill);
        vmm.offer(0, 3 * slot);
    }
    for (slot, order) in [(2, 100), (0, 101), (1, 102)] {
        note(&vmm, 3 * slot, order);
    }
    // One that nobody has popped.
    describe_write(&vmm, 3, 41, 0x23);
    vmm.offer(0, 9);
    vmm.kick(0);
    let daemon = host.start();
    vmm.reconnect(&daemon.socket("web1")).unwrap();
    let mut heads: Vec<u32> = (0..4).map(|_| vmm.used(0).0).collect();
    assert_eq!(heads, [6, 0, 3, 9]);
    heads.dedup();
    assert_eq!(heads.len(), 4);
    assert!((0..4).all(|slot| status(&vmm, slot) == OK));
    assert!(vmm.read_sectors(40, 2) == [[0x21; 512], [0x23; 512]].concat());
    daemon.stop();
}

#[test]
fn what_came_while_nobody_served_is_served_whatever_the_frontend_says_of_the_index() {
    let host = Host::new();
    let daemon = host.start();
    let mut vmm = Vmm::tracked(&daemon.socket("web1"), 1, 64);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    kill_process(daemon.pid(), Signal::STOP).unwrap();
    describe_write(&vmm, 0, 50, 0x50);
    vmm.offer(0, 0);
    vmm.kick(0);
    daemon.kill();
    let daemon = host.start();
    vmm.reconnect(&daemon.socket("web1")).unwrap();
    assert_eq!(vmm.used(0).0, 0);
    assert!(vmm.read_sectors(50, 1) == [0x50; 512]);
    daemon.stop();
}

#[test]
fn a_daemon_that_is_stopped_and_started_again_under_a_guest_loses_nothing() {
    let host = Host::new();
    let mut daemon = host.start();
    let mut vmm = Vmm::tracked(&daemon.socket("web1"), 2, 64);
    for round in 0..8u8 {
        // Offered at the last moment: before, at or after the drain.
        for slot in 0..16 {
            describe_write(&vmm, slot, 100 + u64::from(slot), round);
            vmm.offer(0, 3 * slot);
        }
        vmm.kick(0);
        daemon.stop();
        daemon = host.start();
        vmm.reconnect(&daemon.socket("web1")).unwrap();
        let mut heads: Vec<u32> = (0..16).map(|_| vmm.used(0).0).collect();
        heads.sort_unstable();
        assert_eq!(heads, (0..16).map(|slot| 3 * slot).collect::<Vec<_>>());
        assert!((0..16).all(|slot| status(&vmm, slot) == OK));
        assert!(vmm.read_sectors(100, 16) == vec![round; 16 * 512]);
    }
    daemon.stop();
}

#[test]
fn what_a_killed_daemon_acknowledged_is_there_when_its_vm_is_renamed() {
    let host = Host::new();
    let daemon = host.start();
    let mut vmm = Vmm::tracked(&daemon.socket("web1"), 2, 64);
    vmm.write_sectors(60, &[0x60; 512]);
    daemon.kill();
    let leaf = host.dir.path().join("state/web1.leaf");
    let start = || {
        let vm = format!("web2,queues=2,leaf={}", leaf.display());
        let args = ["--root", host.root.to_str().unwrap(), "--vm", &vm];
        Daemon::start_logged(host.dir.path(), &args)
    };
    let (daemon, mut log) = start();
    vmm.reconnect(&daemon.socket("web2")).unwrap();
    assert!(vmm.read_sectors(60, 1) == [0x60; 512]);
    log.wait_for(&["took over the live map"]);
    // One that is nowhere is missed aloud.
    daemon.kill();
    std::fs::remove_file(host.dir.path().join("run/web2.map")).unwrap();
    let (daemon, mut log) = start();
    log.wait_for(&["leaf ", "was not closed", "no live map"]);
    daemon.stop();
}

/// The VM's state, as the control API has it.
fn info(daemon: &Daemon) -> serde_json::Value {
    daemon.control().get("/v1/vms/web1").expect(200)
}

/// The frontend comes back and is not let in.
fn is_kept_out(daemon: &Daemon, log: &mut Log, vmm: &mut Vmm) {
    let _ = vmm.reconnect(&daemon.socket("web1"));
    let why = "its guest runs with another disk than the leaf";
    log.wait_for(&["VM web1: disconnected its frontend", why, "web1.leaf", "start the VM anew"]);
    vmm.wait_closed();
    let problems = info(daemon)["problems"].to_string();
    assert!(problems.contains(why), "{problems}");
    let health = daemon.control().get("/v1/health").expect(200);
    assert_eq!(health["status"], "degraded");
    assert!(health["problems"][0].as_str().unwrap().contains(why), "{health}");
}

#[test]
fn a_guest_that_runs_is_kept_from_a_new_leaf_and_let_in_to_its_own() {
    let host = Host::new();
    let (leaf, away) = (host.dir.path().join("state/web1.leaf"), host.dir.path().join("away"));
    let daemon = host.start();
    let mut running = Vmm::tracked(&daemon.socket("web1"), 2, 64);
    running.write_sectors(60, &[0x60; 512]);
    daemon.stop();
    std::fs::rename(&leaf, &away).unwrap();
    let (daemon, mut log) = host.start_logged();
    daemon.control().post("/v1/vms/web1/new-leaf", &serde_json::Value::Null).expect(200);
    is_kept_out(&daemon, &mut log, &mut running);
    daemon.stop();
    // Also by a process that has not made it.
    let (daemon, mut log) = host.start_logged();
    is_kept_out(&daemon, &mut log, &mut running);
    daemon.stop();
    // With the leaf that it had it goes on.
    let new = host.dir.path().join("new");
    std::fs::rename(&leaf, &new).unwrap();
    std::fs::rename(&away, &leaf).unwrap();
    let daemon = host.start();
    daemon.control().post("/v1/vms/web1/accept-leaf", &serde_json::Value::Null).expect(200);
    running.reconnect(&daemon.socket("web1")).unwrap();
    assert!(running.read_sectors(60, 1) == [0x60; 512]);
    daemon.stop();
    // A new guest gets the new leaf, and may come back at any time.
    std::fs::rename(&leaf, &away).unwrap();
    std::fs::rename(&new, &leaf).unwrap();
    let (daemon, mut log) = host.start_logged();
    daemon.control().post("/v1/vms/web1/accept-leaf", &serde_json::Value::Null).expect(200);
    is_kept_out(&daemon, &mut log, &mut running);
    drop(running);
    let mut fresh = Vmm::tracked(&daemon.socket("web1"), 2, 64);
    assert!(fresh.read_sectors(60, 1) == root_content(60, 1));
    assert_eq!(info(&daemon)["problems"], serde_json::json!([]));
    daemon.kill();
    let daemon = host.start();
    fresh.reconnect(&daemon.socket("web1")).unwrap();
    assert!(fresh.read_sectors(60, 1) == root_content(60, 1));
    daemon.stop();
}

#[test]
fn a_guest_that_runs_is_kept_from_its_reverted_leaf_also_after_a_restart() {
    let host = Host::new();
    let (daemon, mut log) = host.start_logged();
    let mut running = Vmm::tracked(&daemon.socket("web1"), 2, 64);
    running.write_sectors(60, &[0x60; 512]);
    let nothing = serde_json::Value::Null;
    daemon.control().post("/v1/vms/web1/revert?force=true", &nothing).expect(200);
    running.wait_closed();
    let _ = running.reconnect(&daemon.socket("web1"));
    log.wait_for(&["disconnected its frontend", "still has the disk as it was before the revert"]);
    running.wait_closed();
    // By its inflight region, where nothing is known of its process.
    daemon.kill();
    let (daemon, mut log) = host.start_logged();
    is_kept_out(&daemon, &mut log, &mut running);
    let mut fresh = Vmm::tracked(&daemon.socket("web1"), 2, 64);
    assert!(fresh.read_sectors(60, 1) == root_content(60, 1));
    assert_eq!(info(&daemon)["problems"], serde_json::json!([]));
    drop(fresh);
    daemon.stop();
    // Also where it was away when the disk was reverted.
    let (daemon, mut log) = host.start_logged();
    daemon.control().post("/v1/vms/web1/revert", &nothing).expect(200);
    is_kept_out(&daemon, &mut log, &mut running);
    daemon.stop();
}

#[test]
fn a_region_that_no_backend_has_written_is_no_sign_of_a_guest_that_runs() {
    let host = Host::new();
    let daemon = host.start();
    // As a VMM that came before its backend was exchanged, and never began.
    let mut vmm = Vmm::negotiated(&daemon.socket("web1"), VERSION_1 | EVENT_IDX);
    let asked = VhostUserInflight::new(0, 0, 2, 64);
    vmm.inflight = Some(vmm.frontend.get_inflight_fd(&asked).unwrap());
    vmm.hand_over_inflight().unwrap();
    vmm.reconnect(&daemon.socket("web1")).unwrap();
    vmm.start_ring(Ring::new(0, 64));
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    daemon.stop();
}

#[test]
fn a_paused_and_resumed_guest_is_no_return_and_goes_on() {
    let host = Host::new();
    let daemon = host.start();
    let mut vmm = Vmm::tracked(&daemon.socket("web1"), 2, 64);
    for round in 0..20u64 {
        vmm.write_sectors(round, &[round as u8; 512]);
        vmm.frontend.get_vring_base(0).unwrap();
        vmm.frontend.get_vring_base(1).unwrap();
        vmm.hand_over_inflight().unwrap();
        let rings = std::mem::take(&mut vmm.rings);
        rings.into_iter().for_each(|ring| vmm.start_ring(ring));
        assert!(vmm.read_sectors(round, 1) == [round as u8; 512]);
    }
    daemon.stop();
}

#[test]
fn a_queue_that_is_stopped_at_once_has_done_what_was_in_flight_before() {
    // The whole disk.
    const WRITES: u16 = 64;
    const LEN: u32 = 32 << 10;
    let host = Host::new();
    let daemon = host.start();
    let mut vmm = Vmm::tracked(&daemon.socket("web1"), 2, 256);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    let (head, seen) = (|write: u16| 3 * write, vmm.rings[0].used_index);
    daemon.kill();
    for write in 0..WRITES {
        describe_write(&vmm, write, u64::from(write) * u64::from(LEN / 512), 0);
        let at = HEADERS + 256 * u64::from(write);
        let buffers = [(at, 16, false), (DATA, LEN, false), (at + 64, 1, true)];
        vmm.describe_chain(vmm.rings[0].desc, head(write), &buffers);
        vmm.offer(0, head(write));
        note(&vmm, head(write), u64::from(write));
    }
    vmm.write(DATA, &[0x5a; LEN as usize]);
    vmm.kick(0);
    let daemon = host.start();
    vmm.reconnect(&daemon.socket("web1")).unwrap();
    // As QEMU stops a device.
    vmm.frontend.set_vring_enable(0, false).unwrap();
    let base = vmm.frontend.get_vring_base(0).unwrap();
    // Before anything else: the index, the used ring and the region agree.
    assert_eq!(base, u32::from(seen + WRITES));
    for write in 0..WRITES {
        assert_eq!(vmm.try_used(0), Some((u32::from(head(write)), 1)));
        assert_eq!(status(&vmm, write), OK);
        let mut state = [0xff];
        let (_, region) = vmm.inflight.as_ref().unwrap();
        region.read_exact_at(&mut state, 16 + 16 * u64::from(head(write))).unwrap();
        assert_eq!(state, [0], "write {write} is still in flight");
    }
    vmm.hand_over_inflight().unwrap();
    let ring = vmm.rings.remove(0);
    vmm.start_ring(ring);
    vmm.rings.swap(0, 1);
    assert!(vmm.read_sectors(0, ROOT_SECTORS as u32) == vec![0x5a; ROOT_SECTORS as usize * 512]);
    daemon.stop();
}

/// A VMM as QEMU is with virtio-mmio: it asks for a region for queues of 128, keeps
/// what it gets, and then its driver takes rings of 1024.
fn microvm(socket: &std::path::Path) -> Vmm {
    let mut vmm = Vmm::negotiated(socket, VERSION_1 | EVENT_IDX | INDIRECT | F_FLUSH);
    let asked = VhostUserInflight::new(0, 0, 1, 128);
    let (made, file) = vmm.frontend.get_inflight_fd(&asked).unwrap();
    // What QEMU says of the queues is its own.
    let kept = VhostUserInflight::new(made.mmap_size, made.mmap_offset, 1, 128);
    vmm.inflight = Some((kept, file));
    vmm.hand_over_inflight().unwrap();
    vmm.share_ram();
    vmm.start_ring(Ring::new(0, 1024));
    vmm
}

#[test]
fn a_ring_of_1024_keeps_its_requests_though_the_region_was_asked_for_128() {
    /// One with three descriptors for each entry of a third of the ring.
    const MANY: u16 = 341;
    let host = Host::new();
    let mut daemon = host.start();
    let mut vmm = microvm(&daemon.socket("web1"));
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    for round in 0..4u8 {
        kill_process(daemon.pid(), Signal::STOP).unwrap();
        for slot in 0..MANY {
            describe_write(&vmm, slot, 100 + u64::from(slot), round ^ slot as u8);
            vmm.offer(0, 3 * slot);
        }
        vmm.kick(0);
        // Some are popped before it dies, most of them beyond head 128.
        kill_process(daemon.pid(), Signal::CONT).unwrap();
        if round % 2 == 0 {
            vmm.wait_for_used(0);
        }
        daemon.kill();
        daemon = host.start();
        vmm.reconnect(&daemon.socket("web1")).unwrap();
        let mut heads: Vec<u32> = (0..MANY).map(|_| vmm.used(0).0).collect();
        heads.sort_unstable();
        assert_eq!(heads, (0..MANY).map(|slot| u32::from(3 * slot)).collect::<Vec<_>>());
        assert!((0..MANY).all(|slot| status(&vmm, slot) == OK));
        for slot in 0..MANY {
            let sector = 100 + u64::from(slot);
            assert!(vmm.read_sectors(sector, 1) == [round ^ slot as u8; 512], "sector {sector}");
        }
    }
    daemon.stop();
}

#[test]
fn requests_beyond_head_128_that_were_in_flight_are_done_once_each_in_their_order() {
    let host = Host::new();
    let daemon = host.start();
    let mut vmm = microvm(&daemon.socket("web1"));
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    daemon.kill();
    // Popped by the dead one: all write one sector, the last in their order counts.
    let extension = 16 + 16 * 128u64;
    let state = |head: u64| match head {
        0..128 => 16 + 16 * head,
        _ => extension.next_multiple_of(64) + 16 * (head - 128),
    };
    for (order, slot) in [(100, 340u16), (101, 2), (102, 43)] {
        describe_write(&vmm, slot, 40, slot as u8);
        vmm.offer(0, 3 * slot);
        let (_, region) = vmm.inflight.as_ref().unwrap();
        let at = state(3 * u64::from(slot));
        region.write_all_at(&[1], at).unwrap();
        region.write_all_at(&u64::to_ne_bytes(order), at + 8).unwrap();
    }
    vmm.kick(0);
    let daemon = host.start();
    vmm.reconnect(&daemon.socket("web1")).unwrap();
    let heads: Vec<u32> = (0..3).map(|_| vmm.used(0).0).collect();
    assert_eq!(heads, [1020, 6, 129]);
    assert!(vmm.read_sectors(40, 1) == [43; 512]);
    daemon.stop();
}

// Regions that no backend has written.

/// A frontend that kept a region, and does something to it before it comes
/// back: it is disconnected, and nobody else notices.
fn region_is_refused(because: &str, change: impl FnOnce(&mut Vmm)) {
    let mut scene = Scene::new();
    let mut vmm = Vmm::tracked(&scene.victim, 1, 64);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    change(&mut vmm);
    let _ = vmm.reconnect(&scene.victim);
    scene.log.wait_for(&["VM victim", "disconnected its frontend", because]);
    vmm.wait_closed();
    scene.neighbour.goes_on(5);
    scene.all_is_well();
}

fn put(vmm: &Vmm, at: u64, value: u16) {
    vmm.inflight.as_ref().unwrap().1.write_all_at(&value.to_ne_bytes(), at).unwrap();
}

#[test]
fn a_region_for_more_or_longer_queues_than_there_are_is_refused() {
    region_is_refused("queues", |vmm| vmm.inflight.as_mut().unwrap().0.num_queues = 2);
    region_is_refused("queues of 1025", |vmm| vmm.inflight.as_mut().unwrap().0.queue_size = 1025);
    // As a region that an older leafblk made for shorter queues, which has no room
    // for this one.
    region_is_refused("start the VM with queue-size=64", |vmm| {
        let layout = &mut vmm.inflight.as_mut().unwrap().0;
        (layout.queue_size, layout.mmap_size) = (32, 16 + 32 * 16 + 48);
    });
}

#[test]
fn a_region_that_is_shorter_than_it_must_be_or_lies_elsewhere_is_refused() {
    region_is_refused("too few for 1 queues of 64", |vmm| {
        vmm.inflight.as_mut().unwrap().0.mmap_size = 1024
    });
    region_is_refused("can't be used", |vmm| vmm.inflight.as_mut().unwrap().0.mmap_offset = 4096);
    region_is_refused("can't be used", |vmm| vmm.inflight.as_mut().unwrap().0.mmap_offset = 3);
    region_is_refused("can't be used", |vmm| {
        vmm.inflight.as_mut().unwrap().0.mmap_offset = u64::MAX - 4095;
    });
    region_is_refused("can't be used", |vmm| {
        let fd = rustix::fs::memfd_create("short", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        vmm.inflight.as_mut().unwrap().1 = fd.into();
    });
    region_is_refused("can't be used", |vmm| {
        vmm.inflight.as_mut().unwrap().1 = std::fs::File::open("/dev/null").unwrap();
    });
}

#[test]
fn a_region_whose_content_is_no_backends_is_refused() {
    region_is_refused("version", |vmm| put(vmm, 8, 7));
    region_is_refused("number of states", |vmm| put(vmm, 10, 63));
    region_is_refused("does not exist", |vmm| {
        let used = vmm.rings[0].used_index;
        put(vmm, 14, used.wrapping_sub(2));
        put(vmm, 12, 64);
    });
    region_is_refused("used ring", |vmm| {
        put(vmm, 14, vmm.rings[0].used_index.wrapping_add(1));
        note(vmm, 1, 0);
    });
}

#[test]
fn requests_that_a_region_invents_end_the_device_or_come_back() {
    // Head 5 was never offered: then more are done than the driver has offered.
    let mut scene = Scene::new();
    let mut vmm = Vmm::tracked(&scene.victim, 1, 64);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    for head in 0..64 {
        note(&vmm, head, u64::from(head) % 3);
    }
    vmm.reconnect(&scene.victim).unwrap();
    scene.log.wait_for(&["VM victim", "its device stops"]);
    scene.neighbour.goes_on(5);
    drop(vmm);
    scene.all_is_well();
}

#[test]
fn a_region_that_is_scribbled_on_while_it_is_used_harms_nobody() {
    let scene = Scene::new();
    let mut vmm = Vmm::tracked(&scene.victim, 1, 64);
    for round in 0..500u64 {
        let seed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let (_, region) = vmm.inflight.as_ref().unwrap();
        region.write_all_at(&seed.repeat(130), 0).unwrap();
        assert!(vmm.read_sectors(round, 8) == root_content(round, 8));
    }
    drop(vmm);
    scene.all_is_well();
}

#[test]
fn a_region_that_is_truncated_while_it_is_used_ends_the_device() {
    let mut scene = Scene::new();
    let mut vmm = Vmm::negotiated(&scene.victim, VERSION_1 | EVENT_IDX);
    // A file of the frontend's own that nobody can seal.
    let fd = rustix::fs::memfd_create("region", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = std::fs::File::from(fd);
    file.set_len(4096).unwrap();
    let layout = VhostUserInflight::new(4096, 0, 1, 64);
    vmm.inflight = Some((layout, file.try_clone().unwrap()));
    vmm.hand_over_inflight().unwrap();
    vmm.share_ram();
    vmm.start_ring(Ring::new(0, 64));
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    file.set_len(0).unwrap();
    let header = vmm.header(T_IN, 8);
    let chain = [(header, 16, false), (DATA, 512, true), (Vmm::STATUS, 1, true)];
    vmm.describe_chain(vmm.rings[0].desc, 0, &chain);
    vmm.offer(0, 0);
    vmm.kick(0);
    scene.log.wait_for(&["VM victim", "its device stops", "took away memory"]);
    drop(vmm);
    scene.all_is_well();
}

#[test]
fn a_region_for_queues_that_do_not_exist_is_not_made() {
    for (queues, size) in [(2, 64), (1, 1025), (u16::MAX, u16::MAX)] {
        let mut scene = Scene::new();
        let mut vmm = Vmm::negotiated(&scene.victim, VERSION_1);
        assert!(vmm.frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, queues, size)).is_err());
        scene.log.wait_for(&["VM victim", "disconnected its frontend", "an inflight region"]);
        vmm.wait_closed();
        scene.all_is_well();
    }
}
