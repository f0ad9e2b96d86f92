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

    /// Copies `bytes` into the buffers, as far as they reach; how many that were.
    ///
    /// # Safety
    /// The buffers are mapped.
    #[inline]
    pub unsafe fn write(&mut self, bufs: &[GuestBuf], bytes: &[u8]) -> usize {
        let (all, mut bytes) = (bytes.len(), bytes);
        while !bytes.is_empty()
            && let Some(buf) = self.next_buf(bufs, bytes.len())
        {
            let (now, later) = bytes.split_at(buf.len());
            // SAFETY: `buf` is mapped and as long as `now`; the source is our
            // own memory (a cache slot, a constant), which no guest maps.
            unsafe { copy(now, buf.ptr()) };
            bytes = later;
        }
        all - bytes.len()
    }

    /// Writes `count` zeros, as far as the buffers reach; how many that were.
    ///
    /// # Safety
    /// The buffers are mapped.
    pub unsafe fn write_zeroes(&mut self, bufs: &[GuestBuf], count: usize) -> usize {
        let mut left = count;
        while left > 0
            && let Some(buf) = self.next_buf(bufs, left)
        {
            // SAFETY: `buf` is mapped.
            unsafe { ptr::write_bytes(buf.ptr(), 0, buf.len()) };
            left -= buf.len();
        }
        count - left
    }

    /// Passes over `count` bytes and appends the buffers that hold them, as far as there
    /// are any.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Buffers of these lengths, with odd gaps between them.
    fn bufs(memory: &mut [u8], lens: &[usize]) -> Vec<GuestBuf> {
        let mut at = 1;
        let buf = |len: &usize| {
            let buf = GuestBuf::new(memory[at..at + len].as_mut_ptr(), *len);
            at += len + 3;
            buf
        };
        lens.iter().map(buf).collect()
    }

    #[test]
    fn what_does_not_fit_is_not_counted_as_written() {
        let mut memory = vec![0xa5; 4096];
        let bufs = bufs(&mut memory, &[7, 0, 500, 600]);
        for (len, fits) in [(0, 0), (1, 1), (1106, 1106), (1107, 1107), (1108, 1107)] {
            // SAFETY: the buffers lie in `memory`, which lives on.
            let copied = unsafe { BufCursor::default().write(&bufs, &vec![1; len]) };
            // SAFETY: see above.
            let zeroed = unsafe { BufCursor::default().write_zeroes(&bufs, len) };
            assert_eq!((copied, zeroed), (fits, fits), "{len}");
        }
        let mut cursor = BufCursor::default();
        cursor.skip(&bufs, 1000);
        // SAFETY: see above.
        assert_eq!(unsafe { cursor.write(&bufs, &[1; 512]) }, 107);
        // SAFETY: see above.
        assert_eq!(unsafe { cursor.write(&bufs, &[1; 512]) }, 0, "at the end");
    }
}
