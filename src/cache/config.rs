//! What a cache is made with, and which sizes are possible.

use super::CacheError;
use super::entry::SLOTS_MAX;

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
    /// How many [`super::Reader`]s may exist at a time.
    pub readers_max: usize,
}

impl CacheConfig {
    pub(super) fn check(&self) -> Result<(), CacheError> {
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
    pub(super) fn slots(&self, arena_len: usize) -> u32 {
        let slots = u32::try_from(arena_len >> self.block_bytes.trailing_zeros());
        slots.unwrap_or(SLOTS_MAX).min(SLOTS_MAX)
    }
}
