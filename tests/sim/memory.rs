//! The write cache's memory, which outlives the process, and in which the process can be
//! killed before any store.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use leafblk::write_cache::{Memory, SharedMemory};

/// What a kill unwinds with.
pub(crate) struct Killed;

/// The memory.
#[derive(Debug)]
pub(crate) struct Fused {
    memory: SharedMemory,
    fuse: Rc<Cell<Option<u32>>>,
    /// Whether the file system has no room for another piece.
    full: Rc<Cell<bool>>,
}

impl Fused {
    pub(crate) fn map(
        file: &File,
        pieces: u32,
        fuse: &Rc<Cell<Option<u32>>>,
        full: &Rc<Cell<bool>>,
    ) -> io::Result<Self> {
        let memory = SharedMemory::map(file.try_clone()?, pieces)?;
        Ok(Self { memory, fuse: Rc::clone(fuse), full: Rc::clone(full) })
    }

    fn burn(&self) {
        match self.fuse.get() {
            Some(0) => std::panic::resume_unwind(Box::new(Killed)),
            Some(left) => self.fuse.set(Some(left - 1)),
            None => {}
        }
    }
}

impl Memory for Fused {
    fn pieces(&self) -> u32 {
        self.memory.pieces()
    }

    fn grow(&mut self) -> io::Result<()> {
        if self.full.get() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.memory.grow()
    }

    fn frame(&self, frame: u32) -> NonNull<u8> {
        self.memory.frame(frame)
    }

    fn fill(&self, frame: u32, at: usize, from: &[u8]) {
        self.burn();
        self.memory.fill(frame, at, from);
    }

    fn copy_out(&self, frame: u32, at: usize, into: &mut [u8]) {
        self.memory.copy_out(frame, at, into);
    }

    fn store(&self, frame: u32, word: usize, value: u64) {
        self.burn();
        self.memory.store(frame, word, value);
    }

    fn load(&self, frame: u32, word: usize) -> u64 {
        self.memory.load(frame, word)
    }
}
