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
mod failures;
pub mod lanes;
mod map;
mod piece;
mod transfer;
mod trouble;

use std::io;
use std::sync::Arc;

pub use buffers::{Ahead, BufCursor};
pub use counters::Counters;
pub use failures::{Activity, Failing, Failures, HOLD};
pub use map::{CELLS_MAX, DiskMap};
pub use piece::{LeafPiece, Piece, RootPiece};
pub use transfer::{Missing, Stopped};
use trouble::LastTrouble;
pub use trouble::Trouble;

use crate::cache::RootCache;
use crate::config::serial::Serial;
use crate::leaf::{Leaf, LeafError, WriteCache};
use crate::logging::limit::{Limit, Seldom};
use crate::root::Root;
use crate::units::{BlockSize, Sector, SectorRange};

/// A root with its blocks in the cache.
#[derive(Debug)]
pub struct CachedRoot {
    root: Root,
    cache: Arc<RootCache>,
    block_shift: u32,
    failures: Failures,
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
        let block_shift = block_bytes.trailing_zeros() - 9;
        Self { root, cache, block_shift, failures: Failures::default() }
    }

    /// The image.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Whether reads of it fail, whichever VM's they are.
    pub fn failures(&self) -> &Failures {
        &self.failures
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

    /// Bytes of a block.
    pub fn block_len(&self) -> usize {
        512 << self.block_shift
    }

    /// The root's sectors in a block: fewer at its end.
    pub fn sectors_of(&self, block: u64) -> SectorRange {
        let whole = SectorRange::new(self.block_start(block), 1 << self.block_shift);
        let root = SectorRange::whole(self.root.sectors());
        whole.unwrap_or_default().intersection(root.unwrap_or_default())
    }

    /// The first sector of a block.
    #[inline]
    pub fn block_start(&self, block: u64) -> Sector {
        Sector(block << self.block_shift)
    }
}

/// One VM's disk.
#[derive(Debug)]
pub struct Disk {
    name: String,
    serial: Serial,
    block_size: BlockSize,
    read_only: bool,
    root: Arc<CachedRoot>,
    leaf: Option<Arc<Leaf>>,
    counters: Counters,
    failures: Failures,
    last_trouble: LastTrouble,
    log_limit: Limit,
    errors: Seldom,
}

impl Disk {
    /// The disk named `name`, with that for a serial number and sectors for blocks;
    /// without a leaf it is the root itself, read-only.
    pub fn new(
        name: String,
        root: Arc<CachedRoot>,
        leaf: Option<Arc<Leaf>>,
        read_only: bool,
    ) -> Self {
        let read_only = read_only || leaf.is_none();
        let (counters, failures) = (Counters::default(), Failures::default());
        let (log_limit, errors) = (Limit::default(), Seldom::default());
        let serial = Serial::of_name(&name);
        let block_size = BlockSize::default();
        Self {
            name,
            serial,
            block_size,
            read_only,
            root,
            leaf,
            counters,
            failures,
            last_trouble: LastTrouble::default(),
            log_limit,
            errors,
        }
    }

    /// The same disk with this serial number.
    #[must_use]
    pub fn with_serial(mut self, serial: Serial) -> Self {
        self.serial = serial;
        self
    }

    /// The same disk in blocks of this size. It doesn't change what is where.
    #[must_use]
    pub fn in_blocks(mut self, size: BlockSize) -> Self {
        self.block_size = size;
        self
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its guest reads as the disk's serial number.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// What its guest addresses it by.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
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

    /// What of its work fails.
    #[inline]
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Its work met an error, for the log and for whoever asks how the VM is.
    #[cold]
    pub(crate) fn failed(&self, activity: Activity, error: std::fmt::Arguments<'_>) {
        self.log_error(error);
        self.failures.failed(activity, error);
    }

    /// Its frontend's connection ended with an error.
    #[cold]
    pub(crate) fn connection_failed(&self, why: &str) {
        self.last_trouble.note(why.into(), true, self.counters.all_requests());
    }

    /// Its device was stopped.
    #[cold]
    pub(crate) fn device_stopped(&self, why: &dyn std::fmt::Display) {
        self.failures.failed(
            Activity::Device,
            format_args!("{why}; it stays so until its driver or hypervisor sets it up anew"),
        );
        let why = format!("its device was stopped: {why}");
        self.last_trouble.note(why, false, self.counters.all_requests());
    }

    /// The last trouble with its frontend or driver, however long ago.
    pub fn last_trouble(&self) -> Option<Trouble> {
        self.last_trouble.get()
    }

    /// The trouble that ended its last connection, if no request was served since.
    pub fn connection_trouble(&self) -> Option<Trouble> {
        self.last_trouble.goes_on(self.counters.all_requests())
    }

    /// A read of its root met an error: all VMs of the root have a problem.
    #[cold]
    pub(crate) fn root_failed(&self, error: std::fmt::Arguments<'_>) {
        self.log_error(error);
        self.root.failures.failed(Activity::RootRead, error);
    }

    /// The root was read, and not only the cache.
    #[inline]
    pub(crate) fn root_succeeded(&self) {
        self.root.failures.succeeded(Activity::RootRead);
    }

    /// As [`Self::failed`]. That a leaf takes no more writes is known from the leaf
    /// itself, and would hide why.
    #[cold]
    pub(crate) fn leaf_failed(&self, activity: Activity, error: &LeafError) {
        match error {
            LeafError::Poisoned { .. } | LeafError::Abandoned { .. } => {
                self.log_error(format_args!("{error}"));
            }
            _ => self.failed(activity, format_args!("{error}")),
        }
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
}

impl Drop for Disk {
    fn drop(&mut self) {
        let lookups = self.root.cache.cache().lookups();
        lookups.retire(self.counters.cache_hits.get(), self.counters.cache_misses.get());
    }
}
