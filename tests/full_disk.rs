//! A disk that is full under running guests: the one that it concerns is told, the
//! others go on, and all is well once there is room.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

use std::process::Command;

use common::frontend::{IOERR, OK, T_FLUSH, T_OUT, Vmm};
use common::scene::{ROOT_SECTORS, Scene, root_content};
use common::small_disk::SmallDisk;
use common::{Client, Daemon, make_root};

#[test]
fn a_full_disk_reaches_that_guest_and_goes_away_with_its_cause() {
    let disk = SmallDisk::mount("4M");
    let leaf = disk.path().join("victim.leaf");
    let mut scene = Scene::with_victim(&format!("victim,leaf={}", leaf.display()));
    let mut vmm = Vmm::running(&scene.victim);
    vmm.write_sectors(0, &[0x11; 4096]);
    let filler = disk.fill();
    // At once, and through the lane.
    assert_eq!(vmm.request(T_OUT, 1024, 8192).0, IOERR);
    assert_eq!(vmm.request(T_OUT, 2049, 512).0, IOERR);
    assert_eq!(vmm.request(T_OUT, 2048, 1 << 19).0, IOERR);
    scene.log.wait_for(&["victim", "No space left"]);
    says_what_fails(&scene, &disk);
    scene.neighbour.goes_on(20);
    // What was written before is there, and so is the root.
    assert!(vmm.read_sectors(0, 8) == [0x11; 4096]);
    assert!(vmm.read_sectors(1024, 16) == root_content(1024, 16));
    // A flush that finds no room for the map says so, or finds some.
    let flushed = vmm.request(T_FLUSH, 0, 0).0;
    assert!(matches!(flushed, OK | IOERR));
    disk.make_room(&filler);
    vmm.write_sectors(1024, &[0x22; 8192]);
    vmm.write_sectors(2049, &[0x33; 512]);
    assert_eq!(vmm.request(T_FLUSH, 0, 0).0, OK);
    assert!(vmm.read_sectors(1024, 16) == [0x22; 8192]);
    assert!(vmm.read_sectors(2049, 1) == [0x33; 512]);
    // On a full disk errors and successes come in turns: it is not well at once.
    let health = scene.daemon.control().get("/v1/health").expect(200);
    let problem = health["problems"][0].as_str().unwrap();
    assert!(problem.contains("some of its writes failed in the last 10 s"), "{health}");
    drop(vmm);
    scene.neighbour.goes_on(20);
    scene.neighbour.stop();
    scene.daemon.stop();
}

/// Health, status and metrics while the victim's writes fail.
fn says_what_fails(scene: &Scene, disk: &SmallDisk) {
    let control = scene.daemon.control();
    let health = control.get("/v1/health").expect(200);
    assert_eq!(health["status"], "degraded", "{health}");
    assert_eq!(health["problems"].as_array().unwrap().len(), 1, "{health}");
    let problem = health["problems"][0].as_str().unwrap();
    let parts = ["VM victim: its writes fail: ", "victim.leaf", "No space left"];
    assert!(parts.iter().all(|part| problem.contains(part)), "{problem}");
    let vm = |name: &str| control.get(&format!("/v1/vms/{name}")).expect(200);
    assert!(problem.ends_with(vm("victim")["problems"][0].as_str().unwrap()), "{problem}");
    assert_eq!(vm("neighbour")["problems"], serde_json::json!([]));
    let mut status = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    status.args(["status", "--runtime-dir"]).arg(scene.daemon.dir.join("run"));
    let text = String::from_utf8(status.output().unwrap().stdout).unwrap();
    let here = disk.path().display();
    for line in [
        "degraded".to_owned(),
        format!("VM victim: its writes fail: leaf {here}/victim.leaf: write failed: No space left"),
        format!("{here} (leaves): 0B of 4MiB"),
    ] {
        assert!(text.contains(&line), "{line} in\n{text}");
    }
    let metrics = String::from_utf8(control.get("/metrics").body).unwrap();
    for line in [
        "leafblk_vm_failing{vm=\"victim\"} 1".to_owned(),
        "leafblk_vm_failing{vm=\"neighbour\"} 0".to_owned(),
        format!("leafblk_file_system_free_bytes{{path=\"{here}\"}} 0"),
        format!("leafblk_file_system_size_bytes{{path=\"{here}\"}} 4194304"),
    ] {
        assert!(metrics.lines().any(|there| there == line), "{line} in\n{metrics}");
    }
}

#[test]
fn a_detach_on_a_full_disk_says_what_is_kept_and_what_to_type() {
    let disk = SmallDisk::mount("4M");
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let root = format!("debian={}", root.display());
    let daemon = Daemon::start(dir.path(), &["--root", &root]);
    let control = daemon.control();
    let leaf = disk.path().join("web1.leaf");
    let vm = serde_json::json!({ "name": "web1", "leaf": leaf });
    control.post("/v1/vms", &vm).expect(201);
    let socket = daemon.socket("web1");
    let mut client = Client::connect(&socket);
    client.write(8192, &[0x6c; 4096]);
    drop(client);
    let filler = disk.fill();
    let said = loop {
        let answer = control.delete("/v1/vms/web1");
        // Until its client is gone.
        if answer.status != 409 {
            break answer.problem(500, "failed");
        }
        std::thread::yield_now();
    };
    for part in ["its leaf was not closed", "No space left", "nothing is lost", "make room"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let map = dir.path().join("run/web1.map");
    assert!(said.contains(&format!("live map {} says", map.display())) && map.exists(), "{said}");
    disk.make_room(&filler);
    let (_, line) = said.split_once("and then: leafblk ").unwrap();
    let mut attach = Command::new(env!("CARGO_BIN_EXE_leafblk"));
    attach.args(line.split(' ')).arg("--runtime-dir").arg(dir.path().join("run"));
    assert!(attach.status().unwrap().success(), "{line}");
    assert!(Client::connect(&socket).read(8192, 4096) == [0x6c; 4096]);
    daemon.stop();
}
