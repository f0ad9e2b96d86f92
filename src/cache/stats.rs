//! What a cache knows of itself, for others to count and show.

use super::slots::SlotRole;
use super::{ArenaPages, Cache};

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
    /// Misses that were told [`super::FillStart::NoSlot`].
    pub refused_fills: u64,
    /// Misses that joined another's fill.
    pub joined_waits: u64,
    /// Blocks evicted, those of removed roots included.
    pub evictions: u64,
    /// Blocks taken over from an earlier process.
    pub kept: u64,
}

impl Cache {
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
}
