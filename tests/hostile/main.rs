//! Guests and frontends that break every rule: each ends at worst its own
//! device, while a neighbour on the same reactor reads on, and afterwards its
//! socket takes a well-behaved client.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

#[path = "../common/mod.rs"]
mod common;
mod descriptors;
mod events;
mod log;
mod memory;
mod messages;
mod requests;
mod rings;
mod turns;

use common::frontend::*;
use common::scene::{Scene, root_content};
use vhost::VhostBackend;

/// Where the tests' indirect tables are.
const TABLE_AT: u64 = RAM_START + 0x4_0000;

/// Lets a guest do something after which its device must stop for the reason
/// given.
fn breaks_its_device(because: &str, attack: impl FnOnce(&mut Vmm)) {
    let mut scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8), "the device works at first");
    attack(&mut vmm);
    scene.log.wait_for(&["VM victim", "its device stops", because]);
    let health = || scene.daemon.control().get("/v1/health").expect(200);
    let problem = health()["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.starts_with("VM victim: its device is stopped: "), "{problem}");
    // Not even a good request is served now, and the frontend is still heard.
    vmm.frontend.get_features().unwrap();
    scene.neighbour.goes_on(5);
    drop(vmm);
    common::wait_until("no device that is stopped", || health()["status"] == "ok");
    scene.all_is_well();
}

/// Offers one chain of the descriptors given, from 0 on.
fn offer_raw(vmm: &mut Vmm, descriptors: &[Desc]) {
    let table = vmm.rings[0].desc;
    for (index, descriptor) in descriptors.iter().enumerate() {
        vmm.describe(table, index as u16, *descriptor);
    }
    vmm.offer(0, 0);
    vmm.kick(0);
}

/// Lets a frontend send something for which it must be disconnected.
fn loses_its_connection(because: &str, attack: impl FnOnce(&mut Vmm)) {
    let mut scene = Scene::new();
    let mut vmm = Vmm::negotiated(&scene.victim, VERSION_1 | EVENT_IDX | INDIRECT | F_FLUSH);
    attack(&mut vmm);
    scene.log.wait_for(&["VM victim", "disconnected its frontend", because]);
    vmm.wait_closed();
    scene.neighbour.goes_on(5);
    scene.all_is_well();
}
