//! Disks of 4 KiB logical blocks: what a guest is told, what it may ask for, and which
//! sizes such a disk can have.

use std::path::Path;

use serde_json::{Value, json};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use super::errors::served;
use crate::common::frontend::{
    DATA, F_BLK_SIZE, F_DISCARD, F_FLUSH, F_WRITE_ZEROES, IOERR, OK, Ring, T_DISCARD, T_IN, T_OUT,
    T_WRITE_ZEROES, VERSION_1, Vmm,
};
use crate::common::scene::root_content;
use crate::common::{Daemon, make_root};

const FEATURES: u64 = VERSION_1 | F_FLUSH | F_DISCARD | F_WRITE_ZEROES;

/// Starts a guest with these features; what its configuration space says.
fn guest(socket: &Path, features: u64) -> (Vmm, Vec<u8>) {
    let mut vmm = Vmm::negotiated(socket, features);
    let flags = VhostUserConfigFlags::WRITABLE;
    let (_, space) = vmm.frontend.get_config(0, 60, flags, &[0; 60]).unwrap();
    vmm.share_ram();
    vmm.start_ring(Ring::new(0, 256));
    (vmm, space)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A discard or write-zeroes of one segment; its status.
fn segment(vmm: &mut Vmm, kind: u32, sector: u64, count: u32) -> u8 {
    let bytes = [&sector.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
    vmm.write(DATA, &bytes);
    vmm.request(kind, 0, 16).0
}

#[test]
fn a_guest_of_4_kib_blocks_reads_and_writes_whole_blocks_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    let vm = json!({"name": "four", "block-size": 4096});
    assert_eq!(control.post("/v1/vms", &vm).expect(201)["block-size"], 4096);
    let (mut vmm, space) = guest(&daemon.socket("four"), FEATURES | F_BLK_SIZE);
    // virtio 1.3, 5.2.4: blk_size; physical_block_exp, alignment_offset; min_io_size;
    // discard_sector_alignment in sectors.
    assert_eq!(word(&space, 20), 4096);
    assert_eq!((&space[24..26], &space[26..28]), (&[0, 0][..], &[1, 0][..]));
    assert_eq!(word(&space, 44), 8);
    // The capacity stays in sectors of 512.
    assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), 4096);

    assert!(vmm.read_sectors(8, 16) == root_content(8, 16));
    vmm.write_sectors(16, &[0x16; 8192]);
    for (sector, sectors) in [(17, 8), (16, 1), (20, 4), (12, 8), (16, 12)] {
        for kind in [T_IN, T_OUT] {
            assert_eq!(vmm.request(kind, sector, sectors * 512).0, IOERR, "{kind} at {sector}");
        }
        for kind in [T_DISCARD, T_WRITE_ZEROES] {
            assert_eq!(segment(&mut vmm, kind, sector, sectors), IOERR, "{kind} at {sector}");
        }
    }
    assert_eq!(segment(&mut vmm, T_DISCARD, 24, 8), OK);
    assert_eq!(segment(&mut vmm, T_WRITE_ZEROES, 40, 8), OK);
    let mut expected = root_content(8, 56);
    expected[8 * 512..16 * 512].fill(0x16);
    expected[16 * 512..24 * 512].fill(0);
    expected[32 * 512..40 * 512].fill(0);
    assert!(vmm.read_sectors(8, 56) == expected);
    drop(vmm);

    // What the setting changes is how the disk is asked, not where its bytes are.
    control.delete("/v1/vms/four?force=true").expect(204);
    control.post("/v1/vms", &json!({"name": "four"})).expect(201);
    let (mut vmm, space) = guest(&daemon.socket("four"), FEATURES | F_BLK_SIZE);
    assert_eq!((word(&space, 20), space[24]), (512, 3));
    assert!(vmm.read_sectors(8, 56) == expected);
    assert!(vmm.read_sectors(17, 1) == [0x16; 512]);
    drop(vmm);
    daemon.stop();
}

#[test]
fn a_driver_that_does_not_know_of_block_sizes_is_served_in_sectors() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, control) = served(dir.path());
    control.post("/v1/vms", &json!({"name": "four", "block-size": 4096})).expect(201);
    let (mut vmm, _) = guest(&daemon.socket("four"), FEATURES);
    assert!(vmm.read_sectors(17, 3) == root_content(17, 3));
    vmm.write_sectors(17, &[0x17; 512]);
    assert_eq!(segment(&mut vmm, T_WRITE_ZEROES, 19, 1), OK);
    let mut expected = root_content(16, 8);
    expected[512..1024].fill(0x17);
    expected[3 * 512..4 * 512].fill(0);
    assert!(vmm.read_sectors(16, 8) == expected);
    drop(vmm);
    daemon.stop();
}

#[test]
fn a_disk_is_a_whole_number_of_its_blocks_or_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    // 2052 bytes over 64 blocks.
    let root = make_root(dir.path(), 64 * 8 + 4);
    let daemon = Daemon::start(dir.path(), &["--root", root.to_str().unwrap()]);
    let control = daemon.control();
    let attach = |more: Value| {
        let mut vm = json!({"name": "four", "block-size": 4096});
        vm.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        control.post("/v1/vms", &vm)
    };
    let next = "has 258KiB, which is no multiple of its block-size 4096; give it size=260KiB";
    let without = attach(json!({})).problem(409, "unfit");
    assert!(without.contains(next), "{without}");
    let read_only = attach(json!({"readonly": true})).problem(409, "unfit");
    assert!(read_only.contains("leave block-size out"), "{read_only}");
    for block in [0, 1024, 4097] {
        let other = attach(json!({"block-size": block})).problem(422, "invalid");
        assert!(other.contains("must be 512 or 4096"), "{other}");
    }
    assert!(!daemon.leaf("four").exists());

    attach(json!({"size": 266_240})).expect(201);
    let resize = |size: u64| control.post("/v1/vms/four/resize", &json!({"size": size}));
    let odd = resize(266_240 + 512).json();
    let detail = odd["detail"].as_str().unwrap();
    assert!(detail.contains("must be a multiple of 4096, its block-size"), "{detail}");
    assert_eq!(resize(266_240 + 4096).expect(200)["vm"]["size"], 270_336);
    let (mut vmm, _) = guest(&daemon.socket("four"), FEATURES | F_BLK_SIZE);
    let mut tail = root_content(512, 4);
    tail.resize(4096, 0);
    assert!(vmm.read_sectors(512, 8) == tail, "zeros past the root's end");
    drop(vmm);
    daemon.kill();

    // It has its blocks after a restart; and a leaf that was not made for them can't.
    let daemon = Daemon::start(dir.path(), &["--root", root.to_str().unwrap()]);
    let control = daemon.control();
    assert_eq!(control.get("/v1/vms/four").expect(200)["block-size"], 4096);
    control.post("/v1/vms", &json!({"name": "odd"})).expect(201);
    control.delete("/v1/vms/odd").expect(204);
    let odd = control.post("/v1/vms", &json!({"name": "odd", "block-size": 4096}));
    assert!(odd.problem(409, "unfit").contains(next));
    let grown = json!({"name": "odd", "block-size": 4096, "size": 266_240});
    control.post("/v1/vms", &grown).expect(201);
    daemon.stop();
}
