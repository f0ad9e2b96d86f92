//! Guest memory in many pieces, that come and go.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::common::Daemon;
use crate::common::frontend::*;
use crate::common::scene::root_content;
use crate::{Served, serve};

/// What each DIMM has.
const DIMM: u64 = 0x4000;

/// Memory beside the VM's first region, in pieces that don't adjoin.
struct Dimms {
    file: File,
    count: u64,
}

impl Dimms {
    fn new(count: u64) -> Self {
        let fd = rustix::fs::memfd_create("dimms", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(count * DIMM).unwrap();
        Self { file, count }
    }

    /// First guest address of one.
    fn guest_addr(&self, number: u64) -> u64 {
        (8 << 30) + number * 2 * DIMM
    }

    fn region(&self, number: u64) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.guest_addr(number),
            memory_size: DIMM,
            // In another order than the guest's.
            userspace_addr: (1 << 40) + (self.count - number) * DIMM,
            mmap_offset: number * DIMM,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    fn content(&self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; DIMM as usize];
        self.file.read_exact_at(&mut bytes, number * DIMM).unwrap();
        bytes
    }
}

/// Reads the disk into these DIMMs, one segment in each, and looks at every byte.
fn read_into(vmm: &mut Vmm, dimms: &Dimms, numbers: &[u64]) {
    let sectors = DIMM / 512;
    // The root has 4096 sectors.
    let first = numbers[0] * 7 % (4096 - numbers.len() as u64 * sectors);
    let header = vmm.header(T_IN, first);
    let mut buffers = vec![(header, 16, false)];
    for number in numbers {
        dimms.file.write_all_at(&[0xa5; DIMM as usize], number * DIMM).unwrap();
        buffers.push((dimms.guest_addr(*number), DIMM as u32, true));
    }
    buffers.push((Vmm::STATUS, 1, true));
    let len = numbers.len() as u32 * DIMM as u32;
    assert_eq!(vmm.run_chain(0, &buffers), (OK, len + 1), "into {numbers:?}");
    for (i, number) in numbers.iter().enumerate() {
        let expected = root_content(first + i as u64 * sectors, sectors);
        assert!(dimms.content(*number) == expected, "in DIMM {number}");
    }
}

#[test]
fn a_guest_has_509_memory_slots_and_uses_all_of_them() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    assert!(vmm.frontend.get_max_mem_slots().unwrap() >= 509);
    let open_files = || std::fs::read_dir(format!("/proc/{}/fd", served.daemon.child.id()));
    let open_before = open_files().unwrap().count();
    let dimms = Dimms::new(508);
    for number in 0..dimms.count {
        vmm.frontend.add_mem_region(&dimms.region(number)).unwrap();
        if number % 50 == 0 {
            read_into(&mut vmm, &dimms, &[number]);
        }
    }
    let open_now = open_files().unwrap().count();
    assert!(open_now < open_before + 20, "descriptors are kept: {open_before}, {open_now}");
    // Each, in an order that jumps; many in one request.
    let order: Vec<u64> = (0..dimms.count).map(|i| i * 89 % dimms.count).collect();
    for numbers in order.chunks(61) {
        read_into(&mut vmm, &dimms, numbers);
    }
    for number in order {
        vmm.frontend.remove_mem_region(&dimms.region(number)).unwrap();
        if number % 50 == 0 && number > 0 {
            read_into(&mut vmm, &dimms, &[0]);
        }
        if number == 0 {
            vmm.frontend.add_mem_region(&dimms.region(0)).unwrap();
        }
    }
    read_into(&mut vmm, &dimms, &[0]);
    drop(vmm);
    served.daemon.stop();
}

/// The VM's memory in two regions that are cut at some page: as QEMU's low memory when
/// firmware changes what is writable below 1 MiB. Those are other mappings of the file.
fn cut_at(vmm: &Vmm, at: u64) -> [VhostUserMemoryRegionInfo; 2] {
    let whole = vmm.region();
    let high = VhostUserMemoryRegionInfo {
        guest_phys_addr: whole.guest_phys_addr + at,
        memory_size: RAM_LEN - at,
        userspace_addr: whole.userspace_addr + at,
        mmap_offset: at,
        mmap_handle: whole.mmap_handle,
    };
    [VhostUserMemoryRegionInfo { memory_size: at, ..whole }, high]
}

/// A write of a sector full of `fill`, on descriptors of its own.
fn offer_write(vmm: &mut Vmm, slot: u16, sector: u64, fill: u8) {
    let at = HEADERS + 256 * u64::from(1 + slot);
    let mut header = [0; 16];
    header[..4].copy_from_slice(&T_OUT.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    vmm.write(at, &header);
    vmm.write(at + 64, &[NO_STATUS]);
    let data = DATA + 4096 * u64::from(1 + slot);
    vmm.write(data, &[fill; 512]);
    let buffers = [(at, 16, false), (data, 512, false), (at + 64, 1, true)];
    vmm.describe_chain(vmm.rings[0].desc, 4 + 3 * slot, &buffers);
    vmm.offer(0, 4 + 3 * slot);
    vmm.kick(0);
}

fn status_of_write(vmm: &Vmm, slot: u16) -> u8 {
    vmm.read(HEADERS + 256 * u64::from(1 + slot) + 64, 1)[0]
}

#[test]
fn a_ring_whose_memory_is_taken_away_and_given_back_goes_on_where_it_was() {
    let served = serve("web1");
    let mut vmm = Vmm::tracked(&served.socket, 1, 256);
    let mut there = vec![vmm.region()];
    for round in 0..40u8 {
        vmm.write_sectors(8, &[round; 4096]);
        // In flight when it goes, as far as the device is slow.
        (0..8).for_each(|slot| offer_write(&mut vmm, slot, 100 + u64::from(slot), round));
        // As QEMU does: all that go, the last one first, then all that come. Each is
        // acknowledged. The ring may be there while data that it names is not.
        for region in there.iter().rev() {
            vmm.frontend.remove_mem_region(region).unwrap();
        }
        // Kicks that nobody can serve.
        (8..16).for_each(|slot| offer_write(&mut vmm, slot, 100 + u64::from(slot), round));
        assert!((8..16).all(|slot| status_of_write(&vmm, slot) == NO_STATUS));
        there = match round % 3 {
            0 => vec![vmm.region()],
            // The ring's descriptors are in one, its indices in the other.
            1 => cut_at(&vmm, 0x8000).to_vec(),
            // The requests' data is in the other.
            _ => cut_at(&vmm, 0x20_0000).to_vec(),
        };
        for region in &there {
            vmm.frontend.add_mem_region(region).unwrap();
        }
        let mut heads: Vec<u32> = (0..16).map(|_| vmm.used(0).0).collect();
        heads.sort_unstable();
        assert_eq!(heads, (0..16).map(|slot| 4 + 3 * slot).collect::<Vec<_>>());
        assert!((0..16).all(|slot| status_of_write(&vmm, slot) == OK));
        assert!(vmm.read_sectors(100, 16) == [round; 16 * 512]);
        assert!(vmm.read_sectors(8, 8) == [round; 4096]);
    }
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_ring_whose_memory_is_away_can_be_stopped_called_and_set_up_again() {
    let served = serve("web1");
    let mut vmm = Vmm::tracked(&served.socket, 1, 256);
    vmm.write_sectors(8, &[1; 4096]);
    let region = vmm.region();
    vmm.frontend.remove_mem_region(&region).unwrap();
    vmm.frontend.set_vring_call(0, &vmm.rings[0].call).unwrap();
    vmm.frontend.set_vring_enable(0, false).unwrap();
    vmm.frontend.set_vring_enable(0, true).unwrap();
    offer_write(&mut vmm, 0, 20, 7);
    let mut ring = vmm.rings.remove(0);
    // The write was not taken.
    let base = vmm.frontend.get_vring_base(0).unwrap();
    assert_eq!(base, u32::from(ring.avail_index.wrapping_sub(1)));
    vmm.share_ram();
    ring.avail_index = base as u16;
    vmm.start_ring(ring);
    vmm.rings[0].avail_index += 1;
    assert_eq!(vmm.used(0).0, 4);
    // A whole table without the ring is as good as a removal.
    let dimms = Dimms::new(1);
    vmm.frontend.set_mem_table(&[dimms.region(0)]).unwrap();
    offer_write(&mut vmm, 1, 21, 8);
    vmm.share_ram();
    assert_eq!(vmm.used(0).0, 7);
    assert!(vmm.read_sectors(20, 2) == [[7; 512], [8; 512]].concat());
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_daemon_that_is_killed_while_the_rings_memory_is_away_leaves_the_requests_to_the_next() {
    let served = serve("web1");
    let mut vmm = Vmm::tracked(&served.socket, 1, 256);
    vmm.write_sectors(8, &[1; 4096]);
    (0..8).for_each(|slot| offer_write(&mut vmm, slot, 100 + u64::from(slot), 0x31));
    let region = vmm.region();
    vmm.frontend.remove_mem_region(&region).unwrap();
    (8..16).for_each(|slot| offer_write(&mut vmm, slot, 100 + u64::from(slot), 0x31));
    let Served { daemon, socket, _dir: dir } = served;
    daemon.kill();
    let root = dir.path().join("root.raw");
    let daemon = Daemon::start(dir.path(), &["--root", root.to_str().unwrap(), "--vm", "web1"]);
    vmm.reconnect(&socket).unwrap();
    let mut heads: Vec<u32> = (0..16).map(|_| vmm.used(0).0).collect();
    heads.sort_unstable();
    assert_eq!(heads, (0..16).map(|slot| 4 + 3 * slot).collect::<Vec<_>>());
    assert!(vmm.read_sectors(100, 16) == [0x31; 16 * 512]);
    drop(vmm);
    daemon.stop();
}

#[test]
fn a_request_whose_memory_is_away_fails_and_the_device_goes_on() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    let dimms = Dimms::new(2);
    let away = dimms.region(1);
    for region in [&dimms.region(0), &away] {
        vmm.frontend.add_mem_region(region).unwrap();
    }
    for _ in 0..2 {
        read_into(&mut vmm, &dimms, &[0, 1]);
        vmm.frontend.remove_mem_region(&away).unwrap();
        for (kind, to_guest) in [(T_IN, true), (T_OUT, false)] {
            let header = vmm.header(kind, 600);
            let data = (dimms.guest_addr(1), DIMM as u32, to_guest);
            let answer = vmm.run_chain(0, &[(header, 16, false), data, (Vmm::STATUS, 1, true)]);
            assert_eq!(answer, (IOERR, 1));
        }
        // Nothing of it was written.
        assert!(vmm.read_sectors(600, 32) == root_content(600, 32));
        read_into(&mut vmm, &dimms, &[0]);
        vmm.frontend.add_mem_region(&away).unwrap();
    }
    read_into(&mut vmm, &dimms, &[0, 1]);
    drop(vmm);
    served.daemon.stop();
}

#[test]
fn a_request_whose_status_is_away_waits_for_it() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    let dimms = Dimms::new(1);
    vmm.write(DATA, &[0xa5; 4096]);
    let header = vmm.header(T_IN, 8);
    let status = dimms.guest_addr(0);
    let buffers = [(header, 16, false), (DATA, 4096, true), (status, 1, true)];
    vmm.describe_chain(vmm.rings[0].desc, 0, &buffers);
    vmm.offer(0, 0);
    vmm.kick(0);
    dimms.file.write_all_at(&[NO_STATUS], 0).unwrap();
    vmm.frontend.add_mem_region(&dimms.region(0)).unwrap();
    assert_eq!(vmm.used(0), (0, 4097));
    assert_eq!(dimms.content(0)[0], OK);
    assert!(vmm.read(DATA, 4096) == root_content(8, 8));
    drop(vmm);
    served.daemon.stop();
}
