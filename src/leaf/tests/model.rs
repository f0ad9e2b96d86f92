//! A leaf against a root and a map of changed sectors, through writes, flushes,
//! other sizes, resets and every way to end: closed, killed, and without power.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::mem::Mem;
use super::*;

/// The root that the leaves of these tests belong to is 1 MiB.
const ROOT_SECTORS: u64 = 2048;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Flush,
    Reset,
    /// To so many sectors: more or fewer.
    Resize(u64),
    Close,
    Kill,
    /// A seed for what stays.
    LosePower(u64),
}

/// Ranges that like the edges of words, map pages and the disk.
fn ranges() -> impl Strategy<Value = (u64, u64)> {
    let edge = prop::sample::select(vec![0, 64, live_map::PAGE_SECTORS, SECTORS]);
    let near = (edge, 0u64..140).prop_map(|(edge, off)| (edge + off).saturating_sub(70));
    let start = prop_oneof![4 => near, 1 => 0..SECTORS];
    let count = prop_oneof![4 => 1u64..140, 1 => select_long()];
    (start, count).prop_map(|(start, count)| {
        let start = start.min(SECTORS - 1);
        (start, count.min(SECTORS - start))
    })
}

fn select_long() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![live_map::PAGE_SECTORS, 2 * live_map::PAGE_SECTORS])
}

fn steps(end: impl Strategy<Value = Step> + 'static) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        // Long writes are slow in memory; long zeroes are not.
        8 => (ranges(), 1u8..).prop_map(|((start, count), fill)| {
            Step::Write(start, count.min(140), fill)
        }),
        3 => ranges().prop_map(|(start, count)| Step::Zero(start, count)),
        2 => Just(Step::Flush),
        2 => end,
    ];
    vec(step, 1..25)
}

fn naive_run(held: &HashMap<u64, u8>, start: u64, count: u64) -> (bool, u64) {
    let present = held.contains_key(&start);
    let run = (start..start + count).take_while(|s| held.contains_key(s) == present).count();
    (present, run as u64)
}

/// The root: each sector is a byte of its own.
fn root_bytes() -> Vec<u8> {
    (0..ROOT_SECTORS).flat_map(|sector| [(sector % 241) as u8 + 10; 512]).collect()
}

/// What a guest reads: the leaf's sectors, the root's, and zeros behind it.
fn guest_sees(leaf: &Leaf, root: &[u8], sector: u64) -> Vec<u8> {
    match leaf.next_run(range(sector, 1)).0 {
        true => read(leaf, sector, 1),
        false => root_sector(root, sector),
    }
}

fn root_sector(root: &[u8], sector: u64) -> Vec<u8> {
    root.chunks(512).nth(sector as usize).map_or_else(|| vec![0; 512], <[u8]>::to_vec)
}

/// The leaf's runs and content are the model's.
fn check(leaf: &Leaf, held: &HashMap<u64, u8>, probes: &[(u64, u64)]) -> Result<(), TestCaseError> {
    let (root, size) = (root_bytes(), leaf.sectors());
    prop_assert_eq!(leaf.present_sectors(), held.len() as u64);
    for (start, count) in probes.iter().filter(|(start, _)| *start < size) {
        let count = &(*count).min(size - start);
        for sector in [*start, start + count - 1] {
            let changed = held.get(&sector).map(|fill| vec![*fill; 512]);
            let expected = changed.unwrap_or_else(|| root_sector(&root, sector));
            prop_assert_eq!(guest_sees(leaf, &root, sector), expected, "sector {}", sector);
        }
        let expected = naive_run(held, *start, *count);
        prop_assert_eq!(leaf.next_run(range(*start, *count)), expected, "{} at {}", count, start);
        let absent = expected == (false, *count);
        prop_assert_eq!(leaf.is_absent(range(*start, *count)), absent);
    }
    let mut at = 0;
    while at < size {
        let (present, count) = leaf.next_run(range(at, size - at));
        prop_assert_eq!((present, count), naive_run(held, at, size - at));
        if present {
            for (sector, bytes) in (at..).zip(read(leaf, at, count).chunks(512)) {
                prop_assert!(is_all(bytes, held[&sector]), "sector {}", sector);
            }
        }
        at += count;
    }
    Ok(())
}

/// Carries the step out on both, if it is one of the running leaf's.
fn apply(leaf: &Leaf, held: &mut HashMap<u64, u8>, step: &Step) {
    match step {
        Step::Write(start, count, fill) => {
            write(leaf, *start, *count, *fill).unwrap();
            held.extend((*start..start + count).map(|s| (s, *fill)));
        }
        Step::Zero(start, count) => {
            leaf.write_zeroes(range(*start, *count)).unwrap();
            // Past the root a packed leaf leaves alone what it never held.
            held.extend((*start..start + count).filter_map(|s| {
                let is_held = leaf.next_run(range(s, 1)).0;
                assert!(is_held || leaf.is_packed() && s >= ROOT_SECTORS, "{s}");
                is_held.then_some((s, 0))
            }));
        }
        Step::Flush => leaf.flush().unwrap(),
        Step::Reset | Step::Resize(_) | Step::Close | Step::Kill | Step::LosePower(_) => {}
    }
}

/// Carries a step out that wants the leaf for itself.
fn apply_alone(leaf: &mut Leaf, held: &mut HashMap<u64, u8>, step: &Step) {
    match step {
        Step::Reset => {
            leaf.reset().unwrap();
            held.clear();
        }
        Step::Resize(sectors) if *sectors > leaf.sectors() => leaf.grow(sectors * 512).unwrap(),
        Step::Resize(sectors) => {
            leaf.shrink(sectors * 512).unwrap();
            held.retain(|sector, _| sector < sectors);
        }
        _ => {}
    }
}

/// Sizes that end in a map page, at its end and past it.
fn sizes() -> impl Strategy<Value = Step> {
    let edge = prop::sample::select(vec![ROOT_SECTORS + 70, live_map::PAGE_SECTORS, SECTORS]);
    (edge, 0u64..140).prop_map(|(edge, off)| Step::Resize(edge + off - 70))
}

fn reopen(mem: &Mem) -> Leaf {
    let storage = Box::new(mem.clone());
    Leaf::open_storage(Path::new("vm.leaf"), storage, &root(1), &OpenOptions::default()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_leaf_that_is_closed_or_killed_holds_what_was_written(
        steps in steps(prop_oneof![
            2 => Just(Step::Close),
            2 => Just(Step::Kill),
            1 => Just(Step::Reset),
            2 => sizes(),
        ]),
        probes in vec(ranges(), 20),
        packed: bool,
    ) {
        let home = if packed { Home::packed() } else { Home::new() };
        let mut leaf = home.open();
        let mut held = HashMap::new();
        for step in &steps {
            if let Step::Write(start, count, _) | Step::Zero(start, count) = step
                && start + count > leaf.sectors()
            {
                continue;
            }
            apply(&leaf, &mut held, step);
            apply_alone(&mut leaf, &mut held, step);
            if let Step::Close | Step::Kill = step {
                if let Step::Close = step {
                    leaf.close().unwrap();
                }
                drop(leaf);
                leaf = home.open();
            }
        }
        check(&leaf, &held, &probes)?;
    }

    #[test]
    fn a_loss_of_power_takes_nothing_that_was_flushed_and_invents_nothing(
        steps in steps(any::<u64>().prop_map(Step::LosePower)),
        last: u64,
        packed: bool,
    ) {
        let home = if packed { Home::packed() } else { Home::new() };
        let mem = Mem::of_file(&home.leaf());
        let mut leaf = reopen(&mem);
        // What a sector may be found as after a loss: the last flushed
        // content (`None`: the root's) and whatever was written since.
        let mut may_be: HashMap<u64, Vec<Option<u8>>> = HashMap::new();
        let mut held = HashMap::new();
        for step in steps.iter().chain([&Step::LosePower(last)]) {
            let step = match step {
                Step::Zero(start, count) => &Step::Zero(*start, (*count).min(140)),
                step => step,
            };
            apply(&leaf, &mut held, step);
            match step {
                Step::Write(start, count, _) | Step::Zero(start, count) => {
                    for sector in *start..start + count {
                        let list = may_be.entry(sector).or_insert_with(|| vec![None]);
                        list.push(held.get(&sector).copied());
                    }
                }
                Step::Flush => {
                    may_be = held.iter().map(|(s, fill)| (*s, vec![Some(*fill)])).collect();
                }
                Step::LosePower(seed) => {
                    drop(leaf);
                    let mut state = *seed;
                    mem.lose_power(|| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        state >> 63 == 1
                    });
                    leaf = reopen(&mem);
                    held.clear();
                    let whole = (0..SECTORS).filter(|s| leaf.next_run(range(*s, 1)).0);
                    for sector in whole {
                        prop_assert!(may_be.contains_key(&sector), "sector {} never written", sector);
                        let bytes = read(&leaf, sector, 1);
                        prop_assert!(is_all(&bytes, bytes[0]), "sector {} is torn", sector);
                        held.insert(sector, bytes[0]);
                    }
                    for (sector, list) in &may_be {
                        let found = held.get(sector).copied();
                        prop_assert!(list.contains(&found), "{}: {:?} of {:?}", sector, found, list);
                    }
                    may_be = held.iter().map(|(s, fill)| (*s, vec![Some(*fill)])).collect();
                }
                Step::Reset | Step::Resize(_) | Step::Close | Step::Kill => {}
            }
        }
    }
}
