//! The promise under power cuts and kills, on a simulated disk: a bounded number
//! of states. `cargo run --release --example crashsim` tries more.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::allow_attributes,
    reason = "a test fails by panicking, and prints how much it tried"
)]

mod crashsim;

use std::path::Path;
use std::process::Command;

use crashsim::check::Report;
use crashsim::disk::{Fails, Image, Lie, SimDisk};
use crashsim::ops::{identity, open};
use crashsim::states::{self, Limits};
use crashsim::{Random, exhaustive, random};
use leafblk::leaf::{Layout, LeafError, create_storage};

const LAYOUTS: [Layout; 2] = [Layout::Direct, Layout::Packed];
/// How many seeds the bounded run takes; they are 1, 2, 3 …
const SEEDS: u64 = 40;

/// Runs the test of that name in a process of its own. Leaves are opened and closed by
/// ten thousands here, each with its mappings: threads of one process take turns at
/// those, and interrupt each other at each end (all of this file took 51 s, now 36).
fn in_its_own_process(name: &str, test: impl FnOnce()) {
    const MARK: &str = "LEAFBLK_POWER_CUTS_OWN_PROCESS";
    if std::env::var_os(MARK).is_some() {
        return test();
    }
    let mut itself = Command::new(std::env::current_exe().unwrap());
    let output = itself.args(["--exact", name, "--nocapture"]).env(MARK, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    // Not its result, which would be counted beside this one's.
    said.lines().filter(|line| !line.starts_with("test ")).for_each(|line| println!("{line}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("test result: ok. 1 passed"), "there is no test {name}");
}

#[test]
fn every_sequence_of_three_operations_keeps_the_promise_wherever_it_ends() {
    in_its_own_process(
        "every_sequence_of_three_operations_keeps_the_promise_wherever_it_ends",
        || {
            for layout in LAYOUTS {
                let report =
                    exhaustive::run(3, layout, Lie::Honest).unwrap_or_else(|why| panic!("{why}"));
                println!("{layout:?}, sequences of up to 3 operations: {report}");
                assert!(report.runs > 700, "{report}");
                assert!(report.power_cuts > 10_000 && report.kills > 3_000, "{report}");
                let Report { damages, refusals, .. } = report;
                assert!(damages > 6_000 && refusals < damages / 10, "{report}");
            }
        },
    );
}

#[test]
fn long_random_sequences_keep_the_promise_through_crashes_and_faults() {
    in_its_own_process("long_random_sequences_keep_the_promise_through_crashes_and_faults", || {
        let mut report = Report::default();
        for seed in 1..=SEEDS {
            report += random::run(seed, Lie::Honest).unwrap_or_else(|why| panic!("{why}"));
        }
        println!("random sequences, seeds 1 to {SEEDS}: {report}");
        assert!(report.power_cuts > 30_000 && report.faults > 40, "{report}");
    });
}

/// Each must be caught: what is never caught is not tested.
const LIES: [Lie; 6] = [
    Lie::SyncsNothing,
    Lie::SkipsSyncs(0),
    Lie::SkipsSyncs(1),
    Lie::MapBeforeData(0),
    Lie::MapBeforeData(1),
    Lie::TearsUnits,
];

#[test]
fn disks_that_lie_are_caught_by_short_sequences() {
    in_its_own_process("disks_that_lie_are_caught_by_short_sequences", || {
        for (lie, layout) in LIES.into_iter().flat_map(|lie| LAYOUTS.map(|layout| (lie, layout))) {
            let why = exhaustive::run(3, layout, lie)
                .expect_err(&format!("{lie:?}, {layout:?} was not noticed"));
            println!("{lie:?}, {layout:?}: {why}");
        }
    });
}

#[test]
fn disks_that_lie_are_caught_by_random_sequences() {
    in_its_own_process("disks_that_lie_are_caught_by_random_sequences", || {
        for lie in LIES {
            let caught = (1..=SEEDS).find_map(|seed| random::run(seed, lie).err());
            println!("{lie:?}: {}", caught.unwrap_or_else(|| panic!("{lie:?} was not noticed")));
        }
    });
}

#[test]
fn a_leaf_that_is_being_created_is_whole_before_it_gets_its_name() {
    let path = Path::new("vm.leaf");
    let disk = SimDisk::new(Image::default(), Lie::Honest);
    disk.record(None);
    create_storage(path, &disk, Layout::Packed, 1 << 20, &identity(1)).unwrap();
    let limits = Limits { all: 1 << 16, pairs: 0, random: 0 };
    let mut half_made = 0;
    for moment in disk.moments() {
        // The file has no name yet: what is there is no leaf, or a whole one.
        states::each(&moment.image, Lie::Honest, &limits, &mut Random::new(1), |state| {
            match open(&SimDisk::new(state, Lie::Honest), None) {
                Ok(leaf) => assert_eq!((leaf.sectors(), leaf.present_sectors()), (2048, 0)),
                Err(
                    LeafError::NotALeaf { .. }
                    | LeafError::Damaged { .. }
                    | LeafError::CutShort { .. },
                ) => {
                    half_made += 1;
                }
                Err(other) => return Err(other),
            }
            Ok(())
        })
        .unwrap();
    }
    assert!(half_made > 10, "{half_made}");
    // It is named now, and in every state it is whole.
    let states = states::each(&disk.image(), Lie::Honest, &limits, &mut Random::new(1), |state| {
        open(&SimDisk::new(state, Lie::Honest), None).map(drop)
    });
    assert_eq!(states.unwrap(), 1, "nothing is unsynced");
}

#[test]
fn a_creation_that_fails_is_an_error_for_want_of_space_and_for_a_failed_sync() {
    for (fails, errno) in [
        (Fails::Writes(0), libc::ENOSPC),
        (Fails::Writes(5120), libc::ENOSPC),
        (Fails::Syncs(0), libc::EIO),
    ] {
        let disk = SimDisk::new(Image::default(), Lie::Honest);
        disk.fail(Some(fails));
        match create_storage(Path::new("vm.leaf"), &disk, Layout::Packed, 1 << 20, &identity(1)) {
            Err(LeafError::Create { source, .. }) => assert_eq!(source.raw_os_error(), Some(errno)),
            other => panic!("{fails:?}: {other:?}"),
        }
    }
}
