//! The same as `words.rs` for loom, whose atomics can't lie in mapped memory.

use std::fs::File;
use std::io;

use loom::sync::atomic::AtomicU64;

#[derive(Debug)]
pub(super) struct Words(Box<[AtomicU64]>);

impl Words {
    pub(super) fn of_file(_: &File, _: u64, len: usize) -> io::Result<Self> {
        Self::anonymous(len)
    }

    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        Ok(Self((0..len).map(|_| AtomicU64::new(0)).collect()))
    }

    pub(super) fn get(&self, index: usize) -> &AtomicU64 {
        &self.0[index]
    }
}
