//! Holding what is found after an end against what may be found.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::sparse;
use leafblk::leaf::{Leaf, LeafError, OpenOptions};
use leafblk::units::{Sector, SectorRange};

use super::Random;
use super::disk::{Image, Lie, Moment, SimDisk};
use super::model::{Value, World, root};
use super::ops::{Machine, Op, Step, identity, open};
use super::states::{self, Limits};

/// One in so many states is also written to and opened again, and offered to a
/// wrong root.
const EXERCISED: u64 = 32;

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// Sequences of operations, or runs from a seed.
    pub(crate) runs: u64,
    pub(crate) operations: u64,
    /// States after a power cut that were opened and compared.
    pub(crate) power_cuts: u64,
    pub(crate) kills: u64,
    /// Kills after which a copy of the header was damaged, and how many of those
    /// leaves were refused.
    pub(crate) damages: u64,
    pub(crate) refusals: u64,
    /// Operations that a fault was injected into.
    pub(crate) faults: u64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.operations += other.operations;
        self.power_cuts += other.power_cuts;
        self.kills += other.kills;
        self.damages += other.damages;
        self.refusals += other.refusals;
        self.faults += other.faults;
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { runs, operations, power_cuts, kills, damages, refusals, faults } = self;
        write!(
            f,
            "{runs} runs, {operations} operations, {power_cuts} states after power cuts, \
             {kills} after kills, {damages} of these with a damaged header ({refusals} refused), \
             {faults} faults"
        )
    }
}

/// Sector values, and the size in sectors.
pub(crate) type Found = (u64, BTreeMap<u64, Value>);

/// Checks states, and counts them.
pub(crate) struct Checker {
    pub(crate) limits: Limits,
    pub(crate) lie: Lie,
    pub(crate) report: Report,
    pub(crate) random: Random,
    root: Vec<u8>,
    again: PathBuf,
}

impl Checker {
    pub(crate) fn new(limits: Limits, lie: Lie, seed: u64, dir: &Path) -> Self {
        Self {
            limits,
            lie,
            report: Report::default(),
            random: Random::new(seed),
            root: root(),
            again: dir.join("again"),
        }
    }

    /// All ends in the middle of the step, and after it.
    pub(crate) fn check_step(&mut self, machine: &Machine, step: &Step) -> Result<(), String> {
        for moment in &step.moments {
            if moment.before_sync {
                self.check_power_cuts(&moment.image, &step.after_power_cut(moment))?;
            }
            self.check_kill(moment, &step.after_kill(moment))?;
            if matches!(step.op, Op::Open | Op::Close | Op::Grow(_) | Op::Shrink(_) | Op::Reset) {
                self.check_reopening(moment, &step.after_power_cut(moment))?;
            }
        }
        let after = [machine.model.after_power_cut()];
        let image = machine.disk.image();
        self.check_power_cuts(&image, &after)?;
        let live_map = sparse::read(&machine.live_map);
        let moment = Moment { image, live_map, before_sync: false, beside: (0, 0) };
        self.check_kill(&moment, &[machine.model.after_kill(&[])])
    }

    pub(crate) fn check_power_cuts(
        &mut self,
        image: &Image,
        worlds: &[World],
    ) -> Result<(), String> {
        let (limits, mut random) = (self.limits, self.random.clone());
        let mut tried = 0;
        states::each(image, self.lie, &limits, &mut random, |state| {
            tried += 1;
            self.after_power_cut(state, worlds).map(drop)
        })?;
        self.random = random;
        Ok(())
    }

    /// Opens the state and compares.
    pub(crate) fn after_power_cut(
        &mut self,
        state: Image,
        worlds: &[World],
    ) -> Result<Found, String> {
        self.report.power_cuts += 1;
        let disk = SimDisk::new(state, Lie::Honest);
        if self.random.one_in(EXERCISED) {
            refuses_another_root(&disk)?;
        }
        let leaf = open(&disk, None).map_err(|e| format!("does not open: {e}"))?;
        let found = self.compare(&leaf, worlds)?;
        if self.random.one_in(EXERCISED) {
            self.exercise(&disk, leaf, &found)?;
        }
        Ok(found)
    }

    /// Opens what a kill left, with its live map.
    pub(crate) fn check_kill(&mut self, moment: &Moment, worlds: &[World]) -> Result<(), String> {
        self.report.kills += 1;
        let again = self.again.clone();
        let disk = SimDisk::new(moment.image.clone(), Lie::Honest);
        sparse::put(&again, moment.live_map.as_ref());
        let leaf = open(&disk, Some(&again)).map_err(|e| format!("after a kill: {e}"))?;
        self.compare(&leaf, worlds).map(drop).map_err(|e| format!("after a kill: {e}"))?;
        drop(leaf);
        [0, 1].into_iter().try_for_each(|copy| self.check_damage(moment, copy, worlds))
    }

    /// As a kill, and a copy of the header is damaged before the leaf is opened
    /// again: all is there. In the midst of a change that may have happened or not,
    /// the leaf may be refused.
    fn check_damage(&mut self, moment: &Moment, copy: u64, worlds: &[World]) -> Result<(), String> {
        self.report.damages += 1;
        let again = self.again.clone();
        let mut image = moment.image.clone();
        // After a change of size or a reset that was cut off, the copies say the same
        // again once the leaf was opened: until then there is but one.
        if worlds.len() == 1 && copies_disagree(&image) {
            return Ok(());
        }
        if !image.damage_header(copy) {
            // The other one is being written.
            return Ok(());
        }
        let disk = SimDisk::new(image, Lie::Honest);
        sparse::put(&again, moment.live_map.as_ref());
        let opened = match open(&disk, Some(&again)) {
            Err(LeafError::LiveMapAhead { .. } | LeafError::CutShort { .. })
                if worlds.len() > 1 =>
            {
                self.report.refusals += 1;
                return Ok(());
            }
            opened => opened.and_then(|leaf| {
                leaf.flush()?;
                Ok(leaf)
            }),
        };
        let what = format!("after a kill, with copy {copy} of the header damaged");
        let leaf = opened.map_err(|e| format!("{what}: {e}"))?;
        self.compare(&leaf, worlds).map_err(|e| format!("{what}: {e}"))?;
        drop(leaf);
        // All of it is durable then.
        let leaf = open(&disk, None).map_err(|e| format!("{what}, again: {e}"))?;
        self.compare(&leaf, worlds).map(drop).map_err(|e| format!("{what}, again: {e}"))
    }

    /// After a kill, a power cut while the leaf is opened again, and after it:
    /// what the killed daemon wrote last may not be durable.
    fn check_reopening(&mut self, moment: &Moment, worlds: &[World]) -> Result<(), String> {
        let again = self.again.clone();
        let disk = SimDisk::new(moment.image.clone(), self.lie);
        sparse::put(&again, moment.live_map.as_ref());
        disk.record(None);
        let opened = open(&disk, Some(&again)).map_err(|e| format!("after a kill: {e}"))?;
        let moments = disk.moments();
        drop(opened);
        let images = moments.into_iter().filter(|moment| moment.before_sync);
        for image in images.map(|moment| moment.image).chain([disk.image()]) {
            self.check_power_cuts(&image, worlds)
                .map_err(|e| format!("opened after a kill, then a power cut: {e}"))?;
        }
        Ok(())
    }

    /// What the leaf holds, if one of the worlds has all of it.
    pub(crate) fn compare(&self, leaf: &Leaf, worlds: &[World]) -> Result<Found, String> {
        let mut why = String::new();
        for world in worlds {
            match self.compare_with(leaf, world) {
                Ok(found) => return Ok(found),
                Err(e) => why = e,
            }
        }
        Err(why)
    }

    fn compare_with(&self, leaf: &Leaf, world: &World) -> Result<Found, String> {
        if leaf.sectors() != world.sectors {
            return Err(format!("{} sectors, not {}", leaf.sectors(), world.sectors));
        }
        let mut present = 0;
        let mut values = BTreeMap::new();
        for (sector, may_be) in world.may_be.range(..world.sectors) {
            let (sector, held) = (*sector, leaf.next_run(one(*sector)).0);
            present += u64::from(held);
            let content = match held {
                true => read(leaf, sector),
                false => Value::Root.content(sector, &self.root),
            };
            let is = |value: Value| value.content(sector, &self.root) == content;
            let Some(value) = may_be.iter().copied().find(|value| is(*value)) else {
                let content = &content[..16];
                return Err(format!(
                    "sector {sector} is {content:02x?}… (held: {held}), not one of {may_be:?}"
                ));
            };
            values.insert(sector, value);
        }
        match leaf.present_sectors() {
            all if all == present => Ok((world.sectors, values)),
            all => Err(format!("{all} sectors are held, and {present} were ever written")),
        }
    }

    /// What was found stays, with a write more, through a flush and an opening.
    fn exercise(&self, disk: &SimDisk, leaf: Leaf, found: &Found) -> Result<(), String> {
        let (sectors, values) = found;
        let mut may_be: BTreeMap<_, _> = values.iter().map(|(s, v)| (*s, vec![*v])).collect();
        let trouble = |e: LeafError| format!("does not work on: {e}");
        leaf.write_zeroes(one(3)).map_err(trouble)?;
        leaf.flush().map_err(trouble)?;
        drop(leaf);
        may_be.insert(3, vec![Value::Zeros]);
        let world = World { sectors: *sectors, may_be };
        let durable =
            states::each(&disk.image(), Lie::Honest, &self.limits, &mut Random::new(1), |state| {
                let leaf = open(&SimDisk::new(state, Lie::Honest), None).map_err(trouble)?;
                self.compare(&leaf, std::slice::from_ref(&world)).map(drop)
            });
        durable.map(drop)
    }
}

/// Puts a live map's file there, or none.
/// Whether the header's copies have another size, or one has a void map.
fn copies_disagree(image: &Image) -> bool {
    let field = |copy: u64, at: u64| {
        let mut bytes = [0; 8];
        image.get(copy * 4096 + at, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    [24, 56].into_iter().any(|at| field(0, at) != field(1, at))
}

fn refuses_another_root(disk: &SimDisk) -> Result<(), String> {
    let storage = Box::new(disk.clone());
    let opened =
        Leaf::open_storage(Path::new("vm.leaf"), storage, &identity(2), &OpenOptions::default());
    match opened {
        Err(LeafError::OtherRoot { .. }) => Ok(()),
        other => Err(format!("another root gives {other:?}")),
    }
}

fn one(sector: u64) -> SectorRange {
    SectorRange::new(Sector(sector), 1).unwrap()
}

fn read(leaf: &Leaf, sector: u64) -> [u8; 512] {
    let mut bytes = [0xcc; 512];
    leaf.read_bytes(Sector(sector), &mut bytes).unwrap();
    bytes
}
