//! The states that a power cut may leave of an image.
//!
//! Each 512-byte unit, and the file's length, is any of its versions. As many
//! combinations as [`Limits::all`] are all tried. Of more: the oldest and the
//! newest of everything; each unit alone old or new, and each pair (up to
//! [`Limits::pairs`]); everything up to an operation, and only what came after
//! it; and [`Limits::random`] random ones.

use super::Random;
use super::disk::{Content, Image, Lie, Versions};

/// How far to go where there are too many states.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) all: u64,
    pub(crate) pairs: usize,
    pub(crate) random: u64,
}

/// Which version of a unit (or of the length) stays: 0 is the durable one.
type Choice = Vec<usize>;

/// What is not synced, in the order of the units; the length comes last.
struct Dirty {
    units: Vec<u64>,
    /// How many versions each has; the operations that brought them.
    versions: Vec<Vec<u64>>,
}

impl Dirty {
    fn of(image: &Image) -> Self {
        let mut dirty = Self { units: Vec::new(), versions: Vec::new() };
        let operations = |newer: Vec<u64>| [vec![0], newer].concat();
        for (unit, found) in &image.units {
            if !found.newer.is_empty() {
                dirty.units.push(*unit);
                dirty.versions.push(operations(found.newer.iter().map(|v| v.0).collect()));
            }
        }
        dirty.versions.push(operations(image.len.newer.iter().map(|v| v.0).collect()));
        dirty
    }

    fn newest(&self) -> Choice {
        self.versions.iter().map(|v| v.len() - 1).collect()
    }

    fn oldest(&self) -> Choice {
        vec![0; self.versions.len()]
    }

    fn total(&self) -> u64 {
        self.versions.iter().fold(1u64, |total, v| total.saturating_mul(v.len() as u64))
    }

    fn choices(&self, limits: &Limits, random: &mut Random) -> Vec<Choice> {
        if self.total() <= limits.all {
            return self.all();
        }
        let mut found = vec![self.oldest(), self.newest()];
        let count = self.versions.len();
        for (base, other) in [(self.oldest(), self.newest()), (self.newest(), self.oldest())] {
            let mut pairs = 0;
            for a in 0..count {
                for b in a..count {
                    // A pair of one is that unit alone.
                    pairs += usize::from(a != b);
                    if a == b || pairs <= limits.pairs {
                        let mut choice = base.clone();
                        (choice[a], choice[b]) = (other[a], other[b]);
                        found.push(choice);
                    }
                }
            }
        }
        let mut operations: Vec<u64> = self.versions.concat();
        operations.sort_unstable();
        operations.dedup();
        for operation in operations {
            let before = |v: &Vec<u64>| v.iter().rposition(|o| *o <= operation).unwrap_or(0);
            let after = |v: &Vec<u64>| {
                if v.last().is_some_and(|last| *last > operation) { v.len() - 1 } else { 0 }
            };
            found.push(self.versions.iter().map(before).collect());
            found.push(self.versions.iter().map(after).collect());
        }
        found.extend((0..limits.random).map(|_| self.random(random)));
        found
    }

    fn all(&self) -> Vec<Choice> {
        let mut found = Vec::new();
        let mut choice = self.oldest();
        loop {
            found.push(choice.clone());
            let next = (0..choice.len()).find(|i| choice[*i] + 1 < self.versions[*i].len());
            let Some(next) = next else {
                return found;
            };
            choice[next] += 1;
            choice[..next].fill(0);
        }
    }

    /// Mostly old, mostly new or mixed.
    fn random(&self, random: &mut Random) -> Choice {
        let new_of_8 = [1, 4, 7][usize::try_from(random.below(3)).unwrap()];
        let mut pick = |versions: &Vec<u64>| match random.below(8) < new_of_8 {
            true => versions.len() - 1,
            false => usize::try_from(random.below(versions.len() as u64)).unwrap(),
        };
        self.versions.iter().map(&mut pick).collect()
    }

    fn image(&self, from: &Image, choice: &Choice, lie: Lie) -> Image {
        let mut image = from.clone();
        for ((unit, chosen), i) in self.units.iter().zip(choice).zip(0..) {
            let versions = image.units.get_mut(unit).unwrap();
            let before = versions.durable.clone();
            *versions = settled(versions, *chosen);
            if lie == Lie::TearsUnits && i % 2 == 0 {
                versions.durable = torn(&before, &versions.durable);
            }
        }
        image.len = settled(&image.len, choice.last().copied().unwrap_or(0));
        image
    }
}

fn settled<T: Clone>(versions: &Versions<T>, chosen: usize) -> Versions<T> {
    let durable = match chosen.checked_sub(1) {
        Some(newer) => versions.newer[newer].1.clone(),
        None => versions.durable.clone(),
    };
    Versions { durable, newer: Vec::new() }
}

fn torn(before: &Content, after: &Content) -> Content {
    let bytes = |content: &Content| content.as_deref().copied().unwrap_or([0; 512]);
    let mut torn = bytes(before);
    torn[..256].copy_from_slice(&bytes(after)[..256]);
    Some(std::sync::Arc::new(torn))
}

/// Calls `with` for each state, until it fails; how many there were.
pub(crate) fn each<E>(
    image: &Image,
    lie: Lie,
    limits: &Limits,
    random: &mut Random,
    mut with: impl FnMut(Image) -> Result<(), E>,
) -> Result<u64, E> {
    let dirty = Dirty::of(image);
    let choices = dirty.choices(limits, random);
    let count = choices.len() as u64;
    choices.iter().try_for_each(|choice| with(dirty.image(image, choice, lie)))?;
    Ok(count)
}

/// One of the states, by chance.
pub(crate) fn any(image: &Image, lie: Lie, random: &mut Random) -> Image {
    let dirty = Dirty::of(image);
    let choice = dirty.random(random);
    dirty.image(image, &choice, lie)
}
