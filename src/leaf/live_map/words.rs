//! Arrays of atomic words that cost nothing until they are touched.
//!
//! A live map has room for the disk that its leaf may grow to, mostly address
//! space: mapped memory is zeros and gets pages where it is used.
#![expect(unsafe_code, reason = "memory mappings")]

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A mapped array.
#[derive(Debug)]
pub(super) struct Words {
    base: *const AtomicU64,
    len: usize,
}

// SAFETY: the mapping is only touched as atomics, and is no thread's in
// particular.
unsafe impl Send for Words {}
// SAFETY: as for Send.
unsafe impl Sync for Words {}

const PROT: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

impl Words {
    /// `len` words of the file from `offset` on. Those beyond its end, or in a
    /// hole of a file system that is full, are not to be touched (SIGBUS).
    pub(super) fn of_file(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice, of a
        // file that only this process and its successors open.
        let base = unsafe {
            mmap(std::ptr::null_mut(), len_bytes(len)?, PROT, MapFlags::SHARED, file, offset)?
        };
        Ok(Self { base: base.cast_const().cast(), len })
    }

    /// `len` words of this process's own, all 0.
    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len_bytes(len)?, PROT, flags)? };
        Ok(Self { base: base.cast_const().cast(), len })
    }

    /// The word number `index`.
    #[inline]
    pub(super) fn get(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.len);
        // SAFETY: inside the mapping by the assertion; aligned, since the
        // mapping is; only atomics touch it.
        unsafe { &*self.base.add(index) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping that this value made; nothing refers to it any
        // more.
        let _ = unsafe { munmap(self.base.cast_mut().cast(), self.len * 8) };
    }
}

fn len_bytes(len: usize) -> io::Result<usize> {
    len.checked_mul(8).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
