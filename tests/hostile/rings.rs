//! Rings and descriptor chains.

use vhost::VhostBackend;

use crate::common::frontend::*;
use crate::common::scene::{Scene, root_content};
use crate::{TABLE_AT, breaks_its_device, loses_its_connection, offer_raw};

#[test]
fn an_avail_index_beyond_the_queue_ends_the_device() {
    breaks_its_device("ahead", |vmm| {
        let ahead = vmm.rings[0].avail_index.wrapping_add(257);
        vmm.show(0, ahead);
    });
}

#[test]
fn an_avail_index_that_goes_back_ends_the_device() {
    breaks_its_device("ahead", |vmm| {
        let back = vmm.rings[0].avail_index.wrapping_sub(1);
        vmm.show(0, back);
    });
}

#[test]
fn a_head_beyond_the_queue_ends_the_device() {
    breaks_its_device("descriptor 256 does not exist", |vmm| {
        vmm.offer(0, 256);
        vmm.kick(0);
    });
}

#[test]
fn a_next_descriptor_beyond_the_queue_ends_the_device() {
    breaks_its_device("descriptor 65535 does not exist", |vmm| {
        offer_raw(vmm, &[desc(HEADERS, 16, NEXT, u16::MAX)]);
    });
}

#[test]
fn a_descriptor_that_points_at_itself_ends_the_device() {
    breaks_its_device("loops", |vmm| offer_raw(vmm, &[desc(DATA, 512, NEXT | WRITE, 0)]));
}

#[test]
fn a_loop_of_empty_descriptors_ends_the_device() {
    breaks_its_device("loops", |vmm| {
        offer_raw(vmm, &[desc(DATA, 0, NEXT, 1), desc(DATA, 0, NEXT, 0)]);
    });
}

const END: u64 = RAM_START + RAM_LEN;
/// Places that are not in the guest's memory, or not with all of their bytes.
const OUTSIDE: [(u64, u32); 7] = [
    (0, 16),
    (END, 512),
    (END - 256, 512),
    (RAM_START - 8, 16),
    (u64::MAX - 15, 16),
    (u64::MAX, u32::MAX),
    (DATA, u32::MAX),
];

#[test]
fn a_request_with_a_buffer_outside_memory_fails_and_the_device_goes_on() {
    let mut scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    for (addr, len) in OUTSIDE {
        for kind in [T_IN, T_OUT, T_FLUSH, T_GET_ID] {
            let header = vmm.header(kind, 0);
            let to_guest = matches!(kind, T_IN | T_GET_ID);
            let data = [(header, 16, false), (addr, len, to_guest), (Vmm::STATUS, 1, true)];
            assert_eq!(vmm.run_chain(0, &data), (IOERR, 1), "type {kind}, {len} at {addr:#x}");
        }
        let header = [(addr, len, false), (DATA, 512, true), (Vmm::STATUS, 1, true)];
        assert_eq!(vmm.run_chain(0, &header), (IOERR, 1), "the header, {len} at {addr:#x}");
    }
    scene.log.wait_for(&["VM victim", "buffer at guest address 0x0", "in no memory"]);
    assert!(vmm.read_sectors(0, 16) == root_content(0, 16));
    drop(vmm);
    scene.all_is_well();
}

/// Lets a guest offer a chain that its queue must wait with: nothing of it is done, and
/// nobody else notices.
fn lets_its_queue_wait(because: &str, offer: impl FnOnce(&mut Vmm)) {
    let mut scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8), "the device works at first");
    offer(&mut vmm);
    scene.log.wait_for(&["VM victim", "queue 0 waits until its VMM shares more", because]);
    scene.neighbour.goes_on(5);
    assert!(vmm.try_used(0).is_none());
    // Its frontend is heard, and the queue can be set up anew where it stood.
    let base = vmm.frontend.get_vring_base(0).unwrap();
    assert_eq!(base, u32::from(vmm.rings[0].avail_index.wrapping_sub(1)));
    vmm.show(0, base as u16);
    let mut ring = vmm.rings.remove(0);
    ring.avail_index = base as u16;
    vmm.start_ring(ring);
    assert!(vmm.read_sectors(8, 8) == root_content(8, 8));
    drop(vmm);
    scene.all_is_well();
}

#[test]
fn a_status_outside_memory_is_waited_for() {
    for (addr, len) in OUTSIDE {
        lets_its_queue_wait("status", |vmm| {
            let header = vmm.header(T_IN, 0);
            let data = desc(DATA, 512, NEXT | WRITE, 2);
            offer_raw(vmm, &[desc(header, 16, NEXT, 1), data, desc(addr, len, WRITE, 0)]);
        });
    }
}

#[test]
fn an_indirect_table_outside_memory_is_waited_for() {
    for table in [
        desc(END, 32, TABLE, 0),          // all of it
        desc(END - 16, 32, TABLE, 0),     // its second entry
        desc(u64::MAX - 7, 32, TABLE, 0), // around the address space
    ] {
        lets_its_queue_wait("indirect table", |vmm| {
            vmm.describe(END - 16, 0, desc(HEADERS, 16, NEXT, 1));
            offer_raw(vmm, &[table]);
        });
    }
}

#[test]
fn bad_indirect_tables_end_the_device() {
    for table in [
        desc(TABLE_AT, 0, TABLE, 0),          // of length zero
        desc(TABLE_AT, 40, TABLE, 0),         // no whole number of entries
        desc(TABLE_AT, 8, TABLE, 0),          // less than one
        desc(TABLE_AT, 32, TABLE | NEXT, 1),  // something after it
        desc(TABLE_AT + 0x100, 16, TABLE, 0), // nested, below
    ] {
        breaks_its_device("indirect table", |vmm| {
            vmm.describe(TABLE_AT + 0x100, 0, desc(TABLE_AT, 32, TABLE, 0));
            vmm.describe_chain(TABLE_AT, 0, &[(HEADERS, 16, false), (Vmm::STATUS, 1, true)]);
            offer_raw(vmm, &[table, desc(HEADERS, 16, 0, 0)]);
        });
    }
}

#[test]
fn a_loop_in_an_indirect_table_ends_the_device() {
    breaks_its_device("loops", |vmm| {
        vmm.describe(TABLE_AT, 0, desc(DATA, 512, NEXT | WRITE, 1));
        vmm.describe(TABLE_AT, 1, desc(DATA, 512, NEXT | WRITE, 0));
        offer_raw(vmm, &[desc(TABLE_AT, 32, TABLE, 0)]);
    });
}

#[test]
fn an_indirect_table_that_points_beyond_itself_ends_the_device() {
    breaks_its_device("descriptor 2 does not exist", |vmm| {
        vmm.describe(TABLE_AT, 0, desc(HEADERS, 16, NEXT, 2));
        offer_raw(vmm, &[desc(TABLE_AT, 32, TABLE, 0)]);
    });
}

#[test]
fn chains_without_a_place_for_the_status_come_back_and_the_device_goes_on() {
    let scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    let header = vmm.header(T_IN, 0);
    let chains: [Buffers<'_>; 5] = [
        &[(header, 0, false)],
        &[(header, 0, true)],
        &[(header, 16, false)],
        &[(header, 16, false), (DATA, 0, true), (DATA, 0, true)],
        &[(header, 0, false), (DATA, 0, false)],
    ];
    for chain in chains {
        assert_eq!(vmm.run_chain(0, chain), (NO_STATUS, 0), "{chain:?}");
    }
    assert!(vmm.read_sectors(0, 16) == root_content(0, 16));
    drop(vmm);
    scene.all_is_well();
}

#[test]
fn one_head_offered_in_every_entry_at_once_comes_back_every_time() {
    let scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    let header = vmm.header(T_IN, 16);
    let table = vmm.rings[0].desc;
    let buffers = [(header, 16, false), (DATA, 4096, true), (Vmm::STATUS, 1, true)];
    vmm.describe_chain(table, 7, &buffers);
    (0..256).for_each(|_| vmm.offer(0, 7));
    vmm.kick(0);
    for _ in 0..256 {
        assert_eq!(vmm.used(0), (7, 4097));
    }
    assert!(vmm.read(DATA, 4096) == root_content(16, 8));
    drop(vmm);
    scene.all_is_well();
}

#[test]
fn rings_outside_memory_lose_the_connection() {
    type Change = fn(&mut Ring);
    let changes: [Change; 5] = [
        |ring| ring.desc = RAM_START + RAM_LEN - 16,
        |ring| ring.avail = RAM_START + RAM_LEN - 4,
        |ring| ring.used = RAM_START + RAM_LEN,
        // Around the address space.
        |ring| ring.desc = u64::MAX - 0xfff - 0x7fff_0000_0000,
        // Misaligned, which the vhost crate notices.
        |ring| ring.used = RAM_START + 0xc002,
    ];
    for (change, because) in changes.iter().zip(["outside", "outside", "outside", "outside", ""]) {
        loses_its_connection(because, |vmm| {
            vmm.share_ram();
            let mut ring = Ring::new(0, 256);
            change(&mut ring);
            let user = vmm.region().userspace_addr.wrapping_sub(RAM_START);
            let mut addresses = vmm.ring_addresses(&Ring::new(0, 256));
            addresses.desc_table_addr = ring.desc.wrapping_add(user);
            addresses.avail_ring_addr = ring.avail.wrapping_add(user);
            addresses.used_ring_addr = ring.used.wrapping_add(user);
            vmm.frontend.set_vring_num(0, 256).unwrap();
            // Refused here, if what it refuses is misaligned; or at the kick.
            let refused = vmm.frontend.set_vring_addr(0, &addresses).is_err()
                || vmm.frontend.set_vring_base(0, 0).is_err()
                || vmm.frontend.set_vring_kick(0, &ring.kick).is_err();
            assert!(refused);
        });
    }
}

#[test]
fn a_queue_size_that_is_no_power_of_two_loses_the_connection() {
    for size in [0, 3, 255, 2048, 32768, 65535] {
        loses_its_connection("", |vmm| {
            vmm.share_ram();
            assert!(vmm.frontend.set_vring_num(0, size).is_err(), "size {size}");
        });
    }
}

#[test]
fn a_kick_before_anything_is_known_of_the_queue_loses_the_connection() {
    loses_its_connection("before its addresses", |vmm| {
        assert!(vmm.frontend.set_vring_kick(0, &Ring::new(0, 256).kick).is_err());
    });
}

#[test]
fn a_queue_that_does_not_exist_loses_the_connection() {
    loses_its_connection("there is no queue 7", |vmm| {
        assert!(vmm.frontend.set_vring_num(7, 256).is_err());
    });
}

#[test]
fn features_that_were_not_offered_lose_the_connection() {
    loses_its_connection("were not offered", |vmm| {
        assert!(vmm.frontend.set_features(VERSION_1 | PROTOCOL | 1 << 26).is_err());
    });
}
