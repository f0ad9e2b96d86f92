//! The leaf's second design on a simulated disk: some seeds of what
//! `cargo run --release --example simulate` runs without end, and damage at rest.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod sim;

use leafblk::slot_leaf::leaf::{FetchError, Settings};
use leafblk::slot_leaf::record::Key;
use leafblk::slot_leaf::word::Slot;
use leafblk::slot_leaf::{Event, Leaf, OpenError, create, open};
use leafblk::write_cache::WriteCache;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use sim::disk::{Disk, key};
use sim::memory::Fused;

/// Runs of 4000 steps each.
const SEEDS: u64 = 60;

#[test]
fn every_sector_is_right_whatever_happens_to_process_disk_and_power() {
    let mut report = sim::Report::default();
    for seed in 1..=SEEDS {
        report.add(sim::run(seed).unwrap());
    }
    println!("{SEEDS} seeds: {report:?}");
    assert!(report.kills > SEEDS && report.power_cuts > SEEDS && report.flushes > 10 * SEEDS);
}

#[test]
fn a_seed_gives_the_same_run_again() {
    assert_eq!(sim::run(7).unwrap(), sim::run(7).unwrap());
}

const SETTINGS: Settings =
    Settings { write_back_at: 400, age_max: u64::MAX, window: 1 << 20, patience: u64::MAX };

/// A leaf with a block of its own at 5 and another at 9, checkpointed if so wanted, closed
/// with nothing in memory.
fn with_two_blocks(checkpoint: bool) -> (Disk, SmallRng) {
    let (mut disk, mut rng) = (Disk::new(), SmallRng::seed_from_u64(1));
    create(&mut disk, [1; 16], 800, Key(key(&mut rng))).unwrap();
    let mut leaf = opened(&mut disk, &mut rng).unwrap();
    for block in [5, 9] {
        leaf.write(0, block, 0, &[u8::try_from(block).unwrap(); 4096]).unwrap();
        settle(&mut leaf, &mut disk, &mut rng);
    }
    if checkpoint {
        leaf.want_checkpoint();
        settle(&mut leaf, &mut disk, &mut rng);
    }
    (disk, rng)
}

fn opened(disk: &mut Disk, rng: &mut SmallRng) -> Result<Leaf<Fused>, OpenError> {
    let file = sim::memory_file()?;
    let memory = Fused::map(&file, 1, &std::rc::Rc::default(), &std::rc::Rc::default())?;
    open(disk, WriteCache::new(memory, 1), SETTINGS, Key(key(rng)), 0)
}

fn settle(leaf: &mut Leaf<Fused>, disk: &mut Disk, rng: &mut SmallRng) {
    leaf.flush(0, 0);
    loop {
        leaf.advance(disk, 0);
        while let Some((token, result)) = disk.complete_one(rng) {
            leaf.complete(token, result, 0);
        }
        if leaf.is_idle() {
            break;
        }
    }
    assert!(matches!(leaf.event(), Some(Event::Flushed { durable: true, .. })));
}

fn slot_of(leaf: &Leaf<Fused>, block: u64) -> Slot {
    leaf.source(block).slot.unwrap().0
}

#[test]
fn a_damaged_block_is_an_error_and_never_data() {
    let (mut disk, mut rng) = with_two_blocks(true);
    let mut leaf = opened(&mut disk, &mut rng).unwrap();
    disk.damage(slot_of(&leaf, 5), 1000);
    assert!(leaf.fetch(&mut disk, 5, 1));
    let (token, result) = disk.complete_one(&mut rng).unwrap();
    leaf.complete(token, result, 0);
    let Some(Event::Fetched { frame, .. }) = leaf.event() else { panic!("nothing was read") };
    assert_eq!(frame, Err(FetchError::Damaged));
}

#[test]
fn a_write_of_one_sector_keeps_the_others_of_a_damaged_block_lost() {
    let (mut disk, mut rng) = with_two_blocks(true);
    let mut leaf = opened(&mut disk, &mut rng).unwrap();
    disk.damage(slot_of(&leaf, 5), 1000);
    leaf.write(0, 5, 3, &[1; 512]).unwrap();
    settle(&mut leaf, &mut disk, &mut rng);
    drop(leaf);
    let mut leaf = opened(&mut disk, &mut rng).unwrap();
    let source = leaf.source(5);
    assert_eq!((source.damaged.0, source.slot.unwrap().2.0), (0b1111_0111, 0b0000_1000));
    // What is written again is well.
    leaf.write(0, 5, 0, &[2; 4096]).unwrap();
    settle(&mut leaf, &mut disk, &mut rng);
    assert!(leaf.source(5).damaged.is_empty());
}

#[test]
fn a_damaged_index_page_is_named() {
    let (mut disk, mut rng) = with_two_blocks(true);
    let leaf = opened(&mut disk, &mut rng).unwrap();
    let page = leaf.index_slots()[0];
    drop(leaf);
    disk.damage(page, 0);
    let error = opened(&mut disk, &mut rng).err().unwrap();
    assert!(matches!(error, OpenError::DamagedIndex(slot) if slot == page), "{error}");
}

#[test]
fn one_damaged_superblock_is_no_matter_and_two_are_an_error() {
    let (mut disk, mut rng) = with_two_blocks(true);
    for place in 0..2 {
        disk.damage(Slot(place), 2000);
        let leaf = opened(&mut disk, &mut rng).unwrap();
        assert!(leaf.source(5).slot.is_some() && leaf.source(9).slot.is_some());
    }
    disk.damage(Slot(0), 2000);
    disk.damage(Slot(1), 2000);
    assert!(matches!(opened(&mut disk, &mut rng), Err(OpenError::NoSuperblock)));
}

#[test]
fn damage_to_a_block_that_was_durable_does_not_end_the_chain_before_later_records() {
    let (mut disk, mut rng) = with_two_blocks(false);
    let leaf = opened(&mut disk, &mut rng).unwrap();
    let slot = slot_of(&leaf, 5);
    drop(leaf);
    disk.damage(slot, 1000);
    let leaf = opened(&mut disk, &mut rng).unwrap();
    assert_eq!(slot_of(&leaf, 5), slot, "it is read, and found damaged");
    assert!(leaf.source(9).slot.is_some(), "and nothing else is lost");
}

#[test]
fn what_is_no_leaf_is_refused() {
    let (mut disk, mut rng) = (Disk::new(), SmallRng::seed_from_u64(1));
    assert!(matches!(opened(&mut disk, &mut rng), Err(OpenError::NoSuperblock)));
}
