//! A disk that is full under running guests: the one that it concerns is told, the
//! others go on, and all is well once there is room.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

use common::frontend::{IOERR, OK, T_FLUSH, T_OUT, Vmm};
use common::scene::{Scene, root_content};
use common::small_disk::SmallDisk;

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
    drop(vmm);
    scene.neighbour.goes_on(20);
    scene.neighbour.stop();
    scene.daemon.stop();
}
