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
use common::scene::{ROOT_SECTORS, Scene, root_content};
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
        let args = ["--root", self.root.to_str().unwrap(), "--vm", "web1,queues=2"];
        Daemon::start(self.dir.path(), &args)
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
    region_is_refused("fewer states", |vmm| vmm.inflight.as_mut().unwrap().0.queue_size = 32);
}

#[test]
fn a_region_that_is_shorter_than_it_must_be_or_lies_elsewhere_is_refused() {
    region_is_refused("are needed", |vmm| vmm.inflight.as_mut().unwrap().0.mmap_size = 1024);
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
