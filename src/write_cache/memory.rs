//! The shared memory of a write cache: a file on tmpfs that outlives the process.
//!
//! The first page says whose it is; from 2 MiB on there are *pieces* of
//! 2 MiB. A piece's first four pages are headers of 32 bytes, one for each of its 512
//! pages, and the other 508 are frames. A piece is allocated before it is touched, so a
//! full tmpfs is an error and never a SIGBUS.
#![expect(unsafe_code, reason = "a mapping that other processes may have too")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a piece.
pub const PIECE_LEN: usize = 2 << 20;
/// Bytes of a frame.
pub const FRAME_LEN: usize = 4096;
/// Pages of a piece.
pub const PIECE_PAGES: u32 = 512;
/// Of these, the ones with headers.
pub const HEADER_PAGES: u32 = 4;
/// 64-bit words of a header.
pub const HEADER_WORDS: usize = 4;
const HEADER_LEN: usize = HEADER_WORDS * 8;

/// Memory for frames and headers. There is one real kind, and one of the simulator's,
/// which can stop the process before any store.
pub trait Memory {
    /// Pieces that are allocated.
    fn pieces(&self) -> u32;

    /// Allocates another piece, of zeros.
    ///
    /// # Errors
    /// As fallocate(2): ENOSPC where the file system is full.
    fn grow(&mut self) -> io::Result<()>;

    /// The bytes of a frame that is in a piece. Whoever writes there by the pointer holds
    /// the frame; see [`super::WriteCache`].
    fn frame(&self, frame: u32) -> NonNull<u8>;

    /// Copies into a frame: `from` fits behind `at`.
    fn fill(&self, frame: u32, at: usize, from: &[u8]);

    /// Copies out of a frame.
    fn copy_out(&self, frame: u32, at: usize, into: &mut [u8]);

    /// Stores a word of a frame's header. Stores reach the memory in this order.
    fn store(&self, frame: u32, word: usize, value: u64);

    /// Loads a word of a frame's header.
    fn load(&self, frame: u32, word: usize) -> u64;
}

/// The real memory.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    base: NonNull<u8>,
    len: usize,
    pieces: u32,
}

// SAFETY: the mapping is this value's own, and its bytes are used by one thread at a time,
// which `&mut` of the write cache says.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    /// Maps a file that may grow to `pieces_max` pieces. Those that it has already are
    /// taken over.
    ///
    /// # Errors
    /// As ftruncate(2), mmap(2) and fallocate(2).
    pub fn map(file: File, pieces_max: u32) -> io::Result<Self> {
        let found = file.metadata()?.len().saturating_sub(PIECE_LEN as u64) / PIECE_LEN as u64;
        let pieces = u32::try_from(found).unwrap_or(u32::MAX);
        if pieces > pieces_max {
            let text = format!("it has {pieces} pieces, and may have {pieces_max}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if pieces > 0 {
            // What it has may have been punched by others: touching it must not fail.
            let len = u64::from(pieces) * PIECE_LEN as u64;
            fallocate(&file, FallocateFlags::empty(), PIECE_LEN as u64, len)?;
        }
        let len = pieces_max as usize * PIECE_LEN;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            mmap(
                std::ptr::null_mut(),
                len.max(PIECE_LEN),
                protection,
                MapFlags::SHARED,
                file.as_fd(),
                PIECE_LEN as u64,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, base, len: len.max(PIECE_LEN), pieces })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn at(&self, frame: u32, offset: usize, len: usize) -> *mut u8 {
        let (piece, page) = (frame / PIECE_PAGES, frame % PIECE_PAGES);
        assert!(
            piece < self.pieces && page >= HEADER_PAGES && offset + len <= FRAME_LEN,
            "frame {frame} is in no piece"
        );
        // SAFETY: within the mapping, as was just checked.
        unsafe { self.base.as_ptr().add(frame as usize * FRAME_LEN + offset) }
    }

    fn word(&self, frame: u32, word: usize) -> &AtomicU64 {
        let (piece, page) = ((frame / PIECE_PAGES) as usize, (frame % PIECE_PAGES) as usize);
        assert!(piece < self.pieces as usize && word < HEADER_WORDS, "frame {frame} has no header");
        let at = piece * PIECE_LEN + page * HEADER_LEN + word * 8;
        // SAFETY: within the mapping, aligned, and only used as an atomic.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast()) }
    }
}

impl Memory for SharedMemory {
    fn pieces(&self) -> u32 {
        self.pieces
    }

    fn grow(&mut self) -> io::Result<()> {
        let next = (self.pieces as usize + 1) * PIECE_LEN;
        if next > self.len {
            return Err(io::ErrorKind::StorageFull.into());
        }
        fallocate(&self.file, FallocateFlags::empty(), next as u64, PIECE_LEN as u64)?;
        self.pieces += 1;
        Ok(())
    }

    fn frame(&self, frame: u32) -> NonNull<u8> {
        NonNull::new(self.at(frame, 0, FRAME_LEN)).unwrap_or(self.base)
    }

    fn fill(&self, frame: u32, at: usize, from: &[u8]) {
        let to = self.at(frame, at, from.len());
        // SAFETY: `at` checked the place; `from` is ours, so they don't overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    fn copy_out(&self, frame: u32, at: usize, into: &mut [u8]) {
        let from = self.at(frame, at, into.len());
        // SAFETY: as in `fill`.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    fn store(&self, frame: u32, word: usize, value: u64) {
        // Release: data and earlier words come before it. A kill is no other CPU, but the
        // compiler must not turn the order round.
        self.word(frame, word).store(value, Ordering::Release);
    }

    fn load(&self, frame: u32, word: usize) -> u64 {
        self.word(frame, word).load(Ordering::Acquire)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrows it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
