//! The leaf's data: reads, writes, zeros.
#![expect(unsafe_code, reason = "passes buffers in guest memory on to the storage")]

use std::io;

use super::{Leaf, LeafError};
use crate::units::{Sector, SectorRange};
use crate::virtqueue::GuestBuf;

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
            // A short write may have ended inside a buffer: its rest goes alone.
            // SAFETY: by this function's contract.
            let count = unsafe {
                if first.len() > 0 {
                    self.storage.write_from(&[first], offset)
                } else {
                    self.storage.write_from(rest, offset)
                }
            };
            let mut count = match count {
                Ok(0) => return Err(self.io("write", io::ErrorKind::WriteZero.into())),
                Ok(count) => count,
                Err(source) => return Err(self.io("write", source)),
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
        match self.storage.punch_hole(self.data_offset(range.start()), range.byte_len()) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => self.write_out_zeroes(range)?,
            Err(source) => return Err(self.io("punch", source)),
        }
        self.mark(range)
    }

    /// For file systems without holes.
    fn write_out_zeroes(&self, range: SectorRange) -> Result<(), LeafError> {
        static ZEROES: [u8; 65536] = [0; 65536];
        let mut done = 0;
        while done < range.byte_len() {
            let here = usize::try_from(range.byte_len() - done).unwrap_or(usize::MAX);
            let offset = self.data_offset(range.start()) + done;
            let zeroes = &ZEROES[..here.min(ZEROES.len())];
            crate::io::storage::write_all(&*self.storage, zeroes, offset)
                .map_err(|source| self.io("write zeroes", source))?;
            done += zeroes.len() as u64;
        }
        Ok(())
    }
}
