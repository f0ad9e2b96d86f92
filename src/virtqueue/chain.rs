//! One descriptor chain as a list of buffers, reused from request to request.

/// Buffers that one chain may have, those of no bytes counted, and segments that
/// they may come to: as many as the largest queue that is offered has entries,
/// which is what virtio allows there, also through an indirect table (virtio 1.3,
/// 2.7.5.3.1). Linux stays below `seg_max` + 2. A longer chain is a loop or an
/// attack.
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

/// A popped chain: its head and its buffers, those of no bytes left out.
/// Kept and refilled, so that steady-state I/O allocates nothing.
#[derive(Debug, Default)]
pub struct Chain {
    /// The descriptor to give back as used.
    pub head: u16,
    /// What the driver wrote for the device.
    pub readable: Vec<GuestBuf>,
    /// What the device is to write.
    pub writable: Vec<GuestBuf>,
    /// Buffers' descriptors that were read, of those of no bytes too.
    buffers: u32,
    /// Descriptors that refer to an indirect table: 0 or 1.
    tables: u32,
    outside: Option<Outside>,
}

/// What is known of the buffers that lie outside guest memory, which are in no list.
#[derive(Clone, Copy, Debug)]
struct Outside {
    /// Where the first one is.
    addr: u64,
    /// The last of them that is writable, and how many writable ones were found
    /// before it.
    writable: Option<(u64, usize)>,
}

impl Chain {
    /// A chain of these buffers, with a descriptor for each.
    pub fn of(readable: Vec<GuestBuf>, writable: Vec<GuestBuf>) -> Self {
        let buffers = u32::try_from(readable.len() + writable.len()).unwrap_or(u32::MAX);
        Self { readable, writable, buffers, ..Self::default() }
    }

    /// Empties it, keeping the room.
    #[inline]
    pub(super) fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        (self.buffers, self.tables, self.outside) = (0, 0, None);
    }

    /// The descriptor of a buffer was read; false if that is one too many.
    #[inline]
    #[must_use]
    pub(super) fn count_buffer(&mut self) -> bool {
        let has_room = (self.buffers as usize) < SEGMENTS_MAX && self.segments() < SEGMENTS_MAX;
        self.buffers += 1;
        has_room
    }

    /// The descriptor of an indirect table was read.
    #[inline]
    pub(super) fn count_table(&mut self) {
        self.tables += 1;
    }

    /// A buffer at this guest address is not in memory.
    pub(super) fn note_outside(&mut self, addr: u64, is_writable: bool) {
        let outside = self.outside.get_or_insert(Outside { addr, writable: None });
        if is_writable {
            outside.writable = Some((addr, self.writable.len()));
        }
    }

    /// Where the status byte would be, the last writable one, if that is outside
    /// memory.
    #[inline]
    pub(super) fn lost_status(&self) -> Option<u64> {
        let (addr, found_before) = self.outside?.writable?;
        (found_before == self.writable.len()).then_some(addr)
    }

    /// Where the first buffer that is not in guest memory is. Nothing that such a
    /// chain asks for can be done; its last writable byte is in memory, if it has
    /// one.
    #[inline]
    pub fn outside(&self) -> Option<u64> {
        self.outside.map(|outside| outside.addr)
    }

    /// Descriptors that were read to find its buffers.
    #[inline]
    pub fn descriptors(&self) -> u32 {
        self.buffers + self.tables
    }

    /// Buffers in all.
    #[inline]
    pub fn segments(&self) -> usize {
        self.readable.len() + self.writable.len()
    }
}
