//! Requests whose header, data and status lie in any way that the specification
//! allows (virtio 1.3, 2.7.4 and 5.2.6).

use crate::common::frontend::*;
use crate::common::scene::root_content;
use crate::serve;

/// `len` bytes from `addr` on, cut at each of `cuts`.
fn cut(addr: u64, len: u32, cuts: &[u32], writable: bool) -> Vec<(u64, u32, bool)> {
    let mut ends: Vec<u32> = cuts.to_vec();
    ends.push(len);
    let mut start = 0;
    let mut all = Vec::new();
    for end in ends {
        all.push((addr + u64::from(start), end - start, writable));
        start = end;
    }
    all
}

#[test]
fn headers_data_and_status_may_be_laid_out_in_any_way() {
    let served = serve("web1");
    for features in [VERSION_1, VERSION_1 | EVENT_IDX, VERSION_1 | EVENT_IDX | INDIRECT] {
        let mut vmm = Vmm::running_with(&served.socket, features, 256);
        let headers: [&[u32]; 4] = [&[], &[8], &[1, 2, 3, 4, 15], &[0, 4, 4, 16]];
        let datas: [&[u32]; 5] =
            [&[], &[512, 1024, 1536], &[1, 511, 513, 4000], &[3000], &[0, 0, 4095]];
        let mut fill = 0;
        for header in headers {
            for data in datas {
                fill += 1;
                let sector = 200 + fill * 8;
                // A write, its header and data split, or merged into one.
                vmm.write(DATA + 3, &vec![fill as u8; 4096]);
                let mut chain = cut(vmm.header(T_OUT, sector), 16, header, false);
                chain.extend(cut(DATA + 3, 4096, data, false));
                chain.push((Vmm::STATUS, 1, true));
                assert_eq!(vmm.run_chain(0, &chain), (OK, 1), "{chain:?}");
                // A read, the status a descriptor of its own.
                vmm.write(DATA + 5, &[0; 4200]);
                let mut chain = cut(vmm.header(T_IN, sector), 16, header, false);
                chain.extend(cut(DATA + 5, 4096, data, true));
                chain.push((Vmm::STATUS, 1, true));
                assert_eq!(vmm.run_chain(0, &chain), (OK, 4097), "{chain:?}");
                assert!(vmm.read(DATA + 5, 4096) == vec![fill as u8; 4096]);
                // The status merged with the data's last bytes.
                vmm.write(DATA + 7, &[0xcd; 4200]);
                let mut chain = cut(vmm.header(T_IN, sector - 4), 16, header, false);
                chain.extend(cut(DATA + 7, 4097, data, true));
                let (_, len) = vmm.run_chain(0, &chain);
                assert_eq!(len, 4097);
                let answer = vmm.read(DATA + 7, 4200);
                assert!(answer[2048..4096] == vec![fill as u8; 2048]);
                assert_eq!(answer[4096], OK);
                assert!(answer[4097..].iter().all(|b| *b == 0xcd), "nothing beyond");
            }
        }
        drop(vmm);
    }
    served.daemon.stop();
}

#[test]
fn a_header_merged_with_the_data_of_a_write_is_understood() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    let mut bytes = vec![0; 16];
    bytes[..4].copy_from_slice(&T_OUT.to_le_bytes());
    bytes[8..].copy_from_slice(&40u64.to_le_bytes());
    bytes.extend_from_slice(&[0x99; 1024]);
    vmm.write(DATA + 1, &bytes);
    let chain = [(DATA + 1, 16 + 1024, false), (Vmm::STATUS, 1, true)];
    assert_eq!(vmm.run_chain(0, &chain), (OK, 1));
    assert!(vmm.read_sectors(40, 2) == [0x99; 1024]);
    assert!(vmm.read_sectors(42, 2) == root_content(42, 2));
    served.daemon.stop();
}

#[test]
fn indirect_tables_and_many_small_segments_work() {
    let served = serve("web1");
    let mut vmm = Vmm::running(&served.socket);
    let table = RAM_START + 0x4_0008; // aligned to nothing but 8
    for (kind, sector) in [(T_IN, 0), (T_OUT, 512), (T_IN, 512)] {
        let to_guest = kind == T_IN;
        let mut buffers = vec![(vmm.header(kind, sector), 16, false)];
        // One sector each, back to front.
        let segment = |i: u64| (DATA + (199 - i) * 512, 512, to_guest);
        buffers.extend((0..200).map(segment));
        buffers.push((Vmm::STATUS, 1, true));
        vmm.describe_chain(table, 0, &buffers);
        vmm.describe(vmm.rings[0].desc, 3, desc(table, buffers.len() as u32 * 16, TABLE, 0));
        vmm.offer(0, 3);
        vmm.kick(0);
        assert_eq!(vmm.used(0), (3, if to_guest { 200 * 512 + 1 } else { 1 }));
        for i in 0..200 {
            assert!(vmm.read(segment(i).0, 512) == root_content(i, 1), "sector {i}, {kind}");
        }
    }
    served.daemon.stop();
}
