//! Descriptors whose close waits: the frontend's own connection hangs in it,
//! and nobody else.

use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::json;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use crate::common::Client;
use crate::common::frontend::*;
use crate::common::lingering::Lingering;
use crate::common::scene::Scene;

/// A client whose connection can't be closed by the backend before `Lingering`
/// is dropped.
fn client_with_a_lingering_socket(scene: &Scene) -> (UnixStream, Lingering) {
    // Else the backend could close its copy before ours is closed, or the
    // connection before anything is sent.
    scene.daemon.while_paused(|| {
        let stream = UnixStream::connect(&scene.victim).unwrap();
        let mut lingering = Lingering::new();
        lingering.send_over(stream.as_fd());
        (stream, lingering)
    })
}

/// The acceptor lives: somebody is let in to another VM and served, and VMs
/// come and go.
fn others_come_and_go(scene: &Scene) {
    let control = scene.daemon.control();
    control.post("/v1/vms", &json!({"name": "other"})).expect(201);
    let other = scene.daemon.socket("other");
    Client::connect(&other).read(0, 4096);
    Client::connect(&other).read(0, 4096);
    control.delete("/v1/vms/other?force=true").expect(204);
    scene.neighbour.goes_on(20);
}

/// SIGTERM ends the daemon, though a descriptor still waits.
fn ends_well(scene: Scene, begun: Instant) {
    scene.neighbour.goes_on(20);
    scene.neighbour.stop();
    scene.daemon.stop();
    assert!(begun.elapsed() < PATIENCE, "took {:?}", begun.elapsed());
}

#[test]
fn a_second_client_that_is_slow_to_close_holds_nobody_up() {
    let mut scene = Scene::new();
    let first = Vmm::running(&scene.victim);
    let begun = Instant::now();
    let (_second, _lingering) = client_with_a_lingering_socket(&scene);
    scene.log.wait_for(&["VM victim", "a second client was turned away"]);
    others_come_and_go(&scene);
    first.frontend.get_features().unwrap();
    ends_well(scene, begun);
}

#[test]
fn a_client_that_is_slow_to_close_holds_up_its_own_vm_only() {
    let mut scene = Scene::new();
    let begun = Instant::now();
    let (stream, lingering) = client_with_a_lingering_socket(&scene);
    // The byte begins no message; the descriptor stays in the queue.
    hang_up(&stream);
    scene.log.wait_for(&["VM victim: disconnected"]);
    drop(stream);
    others_come_and_go(&scene);
    // The next one waits for it, and is let in then.
    let next = UnixStream::connect(&scene.victim).unwrap();
    scene.neighbour.goes_on(20);
    drop(next);
    drop(lingering);
    assert!(begun.elapsed() < PATIENCE);
    scene.all_is_well();
}

/// Hands over a descriptor that the backend closes while it serves the message.
fn get_stuck(scene: &Scene, vmm: &mut Vmm, as_kick: bool) -> Lingering {
    scene.daemon.while_paused(|| send_a_lingering_eventfd(vmm, as_kick))
}

fn send_a_lingering_eventfd(vmm: &mut Vmm, as_kick: bool) -> Lingering {
    let mut lingering = Lingering::new();
    let fd = lingering.descriptor().try_clone_to_owned().unwrap();
    #[expect(unsafe_code, reason = "EventFd has no safe way in")]
    // SAFETY: the descriptor is owned.
    let fd = unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) };
    // Nobody waits for an answer, which would come late.
    let flags = vhost::vhost_user::message::VhostUserHeaderFlag::empty();
    vmm.frontend.set_hdr_flags(flags);
    match as_kick {
        true => vmm.frontend.set_vring_kick(0, &fd).unwrap(),
        false => vmm.frontend.set_vring_err(0, &fd).unwrap(),
    }
    drop(fd);
    lingering.let_go();
    lingering
}

#[test]
fn a_connection_that_hangs_in_a_close_can_be_cut_off() {
    for as_kick in [true, false] {
        let mut scene = Scene::new();
        let (control, guest) = (scene.daemon.control(), scene.daemon.socket("guest"));
        control.post("/v1/vms", &json!({"name": "guest"})).expect(201);
        let mut vmm = Vmm::running(&guest);
        let begun = Instant::now();
        let lingering = get_stuck(&scene, &mut vmm, as_kick);
        others_come_and_go(&scene);
        if !as_kick {
            // Its device works on, until it is cut off.
            assert_eq!(vmm.request(T_IN, 0, 512), (OK, 513));
        }
        control.delete("/v1/vms/guest?force=true").expect(204);
        scene.log.wait_for(&["VM guest", "hangs in closing"]);
        // It can come back, though the old connection hangs on.
        control.post("/v1/vms", &json!({"name": "guest"})).expect(201);
        Client::connect(&guest).read(0, 4096);
        assert!(begun.elapsed() < PATIENCE, "took {:?}", begun.elapsed());
        drop(lingering);
        drop(vmm);
        scene.all_is_well();
    }
}

#[test]
fn the_end_waits_for_no_connection_that_hangs_in_a_close() {
    let scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    let begun = Instant::now();
    let _lingering = get_stuck(&scene, &mut vmm, true);
    ends_well(scene, begun);
}

#[test]
fn a_client_in_the_backlog_that_is_slow_to_close_holds_nobody_up() {
    let mut scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    let begun = Instant::now();
    // The first is being turned away for long, the next ones wait behind it.
    let _first = client_with_a_lingering_socket(&scene);
    scene.log.wait_for(&["VM victim", "a second client was turned away"]);
    let _behind: Vec<_> = (0..3).map(|_| client_with_a_lingering_socket(&scene)).collect();
    others_come_and_go(&scene);
    assert_eq!(vmm.request(T_IN, 0, 512), (OK, 513));
    scene.daemon.control().delete("/v1/vms/victim?force=true").expect(204);
    others_come_and_go(&scene);
    ends_well(scene, begun);
}
