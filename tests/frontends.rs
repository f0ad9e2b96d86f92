//! The messages that Cloud Hypervisor and Firecracker send, with the crate that
//! both of them send them with; then requests as guests may lay them out.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

#[path = "frontends/bsd.rs"]
mod bsd;
mod common;
#[path = "frontends/layouts.rs"]
mod layouts;
#[path = "frontends/memory.rs"]
mod memory;
#[path = "frontends/rules.rs"]
mod rules;
#[path = "frontends/write_cache.rs"]
mod write_cache;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use common::frontend::*;
use common::scene::{ROOT_SECTORS, root_content};
use common::{Client, Daemon, make_root, wait_until};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

/// A daemon with one VM, named `web1`.
struct Served {
    daemon: Daemon,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

fn serve(vm: &str) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let daemon = Daemon::start(dir.path(), &["--root", root.to_str().unwrap(), "--vm", vm]);
    let socket = daemon.socket("web1");
    Served { daemon, socket, _dir: dir }
}

fn config(frontend: &mut Frontend, offset: u32, size: u32) -> Vec<u8> {
    let room = vec![0; size as usize];
    let (body, bytes) =
        frontend.get_config(offset, size, VhostUserConfigFlags::WRITABLE, &room).unwrap();
    assert_eq!((body.offset, body.size), (offset, size));
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Reads and writes that show the whole way works.
fn exercise(vmm: &mut Vmm) {
    assert!(vmm.read_sectors(0, 128) == root_content(0, 128));
    assert!(vmm.read_sectors(4095, 1) == root_content(4095, 1));
    vmm.write_sectors(608, &[0x5c; 8192]);
    let mut expected = root_content(600, 32);
    expected[8 * 512..24 * 512].fill(0x5c);
    assert!(vmm.read_sectors(600, 32) == expected);
    assert_eq!(vmm.request(T_FLUSH, 0, 0), (OK, 1));
    assert_eq!(vmm.request(T_GET_ID, 0, 20), (OK, 21));
    assert_eq!(vmm.read(DATA, 20), b"web1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

// Cloud Hypervisor: virtio-devices/src/vhost_user/{blk,vu_common_ctrl}.rs.

const CLOUD_HYPERVISOR_PROTOCOL: Protocol = Protocol::CONFIG
    .union(Protocol::MQ)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::REPLY_ACK)
    .union(Protocol::INFLIGHT_SHMFD)
    .union(Protocol::LOG_SHMFD);

/// What it sends to get to know a disk: before the guest runs.
fn cloud_hypervisor_connects(socket: &Path, queues: u64) -> (Vmm, u64, Vec<u8>) {
    let blk = [1, 2, 4, 5, 6, 9, 10, 11, 13, 14];
    let mut wanted: u64 = blk.iter().map(|bit| 1 << bit).sum();
    wanted |= VERSION_1 | EVENT_IDX | INDIRECT | PROTOCOL;
    wanted |= if queues > 1 { F_MQ } else { 0 };
    let mut vmm = Vmm::connect(socket);
    vmm.frontend.set_owner().unwrap();
    let features = wanted & vmm.frontend.get_features().unwrap();
    let protocol = CLOUD_HYPERVISOR_PROTOCOL & vmm.frontend.get_protocol_features().unwrap();
    vmm.frontend.set_protocol_features(protocol).unwrap();
    assert!(protocol.contains(Protocol::REPLY_ACK | Protocol::CONFIG | Protocol::MQ));
    vmm.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert!(vmm.frontend.get_queue_num().unwrap() >= queues);
    let space = config(&mut vmm.frontend, 0, 60);
    (vmm, features, space)
}

/// What it sends when the guest's driver is ready.
fn cloud_hypervisor_activates(vmm: &mut Vmm, features: u64, queues: usize) {
    vmm.features = features;
    vmm.frontend.set_features(features).unwrap();
    vmm.share_ram();
    let rings: Vec<Ring> = (0..queues).map(|i| Ring::new(i, 128)).collect();
    for ring in &rings {
        vmm.frontend.set_vring_num(ring.index, ring.size).unwrap();
    }
    for ring in &rings {
        vmm.frontend.set_vring_addr(ring.index, &vmm.ring_addresses(ring)).unwrap();
        vmm.frontend.set_vring_base(ring.index, 0).unwrap();
        vmm.frontend.set_vring_call(ring.index, &ring.call).unwrap();
        vmm.frontend.set_vring_kick(ring.index, &ring.kick).unwrap();
    }
    for ring in rings {
        vmm.frontend.set_vring_enable(ring.index, true).unwrap();
        vmm.rings.push(ring);
    }
}

#[test]
fn cloud_hypervisor_gets_a_disk_that_works() {
    let served = serve("web1");
    let (mut vmm, features, space) = cloud_hypervisor_connects(&served.socket, 1);
    assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), ROOT_SECTORS);
    assert_eq!(space[32], 1, "wce");
    // The guest takes all but the bit that is not its business.
    cloud_hypervisor_activates(&mut vmm, features, 1);
    exercise(&mut vmm);
    // Pause and resume.
    vmm.frontend.set_vring_enable(0, false).unwrap();
    vmm.frontend.set_vring_enable(0, true).unwrap();
    exercise(&mut vmm);
    // The guest reboots: rings are disabled, then all is set up again.
    vmm.frontend.set_vring_enable(0, false).unwrap();
    let ring = vmm.rings.remove(0);
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), u32::from(ring.avail_index));
    vmm.write(ring.desc, &[0; 0x10000]);
    cloud_hypervisor_activates(&mut vmm, features, 1);
    exercise(&mut vmm);
    served.daemon.stop();
}

#[test]
fn cloud_hypervisor_adds_memory_while_the_guest_runs() {
    let served = serve("web1");
    let (mut vmm, features, _) = cloud_hypervisor_connects(&served.socket, 1);
    cloud_hypervisor_activates(&mut vmm, features, 1);
    let (_ram, file) = guest_ram();
    let more = VhostUserMemoryRegionInfo {
        guest_phys_addr: 8 << 30,
        memory_size: 1 << 20,
        userspace_addr: 0x10_0000,
        mmap_offset: 0x10_0000,
        mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&file),
    };
    vmm.frontend.add_mem_region(&more).unwrap();
    let header = vmm.header(T_IN, 8);
    let buffers = [(header, 16, false), (more.guest_phys_addr, 4096, true), (Vmm::STATUS, 1, true)];
    assert_eq!(vmm.run_chain(0, &buffers), (OK, 4097));
    let mut bytes = [0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0x10_0000).unwrap();
    assert!(bytes[..] == root_content(8, 8));
    vmm.frontend.remove_mem_region(&more).unwrap();
    exercise(&mut vmm);
    served.daemon.stop();
}

#[test]
fn two_queues_work_side_by_side() {
    let served = serve("web1,queues=2");
    let (mut vmm, features, space) = cloud_hypervisor_connects(&served.socket, 2);
    assert_eq!(space[34..36], [2, 0], "num_queues");
    cloud_hypervisor_activates(&mut vmm, features, 2);
    for round in 0..200u64 {
        for queue in [0, 1] {
            let at = HEADERS + 0x100 * (1 + queue as u64);
            let mut header = [0; 16];
            header[8..].copy_from_slice(&(round * 8 + queue as u64).to_le_bytes());
            vmm.write(at, &header);
            let data = DATA + 0x1_0000 * queue as u64;
            let buffers = [(at, 16, false), (data, 512, true), (at + 16, 1, true)];
            vmm.describe_chain(vmm.rings[queue].desc, 0, &buffers);
            vmm.offer(queue, 0);
            vmm.kick(queue);
        }
        for queue in [1, 0] {
            assert_eq!(vmm.used(queue), (0, 513));
            let data = vmm.read(DATA + 0x1_0000 * queue as u64, 512);
            assert!(data == root_content(round * 8 + queue as u64, 1));
        }
    }
    served.daemon.stop();
}

#[test]
fn a_queue_beyond_the_first_may_stay_unused() {
    let served = serve("web1,queues=2");
    let (mut vmm, features, _) = cloud_hypervisor_connects(&served.socket, 2);
    cloud_hypervisor_activates(&mut vmm, features, 1);
    exercise(&mut vmm);
    served.daemon.stop();
}

// Firecracker: src/vmm/src/devices/virtio/{vhost_user,block/vhost_user/device}.rs.

/// Only CONFIG and no acknowledgements; a queue of 256.
fn firecracker(socket: &Path, cache_is_writeback: bool, guest: u64) -> (Vmm, Vec<u8>) {
    let mut wanted = VERSION_1 | EVENT_IDX | PROTOCOL | F_RO;
    wanted |= if cache_is_writeback { F_FLUSH } else { 0 };
    let mut vmm = Vmm::connect(socket);
    vmm.frontend.set_owner().unwrap();
    let features = wanted & vmm.frontend.get_features().unwrap();
    let protocol = Protocol::CONFIG & vmm.frontend.get_protocol_features().unwrap();
    vmm.frontend.set_protocol_features(protocol).unwrap();
    let space = config(&mut vmm.frontend, 0, 60);
    vmm.features = features & (guest | PROTOCOL);
    vmm.frontend.set_features(vmm.features).unwrap();
    vmm.share_ram();
    vmm.start_ring(Ring::new(0, 256));
    (vmm, space)
}

#[test]
fn firecracker_gets_a_disk_that_works() {
    let served = serve("web1");
    for (writeback, guest) in [(true, u64::MAX), (false, u64::MAX), (true, !EVENT_IDX)] {
        let (mut vmm, space) = firecracker(&served.socket, writeback, guest);
        assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), ROOT_SECTORS);
        exercise(&mut vmm);
        // PATCH /drives asks for the space again.
        assert_eq!(config(&mut vmm.frontend, 0, 60), space);
    }
    served.daemon.stop();
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let served = serve("web1,readonly");
    let (mut vmm, _) = firecracker(&served.socket, true, u64::MAX);
    assert!(vmm.features & F_RO != 0, "VIRTIO_BLK_F_RO is offered");
    assert!(vmm.read_sectors(0, 128) == root_content(0, 128));
    for kind in [T_OUT, T_DISCARD, T_WRITE_ZEROES] {
        assert_eq!(vmm.request(kind, 0, 512).0, IOERR);
    }
    assert_eq!(vmm.request(T_FLUSH, 0, 0).0, OK);
    assert!(vmm.read_sectors(0, 128) == root_content(0, 128));
    assert!(!served.daemon.leaf("web1").exists());
    served.daemon.stop();
}

// What is offered.

#[test]
fn a_disk_offers_exactly_what_it_can_do() {
    // Numbers of virtio 1.3, 5.2.3 and 6, and of vhost-user, "Protocol features".
    let blk = [
        2,  // SEG_MAX
        6,  // BLK_SIZE
        9,  // FLUSH
        10, // TOPOLOGY
        11, // CONFIG_WCE
        12, // MQ
        28, // INDIRECT_DESC
        29, // EVENT_IDX
        30, // vhost-user's own: there are protocol features
        32, // VERSION_1
    ];
    let writable = [13, 14]; // DISCARD, WRITE_ZEROES
    let readonly = [5]; // RO
    let protocol = [
        0,  // MQ
        3,  // REPLY_ACK
        5,  // BACKEND_REQ
        9,  // CONFIG
        12, // INFLIGHT_SHMFD
        13, // RESET_DEVICE
        15, // CONFIGURE_MEM_SLOTS
        16, // STATUS
    ];
    let bits = |numbers: &[u32]| numbers.iter().fold(0, |all, number| all | 1u64 << number);
    for (vm, special) in [("web1", &writable[..]), ("web1,readonly", &readonly)] {
        let served = serve(vm);
        let vmm = Vmm::connect(&served.socket);
        vmm.frontend.set_owner().unwrap();
        let offered = vmm.frontend.get_features().unwrap();
        assert_eq!(offered, bits(&blk) | bits(special), "{vm}: {offered:#x}");
        (&mut &vmm.stream).write_all(&message(15, 0, &[])).unwrap();
        let mut reply = [0; 20];
        (&mut &vmm.stream).read_exact(&mut reply).unwrap();
        assert_eq!(word(&reply, 0), 15, "GET_PROTOCOL_FEATURES");
        let offered = u64::from_le_bytes(reply[12..].try_into().unwrap());
        assert_eq!(offered, bits(&protocol), "{vm}: {offered:#x}");
        drop(vmm);
        served.daemon.stop();
    }
}

// The configuration space.

#[test]
fn the_configuration_space_can_be_read_in_any_piece() {
    let served = serve("web1,queues=3,size=10MiB");
    let mut vmm = Vmm::negotiated(&served.socket, VERSION_1);
    let whole = config(&mut vmm.frontend, 0, 256);
    assert_eq!(u64::from_le_bytes(whole[..8].try_into().unwrap()), (10 << 20) / 512);
    assert_eq!(word(&whole, 12), 126, "seg_max");
    assert_eq!(word(&whole, 20), 512, "blk_size");
    assert_eq!(whole[24], 3, "physical_block_exp");
    assert_eq!(whole[32], 1, "wce");
    assert_eq!(whole[34..36], [3, 0], "num_queues");
    assert!(word(&whole, 36) > 0 && word(&whole, 40) > 0, "discard limits");
    assert!(word(&whole, 48) > 0 && word(&whole, 52) > 0, "write-zeroes limits");
    assert_eq!(whole[56], 1, "write_zeroes_may_unmap");
    for (offset, size) in [(0, 1), (0, 8), (1, 7), (20, 4), (32, 1), (33, 35), (255, 1), (7, 249)] {
        let piece = config(&mut vmm.frontend, offset, size);
        assert!(piece == whole[offset as usize..][..size as usize], "{size} at {offset}");
    }
    served.daemon.stop();
}

#[test]
fn a_guest_that_clears_the_write_back_field_gets_writes_that_go_through() {
    let served = serve("web1");
    let mut vmm =
        Vmm::running_with(&served.socket, VERSION_1 | EVENT_IDX | F_FLUSH | F_CONFIG_WCE, 128);
    let flags = VhostUserConfigFlags::WRITABLE;
    for value in [0u8, 1, 0] {
        vmm.frontend.set_config(32, flags, &[value]).unwrap();
        assert_eq!(config(&mut vmm.frontend, 32, 1), [value]);
        vmm.write_sectors(24, &[value + 1; 4096]);
        vmm.write_sectors(35, &[value + 7; 512]);
        assert!(vmm.read_sectors(24, 8) == [value + 1; 4096]);
        assert!(vmm.read_sectors(35, 1) == [value + 7; 512]);
    }
    // They went through: the map in the leaf's file knows them after a power
    // cut, which takes the live map in the runtime directory away.
    let Served { daemon, _dir: dir, .. } = served;
    daemon.kill();
    drop(vmm);
    std::fs::remove_dir_all(dir.path().join("run")).unwrap();
    let root = dir.path().join("root.raw");
    let daemon = Daemon::start(dir.path(), &["--root", root.to_str().unwrap(), "--vm", "web1"]);
    let mut client = Client::connect(&daemon.socket("web1"));
    assert!(client.read(24 * 512, 4096) == [1; 4096]);
    assert!(client.read(35 * 512, 512) == [7; 512]);
    drop(client);
    daemon.stop();
}

// Discard and write zeroes.

fn zero(vmm: &mut Vmm, kind: u32, segments: &[(u64, u32, u32)]) -> u8 {
    let mut bytes = Vec::new();
    for (sector, count, flags) in segments {
        bytes.extend_from_slice(&sector.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
    }
    vmm.write(DATA, &bytes);
    vmm.request(kind, 0, bytes.len() as u32).0
}

#[test]
fn what_is_discarded_or_zeroed_reads_as_zeros_and_its_surroundings_stay() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    vmm.write_sectors(1000, &[0xff; 100 * 512]);
    for (kind, flags, sector) in [
        (T_DISCARD, 0, 100),
        (T_WRITE_ZEROES, 0, 300),
        (T_WRITE_ZEROES, 1, 500),
        (T_DISCARD, 0, 1001),
    ] {
        let segments = [(sector, 17, flags), (sector + 20, 1, flags), (sector + 30, 0, flags)];
        assert_eq!(zero(&mut vmm, kind, &segments), OK);
        let before =
            if sector > 1000 { vec![0xff; 32 * 512] } else { root_content(sector - 1, 32) };
        let mut expected = before;
        expected[512..18 * 512].fill(0);
        expected[21 * 512..22 * 512].fill(0);
        assert!(vmm.read_sectors(sector - 1, 32) == expected, "type {kind} at {sector}");
    }
    // The last sectors of the disk.
    assert_eq!(zero(&mut vmm, T_DISCARD, &[(ROOT_SECTORS - 3, 3, 0)]), OK);
    assert!(vmm.read_sectors(ROOT_SECTORS - 3, 3) == [0; 1536]);
    served.daemon.stop();
}

// Resets, reconnections, second clients.

#[test]
fn a_reset_device_can_be_set_up_again() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    exercise(&mut vmm);
    for _ in 0..3 {
        vmm.frontend.reset_device().unwrap();
        let ring = vmm.rings.remove(0);
        vmm.write(ring.desc, &[0; 0x10000]);
        vmm.frontend.set_features(VERSION_1 | PROTOCOL).unwrap();
        vmm.share_ram();
        vmm.start_ring(Ring::new(0, 64));
        exercise(&mut vmm);
    }
    served.daemon.stop();
}

/// SET_STATUS with an acknowledgement, then GET_STATUS.
fn change_status(stream: &UnixStream, status: u64) -> (u64, u64) {
    let mut replies = [0; 40];
    (&mut &*stream).write_all(&message(39, 8, &status.to_le_bytes())).unwrap();
    (&mut &*stream).write_all(&message(40, 0, &[])).unwrap();
    (&mut &*stream).read_exact(&mut replies).unwrap();
    assert_eq!((word(&replies, 0), word(&replies, 20)), (39, 40));
    assert_eq!((word(&replies, 4), word(&replies, 24)), (5, 5), "replies of version 1");
    let number = |at: usize| u64::from_le_bytes(replies[at..at + 8].try_into().unwrap());
    (number(12), number(32))
}

#[test]
fn the_status_is_kept_and_zero_resets_the_device() {
    let served = serve("web1");
    let mut vmm = Vmm::connect(&served.socket);
    let status = Protocol::STATUS | Protocol::REPLY_ACK | Protocol::CONFIG;
    vmm.negotiate(VERSION_1 | EVENT_IDX, status);
    for value in [1, 3, 11] {
        assert_eq!(change_status(&vmm.stream, value), (0, value));
    }
    vmm.share_ram();
    vmm.start_ring(Ring::new(0, 128));
    assert_eq!(change_status(&vmm.stream, 15), (0, 15));
    exercise(&mut vmm);
    assert_eq!(change_status(&vmm.stream, 0), (0, 0));
    let ring = vmm.rings.remove(0);
    vmm.write(ring.desc, &[0; 0x10000]);
    vmm.frontend.set_features(VERSION_1 | PROTOCOL).unwrap();
    vmm.share_ram();
    vmm.start_ring(Ring::new(0, 128));
    exercise(&mut vmm);
    served.daemon.stop();
}

#[test]
fn a_second_client_is_turned_away_and_the_first_one_keeps_its_disk() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    for _ in 0..10 {
        let second = UnixStream::connect(&served.socket).unwrap();
        second.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(is_closed(&second));
        assert!(Client::try_connect(&served.socket).is_err());
        exercise(&mut vmm);
    }
    drop(vmm);
    Client::connect(&served.socket).read(0, 512);
    served.daemon.stop();
}

#[test]
fn a_frontend_may_come_back_again_and_again() {
    let served = serve("web1");
    for round in 0..50u64 {
        let features = if round % 2 == 0 { VERSION_1 | EVENT_IDX } else { VERSION_1 };
        let mut vmm = Vmm::running_with(&served.socket, features, 64);
        if round > 0 {
            assert!(vmm.read_sectors(2000 + round - 1, 1) == [round as u8; 512]);
        }
        vmm.write_sectors(2000 + round, &[round as u8 + 1; 512]);
        assert!(vmm.read_sectors(round, 8) == root_content(round, 8));
    }
    served.daemon.stop();
}

/// Mappings of a guest's memory that the daemon has.
fn mappings(daemon: &Daemon) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.child.id())).unwrap();
    maps.lines().filter(|line| line.ends_with("/memfd:guest (deleted)")).count()
}

#[test]
fn a_guests_memory_is_unmapped_when_its_frontend_is_gone() {
    let served = serve("web1");
    let gone = || mappings(&served.daemon) == 0;
    assert!(gone());
    let mut vmm = Vmm::running(&served.socket);
    exercise(&mut vmm);
    assert_eq!(mappings(&served.daemon), 1);
    drop(vmm);
    wait_until("the memory of a frontend that hung up is unmapped", gone);
    // One that is hung up on, and lives on.
    let mut vmm = Vmm::running(&served.socket);
    exercise(&mut vmm);
    assert_eq!(mappings(&served.daemon), 1);
    (&mut &vmm.stream).write_all(&message(u32::MAX, 0, &[])).unwrap();
    vmm.wait_closed();
    wait_until("the memory of a frontend that was hung up on is unmapped", gone);
    served.daemon.stop();
}

#[test]
fn a_ring_goes_on_where_another_frontend_left_it() {
    let served = serve("web1");
    let mut vmm = Vmm::running_with(&served.socket, VERSION_1 | EVENT_IDX, 4);
    for i in 0..70_000u64 {
        let sector = i % 4000;
        assert_eq!(vmm.request(T_IN, sector, 512), (OK, 513));
        if i % 10_000 == 0 {
            assert!(vmm.read(DATA, 512) == root_content(sector, 1));
            // Stop, ask for the base, start again: as for a migration.
            let base = vmm.frontend.get_vring_base(0).unwrap();
            assert_eq!(base, u32::from(vmm.rings[0].avail_index));
            let ring = vmm.rings.remove(0);
            vmm.start_ring(ring);
        }
    }
    served.daemon.stop();
}
