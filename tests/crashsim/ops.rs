//! A leaf on a simulated disk, what is done to it, and what may be found after
//! each end in the middle of that.
#![expect(unsafe_code, reason = "writes buffers of our own")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use leafblk::leaf::{Layout, Leaf, LeafError, OpenOptions, create_storage};
use leafblk::root::RootIdentity;
use leafblk::units::{Sector, SectorRange};
use leafblk::virtqueue::GuestBuf;
use tempfile::TempDir;

use super::disk::{Image, Lie, Moment, SimDisk};
use super::model::{Model, ROOT_SECTORS, Value, World};

/// One operation. Start and count, or sizes, in sectors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Op {
    Write(u64, u64),
    /// A guest's discard; for the leaf the same as `WriteZeroes`.
    Discard(u64, u64),
    WriteZeroes(u64, u64),
    Flush,
    Reset,
    Grow(u64),
    Shrink(u64),
    Close,
    Open,
}

/// A write, by its place and content.
pub(crate) type Written = (u64, u64, Value);

pub(crate) fn identity(fingerprint: u8) -> RootIdentity {
    RootIdentity {
        len_bytes: ROOT_SECTORS * 512,
        fingerprint: [fingerprint; 32],
        name: "root".into(),
    }
}

pub(crate) fn open(disk: &SimDisk, live_map: Option<&Path>) -> Result<Leaf, LeafError> {
    let options = OpenOptions { live_map: live_map.map(Path::to_owned), read_only: false };
    Leaf::open_storage(Path::new("vm.leaf"), Box::new(disk.clone()), &identity(1), &options)
}

/// The leaf, its disk, and the model of what it acknowledged.
pub(crate) struct Machine {
    pub(crate) disk: SimDisk,
    pub(crate) leaf: Option<Arc<Leaf>>,
    pub(crate) model: Model,
    pub(crate) live_map: PathBuf,
    writes: u32,
    _dir: Arc<TempDir>,
}

/// Where live maps lie: in memory, as in production.
pub(crate) fn memory_dir() -> Arc<TempDir> {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    Arc::new(in_memory.or_else(|_| tempfile::tempdir()).unwrap())
}

/// An operation that was carried out, and all that is needed to say what an end
/// in its middle may have left.
pub(crate) struct Step {
    pub(crate) op: Op,
    pub(crate) result: Result<(), LeafError>,
    pub(crate) moments: Vec<Moment>,
    before: Model,
    write: Option<Written>,
    beside: Vec<Written>,
}

impl Machine {
    /// A new leaf of so many sectors, closed and durable.
    pub(crate) fn new(sectors: u64, layout: Layout, lie: Lie) -> Self {
        let disk = SimDisk::new(Image::default(), Lie::Honest);
        create_storage(Path::new("vm.leaf"), &disk, layout, sectors * 512, &identity(1)).unwrap();
        Self::on(disk.image(), Model::new(sectors), 0, lie, memory_dir())
    }

    /// The same leaf on another disk. It is closed there, and the live map's
    /// file doesn't exist.
    pub(crate) fn fork(&self, lie: Lie) -> Self {
        Self::on(self.disk.image(), self.model.clone(), self.writes, lie, Arc::clone(&self._dir))
    }

    fn on(image: Image, model: Model, writes: u32, lie: Lie, dir: Arc<TempDir>) -> Self {
        let live_map = dir.path().join("live");
        let _ = std::fs::remove_file(&live_map);
        Self { disk: SimDisk::new(image, lie), leaf: None, model, live_map, writes, _dir: dir }
    }

    fn next_value(&mut self) -> Value {
        self.writes += 1;
        Value::Written(self.writes)
    }

    /// Carries the operation out. `beside`: writes within its syncs, by place
    /// ([`SimDisk::beside`]).
    pub(crate) fn run(&mut self, op: Op, beside: &[(u64, u64, u64)], kills: bool) -> Step {
        let before = self.model.clone();
        let write = match op {
            Op::Write(start, count) => Some((start, count, self.next_value())),
            Op::Discard(start, count) | Op::WriteZeroes(start, count) => {
                Some((start, count, Value::Zeros))
            }
            _ => None,
        };
        self.disk.record(kills.then(|| self.live_map.clone()));
        let beside = self.plan_beside(beside);
        let result = self.carry_out(op, write);
        let moments = self.disk.moments();
        let begun = moments.last().map_or(0, |moment| moment.beside.0);
        let mut step = Step { op, result, moments, before, write, beside };
        // Some are planned for a sync that never came, or came last.
        let done = begun.max(self.disk.beside_ended());
        step.beside.truncate(done);
        self.acknowledge(&step);
        step
    }

    fn plan_beside(&mut self, plan: &[(u64, u64, u64)]) -> Vec<Written> {
        let Some(leaf) = &self.leaf else {
            return Vec::new();
        };
        let leaf: Weak<Leaf> = Arc::downgrade(leaf);
        let mut planned = Vec::new();
        for (place, start, count) in plan.iter().copied() {
            let value = self.next_value();
            planned.push((start, count, value));
            let leaf = leaf.clone();
            let action = move || {
                if let Some(leaf) = leaf.upgrade() {
                    write(&leaf, start, count, value).unwrap();
                }
            };
            self.disk.beside(place, Box::new(action));
        }
        planned
    }

    /// Has write-back asked for within a sync of the next operation.
    pub(crate) fn write_back_beside(&self, place: u64) {
        let Some(leaf) = &self.leaf else { return };
        let leaf = Arc::downgrade(leaf);
        let action = move || {
            // Its error is the leaf's to remember.
            let _ = leaf.upgrade().map(|leaf| leaf.start_write_back());
        };
        self.disk.write_back_beside(place, Box::new(action));
    }

    fn carry_out(&mut self, op: Op, written: Option<Written>) -> Result<(), LeafError> {
        if op == Op::Open {
            self.leaf = Some(Arc::new(open(&self.disk, Some(&self.live_map))?));
            return Ok(());
        }
        let leaf = self.leaf.as_mut().unwrap();
        match op {
            Op::Write(..) => {
                let (start, count, value) = written.unwrap();
                write(leaf, start, count, value)
            }
            Op::Discard(start, count) | Op::WriteZeroes(start, count) => {
                leaf.write_zeroes(SectorRange::new(Sector(start), count).unwrap())
            }
            Op::Flush => leaf.flush(),
            Op::Grow(sectors) => leaf.grow(sectors * 512),
            Op::Reset => Arc::get_mut(leaf).unwrap().reset(),
            Op::Shrink(sectors) => Arc::get_mut(leaf).unwrap().shrink(sectors * 512),
            Op::Close => {
                leaf.close()?;
                self.leaf = None;
                Ok(())
            }
            Op::Open => Ok(()),
        }
    }

    fn acknowledge(&mut self, step: &Step) {
        let model = &mut self.model;
        for written in step.write.iter().chain(&step.beside) {
            model.begin(written.0, written.1, written.2);
        }
        for written in &step.beside {
            model.end(written.0, written.1, written.2);
        }
        if step.result.is_err() {
            return;
        }
        if let Some((start, count, value)) = step.write {
            model.end(start, count, value);
        }
        match step.op {
            Op::Flush | Op::Close => model.flushed(&step.before),
            Op::Reset => model.reset(),
            Op::Grow(sectors) => model.resize(sectors),
            // It flushes first.
            Op::Shrink(sectors) => {
                model.flushed(&step.before);
                model.resize(sectors);
            }
            Op::Write(..) | Op::Discard(..) | Op::WriteZeroes(..) | Op::Open => {}
        }
    }
}

impl Step {
    /// What a power cut at the moment may leave.
    pub(crate) fn after_power_cut(&self, moment: &Moment) -> Vec<World> {
        let mut model = self.before.clone();
        for written in self.write.iter().chain(&self.beside[..moment.beside.0]) {
            model.begin(written.0, written.1, written.2);
        }
        self.either(model).iter().map(Model::after_power_cut).collect()
    }

    /// What a kill at the moment may leave.
    pub(crate) fn after_kill(&self, moment: &Moment) -> Vec<World> {
        let mut model = self.before.clone();
        let (begun, ended) = moment.beside;
        for written in &self.beside[..ended] {
            model.begin(written.0, written.1, written.2);
            model.end(written.0, written.1, written.2);
        }
        let mut unfinished: Vec<Written> = self.write.into_iter().collect();
        unfinished.extend(&self.beside[ended..begun]);
        self.either(model).iter().map(|model| model.after_kill(&unfinished)).collect()
    }

    /// What a crash at the moment makes of the model, before something is found:
    /// what had begun may come yet.
    pub(crate) fn interrupted(&self, moment: &Moment) -> Model {
        let mut model = self.before.clone();
        let (begun, ended) = moment.beside;
        for (i, written) in self.beside[..begun].iter().enumerate() {
            model.begin(written.0, written.1, written.2);
            if i < ended {
                model.end(written.0, written.1, written.2);
            }
        }
        if let Some(written) = self.write {
            model.begin(written.0, written.1, written.2);
        }
        model
    }

    /// The model as it is, and as the whole operation would have made it.
    fn either(&self, model: Model) -> Vec<Model> {
        let mut done = model.clone();
        match self.op {
            Op::Reset => done.reset(),
            Op::Grow(sectors) | Op::Shrink(sectors) => done.resize(sectors),
            _ => return vec![model],
        }
        vec![model, done]
    }
}

fn write(leaf: &Leaf, start: u64, count: u64, value: Value) -> Result<(), LeafError> {
    let mut bytes: Vec<u8> =
        (start..start + count).flat_map(|sector| value.content(sector, &[])).collect();
    // Two buffers, which meet inside a sector.
    let (first, rest) = bytes.split_at_mut(100);
    let bufs = [
        GuestBuf::new(first.as_mut_ptr(), first.len()),
        GuestBuf::new(rest.as_mut_ptr(), rest.len()),
    ];
    // SAFETY: the buffers live on, and have the range's length in all.
    unsafe { leaf.write(SectorRange::new(Sector(start), count).unwrap(), &bufs) }
}
