//! Rows 1 to 4: reads of a root that is cached whole.
//!
//! Both daemons run at once and take turns; the idle one sleeps.

use crate::backend::{Backend, Export, Setup};
use crate::cli::{CachedPeer, Daemon};
use crate::client::{Client, Kind, Wait};
use crate::data;
use crate::load::{LARGE, RandomReads, Sequential};
use crate::report::{Row, Target};
use crate::rows::{Bench, Group, connect, progress};
use crate::util::{Error, Result, to_f64, to_u64};

const SLOTS: usize = 32;

/// One row's load.
struct Case {
    number: u32,
    id: &'static str,
    title: &'static str,
    target: f64,
    depth: usize,
    wait: Wait,
    sequential: bool,
}

const CASES: [Case; 4] = [
    Case {
        number: 1,
        id: "randread-qd32",
        title: "random read 4 KiB, cached root, QD32, client polls",
        target: 5.0,
        depth: 32,
        wait: Wait::Poll,
        sequential: false,
    },
    Case {
        number: 2,
        id: "randread-qd1",
        title: "the same, QD1",
        target: 4.0,
        depth: 1,
        wait: Wait::Poll,
        sequential: false,
    },
    Case {
        number: 3,
        id: "randread-sleep",
        title: "the same, QD32, client sleeps",
        target: 2.5,
        depth: 32,
        wait: Wait::Sleep,
        sequential: false,
    },
    Case {
        number: 4,
        id: "seqread",
        title: "sequential read 128 KiB, cached root, QD8",
        target: 1.0,
        depth: 8,
        wait: Wait::Poll,
        sequential: true,
    },
];

/// Rows 1 to 4.
pub(crate) const GROUP: Group = Group {
    numbers: &[1, 2, 3, 4],
    ids: &[CASES[0].id, CASES[1].id, CASES[2].id, CASES[3].id],
    run,
};

fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let root = bench.root()?;
    let export = match bench.cli.cached_peer {
        CachedPeer::Raw => Export::RawReadOnly,
        CachedPeer::Overlay => Export::Overlay,
    };
    let setup = Setup { root: &root, vms: 1, export, cache_bytes: bench.cache_bytes(), threads: 1 };
    let mut sides = Vec::with_capacity(2);
    for daemon in bench.daemons() {
        let backend = bench.start(daemon, &setup)?;
        let mut client = connect(&backend, 0, SLOTS, LARGE)?;
        warm(bench, &backend, &mut client)?;
        sides.push((client, backend));
    }
    let mut rows = Vec::new();
    for case in CASES.iter().filter(|case| bench.wants(case.number, case.id)) {
        let mut row = Row::new(case.id, case.title, if case.sequential { "MiB/s" } else { "k/s" })
            .target(Target::RatioAtLeast(case.target));
        let peer = bench.daemons().contains(&Daemon::Qsd);
        if peer && case.number == 1 {
            row.notes.push(match export {
                Export::RawReadOnly => "the peer exports the raw root itself in rows 1 to 4, \
                     from the page cache, without an overlay"
                    .to_owned(),
                Export::Overlay => "the peer exports a qcow2 overlay in rows 1 to 4".to_owned(),
            });
        }
        for rep in 0..bench.reps(5) {
            for (side, (client, _)) in sides.iter_mut().enumerate() {
                let figure = measure(bench, case, client, to_u64(rep))?;
                progress(&format!("{} {}: {figure:.1} {}", case.id, ["A", "B"][side], row.unit));
                if side == 0 { &mut row.a } else { &mut row.b }.push(figure);
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Reads the whole disk once.
fn warm(bench: &Bench, backend: &Backend, client: &mut Client) -> Result<()> {
    progress(&format!("warming {:?}", backend.daemon()));
    if client.capacity_bytes() != bench.sizes.root_bytes {
        return Err(Error::from(format!(
            "the disk has {} bytes, the root {}",
            client.capacity_bytes(),
            bench.sizes.root_bytes
        )));
    }
    let mut load = Sequential::new(Kind::Read, bench.sizes.root_bytes, data::ROOT, true);
    client.drive(8, std::time::Duration::MAX, &mut load)?;
    Ok(())
}

fn measure(bench: &Bench, case: &Case, client: &mut Client, rep: u64) -> Result<f64> {
    client.set_wait(case.wait);
    let bytes = bench.sizes.root_bytes;
    if case.sequential {
        let mut load = Sequential::new(Kind::Read, bytes, data::ROOT, false);
        let driven = client.drive(case.depth, bench.run_time(), &mut load)?;
        return Ok(driven.per_second() * to_f64(to_u64(LARGE)) / to_f64(1 << 20));
    }
    let mut load = RandomReads::new(bytes, data::ROOT, rep);
    let driven = client.drive(case.depth, bench.run_time(), &mut load)?;
    Ok(driven.per_second() / 1000.0)
}
