//! A VM's disk: where each sector comes from.
//!
//! Joins a leaf, a cache and a root into one range of sectors. It knows
//! neither virtio nor vhost: requests are sector ranges and lists of buffers.
//! What may wait for a disk is not done here but described as [`Piece`]s (for
//! a reactor's io_uring) or handed to [`lanes`] (threads of the VM's own).

mod buffers;
mod copy;
mod counters;
pub mod courtesy;
pub mod lanes;
mod map;
mod transfer;

use std::io;
use std::sync::Arc;

pub use buffers::{Ahead, BufCursor};
pub use counters::Counters;
pub use map::{CELLS_MAX, DiskMap};

use crate::cache::RootCache;
use crate::leaf::{Leaf, WriteCache};
use crate::logging::limit::{Limit, Seldom};
use crate::root::Root;
use crate::units::{Sector, SectorRange};

/// A root with its blocks in the cache.
#[derive(Debug)]
pub struct CachedRoot {
    root: Root,
    cache: Arc<RootCache>,
    block_shift: u32,
}

impl CachedRoot {
    /// Joins both; `block_bytes` is the cache's block size, a power of two of
    /// at least a sector. Holes of the root are told to the cache: they need
    /// no reading.
    pub fn new(root: Root, cache: Arc<RootCache>, block_bytes: u32) -> Self {
        let block = u64::from(block_bytes);
        for (start, end) in root.holes() {
            // A block that a hole covers only in part is read.
            let end = if end == root.len_bytes() { end.next_multiple_of(block) } else { end };
            cache.mark_zero(start.div_ceil(block)..end / block);
        }
        Self { root, cache, block_shift: block_bytes.trailing_zeros() - 9 }
    }

    /// The image.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Its blocks.
    #[inline]
    pub fn cache(&self) -> &RootCache {
        &self.cache
    }

    /// The block that holds a sector.
    #[inline]
    pub fn block_of(&self, sector: Sector) -> u64 {
        sector.0 >> self.block_shift
    }

    /// The first sector of a block.
    #[inline]
    pub fn block_start(&self, block: u64) -> Sector {
        Sector(block << self.block_shift)
    }
}

/// Sectors whose place is looked for at a time, 1 MiB: each block of a packed leaf
/// may have its own.
const PLACE_SECTORS: u64 = 2048;

/// Sectors that come from one place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Piece {
    /// The leaf holds them, together in its file.
    Leaf(SectorRange),
    /// They are the root's, within one cache block.
    Root(SectorRange),
    /// The leaf holds them as zeros, or they lie beyond the root's end and were
    /// never written.
    Zero(SectorRange),
}

/// One VM's disk.
#[derive(Debug)]
pub struct Disk {
    name: String,
    read_only: bool,
    root: Arc<CachedRoot>,
    leaf: Option<Arc<Leaf>>,
    counters: Counters,
    log_limit: Limit,
    errors: Seldom,
}

impl Disk {
    /// The disk named `name`; without a leaf it is the root itself, read-only.
    pub fn new(
        name: String,
        root: Arc<CachedRoot>,
        leaf: Option<Arc<Leaf>>,
        read_only: bool,
    ) -> Self {
        let read_only = read_only || leaf.is_none();
        let (counters, log_limit) = (Counters::default(), Limit::default());
        let errors = Seldom::default();
        Self { name, read_only, root, leaf, counters, log_limit, errors }
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size in sectors. It may grow at any time.
    #[inline]
    pub fn sectors(&self) -> u64 {
        self.leaf.as_ref().map_or_else(|| self.root.root.sectors(), |leaf| leaf.sectors())
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The root under it.
    pub fn root(&self) -> &Arc<CachedRoot> {
        &self.root
    }

    /// The leaf, if there is one.
    pub fn leaf(&self) -> Option<&Arc<Leaf>> {
        self.leaf.as_ref()
    }

    /// What the guest last made of its write cache, as far as that is known.
    /// Without writes it makes no difference.
    pub fn write_cache(&self) -> WriteCache {
        self.written_leaf().map_or(WriteCache::On, |leaf| leaf.write_cache())
    }

    /// Remembers it, for whoever serves the disk next.
    ///
    /// # Errors
    /// As [`Leaf::set_write_cache`].
    pub fn set_write_cache(&self, write_cache: WriteCache) -> io::Result<()> {
        self.written_leaf().map_or(Ok(()), |leaf| leaf.set_write_cache(write_cache))
    }

    fn written_leaf(&self) -> Option<&Arc<Leaf>> {
        self.leaf.as_ref().filter(|_| !self.read_only)
    }

    /// What was served from where.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How much its guest and frontend may have logged.
    pub(crate) fn log_limit(&self) -> &Limit {
        &self.log_limit
    }

    /// Logs an error that a request met, with the VM's name: seldom, as each of
    /// its requests may meet one, and whatever other VMs' requests meet.
    pub(crate) fn log_error(&self, error: std::fmt::Arguments<'_>) {
        self.errors.error(format_args!("VM {}: {error}", self.name));
    }

    /// Where the first sectors of the (non-empty) range come from.
    #[inline]
    pub fn piece(&self, range: SectorRange) -> Piece {
        let (present, count) = match &self.leaf {
            Some(leaf) => leaf.next_run(range),
            None => (false, range.count()),
        };
        let (run, _) = range.split_at(count);
        if present {
            return self.held_piece(run);
        }
        let root_sectors = self.root.root.sectors();
        let start = run.start();
        if start.0 >= root_sectors {
            return Piece::Zero(run);
        }
        let block_end = self.root.block_start(self.root.block_of(start) + 1);
        Piece::Root(run.split_at(block_end.0.min(root_sectors) - start.0).0)
    }
}

impl Disk {
    /// Where the first of held sectors come from. Not inlined: the root's sectors,
    /// which come from the cache, are the shorter way.
    #[inline(never)]
    fn held_piece(&self, run: SectorRange) -> Piece {
        let Some(leaf) = &self.leaf else {
            return Piece::Zero(run);
        };
        let (place, count) = leaf.place(run.split_at(PLACE_SECTORS).0);
        let run = run.split_at(count).0;
        if place.is_some() { Piece::Leaf(run) } else { Piece::Zero(run) }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let lookups = self.root.cache.cache().lookups();
        lookups.retire(self.counters.cache_hits.get(), self.counters.cache_misses.get());
    }
}
