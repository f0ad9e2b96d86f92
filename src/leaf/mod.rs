//! The leaf: one VM's overlay, a sparse file that holds what that VM changed.
//!
//! Owns the file, its header and its presence map, and the order in which
//! they become durable: **data, then map, then acknowledgement**. It knows
//! nothing of virtio, of the cache, or of what the root contains.
//! docs/leaf-format.md has the format byte by byte.
//!
//! Invariants:
//! - A sector's bit is set after its data was written, before the write returns.
//! - The durable map gets only bits whose data a sync has covered.
//! - Bits are never cleared while the leaf is in use. A present sector whose data
//!   is a hole, or has no place ([`slots`]), is zeros.
//! - After a failed sync, or a panic, nothing more is acknowledged.

mod copies;
mod create;
mod data;
mod durable_map;
mod error;
mod fitness;
mod flush;
pub mod header;
mod live_map;
pub mod offline;
mod open;
mod reset;
mod resize;
mod slots;
mod write_cache;

use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

pub use create::{Layout, create, create_as, create_storage, create_successor};
pub use error::LeafError;
pub use live_map::leftovers::{Leftover, Leftovers};
pub use open::{OpenOptions, clear_leftovers};
pub use write_cache::WriteCache;

pub use crate::io::lock::Holder;
use crate::io::storage::Storage;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use crate::units::{Sector, SectorRange};
use live_map::LiveMap;

/// The largest disk, 1 PiB: its map's summary then takes 16 MiB of memory. A
/// header that says more is damaged, rather than a reason to allocate it.
pub const SIZE_MAX: u64 = 1 << 50;

/// Bytes of the presence map of a disk of `virtual_size` bytes, in whole pages.
pub(crate) const fn map_len_bytes(virtual_size: u64) -> u64 {
    (virtual_size / 512).div_ceil(live_map::PAGE_SECTORS) * live_map::PAGE_LEN as u64
}

/// Bytes of the block table of a packed leaf with such a disk, in whole pages.
pub(crate) const fn table_len_bytes(virtual_size: u64) -> u64 {
    map_len_bytes(virtual_size) * live_map::table::TABLE_PAGES as u64
}

/// Whether a disk can have so many bytes.
const fn is_possible(virtual_size: u64) -> bool {
    virtual_size >= 512 && virtual_size <= SIZE_MAX && virtual_size.is_multiple_of(512)
}

/// An open leaf. All of the data path takes `&self` and no lock.
#[derive(Debug)]
pub struct Leaf {
    path: PathBuf,
    live_map_path: Option<PathBuf>,
    storage: Box<dyn Storage>,
    copies: Mutex<copies::Copies>,
    data_offset: u64,
    map_offset: u64,
    /// Of a packed leaf.
    table_offset: u64,
    /// Of the root under it.
    root_sectors: u64,
    /// Grows while the leaf is in use.
    sectors: AtomicU64,
    map: LiveMap,
    read_only: bool,
    present: AtomicU64,
    /// Bytes that the file occupies, when that was last looked at; all ones: not known.
    occupied: AtomicU64,
    /// Counts completed writes; what a flush has covered follows it.
    written: AtomicU64,
    flushed: AtomicU64,
    /// A flush writes the map and the table, for which it has the file's lock again
    /// and again.
    writing_map: AtomicBool,
    /// Bytes written since write-back was last asked for, or a flush began.
    unsynced_bytes: AtomicU64,
    fitness: fitness::State,
    /// A [`WriteCache`].
    write_cache: AtomicU8,
    flushing: Mutex<flush::Buffers>,
    /// Held while entries of the block table are set, before `marking`.
    slots: Mutex<slots::Slots>,
    /// Held from the setting of bits to the marking of their page, and while
    /// a flush takes the marks. Without it, a write of sectors that another
    /// thread has just set, but not marked yet, could be flushed without them.
    /// A write costs microseconds and this nanoseconds; reads don't take it.
    /// Long ranges are marked in steps, so that nobody waits for it for long.
    marking: Mutex<()>,
    /// Held from asking for write-back until its error has had its effect.
    writing_back: Mutex<()>,
}

impl Leaf {
    /// Where the leaf is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells it apart from other leaves, whatever its path.
    pub fn uuid(&self) -> [u8; 16] {
        self.header().uuid
    }

    /// Tells its disk apart from others ([`header::Header::disk_uuid`]).
    pub fn disk_uuid(&self) -> [u8; 16] {
        self.header().disk_uuid()
    }

    /// The disk's size in sectors. It may grow at any time ([`Self::grow`]).
    #[inline]
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// How many sectors the leaf holds.
    pub fn present_sectors(&self) -> u64 {
        self.present.load(Ordering::Relaxed)
    }

    /// Bytes that the file occupies on its disk. Asks the file system, which may hang.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        self.storage.allocated()
    }

    /// Asks the file system how much the file occupies, for [`Self::occupied_bytes`].
    pub fn measure(&self) {
        self.occupied.store(self.allocated_bytes().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Bytes that the file occupied when that was last measured; `None` where the file
    /// system did not tell.
    pub fn occupied_bytes(&self) -> Option<u64> {
        Some(self.occupied.load(Ordering::Relaxed)).filter(|bytes| *bytes != u64::MAX)
    }

    /// Whether the leaf holds no sector of the range.
    pub fn is_absent(&self, range: SectorRange) -> bool {
        let (present, count) = self.next_run(range);
        !present && count == range.count()
    }

    /// Whether the sectors at the start of the (non-empty) range are held, and
    /// for how many sectors that stays so.
    #[inline]
    pub fn next_run(&self, range: SectorRange) -> (bool, u64) {
        self.map.next_run(range)
    }

    /// How many sectors of the range the leaf holds. Takes time by the part of
    /// the range that has any: 0.5 µs for each 16 MiB of it.
    pub fn count_in(&self, range: SectorRange) -> u64 {
        self.map.count_in(range)
    }

    /// Bytes of the presence map that a [`Self::count_in`] of the whole disk
    /// looks at.
    pub fn map_bytes_used(&self) -> u64 {
        self.map.pages_used() * live_map::PAGE_LEN as u64
    }

    /// Where a held sector's data is in the file; none where it is zeros without a
    /// place.
    pub fn place_of(&self, sector: Sector) -> Option<u64> {
        self.place(SectorRange::new(sector, 1)?).0
    }

    /// The descriptor for reads by io_uring, if the storage has one.
    pub fn raw_fd(&self) -> Option<RawFd> {
        self.storage.raw_fd()
    }

    fn mark(&self, range: SectorRange) -> Result<(), LeafError> {
        // All of the data is written by now: a flush between two steps may
        // make the bits of the first durable.
        for step in live_map::steps(range) {
            let marking = self.lock_whole(&self.marking)?;
            let (added, marked) = self.map.set(step);
            drop(marking);
            if added > 0 {
                self.present.fetch_add(added, Ordering::Relaxed);
            }
            marked.map_err(|source| self.unfinished("extend the live map", source))?;
        }
        self.unsynced_bytes.fetch_add(range.byte_len(), Ordering::Relaxed);
        // Release: whoever sees the count sees the bits.
        self.written.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Whether nothing was written since the last completed flush.
    pub fn is_flushed(&self) -> bool {
        !self.is_poisoned()
            && self.flushed.load(Ordering::Acquire) == self.written.load(Ordering::Acquire)
    }

    /// Whether a flush has reached the map and the table: a write beside it would
    /// likely wait for the file's lock.
    #[inline]
    pub fn is_writing_map(&self) -> bool {
        self.writing_map.load(Ordering::Relaxed)
    }

    /// Bytes written since write-back was last asked for, or a flush began.
    #[inline]
    pub fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes.load(Ordering::Relaxed)
    }

    /// Asks the kernel to begin writing the data back, so that a later flush
    /// finds little to do. May wait: not for reactors.
    ///
    /// # Errors
    /// The storage's. Each poisons the leaf: the pages are gone or will never be
    /// written. ext4 drops them when delayed allocation finds no space, NFS when
    /// the server refuses them (ENOSPC, EDQUOT, ESTALE). Their writes were
    /// acknowledged, so a flush can't be, also where space comes back later.
    pub fn start_write_back(&self) -> io::Result<()> {
        let _writing_back = self.writing_back.lock().unwrap_or_else(PoisonError::into_inner);
        self.unsynced_bytes.store(0, Ordering::Relaxed);
        let result = self.storage.write_back(self.data_offset, self.data_len());
        if result.is_err() {
            self.poison();
        }
        result.map(drop)
    }

    /// Bytes of the file that data may be in.
    fn data_len(&self) -> u64 {
        let disk = self.sectors() * 512;
        if !self.map.is_packed() {
            return disk;
        }
        disk.max(self.slots_end_offset() - self.data_offset)
    }

    /// Lets others open the file, though this value may live on for a while.
    /// Nothing may be read from or written to the leaf afterwards.
    pub fn release(&self) {
        self.map.unlock();
        self.storage.unlock();
    }

    fn check_writable(&self, operation: &'static str, range: SectorRange) -> Result<(), LeafError> {
        if range.end().0 > self.sectors() {
            return Err(self.io(operation, io::ErrorKind::InvalidInput.into()));
        }
        self.check_changeable(operation)
    }

    fn check_changeable(&self, operation: &'static str) -> Result<(), LeafError> {
        self.check_not_poisoned()?;
        if self.read_only {
            return Err(self.io(operation, io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        Ok(())
    }

    fn io(&self, operation: &'static str, source: io::Error) -> LeafError {
        LeafError::Io { path: self.path.clone(), operation, source }
    }
}

#[cfg(test)]
pub(crate) mod tests;
