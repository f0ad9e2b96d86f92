//! A VM's disk through its socket, driven by libblkio.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::HashMap;
use std::os::unix::fs::FileExt;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use common::{Client, Daemon, Op, make_root, root_sector};

const ROOT_SECTORS: u64 = 64 * 1024 + 24;

fn expected(start: u64, len: usize) -> Vec<u8> {
    let sectors = start / 512..(start + len as u64) / 512;
    sectors.flat_map(|s| if s < ROOT_SECTORS { root_sector(s) } else { [0; 512] }).collect()
}

#[test]
fn a_guest_reads_its_root_and_its_own_writes_and_finds_them_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let before = std::fs::read(&root).unwrap();
    let root_arg = format!("base={}", root.display());
    let args = ["--root", &root_arg, "--vm", "web1,size=40MiB", "--vm", "web2"];
    let daemon = Daemon::start(dir.path(), &args);
    let mut one = Client::connect(&daemon.socket("web1"));
    let mut two = Client::connect(&daemon.socket("web2"));
    assert_eq!(one.capacity, 40 << 20);
    assert_eq!(two.capacity, ROOT_SECTORS * 512);
    for (start, len) in [
        (0, 512),
        (4096, 4096),
        (65536 - 512, 1024),
        (1 << 20, 1 << 20),
        (ROOT_SECTORS * 512 - 4096, 4096),
        (33 << 20, 4096),
        (ROOT_SECTORS * 512 - 512, 8192),
    ] {
        assert!(one.read(start, len) == expected(start, len), "{len} at {start}");
    }
    one.write(8192, &[0x11; 4096]);
    one.write(512 * 3, &[0x22; 512]);
    one.write(39 << 20, &[0x33; 1 << 16]);
    assert_eq!(one.run(Op::Zero, 1 << 20, 1 << 16), 0);
    assert_eq!(one.run(Op::Discard, 2 << 20, 1 << 16), 0);
    one.flush();
    let check = |one: &mut Client| {
        let start = one.read(0, 16384);
        assert!(start[..1536] == expected(0, 1536));
        assert!(start[1536..2048] == [0x22; 512]);
        assert!(start[2048..8192] == expected(2048, 6144));
        assert!(start[8192..12288] == [0x11; 4096]);
        assert!(start[12288..] == expected(12288, 4096));
        assert!(one.read(39 << 20, 1 << 16).iter().all(|b| *b == 0x33));
        assert!(one.read(1 << 20, 1 << 16).iter().all(|b| *b == 0));
        assert!(one.read(2 << 20, 1 << 16).iter().all(|b| *b == 0));
    };
    check(&mut one);
    assert!(two.read(0, 16384) == expected(0, 16384), "a neighbour sees nothing of it");
    drop(one);
    let mut one = Client::connect(&daemon.socket("web1"));
    check(&mut one);
    drop((one, two));
    let report = daemon.stop();
    assert!(report.contains("web1: read"), "{report}");
    let daemon = Daemon::start(dir.path(), &args);
    check(&mut Client::connect(&daemon.socket("web1")));
    drop(daemon);
    assert!(std::fs::read(&root).unwrap() == before, "the root never changes");
}

#[test]
fn many_requests_in_flight_each_get_their_own_data() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let root = root.to_str().unwrap();
    let daemon = Daemon::start(
        dir.path(),
        &["--root", root, "--vm", "a", "--reactors", "2", "--vm", "b", "--cache-block", "16KiB"],
    );
    let mut clients = [Client::connect(&daemon.socket("a")), Client::connect(&daemon.socket("b"))];
    let mut seed = 1u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut model: [HashMap<u64, u8>; 2] = Default::default();
    const SLOT: usize = 32768;
    for round in 0..300u64 {
        for (client, written) in clients.iter_mut().zip(&mut model) {
            // Distinct ranges within a round, so that their order is no matter.
            let base = random(ROOT_SECTORS / 8 - 32 * 64) * 8;
            let mut requests = Vec::new();
            for slot in 0..32usize {
                let start = base + slot as u64 * 64 + random(8);
                let sectors = 1 + random(56);
                let is_write = random(3) == 0;
                let len = sectors as usize * 512;
                if is_write {
                    let fill = (round % 250) as u8 + 1;
                    client.memory(slot * SLOT, len).fill(fill);
                    written.extend((start..start + sectors).map(|s| (s, fill)));
                }
                let op = if is_write { Op::Write } else { Op::Read };
                client.submit(op, start * 512, len, slot * SLOT, slot);
                requests.push((op, start, sectors));
            }
            for (slot, result) in client.complete(32) {
                assert_eq!(result, 0);
                let (op, start, sectors) = requests[slot];
                if let Op::Read = op {
                    let data = client.memory(slot * SLOT, sectors as usize * 512);
                    for (sector, bytes) in (start..).zip(data.chunks_exact(512)) {
                        match written.get(&sector) {
                            Some(fill) => assert!(bytes.iter().all(|b| b == fill), "{sector}"),
                            None => assert!(bytes == root_sector(sector), "sector {sector}"),
                        }
                    }
                }
            }
        }
    }
}

/// Reads of the VM that failed, as its metrics say.
fn failed_reads(daemon: &Daemon, vm: &str) -> u64 {
    let text = String::from_utf8(daemon.control().get("/metrics").body).unwrap();
    let start = format!("leafblk_vm_request_errors_total{{vm=\"{vm}\",operation=\"read\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&start));
    value.unwrap_or_else(|| panic!("no {start} in\n{text}")).parse().unwrap()
}

/// The line that a daemon printed of the VM at its end.
fn last_line<'a>(report: &'a str, vm: &str) -> &'a str {
    report.lines().find(|line| line.starts_with(&format!("{vm}: read"))).unwrap()
}

#[test]
fn the_first_disk_error_of_each_vm_is_in_the_log_and_all_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let content = std::fs::read(&root).unwrap();
    let root_arg = format!("base={}", root.display());
    let args = ["--root", &root_arg, "--vm", "web1", "--vm", "web2", "--vm", "web3"];
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &args);
    let file = std::fs::File::options().write(true).open(&root).unwrap();
    file.set_len(0).unwrap();
    let clients = ["web1", "web2"].map(|vm| {
        let mut client = Client::connect(&daemon.socket(vm));
        // Others of the same VM are only counted.
        for start in [1 << 20, 8 << 20] {
            assert_eq!(client.run(Op::Read, start, 4096), -5, "{vm} at {start}");
        }
        log.wait_for(&[vm, "root.raw can't be read: it ends early"]);
        assert_eq!(failed_reads(&daemon, vm), 2);
        client
    });
    assert_eq!(failed_reads(&daemon, "web3"), 0);
    let health = || daemon.control().get("/v1/health").expect(200)["problems"].clone();
    let why = format!("root {} can't be read: it ends early", root.display());
    let sentence = format!("root base: its reads fail: {why} (VMs on it: web1, web2, web3)");
    let problems = health();
    assert_eq!(problems[0], sentence);
    // Who cut it short has changed it, which is another problem.
    assert!(problems[1].as_str().unwrap().contains("its file has changed since"), "{problems}");
    assert_eq!(problems.as_array().unwrap().len(), 2, "{problems}");
    let web3 = daemon.control().get("/v1/vms/web3").expect(200);
    assert_eq!(web3["problems"][0], format!("its root: its reads fail: {why}"));
    // Once the root is whole again, so are the disks.
    file.write_all_at(&content, 0).unwrap();
    for mut client in clients {
        for start in [1 << 20, 8 << 20, 0] {
            assert!(client.read(start, 4096) == expected(start, 4096), "{start}");
        }
    }
    assert_eq!(failed_reads(&daemon, "web1"), 2);
    let in_part = "root base: some of its reads failed in the last 10 s: ";
    assert!(health()[0].as_str().unwrap().starts_with(in_part), "{}", health());
    let report = daemon.stop();
    for vm in ["web1", "web2"] {
        assert!(last_line(&report, vm).ends_with("; 2 errors"), "{report}");
    }
    assert!(!last_line(&report, "web3").contains("errors"), "{report}");
}

#[test]
fn a_leaf_that_somebody_has_cut_short_is_an_error_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let args = ["--root", root.to_str().unwrap(), "--vm", "web1", "--vm", "web2"];
    let (daemon, mut log) = Daemon::start_logged(dir.path(), &args);
    // To nothing of its data, and to less than a sector of it.
    for (vm, rest) in [("web1", 0), ("web2", 100)] {
        let mut client = Client::connect(&daemon.socket(vm));
        client.write(4096, &[0x11; 4096]);
        client.flush();
        let leaf = std::fs::File::options().write(true).open(daemon.leaf(vm)).unwrap();
        // Its data begins a disk's length before its end (docs/leaf-format.md).
        let data_offset = leaf.metadata().unwrap().len() - ROOT_SECTORS * 512;
        leaf.set_len(data_offset + rest).unwrap();
        assert_eq!(client.run(Op::Read, 4096, 4096), -5, "{vm}");
        log.wait_for(&[vm, "its leaf can't be read: it ends early"]);
        assert_eq!(failed_reads(&daemon, vm), 1);
        assert!(client.read(65536, 4096) == expected(65536, 4096), "the root's are there");
    }
}

/// The line of `field` among `lines` (proc(5): smaps, status), in KiB.
fn kib<'a>(mut lines: impl Iterator<Item = &'a str>, field: &str) -> u64 {
    let line = lines.find(|line| line.starts_with(field)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_daemons_own_code_stays_in_memory_where_the_system_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let root_arg = format!("base={}", root.display());
    let daemon = Daemon::start(dir.path(), &["--root", &root_arg, "--vm", "web1"]);
    let of_proc = |file| std::fs::read_to_string(format!("/proc/{}/{file}", daemon.pid())).unwrap();
    let (smaps, status) = (of_proc("smaps"), of_proc("status"));
    let mut code = smaps.lines();
    code.find(|line| line.contains(" r-xp ") && line.ends_with("/leafblk")).unwrap();
    let (size, resident) = (kib(&mut code, "Size:"), kib(&mut code, "Rss:"));
    let locked = kib(status.lines(), "VmLck:");
    // Root in a container may have less than all capabilities.
    let limit = getrlimit(Resource::Memlock).current;
    let may_lock_all =
        capabilities(None).unwrap().effective.contains(CapabilitySet::IPC_LOCK) || limit.is_none();
    if may_lock_all {
        assert!(locked >= size && resident == size, "{locked}, {resident} of {size} KiB");
    } else {
        assert!(locked == 0 || locked >= size, "{locked} of {size} KiB");
    }
}
