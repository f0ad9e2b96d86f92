//! Every short sequence of operations, ended at every call that it makes.

use super::check::{Checker, Report};
use super::disk::Lie;
use super::model::ROOT_SECTORS;
use super::ops::{Machine, Op};
use super::states::Limits;
use leafblk::leaf::Layout;

/// Sectors that a page of the presence map covers.
pub(crate) const PAGE: u64 = 32768;
/// The disk: a map page and a bit of a second one.
const SECTORS: u64 = PAGE + 4;

/// The operations: overlapping writes, one across map pages, zeroing of what is
/// held and of what is not, sizes with one map page less and one more.
const OPS: [Op; 11] = [
    Op::Write(0, 2),
    Op::Write(1, 2),
    Op::Write(PAGE - 1, 2),
    Op::Discard(1, 1),
    Op::WriteZeroes(PAGE, 2),
    Op::Flush,
    Op::Reset,
    Op::Grow(2 * PAGE + 4),
    Op::Shrink(PAGE - 1),
    Op::Close,
    Op::Open,
];

/// What differs in a packed leaf: a second write into a block and one into the
/// next, a whole block of zeros, and a size that ends in one.
const PACKED_OPS: [(usize, Op); 4] = [
    (1, Op::Write(7, 2)),
    (3, Op::WriteZeroes(9, 2)),
    (4, Op::Discard(16, 8)),
    (8, Op::Shrink(ROOT_SECTORS + 1)),
];

fn operations(layout: Layout) -> [Op; 11] {
    let mut ops = OPS;
    if layout == Layout::Packed {
        PACKED_OPS.into_iter().for_each(|(i, op)| ops[i] = op);
    }
    ops
}

pub(crate) const LIMITS: Limits = Limits { all: 4096, pairs: 100, random: 100 };

/// A leaf with sectors that hold data and zeros already, closed.
fn begin(layout: Layout) -> Machine {
    let mut machine = Machine::new(SECTORS, layout, Lie::Honest);
    let ops = [
        Op::Open,
        Op::Write(1, 1),
        Op::WriteZeroes(2, 1),
        Op::Write(PAGE + 1, 1),
        Op::WriteZeroes(PAGE - 8, 8),
        Op::Close,
    ];
    for op in ops {
        machine.run(op, &[], false).result.unwrap();
    }
    machine
}

/// All sequences of `1..=depth` operations on an open leaf. Those in which an
/// operation is not possible (open while open, grow to less) are left out.
pub(crate) fn run(depth: u32, layout: Layout, lie: Lie) -> Result<Report, String> {
    let (begin, choice) = (begin(layout), operations(layout));
    let mut checker = Checker::new(LIMITS, lie, 1, begin.live_map.parent().unwrap());
    for depth in 1..=depth {
        for number in 0..choice.len().pow(depth) {
            let places = (0..depth).map(|place| number / choice.len().pow(place) % choice.len());
            let ops: Vec<Op> = places.map(|place| choice[place]).collect();
            check(&begin, &ops, &mut checker).map_err(|why| format!("{why}\nafter {ops:?}"))?;
        }
    }
    Ok(checker.report)
}

/// Ends the last of the operations everywhere: the ones before it are the last
/// of shorter sequences.
fn check(begin: &Machine, ops: &[Op], checker: &mut Checker) -> Result<(), String> {
    let mut machine = begin.fork(checker.lie);
    machine.run(Op::Open, &[], false).result.map_err(|e| e.to_string())?;
    for (i, op) in ops.iter().enumerate() {
        if !is_possible(&machine, *op) {
            return Ok(());
        }
        let last = i + 1 == ops.len();
        let step = machine.run(*op, &[], last);
        if let Err(error) = &step.result {
            return Err(format!("{op:?} failed: {error}"));
        }
        if last {
            checker.check_step(&machine, &step)?;
        }
    }
    checker.report.runs += 1;
    checker.report.operations += ops.len() as u64;
    Ok(())
}

pub(crate) fn is_possible(machine: &Machine, op: Op) -> bool {
    let sectors = machine.model.sectors;
    match (op, &machine.leaf) {
        (Op::Open, leaf) => leaf.is_none(),
        (_, None) => false,
        (
            Op::Write(start, count) | Op::Discard(start, count) | Op::WriteZeroes(start, count),
            _,
        ) => start + count <= sectors,
        (Op::Grow(to), _) => to > sectors,
        (Op::Shrink(to), _) => to < sectors,
        (Op::Flush | Op::Reset | Op::Close, _) => true,
    }
}
