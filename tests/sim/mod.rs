//! A leaf, its write cache and a guest on a simulated disk, in one thread and from one
//! seed: writes, discards, flushes and reads in any order, completions in any order and
//! late, short transfers, a disk that fails or is full for a while, kills before any store
//! to the write cache, and power cuts at any step, torn at 512 bytes. Every sector is
//! checked against a model, and slots and frames against leaks.
#![expect(unsafe_code, reason = "the engine's buffers are raw addresses")]

pub(crate) mod disk;
pub(crate) mod memory;
pub(crate) mod model;

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use disk::{Disk, Faults, key};
use leafblk::slot_leaf::leaf::FetchError;
use leafblk::slot_leaf::record::Key;
use leafblk::slot_leaf::word::BLOCK_LEN;
use leafblk::slot_leaf::{Event, Leaf, NoRoom, Settings, create, open};
use leafblk::write_cache::{Memory, WriteCache};
use memory::{Fused, Killed};
use model::{Model, Value};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Steps of one run.
const STEPS: u32 = 4000;
/// Steps in which a disk that is well must get everything done.
const STEPS_TO_DRAIN: u32 = 200_000;
const MILLISECOND: u64 = 1_000_000;

/// What was done in a run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Report {
    pub(crate) writes: u64,
    pub(crate) discards: u64,
    pub(crate) flushes: u64,
    pub(crate) reads: u64,
    pub(crate) kills: u64,
    pub(crate) power_cuts: u64,
}

impl Report {
    /// Both together.
    pub(crate) fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.discards += other.discards;
        self.flushes += other.flushes;
        self.reads += other.reads;
        self.kills += other.kills;
        self.power_cuts += other.power_cuts;
    }
}

struct World {
    rng: SmallRng,
    now: u64,
    disk: Disk,
    memory: File,
    fuse: Rc<Cell<Option<u32>>>,
    full: Rc<Cell<bool>>,
    pieces: u32,
    settings: Settings,
    sectors: u64,
    model: Model,
    version: u32,
    tag: u64,
    /// Flushes in flight: the model's time when they were asked for.
    flushes: HashMap<u64, u64>,
    /// Reads in flight.
    fetches: HashMap<u64, u64>,
    report: Report,
}

type Guest = Leaf<Fused>;

/// Runs one seed.
///
/// # Errors
/// What went wrong, in a sentence.
pub(crate) fn run(seed: u64) -> Result<Report, String> {
    let world = World::new(seed).map_err(|e| e.to_string())?;
    match catch_unwind(AssertUnwindSafe(|| world.run())) {
        Ok(result) => result.map_err(|why| format!("seed {seed}: {why}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("seed {seed}: {}", text.unwrap_or_else(|| "a panic".to_owned())))
        }
    }
}

/// A file on tmpfs without a name.
pub(crate) fn memory_file() -> std::io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(rustix::fs::memfd_create("write-cache", flags)?.into())
}

impl World {
    fn new(seed: u64) -> std::io::Result<Self> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let blocks = *[3, 40, 300, 2000].get(rng.random_range(0..4)).unwrap_or(&3);
        let sectors = blocks * 8 - rng.random_range(0..8);
        let settings = Settings {
            write_back_at: rng.random_range(1..600),
            age_max: rng.random_range(1..5000) * MILLISECOND,
            window: rng.random_range(1..600) * BLOCK_LEN as u64,
            patience: rng.random_range(1..3000) * MILLISECOND,
        };
        let pieces = rng.random_range(1..3);
        let mut disk = Disk::new();
        disk.room = rng.random_range(2..64);
        Ok(Self {
            rng,
            now: 0,
            disk,
            memory: memory_file()?,
            fuse: Rc::default(),
            full: Rc::default(),
            pieces,
            settings,
            sectors,
            model: Model::new(sectors),
            version: 0,
            tag: 0,
            flushes: HashMap::new(),
            fetches: HashMap::new(),
            report: Report::default(),
        })
    }

    fn run(mut self) -> Result<Report, String> {
        let first = Key(key(&mut self.rng));
        create(&mut self.disk, [7; 16], self.sectors, first).map_err(|e| e.to_string())?;
        let mut leaf = Some(self.open()?);
        for step in 0..STEPS {
            let stepping = leaf.take().ok_or("no leaf")?;
            leaf = Some(self.step(stepping).map_err(|why| format!("step {step}: {why}"))?);
        }
        let leaf = leaf.ok_or("no leaf")?;
        self.drain(leaf)?;
        Ok(self.report)
    }

    /// Opens the leaf as a new process does; it may be killed meanwhile, and the power may
    /// be cut.
    fn open(&mut self) -> Result<Guest, String> {
        loop {
            self.disk.fuse =
                (self.rng.random_range(0..4) == 0).then(|| self.rng.random_range(0..6));
            self.fuse.set((self.rng.random_range(0..4) == 0).then(|| self.rng.random_range(0..50)));
            let opened = catch_unwind(AssertUnwindSafe(|| {
                let memory = Fused::map(&self.memory, self.pieces, &self.fuse, &self.full);
                let memory = memory.map_err(|e| e.to_string())?;
                let cache = WriteCache::new(memory, self.pieces);
                let key = Key(key(&mut self.rng));
                let opened = open(&mut self.disk, cache, self.settings, key, self.now);
                opened.map_err(|e| e.to_string())
            }));
            self.fuse.set(None);
            let burnt = self.disk.fuse.take() == Some(0);
            match opened {
                Ok(Ok(leaf)) => return Ok(leaf),
                Ok(Err(_)) if burnt => {}
                Ok(Err(why)) => return Err(format!("it can't be opened: {why}")),
                Err(panic) if panic.is::<Killed>() => {}
                Err(panic) => std::panic::resume_unwind(panic),
            }
            if self.rng.random_range(0..2) == 0 {
                // As after a power cut: nobody opened it in between, so nothing more is known.
                self.lose_power()?;
            }
        }
    }

    fn lose_power(&mut self) -> Result<(), String> {
        self.report.power_cuts += 1;
        self.disk.cut_power(&mut self.rng);
        self.memory = memory_file().map_err(|e| e.to_string())?;
        Ok(())
    }

    /// One step: of the guest, of the disk, of the leaf, or of fate.
    fn step(&mut self, mut leaf: Guest) -> Result<Guest, String> {
        self.now += self.rng.random_range(0..3) * self.rng.random_range(0..20) * MILLISECOND;
        match self.rng.random_range(0..1000) {
            // Without room, the guest waits.
            0..320 => drop(self.write(&mut leaf)),
            320..345 => drop(self.discard(&mut leaf)),
            345..375 => {
                self.tag += 1;
                self.flushes.insert(self.tag, self.model.now);
                leaf.flush(self.now, self.tag);
                self.report.flushes += 1;
            }
            375..500 => self.read(&mut leaf)?,
            500..740 => self.complete(&mut leaf),
            740..983 => leaf.advance(&mut self.disk, self.now),
            983..986 => leaf.want_checkpoint(),
            986..991 => {
                let errors = *[0, 0, 10, 60, 100].get(self.rng.random_range(0..5)).unwrap_or(&0);
                self.disk.faults = Faults { errors, full: self.rng.random_range(0..4) == 0 };
                self.full.set(self.rng.random_range(0..4) == 0);
            }
            991..994 => return self.kill(leaf),
            994..997 => return self.kill_within(leaf),
            _ => return self.cut_power(leaf),
        }
        self.events(&mut leaf)?;
        Ok(leaf)
    }

    /// Some sectors, often the same ones.
    fn range(&mut self, longest: u64) -> (u64, u64) {
        let hot = self.rng.random_range(0..3) == 0;
        let within = if hot { self.sectors.min(64) } else { self.sectors };
        let first = self.rng.random_range(0..within);
        let aligned = self.rng.random_range(0..2) == 0;
        let first = if aligned { first / 8 * 8 } else { first };
        let count = self.rng.random_range(1..=longest).min(self.sectors - first);
        (first, if aligned { count.next_multiple_of(8).min(self.sectors - first) } else { count })
    }

    fn write(&mut self, leaf: &mut Guest) -> Result<(), NoRoom> {
        let (mut sector, mut count) = self.range(24);
        self.version += 1;
        while count > 0 {
            let here = count.min(8 - sector % 8);
            self.write_block(leaf, sector, here, Value::Version(self.version))?;
            (sector, count) = (sector + here, count - here);
        }
        self.report.writes += 1;
        Ok(())
    }

    fn write_block(
        &mut self,
        leaf: &mut Guest,
        sector: u64,
        count: u64,
        value: Value,
    ) -> Result<(), NoRoom> {
        let data: Vec<u8> = (sector..sector + count).flat_map(|s| value.bytes(s)).collect();
        let first = u32::try_from(sector % 8).unwrap_or(0);
        leaf.write(self.now, sector / 8, first, &data)?;
        (sector..sector + count).for_each(|s| self.model.set(s, value));
        Ok(())
    }

    fn discard(&mut self, leaf: &mut Guest) -> Result<(), NoRoom> {
        let (sector, count) = self.range(self.sectors);
        let (first, end) = (sector.div_ceil(8), (sector + count) / 8);
        if first < end {
            leaf.discard(self.now, first, end - first)?;
            (first * 8..end * 8).for_each(|s| self.model.set(s, Value::Zeros));
        }
        self.report.discards += 1;
        Ok(())
    }

    fn read(&mut self, leaf: &mut Guest) -> Result<(), String> {
        let (sector, _) = self.range(1);
        let block = sector / 8;
        self.report.reads += 1;
        if leaf.source(block).slot.is_none() {
            return self.check_block(leaf, block, None);
        }
        self.tag += 1;
        if leaf.fetch(&mut self.disk, block, self.tag) {
            self.fetches.insert(self.tag, block);
        }
        Ok(())
    }

    /// The sectors of a block, the slot's from `fetched`, or from the disk itself.
    fn values(
        &self,
        leaf: &Guest,
        block: u64,
        fetched: Option<&[u8; BLOCK_LEN]>,
    ) -> Result<Vec<Value>, String> {
        let source = leaf.source(block);
        if !source.damaged.is_empty() {
            return Err(format!("block {block} is damaged"));
        }
        let mut values = Vec::new();
        let last = (self.sectors - block * 8).min(8);
        for i in 0..last {
            let (sector, bit) = (block * 8 + i, u32::try_from(i).unwrap_or(0));
            let at = usize::try_from(i * 512).unwrap_or(0);
            let mut bytes = [0; 512];
            if let Some((frame, mask)) = source.frame
                && mask.has(bit)
            {
                leaf.cache().memory().copy_out(frame, at, &mut bytes);
            } else if source.zeros.has(bit) {
            } else if let Some((slot, crc, mask)) = source.slot
                && mask.has(bit)
            {
                let there = fetched.or_else(|| self.disk.slot(slot));
                let there = there.filter(|there| crc32c::crc32c(*there) == crc);
                let there = there.ok_or_else(|| {
                    format!(
                        "block {block}: slot {} is not what was written; {:?}",
                        slot.0, self.report
                    )
                })?;
                bytes.copy_from_slice(&there[at..at + 512]);
            } else {
                values.push(Value::Root);
                continue;
            }
            let value = Value::of(&bytes, sector);
            values.push(value.ok_or_else(|| {
                format!("sector {sector} is nothing that was written there: {:?}", &bytes[..16])
            })?);
        }
        Ok(values)
    }

    /// The block is what the guest was told last.
    fn check_block(
        &self,
        leaf: &Guest,
        block: u64,
        fetched: Option<&[u8; BLOCK_LEN]>,
    ) -> Result<(), String> {
        for (i, value) in self.values(leaf, block, fetched)?.into_iter().enumerate() {
            let sector = block * 8 + i as u64;
            let expected = self.model.current(sector);
            if value != expected {
                return Err(format!("sector {sector} is {value:?}, and should be {expected:?}"));
            }
        }
        Ok(())
    }

    fn complete(&mut self, leaf: &mut Guest) {
        if let Some((token, result)) = self.disk.complete_one(&mut self.rng) {
            leaf.complete(token, result, self.now);
        }
    }

    fn events(&mut self, leaf: &mut Guest) -> Result<(), String> {
        while let Some(event) = leaf.event() {
            match event {
                Event::Flushed { tag, durable } => {
                    let until = self.flushes.remove(&tag).ok_or("a flush was answered twice")?;
                    if durable {
                        self.model.flushed(until);
                    }
                }
                Event::Fetched { tag, block, slot, frame } => {
                    let asked = self.fetches.remove(&tag).ok_or("a read was answered twice")?;
                    if asked != block {
                        return Err(format!("block {block} was read for {asked}"));
                    }
                    match frame {
                        Ok(frame) => {
                            let mut bytes = [0; BLOCK_LEN];
                            leaf.cache().memory().copy_out(frame, 0, &mut bytes);
                            self.check_block(leaf, block, Some(&bytes))?;
                            leaf.give_back(block, slot, frame);
                            self.check_block(leaf, block, Some(&bytes))?;
                        }
                        Err(FetchError::Damaged) => {
                            return Err(format!("block {block}: slot {} is damaged", slot.0));
                        }
                        Err(FetchError::Moved | FetchError::Disk) => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// The process ends between two steps.
    fn kill(&mut self, leaf: Guest) -> Result<Guest, String> {
        self.disk.end_process(&mut self.rng);
        drop(leaf);
        self.come_back(None)
    }

    /// The process ends within a step, before some store to its write cache.
    fn kill_within(&mut self, mut leaf: Guest) -> Result<Guest, String> {
        self.fuse.set(Some(self.rng.random_range(0..40)));
        let (sector, count) = self.range(24);
        let discards = self.rng.random_range(0..4) == 0;
        self.version += 1;
        let value = if discards { Value::Zeros } else { Value::Version(self.version) };
        let ended = catch_unwind(AssertUnwindSafe(|| {
            if discards {
                let (first, end) = (sector.div_ceil(8), (sector + count) / 8);
                if first < end && leaf.discard(self.now, first, end - first).is_ok() {
                    (first * 8..end * 8).for_each(|s| self.model.set(s, value));
                }
            } else {
                let (mut sector, mut count) = (sector, count);
                while count > 0 {
                    let here = count.min(8 - sector % 8);
                    if self.write_block(&mut leaf, sector, here, value).is_err() {
                        break;
                    }
                    (sector, count) = (sector + here, count - here);
                }
            }
            for _ in 0..20 {
                leaf.advance(&mut self.disk, self.now);
                if let Some((token, result)) = self.disk.complete_one(&mut self.rng) {
                    leaf.complete(token, result, self.now);
                }
            }
        }));
        self.fuse.set(None);
        if let Err(panic) = ended
            && !panic.is::<Killed>()
        {
            std::panic::resume_unwind(panic);
        }
        self.disk.end_process(&mut self.rng);
        drop(leaf);
        self.come_back(Some((sector, count, value)))
    }

    /// A new process after a kill. `pending`: sectors that may also hold this, since the
    /// guest was not told.
    fn come_back(&mut self, pending: Option<(u64, u64, Value)>) -> Result<Guest, String> {
        self.report.kills += 1;
        self.flushes.clear();
        self.fetches.clear();
        let cuts = self.report.power_cuts;
        let leaf = self.open()?;
        if self.report.power_cuts > cuts {
            return self.after_power_cut(leaf, pending);
        }
        leaf.audit()?;
        for block in 0..leaf.blocks() {
            for (i, value) in self.values(&leaf, block, None)?.into_iter().enumerate() {
                let sector = block * 8 + i as u64;
                let expected = self.model.current(sector);
                let also =
                    pending.filter(|(first, count, _)| sector >= *first && sector - first < *count);
                match also {
                    Some((_, _, also)) if value == also => {
                        if value != expected {
                            self.model.set(sector, value);
                        }
                    }
                    _ if value == expected => {}
                    _ => {
                        return Err(format!(
                            "after a kill, sector {sector} is {value:?}, and should be {expected:?}"
                        ));
                    }
                }
            }
        }
        Ok(leaf)
    }

    fn cut_power(&mut self, leaf: Guest) -> Result<Guest, String> {
        self.disk.end_process(&mut self.rng);
        drop(leaf);
        self.lose_power()?;
        self.flushes.clear();
        self.fetches.clear();
        let leaf = self.open()?;
        self.after_power_cut(leaf, None)
    }

    fn after_power_cut(
        &mut self,
        leaf: Guest,
        pending: Option<(u64, u64, Value)>,
    ) -> Result<Guest, String> {
        leaf.audit()?;
        for block in 0..leaf.blocks() {
            for (i, value) in self.values(&leaf, block, None)?.into_iter().enumerate() {
                let sector = block * 8 + i as u64;
                let also = pending.is_some_and(|(first, count, also)| {
                    sector >= first && sector - first < count && value == also
                });
                if !also && !self.model.may_be(sector, value) {
                    let history = self.model.describe(sector);
                    return Err(format!(
                        "after a power cut, sector {sector} is {value:?}, and may be {history}"
                    ));
                }
                self.model.settle(sector, value);
            }
        }
        Ok(leaf)
    }

    /// The disk is well: everything gets done, is right, and nothing is lost of slots and
    /// frames.
    fn drain(&mut self, mut leaf: Guest) -> Result<(), String> {
        self.disk.faults = Faults::default();
        self.full.set(false);
        self.tag += 1;
        self.flushes.insert(self.tag, self.model.now);
        leaf.flush(self.now, self.tag);
        for step in 0.. {
            self.now += MILLISECOND;
            leaf.advance(&mut self.disk, self.now);
            self.complete(&mut leaf);
            self.events(&mut leaf)?;
            if leaf.is_idle() && self.flushes.is_empty() {
                break;
            }
            if step == STEPS_TO_DRAIN {
                return Err(format!("it doesn't come to an end: {leaf:?}"));
            }
        }
        leaf.audit()?;
        for block in 0..leaf.blocks() {
            self.check_block(&leaf, block, None)?;
        }
        self.rot(&mut leaf)?;
        let taken = leaf.cache().allocated() - leaf.cache().available();
        if taken > 0 {
            return Err(format!("{taken} frames are lost"));
        }
        Ok(())
    }

    /// A byte of a block rots: it is an error then, and never data.
    fn rot(&mut self, leaf: &mut Guest) -> Result<(), String> {
        let block = self.rng.random_range(0..leaf.blocks());
        let Some((slot, ..)) = leaf.source(block).slot else { return Ok(()) };
        self.disk.damage(slot, self.rng.random_range(0..BLOCK_LEN));
        if !leaf.fetch(&mut self.disk, block, 0) {
            return Err("a block can't be read though nothing is in flight".to_owned());
        }
        self.complete(leaf);
        match leaf.event() {
            Some(Event::Fetched { frame: Err(FetchError::Damaged), .. }) => Ok(()),
            event => Err(format!("a damaged block gives {event:?}")),
        }
    }
}
