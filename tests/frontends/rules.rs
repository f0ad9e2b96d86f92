//! Drivers that break a rule of theirs where nothing is at risk: they are served
//! (docs/guests.md has the table). Drivers that break others are in tests/hostile.

use crate::common::frontend::*;
use crate::common::scene::root_content;
use crate::{serve, zero};

/// A guest whose driver has acknowledged nothing but what every driver must.
fn with_nothing_acknowledged(socket: &std::path::Path) -> Vmm {
    Vmm::running_with(socket, VERSION_1, 64)
}

const TABLE_AT: u64 = RAM_START + 0x4_0000;

/// As [`Vmm::run_chain`], through an indirect table, which a flag may be set for.
fn run_table(vmm: &mut Vmm, flags: u16, buffers: Buffers<'_>) -> (u8, u32) {
    vmm.write(Vmm::STATUS, &[NO_STATUS]);
    vmm.describe_chain(TABLE_AT, 0, buffers);
    let len = buffers.len() as u32 * 16;
    vmm.describe(vmm.rings[0].desc, 0, desc(TABLE_AT, len, TABLE | flags, 0));
    vmm.offer(0, 0);
    vmm.kick(0);
    let (head, len) = vmm.used(0);
    assert_eq!(head, 0);
    (vmm.read(Vmm::STATUS, 1)[0], len)
}

#[test]
fn indirect_tables_are_served_though_the_feature_was_not_acknowledged() {
    let served = serve("web1");
    let mut vmm = with_nothing_acknowledged(&served.socket);
    for (round, flags) in [0, WRITE].into_iter().enumerate() {
        let fill = 0x30 + round as u8;
        vmm.write(DATA, &[fill; 4096]);
        let header = vmm.header(T_OUT, 24);
        let write = [(header, 16, false), (DATA, 4096, false), (Vmm::STATUS, 1, true)];
        assert_eq!(run_table(&mut vmm, flags, &write), (OK, 1));
        vmm.write(DATA, &[0; 8192]);
        let header = vmm.header(T_IN, 20);
        let read = [(header, 16, false), (DATA, 8192, true), (Vmm::STATUS, 1, true)];
        assert_eq!(run_table(&mut vmm, flags, &read), (OK, 8193));
        let expected = [root_content(20, 4), vec![fill; 4096], root_content(32, 4)].concat();
        assert!(vmm.read(DATA, 8192) == expected);
    }
    served.daemon.stop();
}

#[test]
fn a_table_may_reach_beyond_memory_with_entries_that_nobody_uses() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    let table = RAM_START + RAM_LEN - 48;
    let header = vmm.header(T_IN, 8);
    vmm.describe_chain(
        table,
        0,
        &[(header, 16, false), (DATA, 4096, true), (Vmm::STATUS, 1, true)],
    );
    for len in [64, 0xffff_fff0] {
        vmm.write(DATA, &[0; 4096]);
        vmm.describe(vmm.rings[0].desc, 0, desc(table, len, TABLE, 0));
        vmm.offer(0, 0);
        vmm.kick(0);
        assert_eq!(vmm.used(0), (0, 4097));
        assert!(vmm.read(DATA, 4096) == root_content(8, 8));
    }
    served.daemon.stop();
}

#[test]
fn a_device_readable_buffer_may_follow_a_device_writable_one() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    let data: Vec<u8> = (0..4096u32).map(|i| (i * 7) as u8).collect();
    vmm.write(DATA, &data);
    let header = vmm.header(T_OUT, 48);
    let chain = [(Vmm::STATUS, 1, true), (header, 16, false), (DATA, 4096, false)];
    assert_eq!(vmm.run_chain(0, &chain), (OK, 1));
    let header = vmm.header(T_IN, 48);
    vmm.write(DATA, &[0; 4096]);
    let chain = [(DATA, 4096, true), (header, 16, false), (Vmm::STATUS, 1, true)];
    assert_eq!(vmm.run_chain(0, &chain), (OK, 4097));
    assert!(vmm.read(DATA, 4096) == data);
    served.daemon.stop();
}

#[test]
fn buffers_of_no_bytes_are_skipped_wherever_they_are() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    let header = vmm.header(T_IN, 8);
    vmm.write(DATA, &[0; 4096]);
    let chain = [
        (u64::MAX, 0, false),
        (header, 16, false),
        (0, 0, true),
        (DATA, 4096, true),
        (RAM_START + RAM_LEN, 0, true),
        (Vmm::STATUS, 1, true),
        (DATA, 0, true),
    ];
    assert_eq!(vmm.run_chain(0, &chain), (OK, 4097));
    assert!(vmm.read(DATA, 4096) == root_content(8, 8));
    served.daemon.stop();
}

#[test]
fn a_flush_is_served_whatever_was_acknowledged_and_whatever_comes_with_it() {
    const FLUSH_OUT: u32 = 5;
    let served = serve("web1");
    for features in [VERSION_1, VERSION_1 | F_FLUSH] {
        let mut vmm = Vmm::running_with(&served.socket, features, 64);
        vmm.write_sectors(64, &[0x66; 512]);
        for kind in [T_FLUSH, FLUSH_OUT] {
            let header = vmm.header(kind, u64::MAX);
            assert_eq!(vmm.run_chain(0, &[(header, 16, false), (Vmm::STATUS, 1, true)]), (OK, 1));
            vmm.write(DATA, &[0x11; 1024]);
            let with_data = [
                (header, 16, false),
                (DATA, 512, false),
                (DATA + 512, 512, true),
                (Vmm::STATUS, 1, true),
            ];
            assert_eq!(vmm.run_chain(0, &with_data), (OK, 1));
            assert!(vmm.read(DATA, 1024) == [0x11; 1024], "nothing is written to the data");
        }
        assert!(vmm.read_sectors(64, 1) == [0x66; 512]);
    }
    served.daemon.stop();
}

#[test]
fn discard_and_write_zeroes_are_served_though_they_were_not_acknowledged() {
    let served = serve("web1");
    let mut vmm = with_nothing_acknowledged(&served.socket);
    for (kind, sector) in [(T_DISCARD, 100), (T_WRITE_ZEROES, 200)] {
        assert_eq!(zero(&mut vmm, kind, &[(sector, 3, 0), (sector + 9, 1, 0)]), OK);
        let mut expected = root_content(sector - 1, 12);
        expected[512..4 * 512].fill(0);
        expected[10 * 512..11 * 512].fill(0);
        assert!(vmm.read_sectors(sector - 1, 12) == expected, "type {kind}");
    }
    served.daemon.stop();
}

#[test]
fn get_id_fills_what_room_it_has_and_20_bytes_at_most() {
    let served = serve("web1");
    let mut vmm = with_nothing_acknowledged(&served.socket);
    for len in [0, 1, 3, 19, 20, 21, 512] {
        vmm.write(DATA, &[0xcd; 512]);
        let filled = len.min(20);
        assert_eq!(vmm.request(T_GET_ID, 77, len), (OK, filled + 1));
        let mut expected = vec![0xcd; 512];
        expected[..filled as usize]
            .copy_from_slice(&b"web1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..filled as usize]);
        assert!(vmm.read(DATA, 512) == expected, "{len} bytes");
    }
    served.daemon.stop();
}

#[test]
fn data_of_the_other_direction_is_neither_read_nor_written() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    vmm.write(DATA, &[0x22; 4096]);
    let header = vmm.header(T_OUT, 80);
    let (ours, theirs) = (DATA, DATA + 512);
    let write =
        [(header, 16, false), (ours, 512, false), (theirs, 700, true), (Vmm::STATUS, 1, true)];
    assert_eq!(vmm.run_chain(0, &write), (OK, 1));
    assert!(vmm.read(DATA, 4096) == [0x22; 4096]);
    let header = vmm.header(T_IN, 79);
    let read =
        [(header, 16, false), (theirs, 300, false), (ours, 1024, true), (Vmm::STATUS, 1, true)];
    assert_eq!(vmm.run_chain(0, &read), (OK, 1025));
    assert!(vmm.read(DATA, 1024) == [root_content(79, 1), vec![0x22; 512]].concat());
    served.daemon.stop();
}

#[test]
fn reads_and_writes_of_nothing_are_served() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    for kind in [T_IN, T_OUT] {
        for sector in [0, 4095, 4096] {
            assert_eq!(vmm.request(kind, sector, 0), (OK, 1));
        }
    }
    assert!(vmm.read_sectors(0, 16) == root_content(0, 16));
    served.daemon.stop();
}
