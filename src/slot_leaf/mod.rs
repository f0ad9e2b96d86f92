//! The leaf's second design: memory first, one append a flush (docs/second-leaf.md says how
//! far it is; the daemon does not use it yet).
//!
//! A guest's write goes to a frame of the VM's write cache and is acknowledged. Frames are
//! written to the leaf's file in *batches*, always to free slots; a *record* in the same
//! append says what the batch holds, with a checksum of each block. A flush is such a batch
//! and one sync. Records form a chain, which a *checkpoint* shortens: it writes the index,
//! and then a superblock with the chain's new beginning.
//!
//! It knows sectors, frames and slots; nothing of virtio, of roots or of the cache.
//!
//! Invariants:
//! - A slot with data that counts is never written.
//! - The index says what durable records say; newer data is in frames.
//! - A slot that a record since the last durable checkpoint names is not used again before
//!   the next one: recovery compares its checksum.
//! - A frame counts for nothing only once its record is durable, or newer data is published.
//! - One batch at a time holds a block, so each record is built on what is durable.

mod appends;
mod batch;
mod blocks;
mod checkpoint;
pub mod index;
mod jobs;
pub mod leaf;
pub mod page;
mod pending;
pub mod record;
pub mod recover;
pub mod slots;
pub mod superblock;
#[cfg(test)]
mod tests;
mod window;
pub mod word;

use std::collections::VecDeque;

pub use leaf::{Event, Leaf, NoRoom, Settings, Source};
pub use recover::{BlockFile, OpenError, create, open};

/// Takes the first one, if it is such.
fn take_first_if<T>(queue: &mut VecDeque<T>, is_such: impl FnOnce(&T) -> bool) -> Option<T> {
    queue.front().is_some_and(is_such).then(|| queue.pop_front()).flatten()
}
