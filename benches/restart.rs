//! The pause that a guest sees when leafblk is started anew under it: from the
//! last answer of the old process to the first of the new one. The VMM's own
//! delay is left out: the frontend here comes back as soon as it can.
//!
//! `cargo bench --bench restart`; each row is the median and the worst of
//! [`ROUNDS`] restarts.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(clippy::print_stdout, reason = "its result")]
#![allow(missing_docs, clippy::allow_attributes, reason = "a benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::frontend::{T_OUT, Vmm};
use common::{Daemon, make_root};

const ROUNDS: usize = 15;
const ROOT_SECTORS: u64 = 32 << 10;

/// How the old process ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Stop,
    Kill,
}

struct Row {
    what: &'static str,
    end: End,
    vms: usize,
    /// Written and not flushed before the restart, by the guest that is watched.
    dirty_mib: u64,
    keep_cache: bool,
}

fn pauses(row: &Row) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap();
    let root = make_root(dir.path(), ROOT_SECTORS);
    let mut args = vec!["--root".to_owned(), root.to_str().unwrap().to_owned()];
    for vm in 0..row.vms {
        args.extend(["--vm".into(), format!("vm{vm},size=2GiB")]);
    }
    if row.keep_cache {
        args.push("--keep-cache".into());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let start = || Daemon::start(dir.path(), &args);
    let mut daemon = start();
    let mut vmms: Vec<Vmm> =
        (0..row.vms).map(|vm| Vmm::tracked(&daemon.socket(&format!("vm{vm}")), 1, 64)).collect();
    let mut pauses = Vec::new();
    for round in 0..ROUNDS {
        for mib in 0..row.dirty_mib {
            for half in 0..2 {
                let sector = ROOT_SECTORS + (mib * 2 + half) * 1024;
                assert_eq!(vmms[0].request(T_OUT, sector, 512 << 10).0, 0);
            }
        }
        vmms[0].read_sectors(round as u64 * 128, 8);
        // The guest reads on until it is cut off; with a stop that is later than
        // the signal.
        let last = match row.end {
            End::Kill => {
                let last = Instant::now();
                daemon.kill();
                last
            }
            End::Stop => {
                let mut last = Instant::now();
                std::thread::scope(|scope| {
                    scope.spawn(move || daemon.stop());
                    while vmms[0].answers_a_read() {
                        last = Instant::now();
                    }
                });
                last
            }
        };
        daemon = start();
        vmms[0].reconnect(&daemon.socket("vm0")).unwrap();
        match row.end {
            // The read that was cut off.
            End::Stop => drop(vmms[0].used(0)),
            End::Kill => drop(vmms[0].read_sectors(0, 8)),
        }
        pauses.push(last.elapsed());
        for (vm, vmm) in vmms.iter_mut().enumerate().skip(1) {
            vmm.reconnect(&daemon.socket(&format!("vm{vm}"))).unwrap();
        }
    }
    daemon.stop();
    leafblk::cache::discard(&dir.path().join("run"));
    pauses
}

fn main() {
    // `cargo test` builds and runs benches as well: nothing to do there.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let stop = Row { what: "SIGTERM", end: End::Stop, vms: 1, dirty_mib: 0, keep_cache: false };
    let rows = [
        Row { what: "SIGTERM, 1 VM", ..stop },
        Row { what: "SIGTERM, 1 VM, --keep-cache", keep_cache: true, ..stop },
        Row { what: "SIGTERM, 1 VM, 256 MiB not flushed", dirty_mib: 256, ..stop },
        Row { what: "SIGTERM, 64 VMs", vms: 64, ..stop },
        Row { what: "SIGKILL, 1 VM", end: End::Kill, ..stop },
        Row { what: "SIGKILL, 1 VM, 256 MiB not flushed", end: End::Kill, dirty_mib: 256, ..stop },
        Row { what: "SIGKILL, 64 VMs", end: End::Kill, vms: 64, ..stop },
    ];
    println!("| restart | median, ms | worst, ms |\n| --- | ---: | ---: |");
    for row in rows {
        let mut pauses = pauses(&row);
        pauses.sort_unstable();
        let ms = |pause: Duration| pause.as_secs_f64() * 1e3;
        let (median, worst) = (ms(pauses[ROUNDS / 2]), ms(pauses[ROUNDS - 1]));
        println!("| {} | {median:.0} | {worst:.0} |", row.what);
    }
}
