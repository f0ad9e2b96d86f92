//! What can be read and written at once, without waiting for a disk.
#![expect(unsafe_code, reason = "hands guest buffers to copies and system calls")]

use super::{Activity, Ahead, BufCursor, Disk, LeafPiece, Piece, RootPiece};
use crate::cache::{Lookup, Reader};
use crate::leaf::LeafError;
use crate::metrics::Counter;
use crate::units::SectorRange;
use crate::virtqueue::GuestBuf;

/// Sectors that one call serves at most: 1 MiB, so that a huge request can't
/// hold a reactor for long. The rest is a matter of calling again.
const INLINE_SECTORS: u64 = 2048;
/// What a piece is reckoned with at least, in sectors: one of the leaf costs a
/// system call, however short it is, and a guest can make all of them short.
const PIECE_SECTORS: u64 = 8;

/// Where a read that could go no further at once stands.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Stopped {
    /// What is left of its range.
    pub rest: SectorRange,
    /// What must be waited for before the first of it can be read; nothing where there
    /// was only enough done for one call.
    pub missing: Option<Missing>,
}

/// What a read must wait for.
#[derive(Clone, Copy, Debug)]
pub enum Missing {
    /// Their block is not in the cache.
    Root(RootPiece),
    /// They are not in the page cache.
    Leaf(LeafPiece),
}

impl Disk {
    /// Where the first data is that a read of the range will copy.
    #[inline]
    pub fn ahead(&self, reader: &Reader, range: SectorRange) -> Ahead {
        if range.is_empty() {
            return Ahead::default();
        }
        if let Piece::Root(piece) = self.piece(range)
            && let Lookup::Hit(block) = self.root.cache.lookup(reader, piece.block())
        {
            return Ahead::new(piece.within(&block));
        }
        Ahead::default()
    }

    /// Reads from the start of `range` for as long as nothing must be waited
    /// for, and at most 1 MiB. Advances `cursor`; returns what is left.
    ///
    /// # Safety
    /// The buffers are mapped, and have the range's length in all from
    /// `cursor` on.
    #[inline]
    pub unsafe fn read_now(
        &self,
        reader: &Reader,
        range: SectorRange,
        bufs: &[GuestBuf],
        cursor: &mut BufCursor,
    ) -> SectorRange {
        // SAFETY: by this function's contract.
        unsafe { self.read_some_now(INLINE_SECTORS, reader, range, bufs, cursor) }.rest
    }

    /// As [`Self::read_now`], at most `most` sectors, and fewer where they come
    /// in many pieces; where it stopped and why.
    ///
    /// # Safety
    /// As for [`Self::read_now`].
    #[inline]
    pub unsafe fn read_some_now(
        &self,
        most: u64,
        reader: &Reader,
        range: SectorRange,
        bufs: &[GuestBuf],
        cursor: &mut BufCursor,
    ) -> Stopped {
        let (mut now, later) = range.split_at(most);
        let (mut effort, mut missing) = (most, None);
        while !now.is_empty() && effort > 0 {
            let piece = self.piece(now);
            // SAFETY: by this function's contract.
            let done = unsafe { self.read_piece_now(reader, piece, bufs, cursor) };
            if done == 0 {
                missing = match piece {
                    Piece::Root(piece) => Some(Missing::Root(piece)),
                    Piece::Leaf(piece) => Some(Missing::Leaf(piece)),
                    Piece::Zero(_) => None,
                };
                break;
            }
            now = now.split_at(done).1;
            effort = effort.saturating_sub(done.max(PIECE_SECTORS));
        }
        let done = range.count() - now.count() - later.count();
        Stopped { rest: range.split_at(done).1, missing }
    }

    /// As [`Self::read_now`] for one piece; how many of its sectors were read.
    #[inline]
    unsafe fn read_piece_now(
        &self,
        reader: &Reader,
        piece: Piece,
        bufs: &[GuestBuf],
        cursor: &mut BufCursor,
    ) -> u64 {
        match piece {
            Piece::Root(piece) => {
                let found = self.root.cache.lookup(reader, piece.block());
                let is_hit = matches!(found, Lookup::Hit(_));
                let counter = &self.counters.read_sectors_cache;
                // SAFETY: by this function's contract.
                let done = unsafe { self.copy_found(found, piece, bufs, cursor, counter) };
                if is_hit {
                    self.counters.cache_hits.add(1);
                }
                done.unwrap_or(0)
            }
            // SAFETY: by this function's contract.
            Piece::Zero(piece) => unsafe { self.write_zeroes_to(piece, bufs, cursor) },
            // SAFETY: by this function's contract.
            Piece::Leaf(piece) => unsafe { self.read_leaf_now(piece, bufs, cursor) },
        }
    }

    /// Copies a piece of the root out of what a lookup of its block found. That lookup
    /// decides, and there is no second one: another reactor may have evicted the block
    /// since. How many sectors were copied, which `counter` counts; `None` where nothing
    /// was found.
    ///
    /// # Safety
    /// As for [`Self::read_now`].
    #[inline]
    #[must_use]
    pub unsafe fn copy_found(
        &self,
        found: Lookup<'_>,
        piece: RootPiece,
        bufs: &[GuestBuf],
        cursor: &mut BufCursor,
        counter: &Counter,
    ) -> Option<u64> {
        match found {
            Lookup::Hit(block) => {
                // SAFETY: by this function's contract.
                let copied = unsafe { piece.copy(&block, bufs, cursor) };
                counter.add(copied);
                Some(copied)
            }
            // SAFETY: by this function's contract.
            Lookup::Zero => Some(unsafe { self.write_zeroes_to(piece.range(), bufs, cursor) }),
            Lookup::Miss => None,
        }
    }

    unsafe fn write_zeroes_to(
        &self,
        range: SectorRange,
        bufs: &[GuestBuf],
        cursor: &mut BufCursor,
    ) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "at most INLINE_SECTORS")]
        let len = range.byte_len() as usize;
        // SAFETY: by this function's contract, which is `read_now`'s.
        let written = unsafe { cursor.write_zeroes(bufs, len) };
        self.counters.read_sectors_zero.add(range.count());
        written as u64 / 512
    }

    /// What of a leaf piece is in the page cache, in whole sectors.
    unsafe fn read_leaf_now(
        &self,
        piece: LeafPiece,
        bufs: &[GuestBuf],
        cursor: &mut BufCursor,
    ) -> u64 {
        /// Buffers that are gathered on the stack; a piece with more is read
        /// in several calls.
        const GATHER: usize = 16;
        let Some(leaf) = &self.leaf else { return 0 };
        let mut gathered = [GuestBuf::new(std::ptr::null_mut(), 0); GATHER];
        let mut ahead = *cursor;
        let (mut count, mut len) = (0, 0);
        #[expect(clippy::cast_possible_truncation, reason = "at most INLINE_SECTORS")]
        let want = piece.range().byte_len() as usize;
        while count < GATHER && len < want {
            let Some(buf) = ahead.next_buf(bufs, want - len) else {
                break;
            };
            gathered[count] = buf;
            len += buf.len();
            count += 1;
        }
        // SAFETY: by this function's contract.
        let read = unsafe { leaf.read(piece.offset(), &gathered[..count], true) };
        // An error other than EAGAIN shows again where it can be waited for.
        let sectors = read.unwrap_or(0) as u64 / 512;
        if sectors > 0 {
            self.failures.succeeded(Activity::LeafRead);
        }
        cursor.skip(bufs, sectors as usize * 512);
        self.counters.read_sectors_leaf.add(sectors);
        sectors
    }

    /// Writes the range to the leaf, here and now. May wait for a disk where
    /// the kernel is short of memory: the caller sees to it that it is rare.
    ///
    /// # Errors
    /// The leaf's.
    ///
    /// # Safety
    /// The buffers are mapped and have exactly the range's length in all.
    pub unsafe fn write_now(
        &self,
        range: SectorRange,
        bufs: &[GuestBuf],
    ) -> Result<(), Option<LeafError>> {
        let Some(leaf) = &self.leaf else {
            return Err(None);
        };
        // SAFETY: by this function's contract.
        unsafe { leaf.write(range, bufs) }.map_err(Some)
    }
}
