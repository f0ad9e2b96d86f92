//! Where sectors of a disk come from, looked up once.
//!
//! A piece says all that is needed to read its sectors: the place in the leaf's file, or
//! the block and the part of it. What was looked up for it is not looked up again, since
//! it may have changed meanwhile: whoever has a piece reads what the piece says. That is
//! right for as long as the read is in flight: a leaf's block keeps its place while the
//! leaf is in use, and roots never change. A guest that writes while it reads finds the
//! one or the other.
#![expect(unsafe_code, reason = "copies to guest memory")]

use super::{BufCursor, CachedRoot, Disk};
use crate::leaf::Leaf;
use crate::units::{Sector, SectorRange};
use crate::virtqueue::GuestBuf;

/// Sectors whose place is looked for at a time, 1 MiB: each block of a packed leaf
/// may have its own.
const PLACE_SECTORS: u64 = 2048;

/// Sectors that come from one place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Piece {
    /// The leaf holds them, together in its file.
    Leaf(LeafPiece),
    /// They are the root's, within one cache block.
    Root(RootPiece),
    /// The leaf holds them as zeros, or they lie beyond the root's end and were
    /// never written.
    Zero(SectorRange),
}

/// Sectors that the leaf holds, together in its file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LeafPiece {
    range: SectorRange,
    /// Of the first one's data in the leaf's file, in bytes.
    offset: u64,
}

impl LeafPiece {
    /// Which sectors they are.
    #[inline]
    pub const fn range(&self) -> SectorRange {
        self.range
    }

    /// Where in the leaf's file the first one begins, in bytes.
    #[inline]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The first sectors of it, at most `most`.
    #[must_use]
    pub const fn first(self, most: u64) -> Self {
        Self { range: self.range.split_at(most).0, ..self }
    }

    /// What is left after the first `count` sectors.
    #[must_use]
    pub const fn skip(self, count: u64) -> Self {
        let (done, range) = self.range.split_at(count);
        Self { range, offset: self.offset + done.byte_len() }
    }
}

/// Sectors of the root, within one cache block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RootPiece {
    range: SectorRange,
    block: u64,
    /// Sectors of the block before it.
    before: u64,
}

impl RootPiece {
    /// The first sectors of the (non-empty) range, which begins on the root, as far as
    /// they lie in one block.
    #[inline]
    fn of(range: SectorRange, root: &CachedRoot) -> Self {
        let (start, block) = (range.start(), root.block_of(range.start()));
        let end = root.block_start(block + 1).0.min(root.root().sectors());
        let range = range.split_at(end - start.0).0;
        Self { range, block, before: start.0 - root.block_start(block).0 }
    }

    /// Which sectors they are.
    #[inline]
    pub const fn range(&self) -> SectorRange {
        self.range
    }

    /// The number of the block that they are in.
    #[inline]
    pub const fn block(&self) -> u64 {
        self.block
    }

    /// The first sectors of it, at most `most`.
    #[must_use]
    pub const fn first(self, most: u64) -> Self {
        Self { range: self.range.split_at(most).0, ..self }
    }

    /// Their bytes, of those of their block.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "within one cache block")]
    pub(super) fn within<'a>(&self, block: &'a [u8]) -> &'a [u8] {
        let start = Sector(self.before).to_bytes() as usize;
        &block[start..start + self.range.byte_len() as usize]
    }

    /// Copies its bytes out of its block to where `cursor` is in the buffers; how many
    /// sectors that were: fewer than its own only where the buffers end.
    ///
    /// # Safety
    /// The buffers are mapped.
    ///
    /// # Panics
    /// If `block` is shorter than the cache's blocks: a bug of the caller.
    #[inline]
    pub unsafe fn copy(&self, block: &[u8], bufs: &[GuestBuf], cursor: &mut BufCursor) -> u64 {
        // SAFETY: by this function's contract.
        let copied = unsafe { cursor.write(bufs, self.within(block)) };
        copied as u64 / 512
    }
}

impl Disk {
    /// Where the first sectors of the (non-empty) range come from.
    #[inline]
    pub fn piece(&self, range: SectorRange) -> Piece {
        let mut run = range;
        if let Some(leaf) = &self.leaf {
            let (held, count) = leaf.next_run(range);
            run = range.split_at(count).0;
            if held {
                return held_piece(leaf, run);
            }
        }
        if run.start().0 >= self.root.root().sectors() {
            return Piece::Zero(run);
        }
        Piece::Root(RootPiece::of(run, &self.root))
    }
}

/// Where the first of held sectors come from. Not inlined: the root's sectors, which
/// come from the cache, are the shorter way.
#[inline(never)]
fn held_piece(leaf: &Leaf, run: SectorRange) -> Piece {
    let (place, count) = leaf.place(run.split_at(PLACE_SECTORS).0);
    let range = run.split_at(count).0;
    place.map_or(Piece::Zero(range), |offset| Piece::Leaf(LeafPiece { range, offset }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_leaf_piece_is_where_it_was() {
        let range = |start, count| SectorRange::new(Sector(start), count).unwrap();
        let piece = LeafPiece { range: range(100, 20), offset: 1 << 20 };
        assert_eq!(piece.first(7), LeafPiece { range: range(100, 7), offset: 1 << 20 });
        assert_eq!(
            piece.skip(7).first(3),
            LeafPiece { range: range(107, 3), offset: (1 << 20) + 7 * 512 }
        );
        assert!(piece.skip(99).range().is_empty());
    }
}
