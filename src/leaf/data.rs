//! The leaf's data: reads, writes, zeros.
#![expect(unsafe_code, reason = "passes buffers in guest memory on to the storage")]

use std::io;

use super::{Leaf, LeafError};
use crate::io::storage::zero;
use crate::sync::atomic::Ordering;
use crate::units::{Sector, SectorRange};
use crate::virtqueue::GuestBuf;

/// Bytes that one write to the storage has: the file's lock is held for so long
/// at a time, however large the request. Tests try it with small ones.
const STEP_BYTES: usize = if cfg!(test) { 16 << 10 } else { 1 << 20 };

/// How many of the buffers make up a step: at least one, if there is any.
fn in_a_step(bufs: &[GuestBuf]) -> usize {
    let mut len = 0;
    let more = |buf: &&GuestBuf| {
        len += buf.len();
        len <= STEP_BYTES
    };
    bufs.iter().take_while(more).count().max(1).min(bufs.len())
}

impl Leaf {
    /// Reads held sectors. May be short; with `nowait`, `WouldBlock` where the
    /// data isn't in the page cache.
    ///
    /// # Errors
    /// As preadv2(2).
    ///
    /// # Safety
    /// The buffers are valid for writes during the call.
    #[inline]
    pub unsafe fn read(&self, start: Sector, bufs: &[GuestBuf], nowait: bool) -> io::Result<usize> {
        // SAFETY: by this function's contract.
        unsafe { self.storage.read_into(bufs, self.data_offset(start), nowait) }
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
        let mut done = 0;
        let mut rest = bufs;
        let mut first = GuestBuf::new(std::ptr::null_mut(), 0);
        while done < range.byte_len() {
            let offset = self.data_offset(range.start()) + done;
            while first.len() == 0
                && let Some((buf, more)) = rest.split_first()
                && !(1..=STEP_BYTES).contains(&buf.len())
            {
                (first, rest) = (*buf, more);
            }
            // The rest of a buffer goes alone: a short write may have ended
            // inside it, or it is longer than a step.
            // SAFETY: by this function's contract.
            let count = unsafe {
                if first.len() > 0 {
                    self.storage.write_from(&[first.take(STEP_BYTES)], offset)
                } else {
                    self.storage.write_from(&rest[..in_a_step(rest)], offset)
                }
            };
            let mut count = match count {
                Ok(0) => return Err(self.unfinished("write", io::ErrorKind::WriteZero.into())),
                Ok(count) => count,
                Err(source) => return Err(self.unfinished("write", source)),
            };
            done += count as u64;
            let from_first = count.min(first.len());
            first = first.skip(from_first);
            count -= from_first;
            while count > 0
                && let Some((buf, more)) = rest.split_first()
            {
                (first, rest) = (buf.skip(count), more);
                count = count.saturating_sub(buf.len());
            }
        }
        self.mark(range)
    }

    /// Makes the range read as zeros and gives its space back.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_zeroes(&self, range: SectorRange) -> Result<(), LeafError> {
        self.check_writable("write zeroes", range)?;
        if range.is_empty() {
            // fallocate(2) takes no empty range.
            return Ok(());
        }
        let (offset, len) = (self.data_offset(range.start()), range.byte_len());
        zero(&*self.storage, offset, len).map_err(|e| self.unfinished("write zeroes", e))?;
        self.mark(range)
    }

    /// An error after part of the range may have changed. Sectors that were
    /// held already show it, so the next flush has something to make durable:
    /// what a guest read before a flush must not change after a loss of power.
    pub(super) fn unfinished(&self, operation: &'static str, source: io::Error) -> LeafError {
        self.written.fetch_add(1, Ordering::Release);
        self.io(operation, source)
    }
}
