//! Memory that is shared wrongly, or taken away.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, fcntl_get_seals, memfd_create};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::common::frontend::*;
use crate::common::scene::{ROOT_SECTORS, Scene, root_content};
use crate::{breaks_its_device, loses_its_connection};

fn shifted(vmm: &Vmm, guest: u64, user: u64) -> VhostUserMemoryRegionInfo {
    let mut region = vmm.region();
    region.guest_phys_addr = region.guest_phys_addr.wrapping_add(guest);
    region.userspace_addr = region.userspace_addr.wrapping_add(user);
    region
}

#[test]
fn memory_regions_that_overlap_lose_the_connection() {
    for (guest, user) in [(0, 0), (0x1000, 1 << 40), (1 << 40, 0x1000), (1 << 40, RAM_LEN - 1)] {
        loses_its_connection("overlap", |vmm| {
            let regions = [vmm.region(), shifted(vmm, guest, user)];
            assert!(vmm.frontend.set_mem_table(&regions).is_err());
        });
        loses_its_connection("overlap", |vmm| {
            vmm.share_ram();
            let other = shifted(vmm, guest, user);
            assert!(vmm.frontend.add_mem_region(&other).is_err());
        });
    }
}

#[test]
fn memory_that_wraps_around_or_is_longer_than_its_file_loses_the_connection() {
    for (guest, user, len, offset) in [
        (u64::MAX - 0xfff, 0x1000, 0x2000, 0),
        (0x1000, u64::MAX - 0xfff, 0x2000, 0),
        (0x1000, 0x1000, RAM_LEN + 0x1000, 0),
        (0x1000, 0x1000, RAM_LEN, 0x1000),
        (0x1000, 0x1000, 0x1000, u64::MAX - 0xfff),
        (0x1000, 0x1000, 1 << 62, 0),
        (0x1000, 0x1000, 0x1000, 1),
    ] {
        loses_its_connection("", |vmm| {
            let mut region = vmm.region();
            region.guest_phys_addr = guest;
            region.userspace_addr = user;
            region.memory_size = len;
            region.mmap_offset = offset;
            assert!(vmm.frontend.set_mem_table(&[region]).is_err(), "{guest:#x} {len:#x}");
        });
    }
}

#[test]
fn memory_that_is_no_file_of_memory_loses_the_connection() {
    loses_its_connection("", |vmm| {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let mut region = vmm.region();
        region.mmap_handle = std::os::fd::AsRawFd::as_raw_fd(&read);
        assert!(vmm.frontend.set_mem_table(&[region]).is_err());
    });
}

/// What the log says to do where a VM was started without `share=on`.
const SHARE_IT: &str = "start the VM with a shared memory backend (QEMU: share=on)";

#[test]
fn a_frontend_that_shares_no_memory_is_told_how_to_start_the_vm() {
    loses_its_connection(SHARE_IT, |vmm| {
        assert!(vmm.try_start_ring(Ring::new(0, 256)).is_err());
    });
    let need = RAM_LEN + 0x1000;
    let too_short = format!("needs {need} bytes of a file that has {RAM_LEN}; {SHARE_IT}");
    loses_its_connection(&too_short, |vmm| {
        let mut region = vmm.region();
        region.memory_size = need;
        assert!(vmm.frontend.set_mem_table(&[region]).is_err());
    });
}

#[test]
fn more_regions_than_slots_lose_the_connection() {
    loses_its_connection("more than 512 memory regions", |vmm| {
        vmm.share_ram();
        let page = |i: u64| VhostUserMemoryRegionInfo {
            memory_size: 0x1000,
            ..shifted(vmm, i << 32, i << 32)
        };
        let add = |i: u64| vmm.frontend.clone().add_mem_region(&page(i));
        (1..512).for_each(|i| add(i).map(|_| ()).unwrap());
        assert!(add(512).is_err());
    });
}

#[test]
fn memory_of_a_running_ring_that_never_comes_back_stops_that_queue_alone() {
    let mut scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    let region = vmm.region();
    vmm.frontend.remove_mem_region(&region).unwrap();
    scene.log.wait_for(&["VM victim", "queue 0 waits until its ring is in shared memory"]);
    for _ in 0..100 {
        vmm.offer(0, 0);
        vmm.kick(0);
    }
    scene.neighbour.goes_on(100);
    // What was removed can't be removed again.
    assert!(vmm.frontend.remove_mem_region(&region).is_err());
    scene.log.wait_for(&["VM victim", "disconnected its frontend", "no memory region"]);
    vmm.wait_closed();
    scene.all_is_well();
}

#[test]
fn memory_that_is_truncated_under_a_request_ends_the_device() {
    for (kind, sector) in [(T_IN, 8), (T_OUT, 8), (T_OUT, 9), (T_IN, ROOT_SECTORS - 8)] {
        breaks_its_device("took away memory", |vmm| {
            vmm.describe(vmm.rings[0].desc, 1, desc(DATA, 4096, NEXT | WRITE, 2));
            let header = vmm.header(kind, sector);
            vmm.ram_file.set_len(DATA - RAM_START).unwrap();
            let data = (DATA, 4096, kind == T_IN);
            let chain = [(header, 16, false), data, (Vmm::STATUS, 1, true)];
            vmm.describe_chain(vmm.rings[0].desc, 0, &chain);
            vmm.offer(0, 0);
            vmm.kick(0);
        });
    }
}

#[test]
fn a_ring_that_is_truncated_ends_the_device() {
    let mut scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    vmm.ram_file.set_len(0).unwrap();
    vmm.rings[0].kick.write(1).unwrap();
    scene.log.wait_for(&["VM victim", "its device stops", "took away memory"]);
    drop(vmm);
    scene.all_is_well();
}

/// A sparse file of memory.
fn sparse(len: u64) -> File {
    let file = File::from(memfd_create("sparse", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

fn region_of(file: &File, guest: u64, len: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: len,
        userspace_addr: guest,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }
}

#[test]
fn a_sparse_file_of_any_length_leaves_addresses_to_the_others() {
    let mut scene = Scene::new();
    let file = sparse(100 << 40);
    for at_once in [true, false] {
        let mut vmm = Vmm::negotiated(&scene.victim, VERSION_1);
        let mut refused = false;
        // Less and less, until nothing fits any more.
        for (place, shift) in (0..32).zip((12..47).rev()) {
            let region = region_of(&file, (place + 1) << 47, 1 << shift);
            refused |= match at_once {
                true => vmm.frontend.set_mem_table(&[region]).is_err(),
                false => vmm.frontend.add_mem_region(&region).is_err(),
            };
            if refused {
                break;
            }
        }
        assert!(refused, "64 TiB are mapped");
        scene.log.wait_for(&["VM victim", "disconnected its frontend", "a VM may have"]);
    }
    // As much as one may have is of no harm: threads start, others connect.
    let mut vmm = Vmm::running(&scene.victim);
    for i in 0..15 {
        let region = region_of(&file, (i + 1) << 47, 4 << 30);
        vmm.frontend.add_mem_region(&region).unwrap();
    }
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    vmm.write_sectors(3000, &[7; 512]);
    assert_eq!(vmm.request(T_FLUSH, 0, 0), (OK, 1));
    scene.neighbour.goes_on(20);
    drop(vmm);
    scene.all_is_well();
}

/// A file that the kernel reads from a disk when it is touched.
fn on_disk() -> File {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.set_len(RAM_LEN).unwrap();
    assert!(fcntl_get_seals(&file).is_err(), "target/ must be on a disk, not in memory");
    file
}

#[test]
fn memory_on_a_disk_loses_the_connection() {
    let file = on_disk();
    let advice = "give the VM a memory-backend-memfd, or a memory-backend-file whose mem-path is \
                  in /dev/shm or on a hugetlbfs mount (Cloud Hypervisor: --memory shared=on)";
    loses_its_connection(advice, |vmm| {
        let region = region_of(&file, RAM_START, RAM_LEN);
        assert!(vmm.frontend.set_mem_table(&[region]).is_err());
    });
    loses_its_connection("memory-backend-memfd", |vmm| {
        vmm.share_ram();
        let region = region_of(&file, 1 << 40, RAM_LEN);
        assert!(vmm.frontend.add_mem_region(&region).is_err());
    });
    loses_its_connection("inflight region", |vmm| {
        let layout = VhostUserInflight::new(RAM_LEN, 0, 1, 256);
        assert!(vmm.frontend.set_inflight_fd(&layout, file.as_raw_fd()).is_err());
    });
}
