//! Requests: senseless ones, huge ones, and frontends that leave in the middle.

use crate::common::frontend::*;
use crate::common::scene::{ROOT_SECTORS, Scene, root_content};
use crate::{TABLE_AT, breaks_its_device, offer_raw};

#[test]
fn requests_that_make_no_sense_are_answered_and_the_device_goes_on() {
    let scene = Scene::new();
    let mut vmm = Vmm::running(&scene.victim);
    // GET_ID without a buffer, and with one of a single byte.
    assert_eq!(vmm.request(T_GET_ID, 0, 0), (OK, 1));
    assert_eq!(vmm.request(T_GET_ID, 0, 1), (OK, 2));
    assert_eq!(vmm.read(DATA, 1), b"v");
    // A header that is too short.
    let header = vmm.header(T_IN, 0);
    for len in [0, 1, 8, 15] {
        let chain = [(header, len, false), (DATA, 512, true), (Vmm::STATUS, 1, true)];
        assert_eq!(vmm.run_chain(0, &chain), (IOERR, 1), "a header of {len} bytes");
    }
    assert_eq!(vmm.run_chain(0, &[(Vmm::STATUS, 1, true)]), (IOERR, 1), "no header at all");
    // Past the end, and around it.
    for sector in [ROOT_SECTORS, ROOT_SECTORS - 1, 1 << 55, u64::MAX / 512, u64::MAX - 1, u64::MAX]
    {
        for kind in [T_IN, T_OUT] {
            assert_eq!(vmm.request(kind, sector, 1024), (IOERR, 1), "sector {sector:#x}");
        }
    }
    // No whole sectors.
    for len in [1, 511, 513, 4095] {
        assert_eq!(vmm.request(T_IN, 0, len), (IOERR, 1), "{len} bytes");
        assert_eq!(vmm.request(T_OUT, 0, len), (IOERR, 1), "{len} bytes");
    }
    for kind in [2, 3, 9, 10, 14, 16, 0x8000_0000, 0x8000_0001, u32::MAX] {
        assert_eq!(vmm.request(kind, 0, 512), (UNSUPP, 1), "type {kind}");
    }
    // Segments of a discard that are none, ragged, too many, or out of range.
    for len in [0, 8, 17, 17 * 16] {
        assert_eq!(vmm.request(T_DISCARD, 0, len).0, IOERR, "{len} bytes of segments");
    }
    let segment = |sector: u64, count: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes
    };
    for (sector, count) in [(ROOT_SECTORS, 1), (0, u32::MAX), (u64::MAX, 1), (u64::MAX, u32::MAX)] {
        vmm.write(DATA, &segment(sector, count, 0));
        assert_eq!(vmm.request(T_DISCARD, 0, 16).0, IOERR);
        assert_eq!(vmm.request(T_WRITE_ZEROES, 0, 16).0, IOERR);
    }
    vmm.write(DATA, &segment(0, 8, 1));
    assert_eq!(vmm.request(T_DISCARD, 0, 16).0, UNSUPP, "a discard has no flags");
    vmm.write(DATA, &segment(0, 8, 2));
    assert_eq!(vmm.request(T_WRITE_ZEROES, 0, 16).0, UNSUPP, "an unknown flag");
    // None of it has changed anything.
    assert!(vmm.read_sectors(0, 128) == root_content(0, 128));
    drop(vmm);
    scene.all_is_well();
}

/// Runs a request of `count` MiB, all in the same MiB of memory, through an
/// indirect table.
fn huge_request(vmm: &mut Vmm, kind: u32, count: u16) -> u8 {
    let to_guest = kind == T_IN;
    let mut buffers = vec![(vmm.header(kind, 0), 16, false)];
    buffers.extend((0..count).map(|_| (DATA, 1 << 20, to_guest)));
    buffers.push((Vmm::STATUS, 1, true));
    vmm.write(Vmm::STATUS, &[NO_STATUS]);
    vmm.describe_chain(TABLE_AT, 0, &buffers);
    let len = buffers.len() as u32 * 16;
    vmm.describe(vmm.rings[0].desc, 0, desc(TABLE_AT, len, TABLE, 0));
    vmm.offer(0, 0);
    vmm.kick(0);
    vmm.used(0);
    vmm.read(Vmm::STATUS, 1)[0]
}

#[test]
fn a_huge_request_does_not_hold_up_the_neighbour() {
    let scene = Scene::with_victim("victim,size=1GiB");
    let mut vmm = Vmm::running(&scene.victim);
    for (kind, count) in [(T_IN, 500), (T_OUT, 100)] {
        // A request takes some 25 ms, and on a busy machine the neighbour's own
        // thread may not run in that time: one try of many must show it. A
        // neighbour that is held up gets one or two reads a request, ever.
        let most = (0..40)
            .map(|_| {
                let before = scene.neighbour.reads();
                assert_eq!(huge_request(&mut vmm, kind, count), OK);
                scene.neighbour.reads() - before
            })
            .find(|meanwhile| *meanwhile >= 10);
        assert!(most.is_some(), "fewer than 10 reads beside each request of {count} MiB");
    }
    // The victim has overwritten its first 100 MiB, with the same MiB each.
    let mib = vmm.read_sectors(0, 2048);
    for at in 1..10 {
        assert!(vmm.read_sectors(at * 2048, 2048) == mib);
    }
    drop(vmm);
    scene.neighbour.goes_on(20);
    scene.neighbour.stop();
    scene.daemon.stop();
}

#[test]
fn a_chain_of_more_segments_than_any_driver_makes_ends_the_device() {
    breaks_its_device("loops or has more than", |vmm| {
        for index in 0..5000u16 {
            vmm.describe(DATA, index, desc(HEADERS, 1, NEXT, index + 1));
        }
        offer_raw(vmm, &[desc(DATA, 5001 * 16, TABLE, 0)]);
    });
}

#[test]
fn a_frontend_that_goes_away_in_the_middle_of_requests_harms_nobody() {
    let scene = Scene::with_victim("victim,size=1GiB");
    for round in 0..20 {
        let mut vmm = Vmm::running(&scene.victim);
        let header = vmm.header(if round % 2 == 0 { T_IN } else { T_OUT }, round);
        let data = (DATA, 1 << 20, round % 2 == 0);
        let buffers = [(header, 16, false), data, (Vmm::STATUS, 1, true)];
        vmm.describe_chain(vmm.rings[0].desc, 0, &buffers);
        (0..64).for_each(|_| vmm.offer(0, 0));
        vmm.kick(0);
        // With the memory gone or left.
        if round % 3 == 0 {
            vmm.ram_file.set_len(0).unwrap();
        }
        drop(vmm);
    }
    let mut vmm = Vmm::running(&scene.victim);
    assert!(vmm.read_sectors(3000, 8) == root_content(3000, 8));
    drop(vmm);
    scene.neighbour.goes_on(20);
    scene.neighbour.stop();
    scene.daemon.stop();
}
