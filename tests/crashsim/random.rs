//! Long random sequences from a seed, with power cuts, kills and faults in the
//! middle of operations, each gone on from.

use super::Random;
use super::check::{Checker, Report};
use super::disk::{Fails, Lie, Moment, SimDisk};
use super::exhaustive::{PAGE, is_possible};
use super::model::{ROOT_SECTORS, Value};
use super::ops::{Machine, Op, Step};
use super::sparse;
use super::states::{self, Limits};
use leafblk::leaf::Layout;

/// Operations of a run.
const OPERATIONS: usize = 60;
const SECTORS: u64 = 2 * PAGE + 1000;
/// States looked at where a step could end: the extremes and some by chance.
const LIMITS: Limits = Limits { all: 6, pairs: 0, random: 3 };

/// Places that are worth it: the disk's ends, and words and pages of the map.
fn range(random: &mut Random, sectors: u64) -> (u64, u64) {
    let near = [0, 64, PAGE, sectors][usize::try_from(random.below(4)).unwrap()];
    let start = (near + random.below(24)).saturating_sub(12).min(sectors - 1);
    (start, (1 + random.below(20)).min(sectors - start))
}

fn choose(random: &mut Random, sectors: u64) -> Op {
    let (start, count) = range(random, sectors);
    let size = ROOT_SECTORS
        + [1, 100, PAGE, 2 * PAGE, 3 * PAGE][usize::try_from(random.below(5)).unwrap()]
        + random.below(20);
    match random.below(40) {
        0..18 => Op::Write(start, count),
        18..22 => Op::Discard(start, count),
        22..25 => Op::WriteZeroes(start, count),
        25..33 => Op::Flush,
        33 => Op::Reset,
        34..36 => Op::Grow(size),
        36 => Op::Shrink(size),
        37 => Op::Close,
        _ => Op::Open,
    }
}

/// One run.
pub(crate) fn run(seed: u64, lie: Lie) -> Result<Report, String> {
    let mut random = Random::new(seed);
    let layout = if seed.is_multiple_of(4) { Layout::Direct } else { Layout::Packed };
    let mut machine = Machine::new(SECTORS, layout, lie);
    let dir = machine.live_map.parent().unwrap().to_owned();
    let mut checker = Checker::new(LIMITS, lie, seed, &dir);
    let mut history = Vec::new();
    for _ in 0..OPERATIONS {
        let mut op = choose(&mut random, machine.model.sectors);
        if machine.leaf.is_none() {
            op = Op::Open;
        } else if !is_possible(&machine, op) {
            continue;
        }
        checker.report.operations += 1;
        step(&mut machine, op, &mut random, &mut checker, &mut history)
            .map_err(|why| format!("seed {seed}: {why}\nafter {}", history.join(", ")))?;
    }
    checker.report.runs = 1;
    Ok(checker.report)
}

fn step(
    machine: &mut Machine,
    op: Op,
    random: &mut Random,
    checker: &mut Checker,
    history: &mut Vec<String>,
) -> Result<(), String> {
    let beside = beside(machine, op, random);
    let fails = match random.below(18) {
        0 => Some(Fails::Syncs(random.below(3))),
        1 => Some(Fails::Writes(512 * random.below(24))),
        2..4 => Some(Fails::WriteBack(2 * random.below(3))),
        _ => None,
    };
    // Only the leaf's operation fails, not the writes beside it.
    let fails = fails.filter(|_| beside.is_empty());
    let syncs = matches!(op, Op::Flush | Op::Grow(_) | Op::Close);
    let fails = fails.filter(|fails| syncs || !matches!(fails, Fails::WriteBack(_)));
    history.push(format!("{op:?}"));
    if !beside.is_empty() {
        history.push(format!("writes in syncs {beside:?}"));
    }
    machine.disk.fail(fails);
    if let Some(Fails::WriteBack(place)) = fails {
        machine.write_back_beside(place);
    }
    let step = machine.run(op, &beside, true);
    machine.disk.fail(None);
    if step.result.is_ok() && machine.leaf.as_ref().is_some_and(|leaf| leaf.is_poisoned()) {
        return Err(format!("{op:?} succeeds beside a failed write-back"));
    }
    if step.result.is_err() {
        checker.report.faults += 1;
        history.push(format!("failed by {fails:?}"));
        return match fails {
            Some(_) => go_on_after_fault(machine, &step, checker, random),
            None => Err(format!("{op:?} failed: {:?}", step.result)),
        };
    }
    let some_moments = step.moments.iter().filter(|moment| moment.before_sync);
    for moment in some_moments {
        checker.check_power_cuts(&moment.image, &step.after_power_cut(moment))?;
    }
    if !random.one_in(6) || step.moments.is_empty() {
        let after = [machine.model.after_power_cut()];
        return checker.check_power_cuts(&machine.disk.image(), &after);
    }
    let chosen = usize::try_from(random.below(step.moments.len() as u64)).unwrap();
    let moment = step.moments[chosen].clone();
    let power_cut = random.one_in(2);
    let end = if power_cut { "power cut" } else { "kill" };
    history.push(format!("{end} at call {chosen}"));
    match power_cut {
        true => go_on_after_power_cut(machine, &step, &moment, checker),
        false => go_on_after_kill(machine, &step, &moment, checker),
    }
}

/// Writes within the syncs of flushes and of growths.
fn beside(machine: &Machine, op: Op, random: &mut Random) -> Vec<(u64, u64, u64)> {
    if !matches!(op, Op::Flush | Op::Grow(_)) || !random.one_in(3) {
        return Vec::new();
    }
    let mut places: Vec<u64> = (0..4).filter(|_| random.one_in(2)).collect();
    places.dedup();
    let write = |place| {
        let (start, count) = range(random, machine.model.sectors);
        (place, start, count)
    };
    places.into_iter().map(write).collect()
}

fn replace(machine: &mut Machine, disk: SimDisk) {
    machine.leaf = None;
    machine.disk = disk;
}

/// The machine goes down, and comes up again without a live map.
fn go_on_after_power_cut(
    machine: &mut Machine,
    step: &Step,
    moment: &Moment,
    checker: &mut Checker,
) -> Result<(), String> {
    let state = states::any(&moment.image, checker.lie, &mut checker.random);
    let found = checker.after_power_cut(state.clone(), &step.after_power_cut(moment))?;
    replace(machine, SimDisk::new(state, checker.lie));
    sparse::put(&machine.live_map, None);
    machine.model = step.interrupted(moment);
    machine.model.found(found.0, &found.1);
    Ok(())
}

/// The daemon is killed, and comes back to its live map.
fn go_on_after_kill(
    machine: &mut Machine,
    step: &Step,
    moment: &Moment,
    checker: &mut Checker,
) -> Result<(), String> {
    checker.check_kill(moment, &step.after_kill(moment))?;
    replace(machine, SimDisk::new(moment.image.clone(), checker.lie));
    sparse::put(&machine.live_map, moment.live_map.as_ref());
    machine.model = step.interrupted(moment);
    let opened = machine.run(Op::Open, &[], false);
    opened.result.map_err(|e| format!("after a kill: {e}"))?;
    let leaf = machine.leaf.as_ref().unwrap();
    let found = checker.compare(leaf, &step.after_kill(moment))?;
    machine.model.seen(found.0, &found.1);
    if step.op == Op::Reset && found.1.values().all(|value| *value == Value::Root) {
        // Its switch was passed, and the opening has completed it.
        machine.model.reset();
    }
    Ok(())
}

/// A failed write leaves a leaf that works on; a failed sync (or a failure
/// after a switch) one that is opened again, on a disk that has lost anything,
/// beside the live map of before.
fn go_on_after_fault(
    machine: &mut Machine,
    step: &Step,
    checker: &mut Checker,
    random: &mut Random,
) -> Result<(), String> {
    let image = machine.disk.image();
    let live_map = sparse::read(&machine.live_map);
    let last = step.moments.last().map_or((0, 0), |moment| moment.beside);
    let moment = Moment { image, live_map, before_sync: true, beside: last };
    if let Some(leaf) = machine.leaf.as_ref().filter(|leaf| !leaf.is_poisoned()) {
        let found = checker.compare(leaf, &step.after_kill(&moment))?;
        machine.model.seen(found.0, &found.1);
        return Ok(());
    }
    if let Some(leaf) = &machine.leaf
        && leaf.flush().is_ok()
    {
        return Err("a poisoned leaf acknowledges a flush".into());
    }
    let state = states::any(&moment.image, checker.lie, random);
    replace(machine, SimDisk::new(state, checker.lie));
    machine.model = step.interrupted(&moment);
    let opened = machine.run(Op::Open, &[], false);
    opened.result.map_err(|e| format!("after a fault: {e}"))?;
    let leaf = machine.leaf.as_ref().unwrap();
    let found = checker
        .compare(leaf, &step.after_power_cut(&moment))
        .map_err(|e| format!("after a fault: {e}"))?;
    machine.model.found(found.0, &found.1);
    Ok(())
}
