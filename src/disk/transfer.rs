//! What can be read and written at once, without waiting for a disk.
#![expect(unsafe_code, reason = "hands guest buffers to copies and system calls")]

use super::{Ahead, BufCursor, Disk, Piece};
use crate::cache::{Lookup, Reader};
use crate::leaf::LeafError;
use crate::units::SectorRange;
use crate::virtqueue::GuestBuf;

/// Sectors that one call serves at most: 1 MiB, so that a huge request can't
/// hold a reactor for long. The rest is a matter of calling again.
const INLINE_SECTORS: u64 = 2048;
/// What a piece is reckoned with at least, in sectors: one of the leaf costs a
/// system call, however short it is, and a guest can make all of them short.
const PIECE_SECTORS: u64 = 8;

impl Disk {
    /// Where the first data is that a read of the range will copy.
    #[inline]
    pub fn ahead(&self, reader: &Reader, range: SectorRange) -> Ahead {
        if range.is_empty() {
            return Ahead::default();
        }
        if let Piece::Root(piece) = self.piece(range) {
            let block = self.root.block_of(piece.start());
            if let Lookup::Hit(bytes) = self.root.cache.lookup(reader, block) {
                return Ahead::new(self.within(&bytes, piece));
            }
        }
        Ahead::default()
    }

    /// The part of a cache block's bytes that `piece` is.
    #[inline]
    fn within<'a>(&self, block: &'a [u8], piece: SectorRange) -> &'a [u8] {
        let start = self.root.block_start(self.root.block_of(piece.start()));
        let skip = piece.byte_offset() - start.to_bytes();
        #[expect(clippy::cast_possible_truncation, reason = "within one cache block")]
        block.get(skip as usize..(skip + piece.byte_len()) as usize).unwrap_or_default()
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
        unsafe { self.read_some_now(INLINE_SECTORS, reader, range, bufs, cursor) }
    }

    /// As [`Self::read_now`], at most `most` sectors, and fewer where they come
    /// in many pieces.
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
    ) -> SectorRange {
        let (mut now, later) = range.split_at(most);
        let mut effort = most;
        while !now.is_empty() && effort > 0 {
            // SAFETY: by this function's contract.
            let done = unsafe { self.read_piece_now(reader, self.piece(now), bufs, cursor) };
            if done == 0 {
                break;
            }
            now = now.split_at(done).1;
            effort = effort.saturating_sub(done.max(PIECE_SECTORS));
        }
        SectorRange::new(now.start(), now.count() + later.count()).unwrap_or(now)
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
        // SAFETY (all of the function's blocks): by its contract.
        match piece {
            Piece::Root(piece) => {
                let block = self.root.block_of(piece.start());
                match self.root.cache.lookup(reader, block) {
                    // SAFETY: see above.
                    Lookup::Hit(bytes) => unsafe {
                        cursor.write(bufs, self.within(&bytes, piece));
                        self.counters.read_sectors_cache.add(piece.count());
                        self.counters.cache_hits.add(1);
                    },
                    // SAFETY: see above.
                    Lookup::Zero => unsafe { self.write_zeroes_to(piece, bufs, cursor) },
                    Lookup::Miss => return 0,
                }
                piece.count()
            }
            Piece::Zero(piece) => {
                // SAFETY: see above.
                unsafe { self.write_zeroes_to(piece, bufs, cursor) };
                piece.count()
            }
            // SAFETY: see above.
            Piece::Leaf(piece) => unsafe { self.read_leaf_now(piece, bufs, cursor) },
        }
    }

    /// Reads one piece of the root whose block was filled for it.
    ///
    /// # Safety
    /// As for [`Self::read_now`].
    pub unsafe fn read_filled(
        &self,
        reader: &Reader,
        piece: SectorRange,
        bufs: &[GuestBuf],
        cursor: &mut BufCursor,
    ) {
        let block = self.root.block_of(piece.start());
        match self.root.cache.lookup(reader, block) {
            Lookup::Hit(bytes) => {
                // SAFETY: by this function's contract.
                unsafe { cursor.write(bufs, self.within(&bytes, piece)) };
                self.counters.read_sectors_root.add(piece.count());
            }
            // SAFETY: by this function's contract.
            Lookup::Zero => unsafe { self.write_zeroes_to(piece, bufs, cursor) },
            Lookup::Miss => debug_assert!(false, "looked up in the same turn"),
        }
    }

    unsafe fn write_zeroes_to(
        &self,
        piece: SectorRange,
        bufs: &[GuestBuf],
        cursor: &mut BufCursor,
    ) {
        #[expect(clippy::cast_possible_truncation, reason = "at most INLINE_SECTORS")]
        // SAFETY: by this function's contract, which is `read_now`'s.
        unsafe {
            cursor.write_zeroes(bufs, piece.byte_len() as usize)
        };
        self.counters.read_sectors_zero.add(piece.count());
    }

    /// What of a leaf piece is in the page cache, in whole sectors.
    unsafe fn read_leaf_now(
        &self,
        piece: SectorRange,
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
        let want = piece.byte_len() as usize;
        while count < GATHER && len < want {
            let Some(buf) = ahead.next_buf(bufs, want - len) else {
                break;
            };
            gathered[count] = buf;
            len += buf.len();
            count += 1;
        }
        // SAFETY: by this function's contract.
        let read = unsafe { leaf.read(piece.start(), &gathered[..count], true) };
        // An error other than EAGAIN shows again where it can be waited for.
        let sectors = read.unwrap_or(0) as u64 / 512;
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
