//! What can be wrong with a cache; each sentence says what to do.

use std::io;

use super::Shortage;

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
    /// Fewer than [`super::SLOTS_MIN`] blocks, or more than the tables can name.
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
        /// [`super::CacheConfig::readers_max`].
        readers_max: usize,
    },
}
