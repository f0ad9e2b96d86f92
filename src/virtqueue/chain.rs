//! One descriptor chain as a list of buffers, reused from request to request.

/// Segments one chain may have: as many as the largest queue that is offered has
/// entries, which is what virtio allows there, also through an indirect table
/// (virtio 1.3, 2.7.5.3.1). Linux stays below `seg_max` + 2. A longer chain is a
/// loop or an attack.
pub const SEGMENTS_MAX: usize = 1024;

/// A buffer in guest memory; laid out as an `iovec`, so that a list of them is
/// what readv(2) takes. The memory belongs to the guest, which may change it
/// at any time: copy, never borrow.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct GuestBuf(libc::iovec);

#[expect(unsafe_code, reason = "an address and a length")]
// SAFETY: plain data; whoever dereferences it answers for the mapping.
unsafe impl Send for GuestBuf {}

impl GuestBuf {
    /// `len` bytes at `ptr`.
    #[inline]
    pub const fn new(ptr: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: ptr.cast(), iov_len: len })
    }

    /// The first byte.
    #[inline]
    pub const fn ptr(self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Length in bytes.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "an empty buffer is no special case")]
    pub const fn len(self) -> usize {
        self.0.iov_len
    }

    /// Without its first `count` bytes (at most its length).
    #[inline]
    pub fn skip(self, count: usize) -> Self {
        let count = count.min(self.len());
        Self::new(self.ptr().wrapping_add(count), self.len() - count)
    }

    /// Only its first `count` bytes (at most its length).
    #[inline]
    pub fn take(self, count: usize) -> Self {
        Self::new(self.ptr(), count.min(self.len()))
    }
}

/// A popped chain: its head and its buffers, device-readable ones first.
/// Kept and refilled, so that steady-state I/O allocates nothing.
#[derive(Debug, Default)]
pub struct Chain {
    /// The descriptor to give back as used.
    pub head: u16,
    /// What the driver wrote for the device.
    pub readable: Vec<GuestBuf>,
    /// What the device is to write.
    pub writable: Vec<GuestBuf>,
}

impl Chain {
    /// Empties it, keeping the room.
    #[inline]
    pub(super) fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
    }

    /// Buffers in all.
    #[inline]
    pub fn segments(&self) -> usize {
        self.readable.len() + self.writable.len()
    }
}
