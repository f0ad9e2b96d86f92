//! What each slot holds, in shared memory that outlives the process.
//!
//! Owns the mapping of the slot directory and the layout of its entries; knows
//! nothing of files' places, of roots but by their keys, or of slots' roles.
//!
//! | offset | bytes | |
//! | --- | --- | --- |
//! | 0 | 4096 | header: see `kept.rs` |
//! | 4096 + 24·slot | 16 | the root's key |
//! | + 16 | 4 | the block's number |
//! | + 20 | 4 | seal: CRC-32C of the above and the slot's number, never 0; 0 in an empty entry |
//!
//! # Why an entry is never wrong, wherever the process dies
//!
//! The seal is taken away before the slot is handed out for filling, and put on
//! after its last byte is in place; the slot is not written in between (`mod.rs`,
//! first invariant). A killed process's stores are not undone. What is left are
//! reads into the arena that the kernel goes on with: those slots have no seal,
//! and nobody opens the directory before they are over ([`Directory::raw_fd`]).
#![expect(unsafe_code, reason = "atomics in a shared mapping")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::entry::SlotIndex;

/// Names one image in one state: what is cached of it is right for this key
/// only.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RootKey(pub [u8; 16]);

/// Bytes before the entries.
pub(super) const HEADER_LEN: usize = 4096;

#[repr(C)]
struct Entry {
    key: [AtomicU64; 2],
    block: AtomicU32,
    seal: AtomicU32,
}

const _: () = assert!(size_of::<Entry>() == 24);

/// The directory of one arena.
#[derive(Debug)]
pub(super) struct Directory {
    file: File,
    start: *mut u8,
    count: u32,
}

// SAFETY: the mapping is shared memory that is only touched as atomics.
unsafe impl Send for Directory {}
// SAFETY: as for Send.
unsafe impl Sync for Directory {}

impl Directory {
    /// Bytes of a directory for so many slots.
    pub(super) const fn len_bytes(count: u32) -> usize {
        HEADER_LEN + count as usize * size_of::<Entry>()
    }

    /// Maps a file that has [`Self::len_bytes`], none of them a hole, and is
    /// locked.
    pub(super) fn map(file: File, count: u32) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice, of a file
        // that is locked to this process.
        let start = unsafe {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let len = Self::len_bytes(count);
            mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0)?
        };
        Ok(Self { file, start: start.cast(), count })
    }

    /// Its file, on which the lock is. An io_uring that keeps it open holds the
    /// lock until its last read has ended, even if the process is killed.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn entry(&self, slot: SlotIndex) -> &Entry {
        assert!(slot.0 < self.count);
        let entry = self.start.wrapping_add(Self::len_bytes(slot.0)).cast::<Entry>();
        // SAFETY: inside the mapping by the assertion; aligned, since the
        // mapping is to pages and entries to 8 bytes; all fields are atomics.
        unsafe { &*entry }
    }

    /// The slot is about to be written.
    pub(super) fn clear(&self, slot: SlotIndex) {
        self.entry(slot).seal.store(0, Ordering::Relaxed);
        // Before anything is written to the slot, by whomever.
        fence(Ordering::SeqCst);
    }

    /// The slot holds this block, whole.
    pub(super) fn set(&self, slot: SlotIndex, key: RootKey, block: u32) {
        let entry = self.entry(slot);
        let [low, high] = words(key);
        entry.key[0].store(low, Ordering::Relaxed);
        entry.key[1].store(high, Ordering::Relaxed);
        entry.block.store(block, Ordering::Relaxed);
        entry.seal.store(seal(slot, key, block), Ordering::Release);
    }

    /// What the slot holds, if that is known.
    pub(super) fn get(&self, slot: SlotIndex) -> Option<(RootKey, u32)> {
        let entry = self.entry(slot);
        let found = entry.seal.load(Ordering::Acquire);
        let mut key = [0; 16];
        key[..8].copy_from_slice(&entry.key[0].load(Ordering::Relaxed).to_le_bytes());
        key[8..].copy_from_slice(&entry.key[1].load(Ordering::Relaxed).to_le_bytes());
        let (key, block) = (RootKey(key), entry.block.load(Ordering::Relaxed));
        (found == seal(slot, key, block)).then_some((key, block))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made, to which no reference is left.
        let unmapped = unsafe { munmap(self.start.cast(), Self::len_bytes(self.count)) };
        if let Err(error) = unmapped {
            log::error!("the cache's slot directory can't be unmapped: {error}");
        }
    }
}

fn words(key: RootKey) -> [u64; 2] {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&key.0[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    [word(0), word(8)]
}

fn seal(slot: SlotIndex, key: RootKey, block: u32) -> u32 {
    let crc = crc32c::crc32c(&slot.0.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &key.0);
    crc32c::crc32c_append(crc, &block.to_le_bytes()).max(1)
}
