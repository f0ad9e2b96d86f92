//! The shared cache: root blocks that any VM has read, in hugepage memory.
//!
//! Owns the arena and, for each root, a flat table from block number to slot.
//! Knows nothing of virtio, vhost, io_uring or files: on a miss it hands out
//! memory to fill and is told how that went.
//!
//! A request's way through it:
//!
//! 1. [`RootCache::lookup`] with the thread's [`Reader`]: no lock, and the bytes
//!    stay put until the reader's next [`Reader::quiesce`].
//! 2. On a miss [`RootCache::begin_fill`]: either the caller gets a
//!    [`FillTicket`] and reads the block from the root into its slot, or
//!    somebody else does and the caller's [`Waiter`] is queued.
//! 3. [`FillTicket::finish`] publishes the block and returns the waiters.
//!
//! Invariants:
//!
//! - A published slot's bytes are constant until it is evicted and every online
//!   reader has quiesced since.
//! - A slot has one role at a time, and a ready one is named by exactly one
//!   entry, that of the block it says it holds.
//! - All memory is had when the cache is made or a root is added; lookups, fills
//!   and evictions allocate nothing.
//!
//! A cache may outlive its process: its arena is then a file in memory, beside
//! which a directory says what each slot holds (`kept.rs`, `directory.rs`).
//!
//! How blocks are chosen for eviction is in `policy.rs`, why evicted memory is
//! safe in `epoch.rs`; the block size is measured in docs/cache.md.

mod access;
mod arena;
mod config;
mod core;
mod directory;
mod entry;
mod epoch;
mod error;
mod fill;
mod hugepages;
mod kept;
mod lookups;
mod policy;
mod prefault;
mod slots;
mod stats;
mod table;
#[cfg(test)]
mod tests;
mod waiters;

use std::ops::Range;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use self::arena::Arena;
use self::core::Core;
use self::directory::Directory;
use self::entry::{BlockState, SlotIndex};
use self::epoch::Epochs;
use self::prefault::Prefault;
use self::table::RootTable;
use crate::sync::{Mutex, MutexGuard};

pub use self::access::{BlockRef, Lookup, Reader};
pub use self::arena::ArenaPages;
pub use self::config::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, CacheConfig, Hugepages, SLOTS_MIN};
pub use self::directory::RootKey;
pub use self::error::CacheError;
pub use self::fill::{FillOutcome, FillStart, FillTicket};
pub use self::hugepages::Shortage;
pub use self::kept::{discard, has_files, remove_files};
pub use self::lookups::Lookups;
pub use self::stats::CacheStats;
pub use self::waiters::Waiter;

/// The cache that all roots and all VMs of a process share.
#[derive(Debug)]
pub struct Cache {
    arena: Arena,
    block_bytes: u32,
    block_shift: u32,
    epochs: Epochs,
    core: Mutex<Core>,
    readers_max: usize,
    lifetime_fd: Option<RawFd>,
    lookups: Lookups,
    prefault: Prefault,
}

/// A root's part of the cache. Dropping it evicts the root's blocks.
#[derive(Debug)]
pub struct RootCache {
    cache: Arc<Cache>,
    table: Arc<RootTable>,
}

/// What a cache knows of a root's block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BlockKind {
    /// It can be hit.
    Cached,
    /// It is known to be all zeros.
    Zero,
    /// It has to be read, or is being read.
    Absent,
}

impl Cache {
    /// Makes an empty cache. The sentence is a warning for the operator: too
    /// few hugepages, and what to do about it.
    ///
    /// # Errors
    /// [`CacheError`], for sizes that are not possible and for lack of memory.
    pub fn new(config: &CacheConfig) -> Result<(Arc<Self>, Option<String>), CacheError> {
        config.check()?;
        let (arena, warning) = Arena::map(config.size_bytes, config.hugepages)?;
        Ok((Self::made_of(config, arena, None), warning))
    }

    /// Makes a cache that outlives the process, and takes over what an earlier
    /// one left for `runtime_dir`, which exists. The sentence is a warning, as
    /// for [`Self::new`], or why this cache will not be kept.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn keeping(
        config: &CacheConfig,
        runtime_dir: &Path,
    ) -> Result<(Arc<Self>, Option<String>), CacheError> {
        config.check()?;
        match kept::open(config, runtime_dir) {
            Ok((arena, directory, warning)) => {
                Ok((Self::made_of(config, arena, Some(directory)), warning))
            }
            Err(why) => {
                let (cache, warning) = Self::new(config)?;
                let also = warning.map_or(String::new(), |warning| format!("; {warning}"));
                Ok((cache, Some(format!("the cache won't outlive this process: {why}{also}"))))
            }
        }
    }

    fn made_of(config: &CacheConfig, arena: Arena, directory: Option<Directory>) -> Arc<Self> {
        let block_shift = config.block_bytes.trailing_zeros();
        let slots = config.slots(arena.len());
        Arc::new(Self {
            arena,
            block_bytes: config.block_bytes,
            block_shift,
            epochs: Epochs::new(config.readers_max),
            lifetime_fd: directory.as_ref().map(Directory::raw_fd),
            lookups: Lookups::default(),
            prefault: Prefault::new(),
            core: Mutex::new(Core::new(slots, directory)),
            readers_max: config.readers_max,
        })
    }

    /// The file that whoever reads into the arena must keep open until the
    /// reading has ended, if the cache is to outlive the process.
    pub const fn lifetime_fd(&self) -> Option<RawFd> {
        self.lifetime_fd
    }

    /// Adds a root of so many sectors, none of its blocks cached.
    ///
    /// # Errors
    /// [`CacheError::RootTooLarge`].
    pub fn add_root(self: &Arc<Self>, sectors: u64) -> Result<Arc<RootCache>, CacheError> {
        self.add_root_as(sectors, None)
    }

    /// As [`Self::add_root`], with whatever blocks of the root that `key` names
    /// an earlier process has left. The key is the image's: of a root that may
    /// have changed since, there must be another or none.
    ///
    /// # Errors
    /// As [`Self::add_root`].
    pub fn add_root_as(
        self: &Arc<Self>,
        sectors: u64,
        key: Option<RootKey>,
    ) -> Result<Arc<RootCache>, CacheError> {
        let table = self.lock().add_root(sectors, self.block_bytes, key)?;
        Ok(Arc::new(RootCache { cache: Arc::clone(self), table }))
    }

    /// A reader, online, for one thread.
    ///
    /// # Errors
    /// [`CacheError::TooManyReaders`].
    pub fn reader(self: &Arc<Self>) -> Result<Reader, CacheError> {
        let cell = self
            .epochs
            .register()
            .ok_or(CacheError::TooManyReaders { readers_max: self.readers_max })?;
        Ok(Reader::new(Arc::clone(self), cell))
    }

    /// Bytes in a cache block: a power of two.
    pub const fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// How lookups went, counted by those who looked up.
    pub const fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    /// A thread that panicked under the lock has left no slot half moved worth
    /// losing all VMs for.
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    const fn block_len(&self) -> usize {
        self.block_bytes as usize
    }

    #[inline]
    const fn slot_offset(&self, slot: SlotIndex) -> usize {
        slot.index() << self.block_shift
    }
}

impl RootCache {
    /// Blocks of the root, the last one possibly cut off.
    pub fn blocks(&self) -> u64 {
        self.table.blocks() as u64
    }

    /// The cache that the root is part of.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// What is known of a block at this moment, for people to look at. A look
    /// is no hit: eviction doesn't see it. Blocks beyond the end are zeros.
    pub fn kind_of(&self, block: u64) -> BlockKind {
        match self.table.entry(block).map(|entry| entry.load().state()) {
            None | Some(BlockState::Zero) => BlockKind::Zero,
            Some(BlockState::Ready(_)) => BlockKind::Cached,
            Some(BlockState::Empty(_) | BlockState::Filling(_)) => BlockKind::Absent,
        }
    }

    /// Notes that these blocks are holes: reading them as zeros needs neither a
    /// fill nor a slot. Blocks that are cached already or beyond the end are
    /// left alone.
    pub fn mark_zero(&self, blocks: Range<u64>) {
        let mut rest = blocks;
        while !rest.is_empty() {
            rest = self.cache.lock().mark_zero(&self.table, rest);
        }
    }
}

impl Drop for RootCache {
    fn drop(&mut self) {
        let id = self.table.id();
        self.cache.lock().roots.close(id);
        let mut next = Some(0);
        while let Some(slot) = next {
            next = self.cache.lock().evict_root(id, slot, &self.cache.epochs);
        }
        self.cache.lock().remove_root(id);
    }
}
