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
mod core;
mod directory;
mod entry;
mod epoch;
mod fill;
mod hugepages;
mod kept;
mod lookups;
mod policy;
mod slots;
mod table;
#[cfg(test)]
mod tests;
mod waiters;

use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use self::arena::Arena;
use self::core::Core;
use self::directory::Directory;
use self::entry::{BlockState, SLOTS_MAX, SlotIndex};
use self::epoch::Epochs;
use self::slots::SlotRole;
use self::table::RootTable;
use crate::sync::{Mutex, MutexGuard};

pub use self::access::{BlockRef, Lookup, Reader};
pub use self::arena::ArenaPages;
pub use self::directory::RootKey;
pub use self::fill::{FillOutcome, FillStart, FillTicket};
pub use self::hugepages::Shortage;
pub use self::kept::discard;
pub use self::lookups::Lookups;
pub use self::waiters::Waiter;

/// The smallest cache block: a page.
pub const BLOCK_BYTES_MIN: u32 = 4 << 10;
/// The largest cache block: a huge page.
pub const BLOCK_BYTES_MAX: u32 = 2 << 20;
/// The fewest blocks that a cache is made for.
pub const SLOTS_MIN: u64 = 16;

/// Which pages the arena is to be made of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Hugepages {
    /// Hugetlb pages; where there are too few, transparent ones and a warning.
    #[default]
    Auto,
    /// Hugetlb pages or an error.
    On,
    /// Ordinary pages.
    Off,
}

/// What a cache is made with.
#[derive(Clone, Copy, Debug)]
pub struct CacheConfig {
    /// Size of the arena; rounded up to whole 2 MiB.
    pub size_bytes: u64,
    /// Bytes in a cache block: a power of two from [`BLOCK_BYTES_MIN`] to
    /// [`BLOCK_BYTES_MAX`].
    pub block_bytes: u32,
    /// The arena's pages.
    pub hugepages: Hugepages,
    /// How many [`Reader`]s may exist at a time.
    pub readers_max: usize,
}

impl CacheConfig {
    fn check(&self) -> Result<(), CacheError> {
        let block_bytes = self.block_bytes;
        if !block_bytes.is_power_of_two()
            || !(BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes)
        {
            return Err(CacheError::BlockSize { block_bytes });
        }
        let min_bytes = SLOTS_MIN * u64::from(block_bytes);
        let max_bytes = u64::from(SLOTS_MAX) * u64::from(block_bytes);
        if !(min_bytes..=max_bytes).contains(&self.size_bytes) {
            return Err(CacheError::Size {
                size_bytes: self.size_bytes,
                block_bytes,
                min_bytes,
                max_bytes,
            });
        }
        Ok(())
    }

    /// Blocks that an arena of so many bytes has room for.
    fn slots(&self, arena_len: usize) -> u32 {
        let slots = u32::try_from(arena_len >> self.block_bytes.trailing_zeros());
        slots.unwrap_or(SLOTS_MAX).min(SLOTS_MAX)
    }
}

/// Why there is no cache, root or reader.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The block size is none that the cache can have.
    #[error(
        "cache blocks of {block_bytes} bytes are not possible; \
         give a power of two from 4KiB to 2MiB"
    )]
    BlockSize {
        /// The size asked for.
        block_bytes: u32,
    },
    /// Fewer than [`SLOTS_MIN`] blocks, or more than the tables can name.
    #[error(
        "a cache of {size_bytes} bytes can't be made of blocks of {block_bytes} bytes; \
         give it a size from {min_bytes} to {max_bytes} bytes"
    )]
    Size {
        /// The cache's size that was asked for.
        size_bytes: u64,
        /// The block size that was asked for.
        block_bytes: u32,
        /// The smallest cache of such blocks.
        min_bytes: u64,
        /// The largest cache of such blocks.
        max_bytes: u64,
    },
    /// Hugepages are demanded and there are not enough.
    #[error("{0}, or start with --hugepages auto")]
    TooFewHugepages(Shortage),
    /// The kernel has no memory for the arena.
    #[error("no memory for a cache of {size_bytes} bytes; give a smaller --cache-size ({source})")]
    Map {
        /// The cache's size that was asked for.
        size_bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The root has more blocks than a table can have, or than fit memory.
    #[error(
        "a root of {sectors} sectors has too many blocks of {block_bytes} bytes; \
         give a larger --cache-block"
    )]
    RootTooLarge {
        /// The root's size.
        sectors: u64,
        /// The cache's block size.
        block_bytes: u32,
    },
    /// All readers are taken: more threads than the cache was made for.
    #[error("the cache was made for {readers_max} readers and all of them are taken")]
    TooManyReaders {
        /// [`CacheConfig::readers_max`].
        readers_max: usize,
    },
}

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

/// What a cache is and has done. Hits are not among it: who looks up counts
/// them, as a counter here would be a cache line that all threads write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CacheStats {
    /// The arena's size.
    pub size_bytes: u64,
    /// Bytes in a block.
    pub block_bytes: u32,
    /// What the arena's pages are.
    pub pages: ArenaPages,
    /// Blocks that the arena has room for.
    pub slots: u64,
    /// Blocks that can be hit now, zero blocks apart.
    pub ready: u64,
    /// The same in bytes.
    pub ready_bytes: u64,
    /// Blocks being filled now.
    pub filling: u64,
    /// Evicted blocks that some reader may still look at.
    pub limbo: u64,
    /// Blocks known to be all zeros; they take no slot.
    pub zero_blocks: u64,
    /// Fills started since the start.
    pub fills: u64,
    /// Fills that failed.
    pub failed_fills: u64,
    /// Tickets dropped unfinished: a bug, and each costs a slot.
    pub lost_fills: u64,
    /// Misses that were told [`FillStart::NoSlot`].
    pub refused_fills: u64,
    /// Misses that joined another's fill.
    pub joined_waits: u64,
    /// Blocks evicted, those of removed roots included.
    pub evictions: u64,
    /// Blocks taken over from an earlier process.
    pub kept: u64,
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

    /// What the cache is and has done. Takes the lock for a moment.
    pub fn stats(&self) -> CacheStats {
        let core = self.lock();
        let len = |role| u64::from(core.slots.len(role));
        let ready = len(SlotRole::Window) + len(SlotRole::Probation) + len(SlotRole::Main);
        let counters = core.counters;
        CacheStats {
            size_bytes: self.arena.len() as u64,
            block_bytes: self.block_bytes,
            pages: self.arena.pages(),
            slots: u64::from(core.slots.count()),
            ready,
            ready_bytes: ready << self.block_shift,
            filling: len(SlotRole::Filling),
            limbo: len(SlotRole::Limbo),
            zero_blocks: counters.zero_blocks,
            fills: counters.fills,
            failed_fills: counters.failed_fills,
            lost_fills: counters.lost_fills,
            refused_fills: counters.refused_fills,
            joined_waits: counters.joined_waits,
            evictions: counters.evictions,
            kept: counters.kept,
        }
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
