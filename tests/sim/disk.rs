//! A simulated disk with one file: what was synced survives a power cut, of the rest any
//! sectors may.

use std::collections::{BTreeMap, HashMap};
use std::io;

use leafblk::engine::{Engine, Op, Token};
use leafblk::slot_leaf::BlockFile;
use leafblk::slot_leaf::page::Page;
use leafblk::slot_leaf::word::{BLOCK_LEN, Slot};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt};

const SECTOR: usize = 512;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

type Content = Box<[u8; BLOCK_LEN]>;

/// A write that no sync covers yet: one sector.
struct Unsynced {
    sector: u64,
    data: [u8; SECTOR],
}

enum Kind {
    Read { into: *mut u8, len: usize, offset: u64 },
    Write { bufs: Vec<(*const u8, usize)>, offset: u64, durable: bool, sum: u32 },
    Sync { mark: u64 },
}

struct InFlight {
    token: Token,
    kind: Kind,
}

/// What the disk does wrong at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Of a hundred operations, how many fail.
    pub(crate) errors: u32,
    /// Slots that were never written can't be.
    pub(crate) full: bool,
}

/// The disk.
pub(crate) struct Disk {
    durable: HashMap<u64, Content>,
    /// What reads see.
    seen: HashMap<u64, Content>,
    unsynced: BTreeMap<u64, Unsynced>,
    /// The number of the next unsynced sector.
    count: u64,
    in_flight: Vec<InFlight>,
    pub(crate) faults: Faults,
    /// Operations that may be in flight.
    pub(crate) room: usize,
    /// Blocking calls until the power is cut; none where it isn't.
    pub(crate) fuse: Option<u32>,
    /// Bytes written.
    pub(crate) written: u64,
}

fn sum(bufs: &[(*const u8, usize)]) -> u32 {
    bufs.iter().fold(0, |crc, (ptr, len)| {
        // SAFETY: the submitter keeps the buffers.
        crc32c::crc32c_append(crc, unsafe { std::slice::from_raw_parts(*ptr, *len) })
    })
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self {
            durable: HashMap::new(),
            seen: HashMap::new(),
            unsynced: BTreeMap::new(),
            count: 0,
            in_flight: Vec::new(),
            faults: Faults::default(),
            room: 64,
            fuse: None,
            written: 0,
        }
    }

    fn write_sector(&mut self, sector: u64, data: &[u8]) {
        let mut bytes = [0; SECTOR];
        bytes.copy_from_slice(data);
        put(&mut self.seen, sector, &bytes);
        self.unsynced.insert(self.count, Unsynced { sector, data: bytes });
        self.count += 1;
        self.written += SECTOR as u64;
    }

    fn sync_until(&mut self, mark: u64) {
        let rest = self.unsynced.split_off(&mark);
        for (_, unsynced) in std::mem::replace(&mut self.unsynced, rest) {
            put(&mut self.durable, unsynced.sector, &unsynced.data);
        }
    }

    /// Completes one of the operations in flight.
    pub(crate) fn complete_one(&mut self, rng: &mut SmallRng) -> Option<(Token, io::Result<u32>)> {
        if self.in_flight.is_empty() {
            return None;
        }
        let op = self.in_flight.swap_remove(rng.random_range(0..self.in_flight.len()));
        let fails = rng.random_range(0..100) < self.faults.errors;
        let error = |code| Err(io::Error::from_raw_os_error(code));
        let result = match op.kind {
            Kind::Read { .. } if fails => error(EIO),
            Kind::Read { into, len, offset } => {
                let mut page = [0; BLOCK_LEN];
                let there = self.seen.get(&(offset / BLOCK_LEN as u64));
                there.inspect(|content| page = ***content);
                // SAFETY: the submitter keeps the buffer until this is told.
                unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), into, len) };
                Ok(if there.is_some() { len } else { 0 })
            }
            Kind::Write { bufs, offset, durable, sum: before } => {
                assert_eq!(sum(&bufs), before, "a buffer has changed while it was written");
                let mut data = Vec::new();
                for (ptr, len) in &bufs {
                    // SAFETY: as above.
                    data.extend_from_slice(unsafe { std::slice::from_raw_parts(*ptr, *len) });
                }
                let is_new = |at: u64| !self.seen.contains_key(&(at / BLOCK_LEN as u64));
                let blocks = data.len().div_ceil(BLOCK_LEN) as u64;
                let extends = (0..blocks).any(|i| is_new(offset + i * BLOCK_LEN as u64));
                let sectors = data.len() / SECTOR;
                let done = if fails || (self.faults.full && extends) {
                    rng.random_range(0..=sectors.saturating_sub(1))
                } else if rng.random_range(0..20) == 0 && sectors > 1 {
                    rng.random_range(1..sectors)
                } else {
                    sectors
                };
                let mark = self.count;
                for i in 0..done {
                    let sector = offset / SECTOR as u64 + i as u64;
                    self.write_sector(sector, &data[i * SECTOR..(i + 1) * SECTOR]);
                }
                if durable && !fails {
                    // This one, and nothing before it.
                    for (_, unsynced) in self.unsynced.split_off(&mark) {
                        put(&mut self.durable, unsynced.sector, &unsynced.data);
                        // An older write of the sector must not come back over it.
                        self.unsynced.retain(|_, older| older.sector != unsynced.sector);
                    }
                }
                if fails {
                    error(EIO)
                } else if self.faults.full && extends {
                    error(ENOSPC)
                } else {
                    Ok(done * SECTOR)
                }
            }
            Kind::Sync { .. } if fails => error(EIO),
            Kind::Sync { mark } => {
                self.sync_until(mark);
                Ok(0)
            }
        };
        Some((op.token, result.map(|count| u32::try_from(count).unwrap_or(0))))
    }

    /// The process is gone: what it had in flight is done, or not, or in part.
    pub(crate) fn end_process(&mut self, rng: &mut SmallRng) {
        for op in std::mem::take(&mut self.in_flight) {
            let Kind::Write { bufs, offset, .. } = op.kind else { continue };
            let mut data = Vec::new();
            for (ptr, len) in &bufs {
                // SAFETY: the memory of a killed process's operations outlives it, here too.
                data.extend_from_slice(unsafe { std::slice::from_raw_parts(*ptr, *len) });
            }
            let chance = rng.random_range(0..=2) * 50;
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                if rng.random_range(0..100) < chance {
                    self.write_sector(offset / SECTOR as u64 + i as u64, sector);
                }
            }
        }
    }

    /// The power is cut: of what was not synced, any sectors are there.
    pub(crate) fn cut_power(&mut self, rng: &mut SmallRng) {
        let chance = *[0, 30, 70, 97, 100].get(rng.random_range(0..5)).unwrap_or(&0);
        // The writes that come late may all be lost, however whole the others are.
        let until = self.unsynced.len().saturating_sub(rng.random_range(0..16));
        for (i, (_, unsynced)) in std::mem::take(&mut self.unsynced).into_iter().enumerate() {
            if rng.random_range(0..100) < chance && (i < until || chance < 50) {
                put(&mut self.durable, unsynced.sector, &unsynced.data);
            }
        }
        self.seen = self.durable.clone();
    }

    /// The content of a slot, if it was ever written.
    pub(crate) fn slot(&self, slot: Slot) -> Option<&[u8; BLOCK_LEN]> {
        self.seen.get(&slot.0).map(|content| &**content)
    }

    /// A byte of a slot rots.
    pub(crate) fn damage(&mut self, slot: Slot, at: usize) {
        for side in [&mut self.seen, &mut self.durable] {
            if let Some(content) = side.get_mut(&slot.0) {
                content[at] ^= 0x40;
            }
        }
    }

    fn burn(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some(0) => Err(io::Error::from_raw_os_error(EIO)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn put(map: &mut HashMap<u64, Content>, sector: u64, data: &[u8; SECTOR]) {
    let per_slot = (BLOCK_LEN / SECTOR) as u64;
    let content = map.entry(sector / per_slot).or_insert_with(|| Box::new([0; BLOCK_LEN]));
    let at = usize::try_from(sector % per_slot).unwrap_or(0) * SECTOR;
    content[at..at + SECTOR].copy_from_slice(data);
}

impl Engine for Disk {
    unsafe fn submit(&mut self, op: Op<'_>, token: Token) -> bool {
        if self.in_flight.len() >= self.room {
            return false;
        }
        let kind = match op {
            Op::Read { into, offset } => Kind::Read { into: into.ptr(), len: into.len(), offset },
            Op::Write { from, offset, durable } => {
                let bufs: Vec<_> = from.iter().map(|b| (b.ptr().cast_const(), b.len())).collect();
                let sum = sum(&bufs);
                Kind::Write { bufs, offset, durable, sum }
            }
            Op::Sync => Kind::Sync { mark: self.count },
        };
        self.in_flight.push(InFlight { token, kind });
        true
    }
}

impl BlockFile for Disk {
    fn read(&mut self, slot: Slot, into: &mut Page) -> io::Result<()> {
        let content = self.seen.get(&slot.0).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.0 = **content;
        Ok(())
    }

    fn write(&mut self, slot: Slot, page: &Page) -> io::Result<()> {
        self.burn()?;
        for (i, sector) in page.0.chunks(SECTOR).enumerate() {
            self.write_sector(slot.0 * 8 + i as u64, sector);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.burn()?;
        self.sync_until(self.count);
        Ok(())
    }
}

/// A random key.
pub(crate) fn key(rng: &mut SmallRng) -> [u8; 16] {
    let mut key = [0; 16];
    rng.fill_bytes(&mut key);
    key
}
