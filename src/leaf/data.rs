//! The leaf's data: reads, writes, zeros.
#![expect(unsafe_code, reason = "passes buffers in guest memory on to the storage")]

use std::io;

use super::{Leaf, LeafError};
use crate::io::storage::zero;
use crate::sync::atomic::Ordering;
use crate::units::SectorRange;
use crate::virtqueue::GuestBuf;

/// Bytes that one write to the storage has: the file's lock is held for so long
/// at a time, however large the request. Tests try it with small ones.
const STEP_BYTES: usize = if cfg!(test) { 16 << 10 } else { 1 << 20 };

/// Sectors of a direct leaf that are made zeros in one call, 16 MiB: if they are 4 KiB
/// here and there, the file system has some thousand places to give back. Tests try it
/// with few.
const ZERO_SECTORS: u64 = if cfg!(test) { 256 } else { 32 << 10 };

/// Buffers that one write to the storage has at most where a list must be cut.
const GATHER: usize = 64;

/// What is still to be written: the rest of a buffer, and the buffers after it.
struct Pending<'a> {
    first: GuestBuf,
    rest: &'a [GuestBuf],
}

impl<'a> Pending<'a> {
    fn of(rest: &'a [GuestBuf]) -> Self {
        Self { first: GuestBuf::new(std::ptr::null_mut(), 0), rest }
    }

    /// The next `most` bytes after `done`, or as many as there are, for one call: a sector that
    /// came in two would be torn by a kill in between. In `room` where the list
    /// must be cut; of more buffers than that has room for, the next ones.
    fn next<'b>(
        &'b self,
        done: u64,
        most: usize,
        room: &'b mut [GuestBuf; GATHER],
    ) -> &'b [GuestBuf] {
        if self.first.len() == 0 {
            let mut len = 0;
            let fits = |buf: &&GuestBuf| {
                let fits = len + buf.len() <= most;
                len += if fits { buf.len() } else { 0 };
                fits
            };
            let count = self.rest.iter().take_while(fits).count();
            if count == self.rest.len() || len == most {
                return &self.rest[..count];
            }
        }
        let (mut count, mut left) = (0, most);
        let bufs = std::iter::once(&self.first).chain(self.rest);
        for buf in bufs.filter(|buf| buf.len() > 0) {
            if left == 0 || count == GATHER {
                break;
            }
            room[count] = buf.take(left);
            left -= room[count].len();
            count += 1;
        }
        if left > 0 && count == GATHER {
            // More will follow: up to a sector's end, if there is one.
            let len = (most - left) as u64;
            let mut excess = (done + len) % 512;
            while excess < len && excess > 0 {
                let last = &mut room[count - 1];
                let cut = last.len().min(usize::try_from(excess).unwrap_or(0));
                *last = last.take(last.len() - cut);
                excess -= cut as u64;
                count -= usize::from(last.len() == 0);
            }
        }
        &room[..count]
    }

    /// So many bytes are written.
    fn skip(&mut self, mut count: usize) {
        let from_first = count.min(self.first.len());
        self.first = self.first.skip(from_first);
        count -= from_first;
        while count > 0
            && let Some((buf, more)) = self.rest.split_first()
        {
            (self.first, self.rest) = (buf.skip(count), more);
            count = count.saturating_sub(buf.len());
        }
    }
}

impl Leaf {
    /// Reads held sectors that lie together from `place` on, which [`Self::place`]
    /// said: a block keeps its place while the leaf is in use. May be short; with
    /// `nowait`, `WouldBlock` where the data isn't in the page cache.
    ///
    /// # Errors
    /// As preadv2(2).
    ///
    /// # Safety
    /// The buffers are valid for writes during the call.
    #[inline]
    pub unsafe fn read(&self, place: u64, bufs: &[GuestBuf], nowait: bool) -> io::Result<usize> {
        // SAFETY: by this function's contract.
        unsafe { self.storage.read_into(bufs, place, nowait) }
    }

    /// Writes `range`, all of it, then marks it as held.
    ///
    /// # Errors
    /// The disk's (ENOSPC too, after which the leaf works on); InvalidInput
    /// past the disk's end; [`LeafError::Poisoned`].
    ///
    /// # Safety
    /// The buffers are valid for reads during the call and have exactly the
    /// range's length in all.
    pub unsafe fn write(&self, range: SectorRange, bufs: &[GuestBuf]) -> Result<(), LeafError> {
        self.check_writable("write", range)?;
        self.take_slots(range)?;
        let mut done = 0;
        let mut pending = Pending::of(bufs);
        let mut room = [GuestBuf::new(std::ptr::null_mut(), 0); GATHER];
        while done < range.byte_len() {
            let (offset, most) = self.step_at(range, done)?;
            // SAFETY: by this function's contract.
            let count =
                unsafe { self.storage.write_from(pending.next(done, most, &mut room), offset) };
            let count = match count {
                Ok(0) => return Err(self.unfinished("write", io::ErrorKind::WriteZero.into())),
                Ok(count) => count,
                Err(source) => return Err(self.unfinished("write", source)),
            };
            done += count as u64;
            pending.skip(count);
        }
        self.mark(range)
    }

    /// Makes the range read as zeros and gives its space back.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_zeroes(&self, range: SectorRange) -> Result<(), LeafError> {
        let mut rest = range;
        while !rest.is_empty() {
            rest = self.write_zeroes_in_part(rest)?;
        }
        Ok(())
    }

    /// Makes the first sectors of the range read as zeros, as many as one call to the
    /// file system does in moments; returns the rest. For whoever has something else to
    /// do in between: a range may have a hundred thousand places in the file, and each
    /// call holds the file's lock.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_zeroes_in_part(&self, range: SectorRange) -> Result<SectorRange, LeafError> {
        self.check_writable("write zeroes", range)?;
        // fallocate(2) takes no empty range.
        if range.is_empty() {
            return Ok(range);
        }
        if self.map.is_packed() {
            let done = self.zero_packed(range)?;
            return Ok(range.split_at(done).1);
        }
        let (first, rest) = range.split_at(ZERO_SECTORS);
        let (offset, len) = (self.data_offset + first.byte_offset(), first.byte_len());
        zero(&*self.storage, offset, len).map_err(|e| self.unfinished("write zeroes", e))?;
        self.mark(first)?;
        Ok(rest)
    }

    /// Where in the file a write of the range goes on after so many bytes, and how
    /// many it may have there at most.
    fn step_at(&self, range: SectorRange, done: u64) -> Result<(u64, usize), LeafError> {
        let (rest, within) = (range.split_at(done / 512).1, done % 512);
        let (place, sectors) = self.place(rest);
        let most = usize::try_from(sectors * 512 - within).unwrap_or(usize::MAX);
        let step = STEP_BYTES - usize::try_from(within).unwrap_or(0);
        Ok((self.taken(place)? + within, most.min(step)))
    }

    /// An error after part of the range may have changed. Sectors that were
    /// held already show it, so the next flush has something to make durable:
    /// what a guest read before a flush must not change after a loss of power.
    pub(super) fn unfinished(&self, operation: &'static str, source: io::Error) -> LeafError {
        self.written.fetch_add(1, Ordering::Release);
        self.io(operation, source)
    }
}
