//! Walking a list of guest buffers by bytes.
#![expect(unsafe_code, reason = "copies to and from guest memory")]

use std::ptr;

use super::copy::copy;
use crate::prefetch;
use crate::virtqueue::GuestBuf;

/// A place in a list of buffers. The list is passed to each call, since its
/// owner may have moved it meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub struct BufCursor {
    index: usize,
    offset: usize,
}

impl BufCursor {
    /// The next stretch of at most `most` bytes; `None` at the list's end.
    #[inline]
    pub(super) fn next_buf(&mut self, bufs: &[GuestBuf], most: usize) -> Option<GuestBuf> {
        loop {
            let buf = bufs.get(self.index)?.skip(self.offset);
            if buf.len() > most {
                self.offset += most;
                return Some(buf.take(most));
            }
            (self.index, self.offset) = (self.index + 1, 0);
            if buf.len() > 0 {
                return Some(buf);
            }
        }
    }

    /// Copies `bytes` into the buffers, as far as they reach.
    ///
    /// # Safety
    /// The buffers are mapped.
    #[inline]
    pub unsafe fn write(&mut self, bufs: &[GuestBuf], mut bytes: &[u8]) {
        while !bytes.is_empty()
            && let Some(buf) = self.next_buf(bufs, bytes.len())
        {
            let (now, later) = bytes.split_at(buf.len());
            // SAFETY: `buf` is mapped and as long as `now`; the source is our
            // own memory (a cache slot, a constant), which no guest maps.
            unsafe { copy(now, buf.ptr()) };
            bytes = later;
        }
    }

    /// Writes `count` zeros.
    ///
    /// # Safety
    /// The buffers are mapped.
    pub unsafe fn write_zeroes(&mut self, bufs: &[GuestBuf], mut count: usize) {
        while count > 0
            && let Some(buf) = self.next_buf(bufs, count)
        {
            // SAFETY: `buf` is mapped.
            unsafe { ptr::write_bytes(buf.ptr(), 0, buf.len()) };
            count -= buf.len();
        }
    }

    /// Passes over `count` bytes and appends the buffers that hold them.
    pub fn take(&mut self, bufs: &[GuestBuf], mut count: usize, into: &mut Vec<GuestBuf>) {
        while count > 0
            && let Some(buf) = self.next_buf(bufs, count)
        {
            into.push(buf);
            count -= buf.len();
        }
    }

    /// Passes over `count` bytes.
    pub fn skip(&mut self, bufs: &[GuestBuf], mut count: usize) {
        while count > 0
            && let Some(buf) = self.next_buf(bufs, count)
        {
            count -= buf.len();
        }
    }
}

/// Data that will be copied soon: an address for hints, not to be read from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    address: usize,
    len: usize,
}

impl Ahead {
    /// The rest comes by the CPU's own stream detection.
    const MOST: usize = 4096;

    pub(super) fn new(bytes: &[u8]) -> Self {
        Self { address: bytes.as_ptr().addr(), len: bytes.len().min(Self::MOST) }
    }

    /// Asks the CPU for its first line, and with it for the translation of its
    /// address: what [`Self::fetch`] asks for waits for that, and several
    /// translations can be under way at once (docs/BENCHMARKS.md). Nothing where
    /// there is no data: a translation of address 0 is never found, nor remembered.
    #[inline]
    pub fn touch(self) {
        if self.len > 0 {
            prefetch::line(std::ptr::without_provenance(self.address));
        }
    }

    /// Asks the CPU for it: random blocks of a large arena miss every cache,
    /// and the copies of the requests before hide the wait.
    #[inline]
    pub fn fetch(self) {
        for offset in (0..self.len).step_by(64) {
            let line = std::ptr::without_provenance(self.address.wrapping_add(offset));
            prefetch::line_for_later(line);
        }
    }
}
